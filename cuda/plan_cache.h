// The most recently used of things that are dear to make and cheap to use again, by what they were
// made for: plans of a library's kernels, and of an object's steps.
#ifndef KVTIER_CUDA_PLAN_CACHE_H_
#define KVTIER_CUDA_PLAN_CACHE_H_

#include <cstddef>
#include <list>
#include <map>
#include <optional>
#include <utility>

namespace kvtier {

// Not thread-safe. Key has an order.
template <typename Key, typename Plan>
class PlanCache {
 public:
  explicit PlanCache(size_t plans_max) : plans_max_(plans_max) {}

  // Null: not there. Otherwise it becomes the most recently used one, and stays where it is until
  // it is dropped.
  Plan* Find(const Key& key) {
    const auto found = by_key_.find(key);
    if (found == by_key_.end()) return nullptr;
    by_use_.splice(by_use_.begin(), by_use_, found->second);
    return &found->second->second;
  }

  // Whether the next Insert() drops the one that was used longest ago.
  bool full() const { return by_use_.size() >= plans_max_; }
  size_t size() const { return by_use_.size(); }

  // Drops that one, if Insert() would: for what must not be destroyed where Insert() is called.
  std::optional<Plan> TakeOldestIfFull() {
    if (!full()) return std::nullopt;
    std::optional<Plan> oldest = std::move(by_use_.back().second);
    by_key_.erase(by_use_.back().first);
    by_use_.pop_back();
    return oldest;
  }
  // REQUIRES: Find(key) is null.
  Plan& Insert(const Key& key, Plan plan) {
    TakeOldestIfFull();
    by_use_.emplace_front(key, std::move(plan));
    by_key_[key] = by_use_.begin();
    return by_use_.front().second;
  }

 private:
  const size_t plans_max_;
  std::list<std::pair<Key, Plan>> by_use_;  // The most recently used one first.
  std::map<Key, typename std::list<std::pair<Key, Plan>>::iterator> by_key_;
};

}  // namespace kvtier

#endif  // KVTIER_CUDA_PLAN_CACHE_H_
