#include "store/rocksdb_torn_list.h"

#include <algorithm>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "base/bytes.h"
#include "base/crc32c.h"
#include "base/status_macros.h"
#include "rocksdb/env.h"
#include "rocksdb/file_system.h"
#include "store/rocksdb_files.h"
#include "store/rocksdb_status.h"

namespace kvtier {
namespace {

// --- RocksDB's log format ------------------------------------------------------------------------
//
// https://github.com/facebook/rocksdb/wiki/Write-Ahead-Log-File-Format: blocks of 32 KiB, in them
// records of CRC32C (4 bytes, masked, of type and payload), length (2), type (1), payload; little
// endian. An entry is one full record, or a first, any middle and a last one in adjacent blocks.
// What is left of a block and too short for a header is not used.

constexpr uint64_t kBlockBytes = 32 << 10;
constexpr uint64_t kHeaderBytes = 7;
constexpr uint64_t kSectorBytes = 512;  // The least that a disk loses; pages are multiples of it.
enum RecordType : uint8_t { kFull = 1, kFirst = 2, kMiddle = 3, kLast = 4 };

struct Record {
  uint8_t type;
  uint64_t end;
};

uint64_t ByteAt(absl::string_view list, uint64_t at) {
  return static_cast<unsigned char>(list[at]);
}

uint64_t PastTrailer(uint64_t at) {
  const uint64_t left = kBlockBytes - at % kBlockBytes;
  return left < kHeaderBytes ? at + left : at;
}

// The record that begins at `at`, if there is a whole one.
std::optional<Record> RecordAt(absl::string_view list, uint64_t at) {
  if (at + kHeaderBytes > list.size()) return std::nullopt;
  const uint64_t bytes = ByteAt(list, at + 4) | ByteAt(list, at + 5) << 8;
  const auto type = static_cast<uint8_t>(list[at + 6]);
  const uint64_t end = at + kHeaderBytes + bytes;
  if (type < kFull || type > kLast) return std::nullopt;
  if (end > list.size() || at % kBlockBytes + kHeaderBytes + bytes > kBlockBytes) {
    return std::nullopt;
  }
  const absl::string_view covered = list.substr(at + 6, 1 + bytes);
  const uint32_t crc = ComputeCrc32c(AsBytes(covered)).value();
  const uint32_t masked = ((crc >> 15) | (crc << 17)) + 0xa282ead8u;
  uint32_t stored = 0;
  for (uint64_t i = 0; i < 4; ++i) stored |= static_cast<uint32_t>(ByteAt(list, at + i) << (8 * i));
  if (stored != masked) return std::nullopt;
  return Record{type, end};
}

// Where the entry that begins at `at` ends, if it is whole.
std::optional<uint64_t> EntryEnd(absl::string_view list, uint64_t at) {
  std::optional<Record> record = RecordAt(list, at);
  if (!record.has_value() || (record->type != kFull && record->type != kFirst)) return std::nullopt;
  while (record->type != kFull && record->type != kLast) {
    record = RecordAt(list, PastTrailer(record->end));
    if (!record.has_value() || (record->type != kMiddle && record->type != kLast)) {
      return std::nullopt;
    }
  }
  return record->end;
}

// Whether a sector of what begins at `begin` was lost. A few zeros are in most entries: fewer of
// them than a header count only where the first record begins, whose checksum they would be.
bool HasLostSector(absl::string_view list, uint64_t begin) {
  for (uint64_t at = begin; at < list.size();) {
    const uint64_t next = std::min<uint64_t>(list.size(), (at / kSectorBytes + 1) * kSectorBytes);
    const absl::string_view sector = list.substr(at, next - at);
    const bool is_evidence = at == begin || sector.size() > kHeaderBytes;
    if (is_evidence && std::ranges::all_of(sector, [](char byte) { return byte == 0; }))
      return true;
    at = next;
  }
  return false;
}

// --- A file that ends earlier --------------------------------------------------------------------

class ShorterFile final : public rocksdb::FSSequentialFileOwnerWrapper {
 public:
  ShorterFile(std::unique_ptr<rocksdb::FSSequentialFile> file, uint64_t bytes)
      : FSSequentialFileOwnerWrapper(std::move(file)), left_(bytes) {}

  rocksdb::IOStatus Read(size_t bytes, const rocksdb::IOOptions& options, rocksdb::Slice* result,
                         char* scratch, rocksdb::IODebugContext* context) override {
    rocksdb::IOStatus status = FSSequentialFileOwnerWrapper::Read(
        std::min<uint64_t>(bytes, left_), options, result, scratch, context);
    if (status.ok()) left_ -= result->size();
    return status;
  }
  rocksdb::IOStatus Skip(uint64_t bytes) override {
    const uint64_t skipped = std::min(bytes, left_);
    left_ -= skipped;
    return FSSequentialFileOwnerWrapper::Skip(skipped);
  }

 private:
  uint64_t left_;
};

class ShorterListFileSystem final : public rocksdb::FileSystemWrapper {
 public:
  ShorterListFileSystem(const std::shared_ptr<rocksdb::FileSystem>& base, TornList list)
      : FileSystemWrapper(base), list_(std::move(list)) {}

  const char* Name() const override { return "ShorterListFileSystem"; }

  rocksdb::IOStatus NewSequentialFile(const std::string& path, const rocksdb::FileOptions& options,
                                      std::unique_ptr<rocksdb::FSSequentialFile>* result,
                                      rocksdb::IODebugContext* context) override {
    rocksdb::FileOptions in_turn = options;
    // Past the page cache a file is read at positions, which a shorter one has no use for.
    if (path == list_.file) in_turn.use_direct_reads = false;
    rocksdb::IOStatus status = FileSystemWrapper::NewSequentialFile(path, in_turn, result, context);
    if (status.ok() && path == list_.file) {
      *result = std::make_unique<ShorterFile>(std::move(*result), list_.whole_bytes);
    }
    return status;
  }
  rocksdb::IOStatus GetFileSize(const std::string& path, const rocksdb::IOOptions& options,
                                uint64_t* bytes, rocksdb::IODebugContext* context) override {
    rocksdb::IOStatus status = FileSystemWrapper::GetFileSize(path, options, bytes, context);
    if (status.ok() && path == list_.file) *bytes = list_.whole_bytes;
    return status;
  }

 private:
  const TornList list_;
};

rocksdb::Env* OrDefault(rocksdb::Env* env) {
  return env != nullptr ? env : rocksdb::Env::Default();
}

}  // namespace

std::optional<uint64_t> FindTornEnd(absl::string_view list) {
  uint64_t whole = 0;
  while (const std::optional<uint64_t> end = EntryEnd(list, PastTrailer(whole))) whole = *end;
  const uint64_t torn = PastTrailer(whole);
  // Nothing whole: a list is whole when it becomes the list.
  if (whole == 0 || torn >= list.size() || !HasLostSector(list, torn)) return std::nullopt;
  // At any byte: behind damage nothing says where the next one begins.
  for (uint64_t at = torn + 1; at < list.size(); ++at) {
    if (EntryEnd(list, at).has_value()) return std::nullopt;
  }
  return whole;
}

std::string TornList::ToString() const {
  return absl::StrCat(file, ": a loss of power cut off what was being written behind byte ",
                      whole_bytes, " (", torn_bytes, " bytes, never acknowledged)");
}

absl::StatusOr<std::optional<TornList>> FindTornList(rocksdb::Env* env, const std::string& folder) {
  KVTIER_ASSIGN_OR_RETURN(const std::string current, rocksdb_files::Read(env, folder + "/CURRENT"));
  const absl::string_view name = absl::StripSuffix(current, "\n");
  // As RocksDB reads it: anything else is damage.
  if (!absl::StartsWith(name, "MANIFEST-") || name.size() == current.size()) return std::nullopt;
  const std::string file = absl::StrCat(folder, "/", name);
  KVTIER_ASSIGN_OR_RETURN(const std::string list, rocksdb_files::Read(env, file));
  const std::optional<uint64_t> whole = FindTornEnd(list);
  if (!whole.has_value()) return std::nullopt;
  return TornList{file, *whole, list.size() - *whole};
}

std::shared_ptr<rocksdb::Env> WithoutTornEnd(rocksdb::Env* env, const TornList& list) {
  return rocksdb::NewCompositeEnv(
      std::make_shared<ShorterListFileSystem>(OrDefault(env)->GetFileSystem(), list));
}

absl::Status CutTornEnd(rocksdb::Env* env, const TornList& list) {
  // Through an open file: RocksDB's own file system has no truncate by name.
  return Rocks(absl::StrCat("cut ", list.file), [&] {
    std::unique_ptr<rocksdb::WritableFile> file;
    rocksdb::Status status =
        OrDefault(env)->ReopenWritableFile(list.file, &file, rocksdb::EnvOptions());
    if (status.ok()) status = file->Truncate(list.whole_bytes);
    if (status.ok()) status = file->Sync();
    if (status.ok()) status = file->Close();
    return status;
  });
}

}  // namespace kvtier
