// A GPU as a Device: one non-blocking stream, a memory pool of its own that gives nothing back to
// the driver, so that in steady state no call allocates, and a ring of 16 MiB of pinned memory
// through which uploads go (cuda/cuda_upload_ring.h). Copies out beside the computing have a stream
// and a ring of 64 MiB of their own, made for the first one (cuda/cuda_download_ring.h).
#ifndef KVTIER_CUDA_CUDA_DEVICE_H_
#define KVTIER_CUDA_CUDA_DEVICE_H_

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "cuda/device.h"

namespace kvtier {

struct CudaDeviceInfo {
  std::string model;  // "NVIDIA H200"
  int compute_major = 0;
  int compute_minor = 0;
  int multiprocessors = 0;
  uint64_t memory_bytes = 0;
  int driver_version = 0;   // 13000 is 13.0
  int runtime_version = 0;  // Of the CUDA runtime in this program.
};

// Devices that the driver shows. UNAVAILABLE, with the driver's words: no driver, one that is too
// old for this program or does not start, or no device.
absl::StatusOr<int> CountCudaDevices();

// UNAVAILABLE: as above, or no device of that number. FAILED_PRECONDITION: older than compute
// capability 8.0, or without stream-ordered memory.
absl::StatusOr<CudaDeviceInfo> DescribeCudaDevice(int ordinal);

// Errors as DescribeCudaDevice; RESOURCE_EXHAUSTED: no memory; INTERNAL: a stream or a pool could
// not be made.
absl::StatusOr<std::shared_ptr<Device>> MakeCudaDevice(int ordinal);

}  // namespace kvtier

#endif  // KVTIER_CUDA_CUDA_DEVICE_H_
