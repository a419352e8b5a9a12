#include "store/rocksdb_tier.h"

#include <algorithm>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/aligned_bytes.h"
#include "base/log.h"
#include "base/status_macros.h"
#include "base/sync_point.h"
#include "kvcache/segment.h"
#include "store/disk_format.h"
#include "store/rocksdb_files.h"
#include "store/rocksdb_tier_impl.h"

namespace kvtier {

// --- Bands in ------------------------------------------------------------------------------------

absl::Status RocksDbTier::PutBand(const Manifest& manifest, BandIndex band,
                                  std::span<const SegmentRef> layers) {
  KVTIER_RETURN_IF_ERROR(CheckBandSegments(manifest, band, layers));
  const UploadId& upload = manifest.upload_id;
  const Turns::Turn turn = TakeTurn(upload);
  // A lingering file of this band would overlap the new one.
  KVTIER_RETURN_IF_ERROR(Reclaim(upload));

  const uint64_t charge = ChargeOf(manifest.bands[band.value()]);
  {
    MutexLock lock(&mutex_);
    const auto found = uploads_.find(upload);
    const size_t band_count = found == uploads_.end() ? 0 : found->second.charges.size();
    if (band.value() != band_count) {
      return NotNextBandError(manifest, band, static_cast<uint32_t>(band_count));
    }
    if (options_.budget_bytes != 0 &&
        (used_bytes_ > options_.budget_bytes || charge > options_.budget_bytes - used_bytes_)) {
      return absl::ResourceExhaustedError(absl::StrCat("disk budget of ", options_.budget_bytes,
                                                       " bytes: ", used_bytes_, " in use, ", charge,
                                                       " more needed"));
    }
    used_bytes_ += charge;
  }

  KVTIER_SYNC_POINT("store.put_band.before_file");
  const bool is_empty = manifest.bands[band.value()].encoded_bytes() == 0;
  const std::string file = is_empty ? "" : StagedFile(upload, band);
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

absl::Status RocksDbTier::WriteBandFile(const std::string& file, const Manifest& manifest,
                                        BandIndex band, std::span<const SegmentRef> layers) {
  std::vector<RocksDbDatabase::Part> parts;
  for (uint32_t layer = 0; layer < layers.size(); ++layer) {
    const ByteSpan bytes = layers[layer].bytes();
    for (uint64_t begin = 0; begin < bytes.size(); begin += disk_format::kPartBytes) {
      const uint32_t part = static_cast<uint32_t>(begin / disk_format::kPartBytes);
      const uint64_t size = std::min(disk_format::kPartBytes, bytes.size() - begin);
      parts.push_back({disk_format::PartKey(manifest.upload_id, band, LayerIndex(layer), part),
                       bytes.subspan(begin, size)});
    }
  }
  return parts.empty() ? absl::OkStatus() : database_->WriteSegmentFile(file, parts);
}

// All staged bands at once: RocksDB takes a group of files in atomically.
absl::Status RocksDbTier::IngestStaged(const UploadId& upload) {
  // What an attempt that failed may have left.
  KVTIER_RETURN_IF_ERROR(Reclaim(upload));
  std::vector<std::string> files;
  {
    MutexLock lock(&mutex_);
    UploadState& state = uploads_[upload];
    for (const StagedBand& band : state.staged) {
      if (!band.file.empty()) files.push_back(band.file);
    }
    state.reclaim_end = static_cast<uint32_t>(state.charges.size());
  }
  if (!files.empty()) KVTIER_RETURN_IF_ERROR(database_->IngestSegmentFiles(files));
  std::vector<StagedBand> staged;  // Releases the segments after the lock.
  MutexLock lock(&mutex_);
  UploadState& state = uploads_[upload];
  staged.swap(state.staged);
  state.ingested = static_cast<uint32_t>(state.charges.size());
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

  const RecordChange changes[] = {
      {Family::kObjects, disk_format::ObjectRecordKey(tenant, manifest.key),
       disk_format::EncodeObjectRecord(tenant, manifest, sealed_at)},
      {Family::kResidency, std::string(upload.AsStringView()),
       disk_format::EncodeResidencyRecord(upload, band_count)},
  };
  KVTIER_RETURN_IF_ERROR(database_->WriteRecords(changes));
  KVTIER_SYNC_POINT("store.seal.after_manifest");

  MutexLock lock(&mutex_);
  const ObjectName name{tenant, manifest.key};
  current_[name] = upload;
  UploadState& state = uploads_[upload];
  state.recorded_bands = band_count;
  state.name = name;
  return absl::OkStatus();
}

absl::Status RocksDbTier::SetAttributes(const UploadId& upload,
                                        const ObjectAttributes& attributes) {
  const Turns::Turn turn = TakeTurn(upload);
  {
    MutexLock lock(&mutex_);
    const auto found = uploads_.find(upload);
    if (found == uploads_.end()) {
      return absl::FailedPreconditionError(
          absl::StrCat("upload ", upload.ToHex(), ": no band of it is here to have attributes"));
    }
    if (!found->second.has_attributes && attributes == ObjectAttributes()) {
      return absl::OkStatus();
    }
  }
  const RecordChange change = {Family::kAttributes, std::string(upload.AsStringView()),
                               disk_format::EncodeAttributesRecord(upload, attributes)};
  KVTIER_SYNC_POINT("store.attributes.before_record");
  KVTIER_RETURN_IF_ERROR(database_->WriteRecords({&change, 1}));
  KVTIER_SYNC_POINT("store.attributes.after_record");
  MutexLock lock(&mutex_);
  uploads_[upload].has_attributes = true;
  return absl::OkStatus();
}

// --- Segments out --------------------------------------------------------------------------------

absl::StatusOr<SegmentRef> RocksDbTier::Get(const Manifest& manifest, BandIndex band,
                                            LayerIndex layer) {
  AlignedBytes bytes;
  const auto allocate = [&]() -> absl::StatusOr<MutableByteSpan> {
    KVTIER_ASSIGN_OR_RETURN(bytes,
                            AlignedBytes::TryAllocate(manifest.segment(band, layer).encoded_bytes(),
                                                      AlignedBytes::Fill::kUninitialized));
    return bytes.span();
  };
  KVTIER_ASSIGN_OR_RETURN(const std::optional<SegmentRef> staged,
                          FindOrRead(manifest, band, layer, allocate));
  return staged.has_value() ? *staged : SegmentRef::Own(std::move(bytes));
}

absl::Status RocksDbTier::Read(const Manifest& manifest, BandIndex band, LayerIndex layer,
                               MutableByteSpan out) {
  const auto given = [&]() -> absl::StatusOr<MutableByteSpan> { return out; };
  KVTIER_ASSIGN_OR_RETURN(const std::optional<SegmentRef> staged,
                          FindOrRead(manifest, band, layer, given));
  if (staged.has_value()) std::ranges::copy(staged->bytes(), out.begin());
  return absl::OkStatus();
}

absl::StatusOr<std::optional<SegmentRef>> RocksDbTier::FindOrRead(
    const Manifest& manifest, BandIndex band, LayerIndex layer,
    absl::FunctionRef<absl::StatusOr<MutableByteSpan>()> memory) {
  std::optional<MutableByteSpan> out;
  for (;;) {
    uint64_t drops = 0;
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
      drops = drop_count_;
    }
    if (!out.has_value()) {
      KVTIER_ASSIGN_OR_RETURN(out, memory());
    }
    const absl::Status read = ReadSegment(manifest, band, layer, *out);
    if (read.ok()) return std::nullopt;
    // Dropped while we read, and perhaps put again: look once more. Without a drop it is a loss.
    MutexLock lock(&mutex_);
    if (drops == drop_count_) return read;
  }
}

absl::Status RocksDbTier::ReadSegment(const Manifest& manifest, BandIndex band, LayerIndex layer,
                                      MutableByteSpan bytes) {
  const SegmentEntry& entry = manifest.segment(band, layer);
  const auto where = [&] {
    return ToString(SegmentId{TenantId(), manifest.key, manifest.upload_id, band, layer});
  };
  KVTIER_CHECK_EQ(bytes.size(), entry.encoded_bytes());
  for (uint64_t begin = 0; begin < bytes.size(); begin += disk_format::kPartBytes) {
    const MutableByteSpan out =
        bytes.subspan(begin, std::min(disk_format::kPartBytes, bytes.size() - begin));
    const uint32_t part = static_cast<uint32_t>(begin / disk_format::kPartBytes);
    const absl::StatusOr<size_t> read =
        database_->ReadPart(disk_format::PartKey(manifest.upload_id, band, layer, part), out);
    if (absl::IsNotFound(read.status()) || (read.ok() && *read != out.size())) {
      return absl::DataLossError(absl::StrCat(where(), ": part ", part, " is missing or short"));
    }
    if (!read.ok()) {
      return absl::Status(read.status().code(),
                          absl::StrCat(where(), ": ", read.status().message()));
    }
  }
  const absl::Status intact = VerifySegment(entry, HeadRange{0, manifest.geometry.kv_heads}, bytes);
  if (!intact.ok()) {
    return absl::DataLossError(absl::StrCat(where(), ": ", intact.message()));
  }
  return absl::OkStatus();
}

uint32_t RocksDbTier::BandCount(const UploadId& upload) {
  MutexLock lock(&mutex_);
  const auto found = uploads_.find(upload);
  return found == uploads_.end() ? 0 : static_cast<uint32_t>(found->second.charges.size());
}

uint32_t RocksDbTier::SealedBands(const UploadId& upload) {
  MutexLock lock(&mutex_);
  const auto found = uploads_.find(upload);
  return found == uploads_.end() ? 0 : found->second.recorded_bands;
}

TierUsage RocksDbTier::Usage() {
  MutexLock lock(&mutex_);
  return {.bytes = used_bytes_, .budget_bytes = options_.budget_bytes};
}

// --- Bands out -----------------------------------------------------------------------------------

absl::Status RocksDbTier::LowerRecord(const UploadId& upload, uint32_t band_count) {
  bool is_lower = true;
  bool drops_attributes = false;  // They go with the last band, as does the object record.
  std::optional<ObjectName> named;
  {
    MutexLock lock(&mutex_);
    const auto found = uploads_.find(upload);
    drops_attributes = band_count == 0 && found != uploads_.end() && found->second.has_attributes;
    if (drops_attributes) is_lower = false;
    if (found != uploads_.end() && found->second.recorded_bands > band_count) {
      is_lower = false;
      const std::optional<ObjectName>& name = found->second.name;
      if (band_count == 0 && name.has_value()) {
        const auto current = current_.find(*name);
        if (current != current_.end() && current->second == upload) named = name;
      }
    }
  }
  // A Seal that failed may have left a record in the log; it must not outlive its segments.
  if (is_lower) return database_->EnsureWritable();
  std::vector<RecordChange> changes;
  const std::string key(upload.AsStringView());
  if (band_count > 0) {
    changes.push_back(
        {Family::kResidency, key, disk_format::EncodeResidencyRecord(upload, band_count)});
  } else {
    changes.push_back({Family::kResidency, key, std::nullopt});
    if (named.has_value()) {
      changes.push_back({Family::kObjects, disk_format::ObjectRecordKey(named->tenant, named->key),
                         std::nullopt});
    }
    if (drops_attributes) changes.push_back({Family::kAttributes, key, std::nullopt});
  }
  KVTIER_SYNC_POINT("store.drop.before_record");
  KVTIER_RETURN_IF_ERROR(database_->WriteRecords(changes));
  KVTIER_SYNC_POINT("store.drop.after_record");
  MutexLock lock(&mutex_);
  uploads_[upload].recorded_bands = band_count;
  if (drops_attributes) uploads_[upload].has_attributes = false;
  if (named.has_value()) current_.erase(*named);
  return absl::OkStatus();
}

absl::Status RocksDbTier::LowerResidency(const UploadId& upload, uint32_t band_count) {
  const Turns::Turn turn = TakeTurn(upload);
  return LowerRecord(upload, band_count);
}

absl::Status RocksDbTier::DropBands(const UploadId& upload, uint32_t band_count) {
  const Turns::Turn turn = TakeTurn(upload);
  // No record names a staged band, and a full disk, on which no record can be lowered, needs room.
  absl::Status removed = DropStaged(upload, band_count);
  KVTIER_RETURN_IF_ERROR(LowerRecord(upload, band_count));
  {
    MutexLock lock(&mutex_);
    const auto found = uploads_.find(upload);
    if (found == uploads_.end()) return removed;
    UploadState& state = found->second;
    ++drop_count_;  // Before the first byte goes.
    while (state.charges.size() > band_count) {
      state.unreclaimed_bytes += state.charges.back();
      --state.ingested;
      state.charges.pop_back();
    }
  }
  removed.Update(Reclaim(upload));
  return removed;
}

absl::Status RocksDbTier::DropStaged(const UploadId& upload, uint32_t band_count) {
  std::vector<StagedBand> unstaged;  // Releases the segments after the lock.
  {
    MutexLock lock(&mutex_);
    const auto found = uploads_.find(upload);
    if (found == uploads_.end()) return absl::OkStatus();
    UploadState& state = found->second;
    while (state.charges.size() > std::max(band_count, state.ingested)) {
      used_bytes_ -= state.charges.back();
      unstaged.push_back(std::move(state.staged.back()));
      state.staged.pop_back();
      state.charges.pop_back();
    }
  }
  absl::Status removed;
  for (const StagedBand& band : unstaged) {
    if (!band.file.empty()) removed.Update(rocksdb_files::Remove(options_.env, band.file));
  }
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
  std::optional<BandIndex> first;
  {
    MutexLock lock(&mutex_);
    const auto found = uploads_.find(upload);
    if (found == uploads_.end()) return absl::OkStatus();
    if (found->second.reclaim_end > found->second.ingested) {
      first = BandIndex(found->second.ingested);
    }
  }
  if (first.has_value()) {
    KVTIER_RETURN_IF_ERROR(database_->RemoveSegments(disk_format::BandBegin(upload, *first),
                                                     disk_format::UploadEnd(upload)));
  }
  MutexLock lock(&mutex_);
  const auto found = uploads_.find(upload);
  UploadState& state = found->second;
  used_bytes_ -= std::exchange(state.unreclaimed_bytes, 0);
  state.reclaim_end = state.ingested;
  if (state.charges.empty()) uploads_.erase(found);
  return absl::OkStatus();
}

}  // namespace kvtier
