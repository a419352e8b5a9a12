// Which band of which object goes next when there is no room, and whether a new object is worth
// room at all. Pure bookkeeping: a policy knows no tier, no budget and no bytes but the sizes it is
// told, and moves nothing itself. Whoever owns the room tells it what happens and does what it
// says:
//
//   if (used + bytes > budget) bands = policy->Admit(object);   // 0: not worth it
//   policy->Insert(object, bands);
//   while (used > budget) {
//     const EvictionVictim victim = *policy->Next(may_go);
//     ... drop what is above victim.band_count ...
//     policy->Shrink(victim.object, victim.band_count);
//   }
//
// Invariants of every policy (tests/unit/store/eviction_test.cc):
//   1. A victim loses its highest band, or, at its floor, everything: bands stay a prefix, and no
//      object has more than none and less than its floor because of a policy.
//   2. The same calls at the same times give the same answers.
//
// Each call costs amortised O(log n) in the n objects that are present (Next: and O(log n) for each
// object that `may_go` refuses); memory is O(n + remembered_max). Two calls are longer than that:
// under gdsf one insert, use or miss in at least n/4 values all n anew, O(n log n); and the first
// call after a pause moves every object, remembered ones too, whose age has reached another bucket
// (store/reuse_model.h), at most kAgeBuckets times. Not thread-safe.
#ifndef KVTIER_STORE_EVICTION_H_
#define KVTIER_STORE_EVICTION_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "base/clock.h"

namespace kvtier {

// Names a context to a policy: the caller's choice, such as a seeded hash of tenant and key. The
// same when an object comes back, so that it is recognised; different for objects that are present.
// Only equality counts: no answer depends on how ids compare.
enum class EvictionId : uint64_t {};

// What a band costs and brings.
struct EvictionBand {
  uint64_t bytes = 0;     // 0 counts as 1.
  double score_mass = 0;  // What the band adds to an answer's quality, in the unit in which all
                          // objects count it. Negative or not finite counts as 0.
};

struct EvictionObject {
  EvictionId id{};
  std::vector<EvictionBand> bands;  // From the most important one on; at least one.
  // What a miss costs, in the unit in which all objects count it (such as context tokens or
  // prefill seconds). Negative or not finite counts as 0.
  double recompute_cost = 0;
  // Bands that a policy never splits: an object with so many goes whole. In [1, bands.size()].
  uint32_t floor_bands = 1;
  // The longest context known to be a prefix of this one, if any: the next turn of a conversation
  // names the turn before, which is then hardly ever asked for again.
  std::optional<EvictionId> extends = std::nullopt;
};

struct EvictionVictim {
  EvictionId object{};
  uint32_t band_count = 0;  // Bands to keep: one less than now, or 0.
};

class EvictionPolicy {
 public:
  virtual ~EvictionPolicy() = default;

  // How many bands of a new object are worth more than what would have to go for them: all, the
  // floor, something between, or 0. That is the top band of `in_place_of`, or without it of the
  // least valuable object. Asked only while there is no room. Changes nothing. REQUIRES:
  // `in_place_of` is here.
  virtual uint32_t Admit(const EvictionObject& object, std::optional<EvictionId> in_place_of) = 0;
  uint32_t Admit(const EvictionObject& object) { return Admit(object, std::nullopt); }

  // `object` is here now with its first `band_count` bands, used now. In place of what was known
  // of its sizes, if it was here. REQUIRES: 1 <= band_count <= bands.size(); a floor in its range.
  virtual void Insert(const EvictionObject& object, uint32_t band_count) = 0;

  // An object that is here was used. Nothing happens if it is not here.
  virtual void Access(EvictionId object) = 0;

  // An object that is not here was asked for. True if the policy remembers it, and learnt: the
  // shorter prefixes of the same request then need not be reported.
  virtual bool Miss(EvictionId object) = 0;

  // `object` has only its first `band_count` bands left, whatever the reason. 0: it is gone, and
  // remembered for a while. Nothing happens if it has no more than that.
  virtual void Shrink(EvictionId object, uint32_t band_count) = 0;

  // `object` is gone and will not be asked for again (deleted by request).
  virtual void Remove(EvictionId object) = 0;

  // What goes next, passing over objects for which `may_go` is false (pinned, busy). Nothing if
  // none may. The answer stays the same until something else is told or time passes.
  virtual std::optional<EvictionVictim> Next(absl::FunctionRef<bool(EvictionId)> may_go) = 0;
  std::optional<EvictionVictim> Next() {
    return Next([](EvictionId) { return true; });
  }

  // Objects present, and objects that are gone but remembered.
  virtual size_t present_count() const = 0;
  virtual size_t remembered_count() const = 0;
};

struct EvictionOptions {
  // Objects that are remembered after they went, so that their return is recognised and learnt
  // from; about 200 bytes each. The one that went first is forgotten first.
  size_t remembered_max = 65536;
};

// By value: what a band is worth is
//
//   recompute cost x score mass lost / bytes freed x how soon the object is asked for again
//
// (GreedyDual-Size-Frequency's value, L. Cherkasova 1998, with the frequency learnt instead of
// counted: see store/reuse_model.h). The bands to lose together are those that lose the least mass
// per byte, so mass that is not concave over bands (a band 0 useless on its own) does no harm. What
// the model tells apart: how often an object was used, whether its context has since been
// extended, and whether it extends one itself. A new object has the index of its class, like all
// others: one pass over many contexts does not displace those that are asked for again.
// `clock` must outlive the policy.
std::unique_ptr<EvictionPolicy> MakeGdsfPolicy(const EvictionOptions& options, Clock& clock);

// Least recently used. With one band per object exactly that. With several, an object idle for t
// is taken to be asked for again at rate 1 / (t + 1 s), t rounded down to a border of
// ReuseModel's age buckets, and the band goes that loses the least share of its object's mass per
// share of its bytes x rate. Costs are ignored, nothing is remembered, scans displace.
// `clock` must outlive the policy.
std::unique_ptr<EvictionPolicy> MakeLruPolicy(Clock& clock);

// "gdsf" or "lru". INVALID_ARGUMENT names the policies that there are.
absl::StatusOr<std::unique_ptr<EvictionPolicy>> MakeEvictionPolicy(absl::string_view name,
                                                                   Clock& clock);

}  // namespace kvtier

#endif  // KVTIER_STORE_EVICTION_H_
