// The harness itself, on the fixture model: small runs whose outcome is known, and the shortcuts it
// takes against the long way.
#include "bench/quality/experiment.h"

#include <filesystem>
#include <map>
#include <numeric>

#include "base/status_matchers.h"
#include "bench/quality/asker.h"
#include "bench/quality/document_state.h"
#include "bench/quality/ranked_rows.h"
#include "compressor/baselines.h"
#include "compressor/cpu_backend.h"
#include "compressor/decoder.h"
#include "compressor/model.h"
#include "compressor/sampler.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/testing/paths.h"

namespace kvtier {
namespace {

std::string Fixture(absl::string_view path) {
  return std::filesystem::path(SourcePath("tests/fixtures")) / std::string(path);
}

const Task& TaskNamed(absl::string_view name) {
  for (const Task& task : AllTasks()) {
    if (name == task.name) return task;
  }
  KVTIER_CHECK(false);
  return AllTasks()[0];
}

const Method& MethodNamed(absl::string_view name) {
  for (const Method& method : AllMethods()) {
    if (name == method.name) return method;
  }
  KVTIER_CHECK(false);
  return AllMethods()[0];
}

class ExperimentTest : public ::testing::Test {
 protected:
  void SetUp() override {
    backend_ = MakeCpuBackend({.threads = 1});
    KVTIER_ASSERT_OK_AND_ASSIGN(model_, Model::Load(Fixture("model"), *backend_));
    const absl::StatusOr<TextSource> source = TextSource::Load({Fixture("documents")}, false);
    KVTIER_ASSERT_OK(source);
    source_ = std::make_unique<TextSource>(*source);
  }

  // The decoder, one token at a time: what a worker does.
  bool GreedyAnswers(Decoder& decoder, const AskedIds& asked) {
    decoder.Reset();
    absl::StatusOr<std::span<const float>> logits = decoder.Append(asked.question);
    for (uint32_t expected : asked.answer) {
      KVTIER_CHECK_OK(logits);
      const uint32_t next = Greedy(*logits);
      if (next != expected) return false;
      logits = decoder.Append({&next, 1});
    }
    return true;
  }

  std::unique_ptr<Backend> backend_;
  std::unique_ptr<Model> model_;
  std::unique_ptr<TextSource> source_;
};

// Both shortcuts at once: feeding the expected answer instead of decoding, and attending to rows in
// rank order instead of to the bands of a packed object.
TEST_F(ExperimentTest, AskingEqualsGreedyDecodingFromTheBandsOfAnObject) {
  const ByteVocabulary bytes = *model_->profile().byte_vocabulary;
  KVTIER_ASSERT_OK_AND_ASSIGN(
      const TaskDocument document,
      MakeTaskDocument(TaskNamed("repeat"), *source_, 600, /*seed=*/3, /*index=*/0));
  KVTIER_ASSERT_OK_AND_ASSIGN(const auto state,
                              DocumentState::Create(*model_, {}, bytes.Encode(document.text)));
  const Evaluation& evaluation = state->evaluation();
  KVTIER_ASSERT_OK_AND_ASSIGN(const auto asker,
                              Asker::Create(*model_, evaluation.cache().geometry(), 80));
  const BandEdges edges = BandEdges::Default();
  std::map<bool, int> outcomes;
  for (const char* name : {"kvzip", "sink_recent"}) {
    const Method& method = MethodNamed(name);
    KVTIER_ASSERT_OK_AND_ASSIGN(const BandAssignment assignment,
                                method.assign(*state, nullptr, edges));
    RankedRows rows;
    KVTIER_ASSERT_OK(rows.Fill(*backend_, evaluation.cache(), evaluation.system_tokens(),
                               assignment.band, edges.size()));
    const ScoreTable scores =
        absl::string_view(name) == "kvzip"
            ? **state->Scores(Scorer::kKvzip)
            : SinkRecentScores(evaluation.cache().geometry(), evaluation.system_tokens(),
                               evaluation.context_tokens());
    KVTIER_ASSERT_OK_AND_ASSIGN(const CompressedObject object, evaluation.Pack(scores));
    for (uint32_t b : {0u, 3u, 4u, 5u}) {
      KVTIER_ASSERT_OK_AND_ASSIGN(const auto cache,
                                  Evaluation::BandsOf(object, edges.edge(BandIndex(b))));
      KVTIER_ASSERT_OK_AND_ASSIGN(const auto decoder, Decoder::Create(*model_, cache, 80));
      const LayerSpans spans = rows.At(b);
      for (size_t s = 0; s < 8; ++s) {
        const Hop& hop = document.samples[s].hops[0];
        // Answers of several lengths cross the borders of blocks and pieces.
        const AskedIds asked{model_->profile().WrapQuery(bytes.Encode(hop.question)),
                             bytes.Encode(hop.answer.substr(0, 1 + 7 * s))};
        KVTIER_ASSERT_OK_AND_ASSIGN(const bool right,
                                    asker->Answers(asked, spans, evaluation.cache().length()));
        EXPECT_EQ(right, GreedyAnswers(*decoder, asked)) << name << ", band " << b << ": " << s;
        ++outcomes[right];
      }
    }
  }
  EXPECT_GE(outcomes[true], 10);  // Both outcomes, or this test shows nothing.
  EXPECT_GE(outcomes[false], 10);
}

TEST_F(ExperimentTest, AskerRefusesWhatItCannotAsk) {
  KVTIER_ASSERT_OK_AND_ASSIGN(
      const auto asker, Asker::Create(*model_, model_->config().MakeGeometry(DType::kBf16), 8));
  const LayerSpans none = nullptr;
  EXPECT_THAT(asker->Answers({{}, {1}}, none, 0), StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(asker->Answers({{1}, {}}, none, 0), StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(asker->Answers({std::vector<uint32_t>(40, 1), {1}}, none, 0),
              StatusIs(absl::StatusCode::kInvalidArgument));
}

TEST_F(ExperimentTest, RankedRowsRefuseBandsThatDoNotFit) {
  KVTIER_ASSERT_OK_AND_ASSIGN(const auto state,
                              DocumentState::Create(*model_, {}, std::vector<uint32_t>(20, 65)));
  const DenseCache& cache = state->evaluation().cache();
  RankedRows rows;
  std::vector<uint8_t> bands(24 * 20);
  const uint64_t system = state->evaluation().system_tokens();
  KVTIER_EXPECT_OK(rows.Fill(*backend_, cache, system, bands, 2));
  bands[3] = 2;
  EXPECT_THAT(rows.Fill(*backend_, cache, system, bands, 2),
              StatusIs(absl::StatusCode::kInvalidArgument));
  bands.pop_back();
  EXPECT_THAT(rows.Fill(*backend_, cache, system, bands, 3),
              StatusIs(absl::StatusCode::kInvalidArgument));
}

TEST_F(ExperimentTest, SmallRunHasEveryCellAndKnownWinners) {
  ExperimentOptions options;
  options.ratios = {*Ratio::FromDouble(0.3), *Ratio::FromDouble(0.9)};
  options.tasks = {&TaskNamed("needle")};
  for (const char* name : {"kvzip", "snapkv", "random"}) {
    options.methods.push_back(&MethodNamed(name));
  }
  options.samples = 13;  // Two documents of twelve.
  options.bytes = 600;
  options.threads = 2;
  KVTIER_ASSERT_OK_AND_ASSIGN(const std::vector<TaskResult> results,
                              RunExperiment(*model_, *source_, options, nullptr));
  ASSERT_EQ(results.size(), 1u);
  const TaskResult& result = results[0];
  EXPECT_EQ(result.documents, 2u);
  ASSERT_EQ(result.document.size(), 24u);
  EXPECT_EQ(result.document[11], 0u);
  EXPECT_EQ(result.document[12], 1u);
  std::map<std::string, int> right;
  for (const Cell& cell : result.cells) {
    ASSERT_EQ(cell.right.size(), 24u);
    const std::string codec = cell.codec == "raw" ? "" : absl::StrCat(cell.codec, " ");
    const std::string name = absl::StrCat(cell.method, " ", codec, cell.ratio.ToString(), " ",
                                          SettingName(cell.setting), " ", OriginName(cell.origin));
    EXPECT_EQ(right.count(name), 0u) << name;
    right[name] = std::accumulate(cell.right.begin(), cell.right.end(), 0);
  }
  EXPECT_GE(right.at("full 1 shared full"), 23);
  EXPECT_EQ(right.at("snapkv 1 shared full"), right.at("full 1 per_query full"));
  EXPECT_GE(right.at("kvzip 0.3 shared selected"), right.at("full 1 shared full") - 1);
  EXPECT_EQ(right.at("kvzip 0.3 per_query selected"), right.at("kvzip 0.3 shared selected"));
  EXPECT_EQ(right.at("kvzip 0.3 shared bands"), right.at("kvzip 0.3 shared selected"));
  EXPECT_GE(right.at("kvzip int8 0.3 shared bands"), right.at("full 1 shared full") - 1);
  EXPECT_GE(right.at("kvzip int4 0.3 shared bands"), right.at("full 1 shared full") - 2);
  EXPECT_LE(right.at("random 0.3 shared selected"), 4);
  // Four digits lie inside SnapKV's pooling window: it keeps them when it sees the question, and
  // loses those of other questions.
  EXPECT_GE(right.at("snapkv 0.3 per_query selected"), 20);
  EXPECT_LE(right.at("snapkv 0.3 shared selected"), 18);

  options.threads = 1;
  KVTIER_ASSERT_OK_AND_ASSIGN(const std::vector<TaskResult> again,
                              RunExperiment(*model_, *source_, options, nullptr));
  for (size_t c = 0; c < result.cells.size(); ++c) {
    EXPECT_EQ(result.cells[c].right, again[0].cells[c].right);
  }
}

// Documents of 600 bytes hold eight chains, not ten: a third one makes up for it.
TEST_F(ExperimentTest, AsksMoreDocumentsWhereTheyAreShort) {
  ExperimentOptions options;
  options.ratios = {*Ratio::FromDouble(0.3)};
  options.tasks = {&TaskNamed("multi_hop")};
  options.methods = {&MethodNamed("random")};
  options.samples = 20;
  options.bytes = kTaskBytesMin;
  KVTIER_ASSERT_OK_AND_ASSIGN(const uint64_t documents, DocumentCount(*source_, options));
  EXPECT_EQ(documents, 3u);
  uint64_t asked = 0;
  KVTIER_ASSERT_OK_AND_ASSIGN(const std::vector<TaskResult> results,
                              RunExperiment(*model_, *source_, options, [&] { ++asked; }));
  EXPECT_EQ(asked, documents);
  EXPECT_EQ(results[0].documents, documents);
  EXPECT_EQ(results[0].document.size(), 24u);
  // Documents of the usual size need none: the samples of a seed stay what they were.
  options.bytes = 800;
  KVTIER_ASSERT_OK_AND_ASSIGN(const uint64_t usual, DocumentCount(*source_, options));
  EXPECT_EQ(usual, 2u);
  options.bytes = kTaskBytesMin - 1;
  EXPECT_THAT(DocumentCount(*source_, options),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       ::testing::HasSubstr("multi_hop, document 0: documents of 599 bytes")));
}

TEST_F(ExperimentTest, NamesTheDocumentThatFails) {
  ExperimentOptions options;
  options.ratios = {*Ratio::FromDouble(0.3)};
  options.tasks = {&TaskNamed("key_value")};
  options.bytes = 20'000;  // More positions than the model has.
  options.samples = 1;
  EXPECT_THAT(RunExperiment(*model_, *source_, options, nullptr),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       ::testing::HasSubstr("key_value, document 0: the context needs")));
  options.tasks = {};
  EXPECT_THAT(RunExperiment(*model_, *source_, options, nullptr),
              StatusIs(absl::StatusCode::kInvalidArgument));
}

}  // namespace
}  // namespace kvtier
