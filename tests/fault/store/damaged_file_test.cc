// A flipped byte anywhere in any file of a store's folder, file kind by file kind. Whatever the
// byte means: no wrong byte is served, what is lost is counted, and an object that the byte does
// not belong to is served, at the latest when the byte is as it was: nothing intact has been
// deleted. tests/fault/store/damage_test.cc says what damage to a segment costs, band by band.
#include <filesystem>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "base/log.h"
#include "base/simulated_clock.h"
#include "base/status_matchers.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "store/rocksdb_tier.h"
#include "store/tiered_store.h"
#include "tests/fault/store/fault_env.h"
#include "tests/testing/files.h"
#include "tests/testing/store_checks.h"
#include "tests/testing/temp_dir.h"
#include "tests/testing/test_object.h"

namespace kvtier {
namespace {

constexpr uint64_t kHostBytes = 64
                                << 20;  // Empty at every start: what was there is read from disk.
constexpr uint32_t kBands = 3;
constexpr uint64_t kObjects = 6;

struct FileKind {
  std::string name;
  std::string start;  // Of the file's name.
  std::string end;
  int flips;             // Spread over the file.
  uint64_t objects_max;  // That one flip may cost, if the store opens.
  bool may_refuse;       // To open, naming the damage.
};
void PrintTo(const FileKind& kind, std::ostream* os) { *os << kind.name; }

class DamagedFile : public testing::Test {
 protected:
  absl::StatusOr<std::unique_ptr<TieredStore>> Open(const std::string& folder) {
    return OpenTestStore(folder, kHostBytes, clock_, env_.env());
  }
  static CompressedObject ObjectOf(uint64_t seed) {
    return MakeTestObject({.edges = "0.3,0.6,1", .seed = seed});
  }

  // Half of the records in tables, half in the log, and an upload that was cut off.
  void Fill(const std::string& folder) {
    for (const uint64_t first : {uint64_t{1}, kObjects / 2 + 1}) {
      KVTIER_ASSERT_OK_AND_ASSIGN(const auto store, Open(folder));
      for (uint64_t seed = first; seed < first + kObjects / 2; ++seed) {
        KVTIER_ASSERT_OK(store->Put(TenantId(), ObjectOf(seed), Durability::kDisk));
      }
    }
    WriteFile(folder + "/staging/cut-0.sst", "half of a band, of an upload that was cut off");
  }

  // The largest file of such a name, or none: a log of a former start is empty, if it is there.
  static std::string FindFile(const std::string& folder, const std::string& start,
                              const std::string& end) {
    std::string path;
    for (const auto& entry : std::filesystem::recursive_directory_iterator(folder)) {
      const std::string name = entry.path().filename();
      if (!entry.is_regular_file() || !absl::StartsWith(name, start) ||
          !absl::EndsWith(name, end)) {
        continue;
      }
      if (path.empty() || entry.file_size() > std::filesystem::file_size(path)) path = entry.path();
    }
    return path;
  }

  // How many objects are whole; the others are not there, or shorter.
  uint64_t CountWhole(TieredStore& store) {
    uint64_t whole = 0;
    for (uint64_t seed = 1; seed <= kObjects; ++seed) {
      absl::Status last;
      for (uint32_t bands = kBands + 1; bands-- > 0;) {
        last = CheckStored(store, TenantId(), ObjectOf(seed), bands);
        if (!last.ok()) continue;
        whole += bands == kBands ? 1 : 0;
        break;
      }
      KVTIER_EXPECT_OK(last) << "object " << seed << " is neither whole nor shorter nor away";
    }
    return whole;
  }

  TempDir dir_;
  FaultEnv env_;
  SimulatedClock clock_;
};

class DamagedLogTest : public DamagedFile {};
class DamagedFileTest : public DamagedFile, public testing::WithParamInterface<FileKind> {};

TEST_P(DamagedFileTest, AFlippedByteServesNothingWrongAndHarmsNothingElse) {
  const FileKind& kind = GetParam();
  Fill(dir_.File("store"));
  ASSERT_FALSE(FindFile(dir_.File("store"), kind.start, kind.end).empty()) << "no such file";
  int refused = 0;
  int lossy = 0;
  for (int flip = 0; flip < kind.flips; ++flip) {
    const std::string folder = dir_.File(absl::StrCat("copy", flip));
    std::filesystem::copy(dir_.File("store"), folder, std::filesystem::copy_options::recursive);
    const std::string file = FindFile(folder, kind.start, kind.end);
    const uint64_t offset = std::filesystem::file_size(file) * flip / kind.flips;
    SCOPED_TRACE(
        absl::StrCat("offset ", offset, " of ", std::filesystem::file_size(file), " of ", file));
    FlipBit(file, offset, flip % 8);
    absl::StatusOr<std::unique_ptr<TieredStore>> store = Open(folder);
    if (store.ok()) {
      const uint64_t whole = CountWhole(**store);
      EXPECT_GE(whole + kind.objects_max, kObjects);
      const StoreCounters& counters = (*store)->counters();
      if (whole < kObjects) {
        ++lossy;
        EXPECT_GT(counters.checksum_failures + counters.bands_lost + counters.log_damage, 0u);
      }
      const CompressedObject next = ObjectOf(99);
      KVTIER_EXPECT_OK((*store)->Put(TenantId(), next, Durability::kDisk));
      KVTIER_EXPECT_OK(CheckStored(**store, TenantId(), next, kBands));
    } else {
      ++refused;
      EXPECT_TRUE(kind.may_refuse) << store.status();
      EXPECT_THAT(store.status(), testing::AnyOf(StatusIs(absl::StatusCode::kFailedPrecondition),
                                                 StatusIs(absl::StatusCode::kDataLoss),
                                                 StatusIs(absl::StatusCode::kUnavailable)));
      EXPECT_THAT(store.status().message(), testing::HasSubstr(folder)) << "does not say which";
      FlipBit(file, offset, flip % 8);
      KVTIER_ASSERT_OK_AND_ASSIGN(const auto healed, Open(folder));
      EXPECT_EQ(CountWhole(*healed), kObjects) << "a store that refused to open has deleted";
    }
    if (store.ok()) store->reset();  // Its background work removes files, too.
    std::filesystem::remove_all(folder);
    if (HasFailure()) return;
  }
  KVTIER_LOG(INFO) << kind.name << ": of " << kind.flips << " flips " << refused
                   << " were refused, " << lossy << " cost something";
}

// RocksDB reads its log in blocks of 32 KiB, and cannot tell where a record begins behind a damaged
// one of the same block.
TEST_F(DamagedLogTest, DamageCostsItsBlockOfTheLogAndNotAllThatComesAfterIt) {
  constexpr uint64_t kInLog = 120;
  const std::string folder = dir_.File("store");
  {
    KVTIER_ASSERT_OK_AND_ASSIGN(const auto store, Open(folder));
    for (uint64_t seed = 1; seed <= kInLog; ++seed) {
      KVTIER_ASSERT_OK(store->Put(TenantId(), ObjectOf(seed), Durability::kDisk));
    }
  }
  const std::string log = FindFile(folder, "", ".log");
  ASSERT_GT(std::filesystem::file_size(log), 2u * 32 * 1024) << "too short for the test";
  FlipBit(log, 100, 1);
  KVTIER_ASSERT_OK_AND_ASSIGN(const auto store, Open(folder));
  EXPECT_GE(store->counters().log_damage, 1u);
  EXPECT_THAT(CheckStored(*store, TenantId(), ObjectOf(1), 0), IsOk()) << "its record is damaged";
  uint64_t whole = 0;
  for (uint64_t seed = 1; seed <= kInLog; ++seed) {
    const absl::Status status = CheckStored(*store, TenantId(), ObjectOf(seed), kBands);
    if (status.ok()) ++whole;
    if (seed > kInLog / 2) {
      KVTIER_EXPECT_OK(status) << "object " << seed;
    }
  }
  EXPECT_GE(whole, kInLog / 2);
}

INSTANTIATE_TEST_SUITE_P(
    Kinds, DamagedFileTest,
    testing::Values(FileKind{"Format", "FORMAT", "", 24, 0, true},
                    FileKind{"Staging", "cut", ".sst", 4, 0, false},
                    FileKind{"Current", "CURRENT", "", 17, 0, true},
                    FileKind{"Options", "OPTIONS", "", 12, 0, false},
                    // What was written since the last start is in the log, in one block of it.
                    FileKind{"Log", "0", ".log", 40, kObjects / 2, false},
                    // A change that looks torn off is one that never was: the object it is about.
                    FileKind{"Manifest", "MANIFEST", "", 40, 1, true},
                    // The largest tables are of segments.
                    FileKind{"Segments", "0", ".sst", 40, 1, false}),
    [](const testing::TestParamInfo<FileKind>& kind) { return kind.param.name; });

}  // namespace
}  // namespace kvtier
