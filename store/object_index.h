// Which uploads a store knows: the current one of each (tenant, key), and those that were replaced
// or deleted while somebody still reads them. Also the upkeep of a PrefixIndex: it holds the
// current ones that can be found by prefix.
// Not thread-safe: TieredStore's mutex guards it and every ObjectState in it.
#ifndef KVTIER_STORE_OBJECT_INDEX_H_
#define KVTIER_STORE_OBJECT_INDEX_H_

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/time/time.h"
#include "kvcache/ids.h"
#include "kvcache/manifest.h"
#include "store/host_memory.h"
#include "store/prefix_index.h"
#include "store/tenant_ledger.h"
#include "store/tiered_store.h"

namespace kvtier {

// One sealed upload. Where its bands are is what the tiers say; this is what the store decided.
class ObjectState {
 public:
  ObjectState(TenantId tenant_id, std::shared_ptr<const Manifest> sealed_manifest,
              absl::Time sealed, Durability sealed_durability, uint32_t bands)
      : tenant(std::move(tenant_id)),
        manifest(std::move(sealed_manifest)),
        sealed_at(sealed),
        durability(sealed_durability),
        band_limit(bands) {}

  const UploadId& upload() const { return manifest->upload_id; }

  const TenantId tenant;
  const std::shared_ptr<const Manifest> manifest;
  const absl::Time sealed_at;
  Durability durability;
  // Bands that new readers may see. Only ever lowered: when bands are given up or lost.
  uint32_t band_limit;
  ObjectAttributes attributes;
  // What its client calls the upload, where another tenant had that id; not known after a restart.
  std::optional<UploadId> sent_as;
  // The longest stored context that is known to be a prefix of this one (store/prefix_hints.h).
  std::optional<Key> extends;
  TenantUse accounted;           // What its tenant's account has for it ...
  uint32_t accounted_bands = 0;  // ... for so many bands: those that watchers know of.
  uint32_t pin_count = 0;
  // Copies of bands in memory files, for leases that need a file while the band lies on the heap;
  // by band. Kept by those leases alone.
  std::map<uint32_t, std::weak_ptr<const BandMemory>> file_copies;
  bool retired = false;   // Replaced, deleted or lost: no longer found by its key.
  bool trimming = false;  // Somebody is removing its bytes now.
};

class ObjectIndex {
 public:
  using ObjectPtr = std::shared_ptr<ObjectState>;

  // `prefixes` outlives this.
  explicit ObjectIndex(PrefixIndex& prefixes) : prefixes_(prefixes) {}

  // Null when there is none.
  ObjectPtr Find(const TenantId& tenant, const Key& key) const;
  ObjectPtr FindUpload(const UploadId& upload) const;

  // Makes `object` current for its key. REQUIRES: the key finds none; no upload of its id is known.
  void Insert(const ObjectPtr& object);
  // Its key no longer finds it; its upload id does, until Forget. Fine if it is retired already.
  void Retire(const ObjectPtr& object);
  // REQUIRES: retired.
  void Forget(const ObjectPtr& object);

  // In key order.
  std::vector<ObjectPtr> List(const TenantId& tenant, const std::optional<Key>& after,
                              size_t limit) const;
  std::vector<ObjectPtr> All() const;
  // The current object after `after`, of any tenant; null after the last.
  ObjectPtr Next(const std::optional<ObjectName>& after) const;
  size_t size() const { return objects_.size(); }

 private:
  using Name = std::pair<TenantId, Key>;

  void AddPrefix(const ObjectState& object);
  void RemovePrefix(const ObjectState& object);

  PrefixIndex& prefixes_;
  std::map<Name, ObjectPtr> objects_;  // Current ones; ordered, because List is.
  absl::flat_hash_map<UploadId, ObjectPtr> uploads_;
};

}  // namespace kvtier

#endif  // KVTIER_STORE_OBJECT_INDEX_H_
