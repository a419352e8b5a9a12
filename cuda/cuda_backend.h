// The backend on a GPU. Callers need no CUDA header, and a program built without CUDA links the
// same function, which then says so.
#ifndef KVTIER_CUDA_CUDA_BACKEND_H_
#define KVTIER_CUDA_CUDA_BACKEND_H_

#include <memory>

#include "absl/status/statusor.h"
#include "compressor/backend.h"

namespace kvtier {

// Device `ordinal` as the driver counts. `activations`: cuda/device_backend.h.
// UNAVAILABLE: built without CUDA, no driver, no such device, no cuBLASLt; FAILED_PRECONDITION: a
// device that is too old; INTERNAL, RESOURCE_EXHAUSTED: a device that does not start. Never crashes
// for want of a device.
absl::StatusOr<std::unique_ptr<Backend>> MakeCudaBackend(int ordinal,
                                                         DType activations = DType::kBf16);

}  // namespace kvtier

#endif  // KVTIER_CUDA_CUDA_BACKEND_H_
