#include "store/rocksdb_torn_list.h"

#include <algorithm>
#include <optional>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/bytes.h"
#include "base/crc32c.h"
#include "base/status_matchers.h"
#include "gtest/gtest.h"
#include "rocksdb/env.h"
#include "tests/testing/files.h"
#include "tests/testing/temp_dir.h"

namespace kvtier {
namespace {

constexpr size_t kBlockBytes = 32 << 10;
constexpr size_t kHeaderBytes = 7;
constexpr size_t kSectorBytes = 512;

std::string Record(char type, absl::string_view payload) {
  const std::string covered = absl::StrCat(std::string(1, type), payload);
  const uint32_t crc = ComputeCrc32c(AsBytes(covered)).value();
  std::string record;
  ByteWriter writer(&record);
  writer.WriteU32(((crc >> 15) | (crc << 17)) + 0xa282ead8u);
  writer.WriteU16(static_cast<uint16_t>(payload.size()));
  writer.WriteBytes(covered);
  return record;
}

// As RocksDB appends it.
void AddEntry(absl::string_view payload, std::string* list) {
  bool is_first = true;
  do {
    const size_t left = kBlockBytes - list->size() % kBlockBytes;
    if (left < kHeaderBytes) list->append(left, '\0');
    const size_t room = kBlockBytes - list->size() % kBlockBytes - kHeaderBytes;
    const absl::string_view part = payload.substr(0, room);
    payload.remove_prefix(part.size());
    const bool is_last = payload.empty();
    const char type = is_first ? (is_last ? 1 : 2) : (is_last ? 4 : 3);
    *list += Record(type, part);
    is_first = false;
  } while (!payload.empty());
}

// Without zeros, so that all of them are of lost sectors.
std::string PayloadOf(size_t bytes) {
  std::string payload(bytes, 0);
  for (size_t i = 0; i < bytes; ++i) payload[i] = static_cast<char>('a' + i % 23);
  return payload;
}

// Ends at `bytes` exactly.
std::string ListOf(size_t bytes) {
  std::string list;
  while (bytes - list.size() > 400) AddEntry(PayloadOf(200 - kHeaderBytes), &list);
  AddEntry(PayloadOf(bytes - list.size() - kHeaderBytes), &list);
  return list;
}

// Of `list`, after what is behind `synced` lost the sectors whose bit is not in `kept`.
std::string AfterPowerLoss(const std::string& list, size_t synced, uint64_t kept) {
  std::string left = list.substr(0, synced);
  for (size_t at = synced; at < list.size(); kept >>= 1) {
    const size_t next = std::min(list.size(), (at / kSectorBytes + 1) * kSectorBytes);
    if ((kept & 1) != 0) {
      left.resize(at, '\0');
      left += list.substr(at, next - at);
    }
    at = next;
  }
  return left;
}

size_t SectorsBehind(const std::string& list, size_t synced) {
  return (list.size() - 1) / kSectorBytes - synced / kSectorBytes + 1;
}

TEST(FindTornEndTest, WhateverSectorsOfTheLastEntryAreLostItIsAllThatIsCutOff) {
  int torn = 0;
  for (size_t synced = 1500; synced < 1500 + kSectorBytes; ++synced) {
    const std::string whole = ListOf(synced);
    ASSERT_EQ(whole.size(), synced);
    std::string list = whole;
    AddEntry(PayloadOf(1000), &list);
    const size_t sectors = SectorsBehind(list, synced);
    for (uint64_t kept = 0; kept < uint64_t{1} << sectors; ++kept) {
      SCOPED_TRACE(absl::StrCat("entry at ", synced, ", sectors kept: ", kept));
      const std::string left = AfterPowerLoss(list, synced, kept);
      const std::optional<uint64_t> end = FindTornEnd(left);
      // A start of the entry, or all of it, is what RocksDB forgives or takes.
      const bool is_start = left == list.substr(0, left.size());
      ASSERT_EQ(end.has_value(), !is_start);
      if (!end.has_value()) continue;
      ASSERT_EQ(*end, synced);
      ++torn;
    }
  }
  EXPECT_GT(torn, 1000);
}

TEST(FindTornEndTest, AnEntryOverTwoBlocksIsOneEntry) {
  for (const size_t before : {size_t{3}, kHeaderBytes, size_t{9}, size_t{700}}) {
    const size_t synced = kBlockBytes - before;
    const std::string whole = ListOf(synced);
    std::string list = whole;
    AddEntry(PayloadOf(kBlockBytes + 800), &list);
    // The sector that the second block begins with, and the last one.
    for (const size_t lost : {kBlockBytes, list.size() - 900}) {
      SCOPED_TRACE(absl::StrCat(before, " bytes in the first block, lost ", lost));
      std::string left = list;
      const size_t begin = lost / kSectorBytes * kSectorBytes;
      std::fill_n(left.begin() + static_cast<ptrdiff_t>(begin), kSectorBytes, '\0');
      EXPECT_EQ(FindTornEnd(left), std::optional<uint64_t>(synced));
    }
  }
}

TEST(FindTornEndTest, AFlippedByteIsDamageAndCutsNothingOff) {
  std::string list = ListOf(1900);
  AddEntry(PayloadOf(700), &list);
  for (size_t at = 0; at < list.size(); ++at) {
    std::string flipped = list;
    flipped[at] = static_cast<char>(flipped[at] ^ 0x10);
    ASSERT_EQ(FindTornEnd(flipped), std::nullopt) << "byte " << at;
  }
}

TEST(FindTornEndTest, AWholeEntryBehindLostSectorsSaysThatTheyHadBeenSynced) {
  std::string list = ListOf(1900);
  AddEntry(PayloadOf(2000), &list);
  std::fill_n(list.begin() + 2048, kSectorBytes, '\0');
  ASSERT_EQ(FindTornEnd(list), std::optional<uint64_t>(1900));
  AddEntry("one more", &list);
  EXPECT_EQ(FindTornEnd(list), std::nullopt);
}

TEST(FindTornEndTest, AListThatIsWholeOrShortHasNone) {
  const std::string list = ListOf(1900);
  EXPECT_EQ(FindTornEnd(list), std::nullopt);
  EXPECT_EQ(FindTornEnd(list.substr(0, 1850)), std::nullopt);
  EXPECT_EQ(FindTornEnd(""), std::nullopt);
  EXPECT_EQ(FindTornEnd(std::string(4096, '\0')), std::nullopt);
  EXPECT_EQ(FindTornEnd(std::string(4096, 'x')), std::nullopt);
}

TEST(TornListTest, IsFoundByTheNameInCurrentShownShorterAndCut) {
  const TempDir dir;
  const std::string whole = ListOf(1900);
  std::string list = whole;
  AddEntry(PayloadOf(2000), &list);
  std::fill_n(list.begin() + 2048, kSectorBytes, '\0');
  const std::string file = dir.File("MANIFEST-000007");
  WriteFile(file, list);
  WriteFile(dir.File("CURRENT"), "MANIFEST-000007\n");
  KVTIER_ASSERT_OK_AND_ASSIGN(const auto torn, FindTornList(nullptr, dir.path()));
  ASSERT_TRUE(torn.has_value());
  EXPECT_EQ(torn->file, file);
  EXPECT_EQ(torn->whole_bytes, 1900u);
  EXPECT_EQ(torn->torn_bytes, list.size() - 1900);

  const auto env = WithoutTornEnd(nullptr, *torn);
  std::string seen;
  ASSERT_TRUE(rocksdb::ReadFileToString(env.get(), file, &seen).ok());
  EXPECT_EQ(seen, whole);
  uint64_t bytes = 0;
  ASSERT_TRUE(env->GetFileSize(file, &bytes).ok());
  EXPECT_EQ(bytes, 1900u);
  EXPECT_EQ(ReadFile(file), list);

  KVTIER_ASSERT_OK(CutTornEnd(nullptr, *torn));
  EXPECT_EQ(ReadFile(file), whole);
  KVTIER_ASSERT_OK_AND_ASSIGN(const auto again, FindTornList(nullptr, dir.path()));
  EXPECT_FALSE(again.has_value());
}

TEST(TornListTest, ACurrentThatNamesNoListIsDamage) {
  const TempDir dir;
  for (const char* current : {"", "?", "MANIFEST-000007", "../MANIFEST-000007\n"}) {
    WriteFile(dir.File("CURRENT"), current);
    KVTIER_ASSERT_OK_AND_ASSIGN(const auto torn, FindTornList(nullptr, dir.path()));
    EXPECT_FALSE(torn.has_value()) << current;
  }
  WriteFile(dir.File("CURRENT"), "MANIFEST-000007\n");  // Which is not there.
  EXPECT_FALSE(FindTornList(nullptr, dir.path()).ok());
}

}  // namespace
}  // namespace kvtier
