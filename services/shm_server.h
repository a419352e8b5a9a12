// Hands the store's memory to processes on the same host: descriptors of the memory files of leased
// bands, over a UNIX socket (proto/kvtier/v1/shm.proto). A connection is a lease: it ends when
// either end closes it, or the client's process dies.
//
// One thread watches all connections; acquiring and letting go, which may wait for the disk, run on
// a pool. Thread-safe.
#ifndef KVTIER_SERVICES_SHM_SERVER_H_
#define KVTIER_SERVICES_SHM_SERVER_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "base/limits.h"
#include "services/metrics.h"
#include "store/lease_table.h"

namespace kvtier {

class ShmServer {
 public:
  struct Options {
    std::string path;      // Of the socket.
    uint32_t mode = 0600;  // Of its file: who may connect, and so read any tenant's objects.
    // Connections at once, leases or not yet; more are closed at once.
    uint32_t connections_max = limits::kLeasesMax;
    size_t pool_threads = 4;
    // A client that has connected must ask within this, and take its answer within this.
    absl::Duration handshake_timeout = absl::Seconds(10);
  };

  // Listens. `leases` and `metrics` must outlive the server. Codes as of ListenUnix.
  static absl::StatusOr<std::unique_ptr<ShmServer>> Start(const Options& options,
                                                          LeaseTable& leases, Metrics& metrics);
  // Closes every connection: the leases end, what clients have mapped stays readable for them.
  virtual ~ShmServer() = default;
  virtual uint32_t connections() const = 0;
};

}  // namespace kvtier

#endif  // KVTIER_SERVICES_SHM_SERVER_H_
