#include "compressor/resident_cache.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "kvcache/segment_layout.h"

namespace kvtier {
namespace {

absl::Status Bad(BandIndex band, LayerIndex layer, absl::string_view what) {
  return absl::InvalidArgumentError(
      absl::StrCat("segment of band ", band.value(), ", layer ", layer.value(), ": ", what));
}

}  // namespace

ResidentCache::ResidentCache(const Backend* owner, std::shared_ptr<const RaggedCache> cache)
    : owner_(owner), cache_(std::move(cache)) {
  spans_.resize(geometry().layer_count());
  for (uint32_t layer = 0; layer < geometry().layer_count(); ++layer) {
    for (uint32_t head = heads().begin; head < heads().end; ++head) {
      spans_[layer].push_back(cache_->spans(LayerIndex(layer), head));
    }
  }
}

absl::Status ResidentCache::Prepare(DecodeSteps& steps) {
  KVTIER_ASSIGN_OR_RETURN(prepared_, steps.Prepare(spans_, geometry().dtype));
  return absl::OkStatus();
}

absl::StatusOr<std::shared_ptr<const ResidentCache>> ResidentCache::Create(
    Backend& backend, std::shared_ptr<const RaggedCache> cache) {
  if (backend.host_addressable()) {
    return std::shared_ptr<const ResidentCache>(new ResidentCache(nullptr, std::move(cache)));
  }
  if (cache->heads() != HeadRange{0, cache->geometry().kv_heads}) {
    return absl::InvalidArgumentError(
        absl::StrCat("heads [", cache->heads().begin, ", ", cache->heads().end, ") of ",
                     cache->geometry().kv_heads, " cannot be copied to ", backend.name()));
  }
  ResidentCacheLoader loader(backend);
  KVTIER_RETURN_IF_ERROR(loader.OnManifest(cache->shared_manifest(), cache->band_count()));
  for (uint32_t layer = 0; layer < cache->geometry().layer_count(); ++layer) {
    for (uint32_t band = 0; band < cache->band_count(); ++band) {
      KVTIER_RETURN_IF_ERROR(loader.OnSegment(BandIndex(band), LayerIndex(layer),
                                              cache->segment(BandIndex(band), LayerIndex(layer))));
    }
  }
  return std::move(loader).Finish();
}

absl::Status ResidentCacheLoader::OnManifest(std::shared_ptr<const Manifest> manifest,
                                             uint32_t band_count) {
  if (band_count == 0 || band_count > manifest->bands.size()) {
    return absl::InvalidArgumentError(
        absl::StrCat(band_count, " bands of an object of ", manifest->bands.size()));
  }
  manifest_ = std::move(manifest);
  band_count_ = band_count;
  segments_.resize(size_t{band_count} * manifest_->geometry.layer_count());
  has_come_.resize(segments_.size());
  if (backend_.host_addressable()) return absl::OkStatus();
  // Segments are multiples of kSegmentAlignment.
  const uint64_t words = manifest_->PrefixBytes(band_count) / sizeof(float);
  KVTIER_ASSIGN_OR_RETURN(Tensor memory,
                          backend_.Allocate(DType::kF32, 1, static_cast<int64_t>(words)));
  memory_ = std::make_shared<const Tensor>(std::move(memory));
  return absl::OkStatus();
}

absl::Status ResidentCacheLoader::CheckSegment(BandIndex band, LayerIndex layer,
                                               uint64_t bytes) const {
  if (manifest_ == nullptr) return Bad(band, layer, "no manifest came before it");
  const uint32_t layers = manifest_->geometry.layer_count();
  if (band.value() >= band_count_ || layer.value() >= layers) {
    return Bad(band, layer, absl::StrCat("of ", band_count_, " bands and ", layers, " layers"));
  }
  if (has_come_[size_t{band.value()} * layers + layer.value()]) {
    return Bad(band, layer, "came twice");
  }
  const uint64_t expected = manifest_->segment(band, layer).encoded_bytes();
  if (bytes != expected) {
    return Bad(band, layer, absl::StrCat(bytes, " bytes, the manifest says ", expected));
  }
  return absl::OkStatus();
}

absl::Status ResidentCacheLoader::OnSegment(BandIndex band, LayerIndex layer, SegmentRef bytes) {
  KVTIER_RETURN_IF_ERROR(CheckSegment(band, layer, bytes.bytes().size()));
  const size_t index = size_t{band.value()} * manifest_->geometry.layer_count() + layer.value();
  has_come_[index] = true;
  if (memory_ == nullptr) {
    segments_[index] = std::move(bytes);
    return absl::OkStatus();
  }
  auto* const to = static_cast<std::byte*>(memory_->data()) + used_;
  const uint64_t size = bytes.bytes().size();
  used_ += size;
  // Pointers into device memory, which nobody follows on the host: RaggedCache computes with them.
  segments_[index] = SegmentRef(memory_, {to, size});
  TensorView view;
  view.data = to;
  view.dtype = DType::kF32;
  view.rows = 1;
  view.cols = static_cast<int64_t>(size / sizeof(float));
  return size == 0 ? absl::OkStatus() : backend_.Upload(bytes.bytes(), view);
}

absl::StatusOr<std::shared_ptr<const ResidentCache>> ResidentCacheLoader::Finish() && {
  if (manifest_ == nullptr) return absl::InvalidArgumentError("no manifest has come");
  const auto missing = std::find(has_come_.begin(), has_come_.end(), false);
  if (missing != has_come_.end()) {
    const auto index = static_cast<uint32_t>(missing - has_come_.begin());
    const uint32_t layers = manifest_->geometry.layer_count();
    return Bad(BandIndex(index / layers), LayerIndex(index % layers), "has not come");
  }
  // A device may say only now that a copy failed.
  if (memory_ != nullptr) KVTIER_RETURN_IF_ERROR(backend_.Synchronize());
  const HeadRange heads{0, manifest_->geometry.kv_heads};
  KVTIER_ASSIGN_OR_RETURN(
      std::shared_ptr<const RaggedCache> cache,
      RaggedCache::Create(std::move(manifest_), band_count_, heads, std::move(segments_)));
  const std::shared_ptr<ResidentCache> resident(
      new ResidentCache(memory_ == nullptr ? nullptr : &backend_, std::move(cache)));
  DecodeSteps* const steps = memory_ == nullptr ? nullptr : backend_.decode_steps();
  if (steps != nullptr) KVTIER_RETURN_IF_ERROR(resident->Prepare(*steps));
  return std::shared_ptr<const ResidentCache>(resident);
}

absl::StatusOr<std::shared_ptr<const ResidentCache>> FetchResidentCache(Transport& transport,
                                                                        const FetchRequest& request,
                                                                        absl::Time deadline,
                                                                        Backend& backend) {
  if (request.layers.has_value() || request.heads.has_value()) {
    return absl::InvalidArgumentError(
        "a cache to decode from needs every layer and head: leave the ranges out");
  }
  ResidentCacheLoader loader(backend);
  KVTIER_RETURN_IF_ERROR(transport.Fetch(request, deadline, loader));
  return std::move(loader).Finish();
}

}  // namespace kvtier
