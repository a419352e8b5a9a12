#include <optional>
#include <utility>

#include "base/log.h"
#include "store/tiered_store_impl.h"

namespace kvtier {

void TieredStoreImpl::OweDisk(const ObjectName& name, const UploadId& upload, uint32_t keep,
                              const absl::Status& why) {
  KVTIER_LOG(WARNING) << "bands of upload " << upload.ToHex()
                      << " that were not sealed stay on disk "
                      << "for now: " << why.message();
  ++counters_.disk_cleanups_failed;
  MutexLock lock(&mutex_);
  disk_debts_.insert_or_assign(upload, DiskDebt{name, keep});
}

void TieredStoreImpl::SettleDiskDebt(const UploadId& upload) {
  MutexLock lock(&mutex_);
  if (disk_debts_.erase(upload) > 0) ++counters_.disk_cleanups_repeated;
}

std::optional<TieredStoreImpl::DueDebt> TieredStoreImpl::NextDiskDebt(
    const std::optional<UploadId>& after) {
  MutexLock lock(&mutex_);
  auto at = after.has_value() ? disk_debts_.upper_bound(*after) : disk_debts_.begin();
  for (; at != disk_debts_.end(); ++at) {
    const auto& [upload, debt] = *at;
    std::optional<Turns::Turn> turn = turns_.TryTake(TurnName(debt.name.tenant, debt.name.key));
    // Somebody is at work on this key: whoever puts bands of it cleans up first.
    if (turn.has_value()) return DueDebt{upload, debt.keep, *std::move(turn)};
  }
  return std::nullopt;
}

void TieredStoreImpl::PayDiskDebts() {
  std::optional<UploadId> last;
  while (const std::optional<DueDebt> due = NextDiskDebt(last)) {
    last = due->upload;
    const absl::Status removed = disk_->DropBands(due->upload, due->keep);
    if (!removed.ok()) {
      KVTIER_LOG_EVERY_N_SEC(WARNING, 10)
          << "bands that were not sealed stay on disk: " << removed.message();
      return;  // The next one would fare no better.
    }
    SettleDiskDebt(due->upload);
    MutexLock lock(&mutex_);
    if (const ObjectPtr object = index_.FindUpload(due->upload)) TellPolicies(object);
  }
}

}  // namespace kvtier
