#include <algorithm>
#include <utility>

#include "store/tiered_store_impl.h"

namespace kvtier {

void TieredStoreImpl::Insert(const ObjectPtr& object, ChangeCause cause) {
  if (const ObjectPtr old = index_.Find(object->tenant, object->manifest->key)) {
    Lower(old, 0, ChangeCause::kReplaced);
  }
  index_.Insert(object);
  OnChange({*object, 0, ResidentBands(*object), cause});
}

void TieredStoreImpl::Lower(const ObjectPtr& object, uint32_t band_count, ChangeCause cause) {
  const uint32_t before = ResidentBands(*object);
  const bool was_found = !object->retired;
  // A replaced upload is whole for its readers: its bands go with the last of them.
  if (cause != ChangeCause::kReplaced) {
    object->band_limit = std::min(object->band_limit, band_count);
  }
  if (band_count == 0) index_.Retire(object);
  garbage_.insert(object);
  if (cause == ChangeCause::kLoss && band_count < before) {
    counters_.bands_lost += before - band_count;  // Of a retired one too: readers miss them.
  }
  if (was_found && (band_count < before || band_count == 0)) {
    OnChange({*object, before, std::min(before, band_count), cause});
  }
}

void TieredStoreImpl::OnChange(const ObjectChange& change) {
  switch (change.cause) {
    case ChangeCause::kPut:
      ++counters_.uploads_sealed;
      break;
    case ChangeCause::kPressure:
    case ChangeCause::kRequested:
      // A whole object that somebody deletes is no loss of quality.
      if (change.bands_after > 0) {
        counters_.bands_dropped += change.bands_before - change.bands_after;
      } else if (change.cause == ChangeCause::kPressure) {
        ++counters_.objects_evicted;
      }
      break;
    case ChangeCause::kRecovered:
    case ChangeCause::kReplaced:
    case ChangeCause::kLoss:
      break;
  }
}

}  // namespace kvtier
