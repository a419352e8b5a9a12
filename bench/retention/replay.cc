#include "bench/retention/replay.h"

#include <cmath>
#include <list>
#include <memory>
#include <optional>

#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "base/simulated_clock.h"
#include "base/status_macros.h"
#include "store/eviction.h"

namespace kvtier::bench {
namespace {

// The shares of `result`, whose blocks have been counted.
ReplayResult OfAsked(ReplayResult result, const RequestTrace& trace) {
  double asked = 0;
  for (const TraceRequest& request : trace) asked += static_cast<double>(request.asked_blocks);
  if (asked > 0) {
    result.hits /= asked;
    result.weighted /= asked;
  }
  return result;
}

uint64_t BandBytes(uint64_t blocks, double edge) {
  return static_cast<uint64_t>(
      std::llround(edge * static_cast<double>(blocks * kTraceBlockTokens * kObjectBytesPerToken)));
}

// A cache of objects that are named by the last id of their full blocks.
class ObjectCache {
 public:
  ObjectCache(const ObjectScheme& scheme, const QualityCurve& curve, EvictionPolicy& policy,
              uint64_t capacity_bytes)
      : edges_(scheme.edges), policy_(policy), capacity_bytes_(capacity_bytes) {
    qualities_.push_back(0);
    for (const double edge : edges_) qualities_.push_back(curve.At(edge));
  }

  void Serve(const TraceRequest& request) {
    const std::vector<uint64_t>& ids = request.full_blocks;
    const size_t served = BestPrefix(ids);
    // What was there once and would have served better is asked for too, in vain.
    size_t known = ids.size();
    while (known > served &&
           (bands_.contains(ids[known - 1]) || !policy_.Miss(EvictionId{ids[known - 1]}))) {
      --known;
    }
    if (served > 0) {
      const uint32_t bands = bands_.at(ids[served - 1]);
      result_.hits += static_cast<double>(served);
      result_.weighted += static_cast<double>(served) * qualities_[bands];
      result_.bytes_moved += BandBytes(served, edges_[bands - 1]);
      policy_.Access(EvictionId{ids[served - 1]});
    }
    if (ids.empty() || bands_.contains(ids.back())) return;
    EvictionObject object = MakeObject(ids);
    // The longest context known to be a prefix; an earlier object of the same prompt is none.
    if (known > 0 && known < ids.size()) object.extends = EvictionId{ids[known - 1]};
    Store(object, ids.size());
  }

  const ReplayResult& result() const { return result_; }

 private:
  // Blocks of the stored prefix that is worth most; 0 if there is none. Of equal ones the longest.
  size_t BestPrefix(const std::vector<uint64_t>& ids) const {
    size_t best = 0;
    double best_worth = -1;
    for (size_t count = ids.size(); count > 0; --count) {
      const auto found = bands_.find(ids[count - 1]);
      if (found == bands_.end()) continue;
      const double worth = static_cast<double>(count) * qualities_[found->second];
      if (worth > best_worth) {
        best = count;
        best_worth = worth;
      }
    }
    return best;
  }

  EvictionObject MakeObject(const std::vector<uint64_t>& ids) const {
    EvictionObject object;
    object.id = EvictionId{ids.back()};
    object.recompute_cost = static_cast<double>(ids.size() * kTraceBlockTokens);
    uint64_t below = 0;
    for (size_t band = 0; band < edges_.size(); ++band) {
      const uint64_t bytes = BandBytes(ids.size(), edges_[band]);
      object.bands.push_back({bytes - below, qualities_[band + 1] - qualities_[band]});
      below = bytes;
    }
    return object;
  }

  void Store(const EvictionObject& object, uint64_t blocks) {
    uint32_t bands = static_cast<uint32_t>(edges_.size());
    while (bands > 0 && BandBytes(blocks, edges_[bands - 1]) > capacity_bytes_) --bands;
    if (bands == 0) return;
    if (used_bytes_ + BandBytes(blocks, edges_[bands - 1]) > capacity_bytes_) {
      bands = std::min(bands, policy_.Admit(object));
      if (bands == 0) return;
    }
    policy_.Insert(object, bands);
    const uint64_t id = static_cast<uint64_t>(object.id);
    bands_[id] = bands;
    blocks_[id] = blocks;
    used_bytes_ += BandBytes(blocks, edges_[bands - 1]);
    result_.bytes_moved += BandBytes(blocks, edges_[bands - 1]);
    while (used_bytes_ > capacity_bytes_) Evict(*policy_.Next());
  }

  void Evict(const EvictionVictim& victim) {
    const uint64_t id = static_cast<uint64_t>(victim.object);
    const uint64_t blocks = blocks_.at(id);
    used_bytes_ -= BandBytes(blocks, edges_[bands_.at(id) - 1]);
    if (victim.band_count > 0) used_bytes_ += BandBytes(blocks, edges_[victim.band_count - 1]);
    policy_.Shrink(victim.object, victim.band_count);
    if (victim.band_count > 0) {
      bands_[id] = victim.band_count;
    } else {
      bands_.erase(id);
      blocks_.erase(id);
    }
  }

  const std::vector<double> edges_;
  std::vector<double> qualities_;  // [bands + 1], by number of resident bands.
  EvictionPolicy& policy_;
  const uint64_t capacity_bytes_;
  uint64_t used_bytes_ = 0;
  absl::flat_hash_map<uint64_t, uint32_t> bands_;   // Resident ones, at least one.
  absl::flat_hash_map<uint64_t, uint64_t> blocks_;  // Of the same objects.
  ReplayResult result_;
};

}  // namespace

absl::StatusOr<ReplayResult> ReplayObjects(const RequestTrace& trace, const ObjectScheme& scheme,
                                           const QualityCurve& curve, uint64_t capacity_bytes) {
  SimulatedClock clock;
  KVTIER_ASSIGN_OR_RETURN(const std::unique_ptr<EvictionPolicy> policy,
                          MakeEvictionPolicy(scheme.policy, clock));
  ObjectCache cache(scheme, curve, *policy, capacity_bytes);
  absl::Duration at = absl::ZeroDuration();
  for (const TraceRequest& request : trace) {
    clock.AdvanceTime(request.at - at);
    at = request.at;
    cache.Serve(request);
  }
  return OfAsked(cache.result(), trace);
}

ReplayResult ReplayDenseBlocks(const RequestTrace& trace, uint64_t capacity_bytes) {
  constexpr uint64_t kBlockBytes = kTraceBlockTokens * kDenseBytesPerToken;
  const uint64_t blocks_max = capacity_bytes / kBlockBytes;
  std::list<uint64_t> order;  // Most recently used first.
  absl::flat_hash_map<uint64_t, std::list<uint64_t>::iterator> here;
  ReplayResult result;
  for (const TraceRequest& request : trace) {
    const std::vector<uint64_t>& ids = request.full_blocks;
    size_t hits = 0;
    while (hits < ids.size() && here.contains(ids[hits])) ++hits;
    result.hits += static_cast<double>(hits);
    result.bytes_moved += hits * kBlockBytes;
    // The end first, so that the beginning is the most recent and stays longest.
    for (size_t i = ids.size(); i-- > 0;) {
      if (const auto found = here.find(ids[i]); found != here.end()) {
        order.splice(order.begin(), order, found->second);
        continue;
      }
      result.bytes_moved += kBlockBytes;
      order.push_front(ids[i]);
      here[ids[i]] = order.begin();
      if (order.size() > blocks_max) {
        here.erase(order.back());
        order.pop_back();
      }
    }
  }
  result.weighted = result.hits;  // Dense blocks serve as the whole cache does.
  return OfAsked(result, trace);
}

uint64_t BytesOfAllObjects(const RequestTrace& trace) {
  absl::flat_hash_set<uint64_t> seen;
  uint64_t bytes = 0;
  for (const TraceRequest& request : trace) {
    if (request.full_blocks.empty() || !seen.insert(request.full_blocks.back()).second) continue;
    bytes += BandBytes(request.full_blocks.size(), 1);
  }
  return bytes;
}

}  // namespace kvtier::bench
