// The entries that a flush of records adds to RocksDB's list of files: the twin of
// torn_list_test.cc for entries behind which a log of records is removed. A loss of power may tear
// them before they are synced, and costs nothing. Damaged afterwards they look torn, and the log is
// gone: the list must not be cut there.
#include <algorithm>
#include <filesystem>
#include <memory>
#include <optional>
#include <random>
#include <span>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "base/status_matchers.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "store/rocksdb_tier.h"
#include "store/rocksdb_torn_list.h"
#include "tests/fault/store/disk_state.h"
#include "tests/fault/store/simulated_disk.h"
#include "tests/fault/store/torn_write.h"
#include "tests/testing/eventually.h"
#include "tests/testing/temp_dir.h"
#include "tests/testing/test_object.h"

namespace kvtier {
namespace {

bool IsList(const DiskOp& op) { return absl::StrContains(op.path, "/db/MANIFEST-"); }
bool IsListWrite(const DiskOp& op) { return op.kind == DiskOp::Kind::kWrite && IsList(op); }
bool IsListSync(const DiskOp& op) { return op.kind == DiskOp::Kind::kSyncFile && IsList(op); }

// What the changes of the list from `write` on to its sync wrote, as one change.
DiskOp EntriesOf(const std::vector<DiskOp>& log, size_t write, size_t sync) {
  std::string data;
  for (size_t i = write; i < sync; ++i) {
    if (IsListWrite(log[i])) data += *log[i].data;
  }
  DiskOp entries = log[write];
  entries.data = std::make_shared<const std::string>(std::move(data));
  return entries;
}

absl::Time TimeOf(uint64_t change) {
  return absl::FromUnixSeconds(static_cast<int64_t>(2'000'000'000 + change));
}

class TornFlushFaultTest : public testing::Test {
 protected:
  TornFlushFaultTest() { std::filesystem::create_directories(folder_); }  // For the lock.

  // With the least memory for records that there is: 64 KiB of them are flushed.
  absl::StatusOr<std::unique_ptr<DurableTier>> Open(SimulatedDisk& disk) {
    return OpenRocksDbTier({.folder = folder_, .files_bytes = 1, .env = disk.env()});
  }
  absl::StatusOr<std::optional<TornList>> FindTorn(SimulatedDisk& disk) {
    return FindTornList(disk.env(), folder_ + "/db");
  }
  DiskState EmptyDisk() const { return DiskState(dir_.path()); }

  void PutObject(DurableTier& tier) {
    for (uint32_t band = 0; band < object_.manifest->bands.size(); ++band) {
      const uint32_t layers = object_.manifest->geometry.layer_count();
      KVTIER_ASSERT_OK(tier.PutBand(*object_.manifest, BandIndex(band),
                                    std::span(object_.segments).subspan(band * layers, layers)));
    }
    KVTIER_ASSERT_OK(tier.Seal(TenantId(), *object_.manifest, TimeOf(0)));
  }
  // Acknowledges one more change of the object's attributes record.
  void Change(DurableTier& tier) {
    ++changes_;
    KVTIER_ASSERT_OK(tier.SetAttributes(object_.manifest->upload_id,
                                        {.pinned = true, .expires_at = TimeOf(changes_)}));
  }
  // Changes until RocksDB has flushed them; returns the ordinals of the first write of the list
  // that this takes, and of its sync.
  std::pair<size_t, size_t> ChangeUntilFlushed(DurableTier& tier, SimulatedDisk& disk) {
    const size_t begin = disk.op_count();
    for (int i = 0; i < 10'000; ++i) {
      Change(tier);
      if (i % 64 != 0) continue;
      const std::vector<DiskOp> log = disk.log();
      const auto from = log.begin() + static_cast<ptrdiff_t>(begin);
      const auto write = std::find_if(from, log.end(), IsListWrite);
      const auto sync = std::find_if(write, log.end(), IsListSync);
      if (sync == log.end()) continue;
      return {static_cast<size_t>(write - log.begin()), static_cast<size_t>(sync - log.begin())};
    }
    ADD_FAILURE() << "no flush";
    return {0, 0};
  }
  // The change that the object has after `tier` has been opened. Nothing: the object is not there.
  std::optional<uint64_t> ChangeOf(DurableTier& tier) {
    const absl::StatusOr<std::vector<SealedObject>> objects = tier.Recover();
    EXPECT_THAT(objects, IsOk());
    if (!objects.ok() || objects->size() != 1) return std::nullopt;
    return absl::ToUnixSeconds((*objects)[0].attributes.expires_at) -
           absl::ToUnixSeconds(TimeOf(0));
  }
  // A disk that has lost the end of the current list: `bytes` of it, which are zeros or, truncated,
  // not there any more.
  DiskState WithoutEndOfList(const DiskState& disk, uint64_t bytes, bool truncated) {
    std::string path;
    for (const std::string& name : disk.List(folder_ + "/db")) {
      if (absl::StartsWith(name, "MANIFEST-")) path = absl::StrCat(folder_, "/db/", name);
    }
    const DiskFileId file = disk.names().at(path);
    const uint64_t begin = disk.Content(file).size() - bytes;
    DiskState damaged = disk;
    if (truncated) {
      damaged.Apply({.kind = DiskOp::Kind::kTruncate, .path = path, .file = file, .offset = begin});
    } else {
      damaged.Apply({.kind = DiskOp::Kind::kWrite,
                     .path = path,
                     .file = file,
                     .offset = begin,
                     .data = std::make_shared<const std::string>(bytes, '\0')});
    }
    damaged.Apply({.kind = DiskOp::Kind::kSyncFile, .path = path, .file = file});
    return damaged;
  }
  // A store whose list was damaged is refused, by name, and nothing of it is changed.
  void ExpectRefused(const DiskState& damaged) {
    SimulatedDisk left(damaged);
    for (const bool read_only : {false, true}) {
      EXPECT_THAT(
          OpenRocksDbTier(
              {.folder = folder_, .files_bytes = 1, .env = left.env(), .read_only = read_only})
              .status(),
          StatusIs(absl::StatusCode::kDataLoss,
                   testing::AllOf(testing::HasSubstr("/db/MANIFEST-"),
                                  testing::HasSubstr("acknowledged"))));
    }
    for (const DiskOp& op : left.log()) EXPECT_FALSE(IsList(op)) << ToString(op);
  }
  // So is `intact` without the last bytes of its list, however many; with them back, all is there.
  void ExpectRefusedWithoutAnyEndOfList(const DiskState& intact) {
    for (const bool truncated : {true, false}) {
      for (uint64_t bytes = 1; bytes <= 400; ++bytes) {
        SCOPED_TRACE(absl::StrCat(bytes, truncated ? " bytes cut off" : " bytes are zeros"));
        ExpectRefused(WithoutEndOfList(intact, bytes, truncated));
        if (HasFailure()) return;
      }
    }
    SimulatedDisk again(intact);
    KVTIER_ASSERT_OK_AND_ASSIGN(const auto tier, Open(again));
    EXPECT_EQ(ChangeOf(*tier), changes_);
  }

  TempDir dir_;
  const std::string folder_ = dir_.File("store");
  const CompressedObject object_ = MakeTestObject({.edges = "0.5,1"});
  uint64_t changes_ = 0;
  std::mt19937_64 random_{1};
};

TEST_F(TornFlushFaultTest, TheStoreOpensWhateverSectorsOfAFlushsEntriesAreLost) {
  SimulatedDisk disk(EmptyDisk());
  std::vector<DiskOp> log;
  size_t write = 0;
  size_t sync = 0;
  // The disk when power goes before the sync, with these sectors of what it covers.
  const auto disk_with = [&](uint64_t kept) {
    DiskState state = EmptyDisk();
    for (size_t i = 0; i < sync; ++i) {
      if (i < write || !IsListWrite(log[i])) state.Apply(log[i]);
    }
    ApplySome(EntriesOf(log, write, sync), kept, &state);
    return state.AfterPowerLoss(Survival::kNone, random_);
  };
  {
    KVTIER_ASSERT_OK_AND_ASSIGN(const auto tier, Open(disk));
    PutObject(*tier);
    // Until one of the layouts looks torn: where an entry begins depends on merges, too.
    for (bool is_torn = false; !is_torn;) {
      ASSERT_LT(log.size(), 1'000'000u) << "no layout that RocksDB refuses";
      std::tie(write, sync) = ChangeUntilFlushed(*tier, disk);
      if (HasFailure()) return;
      log = disk.log();
      const uint64_t sectors = SectorsOf(EntriesOf(log, write, sync));
      if (sectors < 2) continue;
      SimulatedDisk left(disk_with(uint64_t{1} << (sectors - 1)));
      KVTIER_ASSERT_OK_AND_ASSIGN(const auto torn, FindTorn(left));
      is_torn = torn.has_value();
    }
  }
  const uint64_t sectors = SectorsOf(EntriesOf(log, write, sync));
  for (uint64_t kept = 0; kept < uint64_t{1} << sectors; ++kept) {
    SCOPED_TRACE(absl::StrCat("sectors kept: ", kept, " of ", sectors));
    SimulatedDisk left(disk_with(kept));
    KVTIER_ASSERT_OK_AND_ASSIGN(const auto opened, Open(left));
    const std::optional<uint64_t> change = ChangeOf(*opened);
    ASSERT_TRUE(change.has_value());
    // Those that were acknowledged before the sync: ChangeUntilFlushed looks after every 64.
    EXPECT_GE(*change + 65, changes_);
    EXPECT_EQ(opened->counters().bands_lost + opened->counters().records_lost, 0u);
  }
}

// The disk has lost what it had synced, and the log that had the same records is gone. RocksDB
// takes a list that is too short for whole, and one with zeros at its end, too, if they begin with
// an entry.
TEST_F(TornFlushFaultTest, AStoreThatHasLostAFlushsEntriesIsRefusedOnceTheirLogIsGone) {
  SimulatedDisk disk(EmptyDisk());
  {
    KVTIER_ASSERT_OK_AND_ASSIGN(const auto tier, Open(disk));
    PutObject(*tier);
    const size_t sync = ChangeUntilFlushed(*tier, disk).second;
    if (HasFailure()) return;
    // Also where the process is killed now.
    const auto is_marked = [&] {
      const std::vector<DiskOp> log = disk.log();
      return std::any_of(log.begin() + static_cast<ptrdiff_t>(sync), log.end(),
                         [](const DiskOp& op) { return absl::EndsWith(op.target, "/db/LIST"); });
    };
    EXPECT_TRUE(Eventually(is_marked)) << "a flush is not marked";
  }  // RocksDB removes the logs before it is closed.
  ExpectRefusedWithoutAnyEndOfList(disk.state());
}

// At start-up the records of the last log are flushed, and it is removed.
TEST_F(TornFlushFaultTest, AStoreThatHasLostAStartsEntriesIsRefused) {
  SimulatedDisk disk(EmptyDisk());
  {
    KVTIER_ASSERT_OK_AND_ASSIGN(const auto tier, Open(disk));
    PutObject(*tier);
    Change(*tier);
  }
  KVTIER_ASSERT_OK(Open(disk));
  ExpectRefusedWithoutAnyEndOfList(disk.state());
}

// A mark that is damaged says nothing, as if it were a store of an older build.
TEST_F(TornFlushFaultTest, ADamagedMarkKeepsNothingFromOpening) {
  SimulatedDisk disk(EmptyDisk());
  {
    KVTIER_ASSERT_OK_AND_ASSIGN(const auto tier, Open(disk));
    PutObject(*tier);
    Change(*tier);
  }
  const std::string path = folder_ + "/db/LIST";
  DiskState state = disk.state();
  const auto mark = state.names().find(path);
  ASSERT_NE(mark, state.names().end());
  const std::string text = state.Content(mark->second);
  for (size_t at = 0; at < text.size(); ++at) {
    DiskState flipped = state;
    std::string content = text;
    content[at] = static_cast<char>(content[at] ^ 1);
    flipped.Apply({.kind = DiskOp::Kind::kWrite,
                   .path = path,
                   .file = mark->second,
                   .data = std::make_shared<const std::string>(content)});
    SimulatedDisk left(flipped);
    KVTIER_ASSERT_OK_AND_ASSIGN(const auto tier, Open(left));
    EXPECT_EQ(ChangeOf(*tier), changes_);
  }
}

}  // namespace
}  // namespace kvtier
