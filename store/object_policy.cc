#include "store/object_policy.h"

#include <cstring>
#include <utility>

#include "base/log.h"
#include "store/object_value.h"

namespace kvtier {
namespace {

// The key's first bytes are as good as random: it is a SHA-256. The tenant's name is mixed in with
// FNV-1a, since tenants may share a key. The same on every machine and run.
uint64_t HashOf(const TenantId& tenant, const Key& key) {
  uint64_t hash = 0xcbf29ce484222325;
  for (const char c : tenant.name()) hash = (hash ^ static_cast<uint8_t>(c)) * 0x100000001b3;
  uint64_t first = 0;
  std::memcpy(&first, key.bytes().data(), sizeof(first));
  return hash ^ first;
}

}  // namespace

ObjectPolicy::ObjectPolicy(std::unique_ptr<EvictionPolicy> policy, std::optional<Ratio> floor)
    : policy_(std::move(policy)), floor_(floor) {}

uint32_t ObjectPolicy::FloorOf(const ObjectState& object) const {
  return floor_.has_value() ? FloorBands(*object.manifest, *floor_) : 1;
}

uint32_t ObjectPolicy::Below(const ObjectState& object, uint32_t band_count) const {
  return band_count > FloorOf(object) ? band_count - 1 : 0;
}

EvictionId ObjectPolicy::IdOf(const TenantId& tenant, const Key& key) const {
  uint64_t hash = HashOf(tenant, key);
  for (;; ++hash) {
    const auto found = held_.find(EvictionId{hash});
    if (found == held_.end()) break;
    const ObjectState& holder = *found->second.object;
    if (holder.tenant == tenant && holder.manifest->key == key) break;
  }
  return EvictionId{hash};
}

void ObjectPolicy::Hold(const ObjectPtr& object, uint32_t band_count) {
  const auto known = objects_.find(object.get());
  if (known == objects_.end()) {
    if (band_count == 0) return;
    const EvictionId id = IdOf(object->tenant, object->manifest->key);
    const bool is_new = held_.emplace(id, Held{object, band_count}).second;
    KVTIER_CHECK(is_new) << "two uploads of one key are held";
    objects_[object.get()] = id;
    policy_->Insert(DescribeForEviction(*object->manifest, id, FloorOf(*object)), band_count);
    return;
  }
  const EvictionId id = known->second;
  Held& held = held_.at(id);
  if (band_count == held.band_count) return;
  if (band_count < held.band_count) {
    policy_->Shrink(id, band_count);
  } else {
    policy_->Insert(DescribeForEviction(*object->manifest, id, FloorOf(*object)), band_count);
  }
  held.band_count = band_count;
  if (band_count > 0) return;
  objects_.erase(known);
  held_.erase(id);
}

void ObjectPolicy::Remove(const ObjectPtr& object) {
  const auto known = objects_.find(object.get());
  if (known == objects_.end()) return;
  const EvictionId id = known->second;
  policy_->Remove(id);
  objects_.erase(known);
  held_.erase(id);
}

void ObjectPolicy::Use(const TenantId& tenant, const Key& key) {
  const EvictionId id = IdOf(tenant, key);
  if (held_.contains(id)) {
    policy_->Access(id);
  } else {
    policy_->Miss(id);
  }
}

uint32_t ObjectPolicy::Admit(const ObjectState& object) {
  return policy_->Admit(DescribeForEviction(
      *object.manifest, IdOf(object.tenant, object.manifest->key), FloorOf(object)));
}

ObjectPolicy::ObjectPtr ObjectPolicy::Next(absl::FunctionRef<bool(const ObjectPtr&)> may_go) {
  const std::optional<EvictionVictim> victim =
      policy_->Next([&](EvictionId id) { return may_go(held_.at(id).object); });
  return victim.has_value() ? held_.at(victim->object).object : nullptr;
}

uint32_t ObjectPolicy::held_bands(const ObjectState& object) const {
  const auto known = objects_.find(&object);
  return known == objects_.end() ? 0 : held_.at(known->second).band_count;
}

}  // namespace kvtier
