#include "kvcache/transport.h"

#include <algorithm>

namespace kvtier {

absl::StatusOr<uint32_t> ChooseBands(const Manifest& manifest, uint32_t resident_bands,
                                     const FetchRequest& request) {
  if (!request.bytes_max.has_value()) {
    return ChooseBands(manifest.edges(), resident_bands, request.ratio, request.min_ratio);
  }
  uint32_t bands = std::min(resident_bands, static_cast<uint32_t>(manifest.bands.size()));
  while (bands > 0 && manifest.PrefixBytes(bands) > *request.bytes_max) --bands;
  if (bands == 0 || manifest.bands[bands - 1].edge < request.min_ratio) {
    return absl::NotFoundError("");
  }
  return bands;
}

}  // namespace kvtier
