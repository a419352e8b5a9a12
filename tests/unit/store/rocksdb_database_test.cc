#include "store/rocksdb_database.h"

#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/status_matchers.h"
#include "gtest/gtest.h"
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

}  // namespace
}  // namespace kvtier
