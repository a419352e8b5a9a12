// Hands the store's memory to processes on the same host: descriptors of the memory files of leased
// bands, over a UNIX socket (proto/kvtier/v1/shm.proto). A connection is a lease: it ends when
// either end closes it, or the client's process dies.
//
// One thread watches all connections. Acquiring, which may wait for the disk, runs on a pool, once
// a whole request is there; letting go has a thread of its own, so that no client that is slow to
// take its answer keeps a lease of another from ending. Thread-safe.
#ifndef KVTIER_SERVICES_SHM_SERVER_H_
#define KVTIER_SERVICES_SHM_SERVER_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "services/metrics.h"
#include "store/lease_table.h"

namespace kvtier {

class ShmServer {
 public:
  struct Options {
    std::string path;      // Of the socket.
    uint32_t mode = 0600;  // Of its file: who may connect, and so read any tenant's objects.
    // Connections at once, leases or not yet; more are closed at once. A connection is one of the
    // descriptors that are left beside memory files (store/host_memory.cc): half of them at most.
    uint32_t connections_max = 1024;
    size_t pool_threads = 4;
    // A client that has connected must ask within this. Nothing but its connection waits for it.
    absl::Duration handshake_timeout = absl::Seconds(10);
    // It must take its answer within this: a thread of the pool waits.
    absl::Duration answer_timeout = absl::Seconds(2);
  };

  // Listens. `leases` and `metrics` must outlive the server. Codes as of ListenUnix.
  static absl::StatusOr<std::unique_ptr<ShmServer>> Start(const Options& options,
                                                          LeaseTable& leases, Metrics& metrics);
  // Closes every connection: the leases end, what clients have mapped stays readable for them. Who
  // waits for an answer gets none; only what is being read from the disk is waited for.
  virtual ~ShmServer() = default;
  virtual uint32_t connections() const = 0;
};

}  // namespace kvtier

#endif  // KVTIER_SERVICES_SHM_SERVER_H_
