// The one account of host memory: whatever the store keeps there charges it first, and what does
// not fit is refused, so that the budget is never exceeded.
//
// Two sums, together never above the budget:
//   used  live bytes: bands in host memory, open uploads, segments that are read from disk
//   kept  free memory that its owner (HostMemory) holds for the next allocation, because fresh
//         pages cost many times more than used ones. It gives way to any charge.
//
// Thread-safe. Shared by everything that charges it, because segments outlive the store.
#ifndef KVTIER_STORE_MEMORY_BUDGET_H_
#define KVTIER_STORE_MEMORY_BUDGET_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/mutex.h"

namespace kvtier {

class MemoryBudget {
 public:
  struct Usage {
    uint64_t used_bytes = 0;
    uint64_t kept_bytes = 0;
    uint64_t budget_bytes = 0;  // 0: unbounded.
  };

  explicit MemoryBudget(uint64_t budget_bytes) : budget_bytes_(budget_bytes) {}
  MemoryBudget(const MemoryBudget&) = delete;
  MemoryBudget& operator=(const MemoryBudget&) = delete;

  // RESOURCE_EXHAUSTED naming the limit and what is in use, if `bytes` more do not fit. When it
  // returns OK, kept memory has given way already.
  absl::Status Charge(uint64_t bytes) ABSL_LOCKS_EXCLUDED(mutex_);
  void Release(uint64_t bytes) ABSL_LOCKS_EXCLUDED(mutex_);

  Usage usage() const ABSL_LOCKS_EXCLUDED(mutex_);

  // For the owner of kept memory. `reclaim` frees some of it and says so with ReleaseKept, until
  // excess_bytes() is 0; it is called without our lock, by any thread that charges.
  void SetReclaimer(std::function<void()> reclaim) ABSL_LOCKS_EXCLUDED(mutex_);
  // Turns used bytes into kept ones if `kept_bytes_max` allows; else false, and nothing changes.
  bool Keep(uint64_t bytes, uint64_t kept_bytes_max) ABSL_LOCKS_EXCLUDED(mutex_);
  // Turns kept bytes into `used_bytes` used ones, more or fewer. As Charge.
  absl::Status ChargeFromKept(uint64_t kept_bytes, uint64_t used_bytes) ABSL_LOCKS_EXCLUDED(mutex_);
  void ReleaseKept(uint64_t bytes) ABSL_LOCKS_EXCLUDED(mutex_);
  // How much kept memory must go.
  uint64_t excess_bytes() const ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  absl::Status Fits(uint64_t bytes) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  uint64_t ExcessLocked() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Reclaim() ABSL_LOCKS_EXCLUDED(mutex_);

  const uint64_t budget_bytes_;
  mutable Mutex mutex_;
  uint64_t used_bytes_ ABSL_GUARDED_BY(mutex_) = 0;
  uint64_t kept_bytes_ ABSL_GUARDED_BY(mutex_) = 0;
  std::function<void()> reclaim_ ABSL_GUARDED_BY(mutex_);
};

// Bytes charged to a budget until it is destroyed. Movable.
class MemoryCharge {
 public:
  // RESOURCE_EXHAUSTED as MemoryBudget::Charge.
  static absl::StatusOr<MemoryCharge> Take(std::shared_ptr<MemoryBudget> budget, uint64_t bytes);
  MemoryCharge() = default;
  MemoryCharge(MemoryCharge&& other) noexcept
      : budget_(std::move(other.budget_)), bytes_(std::exchange(other.bytes_, 0)) {}
  MemoryCharge& operator=(MemoryCharge&& other) noexcept {
    std::swap(budget_, other.budget_);
    std::swap(bytes_, other.bytes_);
    return *this;
  }
  ~MemoryCharge() {
    if (budget_ != nullptr) budget_->Release(bytes_);
  }
  uint64_t bytes() const { return bytes_; }

 private:
  MemoryCharge(std::shared_ptr<MemoryBudget> budget, uint64_t bytes)
      : budget_(std::move(budget)), bytes_(bytes) {}
  std::shared_ptr<MemoryBudget> budget_;
  uint64_t bytes_ = 0;
};

}  // namespace kvtier

#endif  // KVTIER_STORE_MEMORY_BUDGET_H_
