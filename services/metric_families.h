// Families of metrics that are made anew at each scrape from counters that others keep, so that
// nothing is counted twice.
//
//   MetricFamilies out;
//   out.AddCounter("kvtier_page_gets_total", "Pages asked for", pages.counters().gets);
//   return out.Take();
//
// Not thread-safe.
#ifndef KVTIER_SERVICES_METRIC_FAMILIES_H_
#define KVTIER_SERVICES_METRIC_FAMILIES_H_

#include <cstdint>
#include <vector>

#include <prometheus/metric_family.h>

namespace kvtier {

class MetricFamilies {
 public:
  // One value, without labels.
  void AddCounter(const char* name, const char* help, uint64_t value);
  void AddGauge(const char* name, const char* help, uint64_t value);
  // A family whose values, one for each label, the caller adds. Valid until the next one is added.
  prometheus::MetricFamily& Add(const char* name, const char* help, prometheus::MetricType type);

  // What was added; none is left.
  std::vector<prometheus::MetricFamily> Take();

 private:
  std::vector<prometheus::MetricFamily> families_;
};

}  // namespace kvtier

#endif  // KVTIER_SERVICES_METRIC_FAMILIES_H_
