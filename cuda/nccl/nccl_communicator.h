// Communicator over NCCL: between the GPUs of processes, of one host or of several.
//
// Non-blocking throughout (ncclConfig_t::blocking = 0): no call of NCCL's waits for a peer, so a
// peer that dies costs its deadline and not a thread. NCCL says itself when a connection is lost
// where it notices; a peer that is silent it does not notice, that is what deadlines are for.
// The thread that uses a communicator is the only one that calls NCCL: Abort sets a flag, and that
// thread, which looks at it every tenth of a millisecond while it waits, calls ncclCommAbort.
//
// Layout: buffers are device memory of the GPU that the factory was made for, any alignment.
// Requirements: NCCL 2.18 or newer; one rank per GPU (NCCL refuses two ranks of a group on one).
// Tested with a group of one rank (tests/gpu); the protocol above it with fakes.
#ifndef KVTIER_CUDA_NCCL_NCCL_COMMUNICATOR_H_
#define KVTIER_CUDA_NCCL_NCCL_COMMUNICATOR_H_

#include <memory>

#include "absl/status/statusor.h"
#include "kvcache/communicator.h"

namespace kvtier {

// For communicators on GPU `ordinal`. Deadlines are by the machine's clock. Thread-safe.
//   UNAVAILABLE         no driver, or no GPU
//   OUT_OF_RANGE        fewer GPUs than that
absl::StatusOr<std::unique_ptr<CommunicatorFactory>> MakeNcclFactory(int ordinal);

}  // namespace kvtier

#endif  // KVTIER_CUDA_NCCL_NCCL_COMMUNICATOR_H_
