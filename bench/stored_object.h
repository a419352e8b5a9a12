// Objects to store and fetch: valid in every respect, filled with numbers that are cheap to make.
#ifndef KVTIER_BENCH_STORED_OBJECT_H_
#define KVTIER_BENCH_STORED_OBJECT_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "kvcache/compressed_object.h"
#include "kvcache/transport.h"

namespace kvtier::bench {

struct ObjectShape {
  uint32_t layers = 1;
  uint32_t kv_heads = 8;
  uint32_t head_dim = 128;  // Of bf16.
  uint32_t tokens = 0;
  // Kept fractions of the bands; they need not end at 1.
  std::vector<double> edges = {1.0};
};

// One band in segments of about `segment_bytes`, `bytes` together (at least one segment).
ObjectShape FlatShape(uint64_t bytes, uint64_t segment_bytes);

// Heads keep different numbers of rows (a quarter more, a quarter less), as eviction over all heads
// together leaves them; `seed` makes the key, the upload id and the bytes.
absl::StatusOr<CompressedObject> MakeStoredObject(const ObjectShape& shape, uint64_t seed);

// The same segments under the key and a new upload id of another seed: making bytes costs more than
// moving them.
CompressedObject Renamed(const CompressedObject& object, uint64_t seed);

// Keeps every segment, as a worker does, until Clear.
class KeepingSink final : public SegmentSink {
 public:
  absl::Status OnManifest(std::shared_ptr<const Manifest> manifest, uint32_t band_count) override;
  absl::Status OnSegment(BandIndex band, LayerIndex layer, SegmentRef bytes) override;
  void Clear();
  uint64_t bytes() const { return bytes_; }
  const std::shared_ptr<const Manifest>& manifest() const { return manifest_; }

 private:
  std::shared_ptr<const Manifest> manifest_;
  std::vector<SegmentRef> segments_;
  uint64_t bytes_ = 0;
};

}  // namespace kvtier::bench

#endif  // KVTIER_BENCH_STORED_OBJECT_H_
