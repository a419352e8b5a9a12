#include "services/fetch_plan.h"

#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "kvcache/bands.h"

namespace kvtier {
namespace {

// Works for LayerRange and HeadRange.
template <typename Range>
absl::StatusOr<Range> CheckRange(const std::optional<Range>& range, uint32_t count,
                                 absl::string_view what) {
  if (!range.has_value()) return Range{0, count};
  const std::string text = absl::StrCat(what, " [", range->begin, ", ", range->end, ")");
  if (range->begin >= range->end) return absl::InvalidArgumentError(text + " is empty");
  if (range->end > count) {
    return absl::OutOfRangeError(absl::StrCat(text, ": the object has ", count));
  }
  return *range;
}

// The longest prefix of resident bands that fits in so many bytes.
absl::StatusOr<uint32_t> ChooseBandsByBytes(const Manifest& manifest, uint32_t resident_bands,
                                            uint64_t bytes_max, Ratio min_ratio) {
  uint32_t count = 0;
  while (count < resident_bands && manifest.PrefixBytes(count + 1) <= bytes_max) ++count;
  if (count == 0 || manifest.bands[count - 1].edge < min_ratio) return absl::NotFoundError("");
  return count;
}

}  // namespace

uint64_t FetchPlan::payload_bytes() const {
  uint64_t bytes = 0;
  for (uint32_t layer = layers.begin; layer < layers.end; ++layer) {
    for (uint32_t band = 0; band < band_count; ++band) {
      const SegmentEntry::ByteRange range = bytes_of(BandIndex(band), LayerIndex(layer));
      bytes += range.end - range.begin;
    }
  }
  return bytes;
}

absl::StatusOr<FetchPlan> PlanBands(std::shared_ptr<const Manifest> manifest, uint32_t band_count,
                                    const FetchRequest& request) {
  if (band_count == 0 || band_count > manifest->bands.size()) {
    return absl::OutOfRangeError(
        absl::StrCat(band_count, " bands: the object has ", manifest->bands.size()));
  }
  FetchPlan plan;
  plan.band_count = band_count;
  KVTIER_ASSIGN_OR_RETURN(plan.layers,
                          CheckRange(request.layers, manifest->geometry.layer_count(), "layers"));
  KVTIER_ASSIGN_OR_RETURN(plan.heads,
                          CheckRange(request.heads, manifest->geometry.kv_heads, "heads"));
  plan.manifest = std::move(manifest);
  return plan;
}

absl::StatusOr<FetchPlan> PlanFetch(std::shared_ptr<const Manifest> manifest,
                                    uint32_t resident_bands, const FetchRequest& request) {
  absl::StatusOr<uint32_t> band_count =
      request.bytes_max.has_value()
          ? ChooseBandsByBytes(*manifest, resident_bands, *request.bytes_max, request.min_ratio)
          : ChooseBands(manifest->edges(), resident_bands, request.ratio, request.min_ratio);
  KVTIER_RETURN_IF_ERROR(band_count.status());
  return PlanBands(std::move(manifest), *band_count, request);
}

absl::StatusOr<std::shared_ptr<const Manifest>> ReadAnnouncedManifest(ByteSpan encoded,
                                                                      const FetchRequest& request,
                                                                      absl::string_view where) {
  const auto bad = [&](absl::string_view what) {
    return absl::DataLossError(absl::StrCat(where, ": ", what));
  };
  absl::StatusOr<Manifest> manifest = DecodeManifest(encoded);
  if (absl::IsFailedPrecondition(manifest.status())) return manifest.status();
  if (!manifest.ok()) return bad(manifest.status().message());
  if (manifest->key != request.key) return bad("another object");
  if (request.upload_id.has_value() && manifest->upload_id != *request.upload_id) {
    return bad("another upload");
  }
  return std::make_shared<const Manifest>(*std::move(manifest));
}

}  // namespace kvtier
