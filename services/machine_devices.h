// What this build can compute on and link with: the one place of the programs that knows whether
// cuda/ is in it. A library of its own, so that only programs that run models load what CUDA needs.
#ifndef KVTIER_SERVICES_MACHINE_DEVICES_H_
#define KVTIER_SERVICES_MACHINE_DEVICES_H_

#include <memory>

#include "absl/status/statusor.h"
#include "kvcache/communicator.h"
#include "services/compute_device.h"

namespace kvtier {

// As CpuDevices, and GPUs where cuda/ was built.
DeviceBackends MachineDevices(int threads);

// Communicators for the memory of `backend`, for the link (docs/protocol.md, "Link").
//   INVALID_ARGUMENT  this build has no NCCL
//   UNAVAILABLE       the backend is not a GPU's, or the GPU is not to be had
absl::StatusOr<std::unique_ptr<CommunicatorFactory>> MachineCommunicators(const Backend& backend);

}  // namespace kvtier

#endif  // KVTIER_SERVICES_MACHINE_DEVICES_H_
