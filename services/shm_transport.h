// Transport for a worker on the store's host: maps the leased bands read-only and reads them where
// the store wrote them. Segments point into the mapping; the mapping, and with it the lease, lives
// until the last of them is gone. When the store goes away meanwhile, the mapping stays readable.
#ifndef KVTIER_SERVICES_SHM_TRANSPORT_H_
#define KVTIER_SERVICES_SHM_TRANSPORT_H_

#include <memory>
#include <string>

#include "absl/time/time.h"
#include "kvcache/transport.h"
#include "services/metrics.h"

namespace kvtier {

struct ShmTransportOptions {
  std::string path;  // Of the store's socket (kvtier-store --shm_socket).
  // Check every head's CRC32C before a segment is delivered, as other transports do. Without it the
  // reader relies on the store, which has checked when the bytes arrived, and on its memory.
  bool verify = true;
  // How long the store may take to answer, reading from its disk included. Longer is UNAVAILABLE,
  // so that a store that stalls here leaves time to ask it otherwise (MakeFallbackTransport).
  absl::Duration answer_timeout = absl::Seconds(5);
};

// A store that cannot be reached, or does not answer in time, is UNAVAILABLE; one that sends what
// it should not is DATA_LOSS.
std::unique_ptr<Transport> MakeShmTransport(const ShmTransportOptions& options);

// Fetches through `first`; when that refuses for reasons of its own (UNAVAILABLE,
// RESOURCE_EXHAUSTED, FAILED_PRECONDITION) before it delivered anything, through `second`, counted
// (kvtier_worker_shm_fallbacks_total). `metrics` must outlive it.
std::unique_ptr<Transport> MakeFallbackTransport(std::unique_ptr<Transport> first,
                                                 std::unique_ptr<Transport> second,
                                                 Metrics& metrics);

}  // namespace kvtier

#endif  // KVTIER_SERVICES_SHM_TRANSPORT_H_
