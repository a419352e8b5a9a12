// A device made of host memory and the emulator (cuda/emulated/host_simt.h), for tests of device
// code on machines without a GPU.
#ifndef KVTIER_CUDA_EMULATED_EMULATED_DEVICE_H_
#define KVTIER_CUDA_EMULATED_EMULATED_DEVICE_H_

#include <atomic>
#include <cstdint>
#include <memory>

#include "cuda/device.h"

namespace kvtier {

// What the host waited for: on a GPU each of these stops the thread until the stream is through.
// The test keeps it, and reads it at any time.
struct EmulatedDeviceLog {
  std::atomic<int64_t> waits{0};      // For the stream, or for a copy to the host.
  std::atomic<int64_t> bytes_out{0};  // Copied to the host.
};

// Copies that are begun are made when they are waited for, and fail if their memory has been freed.
// New memory holds NaNs. Memory behind an allocation is watched: a kernel that writes there fails
// the next Check() or Synchronize() with INTERNAL, naming the allocation's size. A captured launch
// runs when it is replayed and not before, on the thread that replays. `bytes_max` is what may be
// allocated at once in all. `log` (may be null) counts.
std::shared_ptr<Device> MakeEmulatedDevice(uint64_t bytes_max = uint64_t{1} << 32,
                                           std::shared_ptr<EmulatedDeviceLog> log = nullptr);

}  // namespace kvtier

#endif  // KVTIER_CUDA_EMULATED_EMULATED_DEVICE_H_
