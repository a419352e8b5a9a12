#include "store/rocksdb_tier.h"

#include <algorithm>
#include <cstring>
#include <exception>
#include <filesystem>
#include <functional>
#include <map>
#include <new>
#include <optional>
#include <set>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "base/aligned_bytes.h"
#include "base/limits.h"
#include "base/log.h"
#include "base/mutex.h"
#include "base/status_macros.h"
#include "base/sync_point.h"
#include "kvcache/segment.h"
#include "rocksdb/convenience.h"
#include "rocksdb/db.h"
#include "rocksdb/env.h"
#include "rocksdb/filter_policy.h"
#include "rocksdb/metadata.h"
#include "rocksdb/options.h"
#include "rocksdb/sst_file_writer.h"
#include "rocksdb/table.h"
#include "rocksdb/write_batch.h"
#include "store/disk_format.h"
#include "store/turns.h"

namespace kvtier {
namespace {

using disk_format::ObjectName;

// --- The border to RocksDB: its strings, its statuses and its exceptions end here ----------------

rocksdb::Slice ToSlice(absl::string_view text) { return {text.data(), text.size()}; }
absl::string_view ToView(const rocksdb::Slice& slice) { return {slice.data(), slice.size()}; }

absl::Status FromRocks(absl::string_view doing, const rocksdb::Status& status) {
  if (status.ok()) return absl::OkStatus();
  const std::string message = absl::StrCat(doing, ": ", status.ToString());
  if (status.IsNoSpace() || status.IsMemoryLimit() ||
      status.subcode() == rocksdb::Status::kSpaceLimit) {
    return absl::ResourceExhaustedError(message);
  }
  if (status.IsCorruption()) return absl::DataLossError(message);
  return absl::UnavailableError(message);
}

// Runs `call`, which returns a rocksdb::Status.
template <typename Call>
absl::Status Rocks(absl::string_view doing, Call call) {
  try {
    return FromRocks(doing, call());
  } catch (const std::bad_alloc&) {
    return absl::ResourceExhaustedError(absl::StrCat(doing, ": out of memory"));
  } catch (const std::exception& error) {
    return absl::UnavailableError(absl::StrCat(doing, ": ", error.what()));
  }
}

constexpr char kSegmentsFamily[] = "segments";
constexpr char kObjectsFamily[] = "objects";
constexpr char kResidencyFamily[] = "residency";

rocksdb::DBOptions MakeDbOptions(rocksdb::Env* env) {
  rocksdb::DBOptions options;
  options.env = env;
  options.create_if_missing = true;
  options.create_missing_column_families = true;
  // A file per band: all of them open at once would be more files than a process may have.
  options.max_open_files = 1024;
  options.max_total_wal_size = 64 << 20;
  options.keep_log_file_num = 4;
  options.max_log_file_size = 8 << 20;
  options.info_log_level = rocksdb::WARN_LEVEL;
  options.stats_dump_period_sec = 0;
  options.stats_persist_period_sec = 0;
  return options;
}

// Whole files come in by ingestion and go out by DeleteFilesInRange: nothing to compact, nothing to
// compress (bf16 does not), no filter (a key that the manifest names is there).
rocksdb::ColumnFamilyOptions MakeSegmentsOptions() {
  rocksdb::BlockBasedTableOptions table;
  table.no_block_cache = true;
  table.checksum = rocksdb::kXXH3;  // The packaged build computes CRC32C in software.
  table.format_version = 5;
  rocksdb::ColumnFamilyOptions options;
  options.disable_auto_compactions = true;
  options.compression = rocksdb::kNoCompression;
  options.bottommost_compression = rocksdb::kNoCompression;
  options.write_buffer_size = 1 << 20;  // Holds the rare range tombstone and nothing else.
  options.table_factory.reset(rocksdb::NewBlockBasedTableFactory(table));
  return options;
}

rocksdb::ColumnFamilyOptions MakeRecordsOptions() {
  rocksdb::ColumnFamilyOptions options;
  options.compression = rocksdb::kNoCompression;
  options.write_buffer_size = 8 << 20;
  return options;
}

// --- The tier ------------------------------------------------------------------------------------

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
  RocksDbTier(const RocksDbTierOptions& options, rocksdb::Env* env)
      : env_(env), folder_(options.folder), budget_bytes_(options.budget_bytes) {}
  ~RocksDbTier() override;

  absl::Status Open();

  absl::Status PutBand(const Manifest& manifest, BandIndex band,
                       std::span<const SegmentRef> layers) override;
  absl::StatusOr<SegmentRef> Get(const Manifest& manifest, BandIndex band,
                                 LayerIndex layer) override;
  absl::Status DropBands(const UploadId& upload, uint32_t band_count) override;
  uint32_t BandCount(const UploadId& upload) override;
  TierUsage Usage() override;

  absl::Status Seal(const TenantId& tenant, const Manifest& manifest,
                    absl::Time sealed_at) override {
    return SealPrefix(tenant, manifest, static_cast<uint32_t>(manifest.bands.size()), sealed_at);
  }
  absl::Status SealPrefix(const TenantId& tenant, const Manifest& manifest, uint32_t band_count,
                          absl::Time sealed_at) override;
  absl::Status LowerResidency(const UploadId& upload, uint32_t band_count) override;
  absl::Status Unseal(const TenantId& tenant, const Key& key, const UploadId& upload) override;
  absl::StatusOr<std::vector<SealedObject>> Recover() override;
  DurableCounters counters() override {
    MutexLock lock(&mutex_);
    return counters_;
  }

 private:
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
  };
  struct KeyRange {
    std::string begin, end;
  };

  std::string DbFolder() const { return folder_ + "/db"; }
  std::string StagingFolder() const { return folder_ + "/staging"; }
  std::string FormatFile() const { return folder_ + "/FORMAT"; }
  std::string StagedFile(const UploadId& upload, BandIndex band) const {
    return absl::StrCat(StagingFolder(), "/", upload.ToHex(), "-", band.value(), ".sst");
  }
  // Turns are per upload; Seal touches two but removes nothing of the replaced one.
  Turns::Turn TakeTurn(const UploadId& upload) { return turns_.Take(upload.ToHex()); }

  absl::Status CheckFormat();
  absl::Status OpenDb();
  absl::Status EmptyStaging();

  absl::Status WriteBandFile(const std::string& file, const Manifest& manifest, BandIndex band,
                             std::span<const SegmentRef> layers);
  absl::Status IngestStaged(const UploadId& upload);
  absl::StatusOr<SegmentRef> ReadSegment(const Manifest& manifest, BandIndex band,
                                         LayerIndex layer);

  // A record write that failed may or may not be in the log. Until the log has been replaced, we
  // neither write more nor remove bytes that such a record could name.
  absl::Status EnsureWritable();
  absl::Status WriteSynced(absl::string_view doing, rocksdb::WriteBatch* batch);
  absl::Status LowerRecord(const UploadId& upload, uint32_t band_count);
  // Removes the files of bands that are no longer served.
  absl::Status Reclaim(const UploadId& upload);
  absl::Status RemoveRange(const KeyRange& range);

  absl::Status ScanRecords(std::map<UploadId, SealedObject>* sealed);
  absl::Status RemoveUnnamed(std::map<UploadId, SealedObject>* sealed);
  void ForgetRecord(rocksdb::ColumnFamilyHandle* family, absl::string_view key,
                    const absl::Status& why, rocksdb::WriteBatch* batch);

  rocksdb::Env* const env_;
  const std::string folder_;
  const uint64_t budget_bytes_;

  std::unique_ptr<rocksdb::DB> db_;
  rocksdb::ColumnFamilyHandle* default_ = nullptr;  // Owned by db_ until Close.
  rocksdb::ColumnFamilyHandle* segments_ = nullptr;
  rocksdb::ColumnFamilyHandle* objects_ = nullptr;
  rocksdb::ColumnFamilyHandle* residency_ = nullptr;

  Turns turns_;
  Mutex mutex_;
  std::map<UploadId, UploadState> uploads_ ABSL_GUARDED_BY(mutex_);
  std::map<ObjectName, UploadId> current_ ABSL_GUARDED_BY(mutex_);  // As the object records say.
  uint64_t used_bytes_ ABSL_GUARDED_BY(mutex_) = 0;
  DurableCounters counters_ ABSL_GUARDED_BY(mutex_);

  // Serialises record writes with what follows a failed one. Turn name: kLogTurn.
  Turns log_turns_;
  bool log_doubtful_ = false;  // Guarded by that turn.
};

constexpr char kLogTurn[] = "log";
constexpr char kLogMarkKey[] = "log-mark";

// --- Opening -------------------------------------------------------------------------------------

RocksDbTier::~RocksDbTier() {
  if (db_ == nullptr) return;
  for (rocksdb::ColumnFamilyHandle* family : {default_, segments_, objects_, residency_}) {
    if (family != nullptr) db_->DestroyColumnFamilyHandle(family).PermitUncheckedError();
  }
  const absl::Status closed = Rocks("close", [&] { return db_->Close(); });
  if (!closed.ok()) KVTIER_LOG(WARNING) << folder_ << ": " << closed.message();
}

absl::Status RocksDbTier::Open() {
  std::error_code error;
  std::filesystem::create_directories(folder_, error);
  if (error) {
    return absl::UnavailableError(absl::StrCat(folder_, ": ", error.message()));
  }
  KVTIER_RETURN_IF_ERROR(CheckFormat());
  KVTIER_RETURN_IF_ERROR(OpenDb());
  // Only after OpenDb: now nobody else has this folder open.
  return EmptyStaging();
}

// The format is a file of its own, so that another version is refused before RocksDB changes
// anything.
absl::Status RocksDbTier::CheckFormat() {
  const auto exists = [&](const std::string& path) {
    return Rocks(path, [&] { return env_->FileExists(path); }).ok();
  };
  if (exists(FormatFile())) {
    std::string text;
    KVTIER_RETURN_IF_ERROR(
        Rocks(FormatFile(), [&] { return rocksdb::ReadFileToString(env_, FormatFile(), &text); }));
    const absl::Status ours = disk_format::CheckFormatFile(text);
    if (ours.ok()) return ours;
    return absl::Status(ours.code(), absl::StrCat(folder_, ": ", ours.message()));
  }
  if (exists(DbFolder() + "/CURRENT")) {
    return absl::FailedPreconditionError(
        absl::StrCat(folder_, ": has a database but no FORMAT file; not a kvtier store"));
  }
  const std::string temporary = FormatFile() + ".new";
  return Rocks(FormatFile(), [&] {
    rocksdb::Status status = rocksdb::WriteStringToFile(env_, disk_format::EncodeFormatFile(),
                                                        temporary, /*should_sync=*/true);
    if (status.ok()) status = env_->RenameFile(temporary, FormatFile());
    std::unique_ptr<rocksdb::Directory> directory;
    if (status.ok()) status = env_->NewDirectory(folder_, &directory);
    if (status.ok()) status = directory->Fsync();
    return status;
  });
}

absl::Status RocksDbTier::OpenDb() {
  const std::vector<rocksdb::ColumnFamilyDescriptor> families = {
      {rocksdb::kDefaultColumnFamilyName, MakeRecordsOptions()},
      {kSegmentsFamily, MakeSegmentsOptions()},
      {kObjectsFamily, MakeRecordsOptions()},
      {kResidencyFamily, MakeRecordsOptions()},
  };
  rocksdb::DBOptions options = MakeDbOptions(env_);
  std::vector<rocksdb::ColumnFamilyHandle*> handles;
  rocksdb::DB* db = nullptr;
  const auto open = [&] {
    return Rocks(absl::StrCat("open ", DbFolder()),
                 [&] { return rocksdb::DB::Open(options, DbFolder(), families, &handles, &db); });
  };
  absl::Status opened = open();
  if (absl::IsDataLoss(opened)) {
    // One damaged file must not take every object with it: without paranoid checks RocksDB opens
    // the rest, and reading the damaged band says DATA_LOSS.
    KVTIER_LOG(ERROR) << opened.message() << "; opening what is intact";
    options.paranoid_checks = false;
    opened = open();
  }
  if (absl::StrContains(opened.message(), "lock ") && absl::StrContains(opened.message(), "LOCK")) {
    return absl::FailedPreconditionError(
        absl::StrCat(folder_, ": in use by another process: ", opened.message()));
  }
  KVTIER_RETURN_IF_ERROR(opened);
  db_.reset(db);
  default_ = handles[0];
  segments_ = handles[1];
  objects_ = handles[2];
  residency_ = handles[3];
  // Marks the log: see EnsureWritable.
  return Rocks("mark the log",
               [&] { return db_->Put(rocksdb::WriteOptions(), default_, kLogMarkKey, ""); });
}

absl::Status RocksDbTier::EmptyStaging() {
  KVTIER_RETURN_IF_ERROR(Rocks(StagingFolder(), [&] {
    rocksdb::Status status = env_->CreateDirIfMissing(StagingFolder());
    std::vector<std::string> names;
    if (status.ok()) status = env_->GetChildren(StagingFolder(), &names);
    for (const std::string& name : names) {
      if (!status.ok()) break;
      if (name != "." && name != "..") status = env_->DeleteFile(StagingFolder() + "/" + name);
    }
    return status;
  }));
  return absl::OkStatus();
}

// --- Bands in ------------------------------------------------------------------------------------

absl::Status RocksDbTier::PutBand(const Manifest& manifest, BandIndex band,
                                  std::span<const SegmentRef> layers) {
  KVTIER_RETURN_IF_ERROR(CheckBandSegments(manifest, band, layers));
  const UploadId& upload = manifest.upload_id;
  const Turns::Turn turn = TakeTurn(upload);
  // A lingering file of this band would overlap the new one.
  KVTIER_RETURN_IF_ERROR(Reclaim(upload));

  const uint64_t charge = disk_format::BandChargeBytes(manifest.bands[band.value()]);
  {
    MutexLock lock(&mutex_);
    const auto found = uploads_.find(upload);
    const size_t band_count = found == uploads_.end() ? 0 : found->second.charges.size();
    if (band.value() != band_count) {
      return NotNextBandError(manifest, band, static_cast<uint32_t>(band_count));
    }
    if (budget_bytes_ != 0 &&
        (used_bytes_ > budget_bytes_ || charge > budget_bytes_ - used_bytes_)) {
      return absl::ResourceExhaustedError(absl::StrCat("disk budget of ", budget_bytes_,
                                                       " bytes: ", used_bytes_, " in use, ", charge,
                                                       " more needed"));
    }
    used_bytes_ += charge;
  }

  KVTIER_SYNC_POINT("store.put_band.before_file");
  const std::string file = charge == 0 ? "" : StagedFile(upload, band);
  const absl::Status written = WriteBandFile(file, manifest, band, layers);
  KVTIER_SYNC_POINT("store.put_band.after_file");

  MutexLock lock(&mutex_);
  if (!written.ok()) {
    used_bytes_ -= charge;
    return written;
  }
  UploadState& state = uploads_[upload];
  state.charges.push_back(charge);
  state.staged.push_back({file, {layers.begin(), layers.end()}});
  return absl::OkStatus();
}

// Leaves no file unless it is whole.
absl::Status RocksDbTier::WriteBandFile(const std::string& file, const Manifest& manifest,
                                        BandIndex band, std::span<const SegmentRef> layers) {
  if (file.empty()) return absl::OkStatus();
  const absl::Status written = Rocks(absl::StrCat("write ", file), [&] {
    rocksdb::SstFileWriter writer(rocksdb::EnvOptions(),
                                  rocksdb::Options(MakeDbOptions(env_), MakeSegmentsOptions()),
                                  segments_, /*invalidate_page_cache=*/false);
    rocksdb::Status status = writer.Open(file);
    for (uint32_t layer = 0; layer < layers.size(); ++layer) {
      const absl::string_view bytes = AsStringView(layers[layer].bytes());
      for (uint64_t begin = 0; status.ok() && begin < bytes.size();
           begin += disk_format::kPartBytes) {
        const uint32_t part = static_cast<uint32_t>(begin / disk_format::kPartBytes);
        status = writer.Put(disk_format::PartKey(manifest.upload_id, band, LayerIndex(layer), part),
                            ToSlice(bytes.substr(begin, disk_format::kPartBytes)));
      }
    }
    if (status.ok()) status = writer.Finish();  // Syncs the file.
    return status;
  });
  if (!written.ok()) {
    const absl::Status removed = Rocks(file, [&] { return env_->DeleteFile(file); });
    if (!removed.ok()) KVTIER_LOG(WARNING) << "left for the next start: " << removed.message();
  }
  return written;
}

// All staged bands at once: RocksDB takes a group of files in atomically.
absl::Status RocksDbTier::IngestStaged(const UploadId& upload) {
  std::vector<std::string> files;
  {
    MutexLock lock(&mutex_);
    for (const StagedBand& band : uploads_[upload].staged) {
      if (!band.file.empty()) files.push_back(band.file);
    }
  }
  if (!files.empty()) {
    rocksdb::IngestExternalFileOptions options;
    options.move_files = true;
    options.failed_move_fall_back_to_copy = false;  // Same folder: a hard link always works.
    options.snapshot_consistency = false;
    options.write_global_seqno = false;
    KVTIER_RETURN_IF_ERROR(
        Rocks("ingest", [&] { return db_->IngestExternalFile(segments_, files, options); }));
  }
  std::vector<StagedBand> staged;  // Releases the segments after the lock.
  MutexLock lock(&mutex_);
  UploadState& state = uploads_[upload];
  staged.swap(state.staged);
  state.ingested = static_cast<uint32_t>(state.charges.size());
  state.reclaim_end = std::max(state.reclaim_end, state.ingested);
  return absl::OkStatus();
}

absl::Status RocksDbTier::SealPrefix(const TenantId& tenant, const Manifest& manifest,
                                     uint32_t band_count, absl::Time sealed_at) {
  const UploadId& upload = manifest.upload_id;
  const Turns::Turn turn = TakeTurn(upload);
  if (const uint32_t here = BandCount(upload); band_count == 0 || here != band_count) {
    return absl::FailedPreconditionError(absl::StrCat("upload ", upload.ToHex(), ": ", here,
                                                      " bands are here, ", band_count,
                                                      " are to be sealed"));
  }
  KVTIER_SYNC_POINT("store.seal.before_segments");
  KVTIER_RETURN_IF_ERROR(IngestStaged(upload));
  KVTIER_SYNC_POINT("store.seal.before_manifest");

  rocksdb::WriteBatch batch;
  KVTIER_RETURN_IF_ERROR(Rocks("object record", [&] {
    rocksdb::Status status =
        batch.Put(objects_, disk_format::ObjectRecordKey(tenant, manifest.key),
                  disk_format::EncodeObjectRecord(tenant, manifest, sealed_at));
    if (!status.ok()) return status;
    return batch.Put(residency_, ToSlice(upload.AsStringView()),
                     disk_format::EncodeResidencyRecord(upload, band_count));
  }));
  KVTIER_RETURN_IF_ERROR(WriteSynced("write the object record", &batch));
  KVTIER_SYNC_POINT("store.seal.after_manifest");

  MutexLock lock(&mutex_);
  const ObjectName name{tenant, manifest.key};
  current_[name] = upload;
  UploadState& state = uploads_[upload];
  state.recorded_bands = band_count;
  state.name = name;
  return absl::OkStatus();
}

// --- Segments out --------------------------------------------------------------------------------

absl::StatusOr<SegmentRef> RocksDbTier::Get(const Manifest& manifest, BandIndex band,
                                            LayerIndex layer) {
  {
    MutexLock lock(&mutex_);
    const auto found = uploads_.find(manifest.upload_id);
    if (found == uploads_.end() || band.value() >= found->second.charges.size() ||
        layer.value() >= manifest.geometry.layer_count()) {
      return absl::NotFoundError("");
    }
    const UploadState& state = found->second;
    if (band.value() >= state.ingested) {
      return state.staged[band.value() - state.ingested].segments[layer.value()];
    }
  }
  absl::StatusOr<SegmentRef> segment = ReadSegment(manifest, band, layer);
  // Dropped while we read: a miss, not a loss.
  if (!segment.ok() && BandCount(manifest.upload_id) <= band.value()) {
    return absl::NotFoundError("");
  }
  return segment;
}

absl::StatusOr<SegmentRef> RocksDbTier::ReadSegment(const Manifest& manifest, BandIndex band,
                                                    LayerIndex layer) {
  const SegmentEntry& entry = manifest.segment(band, layer);
  const auto where = [&] {
    return ToString(SegmentId{TenantId(), manifest.key, manifest.upload_id, band, layer});
  };
  KVTIER_ASSIGN_OR_RETURN(
      AlignedBytes bytes,
      AlignedBytes::TryAllocate(entry.encoded_bytes(), AlignedBytes::Fill::kUninitialized));
  rocksdb::ReadOptions options;
  options.verify_checksums = false;  // Ours covers the payload, and the hardware computes it.
  options.fill_cache = false;
  rocksdb::PinnableSlice part;
  for (uint64_t begin = 0; begin < bytes.size(); begin += disk_format::kPartBytes) {
    const std::string key = disk_format::PartKey(
        manifest.upload_id, band, layer, static_cast<uint32_t>(begin / disk_format::kPartBytes));
    bool is_missing = false;
    part.Reset();
    const absl::Status read = Rocks("read", [&] {
      const rocksdb::Status status = db_->Get(options, segments_, key, &part);
      is_missing = status.IsNotFound();
      return is_missing ? rocksdb::Status::OK() : status;
    });
    if (!read.ok()) {
      return absl::Status(read.code(), absl::StrCat(where(), ": ", read.message()));
    }
    if (is_missing || part.size() != std::min(disk_format::kPartBytes, bytes.size() - begin)) {
      return absl::DataLossError(absl::StrCat(where(), ": bytes from ", begin, " on are missing"));
    }
    std::memcpy(bytes.data() + begin, part.data(), part.size());
  }
  const absl::Status intact =
      VerifySegment(entry, HeadRange{0, manifest.geometry.kv_heads}, bytes.span());
  if (!intact.ok()) {
    return absl::DataLossError(absl::StrCat(where(), ": ", intact.message()));
  }
  return SegmentRef::Own(std::move(bytes));
}

uint32_t RocksDbTier::BandCount(const UploadId& upload) {
  MutexLock lock(&mutex_);
  const auto found = uploads_.find(upload);
  return found == uploads_.end() ? 0 : static_cast<uint32_t>(found->second.charges.size());
}

TierUsage RocksDbTier::Usage() {
  MutexLock lock(&mutex_);
  return {.bytes = used_bytes_, .budget_bytes = budget_bytes_};
}

// --- Bands out -----------------------------------------------------------------------------------

absl::Status RocksDbTier::EnsureWritable() {
  if (!log_doubtful_) return absl::OkStatus();
  // Flushing starts a new log, and with the old one the doubtful record goes. RocksDB does neither
  // for empty memtables, hence the mark.
  KVTIER_RETURN_IF_ERROR(Rocks("resume after a failed write", [&] {
    rocksdb::Status status = db_->Resume();
    if (status.ok())
      status = db_->Flush(rocksdb::FlushOptions(), {default_, segments_, objects_, residency_});
    if (status.ok()) status = db_->Put(rocksdb::WriteOptions(), default_, kLogMarkKey, "");
    return status;
  }));
  log_doubtful_ = false;
  return absl::OkStatus();
}

absl::Status RocksDbTier::WriteSynced(absl::string_view doing, rocksdb::WriteBatch* batch) {
  const Turns::Turn turn = log_turns_.Take(kLogTurn);
  KVTIER_RETURN_IF_ERROR(EnsureWritable());
  rocksdb::WriteOptions options;
  options.sync = true;
  const absl::Status written = Rocks(doing, [&] { return db_->Write(options, batch); });
  if (!written.ok()) {
    log_doubtful_ = true;
    const absl::Status writable = EnsureWritable();
    if (!writable.ok()) KVTIER_LOG(ERROR) << folder_ << ": " << writable.message();
  }
  return written;
}

absl::Status RocksDbTier::LowerRecord(const UploadId& upload, uint32_t band_count) {
  bool is_lower = true;
  std::optional<ObjectName> named;  // The object record goes with the last band.
  {
    MutexLock lock(&mutex_);
    const auto found = uploads_.find(upload);
    if (found != uploads_.end() && found->second.recorded_bands > band_count) {
      is_lower = false;
      const std::optional<ObjectName>& name = found->second.name;
      if (band_count == 0 && name.has_value()) {
        const auto current = current_.find(*name);
        if (current != current_.end() && current->second == upload) named = name;
      }
    }
  }
  if (is_lower) {
    // Unless a Seal failed in such a way that its record may be in the log.
    const Turns::Turn turn = log_turns_.Take(kLogTurn);
    return EnsureWritable();
  }
  rocksdb::WriteBatch batch;
  KVTIER_RETURN_IF_ERROR(Rocks("residency record", [&] {
    if (band_count > 0) {
      return batch.Put(residency_, ToSlice(upload.AsStringView()),
                       disk_format::EncodeResidencyRecord(upload, band_count));
    }
    rocksdb::Status status = batch.Delete(residency_, ToSlice(upload.AsStringView()));
    if (status.ok() && named.has_value()) {
      status = batch.Delete(objects_, disk_format::ObjectRecordKey(named->tenant, named->key));
    }
    return status;
  }));
  KVTIER_SYNC_POINT("store.drop.before_record");
  KVTIER_RETURN_IF_ERROR(WriteSynced("lower the residency record", &batch));
  KVTIER_SYNC_POINT("store.drop.after_record");
  MutexLock lock(&mutex_);
  uploads_[upload].recorded_bands = band_count;
  if (named.has_value()) current_.erase(*named);
  return absl::OkStatus();
}

absl::Status RocksDbTier::LowerResidency(const UploadId& upload, uint32_t band_count) {
  const Turns::Turn turn = TakeTurn(upload);
  return LowerRecord(upload, band_count);
}

absl::Status RocksDbTier::DropBands(const UploadId& upload, uint32_t band_count) {
  const Turns::Turn turn = TakeTurn(upload);
  KVTIER_RETURN_IF_ERROR(LowerRecord(upload, band_count));
  std::vector<StagedBand> unstaged;  // Releases the segments after the lock.
  {
    MutexLock lock(&mutex_);
    const auto found = uploads_.find(upload);
    if (found == uploads_.end()) return absl::OkStatus();
    UploadState& state = found->second;
    while (state.charges.size() > band_count) {
      if (state.charges.size() > state.ingested) {
        used_bytes_ -= state.charges.back();
        unstaged.push_back(std::move(state.staged.back()));
        state.staged.pop_back();
      } else {
        state.unreclaimed_bytes += state.charges.back();
        --state.ingested;
      }
      state.charges.pop_back();
    }
  }
  absl::Status removed;
  for (const StagedBand& band : unstaged) {
    if (!band.file.empty()) {
      removed.Update(Rocks(band.file, [&] { return env_->DeleteFile(band.file); }));
    }
  }
  removed.Update(Reclaim(upload));
  return removed;
}

absl::Status RocksDbTier::Unseal(const TenantId& tenant, const Key& key, const UploadId& upload) {
  {
    MutexLock lock(&mutex_);
    const auto current = current_.find(ObjectName{tenant, key});
    if (current == current_.end() || current->second != upload) return absl::OkStatus();
  }
  return DropBands(upload, 0);
}

// One call removes all bands above the record, in one version edit of RocksDB: they go together,
// which is at least as good as highest first.
absl::Status RocksDbTier::Reclaim(const UploadId& upload) {
  KeyRange range;
  {
    MutexLock lock(&mutex_);
    const auto found = uploads_.find(upload);
    if (found == uploads_.end()) return absl::OkStatus();
    const UploadState& state = found->second;
    if (state.reclaim_end > state.ingested) {
      range = {disk_format::BandBegin(upload, BandIndex(state.ingested)),
               disk_format::UploadEnd(upload)};
    }
  }
  if (!range.begin.empty()) KVTIER_RETURN_IF_ERROR(RemoveRange(range));
  MutexLock lock(&mutex_);
  const auto found = uploads_.find(upload);
  UploadState& state = found->second;
  used_bytes_ -= std::exchange(state.unreclaimed_bytes, 0);
  state.reclaim_end = state.ingested;
  if (state.charges.empty()) uploads_.erase(found);
  return absl::OkStatus();
}

absl::Status RocksDbTier::RemoveRange(const KeyRange& range) {
  const rocksdb::Slice begin = range.begin;
  const rocksdb::Slice end = range.end;
  KVTIER_RETURN_IF_ERROR(Rocks("remove segments", [&] {
    return rocksdb::DeleteFilesInRange(db_.get(), segments_, &begin, &end, /*include_end=*/false);
  }));
  KVTIER_SYNC_POINT("store.drop.after_segments");
  // A band is a file, so nothing is left, unless RocksDB put it on level 0 (it does when a band is
  // put again over a tombstone). Those keys take the long way.
  bool has_remnants = false;
  rocksdb::ReadOptions options;
  options.iterate_upper_bound = &end;
  options.verify_checksums = false;
  KVTIER_RETURN_IF_ERROR(Rocks("look for remnants", [&] {
    const std::unique_ptr<rocksdb::Iterator> keys(db_->NewIterator(options, segments_));
    keys->Seek(begin);
    has_remnants = keys->Valid();
    return rocksdb::Status::OK();  // A file that cannot be read has nothing to offer.
  }));
  if (!has_remnants) return absl::OkStatus();
  return Rocks("remove remnants", [&] {
    rocksdb::Status status = db_->DeleteRange(rocksdb::WriteOptions(), segments_, begin, end);
    if (status.ok()) {
      status = db_->CompactRange(rocksdb::CompactRangeOptions(), segments_, &begin, &end);
    }
    return status;
  });
}

// --- Start-up ------------------------------------------------------------------------------------

void RocksDbTier::ForgetRecord(rocksdb::ColumnFamilyHandle* family, absl::string_view key,
                               const absl::Status& why, rocksdb::WriteBatch* batch) {
  KVTIER_LOG(ERROR) << folder_ << ": " << family->GetName()
                    << " record given up: " << why.message();
  batch->Delete(family, ToSlice(key)).PermitUncheckedError();
  MutexLock lock(&mutex_);
  ++counters_.records_lost;
}

// Intact pairs of records; what is not intact is removed.
absl::Status RocksDbTier::ScanRecords(std::map<UploadId, SealedObject>* sealed) {
  std::map<UploadId, uint32_t> resident;
  rocksdb::WriteBatch batch;
  const auto scan = [&](rocksdb::ColumnFamilyHandle* family, auto visit) {
    return Rocks("read records", [&] {
      const std::unique_ptr<rocksdb::Iterator> records(
          db_->NewIterator(rocksdb::ReadOptions(), family));
      for (records->SeekToFirst(); records->Valid(); records->Next()) {
        visit(ToView(records->key()), ToView(records->value()));
      }
      // A damaged file of records ends the scan: what it held is lost, the rest is served.
      const rocksdb::Status status = records->status();
      if (!status.IsCorruption()) return status;
      KVTIER_LOG(ERROR) << folder_ << ": " << status.ToString();
      MutexLock lock(&mutex_);
      ++counters_.records_lost;
      return rocksdb::Status::OK();
    });
  };
  KVTIER_RETURN_IF_ERROR(scan(residency_, [&](absl::string_view key, absl::string_view value) {
    const absl::StatusOr<UploadId> upload = UploadId::FromBytes(key);
    if (!upload.ok()) return ForgetRecord(residency_, key, upload.status(), &batch);
    const absl::StatusOr<uint32_t> bands = disk_format::DecodeResidencyRecord(*upload, value);
    if (!bands.ok()) return ForgetRecord(residency_, key, bands.status(), &batch);
    resident[*upload] = *bands;
  }));
  KVTIER_RETURN_IF_ERROR(scan(objects_, [&](absl::string_view key, absl::string_view value) {
    absl::StatusOr<disk_format::ObjectRecord> record = disk_format::DecodeObjectRecord(key, value);
    if (!record.ok()) return ForgetRecord(objects_, key, record.status(), &batch);
    const UploadId upload = record->manifest.upload_id;
    const auto bands = resident.find(upload);
    if (bands == resident.end() || bands->second == 0 ||
        bands->second > record->manifest.bands.size()) {
      return ForgetRecord(objects_, key, absl::DataLossError("no residency record"), &batch);
    }
    (*sealed)[upload] = SealedObject{std::move(record->name.tenant),
                                     std::make_shared<const Manifest>(std::move(record->manifest)),
                                     bands->second, record->sealed_at};
  }));
  for (const auto& [upload, bands] : resident) {
    if (sealed->contains(upload)) continue;  // Else its object was replaced, removed or lost.
    batch.Delete(residency_, ToSlice(upload.AsStringView())).PermitUncheckedError();
  }
  if (batch.Count() == 0) return absl::OkStatus();
  return WriteSynced("remove stale records", &batch);
}

// Removes the files that no record names, and lowers records whose files are not there.
absl::Status RocksDbTier::RemoveUnnamed(std::map<UploadId, SealedObject>* sealed) {
  rocksdb::ColumnFamilyMetaData metadata;
  std::map<UploadId, std::set<uint32_t>> bands_there;
  std::map<UploadId, uint32_t> first_unnamed;
  KVTIER_RETURN_IF_ERROR(Rocks("list files", [&] {
    db_->GetColumnFamilyMetaData(segments_, &metadata);
    return rocksdb::Status::OK();
  }));
  for (const rocksdb::LevelMetaData& level : metadata.levels) {
    for (const rocksdb::SstFileMetaData& file : level.files) {
      const auto first = disk_format::ParsePartKey(file.smallestkey);
      const auto last = disk_format::ParsePartKey(file.largestkey);
      if (!first.has_value() || !last.has_value() || first->upload != last->upload ||
          first->band != last->band) {
        continue;  // Tombstones of remnants.
      }
      const auto object = sealed->find(first->upload);
      const uint32_t named = object == sealed->end() ? 0 : object->second.resident_bands;
      if (first->band.value() >= named) {
        first_unnamed[first->upload] = named;
      } else {
        bands_there[first->upload].insert(first->band.value());
      }
    }
  }
  for (const auto& [upload, band] : first_unnamed) {
    KVTIER_RETURN_IF_ERROR(RemoveRange(
        {disk_format::BandBegin(upload, BandIndex(band)), disk_format::UploadEnd(upload)}));
    KVTIER_SYNC_POINT("store.recover.after_orphan");
    MutexLock lock(&mutex_);
    ++counters_.orphans_removed;
  }
  for (auto& [upload, object] : *sealed) {
    uint32_t whole = 0;
    while (whole < object.resident_bands && (object.manifest->bands[whole].encoded_bytes() == 0 ||
                                             bands_there[upload].contains(whole))) {
      ++whole;
    }
    if (whole == object.resident_bands) continue;
    KVTIER_LOG(ERROR) << folder_ << ": upload " << upload.ToHex() << " has lost its bands from "
                      << whole << " on";
    MutexLock lock(&mutex_);
    counters_.bands_lost += object.resident_bands - whole;
    object.resident_bands = whole;
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<SealedObject>> RocksDbTier::Recover() {
  std::map<UploadId, SealedObject> sealed;
  KVTIER_RETURN_IF_ERROR(ScanRecords(&sealed));
  std::map<UploadId, uint32_t> recorded;
  for (const auto& [upload, object] : sealed) recorded[upload] = object.resident_bands;
  KVTIER_RETURN_IF_ERROR(RemoveUnnamed(&sealed));

  std::vector<SealedObject> objects;
  std::vector<UploadId> lowered;
  for (auto& [upload, object] : sealed) {
    if (object.resident_bands != recorded[upload]) lowered.push_back(upload);
    MutexLock lock(&mutex_);
    UploadState& state = uploads_[upload];
    for (uint32_t band = 0; band < object.resident_bands; ++band) {
      state.charges.push_back(disk_format::BandChargeBytes(object.manifest->bands[band]));
      used_bytes_ += state.charges.back();
    }
    state.ingested = object.resident_bands;
    state.reclaim_end = recorded[upload];
    state.recorded_bands = recorded[upload];
    state.name = ObjectName{object.tenant, object.manifest->key};
    current_[*state.name] = upload;
    if (object.resident_bands > 0) objects.push_back(std::move(object));
  }
  for (const UploadId& upload : lowered) {
    KVTIER_RETURN_IF_ERROR(DropBands(upload, BandCount(upload)));
  }
  return objects;
}

}  // namespace

absl::StatusOr<std::unique_ptr<DurableTier>> OpenRocksDbTier(const RocksDbTierOptions& options) {
  rocksdb::Env* const env = options.env != nullptr ? options.env : rocksdb::Env::Default();
  auto tier = std::make_unique<RocksDbTier>(options, env);
  KVTIER_RETURN_IF_ERROR(tier->Open());
  return tier;
}

}  // namespace kvtier
