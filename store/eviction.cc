#include "store/eviction.h"

#include <algorithm>
#include <cmath>
#include <list>
#include <set>
#include <tuple>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "base/log.h"
#include "store/reuse_model.h"

namespace kvtier {
namespace {

// Classes of the model: uses so far (0, 1, 2-3, 4-15, more) x extended x extends another.
constexpr int kUseClasses = 5;

// The model is fitted, and everything valued anew, whenever the inserts, uses and misses since the
// last time reach as many as there were before it (at first, to learn early), kLearnIntervalMax, or
// a quarter of the objects present if that is more: O(n log n) work four times per n calls.
constexpr size_t kLearnIntervalMin = 16;
constexpr size_t kLearnIntervalMax = 256;
constexpr size_t kLearnIntervalShare = 4;

int UseClass(uint64_t uses) {
  if (uses < 2) return static_cast<int>(uses);
  if (uses < 4) return 2;
  return uses < 16 ? 3 : 4;
}

// Until more is known an object is asked for again in proportion to its uses, as in
// GreedyDual-Size-Frequency.
std::vector<double> FirstGuesses() {
  constexpr double kByUseClass[kUseClasses] = {1, 2, 3.5, 10, 32};
  std::vector<double> guesses;
  for (const double guess : kByUseClass) guesses.insert(guesses.end(), 4, guess);
  return guesses;
}

double Usable(double value) { return std::isfinite(value) ? std::max(0.0, value) : 0; }

// losses[k]: the least mass per byte by which an object of k bands can shrink. It may give up bands
// from the top down to its floor, or everything; the cheapest per byte of these ways is what its
// next band is worth. losses[0] is not used. With `relative`, mass and bytes are shares of the
// object's own, so an object of one band has exactly 1.
std::vector<double> CheapestLosses(const EvictionObject& object, bool relative) {
  const size_t count = object.bands.size();
  std::vector<double> bytes(count + 1, 0), mass(count + 1, 0), losses(count + 1, 0);
  for (size_t k = 1; k <= count; ++k) {
    const EvictionBand& band = object.bands[k - 1];
    bytes[k] = bytes[k - 1] + static_cast<double>(std::max<uint64_t>(1, band.bytes));
    mass[k] = mass[k - 1] + Usable(band.score_mass);
  }
  if (relative) {
    const double all_bytes = bytes[count], all_mass = mass[count];
    for (double& value : bytes) value /= all_bytes;
    for (double& value : mass) value = all_mass > 0 ? value / all_mass : 0;
  }
  for (size_t k = 1; k <= count; ++k) {
    losses[k] = mass[k] / bytes[k];
    for (size_t keep = object.floor_bands; keep < k; ++keep) {
      losses[k] = std::min(losses[k], (mass[k] - mass[keep]) / (bytes[k] - bytes[keep]));
    }
  }
  return losses;
}

// Both policies: they differ in how objects compare and in whether reuse is learnt.
//
// Invariants:
//   1. order_ holds exactly the present objects, each under its current value; gone_ exactly the
//      others, in the order in which they went.
//   2. Values change by calls, by Learn (all at once) and when an age reaches the next bucket.
//      crossings_ has that moment for every object not in its last bucket; Settle handles those
//      that have come before anything is answered.
class ValuePolicy final : public EvictionPolicy {
 public:
  ValuePolicy(bool learns, size_t remembered_max, Clock& clock)
      : learns_(learns),
        remembered_max_(remembered_max),
        clock_(clock),
        now_(clock.Now()),
        model_(FirstGuesses(), now_) {}

  uint32_t Admit(const EvictionObject& object, std::optional<EvictionId> in_place_of) override {
    CheckObject(object);
    Settle();
    uint32_t bands = static_cast<uint32_t>(object.bands.size());
    if (order_.empty()) return bands;
    Entry entry = Known(object);
    entry.last_use = now_;
    entry.bucket = 0;
    const double least = in_place_of.has_value() ? entries_.at(*in_place_of).value
                                                 : std::get<double>(*order_.begin());
    for (; bands > 0; bands = Below(bands, entry.floor_bands)) {
      entry.band_count = bands;
      if (ValueOf(entry) >= least) break;  // Of equals the newest goes last.
    }
    return bands;
  }

  void Insert(const EvictionObject& object, uint32_t band_count) override {
    CheckObject(object);
    KVTIER_CHECK(band_count >= 1 && band_count <= object.bands.size())
        << band_count << " of " << object.bands.size() << " bands";
    Settle();
    Entry entry = Known(object);
    Forget(object.id);
    if (object.extends.has_value() && *object.extends != object.id) {
      const auto parent = entries_.find(*object.extends);
      if (parent != entries_.end()) MarkExtended(parent->first, parent->second);
    }
    entry.band_count = band_count;
    entry.last_use = now_;
    entry.turn = ++turns_;
    entry.bucket = 0;
    const auto inserted = entries_.emplace(object.id, std::move(entry)).first;
    Begin(inserted->first, inserted->second);
    CountCall();
  }

  void Access(EvictionId object) override {
    Settle();
    const auto found = entries_.find(object);
    if (found == entries_.end() || found->second.band_count == 0) return;
    Use(found->first, found->second);
    CountCall();
  }

  bool Miss(EvictionId object) override {
    Settle();
    const auto found = entries_.find(object);
    if (found == entries_.end() || found->second.band_count > 0) return false;
    Use(found->first, found->second);
    CountCall();
    return true;
  }

  void Shrink(EvictionId object, uint32_t band_count) override {
    Settle();
    const auto found = entries_.find(object);
    if (found == entries_.end() || found->second.band_count <= band_count) return;
    Entry& entry = found->second;
    order_.erase(OrderKey(found->first, entry));
    entry.band_count = band_count;
    if (band_count > 0) {
      entry.value = ValueOf(entry);
      order_.insert(OrderKey(found->first, entry));
      return;
    }
    entry.losses = {};  // Its return brings them again.
    entry.gone = gone_.insert(gone_.end(), object);
    if (gone_.size() > remembered_max_) Forget(EvictionId(gone_.front()));
  }

  void Remove(EvictionId object) override {
    Settle();
    Forget(object);
  }

  std::optional<EvictionVictim> Next(absl::FunctionRef<bool(EvictionId)> may_go) override {
    Settle();
    for (const Order& order : order_) {
      const EvictionId object = std::get<EvictionId>(order);
      if (!may_go(object)) continue;
      const Entry& entry = entries_.at(object);
      return EvictionVictim{object, Below(entry.band_count, entry.floor_bands)};
    }
    return std::nullopt;
  }

  size_t present_count() const override { return order_.size(); }
  size_t remembered_count() const override { return gone_.size(); }

 private:
  struct Entry {
    std::vector<double>
        losses;  // As CheapestLosses, x cost if reuse is learnt; empty while it is gone.
    uint32_t floor_bands = 1;
    uint32_t band_count = 0;  // 0: gone.
    uint64_t uses = 0;
    bool extended = false;
    bool extends = false;
    absl::Time last_use;
    uint64_t turn = 0;  // Of its last use, among all uses.
    int bucket = 0;     // Of its age at now_, and since when it has been in that cell.
    absl::Time in_cell_since;
    double value = 0;  // Its place in order_.
    std::list<EvictionId>::iterator gone;
  };
  // Least value first; of equal ones the one that was used longest ago. Never by id: those may
  // differ from run to run.
  using Order = std::tuple<double, uint64_t, EvictionId>;
  using Crossing = std::pair<absl::Time, EvictionId>;

  static void CheckObject(const EvictionObject& object) {
    KVTIER_CHECK(!object.bands.empty());
    KVTIER_CHECK(object.floor_bands >= 1 && object.floor_bands <= object.bands.size())
        << "floor of " << object.floor_bands << " of " << object.bands.size() << " bands";
  }

  static uint32_t Below(uint32_t bands, uint32_t floor_bands) {
    return bands > floor_bands ? bands - 1 : 0;
  }

  static Order OrderKey(EvictionId object, const Entry& entry) {
    return {entry.value, entry.turn, object};
  }

  static Crossing CrossingKey(EvictionId object, const Entry& entry) {
    return {entry.last_use + ReuseModel::BucketBegin(entry.bucket + 1), object};
  }

  static ReuseModel::Cell CellOf(const Entry& entry) {
    const int reuse_class =
        (UseClass(entry.uses) * 2 + (entry.extended ? 1 : 0)) * 2 + (entry.extends ? 1 : 0);
    return {reuse_class, entry.bucket};
  }

  double ValueOf(const Entry& entry) const {
    const double soon =
        learns_ ? model_.Index(CellOf(entry))
                : 1 / (absl::ToDoubleSeconds(ReuseModel::BucketBegin(entry.bucket)) + 1);
    return entry.losses[entry.band_count] * soon;
  }

  // An entry for `object` with what is known of its past; not yet in any structure.
  Entry Known(const EvictionObject& object) const {
    Entry entry;
    entry.losses = CheapestLosses(object, /*relative=*/!learns_);
    if (learns_) {
      for (double& loss : entry.losses) loss *= Usable(object.recompute_cost);
    }
    entry.floor_bands = object.floor_bands;
    if (const auto past = entries_.find(object.id); past != entries_.end()) {
      entry.uses = past->second.uses;
      entry.extended = past->second.extended;
      entry.extends = past->second.extends;
    }
    if (object.extends.has_value() && *object.extends != object.id) {
      // The first to extend a context continues it. What many contexts share, such as a system
      // prompt, says nothing about whether this one will be continued.
      const auto parent = entries_.find(*object.extends);
      entry.extends |= parent != entries_.end() && !parent->second.extended;
    }
    return entry;
  }

  // Puts an entry whose last_use, bucket and class are set into its cell, order and crossings.
  void Begin(EvictionId object, Entry& entry) {
    entry.in_cell_since = now_;
    model_.Enter(CellOf(entry), now_);
    if (entry.bucket + 1 < ReuseModel::kAgeBuckets) crossings_.insert(CrossingKey(object, entry));
    if (entry.band_count > 0) {
      entry.value = ValueOf(entry);
      order_.insert(OrderKey(object, entry));
    }
  }

  void End(EvictionId object, const Entry& entry, absl::Time when) {
    model_.Leave(CellOf(entry), entry.in_cell_since, when);
    if (entry.bucket + 1 < ReuseModel::kAgeBuckets) crossings_.erase(CrossingKey(object, entry));
    if (entry.band_count > 0) order_.erase(OrderKey(object, entry));
  }

  void Use(EvictionId object, Entry& entry) {
    model_.Asked(CellOf(entry));
    End(object, entry, now_);
    ++entry.uses;
    entry.last_use = now_;
    entry.turn = ++turns_;
    entry.bucket = 0;
    Begin(object, entry);
  }

  void MarkExtended(EvictionId object, Entry& entry) {
    End(object, entry, now_);
    entry.extended = true;
    Begin(object, entry);
  }

  void Forget(EvictionId object) {
    const auto found = entries_.find(object);
    if (found == entries_.end()) return;
    End(object, found->second, now_);
    if (found->second.band_count == 0) gone_.erase(found->second.gone);
    entries_.erase(found);
  }

  // Brings the time and every age that has reached its next bucket up to date. Amortised: an object
  // crosses fewer than kAgeBuckets borders between two uses.
  void Settle() {
    now_ = std::max(now_, clock_.Now());  // A clock that is set back stands still.
    while (!crossings_.empty() && crossings_.begin()->first <= now_) {
      auto node = crossings_.extract(crossings_.begin());
      const auto [when, object] = node.value();
      Entry& entry = entries_.at(object);
      model_.Leave(CellOf(entry), entry.in_cell_since, when);
      ++entry.bucket;
      entry.in_cell_since = when;
      model_.Enter(CellOf(entry), when);
      if (entry.bucket + 1 < ReuseModel::kAgeBuckets) {
        node.value() = CrossingKey(object, entry);
        crossings_.insert(std::move(node));
      }
      if (entry.band_count == 0) continue;
      auto place = order_.extract(OrderKey(object, entry));
      entry.value = ValueOf(entry);
      place.value() = OrderKey(object, entry);
      order_.insert(std::move(place));
    }
  }

  void CountCall() {
    if (!learns_ || ++calls_ < std::max(learn_interval_, order_.size() / kLearnIntervalShare)) {
      return;
    }
    calls_ = 0;
    learn_interval_ = std::min(2 * learn_interval_, kLearnIntervalMax);
    model_.Learn(now_);
    std::vector<Order> order(order_.begin(), order_.end());
    for (Order& place : order) {
      const EvictionId object = std::get<EvictionId>(place);
      Entry& entry = entries_.at(object);
      entry.value = ValueOf(entry);
      place = OrderKey(object, entry);
    }
    std::sort(order.begin(), order.end());
    order_ = std::set<Order>(order.begin(), order.end());
  }

  const bool learns_;
  const size_t remembered_max_;
  Clock& clock_;
  absl::Time now_;
  ReuseModel model_;
  uint64_t turns_ = 0;  // Inserts, uses and misses so far.
  size_t calls_ = 0;    // Since the model was fitted.
  size_t learn_interval_ = kLearnIntervalMin;

  absl::flat_hash_map<EvictionId, Entry> entries_;
  std::set<Order> order_;
  std::set<Crossing> crossings_;
  std::list<EvictionId> gone_;
};

}  // namespace

std::unique_ptr<EvictionPolicy> MakeGdsfPolicy(const EvictionOptions& options, Clock& clock) {
  return std::make_unique<ValuePolicy>(/*learns=*/true, options.remembered_max, clock);
}

std::unique_ptr<EvictionPolicy> MakeLruPolicy(Clock& clock) {
  return std::make_unique<ValuePolicy>(/*learns=*/false, /*remembered_max=*/0, clock);
}

absl::StatusOr<std::unique_ptr<EvictionPolicy>> MakeEvictionPolicy(absl::string_view name,
                                                                   Clock& clock) {
  if (name == "gdsf") return MakeGdsfPolicy({}, clock);
  if (name == "lru") return MakeLruPolicy(clock);
  return absl::InvalidArgumentError(
      absl::StrCat("no eviction policy \"", name, "\" (there are gdsf and lru)"));
}

}  // namespace kvtier
