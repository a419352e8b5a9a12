// An eviction policy over the objects of one tier: which of them gives room next. It is told what
// the tier holds and moves nothing itself. Not thread-safe: TieredStore's mutex guards it.
#ifndef KVTIER_STORE_OBJECT_POLICY_H_
#define KVTIER_STORE_OBJECT_POLICY_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "absl/functional/function_ref.h"
#include "kvcache/bands.h"
#include "kvcache/ids.h"
#include "store/eviction.h"
#include "store/object_index.h"

namespace kvtier {

class ObjectPolicy {
 public:
  using ObjectPtr = ObjectIndex::ObjectPtr;

  // No object of the tier keeps fewer bands than reach `floor`, unless none. No value: what leaves
  // the tier is not lost, so every band may go.
  ObjectPolicy(std::unique_ptr<EvictionPolicy> policy, std::optional<Ratio> floor)
      : ObjectPolicy(std::move(policy), floor, RandomHash()) {}
  // How a context's id is made of its name. `hash` is for tests.
  using Hash = std::function<uint64_t(const TenantId&, const Key&)>;
  ObjectPolicy(std::unique_ptr<EvictionPolicy> policy, std::optional<Ratio> floor, Hash hash);
  // Over all of a name, under a seed drawn here: nobody can send keys that collide.
  static Hash RandomHash();

  // The tier holds the first `band_count` bands of `object`. 0: none any more, by pressure or loss.
  // Nothing happens if that is known.
  void Hold(const ObjectPtr& object, uint32_t band_count);
  // The tier holds none any more, and nobody will ask for it again.
  void Remove(const ObjectPtr& object);
  // Somebody asked for the key, whether the tier holds anything of it or not. `object`: what the
  // store has of it, in whatever tier, or null. What is asked for here and lies elsewhere is
  // remembered, so that it shows when it is asked for often.
  void Use(const TenantId& tenant, const Key& key, const ObjectState* object);

  // How many bands of an object are worth more than what would have to go for them: the top band of
  // `in_place_of`, which the tier holds, or, if that is null, of whoever is next.
  uint32_t Admit(const ObjectState& object, const ObjectState* in_place_of = nullptr);
  // Whose top band, or whole rest, goes next, passing over those for which `may_go` is false; null
  // if none may. `may_go` is not asked again after it has said yes.
  ObjectPtr Next(absl::FunctionRef<bool(const ObjectPtr&)> may_go);

  // Bands after one step of shrinking: one fewer, or none at the floor.
  uint32_t Below(const ObjectState& object, uint32_t band_count) const;

  // Bands it was last told; 0 for an unknown one.
  uint32_t held_bands(const ObjectState& object) const;
  size_t held_count() const { return objects_.size(); }

 private:
  struct Held {
    ObjectPtr object;
    uint32_t band_count = 0;
  };

  using Name = std::pair<TenantId, Key>;

  uint32_t FloorOf(const ObjectState& object) const;
  // The id under which the policy knows a name: its hash, or the next free one if another name that
  // is held has that. What is held keeps its id until it goes.
  EvictionId IdOf(const TenantId& tenant, const Key& key) const;
  EvictionObject Describe(const ObjectState& object, EvictionId id) const;
  void Forget(const ObjectState& object);

  std::unique_ptr<EvictionPolicy> policy_;
  std::optional<Ratio> floor_;
  Hash hash_;
  absl::flat_hash_map<EvictionId, Held> held_;
  absl::flat_hash_map<const ObjectState*, EvictionId> objects_;  // Those in held_.
  absl::flat_hash_map<Name, EvictionId> displaced_;  // Of them, those whose id is not their hash.
};

}  // namespace kvtier

#endif  // KVTIER_STORE_OBJECT_POLICY_H_
