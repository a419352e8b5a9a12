// What the RocksDB tier writes: keys, records, and the name of the format. Bytes only; RocksDB is
// not seen here. Why it is laid out so: docs/adr/0004-rocksdb-layout.md.
//
//   FORMAT                  text file: "kvtier store format 2\n"
//   LOCK                    empty; flock(2)ed by whoever has the folder open
//   staging/<upload>-<band>.sst   band files of uploads that are not sealed; emptied at every start
//   db/LIST                 how far RocksDB's list of files is synced (store/rocksdb_list_mark.h)
//   db/                     RocksDB, these column families beside the default one:
//     segments   upload id (16 bytes) ++ band ++ layer ++ part (u32 big endian each)
//                  -> at most kPartBytes bytes of the segment, part 0 first
//     objects    tenant name ++ 0x00 ++ key (32 bytes)
//                  -> u32 record version ++ i64 sealed at, ns since 1970 ++ u32 manifest bytes
//                     ++ manifest ++ CRC32C
//     residency  upload id -> u32 bands that are resident ++ CRC32C
//     attributes upload id -> u32 record version ++ u32 flags (bit 0: pinned) ++ i64 expires at, ns
//                  since 1970 (2^63-1: never) ++ CRC32C; no record: not pinned, never expires
//
// Format 1 is the same without `attributes`. A store of format 1 is read as it is, and becomes one
// of format 2 when it is opened for writing: a build that knows only format 1 would lose what is
// pinned, so it refuses the folder by name.
//
// Numbers in values are little endian. The CRC32C of a record covers its key and all before it, so
// that a record is never taken for another's. Segments carry none: the manifest has theirs.
#ifndef KVTIER_STORE_DISK_FORMAT_H_
#define KVTIER_STORE_DISK_FORMAT_H_

#include <cstdint>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "kvcache/ids.h"
#include "kvcache/manifest.h"
#include "store/object_stat.h"

namespace kvtier::disk_format {

inline constexpr uint32_t kStoreFormatVersion = 2;
inline constexpr uint32_t kOldestStoreFormatVersion = 1;
inline constexpr uint32_t kObjectRecordVersion = 1;
inline constexpr uint32_t kAttributesRecordVersion = 1;
// One value of the segments column family. Larger ones were slower to write and no faster to read.
inline constexpr uint64_t kPartBytes = uint64_t{1} << 20;

// Parts of a segment of this size; none for an empty one.
inline uint64_t PartCount(uint64_t segment_bytes) {
  return (segment_bytes + kPartBytes - 1) / kPartBytes;
}

std::string PartKey(const UploadId& upload, BandIndex band, LayerIndex layer, uint32_t part);
// All keys of bands `band` and above of an upload lie in [BandBegin(upload, band),
// UploadEnd(upload)).
std::string BandBegin(const UploadId& upload, BandIndex band);
std::string UploadEnd(const UploadId& upload);

struct PartName {
  UploadId upload;
  BandIndex band;
};
// Nothing for what is not a key of the segments column family.
std::optional<PartName> ParsePartKey(absl::string_view key);

// Disk bytes that a band takes at most, with what RocksDB adds to it. An empty band has no file.
uint64_t BandChargeBytes(const BandEntry& band);

struct ObjectName {
  TenantId tenant;
  Key key;
  friend auto operator<=>(const ObjectName&, const ObjectName&) = default;
};
std::string ObjectRecordKey(const TenantId& tenant, const Key& key);

struct ObjectRecord {
  ObjectName name;
  Manifest manifest;
  absl::Time sealed_at;
};
std::string EncodeObjectRecord(const TenantId& tenant, const Manifest& manifest,
                               absl::Time sealed_at);
// DATA_LOSS: anything but what EncodeObjectRecord wrote under this record key.
absl::StatusOr<ObjectRecord> DecodeObjectRecord(absl::string_view record_key,
                                                absl::string_view value);

std::string EncodeResidencyRecord(const UploadId& upload, uint32_t band_count);
// DATA_LOSS as above.
absl::StatusOr<uint32_t> DecodeResidencyRecord(const UploadId& upload, absl::string_view value);

std::string EncodeAttributesRecord(const UploadId& upload, const ObjectAttributes& attributes);
// DATA_LOSS as above.
absl::StatusOr<ObjectAttributes> DecodeAttributesRecord(const UploadId& upload,
                                                        absl::string_view value);

std::string EncodeFormatFile();
// The version, one that this build reads. FAILED_PRECONDITION: another version (named), or no text
// of ours.
absl::StatusOr<uint32_t> ParseFormatFile(absl::string_view text);

}  // namespace kvtier::disk_format

#endif  // KVTIER_STORE_DISK_FORMAT_H_
