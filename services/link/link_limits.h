// The bounds of the link, each with its reason; the rest of the table is base/limits.h.
#ifndef KVTIER_SERVICES_LINK_LINK_LIMITS_H_
#define KVTIER_SERVICES_LINK_LINK_LIMITS_H_

#include <cstdint>

#include "absl/time/time.h"

namespace kvtier::limits {

// Workers of one tensor-parallel group; eight are usual.
inline constexpr uint32_t kLinkRanksMax = 64;
// Groups of one sender: each has a communicator with buffers on the device. Idle ones go first.
inline constexpr uint32_t kLinkGroupsMax = 64;
// Calls at once; each holds a thread.
inline constexpr uint32_t kLinkCallsMax = 256;
// A call must end by itself sometime: nobody else frees what it holds.
inline constexpr absl::Duration kLinkCallMax = absl::Minutes(10);
// How soon a call that waits notices that its caller has gone: gRPC's synchronous calls can only be
// asked. 256 of them ask 2560 times a second, which is nothing.
inline constexpr absl::Duration kLinkCancelPoll = absl::Milliseconds(100);
// NCCL's has 128.
inline constexpr uint64_t kCommunicatorIdBytesMax = 4096;

}  // namespace kvtier::limits

#endif  // KVTIER_SERVICES_LINK_LINK_LIMITS_H_
