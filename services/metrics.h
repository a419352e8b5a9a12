// Every metric of every kvtier server, built once at start-up and passed by reference.
// docs/metrics.md describes each; a test holds that page against what the binaries export.
// Names: kvtier_<part>_<thing>_<unit>[_total]. Labels are bounded: no key, no request id.
#ifndef KVTIER_SERVICES_METRICS_H_
#define KVTIER_SERVICES_METRICS_H_

#include <memory>
#include <vector>

#include <prometheus/collectable.h>
#include <prometheus/counter.h>
#include <prometheus/family.h>
#include <prometheus/gauge.h>
#include <prometheus/histogram.h>
#include <prometheus/registry.h>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"

namespace kvtier {

class LeaseTable;
struct LibraryCounters;
class DeviceTier;
class PageStore;
struct LinkCounters;
struct ScrubCounters;
class TieredStore;

// Thread-safe. Lives as long as the server. Every server exports the metrics of every part (those
// of other parts stay 0), so that one page and one dashboard fit all; kvtier_store_* beyond the two
// byte counters appear only where ExportStore and ExportScrub were called.
class Metrics {
 private:
  // First, because everything below is a member of it.
  const std::shared_ptr<prometheus::Registry> registry_;

 public:
  Metrics();
  ~Metrics();
  Metrics(const Metrics&) = delete;
  Metrics& operator=(const Metrics&) = delete;

  // kvtier_rpc_requests_total{method,code} and kvtier_rpc_seconds{method}: every server. `method`
  // is the bare name ("Fetch") and must come from the code, never from a request.
  void CountRpc(absl::string_view method, const absl::Status& status, absl::Duration elapsed);

  // kvtier_compute_device{asked,device} is 1: what --device said and what it became ("cpu",
  // "cuda:0"). Once, by programs that run models.
  void SetComputeDevice(absl::string_view asked, absl::string_view device);

  // Calls refused before they began (services/call_slots.h).
  prometheus::Counter& calls_refused_busy;   // All slots were taken.
  prometheus::Counter& calls_refused_share;  // Its tenant's share was.

  // Compressor.
  prometheus::Counter& compress_computed;        // Contexts really computed.
  prometheus::Counter& compress_shared;          // Requests that joined a running computation.
  prometheus::Counter& compress_already_stored;  // Served by a stored upload.
  prometheus::Counter& compress_refused;         // Queue full or memory budget.
  prometheus::Counter& compress_cancelled;
  prometheus::Counter& compress_context_tokens;  // Of computed contexts.
  prometheus::Gauge& compress_queue_length;
  prometheus::Gauge& compress_memory_reserved_bytes;
  prometheus::Histogram& compress_prefill_seconds;
  prometheus::Histogram& compress_scoring_seconds;

  // Worker.
  prometheus::Counter& worker_fetched_bytes;
  prometheus::Counter& worker_questions;
  prometheus::Counter& worker_answer_tokens;
  prometheus::Counter& worker_asks_refused;
  // Steps of one token on a device (compressor/decode_step.h); 0 on a CPU.
  prometheus::Counter& worker_steps_launched;
  prometheus::Counter& worker_steps_replayed;
  prometheus::Counter& worker_step_captures_refused;
  prometheus::Gauge& worker_attached_objects;
  prometheus::Gauge& worker_attached_bytes;
  prometheus::Counter& worker_prefilled_context_tokens;  // 0 by design.
  prometheus::Counter& worker_shm_fallbacks;  // Fetches through gRPC that shared memory refused.

  // Store: bytes in and out; everything else is read from the store's own counters at scrape time.
  prometheus::Counter& store_put_bytes;
  prometheus::Counter& store_fetch_bytes;
  prometheus::Counter& store_shm_leases;   // Handed out over shared memory.
  prometheus::Counter& store_shm_bytes;    // Of their bands.
  prometheus::Counter& store_shm_refused;  // Connections and requests refused there.
  prometheus::Counter& store_lookup_prompts;
  prometheus::Counter& store_lookup_matches;  // Prompts with a candidate; not yet hits.
  prometheus::Counter& store_lookup_blocks;
  prometheus::Counter& store_bulk_deleted_objects;
  // Exports the counters and usage of `store`, and of its leases if there may be some
  // (kvtier_store_*). Both must outlive the metrics.
  void ExportStore(const TieredStore& store, const LeaseTable* leases = nullptr);
  // The same of pages (kvtier_page_*).
  void ExportPages(const PageStore& pages);
  // Exports kvtier_link_* and, with a tier, kvtier_device_tier_*. They must outlive the metrics.
  void ExportLink(const LinkCounters& counters, const DeviceTier* tier);
  // Exports kvtier_compute_library_*: what a device's libraries did. Keeps the counters; null: 0.
  void ExportLibraries(std::shared_ptr<const LibraryCounters> counters);
  // Exports kvtier_store_scrub_*. They must outlive the metrics.
  void ExportScrub(const ScrubCounters& counters);

  prometheus::Registry& registry() { return *registry_; }
  // Everything that a scrape must collect; they may be dropped before the metrics.
  std::vector<std::shared_ptr<prometheus::Collectable>> collectables() const;

 private:
  prometheus::Family<prometheus::Counter>& rpc_requests_;
  prometheus::Family<prometheus::Histogram>& rpc_seconds_;
  prometheus::Family<prometheus::Gauge>& compute_device_;
  std::shared_ptr<prometheus::Collectable> store_;      // Null until ExportStore.
  std::shared_ptr<prometheus::Collectable> link_;       // Null until ExportLink.
  std::shared_ptr<prometheus::Collectable> pages_;      // Null until ExportPages.
  std::shared_ptr<prometheus::Collectable> scrub_;      // Null until ExportScrub.
  std::shared_ptr<prometheus::Collectable> libraries_;  // Null until ExportLibraries.
};

}  // namespace kvtier

#endif  // KVTIER_SERVICES_METRICS_H_
