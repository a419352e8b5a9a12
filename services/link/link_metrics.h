// kvtier_link_* and kvtier_device_tier_*: what happened on the links, and what a compressor keeps
// in device memory for them, read at each scrape.
#ifndef KVTIER_SERVICES_LINK_LINK_METRICS_H_
#define KVTIER_SERVICES_LINK_LINK_METRICS_H_

#include <memory>

#include <prometheus/collectable.h>

#include "compressor/device_tier.h"
#include "services/link/link_counters.h"

namespace kvtier {

// `tier` may be null: a receiving end has none. Both outlive the result. Thread-safe.
std::shared_ptr<prometheus::Collectable> MakeLinkCollectable(const LinkCounters& counters,
                                                             const DeviceTier* tier);

}  // namespace kvtier

#endif  // KVTIER_SERVICES_LINK_LINK_METRICS_H_
