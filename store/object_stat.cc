#include "store/object_stat.h"

namespace kvtier {

ObjectBrief BriefOf(const ObjectStat& stat) {
  const Manifest& manifest = *stat.manifest;
  ObjectBrief brief{
      .key = manifest.key,
      .upload_id = manifest.upload_id,
      .model_name = manifest.model_name,
      .recipe = manifest.recipe,
      .system_tokens = manifest.system_tokens,
      .context_tokens = manifest.context_tokens,
      .dense_bytes = manifest.dense_bytes(),
      .bands = {},
      .resident_bands = stat.resident_bands,
      .host_bands = stat.host_bands,
      .disk_bands = stat.disk_bands,
      .durability = stat.durability,
      .sealed_at = stat.sealed_at,
      .attributes = stat.attributes,
  };
  brief.bands.reserve(manifest.bands.size());
  for (const BandEntry& band : manifest.bands) {
    brief.bands.push_back({band.edge, band.encoded_bytes(), band.threshold, band.score_mass});
  }
  return brief;
}

}  // namespace kvtier
