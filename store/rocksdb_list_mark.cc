#include "store/rocksdb_list_mark.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "base/bytes.h"
#include "base/crc32c.h"
#include "base/log.h"
#include "base/status_macros.h"
#include "rocksdb/db.h"
#include "rocksdb/env.h"
#include "rocksdb/listener.h"
#include "store/rocksdb_files.h"
#include "store/rocksdb_status.h"

namespace kvtier {
namespace {

constexpr char kFileName[] = "LIST";

// What is looked at of the list: more than the entries of a flush or a merge.
constexpr uint64_t kEndBytes = 4096;

// "<list> <bytes> <CRC32C of the last kEndBytes of them> <CRC32C of all this>\n", in hexadecimal.
std::string Encode(absl::string_view list, uint64_t bytes, uint32_t end_crc) {
  const std::string covered = absl::StrCat(list, " ", bytes, " ", absl::Hex(end_crc));
  return absl::StrCat(covered, " ", absl::Hex(ComputeCrc32c(AsBytes(covered)).value()), "\n");
}

// Of the last kEndBytes before `bytes`, or of what the file has of them.
absl::StatusOr<uint32_t> EndCrc(rocksdb::Env* env, const std::string& file, uint64_t bytes) {
  std::string end(std::min(bytes, kEndBytes), '\0');
  rocksdb::Slice read;
  KVTIER_RETURN_IF_ERROR(Rocks(file, [&] {
    std::unique_ptr<rocksdb::SequentialFile> reader;
    rocksdb::Status status = env->NewSequentialFile(file, &reader, rocksdb::EnvOptions());
    if (status.ok()) status = reader->Skip(bytes - end.size());
    return status.ok() ? reader->Read(end.size(), &read, end.data()) : status;
  }));
  return ComputeCrc32c(AsBytes(absl::string_view(read.data(), read.size()))).value();
}

rocksdb::Env* OrDefault(rocksdb::Env* env) {
  return env != nullptr ? env : rocksdb::Env::Default();
}

class MarkingListener final : public rocksdb::EventListener {
 public:
  explicit MarkingListener(std::shared_ptr<ListMarker> marker) : marker_(std::move(marker)) {}
  const char* Name() const override { return "kvtier.MarkingListener"; }
  // Both come when the list has the entry, and before RocksDB looks for files that it made
  // superfluous.
  void OnFlushCompleted(rocksdb::DB* db, const rocksdb::FlushJobInfo&) override {
    marker_->Mark(*db);
  }
  void OnCompactionCompleted(rocksdb::DB* db, const rocksdb::CompactionJobInfo&) override {
    marker_->Mark(*db);
  }

 private:
  const std::shared_ptr<ListMarker> marker_;
};

}  // namespace

std::shared_ptr<ListMarker> ListMarker::Create(rocksdb::Env* env, std::string folder) {
  return std::shared_ptr<ListMarker>(new ListMarker(OrDefault(env), std::move(folder)));
}

std::shared_ptr<rocksdb::EventListener> ListMarker::ListenerOf(std::shared_ptr<ListMarker> marker) {
  return std::make_shared<MarkingListener>(std::move(marker));
}

absl::Status ListMarker::TryMark(rocksdb::DB& db) {
  std::vector<std::string> files;  // As "/MANIFEST-000005".
  // What RocksDB has synced: the file itself may have more, of an entry that it is writing.
  uint64_t bytes = 0;
  KVTIER_RETURN_IF_ERROR(Rocks(
      "list files", [&] { return db.GetLiveFiles(files, &bytes, /*flush_memtable=*/false); }));
  const auto list = std::ranges::find_if(
      files, [](const std::string& file) { return absl::StartsWith(file, "/MANIFEST-"); });
  if (list == files.end()) return absl::UnavailableError("RocksDB names no list of files");
  KVTIER_ASSIGN_OR_RETURN(const uint32_t end_crc, EndCrc(env_, folder_ + *list, bytes));
  return rocksdb_files::WriteAtomically(env_, folder_, kFileName,
                                        Encode(absl::StripPrefix(*list, "/"), bytes, end_crc));
}

void ListMarker::Mark(rocksdb::DB& db) {
  MutexLock lock(&mutex_);
  const absl::Status marked = TryMark(db);
  if (marked.ok()) return;
  KVTIER_LOG(WARNING) << folder_ << ": how far the list of files is synced stays unknown until the "
                      << "next flush: " << marked.message();
}

absl::Status CheckMark(rocksdb::Env* env, const std::string& folder) {
  const std::string mark = absl::StrCat(folder, "/", kFileName);
  KVTIER_ASSIGN_OR_RETURN(const bool has_mark, rocksdb_files::Exists(env, mark));
  KVTIER_ASSIGN_OR_RETURN(const bool has_list, rocksdb_files::Exists(env, folder + "/CURRENT"));
  if (!has_mark || !has_list) return absl::OkStatus();
  KVTIER_ASSIGN_OR_RETURN(const std::string text, rocksdb_files::Read(env, mark));
  const std::vector<absl::string_view> parts = absl::StrSplit(text, ' ');
  uint64_t bytes = 0;
  uint32_t end_crc = 0;
  if (parts.size() != 4 || !absl::SimpleAtoi(parts[1], &bytes) ||
      !absl::SimpleHexAtoi(parts[2], &end_crc) || Encode(parts[0], bytes, end_crc) != text) {
    KVTIER_LOG(WARNING) << mark << ": damaged, and not used";
    return absl::OkStatus();
  }
  KVTIER_ASSIGN_OR_RETURN(const std::string current, rocksdb_files::Read(env, folder + "/CURRENT"));
  if (absl::StripSuffix(current, "\n") != parts[0]) return absl::OkStatus();
  const std::string list = absl::StrCat(folder, "/", parts[0]);
  KVTIER_ASSIGN_OR_RETURN(const bool is_there, rocksdb_files::Exists(env, list));
  if (!is_there) return absl::OkStatus();  // RocksDB says so.
  KVTIER_ASSIGN_OR_RETURN(const uint32_t crc, EndCrc(OrDefault(env), list, bytes));
  if (crc == end_crc) return absl::OkStatus();
  return absl::DataLossError(absl::StrCat(list, ": ends or is damaged in front of byte ", bytes,
                                          ", up to which it was synced: entries are missing that "
                                          "were acknowledged"));
}

}  // namespace kvtier
