#include "compressor/decoder.h"

#include <cmath>

#include "base/status_matchers.h"
#include "compressor/dense_reference.h"
#include "compressor/reference_backend.h"
#include "compressor/sampler.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/unit/compressor/compress_testing.h"

namespace kvtier {
namespace {

using ::testing::FloatNear;
using ::testing::HasSubstr;
using ::testing::Pointwise;

constexpr uint32_t kAllBands = 6;

std::vector<float> ToVector(absl::StatusOr<std::span<const float>> logits) {
  EXPECT_THAT(logits, IsOk());
  return logits.ok() ? std::vector<float>(logits->begin(), logits->end()) : std::vector<float>();
}

std::unique_ptr<Decoder> MakeDecoder(const Model& model, const CompressedObject& object,
                                     uint32_t bands, int64_t tail_tokens = 64) {
  auto decoder = Decoder::Create(model, PrefixOf(object, bands), tail_tokens);
  KVTIER_CHECK_OK(decoder);
  return *std::move(decoder);
}

// Greedy answer of a decoder.
std::vector<uint32_t> Answer(Decoder& decoder, const std::vector<uint32_t>& query, int tokens) {
  std::vector<uint32_t> answer;
  uint32_t next = Greedy(ToVector(decoder.Append(query)));
  for (int i = 0; i < tokens; ++i) {
    answer.push_back(next);
    next = Greedy(ToVector(decoder.Append({&next, 1})));
  }
  return answer;
}

// The same on one dense cache that holds system prompt, context, query and answer alike.
std::vector<uint32_t> DenseAnswer(const Model& model, const std::vector<uint32_t>& context,
                                  const std::vector<uint32_t>& query, int tokens) {
  std::vector<uint32_t> ids = model.profile().prefix;
  ids.insert(ids.end(), context.begin(), context.end());
  DenseCache cache =
      PrefillForTest(model, ids, DType::kF32, static_cast<int64_t>(query.size()) + tokens + 1);
  absl::StatusOr<ForwardScratch> scratch =
      ForwardScratch::Create(model, static_cast<int64_t>(query.size()));
  KVTIER_CHECK_OK(scratch);
  std::vector<float> logits(model.config().vocabulary);
  std::vector<uint32_t> feed = query;
  std::vector<uint32_t> answer;
  for (int i = 0; i < tokens; ++i) {
    const ForwardPlan plan{.tail = &cache, .first_position = cache.length()};
    KVTIER_CHECK_OK(Forward(model, feed, plan, *scratch, logits));
    answer.push_back(Greedy(logits));
    feed = {answer.back()};
  }
  return answer;
}

class DecoderTest : public ::testing::Test {
 protected:
  DecoderTest() : tiny_(MakeTestModel()), context_(RandomTokens(150, /*seed=*/11)) {}

  const Model& model() const { return *tiny_.model; }
  CompressedObject Compress() const { return CompressForTest(model(), context_); }
  std::vector<uint32_t> Query(uint64_t seed) const {
    return model().profile().WrapQuery(RandomTokens(12, seed));
  }

  TestModel tiny_;
  std::vector<uint32_t> context_;
};

TEST_F(DecoderTest, AllBandsAnswerAsADenseCacheTokenForToken) {
  const CompressedObject object = Compress();
  for (uint64_t seed : {21, 22, 23}) {
    const std::unique_ptr<Decoder> decoder = MakeDecoder(model(), object, kAllBands);
    EXPECT_EQ(Answer(*decoder, Query(seed), 10), DenseAnswer(model(), context_, Query(seed), 10));
  }
}

// The same against a decoder that shares no code with backends, spans and packing.
TEST_F(DecoderTest, AllBandsAnswerAsThePlainDenseDecoder) {
  const CompressedObject object = Compress();
  KVTIER_ASSERT_OK_AND_ASSIGN(
      const auto plain, DenseReferenceDecoder::Create(tiny_.folder->File("tiny"), DType::kF32));
  std::vector<uint32_t> ids = model().profile().prefix;
  ids.insert(ids.end(), context_.begin(), context_.end());
  KVTIER_ASSERT_OK(plain->Prefill(ids));
  for (uint64_t seed : {21, 22, 23}) {
    const std::unique_ptr<Decoder> decoder = MakeDecoder(model(), object, kAllBands);
    EXPECT_THAT(plain->Answer(Query(seed), 10), IsOkAndHolds(Answer(*decoder, Query(seed), 10)));
  }
}

TEST_F(DecoderTest, ManyTokensAtOnceEqualOneByOne) {
  const CompressedObject object = Compress();
  const std::vector<uint32_t> query = Query(31);
  for (uint32_t bands : {1u, 3u, kAllBands}) {
    const std::unique_ptr<Decoder> at_once = MakeDecoder(model(), object, bands);
    KVTIER_ASSERT_OK_AND_ASSIGN(const std::vector<float> all, at_once->AppendAllLogits(query));
    const std::unique_ptr<Decoder> one_by_one = MakeDecoder(model(), object, bands);
    for (size_t i = 0; i < query.size(); ++i) {
      const std::vector<float> logits = ToVector(one_by_one->Append({&query[i], 1}));
      const std::vector<float> row(all.begin() + i * logits.size(),
                                   all.begin() + (i + 1) * logits.size());
      // fp32 activations, and sums that run over the rows in another order.
      EXPECT_THAT(logits, Pointwise(FloatNear(1e-4f), row)) << "row " << i;
    }
    EXPECT_EQ(at_once->tail_length(), one_by_one->tail_length());
  }
}

TEST_F(DecoderTest, AQueryLongerThanOnePieceEqualsItsPieces) {
  const CompressedObject object = Compress();
  const std::vector<uint32_t> query = RandomTokens(300, /*seed=*/35);  // Pieces of 128.
  const std::unique_ptr<Decoder> whole = MakeDecoder(model(), object, 3, 300);
  const std::unique_ptr<Decoder> parts = MakeDecoder(model(), object, 3, 300);
  const std::vector<float> logits = ToVector(whole->Append(query));
  ToVector(parts->Append(std::span(query).first(50)));
  EXPECT_THAT(ToVector(parts->Append(std::span(query).subspan(50))),
              Pointwise(FloatNear(1e-4f), logits));
  whole->Reset();
  KVTIER_ASSERT_OK_AND_ASSIGN(const std::vector<float> all, whole->AppendAllLogits(query));
  ASSERT_EQ(all.size(), 300 * logits.size());
  EXPECT_EQ(std::vector<float>(all.end() - logits.size(), all.end()), logits);
}

TEST_F(DecoderTest, AQuestionAfterAnotherIsAnsweredAsIfAlone) {
  const CompressedObject object = Compress();
  const std::unique_ptr<Decoder> both = MakeDecoder(model(), object, 3);
  Answer(*both, Query(41), 5);
  both->Reset();
  EXPECT_EQ(both->tail_length(), 0);
  const std::unique_ptr<Decoder> alone = MakeDecoder(model(), object, 3);
  EXPECT_EQ(ToVector(both->Append(Query(42))), ToVector(alone->Append(Query(42))));
}

TEST_F(DecoderTest, QuestionsInterleavedOnOneObjectDoNotSeeEachOther) {
  const CompressedObject object = Compress();
  const std::unique_ptr<Decoder> a = MakeDecoder(model(), object, 2);
  const std::unique_ptr<Decoder> b = MakeDecoder(model(), object, 2);
  const std::unique_ptr<Decoder> alone = MakeDecoder(model(), object, 2);
  ToVector(a->Append(Query(51)));
  ToVector(b->Append(Query(52)));
  ToVector(alone->Append(Query(51)));
  EXPECT_EQ(ToVector(a->Append(Query(53))), ToVector(alone->Append(Query(53))));
}

// n_s = 0 and more heads than kept pairs: some heads keep nothing.
TEST(DecoderWithoutSystemPromptTest, HeadsWithoutRowsGiveNoNan) {
  TinyModelOptions options;
  options.prefix_tokens = 0;
  const TestModel tiny = MakeTestModel(options);
  const std::vector<uint32_t> context = RandomTokens(5, /*seed=*/61);
  const CompressedObject object = CompressForTest(*tiny.model, context);
  const auto cache = PrefixOf(object, 1);  // 2 of 20 pairs.
  int empty_heads = 0;
  for (uint32_t layer = 0; layer < 2; ++layer) {
    for (uint32_t head = 0; head < 2; ++head) {
      if (cache->rows(LayerIndex(layer), head) == 0) ++empty_heads;
    }
  }
  EXPECT_EQ(empty_heads, 2);
  auto decoder = Decoder::Create(*tiny.model, cache, 16);
  KVTIER_ASSERT_OK(decoder);
  for (float logit : ToVector((*decoder)->Append(RandomTokens(4, /*seed=*/62)))) {
    EXPECT_TRUE(std::isfinite(logit));
  }
}

TEST_F(DecoderTest, RefusesWhatDoesNotFitAndAppendsNothing) {
  const CompressedObject object = Compress();
  const std::unique_ptr<Decoder> decoder = MakeDecoder(model(), object, 1, /*tail_tokens=*/8);
  ToVector(decoder->Append(RandomTokens(5, 71)));
  EXPECT_THAT(decoder->Append(RandomTokens(4, 72)),
              StatusIs(absl::StatusCode::kResourceExhausted, HasSubstr("room for 8 tokens; 5")));
  const uint32_t outside[] = {1, 264};
  EXPECT_THAT(decoder->Append(outside), StatusIs(absl::StatusCode::kInvalidArgument,
                                                 HasSubstr("token 1 is 264, the vocabulary")));
  EXPECT_THAT(decoder->Append({}),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("no tokens")));
  EXPECT_EQ(decoder->tail_length(), 5);
  EXPECT_EQ(decoder->tail_capacity(), 8);
  ToVector(decoder->Append(RandomTokens(3, 73)));
}

TEST(DecoderLimitsTest, RefusesPositionsPastTheModels) {
  TinyModelOptions options;
  options.positions_max = 200;
  const TestModel tiny = MakeTestModel(options);
  const CompressedObject object = CompressForTest(*tiny.model, RandomTokens(100, /*seed=*/81));
  const std::unique_ptr<Decoder> decoder = MakeDecoder(*tiny.model, object, 6, 200);
  const int64_t left = 200 - static_cast<int64_t>(object.manifest->logical_length());
  EXPECT_THAT(decoder->Append(RandomTokens(left + 1, 82)),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       HasSubstr("position 200 is past the last (199)")));
  EXPECT_THAT(decoder->Append(RandomTokens(left, 83)), IsOk());
}

TEST_F(DecoderTest, RefusesObjectsOfOtherModelsAndPartsOfObjects) {
  const CompressedObject object = Compress();
  TinyModelOptions options;
  options.seed = 2;
  const TestModel other = MakeTestModel(options);
  EXPECT_THAT(Decoder::Create(*other.model, PrefixOf(object, 1), 8),
              StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("made by model tiny")));
  EXPECT_THAT(Decoder::Create(model(), PrefixOf(object, 1), 0),
              StatusIs(absl::StatusCode::kInvalidArgument));

  // Head 1 of 2 alone, as a tensor-parallel rank fetches it.
  const HeadRange heads{1, 2};
  std::vector<SegmentRef> segments;
  for (uint32_t layer = 0; layer < model().config().layers; ++layer) {
    const SegmentEntry& entry = object.manifest->segment(BandIndex(0), LayerIndex(layer));
    const SegmentEntry::ByteRange range = entry.HeadBytes(heads);
    const SegmentRef& whole = object.segment(BandIndex(0), LayerIndex(layer));
    segments.emplace_back(whole.owner(),
                          whole.bytes().subspan(range.begin, range.end - range.begin));
  }
  KVTIER_ASSERT_OK_AND_ASSIGN(const auto part,
                              RaggedCache::Create(object.manifest, 1, heads, segments));
  EXPECT_THAT(Decoder::Create(model(), part, 8),
              StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("holds [1, 2)")));
}

TEST(DecoderMemoryTest, StepsOfOneTokenAllocateNothingAndTheEstimateIsWhatCreateTakes) {
  auto counting = std::make_unique<CountingBackend>(MakeReferenceBackend());
  CountingBackend& backend = *counting;
  const TestModel tiny = MakeTestModel({}, std::move(counting));
  const CompressedObject object = CompressForTest(*tiny.model, RandomTokens(90, /*seed=*/91));
  const uint64_t before = backend.live_bytes();
  const std::unique_ptr<Decoder> decoder = MakeDecoder(*tiny.model, object, 3, 200);
  EXPECT_EQ(backend.live_bytes() - before, Decoder::EstimateBytes(*tiny.model, 200, DType::kF32));
  ToVector(decoder->Append(RandomTokens(9, 92)));
  const uint64_t allocations = backend.allocations();
  for (uint32_t token = 0; token < 20; ++token) ToVector(decoder->Append({&token, 1}));
  EXPECT_EQ(backend.allocations(), allocations);
}

}  // namespace
}  // namespace kvtier
