// One band on its way from disk into host memory: filled segment by segment, as a reader reads them
// from the first layer on, in the memory in which it will stay. Only a whole band is of use there;
// one that its reader leaves, or that has to give way, is given up.
//
// Thread-safe.
#ifndef KVTIER_STORE_BAND_FILL_H_
#define KVTIER_STORE_BAND_FILL_H_

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "base/bytes.h"
#include "base/mutex.h"
#include "kvcache/ids.h"
#include "kvcache/manifest.h"
#include "store/host_memory.h"

namespace kvtier {

class BandFill {
 public:
  // Where a reader must begin who is to fill the band: its first layer with bytes. Nobody reads
  // empty segments. The layer count if all are empty.
  static LayerIndex FirstLayer(const BandEntry& band);

  // Takes over `memory`, which nobody has written to yet.
  explicit BandFill(std::shared_ptr<BandMemory> memory);

  // Copies a segment, whose bytes have been verified; a repeated one is passed over. They may come
  // a little out of order, as two reads at a time end. Far behind a layer that was left out, as one
  // that its reader got from elsewhere, the band is given up: it would never be whole. Returns
  // whether the band is whole now.
  bool Add(LayerIndex layer, ByteSpan segment) ABSL_LOCKS_EXCLUDED(mutex_);
  // The band, sealed, once, if it is whole. Until then it can be given up, whole or not.
  std::shared_ptr<const BandMemory> TakeWhole() ABSL_LOCKS_EXCLUDED(mutex_);
  // Frees its memory, unless the band has been taken. What is added from now on is passed over.
  void Abandon() ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  static constexpr uint32_t kLayersOutOfOrderMax = 4;

  void SkipPresent() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  Mutex mutex_;
  uint32_t next_layer_ ABSL_GUARDED_BY(mutex_) = 0;             // The ones before it are there.
  std::vector<bool> is_present_ ABSL_GUARDED_BY(mutex_);        // [layer]
  std::shared_ptr<BandMemory> memory_ ABSL_GUARDED_BY(mutex_);  // Null: given up, or handed out.
};

}  // namespace kvtier

#endif  // KVTIER_STORE_BAND_FILL_H_
