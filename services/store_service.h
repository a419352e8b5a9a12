// StoreService over a TieredStore: checks requests, calls the store, maps the answers. It decides
// nothing about where bytes live.
//
// Fetch and Put run as callbacks on serialized messages (frames.h): a frame references the store's
// memory, one frame of a stream is in flight at a time, and a slow reader holds no thread. Work
// that may wait for the disk runs on a pool of its own.
#ifndef KVTIER_SERVICES_STORE_SERVICE_H_
#define KVTIER_SERVICES_STORE_SERVICE_H_

#include <cstddef>
#include <cstdint>
#include <memory>

#include <grpcpp/impl/service_type.h>

#include "base/clock.h"
#include "base/limits.h"
#include "services/drain_signal.h"
#include "services/metrics.h"
#include "store/lease_table.h"
#include "store/tiered_store.h"

namespace kvtier {

struct StoreServiceOptions {
  // Calls at once, of every kind but Lease, shared among tenants (services/call_slots.h); more are
  // refused with RESOURCE_EXHAUSTED.
  uint32_t calls_max = limits::kFetchesMax;
  // Lease streams at once, shared likewise, but counted apart: they last as long as their clients
  // like, and must not take the place of calls that end. One stream can hold many leases.
  uint32_t lease_streams_max = limits::kFetchesMax;
  // Calls that may wait for the disk at once; the others queue.
  size_t pool_threads = 16;
  // Announced in Stats.
  uint64_t object_bytes_max = limits::kObjectBytesMax;
  // How fast the engines that ask prefill a prompt, for Lookup's estimate. 0: not known.
  double prefill_tokens_per_second = 0;
  // For Lease, and Fetch under one. Not owned; null: Lease is UNIMPLEMENTED.
  LeaseTable* leases = nullptr;
  // When it fires, Lease streams end with UNAVAILABLE, and calls that come are refused with it.
  // Not owned; null: Lease streams last until their clients end them.
  DrainSignal* drain = nullptr;
};

// Everything must outlive the service; the service must outlive the server that runs it.
std::unique_ptr<grpc::Service> MakeStoreService(const StoreServiceOptions& options,
                                                TieredStore& store, Metrics& metrics, Clock& clock);

}  // namespace kvtier

#endif  // KVTIER_SERVICES_STORE_SERVICE_H_
