#include "store/host_tier.h"

#include <atomic>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/strings/str_cat.h"
#include "base/mutex.h"
#include "base/status_macros.h"

namespace kvtier {
namespace {

// Bytes charged against the budget. Outlives the tier while a reader holds a segment.
class Account {
 public:
  explicit Account(uint64_t budget_bytes) : budget_bytes_(budget_bytes) {}

  bool Charge(uint64_t bytes) {
    uint64_t used = used_bytes_.load(std::memory_order_relaxed);
    do {
      if (budget_bytes_ != 0 && (used > budget_bytes_ || bytes > budget_bytes_ - used)) {
        return false;
      }
    } while (!used_bytes_.compare_exchange_weak(used, used + bytes, std::memory_order_relaxed));
    return true;
  }
  void Release(uint64_t bytes) { used_bytes_.fetch_sub(bytes, std::memory_order_relaxed); }

  TierUsage usage() const {
    return {.bytes = used_bytes_.load(std::memory_order_relaxed), .budget_bytes = budget_bytes_};
  }

 private:
  const uint64_t budget_bytes_;
  std::atomic<uint64_t> used_bytes_{0};
};

// What owns a stored segment: the tier and every reader share it, and the last one to let go gives
// its bytes back to the account.
class ChargedSegment {
 public:
  // The bytes have been charged already.
  ChargedSegment(SegmentRef segment, std::shared_ptr<Account> account)
      : segment_(std::move(segment)), account_(std::move(account)) {}
  ~ChargedSegment() {
    const uint64_t bytes = segment_.bytes().size();
    segment_ = SegmentRef();
    account_->Release(bytes);
  }
  ChargedSegment(const ChargedSegment&) = delete;
  ChargedSegment& operator=(const ChargedSegment&) = delete;

  std::span<const std::byte> bytes() const { return segment_.bytes(); }

 private:
  SegmentRef segment_;
  const std::shared_ptr<Account> account_;
};

class HostTier final : public Tier {
 public:
  explicit HostTier(uint64_t budget_bytes) : account_(std::make_shared<Account>(budget_bytes)) {}

  absl::Status PutBand(const Manifest& manifest, BandIndex band,
                       std::span<const SegmentRef> layers) override {
    KVTIER_RETURN_IF_ERROR(CheckBandSegments(manifest, band, layers));
    MutexLock lock(&mutex_);
    const auto found = uploads_.find(manifest.upload_id);
    const size_t band_count = found == uploads_.end() ? 0 : found->second.size();
    if (band.value() != band_count) {
      return NotNextBandError(manifest, band, static_cast<uint32_t>(band_count));
    }
    const uint64_t bytes = manifest.bands[band.value()].encoded_bytes();
    if (!account_->Charge(bytes)) {
      const TierUsage usage = account_->usage();
      return absl::ResourceExhaustedError(absl::StrCat("host memory budget of ", usage.budget_bytes,
                                                       " bytes: ", usage.bytes, " in use, ", bytes,
                                                       " more needed"));
    }
    Band charged;
    charged.reserve(layers.size());
    for (const SegmentRef& layer : layers) {
      auto owner = std::make_shared<const ChargedSegment>(layer, account_);
      charged.emplace_back(owner, owner->bytes());
    }
    uploads_[manifest.upload_id].push_back(std::move(charged));
    return absl::OkStatus();
  }

  absl::StatusOr<SegmentRef> Get(const Manifest& manifest, BandIndex band,
                                 LayerIndex layer) override {
    MutexLock lock(&mutex_);
    const auto found = uploads_.find(manifest.upload_id);
    if (found == uploads_.end() || band.value() >= found->second.size() ||
        layer.value() >= found->second[band.value()].size()) {
      return absl::NotFoundError("");
    }
    return found->second[band.value()][layer.value()];
  }

  absl::Status DropBands(const UploadId& upload, uint32_t band_count) override {
    std::vector<Band> dropped;  // Freed after the lock.
    MutexLock lock(&mutex_);
    const auto found = uploads_.find(upload);
    if (found == uploads_.end()) return absl::OkStatus();
    std::vector<Band>& bands = found->second;
    while (bands.size() > band_count) {
      dropped.push_back(std::move(bands.back()));
      bands.pop_back();
    }
    if (bands.empty()) uploads_.erase(found);
    return absl::OkStatus();
  }

  uint32_t BandCount(const UploadId& upload) override {
    MutexLock lock(&mutex_);
    const auto found = uploads_.find(upload);
    return found == uploads_.end() ? 0 : static_cast<uint32_t>(found->second.size());
  }

  TierUsage Usage() override { return account_->usage(); }

 private:
  using Band = std::vector<SegmentRef>;  // [layers]

  const std::shared_ptr<Account> account_;
  Mutex mutex_;
  // No upload without bands.
  absl::flat_hash_map<UploadId, std::vector<Band>> uploads_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace

std::unique_ptr<Tier> MakeHostTier(uint64_t budget_bytes) {
  return std::make_unique<HostTier>(budget_bytes);
}

}  // namespace kvtier
