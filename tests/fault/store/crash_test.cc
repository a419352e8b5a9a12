// The crash matrix: a child process runs a script of operations and is killed at every pass of
// every sync point; then this process opens what is left. What was acknowledged must be whole, byte
// for byte; the operation that was cut off may show its old state or its new one, nothing between.
//
// The child is this binary again, with CrashChild.RunsScript and the variables below.
#include <fcntl.h>
#include <signal.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "base/log.h"
#include "base/simulated_clock.h"
#include "base/status_macros.h"
#include "base/status_matchers.h"
#include "base/sync_point.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "store/tiered_store.h"
#include "tests/fault/store/fault_env.h"
#include "tests/testing/child_process.h"
#include "tests/testing/files.h"
#include "tests/testing/store_checks.h"
#include "tests/testing/temp_dir.h"
#include "tests/testing/test_object.h"

namespace kvtier {
namespace {

constexpr char kScriptVariable[] = "KVTIER_CRASH_SCRIPT";
constexpr char kFolderVariable[] = "KVTIER_CRASH_FOLDER";

CompressedObject ObjectOf(uint64_t seed, uint64_t upload_seed) {
  return MakeTestObject({.head_dim = 64,
                         .context_tokens = 200,
                         .edges = "0.2,0.5,1",
                         .seed = seed,
                         .upload_seed = upload_seed});
}
constexpr uint32_t kBands = 3;

// --- Scripts, and the state of the store after each step -----------------------------------------

struct Step {
  enum class Op { kPut, kDelete, kDropBands, kPin } op = Op::kPut;
  uint64_t seed = 0;
  uint64_t upload_seed = 0;                       // kPut
  Durability durability = Durability::kDisk;      // kPut
  uint32_t bands = kBands;                        // kDropBands
  absl::Duration ttl = absl::InfiniteDuration();  // kPut
  bool pinned = false;                            // kPin
};

Step Put(uint64_t seed, uint64_t upload_seed = 0, Durability durability = Durability::kDisk) {
  return {.op = Step::Op::kPut, .seed = seed, .upload_seed = upload_seed, .durability = durability};
}
Step PutWithTtl(uint64_t seed, uint64_t upload_seed, Durability durability) {
  return {.op = Step::Op::kPut,
          .seed = seed,
          .upload_seed = upload_seed,
          .durability = durability,
          .ttl = absl::Hours(1)};
}
Step Pin(uint64_t seed, bool pinned) {
  return {.op = Step::Op::kPin, .seed = seed, .pinned = pinned};
}
Step Delete(uint64_t seed) { return {.op = Step::Op::kDelete, .seed = seed}; }
Step DropBands(uint64_t seed, uint32_t bands) {
  return {.op = Step::Op::kDropBands, .seed = seed, .bands = bands};
}

struct Script {
  double host_budget_objects = 10;
  std::vector<Step> steps;
};

const std::map<std::string, Script>& Scripts() {
  static const auto* const scripts = new std::map<std::string, Script>{
      {"open", {.steps = {}}},
      {"put", {.steps = {Put(1), Put(2)}}},
      {"replace", {.steps = {Put(1), DropBands(1, 1), Put(1, 1), DropBands(1, 2), Put(1, 2)}}},
      {"drop_bands",
       {.steps = {Put(1), Put(2), DropBands(1, 2), DropBands(1, 1), DropBands(2, 2)}}},
      {"delete", {.steps = {Put(1), Put(2), Delete(1), Put(1, 1), Delete(2), Delete(1)}}},
      {"demote",
       {.host_budget_objects = 1.5,
        .steps = {Put(1, 0, Durability::kHost), Put(2, 0, Durability::kHost), Put(3),
                  Put(4, 0, Durability::kHost)}}},
      {"attributes",
       {.steps = {PutWithTtl(1, 0, Durability::kDisk), Pin(1, true), Pin(1, false), Pin(1, true),
                  DropBands(1, 1), Put(1, 1), Delete(1), Put(1, 2)}}},
      {"demote_attributes",
       {.host_budget_objects = 1.5,
        .steps = {PutWithTtl(1, 0, Durability::kHost), Pin(1, true), Put(2, 0, Durability::kHost),
                  Put(3, 0, Durability::kHost), Pin(1, false)}}},
  };
  return *scripts;
}

struct Expected {
  uint64_t upload_seed = 0;
  uint32_t bands = 0;
  bool may_be_absent = false;  // Acknowledged with kHost: a crash may take it, whole.
  ObjectAttributes attributes = {};
};
using State = std::map<uint64_t, Expected>;  // By seed.

State Apply(State state, const Step& step) {
  switch (step.op) {
    case Step::Op::kPut:
      // A pin passes on to the upload that replaces a pinned one.
      state[step.seed] = {step.upload_seed,
                          kBands,
                          step.durability == Durability::kHost,
                          {.pinned = state[step.seed].attributes.pinned,
                           .expires_at = SimulatedClock::DefaultStart() + step.ttl}};
      break;
    case Step::Op::kDelete:
      state.erase(step.seed);
      break;
    case Step::Op::kDropBands:
      state[step.seed].bands = step.bands;
      break;
    case Step::Op::kPin:
      state[step.seed].attributes.pinned = step.pinned;
      break;
  }
  return state;
}

absl::StatusOr<std::unique_ptr<TieredStore>> Open(const Script& script, const std::string& folder,
                                                  Clock& clock, FaultEnv& env) {
  const uint64_t object_bytes = ObjectOf(1, 0).manifest->total_bytes();
  return OpenTestStore(
      folder, static_cast<uint64_t>(script.host_budget_objects * static_cast<double>(object_bytes)),
      clock, env.env());
}

absl::Status RunStep(TieredStore& store, const Step& step) {
  const CompressedObject object = ObjectOf(step.seed, step.upload_seed);
  switch (step.op) {
    case Step::Op::kPut:
      return store.Put(TenantId(), object, step.durability, std::nullopt, step.ttl).status();
    case Step::Op::kDelete:
      return store.Delete(TenantId(), object.manifest->key);
    case Step::Op::kDropBands:
      return store.DropBands(TenantId(), object.manifest->key, step.bands);
    case Step::Op::kPin:
      return store
          .SetAttributes(TenantId(), object.manifest->key, std::nullopt, {.pinned = step.pinned})
          .status();
  }
  return absl::InternalError("no such step");
}

// --- The child -----------------------------------------------------------------------------------

// Not buffered: what is written before the kill is there after it.
void AppendTo(const std::string& path, absl::string_view text) {
  const int file = open(path.c_str(), O_WRONLY | O_CREAT | O_APPEND, 0600);
  KVTIER_CHECK(file >= 0) << path;
  KVTIER_CHECK_EQ(write(file, text.data(), text.size()), static_cast<ssize_t>(text.size()));
  close(file);
}

TEST(CrashChild, RunsScript) {
  const char* const name = std::getenv(kScriptVariable);
  if (name == nullptr) GTEST_SKIP() << "runs as a child of CrashTest";
  const std::string folder = std::getenv(kFolderVariable);
  const Script& script = Scripts().at(name);
  SimulatedClock clock;
  FaultEnv env;
  {
    KVTIER_ASSERT_OK_AND_ASSIGN(const auto store, Open(script, folder, clock, env));
    for (const Step& step : script.steps) {
      KVTIER_ASSERT_OK(RunStep(*store, step));
      AppendTo(folder + ".acks", ".");
    }
  }
  for (const std::string& point : SyncPoints::PassedNames()) {
    if (point.starts_with("upload.")) continue;  // Uploads are in memory.
    AppendTo(folder + ".points", absl::StrCat(point, " ", SyncPoints::PassCount(point), "\n"));
  }
}

ExitStatus RunChild(const std::string& script, const std::string& folder,
                    const std::string& crash_at) {
  absl::StatusOr<std::unique_ptr<ChildProcess>> child =
      ChildProcess::Start("/proc/self/exe", {"--gtest_filter=CrashChild.RunsScript"},
                          {.environment = {{kScriptVariable, script},
                                           {kFolderVariable, folder},
                                           {"KVTIER_CRASH_AT", crash_at}},
                           .output_file = folder + ".output"});
  KVTIER_CHECK_OK(child);
  absl::StatusOr<ExitStatus> status = (*child)->Wait(absl::Seconds(60));
  KVTIER_CHECK_OK(status);
  return *status;
}

// "<point>:<n>" for every pass of a whole run.
std::vector<std::string> AllCrashes(const std::string& script, const std::string& folder) {
  const ExitStatus status = RunChild(script, folder, "");
  KVTIER_CHECK_EQ(status.exit_code, 0) << ReadFile(folder + ".output");
  std::vector<std::string> crashes;
  for (const absl::string_view line :
       absl::StrSplit(ReadFile(folder + ".points"), '\n', absl::SkipEmpty())) {
    const std::vector<std::string> fields = absl::StrSplit(line, ' ');
    int count = 0;
    KVTIER_CHECK(absl::SimpleAtoi(fields[1], &count));
    for (int pass = 1; pass <= count; ++pass) {
      crashes.push_back(absl::StrCat(fields[0], ":", pass));
    }
  }
  return crashes;
}

// --- The parent ----------------------------------------------------------------------------------

// OK if the store is exactly in `state`.
absl::Status CheckState(TieredStore& store, const Script& script, const State& state) {
  for (const Step& step : script.steps) {
    const auto expected = state.find(step.seed);
    const CompressedObject object =
        ObjectOf(step.seed, expected == state.end() ? 0 : expected->second.upload_seed);
    if (expected == state.end()) {
      KVTIER_RETURN_IF_ERROR(CheckStored(store, TenantId(), object, 0));
      continue;
    }
    const absl::Status whole = CheckStored(store, TenantId(), object, expected->second.bands);
    if (absl::IsNotFound(whole) && expected->second.may_be_absent) continue;
    KVTIER_RETURN_IF_ERROR(whole);
    KVTIER_ASSIGN_OR_RETURN(const ObjectStat stat, store.Stat(TenantId(), object.manifest->key));
    if (stat.attributes != expected->second.attributes) {
      return absl::FailedPreconditionError(
          absl::StrCat("seed ", step.seed, ": pinned ", stat.attributes.pinned, ", expires at ",
                       absl::FormatTime(stat.attributes.expires_at)));
    }
  }
  return absl::OkStatus();
}

// Files that hold bands, beside those of the records.
uint64_t SegmentFileBytes(const std::string& folder) {
  uint64_t bytes = 0;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(folder)) {
    if (entry.is_regular_file() && entry.path().extension() == ".sst") bytes += entry.file_size();
  }
  return bytes;
}

class CrashMatrix : public testing::Test {
 protected:
  void VerifyAfterCrash(const std::string& script_name, const std::string& folder) {
    const Script& script = Scripts().at(script_name);
    const size_t acked =
        std::filesystem::exists(folder + ".acks") ? ReadFile(folder + ".acks").size() : 0;
    State before;
    for (size_t i = 0; i < acked; ++i) before = Apply(before, script.steps[i]);
    const State after = acked < script.steps.size() ? Apply(before, script.steps[acked]) : before;

    FaultEnv env;
    KVTIER_ASSERT_OK_AND_ASSIGN(const auto store, Open(script, folder, clock_, env));
    const absl::Status old_state = CheckState(*store, script, before);
    const absl::Status new_state = CheckState(*store, script, after);
    EXPECT_TRUE(old_state.ok() || new_state.ok())
        << acked << " steps were acknowledged; old: " << old_state << "; new: " << new_state;
    EXPECT_EQ(store->counters().checksum_failures, 0u);
    EXPECT_EQ(store->counters().bands_lost, 0u);
    // Nothing that no record names has stayed on disk.
    constexpr uint64_t kRecordBytes = 64 << 10;
    EXPECT_LE(SegmentFileBytes(folder), store->disk_usage()->bytes + kRecordBytes);
    // And the store goes on.
    KVTIER_EXPECT_OK(store->Put(TenantId(), ObjectOf(99, 0), Durability::kDisk));
    KVTIER_EXPECT_OK(CheckStored(*store, TenantId(), ObjectOf(99, 0), kBands));
  }

  SimulatedClock clock_;
};

class CrashTest : public CrashMatrix, public testing::WithParamInterface<std::string> {};

TEST_P(CrashTest, AcknowledgedObjectsSurviveAKillAtEverySyncPoint) {
  TempDir dir;
  const std::vector<std::string> crashes = AllCrashes(GetParam(), dir.File("whole"));
  ASSERT_GT(crashes.size(), 10u);
  for (size_t i = 0; i < crashes.size(); ++i) {
    SCOPED_TRACE(crashes[i]);
    const std::string folder = dir.File(absl::StrCat("crash", i));
    const ExitStatus status = RunChild(GetParam(), folder, crashes[i]);
    ASSERT_EQ(status.signal, SIGKILL) << ReadFile(folder + ".output");
    VerifyAfterCrash(GetParam(), folder);
    std::filesystem::remove_all(folder);
    if (HasFatalFailure()) return;
  }
}

INSTANTIATE_TEST_SUITE_P(Scripts, CrashTest,
                         testing::Values("put", "replace", "drop_bands", "delete", "demote",
                                         "attributes", "demote_attributes"),
                         [](const testing::TestParamInfo<std::string>& script) {
                           return script.param;
                         });

// A second crash, while the first one is being cleaned up.
struct TwoCrashes {
  std::string name;
  std::string script;
  std::string first;
};

class CrashInRecoveryTest : public CrashMatrix, public testing::WithParamInterface<TwoCrashes> {};

TEST_P(CrashInRecoveryTest, AKillDuringStartUpChangesNothing) {
  TempDir dir;
  for (const char* second : {"store.recover.after_orphan:1", "store.drop.after_segments:1"}) {
    SCOPED_TRACE(second);
    const std::string folder = dir.File(second);
    ASSERT_EQ(RunChild(GetParam().script, folder, GetParam().first).signal, SIGKILL);
    ASSERT_EQ(RunChild("open", folder, second).signal, SIGKILL);
    VerifyAfterCrash(GetParam().script, folder);
  }
}

INSTANTIATE_TEST_SUITE_P(
    Scripts, CrashInRecoveryTest,
    testing::Values(TwoCrashes{"OrphanUpload", "put", "store.seal.before_manifest:2"},
                    TwoCrashes{"BandsAboveTheRecord", "drop_bands", "store.drop.after_record:1"},
                    TwoCrashes{"ReplacedUpload", "replace", "store.put.after_disk:2"},
                    TwoCrashes{"DeletedUpload", "delete", "store.delete.after_record:1"}),
    [](const testing::TestParamInfo<TwoCrashes>& crashes) { return crashes.param.name; });

}  // namespace
}  // namespace kvtier
