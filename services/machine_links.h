// What this build can link with: the one place of the programs that knows whether cuda/nccl/ is in
// it. A library of its own, so that only programs that link load NCCL.
#ifndef KVTIER_SERVICES_MACHINE_LINKS_H_
#define KVTIER_SERVICES_MACHINE_LINKS_H_

#include <memory>

#include "absl/status/statusor.h"
#include "compressor/backend.h"
#include "kvcache/communicator.h"

namespace kvtier {

// Communicators for the memory of `backend`, for the link (docs/protocol.md, "Link").
//   INVALID_ARGUMENT  this build has no NCCL
//   UNAVAILABLE       the backend is not a GPU's, or the GPU is not to be had
absl::StatusOr<std::unique_ptr<CommunicatorFactory>> MachineCommunicators(const Backend& backend);

}  // namespace kvtier

#endif  // KVTIER_SERVICES_MACHINE_LINKS_H_
