#include "store/object_policy.h"

#include <random>
#include <utility>

#include "absl/hash/hash.h"
#include "base/log.h"
#include "store/object_value.h"

namespace kvtier {

ObjectPolicy::ObjectPolicy(std::unique_ptr<EvictionPolicy> policy, std::optional<Ratio> floor,
                           Hash hash)
    : policy_(std::move(policy)), floor_(floor), hash_(std::move(hash)) {}

ObjectPolicy::Hash ObjectPolicy::RandomHash() {
  std::random_device random;
  const uint64_t seeds[2] = {uint64_t{random()} << 32 | random(),
                             uint64_t{random()} << 32 | random()};
  // absl's hash has a seed too, but the address of a variable: the same at each start of a program
  // that is not loaded at a random place.
  return [seed0 = seeds[0], seed1 = seeds[1]](const TenantId& tenant, const Key& key) {
    return uint64_t{
        absl::HashOf(seed0, seed1, absl::string_view(tenant.name()), key.AsStringView())};
  };
}

uint32_t ObjectPolicy::FloorOf(const ObjectState& object) const {
  return floor_.has_value() ? FloorBands(*object.manifest, *floor_) : 1;
}

uint32_t ObjectPolicy::Below(const ObjectState& object, uint32_t band_count) const {
  return band_count > FloorOf(object) ? band_count - 1 : 0;
}

EvictionId ObjectPolicy::IdOf(const TenantId& tenant, const Key& key) const {
  // First: the id that displaced it may be free by now.
  if (const auto at = displaced_.find(Name{tenant, key}); at != displaced_.end()) return at->second;
  uint64_t hash = hash_(tenant, key);
  for (;; ++hash) {
    const auto found = held_.find(EvictionId{hash});
    if (found == held_.end()) break;
    const ObjectState& holder = *found->second.object;
    if (holder.tenant == tenant && holder.manifest->key == key) break;
  }
  return EvictionId{hash};
}

EvictionObject ObjectPolicy::Describe(const ObjectState& object, EvictionId id) const {
  EvictionObject described = DescribeForEviction(*object.manifest, id, FloorOf(object));
  if (object.extends.has_value()) described.extends = IdOf(object.tenant, *object.extends);
  return described;
}

void ObjectPolicy::Forget(const ObjectState& object) {
  const auto known = objects_.find(&object);
  held_.erase(known->second);
  objects_.erase(known);
  displaced_.erase(Name{object.tenant, object.manifest->key});
}

void ObjectPolicy::Hold(const ObjectPtr& object, uint32_t band_count) {
  const auto known = objects_.find(object.get());
  if (known == objects_.end()) {
    if (band_count == 0) return;
    const EvictionId id = IdOf(object->tenant, object->manifest->key);
    const bool is_new = held_.emplace(id, Held{object, band_count}).second;
    KVTIER_CHECK(is_new) << "two uploads of one key are held";
    objects_[object.get()] = id;
    if (id != EvictionId{hash_(object->tenant, object->manifest->key)}) {
      displaced_[Name{object->tenant, object->manifest->key}] = id;
    }
    policy_->Insert(Describe(*object, id), band_count);
    return;
  }
  const EvictionId id = known->second;
  Held& held = held_.at(id);
  if (band_count == held.band_count) return;
  if (band_count < held.band_count) {
    policy_->Shrink(id, band_count);
  } else {
    policy_->Insert(Describe(*object, id), band_count);
  }
  held.band_count = band_count;
  if (band_count == 0) Forget(*object);
}

void ObjectPolicy::Remove(const ObjectPtr& object) {
  const auto known = objects_.find(object.get());
  if (known == objects_.end()) return;
  policy_->Remove(known->second);
  Forget(*object);
}

void ObjectPolicy::Use(const TenantId& tenant, const Key& key, const ObjectState* object) {
  const EvictionId id = IdOf(tenant, key);
  if (held_.contains(id)) {
    policy_->Access(id);
  } else if (!policy_->Miss(id) && object != nullptr) {
    policy_->Insert(Describe(*object, id), static_cast<uint32_t>(object->manifest->bands.size()));
    policy_->Shrink(id, 0);  // Gone, and remembered as such.
  }
}

uint32_t ObjectPolicy::Admit(const ObjectState& object, const ObjectState* in_place_of) {
  return policy_->Admit(
      Describe(object, IdOf(object.tenant, object.manifest->key)),
      in_place_of == nullptr ? std::nullopt : std::optional(objects_.at(in_place_of)));
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
