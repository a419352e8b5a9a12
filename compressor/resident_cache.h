// A stored object where a backend's attention reads it: what all Decoders of one object share.
// Where the backend reads host memory that is the RaggedCache itself, and nothing is copied;
// elsewhere the encoded bytes of every segment, raw or coded as they are, are brought over once,
// each as soon as it comes, and the host keeps none of them.
//
//   KVTIER_ASSIGN_OR_RETURN(
//       auto object, FetchResidentCache(transport, request, deadline, backend));
//   KVTIER_ASSIGN_OR_RETURN(auto decoder, Decoder::Create(model, object, /*tail_tokens=*/256));
#ifndef KVTIER_COMPRESSOR_RESIDENT_CACHE_H_
#define KVTIER_COMPRESSOR_RESIDENT_CACHE_H_

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "compressor/backend.h"
#include "compressor/decode_step.h"
#include "kvcache/ragged_view.h"
#include "kvcache/transport.h"

namespace kvtier {

// Immutable, so any number of threads may read it. The backend outlives it.
class ResidentCache {
 public:
  // RESOURCE_EXHAUSTED: the backend has no memory for it. INTERNAL: the device failed.
  // INVALID_ARGUMENT: the cache holds only some heads where they have to be copied.
  static absl::StatusOr<std::shared_ptr<const ResidentCache>> Create(
      Backend& backend, std::shared_ptr<const RaggedCache> cache);

  const Manifest& manifest() const { return cache_->manifest(); }
  const Geometry& geometry() const { return cache_->geometry(); }
  uint32_t band_count() const { return cache_->band_count(); }
  Ratio ratio() const { return cache_->ratio(); }
  HeadRange heads() const { return cache_->heads(); }
  // Encoded bytes that it holds, in whichever memory.
  uint64_t bytes() const { return cache_->bytes(); }
  // Of them, those in memory of the backend's own: all, or 0 where it reads the host's. What
  // prepared() holds there is not counted.
  uint64_t device_bytes() const { return owner_ == nullptr ? 0 : cache_->bytes(); }

  // Whether `backend` can read it.
  bool IsReadableBy(const Backend& backend) const {
    return owner_ == nullptr ? backend.host_addressable() : owner_ == &backend;
  }
  // What attention runs over, [heads().size()]. The positions of rows are not to be read.
  // REQUIRES: a layer of the geometry.
  const HeadSpans& spans(int64_t layer) const { return spans_[layer]; }
  // The same for the backend's steps; null where it offers none.
  const std::shared_ptr<const PreparedRows>& prepared() const { return prepared_; }

 private:
  friend class ResidentCacheLoader;
  // `cache` points into memory of `owner`, or of the host if that is null.
  ResidentCache(const Backend* owner, std::shared_ptr<const RaggedCache> cache);
  // Once, before anyone else has it.
  absl::Status Prepare(DecodeSteps& steps);

  const Backend* const owner_;
  const std::shared_ptr<const RaggedCache> cache_;  // Of device memory: only sizes and pointers.
  std::vector<HeadSpans> spans_;                    // [layers][heads], into cache_
  std::shared_ptr<const PreparedRows> prepared_;
};

// Puts segments, which come layer by layer, where a ResidentCache wants them: device memory for all
// of them is had before the first, and each is on its way there when OnSegment returns.
// Not thread-safe, as any SegmentSink. Used once; after an error it can only be destroyed.
class ResidentCacheLoader final : public SegmentSink {
 public:
  explicit ResidentCacheLoader(Backend& backend) : backend_(backend) {}

  // RESOURCE_EXHAUSTED, INTERNAL: of the backend.
  absl::Status OnManifest(std::shared_ptr<const Manifest> manifest, uint32_t band_count) override;
  // INVALID_ARGUMENT: no such segment, one that came before, or another size than the manifest's.
  absl::Status OnSegment(BandIndex band, LayerIndex layer, SegmentRef bytes) override;

  // Waits until everything is there. INVALID_ARGUMENT: a segment, which is named, has not come.
  absl::StatusOr<std::shared_ptr<const ResidentCache>> Finish() &&;

 private:
  absl::Status CheckSegment(BandIndex band, LayerIndex layer, uint64_t bytes) const;

  Backend& backend_;
  std::shared_ptr<const Manifest> manifest_;
  uint32_t band_count_ = 0;
  std::shared_ptr<const Tensor> memory_;  // Of the whole object; null where nothing is copied.
  uint64_t used_ = 0;                     // Bytes of it given to segments.
  std::vector<SegmentRef> segments_;      // [bands][layers], in the memory that will be read.
  std::vector<bool> has_come_;            // [bands][layers]
};

// Fetches straight into the backend's memory. REQUIRES: no layer and no head range in `request`
// (INVALID_ARGUMENT). Errors as Transport::Fetch and ResidentCacheLoader.
absl::StatusOr<std::shared_ptr<const ResidentCache>> FetchResidentCache(Transport& transport,
                                                                        const FetchRequest& request,
                                                                        absl::Time deadline,
                                                                        Backend& backend);

}  // namespace kvtier

#endif  // KVTIER_COMPRESSOR_RESIDENT_CACHE_H_
