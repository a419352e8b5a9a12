// kvtierctl as a script sees it: what a store has, keeps, gives up, tells its watchers and
// verifies.
#include <filesystem>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "base/limits.h"
#include "kvtier/v1/store.pb.h"
#include "services/client.h"
#include "tests/integration/ctl_fixture.h"
#include "tests/testing/files.h"
#include "tests/testing/test_object.h"

namespace kvtier {
namespace {

using ::testing::AllOf;
using ::testing::ContainsRegex;
using ::testing::EndsWith;
using ::testing::HasSubstr;
using ::testing::StartsWith;

TEST_F(CtlTest, ShowsWhatAStoreAndACompressorHave) {
  StartStore();
  StartCompressor();
  EXPECT_EQ(Run("ls", {"--json"}).json(), nlohmann::json::array());
  const std::string key = CompressText();
  ASSERT_EQ(key.size(), 64);

  EXPECT_THAT(Run("ls").out, ContainsRegex(absl::StrCat(key, " +tiny +113 +1 ")));
  const nlohmann::json list = Run("ls", {"--json"}).json();
  ASSERT_EQ(list.size(), 1);
  EXPECT_EQ(list[0]["key"], key);
  EXPECT_THAT(Run("stat", {"--key", key}).out,
              AllOf(HasSubstr(key), HasSubstr("113 tokens (+ 3 protected)"),
                    HasSubstr("crash and restart"), HasSubstr("host+disk")));

  const nlohmann::json models = Run("models", {"--json"}).json();
  ASSERT_EQ(models.size(), 1);
  EXPECT_EQ(models[0]["name"], "tiny");
  EXPECT_EQ(models[0]["vocabulary"], 264);
  EXPECT_TRUE(models[0]["byte_vocabulary"]);
  EXPECT_THAT(Run("models").out, ContainsRegex("tiny +2 +2 +32 +4096 .* bf16  bytes"));

  const nlohmann::json stats = Run("stats", {"--json"}).json();
  EXPECT_EQ(stats["objects"], 1);
  EXPECT_GT(stats["host_bytes"], 0);
  EXPECT_GE(stats["disk_bytes"], stats["host_bytes"]);
  EXPECT_GT(stats["frame_bytes_max"], 0);
  EXPECT_EQ(stats["leases"]["bytes"], 0);
  EXPECT_GT(stats["leases"]["bytes_max"], 0);
  EXPECT_EQ(stats["limits"]["uploads_max"], limits::kUploadsMax);
  EXPECT_EQ(stats["limits"]["object_bytes_max"], stats["object_bytes_max"]);
  EXPECT_EQ(stats["limits"].size(), v1::Limits::descriptor()->field_count());
  const std::string text = Run("stats").out;
  EXPECT_THAT(text, AllOf(StartsWith("1 objects, 0 leases\n"), ContainsRegex("\ndisk +[0-9]"),
                          ContainsRegex("\nleases +0 B +[0-9]"),
                          ContainsRegex("\nframe_bytes_max +1048576\n")));
  // Values end in one column.
  const size_t table = text.find("\nlimit ");
  ASSERT_NE(table, std::string::npos);
  std::set<size_t> widths;
  for (const absl::string_view line : absl::StrSplit(text.substr(table), '\n', absl::SkipEmpty())) {
    widths.insert(line.size());
  }
  EXPECT_THAT(widths, testing::SizeIs(1));
}

TEST_F(CtlTest, StatDescribesBandsAndHeads) {
  StartStore();
  StartCompressor();
  const std::string key = CompressText();
  const nlohmann::json listed = Run("ls", {"--json"}).json()[0];
  const std::string picture = dir_.File("object.svg");
  const Outcome outcome = Run("stat", {key, "--json", "--plot", picture});
  ASSERT_EQ(outcome.exit_code, 0) << outcome.err;
  const nlohmann::json stat = outcome.json();
  for (const auto& [field, value] : listed.items()) {
    if (field == "bands") continue;
    EXPECT_EQ(stat.value(field, nlohmann::json()), value) << field;
  }
  ASSERT_EQ(stat["bands"].size(), 6);
  double mass = 0;
  for (size_t b = 0; b < 6; ++b) {
    const nlohmann::json& band = stat["bands"][b];
    EXPECT_EQ(band["ratio"], listed["bands"][b]["ratio"]);
    mass += band["score_mass_share"].get<double>();
    EXPECT_NEAR(band["score_mass_up_to_here"], mass, 1e-12);
    // 2 layers x 2 heads, 113 tokens.
    EXPECT_EQ(band["rows_up_to_here"], static_cast<int>(band["ratio"].get<double>() * 452 + 1e-6));
    EXPECT_EQ(band["kept"].size(), 2);
    EXPECT_EQ(band["kept"][0].size(), 2);
  }
  EXPECT_NEAR(mass, 1, 1e-12);
  EXPECT_EQ(stat["bands"][5]["kept"], nlohmann::json({{1, 1}, {1, 1}}));
  EXPECT_EQ(stat["scored_layers"], nlohmann::json({0, 1}));
  EXPECT_FALSE(stat.contains("fidelity"));
  EXPECT_THAT(ReadFile(picture),
              AllOf(StartsWith("<svg "), EndsWith("</svg>\n"), HasSubstr(key.substr(0, 12))));
  const Outcome text = Run("stat", {key, "--heads_at=0.25"});
  EXPECT_THAT(text.out, AllOf(HasSubstr("score mass"), HasSubstr("at ratio 0.3, of 4\n")));
}

TEST_F(CtlTest, GivesUpBandsAndRemovesObjects) {
  StartStore();
  StartCompressor();
  const std::string key = CompressText();
  const Outcome less = Run("rm", {key, "--keep_ratio=0.35", "--json"});
  ASSERT_EQ(less.exit_code, 0) << less.err;
  EXPECT_EQ(less.json()["resident_bands"], 3);
  EXPECT_THAT(Run("stat", {key}).out, ContainsRegex("\n *0.4 .* gone\n"));
  EXPECT_EQ(Run("rm", {key, "--keep_ratio=nan"}).exit_code, 2);
  EXPECT_EQ(Run("rm", {key, "--keep_ratio=1.5"}).exit_code, 2);
  EXPECT_THAT(Run("rm", {key}).out, HasSubstr("removed " + key));
  for (const char* command : {"rm", "stat", "verify"}) {
    SCOPED_TRACE(command);
    const Outcome missing = Run(command, {key});
    EXPECT_EQ(missing.exit_code, 3);
    EXPECT_THAT(missing.err, HasSubstr("not found"));
  }
  EXPECT_EQ(Run("rm", {}).exit_code, 2);
}

TEST_F(CtlTest, PinsAndLimitsTheLifeOfAnObject) {
  StartStore();
  StartCompressor();
  const std::string key = CompressText();
  const Outcome pinned = Run("pin", {key});
  EXPECT_EQ(pinned.exit_code, 0) << pinned.err;
  EXPECT_THAT(pinned.out, HasSubstr("pinned, never expires"));
  EXPECT_GT(Run("stats", {"--json"}).json()["tenant"].value("pinned_bytes", 0), 0);
  EXPECT_THAT(Run("stats").out, HasSubstr("own: 1 objects"));
  EXPECT_THAT(Run("stat", {key}).out, HasSubstr("kept      pinned"));
  const Outcome unpinned = Run("unpin", {key, "--json"});
  EXPECT_EQ(unpinned.exit_code, 0) << unpinned.err;
  EXPECT_FALSE(unpinned.json().value("pinned", true));
  EXPECT_THAT(Run("ttl", {key, "36h"}).out, HasSubstr("not pinned, expires 20"));
  EXPECT_EQ(Run("ttl", {key, "never", "--json"}).json().value("expires_unix_ms", -1), 0);
  EXPECT_EQ(Run("ttl", {key, "1ms"}).exit_code, 0);
  // A miss at once; the sweep then tells who watches.
  EXPECT_EQ(Run("stat", {key}).exit_code, 3);
  EXPECT_EQ(Run("pin", {key}).exit_code, 3);
}

TEST_F(CtlTest, ATenantIsShownItsOwnObjects) {
  StartStore();
  StoreClient other(MakeChannel(store_->address()), *TenantId::FromString("other"));
  const CompressedObject object = MakeTestObject({});
  KVTIER_ASSERT_OK(other.Put(object, v1::DURABILITY_HOST, nullptr, CancelToken(),
                             absl::Now() + absl::Seconds(50)));
  const std::string key = object.manifest->key.ToHex();
  EXPECT_EQ(Run("ls", {"--json"}).json().size(), 0u);
  const Outcome listed = Run("ls", {"--json", "--tenant=other"});
  ASSERT_EQ(listed.json().size(), 1u) << listed.out << listed.err;
  EXPECT_EQ(listed.json()[0].value("key", ""), key);
  EXPECT_EQ(Run("stat", {key}).exit_code, 3);
  for (const std::string command : {"stat", "verify", "pin", "unpin"}) {
    const Outcome outcome = Run(command, {key, "--tenant=other"});
    EXPECT_EQ(outcome.exit_code, 0) << command << ": " << outcome.err;
  }
  const Outcome fetched = Run("fetch", {key, "--tenant=other", "--out", dir_.File("fetched")});
  EXPECT_EQ(fetched.exit_code, 0) << fetched.err;
  const Outcome rebanded = Run("reband", {key, "--edges=0.3,1", "--tenant=other", "--json"});
  EXPECT_EQ(rebanded.exit_code, 0) << rebanded.err;
  EXPECT_TRUE(rebanded.json().value("stored", false)) << rebanded.out;
  EXPECT_EQ(Run("stats", {"--json", "--tenant=other"}).json()["tenant"].value("objects", 0), 1);
  EXPECT_EQ(Run("rm", {key}).exit_code, 3);
  EXPECT_EQ(Run("rm", {key, "--tenant=other"}).exit_code, 0);
}

TEST_F(CtlTest, WatchesAndRemovesMany) {
  StartStore();
  StartCompressor();
  const std::string key = CompressText();
  const std::unique_ptr<ChildProcess> watch =
      Begin("watch-", {"watch", "--json", "--events=1", "--store=" + store_->address()});
  const std::vector<std::string> lines = AwaitLines(*watch, "watch-", 1);
  ASSERT_EQ(lines.size(), 1u) << Finish(*watch, "watch-").err;
  const auto snapshot = nlohmann::json::parse(lines[0], nullptr, /*allow_exceptions=*/false);
  ASSERT_EQ(snapshot.value("event", ""), "snapshot") << lines[0];
  EXPECT_EQ(snapshot["objects"][0].value("key", ""), key);
  const std::string incarnation =
      absl::StrCat("--incarnation=", snapshot.value("incarnation", uint64_t{0}));
  const std::string after = absl::StrCat("--after=", snapshot.value("sequence", uint64_t{0}));

  EXPECT_THAT(Run("rm", {"--model=nobody"}).err, HasSubstr("no stored object"));
  const std::string model = Run("ls", {"--json"}).json()[0].value("model", "");
  const Outcome dry = Run("rm", {"--model", model, "--dry_run"});
  EXPECT_THAT(dry.out, StartsWith("would remove 1 objects"));
  EXPECT_EQ(Run("ls", {"--json"}).json().size(), 1u);
  const Outcome removed = Run("rm", {"--model", model, "--json"});
  EXPECT_EQ(removed.exit_code, 0) << removed.err;
  EXPECT_EQ(removed.json().value("objects", 0), 1);
  EXPECT_THAT(Run("rm", {"--all"}).out, StartsWith("removed 0 objects"));

  // Whoever was watching has seen it; whoever comes back later is told.
  const Outcome watched = Finish(*watch, "watch-");
  EXPECT_EQ(watched.exit_code, 0) << watched.err;
  EXPECT_THAT(watched.out, AllOf(HasSubstr("\"removed\""), HasSubstr(key))) << watched.out;
  const Outcome event = Run("watch", {"--events=1", incarnation, after});
  EXPECT_EQ(event.exit_code, 0) << event.err;
  EXPECT_THAT(event.out, HasSubstr(key + " removed, deleted"));
}

TEST_F(CtlTest, FetchesToAFolderAndVerifiesIt) {
  StartStore();
  StartCompressor();
  const std::string key = CompressText();
  const std::string folder = dir_.File("fetched/here");
  const Outcome fetched = Run("fetch", {key, "--ratio=0.3", "--out", folder, "--json"});
  ASSERT_EQ(fetched.exit_code, 0) << fetched.err;
  EXPECT_EQ(fetched.json()["ratio"], 0.3);
  EXPECT_EQ(fetched.json()["bands"], 3);
  const Outcome intact = RunExactly({"verify", "--data_dir", folder, "--json"});
  ASSERT_EQ(intact.exit_code, 0) << intact.err;
  EXPECT_EQ(intact.json()["objects"], 1);
  EXPECT_EQ(intact.json()["bytes"], fetched.json()["bytes"]);

  const std::string segment = folder + "/segment-01-0001";
  const uint64_t size = std::filesystem::file_size(segment);
  for (const uint64_t offset : {uint64_t{0}, size / 2, size - 1}) {
    FlipBit(segment, offset);
    const Outcome damaged = RunExactly({"verify", "--data_dir", folder});
    EXPECT_EQ(damaged.exit_code, 1);
    EXPECT_THAT(damaged.err, HasSubstr("DATA_LOSS"));
    FlipBit(segment, offset);
  }
  EXPECT_EQ(RunExactly({"verify", "--data_dir", folder}).exit_code, 0);
  TruncateFile(segment, size - 1);
  EXPECT_EQ(RunExactly({"verify", "--data_dir", folder}).exit_code, 1);
  EXPECT_EQ(RunExactly({"verify", "--data_dir", dir_.File("missing")}).exit_code, 3);
  EXPECT_EQ(Run("fetch", {std::string(64, 'a'), "--out", folder}).exit_code, 3);
}

TEST_F(CtlTest, VerifiesARunningAndAStoppedStore) {
  StartStore();
  StartCompressor();
  const std::string key = CompressText();
  const Outcome online = Run("verify", {"--json"});
  ASSERT_EQ(online.exit_code, 0) << online.err;
  EXPECT_EQ(online.json()["objects"], 1);
  EXPECT_EQ(Run("verify", {key, "--json"}).json(), online.json());
  KVTIER_ASSERT_OK(store_->Stop());

  const std::string data = dir_.File("data");
  const Outcome offline = RunExactly({"verify", "--data_dir", data, "--json"});
  ASSERT_EQ(offline.exit_code, 0) << offline.err;
  EXPECT_EQ(offline.json(), online.json());

  // Damage one byte in the middle of the largest file of values: where the segments are.
  std::filesystem::path largest;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(data)) {
    const std::string extension = entry.path().extension();
    if ((extension == ".blob" || extension == ".sst") &&
        (largest.empty() || entry.file_size() > std::filesystem::file_size(largest))) {
      largest = entry.path();
    }
  }
  FlipBit(largest, std::filesystem::file_size(largest) / 2);
  const Outcome damaged = RunExactly({"verify", "--data_dir", data});
  EXPECT_EQ(damaged.exit_code, 1) << largest;
  EXPECT_THAT(damaged.err, AllOf(HasSubstr(key), HasSubstr("DATA_LOSS"), HasSubstr("band")));
}

}  // namespace
}  // namespace kvtier
