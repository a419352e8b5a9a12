#include "services/metric_families.h"

#include <utility>

namespace kvtier {

using prometheus::MetricFamily;
using prometheus::MetricType;

MetricFamily& MetricFamilies::Add(const char* name, const char* help, MetricType type) {
  MetricFamily& family = families_.emplace_back();
  family.name = name;
  family.help = help;
  family.type = type;
  return family;
}

void MetricFamilies::AddCounter(const char* name, const char* help, uint64_t value) {
  Add(name, help, MetricType::Counter).metric.emplace_back().counter.value =
      static_cast<double>(value);
}

void MetricFamilies::AddGauge(const char* name, const char* help, uint64_t value) {
  Add(name, help, MetricType::Gauge).metric.emplace_back().gauge.value = static_cast<double>(value);
}

std::vector<MetricFamily> MetricFamilies::Take() { return std::exchange(families_, {}); }

}  // namespace kvtier
