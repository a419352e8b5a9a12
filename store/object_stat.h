// What is known of one sealed object without reading its segments: its state as the store answers
// it (ObjectStat), what its owner decided about it (ObjectAttributes), and the short form that is
// kept where its manifest would be too large (ObjectBrief). Plain values.
#ifndef KVTIER_STORE_OBJECT_STAT_H_
#define KVTIER_STORE_OBJECT_STAT_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "kvcache/bands.h"
#include "kvcache/ids.h"
#include "kvcache/manifest.h"

namespace kvtier {

// What an acknowledged object survives.
enum class Durability { kHost, kDisk };  // Until the process ends; crash and restart.

// Decided by the object's tenant; no part of its bytes. On disk they survive a restart.
struct ObjectAttributes {
  bool pinned = false;  // Neither evicted nor degraded by policy. What expires goes nevertheless.
  absl::Time expires_at = absl::InfiniteFuture();  // A miss from then on.
  friend bool operator==(const ObjectAttributes&, const ObjectAttributes&) = default;
};

struct ObjectStat {
  TenantId tenant;
  std::shared_ptr<const Manifest> manifest;
  uint32_t resident_bands = 0;  // In any tier.
  uint32_t host_bands = 0;
  uint32_t disk_bands = 0;
  Durability durability = Durability::kHost;
  absl::Time sealed_at;
  ObjectAttributes attributes;
};

// About 100 bytes and 32 for each band; a manifest may have megabytes.
struct ObjectBrief {
  struct Band {
    Ratio edge;
    uint64_t bytes = 0;  // Encoded, of this band alone.
    float threshold = 0;
    double score_mass = 0;
  };
  Key key;
  UploadId upload_id;
  std::string model_name;
  std::string recipe;
  uint64_t system_tokens = 0;
  uint64_t context_tokens = 0;
  uint64_t dense_bytes = 0;
  std::vector<Band> bands;
  uint32_t resident_bands = 0;
  uint32_t host_bands = 0;
  uint32_t disk_bands = 0;
  Durability durability = Durability::kHost;
  absl::Time sealed_at;
  ObjectAttributes attributes;
};

ObjectBrief BriefOf(const ObjectStat& stat);

}  // namespace kvtier

#endif  // KVTIER_STORE_OBJECT_STAT_H_
