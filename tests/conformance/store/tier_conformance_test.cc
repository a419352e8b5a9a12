#include "tests/conformance/tier_conformance.h"

#include <utility>

#include "base/log.h"
#include "store/host_tier.h"
#include "store/rocksdb_tier.h"

namespace kvtier {
namespace {

// Seals an upload once its last band has come and hides nothing else, so that the suite also runs
// over segments that RocksDB has taken in.
class SealingTier final : public Tier {
 public:
  explicit SealingTier(std::unique_ptr<DurableTier> tier) : tier_(std::move(tier)) {}

  absl::Status PutBand(const Manifest& manifest, BandIndex band,
                       std::span<const SegmentRef> layers) override {
    absl::Status status = tier_->PutBand(manifest, band, layers);
    if (!status.ok()) return status;
    return tier_->SealPrefix(TenantId(), manifest, band.value() + 1, absl::UnixEpoch());
  }
  absl::StatusOr<SegmentRef> Get(const Manifest& manifest, BandIndex band,
                                 LayerIndex layer) override {
    return tier_->Get(manifest, band, layer);
  }
  absl::Status DropBands(const UploadId& upload, uint32_t band_count) override {
    return tier_->DropBands(upload, band_count);
  }
  uint32_t BandCount(const UploadId& upload) override { return tier_->BandCount(upload); }
  TierUsage Usage() override { return tier_->Usage(); }

 private:
  const std::unique_ptr<DurableTier> tier_;
};

std::unique_ptr<DurableTier> Open(const std::string& folder, uint64_t budget_bytes) {
  absl::StatusOr<std::unique_ptr<DurableTier>> tier =
      OpenRocksDbTier({.folder = folder, .budget_bytes = budget_bytes});
  KVTIER_CHECK_OK(tier);
  KVTIER_CHECK_OK((*tier)->Recover());
  return *std::move(tier);
}

INSTANTIATE_TEST_SUITE_P(
    All, TierConformanceTest,
    testing::Values(TierCase{"Host", [](const std::string&,
                                        uint64_t budget) { return MakeHostTier(budget); }},
                    TierCase{"RocksDbStaged", [](const std::string& folder,
                                                 uint64_t budget) { return Open(folder, budget); }},
                    TierCase{"RocksDbSealed",
                             [](const std::string& folder, uint64_t budget) {
                               return std::make_unique<SealingTier>(Open(folder, budget));
                             }}),
    [](const testing::TestParamInfo<TierCase>& tier) { return tier.param.name; });

}  // namespace
}  // namespace kvtier
