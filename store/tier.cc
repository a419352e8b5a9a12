#include "store/tier.h"

#include "absl/strings/str_cat.h"

namespace kvtier {

absl::Status CheckBandSegments(const Manifest& manifest, BandIndex band,
                               std::span<const SegmentRef> layers) {
  if (band.value() >= manifest.bands.size()) {
    return absl::InvalidArgumentError(absl::StrCat("band ", band.value(), " of an object with ",
                                                   manifest.bands.size(), " bands"));
  }
  const BandEntry& entry = manifest.bands[band.value()];
  if (layers.size() != entry.layers.size()) {
    return absl::InvalidArgumentError(absl::StrCat("band ", band.value(), ": ", layers.size(),
                                                   " segments for ", entry.layers.size(),
                                                   " layers"));
  }
  for (size_t layer = 0; layer < layers.size(); ++layer) {
    if (layers[layer].bytes().size() != entry.layers[layer].encoded_bytes()) {
      return absl::InvalidArgumentError(
          absl::StrCat("band ", band.value(), ", layer ", layer, ": ", layers[layer].bytes().size(),
                       " bytes, the manifest says ", entry.layers[layer].encoded_bytes()));
    }
  }
  return absl::OkStatus();
}

absl::Status NotNextBandError(const Manifest& manifest, BandIndex band, uint32_t band_count) {
  return absl::FailedPreconditionError(absl::StrCat("band ", band.value(), " of upload ",
                                                    manifest.upload_id.ToHex(), " cannot follow ",
                                                    band_count, " bands"));
}

}  // namespace kvtier
