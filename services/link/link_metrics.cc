#include "services/link/link_metrics.h"

#include <cstdint>
#include <vector>

#include <prometheus/client_metric.h>
#include <prometheus/metric_family.h>

#include "services/metric_families.h"

namespace kvtier {
namespace {

using prometheus::MetricFamily;
using prometheus::MetricType;

class LinkCollectable final : public prometheus::Collectable {
 public:
  LinkCollectable(const LinkCounters& counters, const DeviceTier* tier)
      : counters_(counters), tier_(tier) {}

  std::vector<MetricFamily> Collect() const override {
    MetricFamilies out;
    out.AddCounter("kvtier_link_sent_total", "Transfers sent, each rank one", counters_.sent);
    out.AddCounter("kvtier_link_sent_bytes_total", "Payload bytes sent", counters_.sent_bytes);
    out.AddCounter("kvtier_link_send_misses_total",
                   "Transfers asked of objects not in device memory", counters_.send_misses);
    out.AddCounter("kvtier_link_send_failures_total", "Transfers begun and not sent",
                   counters_.send_failures);
    out.AddCounter("kvtier_link_received_total", "Fetches that the link brought whole",
                   counters_.received);
    out.AddCounter("kvtier_link_received_bytes_total", "Their payload bytes",
                   counters_.received_bytes);
    MetricFamily& fallbacks =
        out.Add("kvtier_link_fallbacks_total", "Fetches for which the store was asked, by reason",
                MetricType::Counter);
    const auto add_fallbacks = [&](const char* reason, uint64_t value) {
      prometheus::ClientMetric& metric = fallbacks.metric.emplace_back();
      metric.label.push_back({"reason", reason});
      metric.counter.value = static_cast<double>(value);
    };
    add_fallbacks("miss", counters_.fallback_misses);
    add_fallbacks("failure", counters_.fallback_failures);
    out.AddCounter("kvtier_link_failures_total",
                   "Fetches that ended without asking the store for bytes", counters_.failures);
    out.AddCounter("kvtier_link_communicators_total", "Communicators made",
                   counters_.communicators);
    out.AddCounter("kvtier_link_communicators_dropped_total", "Of them, thrown away",
                   counters_.communicators_dropped);
    if (tier_ == nullptr) return out.Take();
    const DeviceTierUsage tier = tier_->usage();
    out.AddGauge("kvtier_device_tier_objects", "Objects in device memory", tier.objects);
    out.AddGauge("kvtier_device_tier_bytes", "Bytes of objects in device memory", tier.bytes);
    out.AddCounter("kvtier_device_tier_inserted_total", "Objects put there", tier.inserted);
    out.AddCounter("kvtier_device_tier_shortened_total", "Of them, without their highest bands",
                   tier.shortened);
    out.AddCounter("kvtier_device_tier_evicted_total", "Objects that left for want of room",
                   tier.evicted);
    out.AddCounter("kvtier_device_tier_refused_total", "Objects not put there", tier.refused);
    return out.Take();
  }

 private:
  const LinkCounters& counters_;
  const DeviceTier* const tier_;
};

}  // namespace

std::shared_ptr<prometheus::Collectable> MakeLinkCollectable(const LinkCounters& counters,
                                                             const DeviceTier* tier) {
  return std::make_shared<LinkCollectable>(counters, tier);
}

}  // namespace kvtier
