#include "store/page_store.h"

#include <algorithm>
#include <filesystem>
#include <memory>
#include <set>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "base/bytes.h"
#include "base/limits.h"
#include "base/log.h"
#include "base/status_matchers.h"
#include "base/sync_point.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kvcache/sha256.h"
#include "rocksdb/db.h"
#include "store/page_disk_format.h"
#include "store/rocksdb_page_tier.h"
#include "tests/testing/files.h"
#include "tests/testing/random.h"
#include "tests/testing/temp_dir.h"

namespace kvtier {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

using Code = absl::StatusCode;

constexpr uint64_t kPageBytes = 4096;
constexpr uint64_t kCharge = kPageBytes + kPageOverheadBytes;

// Of all files; RocksDB may be removing some at this moment.
uint64_t FolderBytes(const std::string& folder) {
  uint64_t bytes = 0;
  std::error_code gone;
  for (std::filesystem::recursive_directory_iterator it(folder, gone), end; it != end;
       it.increment(gone)) {
    const uint64_t size = it->file_size(gone);
    if (!gone && it->is_regular_file(gone)) bytes += size;
  }
  return bytes;
}

PageKey Key(int number) {
  return *PageKey::FromBytes(ComputeSha256(AsBytes(absl::StrCat("page", number))).AsStringView());
}

// Of a key; another `version` has other bytes.
std::string Bytes(int number, int version = 0, size_t size = kPageBytes) {
  std::mt19937_64 random(static_cast<uint64_t>(number * 1000 + version));
  return ToString(RandomBytes(random, size));
}

class PageStoreTest : public testing::Test {
 protected:
  void Open(uint64_t host_pages, bool with_disk = false, uint64_t disk_bytes = kPageDiskBudgetMin,
            const TenantQuotas& quotas = {}) {
    store_.reset();
    std::unique_ptr<PageTier> disk;
    if (with_disk) {
      absl::StatusOr<std::unique_ptr<PageTier>> opened =
          OpenRocksDbPageTier({.folder = dir_.File("pages"), .budget_bytes = disk_bytes});
      KVTIER_CHECK_OK(opened);
      disk = *std::move(opened);
    }
    store_ = PageStore::Create(
        {.host_budget_bytes = host_pages * kCharge, .shards = 1, .tenant_quotas = quotas},
        std::move(disk));
  }
  absl::Status Put(int number, int version = 0, Durability durability = Durability::kHost,
                   size_t size = kPageBytes) {
    return store_->Put(tenant_, {{.key = Key(number), .bytes = Bytes(number, version, size)}},
                       durability)[0];
  }
  // "" is a miss.
  std::string Get(int number) {
    const PageKey keys[] = {Key(number)};
    const absl::StatusOr<PageRef> page = store_->Get(tenant_, keys)[0];
    if (absl::IsNotFound(page.status())) return "";
    KVTIER_CHECK_OK(page);
    EXPECT_EQ((*page)->crc32c(), ComputeCrc32c(AsBytes((*page)->bytes())));
    return std::string((*page)->bytes());
  }
  PagePlace Locate(int number) {
    const PageKey keys[] = {Key(number)};
    return store_->Locate(tenant_, keys)[0];
  }
  absl::Status Delete(int number) {
    const PageKey keys[] = {Key(number)};
    return store_->Delete(tenant_, keys)[0];
  }
  void ExpectCountersAddUp() {
    const PageCounters& c = store_->counters();
    EXPECT_EQ(c.gets, c.host_hits + c.disk_hits + c.misses + c.failures);
  }

  TempDir dir_;
  TenantId tenant_;
  std::unique_ptr<PageStore> store_;
};

TEST_F(PageStoreTest, WhatIsPutIsThere) {
  Open(10);
  EXPECT_EQ(Get(1), "");
  EXPECT_EQ(Locate(1), PagePlace::kNowhere);
  ASSERT_THAT(Put(1), IsOk());
  EXPECT_EQ(Get(1), Bytes(1));
  EXPECT_EQ(Locate(1), PagePlace::kHost);
  EXPECT_EQ(store_->host_usage().pages, 1u);
  EXPECT_EQ(store_->host_usage().bytes, kCharge);
  ASSERT_THAT(Delete(1), IsOk());
  EXPECT_THAT(Delete(1), StatusIs(Code::kNotFound));
  EXPECT_EQ(Get(1), "");
  EXPECT_EQ(store_->host_usage().bytes, 0u);
  EXPECT_EQ(store_->counters().misses, 2u);
  ExpectCountersAddUp();
}

TEST_F(PageStoreTest, TheFirstBytesOfAKeyStay) {
  Open(10);
  ASSERT_THAT(Put(1), IsOk());
  EXPECT_THAT(Put(1), IsOk()) << "putting again is fine";
  EXPECT_THAT(Put(1, /*version=*/1), StatusIs(Code::kAlreadyExists));
  EXPECT_EQ(Get(1), Bytes(1));
  EXPECT_EQ(store_->counters().stored, 1u);
  EXPECT_EQ(store_->counters().kept, 1u);
  EXPECT_EQ(store_->counters().conflicts, 1u);
  std::vector<PagePut> twice;
  for (const int version : {0, 1, 0}) twice.push_back({.key = Key(2), .bytes = Bytes(2, version)});
  EXPECT_THAT(store_->Put(tenant_, std::move(twice), Durability::kHost),
              ElementsAre(IsOk(), StatusIs(Code::kAlreadyExists), IsOk()));
}

TEST_F(PageStoreTest, EachPageOfABatchHasItsOwnStatus) {
  Open(10);
  std::vector<PagePut> puts;
  puts.push_back({.key = Key(1), .bytes = Bytes(1)});
  puts.push_back({.key = Key(2), .bytes = ""});
  puts.push_back({.key = Key(3), .bytes = Bytes(3), .crc32c = Crc32c(1)});
  puts.push_back({.key = Key(4), .bytes = Bytes(4), .crc32c = ComputeCrc32c(AsBytes(Bytes(4)))});
  puts.push_back({.key = Key(5), .bytes = std::string(limits::kPageBytesMax + 1, 'x')});
  puts.push_back({.key = Key(6), .bytes = std::string(11 * kCharge, 'x')});
  EXPECT_THAT(store_->Put(tenant_, std::move(puts), Durability::kHost),
              ElementsAre(IsOk(), StatusIs(Code::kInvalidArgument),
                          StatusIs(Code::kInvalidArgument, HasSubstr("CRC32C")), IsOk(),
                          StatusIs(Code::kInvalidArgument),
                          StatusIs(Code::kResourceExhausted, HasSubstr("page_host_mib"))));
  EXPECT_EQ(store_->counters().refused, 4u);
  const PageKey keys[] = {Key(1), Key(2), Key(4)};
  const auto got = store_->Get(tenant_, keys);
  EXPECT_THAT(got[0], IsOk());
  EXPECT_THAT(got[1], StatusIs(Code::kNotFound));
  EXPECT_THAT(got[2], IsOk());
}

TEST_F(PageStoreTest, TheLeastRecentlyUsedGoesFirst) {
  Open(3);
  for (const int page : {1, 2, 3}) ASSERT_THAT(Put(page), IsOk());
  EXPECT_EQ(Get(1), Bytes(1));
  ASSERT_THAT(Put(4), IsOk());
  EXPECT_EQ(Get(2), "");
  for (const int page : {1, 3, 4}) EXPECT_EQ(Get(page), Bytes(page));
  EXPECT_EQ(store_->host_usage().evicted, 1u);
  EXPECT_EQ(store_->host_usage().bytes, 3 * kCharge);
  ExpectCountersAddUp();
}

TEST_F(PageStoreTest, PagesThatAreReadAreNeitherEvictedNorForgottenInTheBudget) {
  Open(2);
  for (const int page : {1, 2}) ASSERT_THAT(Put(page), IsOk());
  const PageKey keys[] = {Key(1), Key(2)};
  auto held = store_->Get(tenant_, keys);
  EXPECT_THAT(Put(3), StatusIs(Code::kResourceExhausted, HasSubstr("being read")));
  ASSERT_THAT(Delete(1), IsOk());
  EXPECT_EQ((*held[0])->bytes(), Bytes(1)) << "deleted under its reader";
  EXPECT_EQ(store_->host_usage().bytes, 2 * kCharge) << "still held";
  EXPECT_THAT(Put(3), StatusIs(Code::kResourceExhausted));
  held.clear();
  EXPECT_THAT(Put(3), IsOk());
  EXPECT_EQ(Get(2), Bytes(2)) << "there was room";
}

TEST_F(PageStoreTest, TenantsDoNotSeeEachOther) {
  Open(10);
  ASSERT_THAT(Put(1), IsOk());
  tenant_ = *TenantId::FromString("other");
  EXPECT_EQ(Get(1), "");
  EXPECT_EQ(Locate(1), PagePlace::kNowhere);
  EXPECT_THAT(Delete(1), StatusIs(Code::kNotFound));
  EXPECT_THAT(Put(1, /*version=*/1), IsOk());
  tenant_ = TenantId();
  EXPECT_EQ(Get(1), Bytes(1));
}

TEST_F(PageStoreTest, ATenantMakesRoomInItsQuotaWithItsOwnPages) {
  const TenantId other = *TenantId::FromString("other");
  Open(10, /*with_disk=*/false, 0, {.of = {{tenant_, 3 * kCharge}}});
  for (int i = 100; i < 105; ++i) {
    EXPECT_THAT(store_->Put(other, {{.key = Key(i), .bytes = Bytes(i)}}, Durability::kHost),
                ElementsAre(IsOk()));
  }
  for (int i = 1; i <= 3; ++i) ASSERT_THAT(Put(i), IsOk());
  EXPECT_EQ(Get(1), Bytes(1));  // Now 2 was used longest ago.
  EXPECT_EQ(store_->usage_of(tenant_).host_bytes, 3 * kCharge);
  EXPECT_EQ(store_->usage_of(tenant_).quota_bytes, 3 * kCharge);
  ASSERT_THAT(Put(4), IsOk()) << "though memory has room";
  EXPECT_EQ(Locate(2), PagePlace::kNowhere);
  EXPECT_EQ(Get(1), Bytes(1));
  EXPECT_EQ(Get(4), Bytes(4));
  for (int i = 5; i <= 20; ++i) ASSERT_THAT(Put(i), IsOk());
  EXPECT_EQ(store_->usage_of(tenant_).host_pages, 3u);
  EXPECT_EQ(store_->usage_of(other).host_pages, 5u) << "nobody else's go";
  EXPECT_EQ(store_->usage_of(other).quota_bytes, 0u);
  EXPECT_EQ(store_->host_usage().quota_evicted, 17u);
  ASSERT_THAT(Delete(20), IsOk());
  EXPECT_EQ(store_->usage_of(tenant_).host_pages, 2u);
}

TEST_F(PageStoreTest, AQuotaHasNoRoomWhereAllOfItIsRead) {
  Open(10, /*with_disk=*/false, 0, {.of = {}, .default_bytes = 2 * kCharge});
  ASSERT_THAT(Put(1), IsOk());
  ASSERT_THAT(Put(2), IsOk());
  const PageKey keys[] = {Key(1), Key(2)};
  std::vector<absl::StatusOr<PageRef>> reading = store_->Get(tenant_, keys);
  EXPECT_THAT(Put(3), StatusIs(Code::kResourceExhausted,
                               HasSubstr(absl::StrCat("its quota of ", 2 * kCharge))));
  EXPECT_THAT(Put(4, 0, Durability::kHost, 3 * kPageBytes), StatusIs(Code::kResourceExhausted))
      << "more than the quota";
  EXPECT_EQ(store_->host_usage().quota_refused, 2u);
  reading.clear();
  EXPECT_THAT(Put(3), IsOk());
}

TEST_F(PageStoreTest, AQuotaHoldsOnDiskAlsoAfterARestart) {
  const uint64_t disk_charge = kPageBytes + kPageDiskOverheadBytes;
  const TenantQuotas quotas = {.of = {{tenant_, 3 * kCharge}}};
  Open(10, /*with_disk=*/true, kPageDiskBudgetMin, quotas);
  for (int i = 1; i <= 3; ++i) ASSERT_THAT(Put(i, 0, Durability::kDisk), IsOk());
  EXPECT_EQ(store_->usage_of(tenant_).disk_bytes, 3 * disk_charge);
  Open(10, /*with_disk=*/true, kPageDiskBudgetMin, quotas);
  EXPECT_EQ(store_->usage_of(tenant_).disk_bytes, 3 * disk_charge);
  EXPECT_THAT(Put(4, 0, Durability::kDisk),
              StatusIs(Code::kResourceExhausted, HasSubstr("bytes of pages on disk")));
  EXPECT_EQ(Get(4), Bytes(4)) << "in memory it is";
  EXPECT_EQ(store_->counters().disk_quota_refused, 1u);
  EXPECT_THAT(Put(1, 0, Durability::kDisk), IsOk()) << "there already";
  ASSERT_THAT(Delete(1), IsOk());
  EXPECT_EQ(store_->usage_of(tenant_).disk_bytes, 2 * disk_charge);
  EXPECT_THAT(Put(5, 0, Durability::kDisk), IsOk());
}

TEST_F(PageStoreTest, DiskPagesSurviveHostEvictionAndARestart) {
  Open(1, /*with_disk=*/true);
  for (const int page : {1, 2}) ASSERT_THAT(Put(page, 0, Durability::kDisk), IsOk());
  EXPECT_EQ(Locate(1), PagePlace::kDisk);
  EXPECT_EQ(Get(1), Bytes(1));
  EXPECT_EQ(store_->counters().disk_hits, 1u);
  EXPECT_EQ(Locate(1), PagePlace::kHost) << "read once, it is kept in memory";
  ASSERT_THAT(Put(3), IsOk());  // Host only.
  Open(10, /*with_disk=*/true);
  for (const int page : {1, 2}) EXPECT_EQ(Get(page), Bytes(page));
  EXPECT_EQ(Get(3), "");
  EXPECT_THAT(Put(1, /*version=*/1), StatusIs(Code::kAlreadyExists));
  ASSERT_THAT(Delete(1), IsOk());
  Open(10, /*with_disk=*/true);
  EXPECT_EQ(Get(1), "") << "deleted for good";
  EXPECT_EQ(Get(2), Bytes(2));
  ExpectCountersAddUp();
}

TEST_F(PageStoreTest, OtherBytesAreRefusedThoughOnlyTheDiskHasTheFirst) {
  Open(1, /*with_disk=*/true);
  for (const int page : {1, 2}) ASSERT_THAT(Put(page, 0, Durability::kDisk), IsOk());
  ASSERT_EQ(Locate(1), PagePlace::kDisk);
  EXPECT_THAT(Put(1, /*version=*/1), StatusIs(Code::kAlreadyExists));
  EXPECT_THAT(Put(1, /*version=*/1, Durability::kDisk), StatusIs(Code::kAlreadyExists));
  EXPECT_EQ(Get(1), Bytes(1));
}

TEST_F(PageStoreTest, AHostPagePutAgainWithDiskBecomesDurable) {
  Open(10, /*with_disk=*/true);
  ASSERT_THAT(Put(1), IsOk());
  ASSERT_THAT(Put(1, 0, Durability::kDisk), IsOk());
  Open(10, /*with_disk=*/true);
  EXPECT_EQ(Get(1), Bytes(1));
}

TEST_F(PageStoreTest, PagesBeyondTheBytesAskedForAreNotRead) {
  Open(1, /*with_disk=*/true);
  std::vector<PageKey> keys;
  for (int page = 0; page < 5; ++page) {
    ASSERT_THAT(Put(page, 0, Durability::kDisk), IsOk());
    keys.push_back(Key(page));
  }
  std::vector<PageRef> pages(keys.size());
  const std::vector<absl::Status> statuses =
      store_->GetFromDisk(tenant_, keys, 2 * kPageBytes + 1, &pages);
  for (size_t i = 0; i < keys.size(); ++i) {
    EXPECT_EQ(pages[i] != nullptr, i < 2) << i;
    EXPECT_THAT(statuses[i], i < 2 ? StatusIs(Code::kOk) : StatusIs(Code::kResourceExhausted)) << i;
  }
  ExpectCountersAddUp();
}

TEST_F(PageStoreTest, TheDiskKeepsTheNewestWithinItsBudget) {
  constexpr uint64_t kBudget = kPageDiskBudgetMin;
  constexpr int kBatch = 32;
  constexpr int kPages = static_cast<int>(3 * kBudget / kPageBytes);
  Open(4 * kBatch, /*with_disk=*/true, kBudget);
  uint64_t folder_bytes_max = 0;
  for (int begin = 0; begin < kPages; begin += kBatch) {
    std::vector<PagePut> puts;
    for (int i = begin; i < begin + kBatch; ++i) puts.push_back({.key = Key(i), .bytes = Bytes(i)});
    for (const absl::Status& put : store_->Put(tenant_, std::move(puts), Durability::kDisk)) {
      ASSERT_THAT(put, IsOk());
    }
    folder_bytes_max = std::max(folder_bytes_max, FolderBytes(dir_.File("pages")));
  }
  EXPECT_LE(folder_bytes_max, kBudget);
  const PageTierUsage usage = *store_->disk_usage();
  EXPECT_GE(usage.pages * kPageBytes, kBudget * 7 / 10);
  EXPECT_EQ(usage.pages + usage.evicted, static_cast<uint64_t>(kPages));
  Open(4 * kBatch, /*with_disk=*/true, kBudget);
  EXPECT_EQ(store_->disk_usage()->pages, usage.pages);
  for (int i = 0; i < kPages; ++i) {
    const bool is_there = i >= kPages - static_cast<int>(usage.pages);
    ASSERT_EQ(Get(i), is_there ? Bytes(i) : "") << i;
  }
  ExpectCountersAddUp();
}

// RocksDB's list of files: an entry for each file that comes and goes, and 1 GiB if it has its way.
TEST_F(PageStoreTest, TheListOfFilesIsBegunAnew) {
  constexpr uint64_t kListBytes = 64 << 10;  // With so small a budget; an entry more, and it ends.
  constexpr size_t kSize = 96 << 10;         // A file of its own.
  KVTIER_ASSERT_OK_AND_ASSIGN(const std::unique_ptr<PageTier> tier,
                              OpenRocksDbPageTier({.folder = dir_.File("pages"),
                                                   .budget_bytes = kPageDiskBudgetMin,
                                                   .memory_bytes = 256 << 10}));
  std::set<std::string> lists;
  uint64_t largest = 0;
  for (int number = 0; number < 4000 && lists.size() < 2; ++number) {
    const std::string bytes = Bytes(number, 0, kSize);
    const PageTier::Write writes[] = {
        {.name = {tenant_, Key(number)}, .bytes = bytes, .crc32c = ComputeCrc32c(AsBytes(bytes))}};
    ASSERT_THAT(tier->Put(writes), ElementsAre(IsOk()));
    if (number % 32 != 0) continue;
    std::error_code gone;
    for (const auto& file : std::filesystem::directory_iterator(dir_.File("pages") + "/db", gone)) {
      const std::string name = file.path().filename();
      if (!absl::StartsWith(name, "MANIFEST-")) continue;
      const uint64_t size = file.file_size(gone);
      if (!gone) largest = std::max(largest, size);
      lists.insert(name);
    }
  }
  EXPECT_EQ(lists.size(), 2u);
  EXPECT_LE(largest, kListBytes + 1024);
}

TEST_F(PageStoreTest, DamageOnDiskIsALossThenAMiss) {
  Open(1, /*with_disk=*/true);
  for (int page = 0; page < 1000; ++page) {  // Out of the log, into files.
    ASSERT_THAT(Put(page, 0, Durability::kDisk), IsOk());
  }
  Open(1, /*with_disk=*/true);
  store_.reset();  // Nothing removes files under us.
  int damaged = 0;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(dir_.File("pages"))) {
    if (entry.path().extension() != ".sst") continue;
    const size_t at = ReadFile(entry.path()).find(Bytes(7));
    if (at == std::string::npos) continue;
    FlipBit(entry.path(), at + 100, 2);
    ++damaged;
  }
  ASSERT_GE(damaged, 1);
  Open(1, /*with_disk=*/true);
  const PageKey keys[] = {Key(7)};
  EXPECT_THAT(store_->Get(tenant_, keys)[0], StatusIs(Code::kDataLoss));
  EXPECT_EQ(store_->counters().checksum_failures, 1u);
  EXPECT_EQ(Get(7), "");
  EXPECT_EQ(Get(8), Bytes(8));
  ASSERT_THAT(Put(7, 0, Durability::kDisk), IsOk());
  EXPECT_EQ(Get(7), Bytes(7));
  ExpectCountersAddUp();
}

// What it covers is gone, all else is served, and the store starts.
TEST_F(PageStoreTest, DamagedFilesOfPagesNeverKeepAStoreFromStarting) {
  enum class Damage { kTableIsGone, kListIsGone, kCurrentIsBroken };
  for (const Damage damage :
       {Damage::kTableIsGone, Damage::kListIsGone, Damage::kCurrentIsBroken}) {
    SCOPED_TRACE(static_cast<int>(damage));
    std::filesystem::remove_all(dir_.File("pages"));
    Open(1, /*with_disk=*/true);
    for (int page = 0; page < 1000; ++page) {  // Out of the log, into files.
      ASSERT_THAT(Put(page, 0, Durability::kDisk), IsOk());
    }
    store_.reset();
    std::filesystem::path table;
    for (const auto& entry : std::filesystem::directory_iterator(dir_.File("pages/db"))) {
      const std::string name = entry.path().filename();
      if (entry.path().extension() == ".sst" &&
          (table.empty() || entry.file_size() > std::filesystem::file_size(table))) {
        table = entry.path();
      }
      if (damage == Damage::kListIsGone && name.starts_with("MANIFEST")) {
        std::filesystem::remove(entry.path());
      }
      if (damage == Damage::kCurrentIsBroken && name == "CURRENT") WriteFile(entry.path(), "?");
    }
    if (damage == Damage::kTableIsGone) std::filesystem::remove(table);
    Open(1, /*with_disk=*/true);
    const PageTierUsage usage = *store_->disk_usage();
    EXPECT_EQ(usage.resets, damage == Damage::kTableIsGone ? 0u : 1u);
    int there = 0;
    for (int page = 0; page < 1000; ++page) {
      const PageKey keys[] = {Key(page)};
      const absl::StatusOr<PageRef> got = store_->Get(tenant_, keys)[0];
      if (got.ok()) {
        EXPECT_EQ((*got)->bytes(), Bytes(page));
        ++there;
      } else {
        EXPECT_THAT(got, testing::AnyOf(StatusIs(Code::kNotFound), StatusIs(Code::kDataLoss)));
      }
    }
    EXPECT_EQ(there > 0, damage == Damage::kTableIsGone);
    EXPECT_LT(there, 1000);
    ASSERT_THAT(Put(1, 0, Durability::kDisk), IsOk());
    Open(1, /*with_disk=*/true);
    EXPECT_EQ(Get(1), Bytes(1));
    EXPECT_EQ(store_->disk_usage()->resets, 0u);
  }
}

// The entry that RocksDB was adding to its list of files, with a lost sector in it.
TEST_F(PageStoreTest, APowerLossThatTearsTheListOfFilesCostsNoPage) {
  Open(1, /*with_disk=*/true);
  for (int page = 0; page < 1000; ++page) {  // Out of the log, into files.
    ASSERT_THAT(Put(page, 0, Durability::kDisk), IsOk());
  }
  std::vector<int> there;
  for (int page = 0; page < 1000; ++page) {
    if (Get(page) == Bytes(page)) there.push_back(page);
  }
  ASSERT_GE(there.size(), 100u);
  store_.reset();
  const std::string current = ReadFile(dir_.File("pages/db/CURRENT"));
  const std::string list = dir_.File("pages/db/" + current.substr(0, current.find('\n')));
  // A header that says 1,700 bytes of payload, the payload's begin, lost sectors, and its end.
  constexpr absl::string_view kHeader("crc!\xa4\x06\x01", 7);
  WriteFile(list, absl::StrCat(ReadFile(list), kHeader, std::string(300, 'b'),
                               std::string(1200, '\0'), std::string(200, 'e')));
  Open(1, /*with_disk=*/true);
  EXPECT_EQ(store_->disk_usage()->resets, 0u);
  EXPECT_EQ(store_->disk_usage()->log_damage, 1u);
  for (const int page : there) ASSERT_TRUE(Get(page) == Bytes(page)) << page;
  ASSERT_THAT(Put(1000, 0, Durability::kDisk), IsOk());
  Open(1, /*with_disk=*/true);
  EXPECT_EQ(Get(1000), Bytes(1000));
  EXPECT_EQ(store_->disk_usage()->log_damage, 0u);
}

TEST_F(PageStoreTest, DamageInTheLogOfWritesIsCounted) {
  Open(1, /*with_disk=*/true);
  for (int page = 0; page < 8; ++page) ASSERT_THAT(Put(page, 0, Durability::kDisk), IsOk());
  EXPECT_EQ(store_->disk_usage()->log_damage, 0u);
  store_.reset();
  std::string log;
  for (const auto& entry : std::filesystem::directory_iterator(dir_.File("pages/db"))) {
    if (entry.path().extension() == ".log" && entry.file_size() > 0) log = entry.path();
  }
  ASSERT_FALSE(log.empty());
  FlipBit(log, 100, 1);
  Open(1, /*with_disk=*/true);
  EXPECT_GE(store_->disk_usage()->log_damage, 1u);
}

// A reader has its bytes from the disk already when the page is deleted.
TEST_F(PageStoreTest, APageDeletedWhileItIsReadDoesNotComeBackInMemory) {
  Open(1, /*with_disk=*/true);
  ASSERT_THAT(Put(1, 0, Durability::kDisk), IsOk());
  ASSERT_THAT(Put(2, 0, Durability::kDisk), IsOk());
  ASSERT_EQ(Locate(1), PagePlace::kDisk);
  {
    bool is_first = true;
    const ScopedSyncPoint deleting("store.pages.after_disk_read", [&] {
      if (std::exchange(is_first, false)) {
        EXPECT_THAT(Delete(1), IsOk());
      }
    });
    EXPECT_EQ(Get(1), Bytes(1));  // It was there when it was asked for.
  }
  EXPECT_EQ(Locate(1), PagePlace::kNowhere);
  EXPECT_EQ(Get(1), "");
  EXPECT_EQ(Get(2), Bytes(2));
  EXPECT_EQ(Locate(2), PagePlace::kHost);
  ExpectCountersAddUp();
}

TEST_F(PageStoreTest, APageTooLargeForTheDiskIsRefusedByName) {
  Open(1000, /*with_disk=*/true);
  const size_t largest = store_->disk_usage()->page_bytes_max;
  EXPECT_EQ(largest, kPageDiskBudgetMin / 60 - kPageDiskOverheadBytes);
  // Waiting does not help, so the code says not to.
  EXPECT_THAT(Put(1, 0, Durability::kDisk, largest + 1),
              StatusIs(Code::kInvalidArgument, HasSubstr(absl::StrCat("is ", largest))));
  EXPECT_EQ(Locate(1), PagePlace::kHost);
  EXPECT_THAT(Put(2, 0, Durability::kDisk, largest), IsOk());
  store_.reset();
  // Or for the memory in which it waits for the disk.
  KVTIER_ASSERT_OK_AND_ASSIGN(const auto tier,
                              OpenRocksDbPageTier({.folder = dir_.File("little"),
                                                   .budget_bytes = 4 * kPageDiskBudgetMin,
                                                   .memory_bytes = RocksDbPageMemoryBytes(1)}));
  const std::string bytes(128 << 10, 'b');
  const PageTier::Write write = {{tenant_, Key(3)}, bytes, ComputeCrc32c(AsBytes(bytes))};
  EXPECT_THAT(tier->Put({&write, 1})[0],
              StatusIs(Code::kInvalidArgument, HasSubstr("page_host_mib")));
}

TEST_F(PageStoreTest, TheLargestPageFitsWhereTheBudgetsAllowIt) {
  EXPECT_EQ(RocksDbPageMemoryBytes(64 << 20), 32u << 20);
  EXPECT_EQ(RocksDbPageMemoryBytes(400 << 20), 100u << 20);
  KVTIER_ASSERT_OK_AND_ASSIGN(
      const auto tier,
      OpenRocksDbPageTier({.folder = dir_.File("large"),
                           .budget_bytes = uint64_t{1} << 30,
                           .memory_bytes = RocksDbPageMemoryBytes(uint64_t{96} << 20)}));
  EXPECT_EQ(tier->Usage().page_bytes_max, limits::kPageBytesMax);
  const std::string bytes(limits::kPageBytesMax, 'b');
  const PageTier::Write write = {{tenant_, Key(1)}, bytes, ComputeCrc32c(AsBytes(bytes))};
  ASSERT_THAT(tier->Put({&write, 1})[0], IsOk());
  KVTIER_ASSERT_OK_AND_ASSIGN(const std::string got, tier->Get({tenant_, Key(1)}));
  EXPECT_TRUE(got == bytes);
}

// Files of a start with more memory are larger: more pages go at once.
TEST_F(PageStoreTest, WhatIsFoundIsThereAlsoAfterAStartWithLessMemory) {
  constexpr uint64_t kBudget = uint64_t{32} << 20;
  constexpr size_t kSize = 16 << 10;
  std::unique_ptr<PageTier> tier;
  int next = 0, oldest = 0;
  const auto open = [&](uint64_t memory_bytes) {
    tier.reset();
    KVTIER_ASSERT_OK_AND_ASSIGN(tier, OpenRocksDbPageTier({.folder = dir_.File("pages"),
                                                           .budget_bytes = kBudget,
                                                           .memory_bytes = memory_bytes}));
  };
  const auto put = [&] {
    std::vector<std::string> bytes;
    for (int i = 0; i < 16; ++i) bytes.push_back(Bytes(next + i, 0, kSize));
    std::vector<PageTier::Write> writes;
    for (size_t i = 0; i < bytes.size(); ++i) {
      writes.push_back(
          {{tenant_, Key(next + static_cast<int>(i))}, bytes[i], ComputeCrc32c(AsBytes(bytes[i]))});
    }
    for (const absl::Status& status : tier->Put(writes)) ASSERT_THAT(status, IsOk());
    next += 16;
  };
  open(/*memory_bytes=*/0);
  while (static_cast<uint64_t>(next) * kSize < kBudget * 3 / 2) put();
  open(RocksDbPageMemoryBytes(1));
  const int end = next * 2;
  while (next < end) {
    put();
    while (oldest < next && !tier->Find({tenant_, Key(oldest)}).has_value()) ++oldest;
    const absl::StatusOr<std::string> got = tier->Get({tenant_, Key(oldest)});
    ASSERT_THAT(got, IsOk()) << oldest << " of " << next;
    ASSERT_TRUE(*got == Bytes(oldest, 0, kSize));
  }
  EXPECT_GE(static_cast<uint64_t>(next - oldest) * kSize, kBudget * 3 / 4)
      << "the window is as wide again as the budget allows";
}

// RocksDB drops whole files, and no name may promise what went with one.
TEST_F(PageStoreTest, APageThatRocksDbDroppedIsAMiss) {
  Open(1, /*with_disk=*/true);
  for (const int page : {1, 2}) ASSERT_THAT(Put(page, 0, Durability::kDisk), IsOk());
  store_.reset();
  {
    rocksdb::Options options;
    options.disable_auto_compactions = true;
    std::vector<rocksdb::ColumnFamilyDescriptor> families;
    for (const char* name : {"default", "pages", "names"}) families.push_back({name, options});
    std::vector<rocksdb::ColumnFamilyHandle*> handles;
    rocksdb::DB* db = nullptr;
    ASSERT_TRUE(rocksdb::DB::Open(options, dir_.File("pages/db"), families, &handles, &db).ok());
    EXPECT_TRUE(
        db->Delete(rocksdb::WriteOptions(), handles[1], page_disk_format::PositionKey(0)).ok());
    for (rocksdb::ColumnFamilyHandle* handle : handles) {
      EXPECT_TRUE(db->DestroyColumnFamilyHandle(handle).ok());
    }
    delete db;
  }
  Open(1, /*with_disk=*/true);
  EXPECT_EQ(Locate(1), PagePlace::kDisk);
  EXPECT_EQ(Get(1), "");
  EXPECT_EQ(Locate(1), PagePlace::kNowhere);
  EXPECT_EQ(store_->counters().misses, 1u);
  EXPECT_EQ(store_->counters().checksum_failures, 0u);
  EXPECT_EQ(Get(2), Bytes(2));
  ASSERT_THAT(Put(3, 0, Durability::kDisk), IsOk());  // Takes the record of 1 with it.
  Open(1, /*with_disk=*/true);
  EXPECT_EQ(Locate(1), PagePlace::kNowhere);
  ASSERT_THAT(Put(1, 0, Durability::kDisk), IsOk());
  Open(1, /*with_disk=*/true);
  EXPECT_EQ(Get(1), Bytes(1));
  ExpectCountersAddUp();
}

TEST_F(PageStoreTest, RecordsBeyondASmallerBudgetGoWithTheNextBatches) {
  constexpr size_t kSize = 32 << 10;
  constexpr int kPages = static_cast<int>(2 * kPageDiskBudgetMin / kSize);
  Open(1000, /*with_disk=*/true, 4 * kPageDiskBudgetMin);
  for (int begin = 0; begin < kPages; begin += 16) {
    std::vector<PagePut> puts;
    for (int i = begin; i < begin + 16; ++i) {
      puts.push_back({.key = Key(i), .bytes = Bytes(i, 0, kSize)});
    }
    ASSERT_THAT(store_->Put(tenant_, std::move(puts), Durability::kDisk), testing::Each(IsOk()));
  }
  Open(1000, /*with_disk=*/true);
  const uint64_t expired = store_->disk_usage()->evicted;
  EXPECT_GT(expired, 256u) << "more than one batch removes";
  for (uint64_t i = 0; i <= expired / 256; ++i) {
    ASSERT_THAT(Put(10'000 + static_cast<int>(i), 0, Durability::kDisk), IsOk());
  }
  Open(1000, /*with_disk=*/true);
  EXPECT_EQ(store_->disk_usage()->evicted, 0u);
  EXPECT_EQ(store_->disk_usage()->records_lost, 0u);
}

TEST_F(PageStoreTest, AnotherFormatIsRefusedByName) {
  Open(1, /*with_disk=*/true);
  store_.reset();
  WriteFile(dir_.File("pages/FORMAT"), "kvtier pages format 2\n");
  EXPECT_THAT(
      OpenRocksDbPageTier({.folder = dir_.File("pages"), .budget_bytes = kPageDiskBudgetMin})
          .status(),
      StatusIs(Code::kFailedPrecondition, HasSubstr("kvtier pages format 2")));
  EXPECT_THAT(OpenRocksDbPageTier({.folder = dir_.File("small"), .budget_bytes = 1}).status(),
              StatusIs(Code::kInvalidArgument));
}

// Writers, readers and deleters of few keys, more than fit: whoever gets a page gets its bytes.
TEST_F(PageStoreTest, NoWrongBytesUnderContention) {
  store_ = PageStore::Create(
      {.host_budget_bytes = 16 * kCharge, .shards = 4},
      *OpenRocksDbPageTier({.folder = dir_.File("pages"), .budget_bytes = kPageDiskBudgetMin}));
  const uint64_t seed = TestSeed();
  SCOPED_TRACE(SeedTrace(seed));
  constexpr int kKeys = 40;
  std::vector<std::thread> threads;
  for (uint64_t t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      std::mt19937_64 random(seed + t);
      for (int i = 0; i < 400; ++i) {
        const int number = static_cast<int>(RandomUniform(random, 0, kKeys - 1));
        const PageKey keys[] = {Key(number)};
        switch (RandomUniform(random, 0, 7)) {
          case 0:
            store_->Delete(tenant_, keys);
            break;
          case 1:
            EXPECT_THAT(store_->Put(tenant_, {{.key = keys[0], .bytes = Bytes(number)}},
                                    Durability::kDisk)[0],
                        IsOk());
            break;
          case 2:
          case 3:
            EXPECT_THAT(store_->Put(tenant_, {{.key = keys[0], .bytes = Bytes(number)}},
                                    Durability::kHost)[0],
                        IsOk());
            break;
          default:
            const absl::StatusOr<PageRef> page = store_->Get(tenant_, keys)[0];
            if (page.ok()) {
              EXPECT_EQ((*page)->bytes(), Bytes(number));
            } else {
              EXPECT_THAT(page, StatusIs(Code::kNotFound));
            }
        }
        EXPECT_LE(store_->host_usage().bytes, store_->host_usage().budget_bytes);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  ExpectCountersAddUp();
}

}  // namespace
}  // namespace kvtier
