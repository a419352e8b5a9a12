#include "compressor/pipeline.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <set>
#include <thread>  // NOLINT(build/c++11)

#include "absl/strings/str_cat.h"
#include "base/status_matchers.h"
#include "compressor/head_scores.h"
#include "compressor/host_packer.h"
#include "compressor/packer.h"
#include "compressor/packing.h"
#include "compressor/reference_backend.h"
#include "compressor/rule_ranking.h"
#include "compressor/scoring.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kvcache/segment.h"
#include "kvcache/token_block_hash.h"
#include "tests/testing/fake_device_backend.h"
#include "tests/unit/compressor/compress_testing.h"

namespace kvtier {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr absl::StatusCode kInvalid = absl::StatusCode::kInvalidArgument;

CompressInput InputOf(const std::vector<uint32_t>& context) {
  CompressInput input;
  input.context = context;
  return input;
}

// [layers][kv_heads] positions in bands [0, bands), ascending, and the bytes of their rows.
struct Row {
  uint32_t position;
  std::string keys_and_values;
  friend auto operator<=>(const Row&, const Row&) = default;
};
std::vector<std::vector<Row>> RowsUpTo(const CompressedObject& object, uint32_t bands) {
  const auto cache = PrefixOf(object, bands);
  const Geometry& geometry = object.manifest->geometry;
  const size_t row_bytes = geometry.row_bytes();
  std::vector<std::vector<Row>> all;
  for (uint32_t layer = 0; layer < geometry.layer_count(); ++layer) {
    for (uint32_t head = 0; head < geometry.kv_heads; ++head) {
      std::vector<Row>& rows = all.emplace_back();
      for (const RowSpan& span : cache->spans(LayerIndex(layer), head)) {
        for (uint32_t i = 0; i < span.rows; ++i) {
          std::string bytes(reinterpret_cast<const char*>(span.keys) + i * row_bytes, row_bytes);
          bytes.append(reinterpret_cast<const char*>(span.values) + i * row_bytes, row_bytes);
          rows.push_back({span.positions[i], std::move(bytes)});
        }
      }
      std::sort(rows.begin(), rows.end());
    }
  }
  return all;
}

uint64_t CountRows(const std::vector<std::vector<Row>>& rows) {
  uint64_t count = 0;
  for (const std::vector<Row>& head : rows) count += head.size();
  return count;
}

BandEdges Edges(absl::string_view text) {
  absl::StatusOr<BandEdges> edges = BandEdges::Parse(text);
  EXPECT_THAT(edges, IsOk());
  return *edges;
}

class PipelineTest : public ::testing::Test {
 protected:
  PipelineTest() : tiny_(MakeTestModel()), context_(RandomTokens(150, /*seed=*/1)) {}
  const Model& model() const { return *tiny_.model; }

  TestModel tiny_;
  std::vector<uint32_t> context_;
};

TEST_F(PipelineTest, MakesAnObjectThatVerifies) {
  const Pipeline pipeline(model(), {});
  const CompressInput input = InputOf(context_);
  KVTIER_ASSERT_OK_AND_ASSIGN(const CompressedObject object,
                              pipeline.Compress(input, nullptr, CancelToken()));
  const Manifest& manifest = *object.manifest;
  KVTIER_EXPECT_OK(manifest.Validate());
  KVTIER_ASSERT_OK_AND_ASSIGN(const KeyDescriptorHead head, pipeline.DescribeKey(input));
  EXPECT_THAT(ComputeKey(head, context_), IsOkAndHolds(manifest.key));
  EXPECT_EQ(head.recipe, "kvzip/1");
  EXPECT_EQ(manifest.recipe, "kvzip/1");
  EXPECT_EQ(manifest.model_digest, model().digest());
  EXPECT_EQ(manifest.prompt_profile_digest, model().profile().ComputeDigest());
  EXPECT_EQ(manifest.system_tokens, model().profile().prefix.size());
  EXPECT_EQ(manifest.context_tokens, 150u);
  KVTIER_ASSERT_OK_AND_ASSIGN(const Digest digest, ComputeHeadDigest(head));
  EXPECT_EQ(manifest.last_block_hash, ComputeTokenBlockHashes(digest, context_).back());
  for (uint32_t b = 0; b < manifest.bands.size(); ++b) {
    for (uint32_t l = 0; l < manifest.geometry.layer_count(); ++l) {
      KVTIER_EXPECT_OK(VerifySegmentContent(manifest, BandIndex(b), LayerIndex(l),
                                            object.segment(BandIndex(b), LayerIndex(l)).bytes()));
    }
  }
}

TEST_F(PipelineTest, HoldsTheRowsOfADenseCacheAndNothingElse) {
  const CompressedObject object = CompressForTest(model(), context_);
  std::vector<uint32_t> ids = model().profile().prefix;
  ids.insert(ids.end(), context_.begin(), context_.end());
  const DenseCache cache = PrefillForTest(model(), ids, DType::kF32);
  const std::vector<std::vector<Row>> all = RowsUpTo(object, 6);
  const size_t row_bytes = cache.geometry().row_bytes();
  for (uint32_t l = 0; l < 2; ++l) {
    for (uint32_t h = 0; h < 2; ++h) {
      const std::vector<Row>& rows = all[l * 2 + h];
      ASSERT_EQ(rows.size(), ids.size());
      for (uint32_t p = 0; p < ids.size(); ++p) {
        EXPECT_EQ(rows[p].position, p);
        const size_t at = (h * cache.capacity() + p) * row_bytes;
        // Prefill in pieces of 512 here and of 32 there: rows may differ in rounding, no more.
        const auto* key = reinterpret_cast<const float*>(rows[p].keys_and_values.data());
        const auto* expected =
            reinterpret_cast<const float*>(static_cast<const std::byte*>(cache.layer(l).keys) + at);
        for (int d = 0; d < 32; ++d) EXPECT_NEAR(key[d], expected[d], 1e-4);
      }
    }
  }
}

TEST_F(PipelineTest, AnyPrefixOfBandsIsADirectCompressionToThatRatio) {
  const CompressedObject object = CompressForTest(model(), context_);
  const BandEdges edges = BandEdges::Default();
  const uint64_t heads = 2 * 2;
  const uint64_t protected_rows = heads * object.manifest->system_tokens;
  for (uint32_t b = 0; b < edges.size(); ++b) {
    const Ratio edge = edges.edge(BandIndex(b));
    PipelineOptions options{.kv_dtype = DType::kF32};
    options.edges = b + 1 < edges.size() ? Edges(edge.ToString() + ",1") : Edges("1");
    const CompressedObject direct = CompressForTest(model(), context_, options);
    const std::vector<std::vector<Row>> kept = RowsUpTo(object, b + 1);
    EXPECT_EQ(kept, RowsUpTo(direct, 1)) << "ratio " << edge.ToString();
    EXPECT_EQ(CountRows(kept), protected_rows + edge.Of(heads * context_.size()));
  }
}

TEST_F(PipelineTest, KeepsTheSystemPromptOfTheRequestInBandZero) {
  CompressInput input = InputOf(context_);
  input.system = RandomTokens(7, /*seed=*/2);
  const Pipeline pipeline(model(), {});
  KVTIER_ASSERT_OK_AND_ASSIGN(const CompressedObject object,
                              pipeline.Compress(input, nullptr, CancelToken()));
  EXPECT_EQ(object.manifest->system_tokens, 7u);
  for (const std::vector<Row>& head : RowsUpTo(object, 1)) {
    ASSERT_GE(head.size(), 7u);
    for (uint32_t p = 0; p < 7; ++p) EXPECT_EQ(head[p].position, p);
  }
  KVTIER_ASSERT_OK_AND_ASSIGN(const KeyDescriptorHead with, pipeline.DescribeKey(input));
  KVTIER_ASSERT_OK_AND_ASSIGN(const KeyDescriptorHead without,
                              pipeline.DescribeKey(InputOf(context_)));
  EXPECT_NE(*ComputeKey(with, context_), *ComputeKey(without, context_));
}

TEST_F(PipelineTest, KeepsTheFirstTokenWhereThereIsNoSystemPrompt) {
  CompressInput input = InputOf(context_);
  input.system.emplace();
  KVTIER_ASSERT_OK_AND_ASSIGN(const CompressedObject object,
                              Pipeline(model(), {}).Compress(input, nullptr, CancelToken()));
  const std::vector<std::vector<Row>> kept = RowsUpTo(object, 1);
  EXPECT_EQ(CountRows(kept), 60u);  // 0.1 of 600 pairs, the four first tokens among them.
  for (const std::vector<Row>& head : kept) {
    ASSERT_FALSE(head.empty());
    EXPECT_EQ(head[0].position, 0u);
  }
}

TEST_F(PipelineTest, TwoComputationsGiveTheSameBytesUnderDifferentUploadIds) {
  const Pipeline pipeline(model(), {});
  absl::StatusOr<CompressedObject> objects[2];
  std::thread other([&] {  // Several calls may run at once.
    objects[1] = pipeline.Compress(InputOf(context_), nullptr, CancelToken());
  });
  objects[0] = pipeline.Compress(InputOf(context_), nullptr, CancelToken());
  other.join();
  KVTIER_ASSERT_OK(objects[0]);
  KVTIER_ASSERT_OK(objects[1]);
  EXPECT_EQ(objects[0]->manifest->key, objects[1]->manifest->key);
  EXPECT_NE(objects[0]->manifest->upload_id, objects[1]->manifest->upload_id);
  for (size_t i = 0; i < objects[0]->segments.size(); ++i) {
    const auto a = objects[0]->segments[i].bytes();
    const auto b = objects[1]->segments[i].bytes();
    EXPECT_TRUE(std::equal(a.begin(), a.end(), b.begin(), b.end())) << "segment " << i;
  }
}

TEST_F(PipelineTest, ReportsEveryStageFromNothingToAll) {
  PipelineOptions options;
  options.prefill_rows = 60;
  std::vector<std::string> heard;
  const auto progress = [&](const CompressProgress& p) {
    heard.push_back(
        absl::StrCat(CompressStageName(p.stage), " ", p.tokens_done, "/", p.tokens_total));
  };
  KVTIER_ASSERT_OK(Pipeline(model(), options).Compress(InputOf(context_), progress, CancelToken()));
  EXPECT_THAT(heard,
              ElementsAre("prefill 0/153", "prefill 60/153", "prefill 120/153", "prefill 153/153",
                          "scoring 0/150", "scoring 64/150", "scoring 128/150", "scoring 150/150",
                          "packing 0/150", "packing 75/150", "packing 150/150"));
}

TEST_F(PipelineTest, StopsAtOnceWhenCancelledInAnyStage) {
  PipelineOptions options;
  options.prefill_rows = 60;
  for (int stop_at = 1; stop_at <= 10; ++stop_at) {
    CancelToken cancel;
    int heard = 0;
    int heard_after_cancel = 0;
    const auto progress = [&](const CompressProgress&) {
      if (cancel.cancelled()) ++heard_after_cancel;
      if (++heard == stop_at) cancel.Cancel();
    };
    const auto object = Pipeline(model(), options).Compress(InputOf(context_), progress, cancel);
    EXPECT_THAT(object, StatusIs(absl::StatusCode::kCancelled)) << "after report " << stop_at;
    EXPECT_LE(heard_after_cancel, 1);  // The first report of the next stage at most.
  }
}

TEST_F(PipelineTest, RefusesBadInputByNameBeforeAnyWork) {
  PipelineOptions options;
  options.context_tokens_max = 200;
  const Pipeline pipeline(model(), options);
  const auto refusal = [&](const CompressInput& input) {
    const absl::Status status = pipeline.Validate(input);
    // Compress refuses the same with the same words, without any progress.
    EXPECT_EQ(pipeline
                  .Compress(
                      input, [](const auto&) { FAIL(); }, CancelToken())
                  .status(),
              status);
    return status;
  };
  KVTIER_EXPECT_OK(pipeline.Validate(InputOf(context_)));
  EXPECT_THAT(refusal(InputOf({})), StatusIs(kInvalid, HasSubstr("the context is empty")));

  std::vector<uint32_t> ids = context_;
  ids[17] = 264;
  EXPECT_THAT(refusal(InputOf(ids)),
              StatusIs(kInvalid, HasSubstr("context token 17 is 264, the vocabulary has 264 ids")));
  CompressInput input = InputOf(context_);
  input.system = {1, 2, 999};
  EXPECT_THAT(refusal(input), StatusIs(kInvalid, HasSubstr("system prompt token 2 is 999")));
  input.system = std::vector<uint32_t>(65537, 1);
  EXPECT_THAT(refusal(input),
              StatusIs(kInvalid, HasSubstr("the system prompt has 65537 tokens, at most 65536")));

  const std::vector<uint32_t> long_context = RandomTokens(201, /*seed=*/3);
  EXPECT_THAT(refusal(InputOf(long_context)),
              StatusIs(kInvalid, HasSubstr("the context has 201 tokens, at most 200")));
  input = InputOf(context_);
  input.recipe = "magic";
  EXPECT_THAT(refusal(input), StatusIs(kInvalid, HasSubstr("recipe \"magic\": unknown scorer")));
  EXPECT_THAT(pipeline.DescribeKey(input), StatusIs(kInvalid, HasSubstr("full-softmax")));
  input.recipe = "head";
  EXPECT_THAT(refusal(input), StatusIs(kInvalid, HasSubstr("no head scores of model")));
}

TEST(PipelineLimitsTest, CountsTheRepeatPassAgainstTheModelsPositions) {
  TinyModelOptions tiny_options;
  tiny_options.positions_max = 300;
  const TestModel tiny = MakeTestModel(tiny_options);
  const Pipeline pipeline(*tiny.model, {.kv_dtype = DType::kF32});
  // The longest context that fits: system prompt + context + its longest repeat input.
  uint64_t longest = 0;
  while (3 + longest + 1 + tiny.model->profile().RepeatRowsMax(longest + 1) <= 300) ++longest;
  const std::vector<uint32_t> fits = RandomTokens(longest, /*seed=*/4);
  const std::vector<uint32_t> too_long = RandomTokens(longest + 1, /*seed=*/4);
  KVTIER_EXPECT_OK(pipeline.Compress(InputOf(fits), nullptr, CancelToken()));
  EXPECT_THAT(pipeline.Validate(InputOf(too_long)),
              StatusIs(kInvalid, HasSubstr("the context needs 301 positions (3 of the system "
                                           "prompt,")));
}

// Head scores of the tiny model that rank heads 3, 0, 2, 1.
std::shared_ptr<const HeadScores> SomeHeadScores(const Model& model) {
  HeadScores scores;
  scores.layers = 2;
  scores.kv_heads = 2;
  scores.log_scores = {-1, -4, -2, 0.5f};
  scores.model_digest = model.digest();
  scores.file_digest = *Digest::FromHex(std::string(64, 'b'));
  return std::make_shared<const HeadScores>(std::move(scores));
}

TEST_F(PipelineTest, EveryRecipeKeepsWhatItsRuleSelectsFromItsScores) {
  PipelineOptions options{.kv_dtype = DType::kF32};
  options.head_scores = SomeHeadScores(model());
  const Pipeline pipeline(model(), options);
  const std::pair<const char*, std::string> recipes[] = {
      {"kvzip", "kvzip/1"},
      {"kvpress", "kvpress/1"},
      {"kvzip+", "kvzip+/1"},
      {"uniform", "uniform/1"},
      {"full-softmax", "full-softmax/1"},
      {"head", "head/1;scores=" + std::string(64, 'b')}};
  std::set<Key> keys;
  for (const auto& [name, canonical] : recipes) {
    for (const bool system_prompt : {true, false}) {
      SCOPED_TRACE(absl::StrCat(name, system_prompt ? "" : ", no system prompt"));
      CompressInput input = InputOf(context_);
      input.recipe = name;
      if (!system_prompt) input.system.emplace();
      KVTIER_ASSERT_OK_AND_ASSIGN(const CompressedObject object,
                                  pipeline.Compress(input, nullptr, CancelToken()));
      KVTIER_ASSERT_OK_AND_ASSIGN(const ScoredContext scored,
                                  pipeline.Score(input, nullptr, CancelToken()));
      const Manifest& manifest = *object.manifest;
      EXPECT_EQ(manifest.recipe, canonical);
      EXPECT_TRUE(keys.insert(manifest.key).second) << "two recipes share a key";
      EXPECT_EQ(scored.scores.tokens, manifest.ranked_tokens());
      EXPECT_EQ(scored.first_position, manifest.protected_tokens());
      KVTIER_ASSERT_OK_AND_ASSIGN(
          const BandAssignment bands,
          AssignBandsByRuleReference(scored.scores, options.edges, scored.recipe.selection(),
                                     system_prompt));
      for (uint32_t b = 0; b < manifest.bands.size(); ++b) {
        const std::vector<std::vector<Row>> rows = RowsUpTo(object, b + 1);
        for (uint32_t head = 0; head < 4; ++head) {
          std::vector<uint32_t> expected;
          for (uint32_t p = 0; p < manifest.logical_length(); ++p) {
            const uint64_t first = manifest.protected_tokens();
            if (p < first || bands.band[head * scored.scores.tokens + p - first] <= b) {
              expected.push_back(p);
            }
          }
          std::vector<uint32_t> got;
          for (const Row& row : rows[head]) got.push_back(row.position);
          EXPECT_EQ(got, expected) << "band " << b << ", head " << head;
        }
        for (uint32_t l = 0; l < 2; ++l) {
          KVTIER_EXPECT_OK(
              VerifySegmentContent(manifest, BandIndex(b), LayerIndex(l),
                                   object.segment(BandIndex(b), LayerIndex(l)).bytes()));
        }
      }
    }
  }
}

TEST_F(PipelineTest, ScoresAboveZeroAreStoredAsTheyAre) {
  PipelineOptions options{.kv_dtype = DType::kF32};
  options.head_scores = SomeHeadScores(model());
  const Pipeline pipeline(model(), options);
  CompressInput input = InputOf(context_);
  input.recipe = "head";
  KVTIER_ASSERT_OK_AND_ASSIGN(const CompressedObject object,
                              pipeline.Compress(input, nullptr, CancelToken()));
  // The best head, whole, is in band 0.3 = floor(1.2) heads; e^0.5 each.
  EXPECT_EQ(object.manifest->bands[2].threshold, 0.5f);
  EXPECT_NEAR(object.manifest->bands[2].score_mass, 150 * std::exp(0.5), 1e-6);
  const auto cache = PrefixOf(object, 3);
  KVTIER_ASSERT_OK_AND_ASSIGN(
      const HeadRows rows,
      ReadHead(object.manifest->geometry, object.manifest->segment(BandIndex(2), LayerIndex(1)),
               HeadRange{0, 2}, object.segment(BandIndex(2), LayerIndex(1)).bytes(), 1));
  ASSERT_EQ(rows.rows, 150u);
  EXPECT_EQ(static_cast<float>(rows.log_scores[149]), 0.5f);
}

TEST_F(PipelineTest, TheDefaultRecipeIsAnOption) {
  PipelineOptions options;
  options.recipe = "uniform";
  const Pipeline pipeline(model(), options);
  CompressInput input = InputOf(context_);
  KVTIER_ASSERT_OK_AND_ASSIGN(const KeyDescriptorHead named_by_option, pipeline.DescribeKey(input));
  EXPECT_EQ(named_by_option.recipe, "uniform/1");
  input.recipe = "kvzip/1";
  KVTIER_ASSERT_OK_AND_ASSIGN(const KeyDescriptorHead named, pipeline.DescribeKey(input));
  EXPECT_EQ(named.recipe, "kvzip/1");
}

TEST_F(PipelineTest, TheCodecIsPartOfTheRecipeAndOfTheKey) {
  const Pipeline pipeline(model(), {});
  CompressInput input = InputOf(context_);
  std::set<Key> keys;
  for (const std::string codec : {"", "int8", "int4"}) {
    input.codec = codec;
    KVTIER_ASSERT_OK_AND_ASSIGN(const CompressedObject object,
                                pipeline.Compress(input, nullptr, CancelToken()));
    const Manifest& m = *object.manifest;
    EXPECT_EQ(m.recipe, codec.empty() ? "kvzip/1" : "kvzip/1;codec=" + codec);
    EXPECT_TRUE(keys.insert(m.key).second) << codec;
    for (uint32_t b = 0; b < m.bands.size(); ++b) {
      for (uint32_t l = 0; l < m.geometry.layer_count(); ++l) {
        KVTIER_EXPECT_OK(VerifySegmentContent(m, BandIndex(b), LayerIndex(l),
                                              object.segment(BandIndex(b), LayerIndex(l)).bytes()));
      }
    }
  }
  // The field stands in the place of what the recipe names.
  input.recipe = "kvzip;codec=int4";
  input.codec = "raw";
  KVTIER_ASSERT_OK_AND_ASSIGN(const KeyDescriptorHead head, pipeline.DescribeKey(input));
  EXPECT_EQ(head.recipe, "kvzip/1");
  input.codec = "fp8";
  EXPECT_THAT(pipeline.Validate(input),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("raw, int8, int4")));
}

TEST_F(PipelineTest, RecipeHeadNeedsScoresOfThisModelAndNoPositionsForARepeatPass) {
  TinyModelOptions tiny_options;
  tiny_options.positions_max = 160;
  const TestModel tiny = MakeTestModel(tiny_options);
  PipelineOptions options;
  options.head_scores = SomeHeadScores(*tiny.model);
  CompressInput input = InputOf(context_);
  input.recipe = "head";
  KVTIER_EXPECT_OK(Pipeline(*tiny.model, options).Compress(input, nullptr, CancelToken()));
  input.recipe = "head;scores=" + std::string(64, 'c');
  EXPECT_THAT(Pipeline(*tiny.model, options).Validate(input),
              StatusIs(kInvalid, HasSubstr(std::string(64, 'b'))));
  input.recipe = "kvzip";
  EXPECT_THAT(Pipeline(*tiny.model, options).Validate(input),
              StatusIs(kInvalid, HasSubstr("of the repeat pass")));
  input.recipe = "head";
  options.head_scores = SomeHeadScores(model());
  EXPECT_THAT(Pipeline(*tiny.model, options).Validate(input),
              StatusIs(kInvalid, HasSubstr("of a model with digest")));
}

// Peak of backend memory, and the host's: scores while scoring, then scores, bands and segments.
TEST(PipelineMemoryTest, EstimateIsWithinTenPercentOfWhatCompressTakes) {
  for (uint64_t tokens : {100, 400, 700}) {
    for (const auto& [prefill_rows, recipe] :
         {std::pair(int64_t{16}, "kvzip"), std::pair(int64_t{512}, "kvzip"),
          std::pair(int64_t{16}, "kvpress"), std::pair(int64_t{16}, "uniform"),
          std::pair(int64_t{16}, "head")}) {
      auto counting = std::make_unique<CountingBackend>(MakeReferenceBackend());
      CountingBackend& backend = *counting;
      TinyModelOptions tiny_options;
      tiny_options.kv_heads = 4;
      tiny_options.layers = 3;
      tiny_options.hidden = 16;
      tiny_options.intermediate = 16;
      tiny_options.head_dim = 16;
      const TestModel tiny = MakeTestModel(tiny_options, std::move(counting));
      PipelineOptions options;
      options.prefill_rows = prefill_rows;
      HeadScores heads;
      heads.layers = 3;
      heads.kv_heads = 4;
      heads.log_scores.assign(12, -1);
      heads.model_digest = tiny.model->digest();
      heads.file_digest = *Digest::FromHex(std::string(64, 'b'));
      options.head_scores = std::make_shared<const HeadScores>(heads);
      const Pipeline pipeline(*tiny.model, options);
      const std::vector<uint32_t> context = RandomTokens(tokens, /*seed=*/5);
      CompressInput input = InputOf(context);
      input.recipe = recipe;
      const uint64_t before = backend.live_bytes();
      backend.ResetPeak();
      uint64_t while_packing = 0;
      const auto progress = [&](const CompressProgress& p) {
        if (p.stage == CompressStage::kPack) while_packing = backend.live_bytes() - before;
      };
      KVTIER_ASSERT_OK_AND_ASSIGN(const CompressedObject object,
                                  pipeline.Compress(input, progress, CancelToken()));
      const uint64_t pairs = object.manifest->scored_pairs();
      uint64_t segments = 0;
      for (const SegmentRef& segment : object.segments) segments += segment.bytes().size();
      const uint64_t measured =
          std::max(backend.peak_bytes() - before + 4 * pairs, while_packing + 5 * pairs + segments);
      const uint64_t estimate = pipeline.EstimateBytes(input);
      EXPECT_NEAR(static_cast<double>(estimate), measured, 0.1 * measured)
          << recipe << ", " << tokens << " tokens, prefill in pieces of " << prefill_rows;
      EXPECT_EQ(backend.live_bytes(), before);
    }
  }
}

TEST(PipelineOptionsTest, APieceOfAPrefillIsAsTheBackendIs) {
  const TestModel host = MakeTestModel({}, MakeReferenceBackend());
  const TestModel device = MakeTestModel({}, std::make_unique<FakeDeviceBackend>("fake:0"));
  EXPECT_EQ(Pipeline(*host.model, {}).options().prefill_rows, kHostPrefillRows);
  EXPECT_EQ(Pipeline(*device.model, {}).options().prefill_rows, kDevicePrefillRows);
  EXPECT_EQ(Pipeline(*device.model, {.prefill_rows = 7}).options().prefill_rows, 7);
}

// A device that takes so much for each pair; ranks nothing.
class StatingBackend final : public ForwardingBackend, public Packer {
 public:
  explicit StatingBackend(PairBytes bytes)
      : ForwardingBackend(MakeReferenceBackend()), bytes_(bytes) {}
  Packer* packer() override { return this; }
  absl::StatusOr<std::unique_ptr<RankedRows>> Rank(const RankRequest& /*request*/) override {
    return absl::UnimplementedError("ranking");
  }
  PairBytes pair_bytes() const override { return bytes_; }

 private:
  const PairBytes bytes_;
};

TEST(PipelineMemoryTest, EstimateCountsWhatThePackerTakesForEachPair) {
  const std::vector<uint32_t> context = RandomTokens(400, /*seed=*/5);
  const auto estimate = [&](std::unique_ptr<Backend> backend) {
    const TestModel tiny = MakeTestModel(TinyModelOptions(), std::move(backend));
    return Pipeline(*tiny.model, PipelineOptions()).EstimateBytes(InputOf(context));
  };
  const auto stating = [&](uint64_t ranking, uint64_t ranked) {
    return estimate(
        std::make_unique<StatingBackend>(PairBytes{.ranking = ranking, .ranked = ranked}));
  };
  EXPECT_EQ(stating(1, 1), estimate(MakeReferenceBackend()));
  const uint64_t much = 100'000;  // More than everything else.
  const uint64_t while_ranking = stating(2 * much, 1) - stating(much, 1);
  EXPECT_GT(while_ranking, 0);
  EXPECT_EQ(while_ranking % much, 0);
  EXPECT_EQ(stating(1, 2 * much) - stating(1, much), while_ranking);
  // Packing has its segments beside what is kept.
  EXPECT_GT(stating(1, much), stating(much, 1));
}

// Plays a device: a segment is filled by its Wait() and not before, and at most `room` of them are
// under way at once.
class LateRankedRows final : public RankedRows {
 public:
  LateRankedRows(HostRankedRows& host, int room) : host_(host), room_(room) {}
  const BandCounts& counts() const override { return host_.counts(); }
  absl::StatusOr<std::unique_ptr<SegmentFilling>> BeginSegment(const SegmentFill& fill,
                                                               SegmentBuilder& segment) override {
    if (under_way_ == room_) {
      ++refused_;
      return absl::ResourceExhaustedError("no room for another segment");
    }
    if (fails_at_ == begun_++) return absl::InvalidArgumentError("a row is refused");
    most_ = std::max(most_, ++under_way_);
    return std::make_unique<Late>(*this, fill, segment);
  }
  void FailAt(int segment) { fails_at_ = segment; }
  int begun() const { return begun_; }
  int refused() const { return refused_; }
  int most() const { return most_; }
  int under_way() const { return under_way_; }

 private:
  struct Late final : SegmentFilling {
    Late(LateRankedRows& rows, const SegmentFill& segment_fill, SegmentBuilder& segment_builder)
        : owner(rows), fill(segment_fill), segment(segment_builder) {}
    ~Late() override { --owner.under_way_; }
    absl::Status Wait() override { return owner.host_.FillSegment(fill, segment); }
    LateRankedRows& owner;
    const SegmentFill fill;
    SegmentBuilder& segment;
  };
  HostRankedRows& host_;
  const int room_;
  int fails_at_ = -1;
  int begun_ = 0;
  int refused_ = 0;
  int under_way_ = 0;
  int most_ = 0;
};

TEST_F(PipelineTest, ASegmentIsBegunWhileTheOneBeforeItIsFinished) {
  const DenseCache cache = PrefillForTest(model(), context_, DType::kF32);
  Manifest identity;
  identity.key = *Key::FromBytes(std::string(32, 'k'));
  identity.upload_id = MakeUploadId();
  identity.geometry = cache.geometry();
  identity.context_tokens = context_.size();
  ScoreTable scores = ScoreTable::Create(2, 2, context_.size());
  for (uint64_t i = 0; i < scores.pairs(); ++i) {
    scores.log_scores[i] = -0.01f * static_cast<float>(i * 37 % 997);
  }
  const BandEdges edges = BandEdges::Default();
  KVTIER_ASSERT_OK_AND_ASSIGN(BandAssignment made, AssignBands(scores, edges, true));
  const auto bands = std::make_shared<const BandAssignment>(std::move(made));
  KVTIER_ASSERT_OK_AND_ASSIGN(
      const CompressedObject expected,
      PackObject(model().backend(), cache, scores, *bands, edges, identity));
  HostRankedRows host(model().backend(), std::make_shared<const ScoreTable>(scores), bands);
  const int segments = static_cast<int>(2 * edges.size());
  for (const int room : {2, 1}) {
    SCOPED_TRACE(room);
    LateRankedRows late(host, room);
    KVTIER_ASSERT_OK_AND_ASSIGN(const CompressedObject object,
                                PackObject(model().backend(), cache, late, edges, identity));
    EXPECT_EQ(*object.manifest, *expected.manifest);
    for (size_t i = 0; i < expected.segments.size(); ++i) {
      EXPECT_TRUE(std::ranges::equal(object.segments[i].bytes(), expected.segments[i].bytes()))
          << "segment " << i;
    }
    EXPECT_EQ(late.begun(), segments);
    EXPECT_EQ(late.most(), room);
    // Where there is no room for two, each but the first waits for the one before.
    EXPECT_EQ(late.refused(), room == 1 ? segments - 1 : 0);
    EXPECT_EQ(late.under_way(), 0);
  }
  // No room at all, and a row that is refused while another segment is under way.
  LateRankedRows none(host, 0);
  EXPECT_THAT(PackObject(model().backend(), cache, none, edges, identity),
              StatusIs(absl::StatusCode::kResourceExhausted));
  LateRankedRows failing(host, 2);
  failing.FailAt(3);
  EXPECT_THAT(PackObject(model().backend(), cache, failing, edges, identity),
              StatusIs(kInvalid, HasSubstr("a row is refused")));
  EXPECT_EQ(failing.under_way(), 0);
}

TEST_F(PipelineTest, PackingRefusesWhatDoesNotFitTogether) {
  const DenseCache cache = PrefillForTest(model(), context_, DType::kF32);
  Manifest identity;
  identity.key = *Key::FromBytes(std::string(32, 'k'));
  identity.upload_id = MakeUploadId();
  identity.geometry = cache.geometry();
  identity.context_tokens = context_.size();
  const ScoreTable scores = ScoreTable::Create(2, 2, context_.size());
  const BandEdges edges = BandEdges::Default();
  KVTIER_ASSERT_OK_AND_ASSIGN(const BandAssignment bands, AssignBands(scores, edges, true));
  const auto pack = [&](const Manifest& m, const ScoreTable& s, const BandEdges& e) {
    return PackObject(model().backend(), cache, s, bands, e, m);
  };
  KVTIER_EXPECT_OK(pack(identity, scores, edges));
  EXPECT_THAT(pack(identity, scores, Edges("1")), StatusIs(kInvalid, HasSubstr("assignment")));
  EXPECT_THAT(pack(identity, ScoreTable::Create(2, 2, 3), edges),
              StatusIs(kInvalid, HasSubstr("scores of 2 layers x 2 heads x 3 tokens")));
  Manifest other = identity;
  other.context_tokens = 100;
  EXPECT_THAT(pack(other, scores, edges), StatusIs(kInvalid, HasSubstr("holds 150 rows")));
  other = identity;
  other.geometry.dtype = DType::kBf16;
  EXPECT_THAT(pack(other, scores, edges), StatusIs(kInvalid, HasSubstr("another geometry")));
}

}  // namespace
}  // namespace kvtier
