// The tier of store/rocksdb_tier.h. Private to the files that implement it: rocksdb_tier.cc (bands
// in, segments out, bands out), rocksdb_tier_open.cc (the folder and its database) and
// rocksdb_tier_recover.cc (what is in it).
#ifndef KVTIER_STORE_ROCKSDB_TIER_IMPL_H_
#define KVTIER_STORE_ROCKSDB_TIER_IMPL_H_

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/functional/function_ref.h"
#include "absl/strings/str_cat.h"
#include "base/mutex.h"
#include "store/disk_format.h"
#include "store/folder_lock.h"
#include "store/rocksdb_database.h"
#include "store/rocksdb_tier.h"
#include "store/rocksdb_torn_list.h"
#include "store/turns.h"

namespace kvtier {

// Per upload, operations that change it take turns; readers never wait for them. `mutex_` is held
// for memory only.
//
//   1. uploads_[u].charges has one entry per band that Get serves: BandCount.
//   2. Bands [0, ingested) are in RocksDB, bands [ingested, BandCount) are staged: their bytes in
//      memory (the caller's segments, not copies), their file in staging/.
//   3. Files of bands from BandCount on may linger below `reclaim_end` if their removal failed;
//   they
//      stay charged (unreclaimed_bytes) and go before a band of that number is put again.
//   4. recorded_bands is what the residency record says; 0 means that there is none.
class RocksDbTier final : public DurableTier {
 public:
  explicit RocksDbTier(const RocksDbTierOptions& options) : options_(options) {}
  // Of a folder whose list of files had, or with read_only still has, that torn end.
  RocksDbTier(RocksDbTierOptions options, const TornList& torn);

  absl::Status Open();

  absl::Status PutBand(const Manifest& manifest, BandIndex band,
                       std::span<const SegmentRef> layers) override;
  absl::StatusOr<SegmentRef> Get(const Manifest& manifest, BandIndex band,
                                 LayerIndex layer) override;
  absl::Status Read(const Manifest& manifest, BandIndex band, LayerIndex layer,
                    MutableByteSpan out) override;
  absl::Status DropBands(const UploadId& upload, uint32_t band_count) override;
  uint32_t BandCount(const UploadId& upload) override;
  uint32_t SealedBands(const UploadId& upload) override;
  TierUsage Usage() override;

  absl::Status Seal(const TenantId& tenant, const Manifest& manifest,
                    absl::Time sealed_at) override {
    return SealPrefix(tenant, manifest, static_cast<uint32_t>(manifest.bands.size()), sealed_at);
  }
  absl::Status SealPrefix(const TenantId& tenant, const Manifest& manifest, uint32_t band_count,
                          absl::Time sealed_at) override;
  absl::Status LowerResidency(const UploadId& upload, uint32_t band_count) override;
  absl::Status Unseal(const TenantId& tenant, const Key& key, const UploadId& upload) override;
  absl::Status SetAttributes(const UploadId& upload, const ObjectAttributes& attributes) override;
  absl::StatusOr<std::vector<SealedObject>> Recover() override;
  uint64_t ChargeOf(const BandEntry& band) const override {
    return disk_format::BandChargeBytes(band);
  }
  DurableCounters counters() override {
    MutexLock lock(&mutex_);
    DurableCounters counters = counters_;
    counters.log_damage += database_->log_damage();
    return counters;
  }

 private:
  using ObjectName = disk_format::ObjectName;
  using Family = RocksDbDatabase::Family;
  using RecordChange = RocksDbDatabase::RecordChange;

  struct StagedBand {
    std::string file;                  // Empty if the band has no bytes.
    std::vector<SegmentRef> segments;  // [layers]
  };
  struct UploadState {
    std::vector<uint64_t> charges;  // [bands], bytes against the budget
    uint32_t ingested = 0;
    std::vector<StagedBand> staged;  // [bands - ingested]
    uint32_t reclaim_end = 0;
    uint64_t unreclaimed_bytes = 0;
    uint32_t recorded_bands = 0;
    std::optional<ObjectName> name;  // Whose object record it is or was.
    bool has_attributes = false;     // There is an attributes record.
  };

  std::string StagingFolder() const { return options_.folder + "/staging"; }
  std::string StagedFile(const UploadId& upload, BandIndex band) const {
    return absl::StrCat(StagingFolder(), "/", upload.ToHex(), "-", band.value(), ".sst");
  }
  // Turns are per upload; Seal touches two but removes nothing of the replaced one.
  Turns::Turn TakeTurn(const UploadId& upload) { return turns_.Take(upload.ToHex()); }

  absl::StatusOr<uint32_t> FormatVersion();
  absl::Status WriteBandFile(const std::string& file, const Manifest& manifest, BandIndex band,
                             std::span<const SegmentRef> layers);
  absl::Status IngestStaged(const UploadId& upload);
  absl::Status ReadSegment(const Manifest& manifest, BandIndex band, LayerIndex layer,
                           MutableByteSpan out);
  // Finds a segment that is still in memory, or reads it into what `memory` gives, and then returns
  // nothing. Codes as Get, and those of `memory`.
  absl::StatusOr<std::optional<SegmentRef>> FindOrRead(
      const Manifest& manifest, BandIndex band, LayerIndex layer,
      absl::FunctionRef<absl::StatusOr<MutableByteSpan>()> memory) ABSL_LOCKS_EXCLUDED(mutex_);
  absl::Status LowerRecord(const UploadId& upload, uint32_t band_count);
  // The bands from `band_count` on that are not ingested. REQUIRES: the upload's turn.
  absl::Status DropStaged(const UploadId& upload, uint32_t band_count);
  // Removes the files of bands that are no longer served.
  absl::Status Reclaim(const UploadId& upload);

  using SealedObjects = std::map<UploadId, SealedObject>;
  absl::Status VisitRecords(Family family,
                            absl::FunctionRef<void(absl::string_view, absl::string_view)> visit);
  // While false, Recover deletes nothing.
  bool MayDelete() const { return !options_.read_only && !is_scan_cut_short_; }
  absl::StatusOr<SealedObjects> ScanRecords();
  absl::Status RemoveUnnamed(SealedObjects* sealed);
  void GiveUpRecord(Family family, absl::string_view key, const absl::Status& why,
                    std::vector<RecordChange>* changes);

  const std::shared_ptr<rocksdb::Env> env_without_torn_end_;  // Null: none is torn.
  const RocksDbTierOptions options_;
  std::unique_ptr<FolderLock> folder_lock_;
  std::unique_ptr<RocksDbDatabase> database_;
  bool is_scan_cut_short_ = false;  // Recover's own.

  Turns turns_;
  Mutex mutex_;
  std::map<UploadId, UploadState> uploads_ ABSL_GUARDED_BY(mutex_);
  std::map<ObjectName, UploadId> current_ ABSL_GUARDED_BY(mutex_);  // As the object records say.
  uint64_t used_bytes_ ABSL_GUARDED_BY(mutex_) = 0;
  uint64_t drop_count_ ABSL_GUARDED_BY(mutex_) = 0;  // Tells a reader that bands went meanwhile.
  DurableCounters counters_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace kvtier

#endif  // KVTIER_STORE_ROCKSDB_TIER_IMPL_H_
