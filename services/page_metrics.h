// kvtier_page_*: a page store's own counters and usage, read at each scrape.
#ifndef KVTIER_SERVICES_PAGE_METRICS_H_
#define KVTIER_SERVICES_PAGE_METRICS_H_

#include <memory>

#include <prometheus/collectable.h>

#include "store/page_store.h"

namespace kvtier {

// `pages` outlives it. Thread-safe.
std::shared_ptr<prometheus::Collectable> MakePageCollectable(const PageStore& pages);

}  // namespace kvtier

#endif  // KVTIER_SERVICES_PAGE_METRICS_H_
