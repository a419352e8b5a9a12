// kvtier-gpu-check --bench without a GPU: what it writes and resumes, and its rows by the emulator
// with a clock of the test's.
#include <cstdint>
#include <fstream>
#include <limits>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/status_matchers.h"
#include "cuda/device_backend.h"
#include "cuda/emulated/emulated_device.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/gpu/bench_cases.h"
#include "tests/gpu/bench_run.h"
#include "tests/testing/files.h"
#include "tests/testing/temp_dir.h"

namespace kvtier {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

class BenchRunTest : public ::testing::Test {
 protected:
  // Rows that note their name when they are measured.
  std::vector<BenchRow> Rows(const std::vector<std::string>& names) {
    std::vector<BenchRow> rows;
    for (const std::string& name : names) {
      rows.push_back({name, [this, name]() -> absl::StatusOr<Figures> {
                        measured_.push_back(name);
                        if (name == fails_) return absl::ResourceExhaustedError("no memory");
                        return Figures{{"seconds", seconds_}};
                      }});
    }
    return rows;
  }
  absl::StatusOr<BenchReport> Run(const std::vector<std::string>& names, bool resume,
                                  const std::string& device = "GPU one",
                                  const std::string& build = "one") {
    measured_.clear();
    return RunBench(Rows(names),
                    {.build = build, .device = device, .file = file_, .resume = resume});
  }
  std::string Content() const { return ReadFile(file_); }

  const TempDir dir_;
  const std::string file_ = dir_.File("bench.jsonl");
  std::string fails_;
  double seconds_ = 0.5;
  std::vector<std::string> measured_;
};

TEST_F(BenchRunTest, GoesOnBehindTheLastRow) {
  KVTIER_ASSERT_OK_AND_ASSIGN(BenchReport report, Run({"a", "b"}, false));
  EXPECT_EQ(report.measured, 2);
  EXPECT_THAT(Content(), HasSubstr(R"({"build":"one","device":"GPU one",)"
                                   R"("figures":{"seconds":0.5},"name":"a"})"));
  KVTIER_ASSERT_OK_AND_ASSIGN(report, Run({"a", "b", "c"}, true));
  EXPECT_THAT(measured_, ElementsAre("c"));
  EXPECT_EQ(report.skipped, 2);
}

TEST_F(BenchRunTest, RowsOfAnotherDeviceAndFailedOnesAreMeasuredAgain) {
  fails_ = "b";
  KVTIER_ASSERT_OK_AND_ASSIGN(const BenchReport report, Run({"a", "b", "c"}, false));
  EXPECT_EQ(report.failed, 1);
  EXPECT_THAT(measured_, ElementsAre("a", "b", "c"));  // A failure does not end the run.
  EXPECT_THAT(Content(), HasSubstr("no memory"));
  fails_.clear();
  KVTIER_ASSERT_OK(Run({"a", "b", "c"}, true).status());
  EXPECT_THAT(measured_, ElementsAre("b"));
  KVTIER_ASSERT_OK(Run({"a", "b"}, true, "GPU two").status());
  EXPECT_THAT(measured_, ElementsAre("a", "b"));
}

TEST_F(BenchRunTest, RowsOfAnotherBuildAreMeasuredAgain) {
  KVTIER_ASSERT_OK(Run({"a", "b"}, false).status());
  KVTIER_ASSERT_OK(Run({"a", "b"}, true, "GPU one", "two").status());
  EXPECT_THAT(measured_, ElementsAre("a", "b"));
  KVTIER_ASSERT_OK(Run({"a", "b"}, true, "GPU one", "two").status());
  EXPECT_THAT(measured_, ElementsAre());
  // Who did not say its build is another one.
  WriteFile(file_, R"({"device":"GPU one","figures":{"seconds":1},"name":"a"})"
                   "\n");
  KVTIER_ASSERT_OK(Run({"a"}, true).status());
  EXPECT_THAT(measured_, ElementsAre("a"));
}

TEST(BuildOfTest, TellsProgramsOfOtherBytesApart) {
  const TempDir dir;
  const std::string program = dir.File("program");
  EXPECT_THAT(BuildOf(program), StatusIs(absl::StatusCode::kUnknown, HasSubstr(program)));
  WriteFile(program, "123456789");
  EXPECT_THAT(BuildOf(program), IsOkAndHolds("crc32c 0xE3069283"));
  FlipBit(program, 8);
  KVTIER_ASSERT_OK_AND_ASSIGN(const std::string other, BuildOf(program));
  EXPECT_NE(other, "crc32c 0xE3069283");
  KVTIER_EXPECT_OK(BuildOf("/proc/self/exe").status());
}

TEST_F(BenchRunTest, AFigureThatIsNoNumberIsAFailure) {
  seconds_ = std::numeric_limits<double>::quiet_NaN();
  KVTIER_ASSERT_OK_AND_ASSIGN(BenchReport report, Run({"a"}, false));
  EXPECT_EQ(report.failed, 1);
  EXPECT_THAT(Content(), HasSubstr(R"("error":"INTERNAL: seconds is nan")"));
  seconds_ = std::numeric_limits<double>::infinity();
  KVTIER_ASSERT_OK_AND_ASSIGN(report, Run({"a"}, true));
  EXPECT_EQ(report.failed, 1);
  EXPECT_THAT(Content(), HasSubstr(R"("error":"INTERNAL: seconds is inf")"));
  seconds_ = 1;
  KVTIER_ASSERT_OK_AND_ASSIGN(report, Run({"a"}, true));
  EXPECT_EQ(report.measured, 1);
}

TEST_F(BenchRunTest, ALineThatWasCutOffIsMeasuredAgain) {
  KVTIER_ASSERT_OK(Run({"a", "b"}, false).status());
  const std::string whole = Content();
  // What a run keeps of a file keeps its bytes, also where they are spaced as nobody here would.
  const std::string spaced = "{ \"device\": \"GPU two\",  \"name\": \"a\", \"error\": \"\" }\n";
  WriteFile(file_, spaced + whole.substr(0, whole.size() - 7));
  KVTIER_ASSERT_OK(Run({"a", "b"}, true).status());
  EXPECT_THAT(measured_, ElementsAre("b"));
  EXPECT_EQ(Content(), spaced + whole);
  // Whole but for its end of line.
  WriteFile(file_, whole.substr(0, whole.size() - 1));
  KVTIER_ASSERT_OK(Run({"a", "b"}, true).status());
  EXPECT_EQ(Content(), whole);
}

TEST_F(BenchRunTest, RefusesWhatItWouldSpoil) {
  KVTIER_ASSERT_OK(Run({"a"}, true).status());  // No file yet: nothing to go on behind.
  EXPECT_THAT(Run({"a"}, false), StatusIs(absl::StatusCode::kAlreadyExists, HasSubstr(file_)));
  EXPECT_THAT(Run({"a", "a"}, true), StatusIs(absl::StatusCode::kInvalidArgument));
  std::ofstream(file_, std::ios::app) << "{\"name\": \"no row\"}\n";
  EXPECT_THAT(Run({"a"}, true), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("line 2")));
  EXPECT_THAT(RunBench({}, {.build = "one", .device = "GPU one", .file = "", .resume = true}),
              StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(RunBench(Rows({"a"}),
                       {.build = "one", .device = "GPU one", .file = "/nowhere/to/be/written"}),
              StatusIs(absl::StatusCode::kUnknown));
  EXPECT_THAT(ReadMeasured("/nowhere/at/all", "", ""), StatusIs(absl::StatusCode::kNotFound));
}

TEST(BenchCasesTest, EveryRowMeasures) {
  std::shared_ptr<Device> device = MakeEmulatedDevice();
  KVTIER_ASSERT_OK_AND_ASSIGN(const auto backend,
                              MakeDeviceBackend(device, MakePlainGemm(device), DType::kBf16));
  double now = 0;
  BenchTarget target;
  target.device = device;
  target.backend = backend.get();
  target.clock = [&now] { return now += 0.25; };  // Every run takes a quarter of a second.
  target.models = {{.name = "tiny",
                    .layers = 2,
                    .kv_heads = 4,
                    .group = 2,
                    .head_dim = 64,
                    .hidden = 32,
                    .mlp = 48,
                    .vocabulary = 50}};
  target.contexts = {40};
  target.chunk = 16;
  target.prefill_rows = 4;
  target.copy_bytes = 4096;
  target.rotate_bytes = 1;
  target.runs = 1;
  const std::vector<BenchRow> rows = MakeBenchRows(target);
  std::vector<std::string> names;
  for (const BenchRow& row : rows) {
    SCOPED_TRACE(row.name);
    names.push_back(row.name);
    KVTIER_ASSERT_OK_AND_ASSIGN(const Figures figures, row.measure());
    for (const auto& [name, value] : figures) EXPECT_GT(value, 0) << name;
    if (row.name == "copy") {
      EXPECT_EQ(figures.at("bytes_per_second"), 2 * 4096 / 0.25);
    }
    if (row.name == "decode/tiny/40/full") {
      // 4 heads x 40 rows x 64 x 2 bytes, keys and values, in one layer of a quarter of a second.
      EXPECT_EQ(figures.at("bytes_per_second"), 4 * 40 * 64 * 2 * 2 / 0.25);
      EXPECT_EQ(figures.at("copy_share"), 4 * 40 * 64 * 2 * 2 / (2 * 4096.0));
    }
    if (row.name == "decode-step/tiny/40") {
      // Eight steps in each quarter of a second. Of 2 layers x 4 heads x 40 pairs 96 are kept.
      EXPECT_EQ(figures.at("replayed_seconds"), 0.25 / 8);
      EXPECT_GE(figures.at("bytes_per_second"), 96 * 64 * 2 * 2 / (0.25 / 8));
    }
    if (row.name == "compress/tiny/40") {
      // 40 tokens and 3 of the system prompt, 2 layers: 43 x 4 heads x 64 x 2 bytes, twice each.
      EXPECT_EQ(figures.at("cache_bytes"), 43 * 4 * 64 * 2 * 2 * 2);
      // q and o of 32 x 512, k and v of 32 x 256, the MLP's three of 32 x 48.
      const double linear = 2 * (2 * 32 * 512 + 2 * 32 * 256 + 3 * 32 * 48);
      const double flop = 2 * linear * 43 + 2 * 2 * 512 * 43 * 43;
      EXPECT_EQ(figures.at("prefill_flop_per_second"), flop / 0.25);
      // Three looks at the clock, each a quarter of a second after the one before it.
      EXPECT_EQ(figures.at("prefill_and_score_over_prefill"), 2);
      EXPECT_EQ(figures.at("compress_seconds"), 0.75);
      // A chunk's keys and values, and activations: less than the cache of so few tokens takes
      // twice.
      EXPECT_LT(figures.at("scoring_extra_bytes"), 4 * figures.at("cache_bytes"));
    }
  }
  EXPECT_THAT(names, ElementsAre("copy", "decode/tiny/40/uneven", "decode/tiny/40/equal",
                                 "decode/tiny/40/full", "rank-and-pack/tiny/40", "score/tiny/40",
                                 "compress/tiny/40", "decode-step/tiny/40", "products/tiny"));
}

// The device holds one model at a time, and the checkpoint's folder goes when it is loaded.
TEST(BenchCasesTest, AnotherModelTakesTheFirstOnesPlace) {
  std::shared_ptr<Device> device = MakeEmulatedDevice();
  KVTIER_ASSERT_OK_AND_ASSIGN(const auto backend,
                              MakeDeviceBackend(device, MakePlainGemm(device), DType::kBf16));
  double now = 0;
  BenchTarget target;
  target.device = device;
  target.backend = backend.get();
  target.clock = [&now] { return now += 0.25; };
  const BenchModel llama = {.name = "a",
                            .layers = 1,
                            .kv_heads = 1,
                            .group = 2,
                            .head_dim = 64,
                            .hidden = 32,
                            .mlp = 48,
                            .vocabulary = 2000};
  BenchModel qwen = llama;
  qwen.name = "b";
  qwen.qwen2 = true;
  target.models = {llama, qwen};
  target.contexts = {24, 16};
  target.chunk = 16;
  std::map<std::string, uint64_t> in_use;
  for (const BenchRow& row : MakeBenchRows(target)) {
    if (row.name.rfind("compress/", 0) != 0) continue;
    SCOPED_TRACE(row.name);
    KVTIER_ASSERT_OK_AND_ASSIGN(const Figures figures, row.measure());
    KVTIER_ASSERT_OK_AND_ASSIGN(const DeviceMemoryUse use, device->MemoryUse());
    in_use[row.name] = use.bytes;
    EXPECT_GE(use.bytes, figures.at("weight_bytes"));
    EXPECT_LT(use.bytes, 1.5 * figures.at("weight_bytes"));
  }
  ASSERT_EQ(in_use.size(), 4u);
  EXPECT_EQ(in_use["compress/a/24"], in_use["compress/a/16"]);
}

TEST(BenchCasesTest, TheModelsHaveTheirShapes) {
  // 131,072 and 196,608 bytes of keys and values per token.
  const BenchModel llama = Llama31With8B();
  EXPECT_EQ(llama.layers * llama.kv_heads * llama.head_dim * 2 * 2, 131072u);
  const BenchModel qwen = Qwen25With14B();
  EXPECT_EQ(qwen.layers * qwen.kv_heads * qwen.head_dim * 2 * 2, 196608u);
  EXPECT_EQ(qwen.kv_heads * qwen.group * qwen.head_dim, qwen.hidden);
}

}  // namespace
}  // namespace kvtier
