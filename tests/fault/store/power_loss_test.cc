// Loss of power after every change that the store makes to its disk. A script of operations runs
// once on a simulated disk; then, for each prefix of the changes, the disk is as a loss of power
// would have left it at that moment (see disk_state.h), and the store opens again. What was
// acknowledged must be whole, byte for byte; the operation that was cut off may show its old state
// or its new one, nothing between.
//
// tests/fault/store/crash_test.cc does the same for a killed process at the sync points; here every
// write, fsync, rename and removal is a point, and what no fsync covered is lost.
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <ostream>
#include <random>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "base/log.h"
#include "base/simulated_clock.h"
#include "base/status_macros.h"
#include "base/status_matchers.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "store/tiered_store.h"
#include "tests/fault/store/disk_state.h"
#include "tests/fault/store/simulated_disk.h"
#include "tests/testing/random.h"
#include "tests/testing/store_checks.h"
#include "tests/testing/temp_dir.h"
#include "tests/testing/test_object.h"

namespace kvtier {
namespace {

CompressedObject ObjectOf(uint64_t seed, uint64_t upload_seed) {
  return MakeTestObject({.layers = 2,
                         .kv_heads = 1,
                         .context_tokens = 40,
                         .edges = "0.2,0.5,1",
                         .seed = seed,
                         .upload_seed = upload_seed});
}
constexpr uint32_t kBands = 3;
constexpr uint64_t kSeeds = 5;           // Scripts name objects 1..kSeeds,
constexpr uint64_t kUploadSeeds = 3;     // and uploads 0..kUploadSeeds-1 of each.
constexpr uint64_t kSeedOfNextPut = 99;  // Put after each crash: the store goes on.

const absl::Duration kLongTime = absl::Seconds(60);

// --- Scripts -------------------------------------------------------------------------------------

struct Step {
  enum class Op {
    kPut,
    kDelete,
    kDropBands,
    kReopen,
    kAwaitCompaction,  // RocksDB has merged tables of records, in the background.
  } op = Op::kPut;
  uint64_t seed = 0;                          // 0: no object in particular.
  uint64_t upload_seed = 0;                   // kPut
  Durability durability = Durability::kDisk;  // kPut
  uint32_t bands = kBands;                    // kDropBands
};

Step Put(uint64_t seed, uint64_t upload_seed = 0, Durability durability = Durability::kDisk) {
  return {.op = Step::Op::kPut, .seed = seed, .upload_seed = upload_seed, .durability = durability};
}
Step PutHost(uint64_t seed) { return Put(seed, 0, Durability::kHost); }
Step Delete(uint64_t seed) { return {.op = Step::Op::kDelete, .seed = seed}; }
Step DropBands(uint64_t seed, uint32_t bands) {
  return {.op = Step::Op::kDropBands, .seed = seed, .bands = bands};
}
Step Reopen() { return {.op = Step::Op::kReopen}; }
Step AwaitCompaction() { return {.op = Step::Op::kAwaitCompaction}; }

struct Script {
  std::string name;
  std::vector<Step> steps;
  double host_budget_objects = 20;
  double disk_budget_objects = 0;  // 0: none.
};

void PrintTo(const Script& script, std::ostream* os) { *os << script.name; }

// --- What the store shows ------------------------------------------------------------------------

struct Shown {
  uint64_t upload_seed = 0;
  uint32_t bands = 0;  // 0: a miss.
  friend auto operator<=>(const Shown&, const Shown&) = default;
};
std::string ToString(const Shown& shown) {
  return shown.bands == 0 ? "a miss"
                          : absl::StrCat(shown.bands, " bands of upload ", shown.upload_seed);
}
void PrintTo(const Shown& shown, std::ostream* os) { *os << ToString(shown); }

// Reads everything that is served of an object. FAILED_PRECONDITION: other bytes than any upload's.
absl::StatusOr<Shown> Show(TieredStore& store, uint64_t seed) {
  const absl::StatusOr<std::unique_ptr<PinnedObject>> pinned =
      store.Pin(TenantId(), ObjectOf(seed, 0).manifest->key, std::nullopt);
  if (absl::IsNotFound(pinned.status())) return Shown{};
  KVTIER_RETURN_IF_ERROR(pinned);
  for (uint64_t upload_seed = 0; upload_seed < kUploadSeeds; ++upload_seed) {
    const CompressedObject object = ObjectOf(seed, upload_seed);
    if (*(*pinned)->manifest() != *object.manifest) continue;
    const uint32_t bands = (*pinned)->resident_bands();
    KVTIER_RETURN_IF_ERROR(CheckPinned(**pinned, object, bands));
    return Shown{upload_seed, bands};
  }
  return absl::FailedPreconditionError("an upload that nobody put");
}

// What each object (by seed) may show after a crash.
using Allowed = std::map<uint64_t, std::set<Shown>>;

// Beside the steps' own: bands that pressure took, one after the other, from objects that the step
// did not name.
void AllowBetween(const std::set<Shown>& before, const std::set<Shown>& after,
                  std::set<Shown>* allowed) {
  for (const Shown& old_state : before) {
    for (const Shown& new_state : after) {
      if (new_state.bands != 0 && new_state.upload_seed != old_state.upload_seed) continue;
      for (uint32_t bands = new_state.bands; bands <= old_state.bands; ++bands) {
        allowed->insert(bands == 0 ? Shown{} : Shown{old_state.upload_seed, bands});
      }
    }
  }
}

class PowerLoss : public testing::Test {
 protected:
  PowerLoss() {
    std::filesystem::create_directories(folder_);  // For the lock, which no disk of ours holds.
  }

  absl::StatusOr<std::unique_ptr<TieredStore>> Open(const Script& script, SimulatedDisk& disk) {
    const auto object_bytes = static_cast<double>(ObjectOf(1, 0).manifest->total_bytes());
    return OpenTestStore(folder_, static_cast<uint64_t>(script.host_budget_objects * object_bytes),
                         clock_, disk.env(),
                         static_cast<uint64_t>(script.disk_budget_objects * object_bytes));
  }
  DiskState EmptyDisk() const { return DiskState(dir_.path()); }

  // What the objects show now, and may show after a crash now.
  Allowed Observe(TieredStore& store) {
    Allowed allowed;
    for (uint64_t seed = 1; seed <= kSeeds; ++seed) {
      const absl::StatusOr<Shown> shown = Show(store, seed);
      EXPECT_THAT(shown, IsOk()) << "object " << seed;
      if (!shown.ok()) continue;
      allowed[seed] = {*shown};
      const auto stat = store.Stat(TenantId(), ObjectOf(seed, 0).manifest->key);
      if (stat.ok() && stat->durability == Durability::kHost) allowed[seed].insert(Shown{});
    }
    return allowed;
  }

  // One run of a script, and what a crash may show after each of its steps.
  struct Moment {
    size_t changes = 0;  // Of the disk, when the step had returned.
    absl::Status status = {};
    Allowed allowed = {};  // Of a crash after it.
    Allowed during = {};   // Of a crash in it.
  };
  std::vector<Moment> Run(
      const Script& script, SimulatedDisk& disk, const std::function<void()>& after_open = [] {}) {
    std::vector<Moment> moments;
    absl::StatusOr<std::unique_ptr<TieredStore>> store = Open(script, disk);
    KVTIER_CHECK_OK(store);
    after_open();
    moments.push_back({.changes = disk.op_count(), .allowed = Observe(**store)});
    moments.back().during = moments.back().allowed;
    for (const Step& step : script.steps) {
      const Allowed before = moments.back().allowed;
      Moment moment;
      if (step.op == Step::Op::kReopen) {
        store = absl::UnavailableError("closed");
        store = Open(script, disk);
        for (int attempt = 0; attempt < 3 && !store.ok(); ++attempt) store = Open(script, disk);
        KVTIER_CHECK_OK(store);
      } else {
        moment.status = RunStep(**store, disk, step);
      }
      moment.changes = disk.op_count();
      moment.allowed = Observe(**store);
      for (uint64_t seed = 1; seed <= kSeeds; ++seed) {
        std::set<Shown>& after = moment.allowed[seed];
        // A write that failed may come back from RocksDB's log, until the next one that does not
        // fail has undone it (store/rocksdb_database.h).
        const bool has_failed = !moment.status.ok();
        if (has_failed && seed == step.seed) AddWanted(step, before.at(seed), &after);
        if (has_failed || moment.changes == moments.back().changes) {
          after.insert(before.at(seed).begin(), before.at(seed).end());
        }
        std::set<Shown>& during = moment.during[seed];
        during = before.at(seed);
        during.insert(after.begin(), after.end());
        if (seed != step.seed) AllowBetween(before.at(seed), after, &during);
        // Of the new object too, once it is there.
        if (seed == step.seed && step.op == Step::Op::kPut) {
          AllowBetween({{step.upload_seed, kBands}}, after, &during);
        }
      }
      moments.push_back(std::move(moment));
    }
    return moments;
  }

  static void AddWanted(const Step& step, const std::set<Shown>& before, std::set<Shown>* after) {
    if (step.op == Step::Op::kPut) after->insert({step.upload_seed, kBands});
    if (step.op == Step::Op::kDelete) after->insert(Shown{});
    if (step.op != Step::Op::kDropBands) return;
    for (const Shown& old_state : before) {
      if (old_state.bands > step.bands) after->insert({old_state.upload_seed, step.bands});
    }
  }

  static absl::Status RunStep(TieredStore& store, SimulatedDisk& disk, const Step& step) {
    const CompressedObject object = ObjectOf(step.seed, step.upload_seed);
    switch (step.op) {
      case Step::Op::kPut:
        return store.Put(TenantId(), object, step.durability).status();
      case Step::Op::kDelete:
        return store.Delete(TenantId(), object.manifest->key);
      case Step::Op::kDropBands:
        return store.DropBands(TenantId(), object.manifest->key, step.bands);
      case Step::Op::kAwaitCompaction:
        return disk.AwaitChange(DiskOp::Kind::kRemove, ".sst", kLongTime)
                   ? absl::OkStatus()
                   : absl::DeadlineExceededError("RocksDB has merged nothing");
      case Step::Op::kReopen:
        break;
    }
    return absl::InternalError("no such step");
  }

  // Opens what a crash left. `disk` is then as the store left it.
  void Verify(const Script& script, const Allowed& allowed, SimulatedDisk& disk) {
    KVTIER_ASSERT_OK_AND_ASSIGN(const auto store, Open(script, disk));
    for (uint64_t seed = 1; seed <= kSeeds; ++seed) {
      const absl::StatusOr<Shown> shown = Show(*store, seed);
      ASSERT_THAT(shown, IsOk()) << "object " << seed;
      EXPECT_THAT(allowed.at(seed), testing::Contains(*shown)) << "object " << seed;
    }
    // Power loss damages nothing that was acknowledged, and what was not is not half there.
    EXPECT_EQ(store->counters().checksum_failures, 0u);
    EXPECT_EQ(store->counters().bands_lost, 0u);
    constexpr uint64_t kRecordBytes = 64 << 10;
    EXPECT_LE(disk.BytesOf(".sst"), store->disk_usage()->bytes + kRecordBytes);
    if (script.disk_budget_objects == 0) {
      const CompressedObject next = ObjectOf(kSeedOfNextPut, 0);
      KVTIER_EXPECT_OK(store->Put(TenantId(), next, Durability::kDisk));
      KVTIER_EXPECT_OK(CheckStored(*store, TenantId(), next, kBands));
    }
  }

  // Verify, then once more after a crash at a random moment of that recovery.
  void VerifyTwice(const Script& script, const Allowed& allowed, const DiskState& left,
                   std::mt19937_64& random) {
    SimulatedDisk disk(left);
    Verify(script, allowed, disk);
    if (HasFailure() || random() % kSecondCrashEvery != 0) return;
    const std::vector<DiskOp> log = disk.log();
    const size_t changes = RandomUniform(random, 0, log.size());
    SCOPED_TRACE(absl::StrCat("second crash after ", changes, " changes"));
    DiskState state = left;
    for (size_t i = 0; i < changes; ++i) state.Apply(log[i]);
    SimulatedDisk second(state.AfterPowerLoss(Survival::kRandom, random));
    Verify(script, allowed, second);
  }

  static constexpr uint64_t kSecondCrashEvery = 8;

  TempDir dir_;
  const std::string folder_ = dir_.File("store");
  SimulatedClock clock_;
};

// --- Power goes ----------------------------------------------------------------------------------

class PowerLossTest : public PowerLoss, public testing::WithParamInterface<Script> {};

TEST_P(PowerLossTest, AcknowledgedObjectsSurviveAfterEveryChangeOfTheDisk) {
  const uint64_t seed = TestSeed();
  SCOPED_TRACE(SeedTrace(seed));
  std::mt19937_64 random(seed);
  const Script& script = GetParam();
  SimulatedDisk disk(EmptyDisk());
  const std::vector<Moment> moments = Run(script, disk);
  for (const Moment& moment : moments) KVTIER_EXPECT_OK(moment.status);

  const std::vector<DiskOp> log = disk.log();
  ASSERT_GT(log.size(), 20u);
  DiskState state = EmptyDisk();
  size_t next = 0;  // The step that runs, or has not begun.
  size_t crashes = 0;
  for (size_t changes = 0; changes <= log.size(); ++changes) {
    if (changes > 0) state.Apply(log[changes - 1]);
    while (next < moments.size() && moments[next].changes < changes) ++next;
    SCOPED_TRACE(absl::StrCat("crash after ", changes, " changes, the last one: ",
                              changes == 0 ? "none" : ToString(log[changes - 1]), "; step ", next));
    // After the last step the store closes.
    const bool is_between = next == moments.size() || moments[next].changes == changes;
    const Allowed& allowed = next == moments.size() ? moments.back().allowed
                             : is_between           ? moments[next].allowed
                                                    : moments[next].during;
    for (const Survival survival : {Survival::kNone, Survival::kRandom, Survival::kAll}) {
      // All is what a kill leaves: crash_test.cc has those.
      if (survival == Survival::kAll && changes % 4 != 0) continue;
      SCOPED_TRACE(absl::StrCat("what no fsync covered survives: ",
                                survival == Survival::kNone     ? "none"
                                : survival == Survival::kRandom ? "random"
                                                                : "all"));
      VerifyTwice(script, allowed, state.AfterPowerLoss(survival, random), random);
      if (HasFailure()) return;
      ++crashes;
    }
  }
  KVTIER_LOG(INFO) << script.name << ": " << crashes << " crashes at " << log.size() << " changes";
}

INSTANTIATE_TEST_SUITE_P(
    Scripts, PowerLossTest,
    testing::Values(
        Script{"Put", {Put(1), Put(2), PutHost(3)}},
        Script{"Replace", {Put(1), DropBands(1, 1), Put(1, 1), DropBands(1, 2), Put(1, 2)}},
        Script{"DropBands", {Put(1), Put(2), DropBands(1, 2), DropBands(1, 1), DropBands(2, 2)}},
        Script{"Delete", {Put(1), Put(2), Delete(1), Put(1, 1), Delete(2), Delete(1)}},
        // A disk of about two and a half objects, as it charges them.
        Script{"Degrade", {Put(1), Put(2), Put(3), Put(4), Delete(4), Put(5), Put(3, 1)}, 20, 8},
        Script{"Demote", {PutHost(1), PutHost(2), Put(3), PutHost(4)}, 1.5},
        // Each start puts the records from RocksDB's log into tables, which it then merges.
        Script{"Compaction",
               {Put(1), Put(2), Reopen(), Delete(1), Reopen(), DropBands(2, 1), Reopen(), Put(3),
                Reopen(), Put(1, 1), Reopen(), AwaitCompaction(), Put(4)}}),
    [](const testing::TestParamInfo<Script>& script) { return script.param.name; });

// --- A change fails, and then power goes ---------------------------------------------------------

struct FaultKind {
  std::string name;
  SimulatedDisk::Fault fault;
};

void PrintTo(const FaultKind& fault, std::ostream* os) { *os << fault.name; }

class FaultThenPowerLossTest : public PowerLoss, public testing::WithParamInterface<FaultKind> {};

TEST_P(FaultThenPowerLossTest, WhatWasAcknowledgedSurvivesBoth) {
  const uint64_t seed = TestSeed();
  SCOPED_TRACE(SeedTrace(seed));
  std::mt19937_64 random(seed);
  const Script script{
      "Mixed",
      {Put(1), Put(2), DropBands(1, 2), Put(1, 1), Delete(2), Put(3), DropBands(3, 1), PutHost(4)}};
  size_t ordinal = 0;
  for (;; ++ordinal) {
    SCOPED_TRACE(absl::StrCat("change ", ordinal, " fails"));
    SimulatedDisk disk(EmptyDisk());
    const std::vector<Moment> moments =
        Run(script, disk, [&] { disk.FailOnce(ordinal, GetParam().fault); });
    if (disk.fault_count() == 0) break;
    const std::vector<DiskOp> log = disk.log();
    DiskState state = EmptyDisk();
    size_t changes = 0;
    bool has_failed = false;
    for (const Moment& moment : moments) {
      while (changes < moment.changes) state.Apply(log[changes++]);
      const bool is_first = !has_failed && !moment.status.ok();
      has_failed |= is_first;
      // Right after the step that failed, and at the end.
      if (!is_first && &moment != &moments.back()) continue;
      for (const Survival survival : {Survival::kNone, Survival::kRandom}) {
        SCOPED_TRACE(absl::StrCat("crash after step ", &moment - moments.data(), ", ",
                                  survival == Survival::kNone ? "none" : "random", " survives"));
        VerifyTwice(script, moment.allowed, state.AfterPowerLoss(survival, random), random);
        if (HasFailure()) return;
      }
    }
  }
  EXPECT_GT(ordinal, 50u);
}

INSTANTIATE_TEST_SUITE_P(Faults, FaultThenPowerLossTest,
                         testing::Values(FaultKind{"Fails", SimulatedDisk::Fault::kIoError},
                                         FaultKind{"IsFull", SimulatedDisk::Fault::kNoSpace},
                                         FaultKind{"IsTorn", SimulatedDisk::Fault::kShortWrite}),
                         [](const testing::TestParamInfo<FaultKind>& fault) {
                           return fault.param.name;
                         });

}  // namespace
}  // namespace kvtier
