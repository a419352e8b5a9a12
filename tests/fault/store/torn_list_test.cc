// The entry that a Put adds to RocksDB's list of files, torn by a loss of power in every way that
// its sectors allow. PowerLossTest meets such layouts by chance; here each is one on purpose.
#include <algorithm>
#include <filesystem>
#include <memory>
#include <optional>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "base/log.h"
#include "base/simulated_clock.h"
#include "base/status_matchers.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "store/rocksdb_tier.h"
#include "store/rocksdb_torn_list.h"
#include "store/tiered_store.h"
#include "tests/fault/store/disk_state.h"
#include "tests/fault/store/simulated_disk.h"
#include "tests/fault/store/torn_write.h"
#include "tests/testing/store_checks.h"
#include "tests/testing/temp_dir.h"
#include "tests/testing/test_object.h"

namespace kvtier {
namespace {

// Its entry in the list has more than a sector.
constexpr uint32_t kBands = 16;
CompressedObject WideObject(uint64_t seed) {
  return MakeTestObject({.layers = 1,
                         .kv_heads = 1,
                         .context_tokens = 80,
                         .edges = "0.06,0.12,0.18,0.24,0.3,0.36,0.42,0.48,0.54,0.6,0.66,0.72,0.78,"
                                  "0.84,0.9,1",
                         .seed = seed});
}
constexpr uint32_t kBandsOfSmall = 1;
CompressedObject SmallObject(uint64_t seed) {
  return MakeTestObject(
      {.layers = 1, .kv_heads = 1, .context_tokens = 20, .edges = "1", .seed = seed});
}

// The entry that brings a Put's bands: in front of it RocksDB writes a short one, of file numbers.
bool IsListWrite(const DiskOp& op) {
  constexpr size_t kNumbersBytesMax = 24;
  return op.kind == DiskOp::Kind::kWrite && absl::StrContains(op.path, "/db/MANIFEST-") &&
         op.data->size() > kNumbersBytesMax;
}

class TornListFaultTest : public testing::Test {
 protected:
  TornListFaultTest() { std::filesystem::create_directories(folder_); }  // For the lock.

  absl::StatusOr<std::unique_ptr<TieredStore>> Open(SimulatedDisk& disk) {
    return OpenTestStore(folder_, 64 << 20, clock_, disk.env(), 0);
  }
  absl::StatusOr<std::optional<TornList>> FindTorn(SimulatedDisk& disk) {
    return FindTornList(disk.env(), folder_ + "/db");
  }
  DiskState EmptyDisk() const { return DiskState(dir_.path()); }

  // The disk after the first `count` changes.
  DiskState After(const std::vector<DiskOp>& log, size_t count) const {
    DiskState state = EmptyDisk();
    for (size_t i = 0; i < count; ++i) state.Apply(log[i]);
    return state;
  }

  // Opens what is left of a disk, on which `there` was acknowledged and `away` was not.
  void Verify(SimulatedDisk& disk, const CompressedObject& there, uint32_t bands,
              const CompressedObject& away, uint32_t away_bands) {
    {
      KVTIER_ASSERT_OK_AND_ASSIGN(const auto store, Open(disk));
      KVTIER_EXPECT_OK(CheckStored(*store, TenantId(), there, bands));
      KVTIER_EXPECT_OK(CheckStored(*store, TenantId(), away, 0));
      EXPECT_EQ(store->counters().bands_lost, 0u);
      KVTIER_ASSERT_OK(store->Put(TenantId(), away, Durability::kDisk));
    }
    KVTIER_ASSERT_OK_AND_ASSIGN(const auto store, Open(disk));
    KVTIER_EXPECT_OK(CheckStored(*store, TenantId(), there, bands));
    KVTIER_EXPECT_OK(CheckStored(*store, TenantId(), away, away_bands));
    EXPECT_EQ(store->counters().log_damage, 0u) << "the torn end is still there";
  }

  TempDir dir_;
  const std::string folder_ = dir_.File("store");
  SimulatedClock clock_;
  std::mt19937_64 random_{1};
};

TEST_F(TornListFaultTest, TheStoreOpensWhateverSectorsOfTheEntryAreLost) {
  const CompressedObject first = WideObject(1);
  const CompressedObject second = WideObject(2);
  SimulatedDisk disk(EmptyDisk());
  size_t acknowledged = 0;
  {
    KVTIER_ASSERT_OK_AND_ASSIGN(const auto store, Open(disk));
    KVTIER_ASSERT_OK(store->Put(TenantId(), first, Durability::kDisk));
    acknowledged = disk.op_count();
    KVTIER_ASSERT_OK(store->Put(TenantId(), second, Durability::kDisk));
  }
  const std::vector<DiskOp> log = disk.log();
  const auto write =
      std::find_if(log.begin() + static_cast<ptrdiff_t>(acknowledged), log.end(), IsListWrite);
  ASSERT_NE(write, log.end());
  const uint64_t sectors = SectorsOf(*write);
  ASSERT_GE(sectors, 3u);
  const DiskState before = After(log, static_cast<size_t>(write - log.begin()));
  int torn = 0;
  for (uint64_t kept = 0; kept < uint64_t{1} << sectors; ++kept) {
    DiskState state = before;
    ApplySome(*write, kept, &state);
    for (const Survival names : {Survival::kNone, Survival::kAll}) {
      SCOPED_TRACE(absl::StrCat("sectors kept: ", kept, " of ", sectors, " at ", write->offset));
      SimulatedDisk left(state.AfterPowerLoss(names, random_));
      KVTIER_ASSERT_OK_AND_ASSIGN(const auto list, FindTorn(left));
      torn += list.has_value() ? 1 : 0;
      Verify(left, first, kBands, second, kBands);
      if (HasFailure()) return;
    }
  }
  EXPECT_GE(torn, 4) << "no layout that RocksDB refuses";
}

// The layout in which a short entry, of two sectors, is refused: its header lies in both.
TEST_F(TornListFaultTest, TheStoreOpensWhenAnEntryHasLostTheFrontOfItsHeader) {
  SimulatedDisk disk(EmptyDisk());
  uint64_t acknowledged = 0;  // Objects.
  std::vector<DiskOp> log;
  auto write = log.cend();
  {
    KVTIER_ASSERT_OK_AND_ASSIGN(const auto store, Open(disk));
    for (;; ++acknowledged) {
      ASSERT_LT(acknowledged, 2000u) << "no entry begins at the end of a sector";
      const size_t changes = disk.op_count();
      KVTIER_ASSERT_OK(store->Put(TenantId(), SmallObject(acknowledged + 1), Durability::kDisk));
      log = disk.log();
      write = std::find_if(log.cbegin() + static_cast<ptrdiff_t>(changes), log.cend(), IsListWrite);
      ASSERT_NE(write, log.cend());
      const bool has_header_in_both = write->offset % kSectorBytes >= kSectorBytes - 6;
      if (acknowledged > 0 && has_header_in_both && SectorsOf(*write) == 2) break;
    }
  }
  const CompressedObject cut_off = SmallObject(acknowledged + 1);
  DiskState state = After(log, static_cast<size_t>(write - log.begin()));
  ApplySome(*write, 0b10, &state);
  SimulatedDisk left(state.AfterPowerLoss(Survival::kNone, random_));
  KVTIER_ASSERT_OK_AND_ASSIGN(const auto list, FindTorn(left));
  ASSERT_TRUE(list.has_value());
  EXPECT_EQ(list->whole_bytes, write->offset);
  {
    KVTIER_ASSERT_OK_AND_ASSIGN(const auto opened, Open(left));
    EXPECT_EQ(opened->counters().log_damage, 1u);
    for (uint64_t seed = 1; seed <= acknowledged; ++seed) {
      KVTIER_ASSERT_OK(CheckStored(*opened, TenantId(), SmallObject(seed), kBandsOfSmall));
    }
  }
  Verify(left, SmallObject(acknowledged), kBandsOfSmall, cut_off, kBandsOfSmall);
}

TEST_F(TornListFaultTest, WhoOnlyReadsLeavesTheTornEndWhereItIs) {
  const CompressedObject first = WideObject(1);
  SimulatedDisk disk(EmptyDisk());
  size_t acknowledged = 0;
  {
    KVTIER_ASSERT_OK_AND_ASSIGN(const auto store, Open(disk));
    KVTIER_ASSERT_OK(store->Put(TenantId(), first, Durability::kDisk));
    acknowledged = disk.op_count();
    KVTIER_ASSERT_OK(store->Put(TenantId(), WideObject(2), Durability::kDisk));
  }
  const std::vector<DiskOp> log = disk.log();
  const auto write =
      std::find_if(log.begin() + static_cast<ptrdiff_t>(acknowledged), log.end(), IsListWrite);
  ASSERT_NE(write, log.end());
  DiskState state = After(log, static_cast<size_t>(write - log.begin()));
  ApplySome(*write, uint64_t{1} << (SectorsOf(*write) - 1) | 1, &state);
  SimulatedDisk left(state.AfterPowerLoss(Survival::kAll, random_));
  KVTIER_ASSERT_OK_AND_ASSIGN(
      const auto tier, OpenRocksDbTier({.folder = folder_, .env = left.env(), .read_only = true}));
  KVTIER_ASSERT_OK_AND_ASSIGN(const auto objects, tier->Recover());
  ASSERT_EQ(objects.size(), 1u);
  EXPECT_EQ(*objects[0].manifest, *first.manifest);
  EXPECT_EQ(objects[0].resident_bands, kBands);
  EXPECT_EQ(tier->counters().log_damage, 1u);
  EXPECT_EQ(left.op_count(), 0u) << ToString(left.log()[0]);
}

// A disk that returns zeros for what it had synced: it looks torn, but a record names what the
// entry had brought.
TEST_F(TornListFaultTest, AnEntryThatWasAcknowledgedIsNotCutOff) {
  const CompressedObject first = WideObject(1);
  const CompressedObject second = WideObject(2);
  SimulatedDisk disk(EmptyDisk());
  size_t before = 0;
  size_t acknowledged = 0;
  {
    KVTIER_ASSERT_OK_AND_ASSIGN(const auto store, Open(disk));
    KVTIER_ASSERT_OK(store->Put(TenantId(), first, Durability::kDisk));
    before = disk.op_count();
    KVTIER_ASSERT_OK(store->Put(TenantId(), second, Durability::kDisk));
    acknowledged = disk.op_count();
  }
  const std::vector<DiskOp> log = disk.log();
  const auto write =
      std::find_if(log.begin() + static_cast<ptrdiff_t>(before), log.end(), IsListWrite);
  ASSERT_NE(write, log.end());
  const DiskState intact = After(log, acknowledged);
  DiskState damaged = intact;
  DiskOp zeros = *write;
  zeros.offset = (write->offset / kSectorBytes + 1) * kSectorBytes;  // The second of its sectors.
  zeros.data = std::make_shared<const std::string>(kSectorBytes, '\0');
  damaged.Apply(zeros);
  SimulatedDisk left(damaged.AfterPowerLoss(Survival::kAll, random_));
  KVTIER_ASSERT_OK_AND_ASSIGN(const auto list, FindTorn(left));
  ASSERT_TRUE(list.has_value()) << "it does not even look torn";
  const absl::StatusOr<std::unique_ptr<TieredStore>> refused = Open(left);
  EXPECT_THAT(refused.status(), StatusIs(absl::StatusCode::kDataLoss,
                                         testing::AllOf(testing::HasSubstr(list->file),
                                                        testing::HasSubstr("acknowledged"))));
  // Nothing has been deleted: with the sector back, all is there.
  std::vector<DiskOp> healing = left.log();
  DiskState healed = damaged.AfterPowerLoss(Survival::kAll, random_);
  for (const DiskOp& op : healing) healed.Apply(op);
  healed.Apply(*write);
  SimulatedDisk again(healed.AfterPowerLoss(Survival::kAll, random_));
  KVTIER_ASSERT_OK_AND_ASSIGN(const auto store, Open(again));
  KVTIER_EXPECT_OK(CheckStored(*store, TenantId(), first, kBands));
  KVTIER_EXPECT_OK(CheckStored(*store, TenantId(), second, kBands));
}

}  // namespace
}  // namespace kvtier
