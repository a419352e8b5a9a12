// Start-up: what the records name is served, and what they do not name goes.
#include <map>
#include <set>
#include <utility>

#include "base/log.h"
#include "base/status_macros.h"
#include "base/sync_point.h"
#include "store/rocksdb_tier_impl.h"

namespace kvtier {

void RocksDbTier::GiveUpRecord(Family family, absl::string_view key, const absl::Status& why,
                               std::vector<RecordChange>* changes) {
  KVTIER_LOG(ERROR) << options_.folder << ": record not usable: " << why.message();
  changes->push_back({family, std::string(key), std::nullopt});
  MutexLock lock(&mutex_);
  ++counters_.records_lost;
}

// A damaged block of records ends the scan: what came before it is served. What is behind it may
// be intact, so from now on nothing is deleted for want of a record.
absl::Status RocksDbTier::VisitRecords(
    Family family, absl::FunctionRef<void(absl::string_view, absl::string_view)> visit) {
  const absl::Status visited = database_->VisitRecords(family, visit);
  if (!absl::IsDataLoss(visited)) return visited;
  KVTIER_LOG(ERROR) << options_.folder << ": records cannot be read to the end, so nothing is "
                    << "deleted: " << visited.message();
  is_scan_cut_short_ = true;
  MutexLock lock(&mutex_);
  ++counters_.records_lost;
  return absl::OkStatus();
}

// Objects whose records are intact; what is not intact is removed, if we may.
absl::StatusOr<RocksDbTier::SealedObjects> RocksDbTier::ScanRecords() {
  std::vector<RecordChange> changes;
  std::map<UploadId, uint32_t> resident;
  KVTIER_RETURN_IF_ERROR(
      VisitRecords(Family::kResidency, [&](absl::string_view key, absl::string_view value) {
        const absl::StatusOr<UploadId> upload = UploadId::FromBytes(key);
        const absl::StatusOr<uint32_t> bands =
            upload.ok() ? disk_format::DecodeResidencyRecord(*upload, value) : upload.status();
        if (!bands.ok()) return GiveUpRecord(Family::kResidency, key, bands.status(), &changes);
        resident[*upload] = *bands;
      }));
  SealedObjects sealed;
  KVTIER_RETURN_IF_ERROR(VisitRecords(Family::kObjects, [&](absl::string_view key,
                                                            absl::string_view value) {
    absl::StatusOr<disk_format::ObjectRecord> record = disk_format::DecodeObjectRecord(key, value);
    if (!record.ok()) return GiveUpRecord(Family::kObjects, key, record.status(), &changes);
    const UploadId upload = record->manifest.upload_id;
    const auto bands = resident.find(upload);
    if (bands == resident.end() || bands->second == 0 ||
        bands->second > record->manifest.bands.size()) {
      return GiveUpRecord(Family::kObjects, key, absl::DataLossError("no residency record"),
                          &changes);
    }
    sealed[upload] = SealedObject{std::move(record->name.tenant),
                                  std::make_shared<const Manifest>(std::move(record->manifest)),
                                  bands->second, record->sealed_at, ObjectAttributes()};
  }));
  KVTIER_RETURN_IF_ERROR(
      VisitRecords(Family::kAttributes, [&](absl::string_view key, absl::string_view value) {
        const absl::StatusOr<UploadId> upload = UploadId::FromBytes(key);
        const absl::StatusOr<ObjectAttributes> attributes =
            upload.ok() ? disk_format::DecodeAttributesRecord(*upload, value) : upload.status();
        if (!attributes.ok()) {
          return GiveUpRecord(Family::kAttributes, key, attributes.status(), &changes);
        }
        const auto object = sealed.find(*upload);
        if (object != sealed.end()) {
          object->second.attributes = *attributes;
        } else {  // Of an upload that was not sealed after all, or has gone.
          changes.push_back({Family::kAttributes, std::string(key), std::nullopt});
        }
      }));
  for (const auto& [upload, bands] : resident) {
    if (sealed.contains(upload)) continue;  // Its object was replaced, removed or lost.
    changes.push_back({Family::kResidency, std::string(upload.AsStringView()), std::nullopt});
  }
  if (!changes.empty() && MayDelete()) KVTIER_RETURN_IF_ERROR(database_->WriteRecords(changes));
  return sealed;
}

// Removes the files that no record names, if we may; lowers `resident_bands` where files are not
// there.
absl::Status RocksDbTier::RemoveUnnamed(SealedObjects* sealed) {
  std::map<UploadId, std::set<uint32_t>> bands_there;
  std::map<UploadId, uint32_t> first_unnamed;
  KVTIER_ASSIGN_OR_RETURN(const auto files, database_->ListSegmentFiles());
  for (const RocksDbDatabase::SegmentFile& file : files) {
    const auto first = disk_format::ParsePartKey(file.first_key);
    if (!first.has_value()) continue;
    const auto object = sealed->find(first->upload);
    const uint32_t named = object == sealed->end() ? 0 : object->second.resident_bands;
    if (first->band.value() >= named) {
      first_unnamed[first->upload] = named;
    } else {
      bands_there[first->upload].insert(first->band.value());
    }
  }
  if (!MayDelete()) first_unnamed.clear();
  for (const auto& [upload, band] : first_unnamed) {
    KVTIER_RETURN_IF_ERROR(database_->RemoveSegments(
        disk_format::BandBegin(upload, BandIndex(band)), disk_format::UploadEnd(upload)));
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
    KVTIER_LOG(ERROR) << options_.folder << ": upload " << upload.ToHex()
                      << " has lost its bands from " << whole << " on";
    MutexLock lock(&mutex_);
    counters_.bands_lost += object.resident_bands - whole;
    object.resident_bands = whole;
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<SealedObject>> RocksDbTier::Recover() {
  KVTIER_ASSIGN_OR_RETURN(SealedObjects sealed, ScanRecords());
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
      state.charges.push_back(ChargeOf(object.manifest->bands[band]));
      used_bytes_ += state.charges.back();
    }
    state.ingested = object.resident_bands;
    state.reclaim_end = recorded[upload];
    state.recorded_bands = recorded[upload];
    state.name = ObjectName{object.tenant, object.manifest->key};
    state.has_attributes = object.attributes != ObjectAttributes();
    current_[*state.name] = upload;
    if (object.resident_bands > 0) objects.push_back(std::move(object));
  }
  if (!MayDelete()) lowered.clear();
  for (const UploadId& upload : lowered) {
    KVTIER_RETURN_IF_ERROR(DropBands(upload, BandCount(upload)));
  }
  return objects;
}

}  // namespace kvtier
