// Moves bytes between the memories of the devices of a small group of processes: NCCL between GPUs
// (cuda/nccl/nccl_communicator.h), threads of one process in tests
// (tests/testing/fake_communicator.h).
// The protocol that uses it, and everything that it must survive, is in services/link/.
//
// A group of `size` ranks is made once, by every rank at the same time and from one unique id, and
// lives until somebody fails. After any error, of any rank, it is worth nothing: the ranks may not
// agree any more about what has been sent. It is aborted and thrown away, never used again.
//
// Operations are collected between GroupStart and GroupEnd and then run in the order in which they
// were given; the peers give theirs in the same order. Buffers are device memory and belong to the
// communicator until Wait for their group, or a later one, has returned, with an error or without.
// Before that they may be neither freed nor changed: who gives up calls Abort and then Wait.
//
// Not thread-safe, except Abort.
#ifndef KVTIER_KVCACHE_COMMUNICATOR_H_
#define KVTIER_KVCACHE_COMMUNICATOR_H_

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "base/cancel_token.h"

namespace kvtier {

class Communicator {
 public:
  // Aborts what is under way.
  virtual ~Communicator() = default;
  virtual int rank() const = 0;
  virtual int size() const = 0;

  // All that the next calls ask for, up to GroupEnd, may run together.
  virtual absl::Status GroupStart() = 0;
  // `bytes` of device memory to, or from, another rank. Zero bytes are no operation.
  // REQUIRES: inside a group.
  virtual absl::Status Send(const void* from, uint64_t bytes, int to_rank) = 0;
  virtual absl::Status Receive(void* to, uint64_t bytes, int from_rank) = 0;
  // From `root` to everybody: `buffer` is read there and written elsewhere.
  virtual absl::Status Broadcast(void* buffer, uint64_t bytes, int root) = 0;
  // Starts the group without waiting for it, save that the first one with a peer may wait for the
  // connection. Returns its number, counted from 1. Errors as Wait.
  virtual absl::StatusOr<uint64_t> GroupEnd(absl::Time deadline) = 0;

  // Blocks until group `number` (0: none) and all before it are done. After any error, of this or
  // another method, and after Abort it returns soon, with an error, and no buffer of any group is
  // touched any more when it has returned.
  //   DEADLINE_EXCEEDED  not until then
  //   CANCELLED          Abort was called
  //   UNAVAILABLE        a peer is gone, or the connection to it
  //   INTERNAL           the library or the device failed
  virtual absl::Status Wait(uint64_t number, absl::Time deadline) = 0;
  // What has gone wrong so far, without waiting; OK if nothing.
  virtual absl::Status QueryError() = 0;

  // Ends everything under way, here at least, so that a Wait returns soon. From any thread, as
  // often as one likes.
  virtual void Abort() = 0;
};

class CommunicatorFactory {
 public:
  virtual ~CommunicatorFactory() = default;
  // Names a group that does not exist yet: opaque bytes, at most 4096
  // (limits::kCommunicatorIdBytesMax). One rank calls it and tells the others.
  virtual absl::StatusOr<std::string> MakeUniqueId() = 0;

  struct Membership {
    std::string unique_id;
    int rank = 0;
    int size = 0;
  };
  // Blocks until every rank of the group has called it.
  //   DEADLINE_EXCEEDED, CANCELLED (soon after `cancel` fires), UNAVAILABLE, INTERNAL as above
  //   INVALID_ARGUMENT   not an id, or not a rank of that size
  virtual absl::StatusOr<std::unique_ptr<Communicator>> Create(const Membership& membership,
                                                               absl::Time deadline,
                                                               const CancelToken& cancel) = 0;
};

}  // namespace kvtier

#endif  // KVTIER_KVCACHE_COMMUNICATOR_H_
