// A whole object in memory: what the compressor makes, what a store takes.
#ifndef KVTIER_KVCACHE_COMPRESSED_OBJECT_H_
#define KVTIER_KVCACHE_COMPRESSED_OBJECT_H_

#include <memory>
#include <vector>

#include "kvcache/manifest.h"
#include "kvcache/segment_ref.h"

namespace kvtier {

struct CompressedObject {
  std::shared_ptr<const Manifest> manifest;
  std::vector<SegmentRef> segments;  // [bands][layers], band-major.

  const SegmentRef& segment(BandIndex band, LayerIndex layer) const {
    return segments[band.value() * manifest->geometry.layer_count() + layer.value()];
  }
};

}  // namespace kvtier

#endif  // KVTIER_KVCACHE_COMPRESSED_OBJECT_H_
