#include "store/memory_budget.h"

#include "absl/strings/str_cat.h"
#include "base/log.h"
#include "base/status_macros.h"

namespace kvtier {

absl::Status MemoryBudget::Fits(uint64_t bytes) const {
  if (budget_bytes_ == 0 ||
      (used_bytes_ <= budget_bytes_ && bytes <= budget_bytes_ - used_bytes_)) {
    return absl::OkStatus();
  }
  return absl::ResourceExhaustedError(absl::StrCat("host memory budget (host_budget_bytes) of ",
                                                   budget_bytes_, " bytes: ", used_bytes_,
                                                   " in use, ", bytes, " more needed"));
}

uint64_t MemoryBudget::ExcessLocked() const {
  const uint64_t all = used_bytes_ + kept_bytes_;
  return budget_bytes_ == 0 || all <= budget_bytes_ ? 0 : all - budget_bytes_;
}

absl::Status MemoryBudget::Charge(uint64_t bytes) { return ChargeFromKept(0, bytes); }

absl::Status MemoryBudget::ChargeFromKept(uint64_t kept_bytes, uint64_t used_bytes) {
  {
    MutexLock lock(&mutex_);
    KVTIER_RETURN_IF_ERROR(Fits(used_bytes));
    KVTIER_CHECK_LE(kept_bytes, kept_bytes_);
    kept_bytes_ -= kept_bytes;
    used_bytes_ += used_bytes;
    if (ExcessLocked() == 0) return absl::OkStatus();
  }
  Reclaim();
  return absl::OkStatus();
}

void MemoryBudget::Release(uint64_t bytes) {
  MutexLock lock(&mutex_);
  KVTIER_CHECK_LE(bytes, used_bytes_);
  used_bytes_ -= bytes;
}

bool MemoryBudget::Keep(uint64_t bytes, uint64_t kept_bytes_max) {
  MutexLock lock(&mutex_);
  KVTIER_CHECK_LE(bytes, used_bytes_);
  if (kept_bytes_ > kept_bytes_max || bytes > kept_bytes_max - kept_bytes_) return false;
  used_bytes_ -= bytes;
  kept_bytes_ += bytes;
  return true;
}

void MemoryBudget::ReleaseKept(uint64_t bytes) {
  MutexLock lock(&mutex_);
  KVTIER_CHECK_LE(bytes, kept_bytes_);
  kept_bytes_ -= bytes;
}

uint64_t MemoryBudget::excess_bytes() const {
  MutexLock lock(&mutex_);
  return ExcessLocked();
}

MemoryBudget::Usage MemoryBudget::usage() const {
  MutexLock lock(&mutex_);
  return {.used_bytes = used_bytes_, .kept_bytes = kept_bytes_, .budget_bytes = budget_bytes_};
}

void MemoryBudget::SetReclaimer(std::function<void()> reclaim) {
  MutexLock lock(&mutex_);
  reclaim_ = std::move(reclaim);
}

void MemoryBudget::Reclaim() {
  std::function<void()> reclaim;
  {
    MutexLock lock(&mutex_);
    reclaim = reclaim_;
  }
  if (reclaim) reclaim();
}

absl::StatusOr<MemoryCharge> MemoryCharge::Take(std::shared_ptr<MemoryBudget> budget,
                                                uint64_t bytes) {
  KVTIER_RETURN_IF_ERROR(budget->Charge(bytes));
  return MemoryCharge(std::move(budget), bytes);
}

}  // namespace kvtier
