// PageService over a PageStore: checks requests, calls the store, maps the answers. What needs
// memory only is answered where gRPC calls us; what may wait for the disk runs on a pool. Pages are
// sent from where they lie (services/page_messages.h).
#ifndef KVTIER_SERVICES_PAGE_SERVICE_H_
#define KVTIER_SERVICES_PAGE_SERVICE_H_

#include <cstddef>
#include <cstdint>
#include <memory>

#include <grpcpp/impl/service_type.h>

#include "base/clock.h"
#include "base/limits.h"
#include "services/drain_signal.h"
#include "services/metrics.h"
#include "store/page_store.h"

namespace kvtier {

struct PageServiceOptions {
  // Calls at once, shared among tenants (services/call_slots.h); more are refused with
  // RESOURCE_EXHAUSTED. Each may hold a batch.
  uint32_t calls_max = 256;
  // Calls that wait for the disk at once; the others queue.
  size_t pool_threads = 8;
  // When it fires, calls that come are refused with UNAVAILABLE. Not owned; may be null.
  DrainSignal* drain = nullptr;
};

// Everything must outlive the service; the service must outlive the server that runs it.
std::unique_ptr<grpc::Service> MakePageService(const PageServiceOptions& options, PageStore& store,
                                               Metrics& metrics, Clock& clock);

}  // namespace kvtier

#endif  // KVTIER_SERVICES_PAGE_SERVICE_H_
