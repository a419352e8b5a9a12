#include "services/page_metrics.h"

#include <cstdint>
#include <vector>

#include <prometheus/client_metric.h>
#include <prometheus/metric_family.h>

namespace kvtier {
namespace {

using prometheus::MetricFamily;
using prometheus::MetricType;

class PageCollectable final : public prometheus::Collectable {
 public:
  explicit PageCollectable(const PageStore& pages) : pages_(pages) {}

  std::vector<MetricFamily> Collect() const override {
    std::vector<MetricFamily> out;
    const auto add = [&](const char* name, const char* help, MetricType type) -> double& {
      MetricFamily& family = out.emplace_back();
      family.name = name;
      family.help = help;
      family.type = type;
      prometheus::ClientMetric& metric = family.metric.emplace_back();
      return type == MetricType::Counter ? metric.counter.value : metric.gauge.value;
    };
    const auto counter = [&](const char* name, const char* help, uint64_t value) {
      add(name, help, MetricType::Counter) = static_cast<double>(value);
    };
    const auto gauge = [&](const char* name, const char* help, uint64_t value) {
      add(name, help, MetricType::Gauge) = static_cast<double>(value);
    };
    const PageCounters& counters = pages_.counters();
    counter("kvtier_page_gets_total", "Pages asked for", counters.gets);
    counter("kvtier_page_host_hits_total", "Pages served from host memory", counters.host_hits);
    counter("kvtier_page_disk_hits_total", "Pages served from disk", counters.disk_hits);
    counter("kvtier_page_misses_total", "Pages asked for that are not there", counters.misses);
    counter("kvtier_page_failures_total", "Pages whose read failed", counters.failures);
    counter("kvtier_page_stored_total", "New pages stored", counters.stored);
    counter("kvtier_page_kept_total", "Pages put again with the same bytes", counters.kept);
    counter("kvtier_page_conflicts_total", "Pages put under a key that has other bytes",
            counters.conflicts);
    counter("kvtier_page_refused_total", "Pages not stored for another reason", counters.refused);
    counter("kvtier_page_deleted_total", "Pages deleted on request", counters.deleted);
    counter("kvtier_page_checksum_failures_total", "Pages whose checksum was wrong on disk",
            counters.checksum_failures);
    const PageHostUsage host = pages_.host_usage();
    counter("kvtier_page_host_evicted_total", "Pages that left host memory for want of room",
            host.evicted);
    counter("kvtier_page_quota_evicted_total",
            "Pages that left host memory to make room in their tenant's quota", host.quota_evicted);
    counter("kvtier_page_quota_refused_total",
            "Pages that their tenant's quota had no room for, in host memory or on disk",
            host.quota_refused + counters.disk_quota_refused);
    gauge("kvtier_page_host_pages", "Pages in host memory", host.pages);
    gauge("kvtier_page_host_bytes", "Bytes of pages in host memory, as charged", host.bytes);
    gauge("kvtier_page_host_budget_bytes", "Most that it may be", host.budget_bytes);
    const PageTierUsage disk = pages_.disk_usage().value_or(PageTierUsage());
    counter("kvtier_page_disk_evicted_total", "Pages that left the disk for want of room",
            disk.evicted);
    counter("kvtier_page_records_lost_total", "Damaged page records found at start-up",
            disk.records_lost);
    counter("kvtier_page_log_damage_total",
            "Places of the pages' log of writes that could not be read at start-up",
            disk.log_damage);
    counter("kvtier_page_resets_total",
            "Starts at which no page could be read, so that pages began anew", disk.resets);
    gauge("kvtier_page_disk_pages", "Pages on disk", disk.pages);
    gauge("kvtier_page_disk_bytes", "Bytes of pages on disk, as charged", disk.bytes);
    gauge("kvtier_page_disk_budget_bytes", "Most that all files may take; 0: no disk for pages",
          disk.budget_bytes);
    return out;
  }

 private:
  const PageStore& pages_;
};

}  // namespace

std::shared_ptr<prometheus::Collectable> MakePageCollectable(const PageStore& pages) {
  return std::make_shared<PageCollectable>(pages);
}

}  // namespace kvtier
