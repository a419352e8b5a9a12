#include "services/page_metrics.h"

#include <vector>

#include <prometheus/metric_family.h>

#include "services/metric_families.h"

namespace kvtier {
namespace {

class PageCollectable final : public prometheus::Collectable {
 public:
  explicit PageCollectable(const PageStore& pages) : pages_(pages) {}

  std::vector<prometheus::MetricFamily> Collect() const override {
    MetricFamilies out;
    const PageCounters& counters = pages_.counters();
    out.AddCounter("kvtier_page_gets_total", "Pages asked for", counters.gets);
    out.AddCounter("kvtier_page_host_hits_total", "Pages served from host memory",
                   counters.host_hits);
    out.AddCounter("kvtier_page_disk_hits_total", "Pages served from disk", counters.disk_hits);
    out.AddCounter("kvtier_page_misses_total", "Pages asked for that are not there",
                   counters.misses);
    out.AddCounter("kvtier_page_failures_total", "Pages whose read failed", counters.failures);
    out.AddCounter("kvtier_page_stored_total", "New pages stored", counters.stored);
    out.AddCounter("kvtier_page_kept_total", "Pages put again with the same bytes", counters.kept);
    out.AddCounter("kvtier_page_conflicts_total", "Pages put under a key that has other bytes",
                   counters.conflicts);
    out.AddCounter("kvtier_page_refused_total", "Pages not stored for another reason",
                   counters.refused);
    out.AddCounter("kvtier_page_deleted_total", "Pages deleted on request", counters.deleted);
    out.AddCounter("kvtier_page_checksum_failures_total", "Pages whose checksum was wrong on disk",
                   counters.checksum_failures);
    const PageHostUsage host = pages_.host_usage();
    out.AddCounter("kvtier_page_host_evicted_total", "Pages that left host memory for want of room",
                   host.evicted);
    out.AddCounter("kvtier_page_quota_evicted_total",
                   "Pages that left host memory to make room in their tenant's quota",
                   host.quota_evicted);
    out.AddCounter("kvtier_page_quota_refused_total",
                   "Pages that their tenant's quota had no room for, in host memory or on disk",
                   host.quota_refused + counters.disk_quota_refused);
    out.AddGauge("kvtier_page_host_pages", "Pages in host memory", host.pages);
    out.AddGauge("kvtier_page_host_bytes", "Bytes of pages in host memory, as charged", host.bytes);
    out.AddGauge("kvtier_page_host_budget_bytes", "Most that it may be", host.budget_bytes);
    const PageTierUsage disk = pages_.disk_usage().value_or(PageTierUsage());
    out.AddCounter("kvtier_page_disk_evicted_total", "Pages that left the disk for want of room",
                   disk.evicted);
    out.AddCounter("kvtier_page_records_lost_total", "Damaged page records found at start-up",
                   disk.records_lost);
    out.AddCounter("kvtier_page_log_damage_total",
                   "Places of the pages' log of writes that could not be read at start-up",
                   disk.log_damage);
    out.AddCounter("kvtier_page_resets_total",
                   "Starts at which no page could be read, so that pages began anew", disk.resets);
    out.AddGauge("kvtier_page_disk_pages", "Pages on disk", disk.pages);
    out.AddGauge("kvtier_page_disk_bytes", "Bytes of pages on disk, as charged", disk.bytes);
    out.AddGauge("kvtier_page_disk_budget_bytes",
                 "Most that all files may take; 0: no disk for pages", disk.budget_bytes);
    return out.Take();
  }

 private:
  const PageStore& pages_;
};

}  // namespace

std::shared_ptr<prometheus::Collectable> MakePageCollectable(const PageStore& pages) {
  return std::make_shared<PageCollectable>(pages);
}

}  // namespace kvtier
