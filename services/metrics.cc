#include "services/metrics.h"

#include <cstdint>
#include <initializer_list>
#include <map>
#include <string>
#include <utility>

#include <prometheus/client_metric.h>
#include <prometheus/metric_family.h>

#include "compressor/library_counters.h"
#include "services/link/link_metrics.h"
#include "services/metric_families.h"
#include "services/page_metrics.h"
#include "store/lease_table.h"
#include "store/scrubber.h"
#include "store/tiered_store.h"

namespace kvtier {
namespace {

using prometheus::MetricFamily;
using prometheus::MetricType;
using prometheus::Registry;

prometheus::Counter& AddCounter(Registry& registry, const char* name, const char* help) {
  return prometheus::BuildCounter().Name(name).Help(help).Register(registry).Add({});
}

// One family, whichever asks first.
prometheus::Counter& RefusedCalls(Registry& registry, const char* reason) {
  return prometheus::BuildCounter()
      .Name("kvtier_calls_refused_total")
      .Help("Calls refused because too many ran: of all tenants (busy), or of their own (share)")
      .Register(registry)
      .Add({{"reason", reason}});
}

prometheus::Gauge& AddGauge(Registry& registry, const char* name, const char* help) {
  return prometheus::BuildGauge().Name(name).Help(help).Register(registry).Add({});
}

// 1 ms to 16 minutes: from a host hit to the prefill of a long context on a CPU.
prometheus::Histogram::BucketBoundaries SecondsBuckets() {
  return {0.001, 0.004, 0.016, 0.064, 0.25, 1, 4, 16, 64, 256, 1024};
}

prometheus::Histogram& AddSeconds(Registry& registry, const char* name, const char* help) {
  return prometheus::BuildHistogram().Name(name).Help(help).Register(registry).Add(
      {}, SecondsBuckets());
}

absl::string_view CodeName(absl::StatusCode code) {
  // Bounded: a code that gRPC does not have counts as UNKNOWN.
  const int number = static_cast<int>(code);
  if (number < 0 || number > 16) return "UNKNOWN";
  static constexpr absl::string_view kNames[] = {"OK",
                                                 "CANCELLED",
                                                 "UNKNOWN",
                                                 "INVALID_ARGUMENT",
                                                 "DEADLINE_EXCEEDED",
                                                 "NOT_FOUND",
                                                 "ALREADY_EXISTS",
                                                 "PERMISSION_DENIED",
                                                 "RESOURCE_EXHAUSTED",
                                                 "FAILED_PRECONDITION",
                                                 "ABORTED",
                                                 "OUT_OF_RANGE",
                                                 "UNIMPLEMENTED",
                                                 "INTERNAL",
                                                 "UNAVAILABLE",
                                                 "DATA_LOSS",
                                                 "UNAUTHENTICATED"};
  return kNames[number];
}

class StoreCollectable final : public prometheus::Collectable {
 public:
  StoreCollectable(const TieredStore& store, const LeaseTable* leases)
      : store_(store), leases_(leases) {}

  std::vector<MetricFamily> Collect() const override {
    const StoreCounters& counters = store_.counters();
    MetricFamilies out;
    const auto counter = [&](const char* name, const char* help, uint64_t value) {
      out.AddCounter(name, help, value);
    };
    const auto gauge = [&](const char* name, const char* help, uint64_t value) {
      out.AddGauge(name, help, value);
    };
    counter("kvtier_store_requests_total", "Fetches that asked for an object", counters.requests);
    counter("kvtier_store_host_hits_total", "Fetches served wholly from host memory",
            counters.host_hits);
    counter("kvtier_store_disk_hits_total", "Fetches served at least in part from disk",
            counters.disk_hits);
    counter("kvtier_store_misses_total", "Fetches of what the store does not have",
            counters.misses);
    counter("kvtier_store_failures_total", "Fetches that ended with an error", counters.failures);
    counter("kvtier_store_uploads_sealed_total", "Uploads acknowledged", counters.uploads_sealed);
    counter("kvtier_store_uploads_refused_total", "Uploads refused for lack of room",
            counters.uploads_refused);
    counter("kvtier_store_bands_demoted_total", "Bands that left host memory and stay on disk",
            counters.bands_demoted);
    counter("kvtier_store_bands_filled_total", "Bands that came back into host memory from disk",
            counters.bands_filled);
    counter("kvtier_store_reads_refused_total",
            "Reads from disk that found no host memory, read-ahead included",
            counters.reads_refused);
    counter("kvtier_store_bands_dropped_total",
            "Bands given up under pressure or by request, of objects that stay",
            counters.bands_dropped);
    counter("kvtier_store_bands_lost_total", "Bands given up because bytes failed their checksum",
            counters.bands_lost);
    counter("kvtier_store_checksum_failures_total", "Segments whose checksum was wrong when read",
            counters.checksum_failures);
    counter("kvtier_store_log_damage_total",
            "Places of the log of records that could not be read at start-up", counters.log_damage);
    counter("kvtier_store_disk_cleanups_failed_total",
            "Failed seals whose bytes could not be removed from disk either",
            counters.disk_cleanups_failed);
    counter("kvtier_store_disk_cleanups_repeated_total", "Of them, removed later",
            counters.disk_cleanups_repeated);
    counter("kvtier_store_extensions_total", "Sealed objects that extend a stored one",
            counters.extensions_seen);
    counter("kvtier_store_objects_evicted_total", "Objects that went whole under pressure",
            counters.objects_evicted);
    counter("kvtier_store_objects_expired_total", "Objects removed after their time",
            counters.objects_expired);
    counter("kvtier_store_quota_give_ups_total",
            "Bands, or whole objects at their floor, that a tenant gave up for its own quota",
            counters.quota_give_ups);
    counter("kvtier_store_quota_refusals_total",
            "Uploads refused because their tenant's quota was used up", counters.quota_refusals);
    counter("kvtier_store_upload_share_refusals_total",
            "Uploads refused because their tenant had its share of open ones",
            counters.upload_share_refusals);
    counter("kvtier_store_watches_cut_total", "Watches ended because they fell behind",
            store_.watches_cut());
    gauge("kvtier_store_watches", "Watches under way", store_.watch_count());
    gauge("kvtier_store_objects", "Sealed objects now", store_.object_count());
    const TierUsage host = store_.host_usage();
    gauge("kvtier_store_host_bytes", "Host memory in use: segments and open uploads", host.bytes);
    gauge("kvtier_store_host_budget_bytes", "Most that host memory may hold; 0: unbounded",
          host.budget_bytes);
    const HostMemory::Counters memory = store_.host_memory_counters();
    gauge("kvtier_store_memory_files", "Memory files, those kept for the next band included",
          memory.files);
    counter("kvtier_store_memory_files_recycled_total", "Bands that took over a kept memory file",
            memory.files_recycled);
    counter("kvtier_store_memory_files_refused_total",
            "Bands that got no memory file because there were too many", memory.files_refused);
    const TierUsage disk = store_.disk_usage().value_or(TierUsage());
    gauge("kvtier_store_disk_bytes", "Segment bytes on disk; 0 without a disk", disk.bytes);
    gauge("kvtier_store_disk_budget_bytes", "Most that the disk may hold; 0: unbounded or none",
          disk.budget_bytes);
    AddTenants(out);
    const LeaseTable::Usage leases = leases_ == nullptr ? LeaseTable::Usage() : leases_->usage();
    gauge("kvtier_store_leases", "Leases held now", leases.leases);
    gauge("kvtier_store_leased_bytes", "Bytes that they hold in host memory", leases.bytes);
    counter("kvtier_store_leases_refused_total",
            "Leases refused: too many, too many bytes, or no host memory", leases.refused);
    return out.Take();
  }

 private:
  // One label value for each tenant with a quota of its own, so: bounded.
  void AddTenants(MetricFamilies& out) const {
    const std::vector<std::pair<TenantId, TenantStat>> tenants = store_.StatOfConfiguredTenants();
    const auto gauges = [&](const char* name, const char* help,
                            uint64_t (*value)(const TenantStat&)) {
      MetricFamily& family = out.Add(name, help, MetricType::Gauge);
      for (const auto& [tenant, stat] : tenants) {
        prometheus::ClientMetric& metric = family.metric.emplace_back();
        metric.label = {{"tenant", std::string(tenant.name())}};
        metric.gauge.value = static_cast<double>(value(stat));
      }
    };
    if (tenants.empty()) return;
    gauges("kvtier_store_tenant_bytes",
           "Bytes of resident bands and open uploads, of tenants with a quota of their own",
           [](const TenantStat& stat) { return stat.use.bytes(); });
    gauges("kvtier_store_tenant_quota_bytes", "Quota of those tenants",
           [](const TenantStat& stat) { return stat.quota_bytes; });
    gauges("kvtier_store_tenant_pinned_bytes", "Bytes of resident bands of their pinned objects",
           [](const TenantStat& stat) { return stat.use.pinned_bytes; });
  }

  const TieredStore& store_;
  const LeaseTable* const leases_;  // May be null.
};

class ScrubCollectable final : public prometheus::Collectable {
 public:
  explicit ScrubCollectable(const ScrubCounters& counters) : counters_(counters) {}

  std::vector<MetricFamily> Collect() const override {
    MetricFamilies out;
    out.AddCounter("kvtier_store_scrub_bytes_total", "Bytes that the scrub has read",
                   counters_.bytes);
    out.AddCounter("kvtier_store_scrub_passes_total", "Passes of the scrub through the whole store",
                   counters_.passes);
    out.AddCounter("kvtier_store_scrub_repaired_total",
                   "Segments of which a damaged copy was repaired from an intact one",
                   counters_.repaired);
    out.AddCounter("kvtier_store_scrub_lost_total",
                   "Segments that the scrub found without an intact copy", counters_.lost);
    out.AddCounter("kvtier_store_scrub_errors_total", "Objects that the scrub could not read now",
                   counters_.errors);
    return out.Take();
  }

 private:
  const ScrubCounters& counters_;
};

class LibraryCollectable final : public prometheus::Collectable {
 public:
  explicit LibraryCollectable(std::shared_ptr<const LibraryCounters> counters)
      : counters_(counters != nullptr ? std::move(counters)
                                      : std::make_shared<const LibraryCounters>()) {}

  std::vector<MetricFamily> Collect() const override {
    MetricFamilies out;
    out.AddCounter("kvtier_compute_library_attention_calls_total",
                   "Attentions that a library computed on a device", counters_->attention_calls);
    out.AddCounter("kvtier_compute_library_attention_fallbacks_total",
                   "Attentions that it had no plan for", counters_->attention_fallbacks);
    return out.Take();
  }

 private:
  const std::shared_ptr<const LibraryCounters> counters_;
};

}  // namespace

Metrics::Metrics()
    : registry_(std::make_shared<Registry>()),
      calls_refused_busy(RefusedCalls(*registry_, "busy")),
      calls_refused_share(RefusedCalls(*registry_, "share")),
      compress_computed(AddCounter(*registry_, "kvtier_compress_computed_total",
                                   "Contexts that were really computed")),
      compress_shared(AddCounter(*registry_, "kvtier_compress_shared_total",
                                 "Requests that joined a running computation of their key")),
      compress_already_stored(AddCounter(*registry_, "kvtier_compress_already_stored_total",
                                         "Requests answered by an upload already stored")),
      compress_refused(AddCounter(*registry_, "kvtier_compress_refused_total",
                                  "Requests refused: queue full, or beyond the memory budget")),
      compress_cancelled(AddCounter(*registry_, "kvtier_compress_cancelled_total",
                                    "Computations ended early because no caller was left")),
      compress_context_tokens(AddCounter(*registry_, "kvtier_compress_context_tokens_total",
                                         "Context tokens of computed contexts")),
      compress_queue_length(AddGauge(*registry_, "kvtier_compress_queue_length",
                                     "Computations that wait for their turn")),
      compress_memory_reserved_bytes(AddGauge(*registry_, "kvtier_compress_memory_reserved_bytes",
                                              "Memory that admitted computations may use")),
      compress_prefill_seconds(
          AddSeconds(*registry_, "kvtier_compress_prefill_seconds", "Time to prefill one context")),
      compress_scoring_seconds(
          AddSeconds(*registry_, "kvtier_compress_scoring_seconds", "Time to score one context")),
      worker_fetched_bytes(AddCounter(*registry_, "kvtier_worker_fetched_bytes_total",
                                      "Encoded bytes fetched from the store")),
      worker_questions(
          AddCounter(*registry_, "kvtier_worker_questions_total", "Questions answered")),
      worker_answer_tokens(
          AddCounter(*registry_, "kvtier_worker_answer_tokens_total", "Tokens of answers")),
      worker_asks_refused(AddCounter(*registry_, "kvtier_worker_asks_refused_total",
                                     "Questions refused: too long, or too many at once")),
      worker_steps_launched(
          AddCounter(*registry_, "kvtier_worker_steps_launched_total",
                     "Decode steps on a device, launched operation by operation")),
      worker_steps_replayed(AddCounter(*registry_, "kvtier_worker_steps_replayed_total",
                                       "Decode steps on a device, replayed as one graph")),
      worker_step_captures_refused(
          AddCounter(*registry_, "kvtier_worker_step_captures_refused_total",
                     "Questions whose steps were launched because a capture failed")),
      worker_attached_objects(
          AddGauge(*registry_, "kvtier_worker_attached_objects", "Objects attached now")),
      worker_attached_bytes(AddGauge(*registry_, "kvtier_worker_attached_bytes",
                                     "Encoded bytes of the objects attached now")),
      worker_prefilled_context_tokens(AddCounter(
          *registry_, "kvtier_worker_prefilled_context_tokens_total",
          "Context tokens whose keys and values the worker computed itself: 0 by design")),
      worker_shm_fallbacks(
          AddCounter(*registry_, "kvtier_worker_shm_fallbacks_total",
                     "Fetches that went through gRPC because shared memory refused")),
      store_put_bytes(
          AddCounter(*registry_, "kvtier_store_put_bytes_total", "Payload bytes received by Put")),
      store_fetch_bytes(
          AddCounter(*registry_, "kvtier_store_fetch_bytes_total", "Payload bytes sent by Fetch")),
      store_shm_leases(AddCounter(*registry_, "kvtier_store_shm_leases_total",
                                  "Leases handed out over shared memory")),
      store_shm_bytes(AddCounter(*registry_, "kvtier_store_shm_bytes_total",
                                 "Bytes of the bands that they hold")),
      store_shm_refused(AddCounter(*registry_, "kvtier_store_shm_refused_total",
                                   "Shared memory clients that were refused")),
      store_lookup_prompts(AddCounter(*registry_, "kvtier_store_lookup_prompts_total",
                                      "Prompts that Lookup was asked about")),
      store_lookup_matches(AddCounter(*registry_, "kvtier_store_lookup_matches_total",
                                      "Prompts for which Lookup named a candidate")),
      store_lookup_blocks(AddCounter(*registry_, "kvtier_store_lookup_blocks_total",
                                     "Token block hashes that Lookup looked for")),
      store_bulk_deleted_objects(AddCounter(*registry_, "kvtier_store_bulk_deleted_objects_total",
                                            "Objects removed by DeleteMany")),
      rpc_requests_(prometheus::BuildCounter()
                        .Name("kvtier_rpc_requests_total")
                        .Help("Calls that ended, by method and gRPC code")
                        .Register(*registry_)),
      rpc_seconds_(prometheus::BuildHistogram()
                       .Name("kvtier_rpc_seconds")
                       .Help("Time from the first byte of a call to its end, by method")
                       .Register(*registry_)),
      compute_device_(prometheus::BuildGauge()
                          .Name("kvtier_compute_device")
                          .Help("1: what --device asked for, and what this program computes on")
                          .Register(*registry_)) {}

Metrics::~Metrics() = default;

void Metrics::CountRpc(absl::string_view method, const absl::Status& status,
                       absl::Duration elapsed) {
  const std::string name(method);
  rpc_requests_.Add({{"method", name}, {"code", std::string(CodeName(status.code()))}}).Increment();
  rpc_seconds_.Add({{"method", name}}, SecondsBuckets()).Observe(absl::ToDoubleSeconds(elapsed));
}

void Metrics::SetComputeDevice(absl::string_view asked, absl::string_view device) {
  compute_device_.Add({{"asked", std::string(asked)}, {"device", std::string(device)}}).Set(1);
}

void Metrics::ExportStore(const TieredStore& store, const LeaseTable* leases) {
  store_ = std::make_shared<StoreCollectable>(store, leases);
}

void Metrics::ExportLink(const LinkCounters& counters, const DeviceTier* tier) {
  link_ = MakeLinkCollectable(counters, tier);
}

void Metrics::ExportPages(const PageStore& pages) { pages_ = MakePageCollectable(pages); }

void Metrics::ExportScrub(const ScrubCounters& counters) {
  scrub_ = std::make_shared<ScrubCollectable>(counters);
}

void Metrics::ExportLibraries(std::shared_ptr<const LibraryCounters> counters) {
  libraries_ = std::make_shared<LibraryCollectable>(std::move(counters));
}

std::vector<std::shared_ptr<prometheus::Collectable>> Metrics::collectables() const {
  std::vector<std::shared_ptr<prometheus::Collectable>> all = {registry_};
  if (store_ != nullptr) all.push_back(store_);
  if (link_ != nullptr) all.push_back(link_);
  if (pages_ != nullptr) all.push_back(pages_);
  if (scrub_ != nullptr) all.push_back(scrub_);
  if (libraries_ != nullptr) all.push_back(libraries_);
  return all;
}

}  // namespace kvtier
