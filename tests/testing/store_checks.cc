#include "tests/testing/store_checks.h"

#include <algorithm>
#include <filesystem>
#include <system_error>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"

namespace kvtier {

namespace {

absl::StatusOr<std::unique_ptr<DurableTier>> OpenDisk(const std::string& folder,
                                                      uint64_t budget_bytes, rocksdb::Env* env) {
  if (folder.empty()) return nullptr;
  return OpenRocksDbTier({.folder = folder, .budget_bytes = budget_bytes, .env = env});
}

}  // namespace

absl::StatusOr<std::unique_ptr<TieredStore>> OpenTestStore(const std::string& folder,
                                                           uint64_t host_budget_bytes, Clock& clock,
                                                           rocksdb::Env* env,
                                                           uint64_t disk_budget_bytes) {
  KVTIER_ASSIGN_OR_RETURN(std::unique_ptr<DurableTier> disk,
                          OpenDisk(folder, disk_budget_bytes, env));
  return TieredStore::Create({.host_budget_bytes = host_budget_bytes, .upload_bytes_max = 1 << 30},
                             std::move(disk), clock);
}

absl::StatusOr<std::unique_ptr<TieredStore>> OpenTestStore(const std::string& folder,
                                                           const TieredStoreOptions& options,
                                                           Clock& clock,
                                                           uint64_t disk_budget_bytes) {
  KVTIER_ASSIGN_OR_RETURN(std::unique_ptr<DurableTier> disk,
                          OpenDisk(folder, disk_budget_bytes, /*env=*/nullptr));
  return TieredStore::Create(options, std::move(disk), clock);
}

absl::Status CheckPinned(PinnedObject& pinned, const CompressedObject& object, uint32_t bands) {
  if (*pinned.manifest() != *object.manifest) {
    return absl::FailedPreconditionError(
        absl::StrCat("upload ", pinned.manifest()->upload_id.ToHex(), " is stored, not ",
                     object.manifest->upload_id.ToHex()));
  }
  if (pinned.resident_bands() != bands) {
    return absl::FailedPreconditionError(
        absl::StrCat(pinned.resident_bands(), " bands are served, not ", bands));
  }
  for (uint32_t layer = 0; layer < object.manifest->geometry.layer_count(); ++layer) {
    for (uint32_t band = 0; band < bands; ++band) {
      KVTIER_ASSIGN_OR_RETURN(const SegmentRef segment,
                              pinned.Read(BandIndex(band), LayerIndex(layer)));
      const SegmentRef& expected = object.segment(BandIndex(band), LayerIndex(layer));
      if (!std::ranges::equal(segment.bytes(), expected.bytes())) {
        return absl::FailedPreconditionError(
            absl::StrCat("band ", band, " layer ", layer, ": wrong bytes"));
      }
    }
  }
  return absl::OkStatus();
}

absl::Status CheckStored(TieredStore& store, const TenantId& tenant, const CompressedObject& object,
                         uint32_t bands) {
  absl::StatusOr<std::unique_ptr<PinnedObject>> pinned =
      store.Pin(tenant, object.manifest->key, std::nullopt);
  if (bands == 0) {
    if (absl::IsNotFound(pinned.status())) return absl::OkStatus();
    KVTIER_RETURN_IF_ERROR(pinned);
    return absl::FailedPreconditionError(
        absl::StrCat((*pinned)->resident_bands(), " bands are served, not 0"));
  }
  KVTIER_RETURN_IF_ERROR(pinned);
  return CheckPinned(**pinned, object, bands);
}

uint64_t FolderBytes(const std::string& folder) {
  uint64_t bytes = 0;
  std::error_code gone;  // RocksDB may be removing some at this moment.
  for (std::filesystem::recursive_directory_iterator it(folder, gone), end; it != end;
       it.increment(gone)) {
    const bool is_file = it->is_regular_file(gone);
    const uint64_t size = is_file ? it->file_size(gone) : 0;
    if (is_file && !gone) bytes += size;
  }
  return bytes;
}

}  // namespace kvtier
