#include "store/rocksdb_database.h"

#include <algorithm>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/status_matchers.h"
#include "gtest/gtest.h"
#include "rocksdb/env.h"
#include "store/rocksdb_files.h"
#include "store/rocksdb_tier.h"
#include "tests/testing/temp_dir.h"

namespace kvtier {
namespace {

// What the host budget of a process sets aside for RocksDB holds.
void CheckMemory(uint64_t memory_bytes) {
  SCOPED_TRACE(memory_bytes);
  const TempDir dir;
  KVTIER_ASSERT_OK_AND_ASSIGN(
      const auto database, RocksDbDatabase::Open(dir.File("db"), {.memory_bytes = memory_bytes}));
  const uint64_t empty_bytes = database->memory_bytes();
  EXPECT_LE(empty_bytes, memory_bytes);
  // A band's file: its parts, 64 of 4 KiB.
  constexpr uint64_t kFiles = 40;
  std::vector<std::byte> payload(4096, std::byte{7}), read(4096);
  for (uint64_t file = 0; file < kFiles; ++file) {
    std::vector<RocksDbDatabase::Part> parts;
    for (int part = 10; part < 74; ++part) {
      parts.push_back({absl::StrCat("upload", 100 + file, "-", part), payload});
    }
    const std::string path = dir.File(absl::StrCat(file, ".sst"));
    KVTIER_ASSERT_OK(database->WriteSegmentFile(path, parts));
    KVTIER_ASSERT_OK(database->IngestSegmentFiles({path}));
    KVTIER_ASSERT_OK(database->ReadPart(parts[3].key, read));
  }
  const uint64_t with_files = database->memory_bytes();
  EXPECT_GT(with_files, empty_bytes);
  EXPECT_LE(with_files - empty_bytes, kFiles * RocksDbDatabase::kOpenFileBytes);
  // Records far above the bound, as in a store that lives long.
  const std::string record(1 << 20, 'r');
  for (int i = 0; i < 48; ++i) {
    const RocksDbDatabase::RecordChange change{RocksDbDatabase::Family::kObjects,
                                               absl::StrCat("key", i), record};
    KVTIER_ASSERT_OK(database->WriteRecords(std::span(&change, 1)));
  }
  uint64_t seen_bytes = 0;
  KVTIER_ASSERT_OK(database->VisitRecords(
      RocksDbDatabase::Family::kObjects,
      [&](absl::string_view, absl::string_view value) { seen_bytes += value.size(); }));
  EXPECT_EQ(seen_bytes, 48u << 20);
  EXPECT_LE(database->memory_bytes(), memory_bytes);
}

TEST(RocksDbDatabaseTest, ItsMemoryIsBoundedAndSmallForEachFile) {
  CheckMemory(RocksDbDatabase::kMemoryBytesMax);
  CheckMemory(RocksDbDatabase::kMemoryBytesMax / 8);
}

// The list of files is written once, and a line of it for each band that comes: not the whole list
// again, also with more bands than a 16th of the least room for files would list.
TEST(RocksDbDatabaseTest, AListOfManyFilesIsNotWrittenAnewForEachOfThem) {
  constexpr uint64_t kDiskBudget = uint64_t{32} << 20;
  const TempDir dir;
  KVTIER_ASSERT_OK_AND_ASSIGN(
      const auto database,
      RocksDbDatabase::Open(dir.File("db"), {.files_bytes = RocksDbFilesBytes(kDiskBudget),
                                             .list_bytes = RocksDbListBytes(kDiskBudget)}));
  const std::vector<std::byte> payload(1024, std::byte{7});
  int written = 0;
  const auto ingest = [&](int count) {
    std::vector<std::string> files;
    for (int i = 0; i < count; ++i, ++written) {
      files.push_back(dir.File(absl::StrCat(written, ".sst")));
      // As long as the keys of segments.
      const std::string key = absl::StrCat(std::string(16, 'u'), 1'000'000 + written);
      const RocksDbDatabase::Part part{key, payload};
      KVTIER_ASSERT_OK(database->WriteSegmentFile(files.back(), {&part, 1}));
    }
    KVTIER_ASSERT_OK(database->IngestSegmentFiles(files));
  };
  for (int i = 0; i < 15; ++i) ingest(50);
  std::string list;  // The one that was there last, and its size.
  uint64_t list_bytes = 0, written_bytes = 0, lists = 0;
  const auto look = [&] {
    for (const auto& entry : std::filesystem::directory_iterator(dir.File("db"))) {
      const std::string name = entry.path().filename();
      if (!name.starts_with("MANIFEST-") || name < list) continue;
      const uint64_t size = entry.file_size();
      written_bytes += name == list ? size - list_bytes : size;
      lists += name == list ? 0 : 1;
      list = name;
      list_bytes = size;
    }
  };
  look();
  EXPECT_GT(list_bytes, RocksDbDatabase::kListBytesMin) << "the test lists too little";
  EXPECT_LE(list_bytes, static_cast<uint64_t>(written) * RocksDbDatabase::kListBytesPerFile);
  written_bytes = lists = 0;
  constexpr int kMore = 40;
  for (int i = 0; i < kMore; ++i) {
    ingest(1);
    look();
  }
  EXPECT_LE(lists, 1u);
  EXPECT_LE(written_bytes, lists * RocksDbListBytes(kDiskBudget) + kMore * uint64_t{512});
}

// A file system that takes the flag and fails the first transfer.
class NoDirectReads final : public rocksdb::EnvWrapper {
 public:
  explicit NoDirectReads(bool corrupts)
      : rocksdb::EnvWrapper(rocksdb::Env::Default()), corrupts_(corrupts) {}
  rocksdb::Status NewRandomAccessFile(const std::string& path,
                                      std::unique_ptr<rocksdb::RandomAccessFile>* file,
                                      const rocksdb::EnvOptions& options) override {
    class Broken final : public rocksdb::RandomAccessFile {
     public:
      explicit Broken(bool corrupts) : corrupts_(corrupts) {}
      rocksdb::Status Read(uint64_t, size_t bytes, rocksdb::Slice* result,
                           char* scratch) const override {
        if (!corrupts_) return rocksdb::Status::IOError("EINVAL");
        std::fill(scratch, scratch + bytes, '?');
        *result = rocksdb::Slice(scratch, bytes);
        return rocksdb::Status::OK();
      }

     private:
      const bool corrupts_;
    };
    if (!options.use_direct_reads) return target()->NewRandomAccessFile(path, file, options);
    file->reset(new Broken(corrupts_));
    return rocksdb::Status::OK();
  }

 private:
  const bool corrupts_;
};

TEST(RocksDbFilesTest, DirectIoIsWhatReadsBackWhatWasWritten) {
  const TempDir dir;
  for (const bool corrupts : {false, true}) {
    NoDirectReads env(corrupts);
    EXPECT_FALSE(rocksdb_files::HasDirectIo(&env, dir.path()));
    // A store there starts all the same.
    KVTIER_EXPECT_OK(RocksDbDatabase::Open(dir.File(absl::StrCat("db", corrupts)), {.env = &env}));
  }
  rocksdb_files::HasDirectIo(nullptr, dir.path());  // Yes or no, by the file system.
  KVTIER_ASSERT_OK_AND_ASSIGN(const bool is_left,
                              rocksdb_files::Exists(nullptr, dir.File("direct-io.probe")));
  EXPECT_FALSE(is_left);
}

}  // namespace
}  // namespace kvtier
