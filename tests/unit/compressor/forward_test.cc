#include "compressor/forward.h"

#include <cmath>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "base/status_matchers.h"
#include "compressor/cpu_backend.h"
#include "compressor/reference_backend.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/testing/random.h"
#include "tests/testing/temp_dir.h"
#include "tests/testing/tiny_model.h"

namespace kvtier {
namespace {

using ::testing::HasSubstr;

std::vector<uint32_t> RandomIds(size_t count, uint32_t vocabulary) {
  std::mt19937_64 random(TestSeed());
  std::vector<uint32_t> ids(count);
  for (uint32_t& id : ids) id = static_cast<uint32_t>(random() % vocabulary);
  return ids;
}

double MaxDifference(const std::vector<float>& a, const std::vector<float>& b) {
  EXPECT_EQ(a.size(), b.size());
  double worst = 0;
  for (size_t i = 0; i < a.size(); ++i) worst = std::max(worst, std::abs(double{a[i]} - b[i]));
  return worst;
}

// fp32 sums of a few dozen terms of size 1, over two layers.
constexpr double kTolerance = 2e-4;

class ForwardTest : public ::testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    backend_ = std::string(GetParam()) == "cpu"
                   ? MakeCpuBackend({.threads = 2, .compute = CpuCompute::kF32})
                   : MakeReferenceBackend();
    Load({});
  }
  void Load(const TinyModelOptions& options) {
    KVTIER_ASSERT_OK_AND_ASSIGN(const std::string folder, WriteTinyModel(options, dir_.File("m")));
    KVTIER_ASSERT_OK_AND_ASSIGN(model_, Model::Load(folder, *backend_));
  }
  DenseCache MakeCache(int64_t capacity, DType dtype = DType::kF32) {
    auto cache = DenseCache::Create(*backend_, model_->config().MakeGeometry(dtype), capacity);
    KVTIER_EXPECT_OK(cache);
    return *std::move(cache);
  }
  ForwardScratch MakeScratch(int64_t rows) {
    auto scratch = ForwardScratch::Create(*model_, rows);
    KVTIER_EXPECT_OK(scratch);
    return *std::move(scratch);
  }
  // Logits of every row of `ids`, `piece` rows at a time.
  std::vector<float> AllLogits(const std::vector<uint32_t>& ids, size_t piece) {
    DenseCache cache = MakeCache(static_cast<int64_t>(ids.size()));
    ForwardScratch scratch = MakeScratch(static_cast<int64_t>(piece));
    std::vector<float> all;
    for (size_t begin = 0; begin < ids.size(); begin += piece) {
      const size_t rows = std::min(piece, ids.size() - begin);
      std::vector<float> logits;
      ForwardPlan plan{.tail = &cache, .first_position = static_cast<int64_t>(begin)};
      KVTIER_EXPECT_OK(
          Forward(*model_, std::span(ids).subspan(begin, rows), plan, scratch, {}, &logits));
      all.insert(all.end(), logits.begin(), logits.end());
    }
    return all;
  }

  TempDir dir_;
  std::unique_ptr<Backend> backend_;
  std::unique_ptr<Model> model_;
};

TEST_P(ForwardTest, DoesNotDependOnThePieceSize) {
  const std::vector<uint32_t> ids = RandomIds(70, 264);
  const std::vector<float> whole = AllLogits(ids, 70);
  for (size_t piece : {1, 2, 7, 64}) {
    EXPECT_LT(MaxDifference(AllLogits(ids, piece), whole), kTolerance) << "piece " << piece;
  }
}

TEST_P(ForwardTest, LastLogitsAreThoseOfAllLogits) {
  const std::vector<uint32_t> ids = RandomIds(9, 264);
  const std::vector<float> all = AllLogits(ids, 9);
  DenseCache cache = MakeCache(9);
  ForwardScratch scratch = MakeScratch(9);
  std::vector<float> last(264);
  KVTIER_ASSERT_OK(Forward(*model_, ids, {.tail = &cache}, scratch, last));
  EXPECT_LT(MaxDifference(last, {all.end() - 264, all.end()}), kTolerance);
}

TEST_P(ForwardTest, PrefillEqualsOneForward) {
  const std::vector<uint32_t> ids = RandomIds(50, 264);
  DenseCache whole = MakeCache(50);
  ForwardScratch scratch = MakeScratch(50);
  KVTIER_ASSERT_OK(Forward(*model_, ids, {.tail = &whole}, scratch, {}));
  DenseCache pieces = MakeCache(50);
  ForwardScratch small = MakeScratch(16);
  std::vector<int64_t> heard;
  KVTIER_ASSERT_OK(Prefill(*model_, ids, pieces, small, [&](int64_t done) {
    heard.push_back(done);
    return absl::OkStatus();
  }));
  EXPECT_THAT(heard, ::testing::ElementsAre(16, 32, 48, 50));
  ASSERT_EQ(pieces.length(), 50);
  for (int64_t layer = 0; layer < model_->config().layers; ++layer) {
    const auto floats = [&](const DenseCache& cache) {
      const KvLayerView view = cache.layer(layer);
      const auto* keys = static_cast<const float*>(view.keys);
      return std::vector<float>(keys, keys + view.kv_heads * view.capacity * view.head_dim);
    };
    EXPECT_LT(MaxDifference(floats(pieces), floats(whole)), kTolerance);
  }
}

TEST_P(ForwardTest, SpansAndTailEqualOneCausalCache) {
  const std::vector<uint32_t> ids = RandomIds(40, 264);
  const std::vector<float> whole = AllLogits(ids, 40);
  // The first 30 tokens as two spans per head, the rest in a tail.
  DenseCache context = MakeCache(30);
  ForwardScratch scratch = MakeScratch(40);
  KVTIER_ASSERT_OK(Prefill(*model_, std::span(ids).first(30), context, scratch, nullptr));
  std::vector<std::vector<std::vector<RowSpan>>> spans;  // [layers][kv_heads][2]
  std::vector<HeadSpans> views;
  for (int64_t layer = 0; layer < model_->config().layers; ++layer) {
    const KvLayerView view = context.layer(layer);
    auto& heads = spans.emplace_back();
    for (int64_t h = 0; h < view.kv_heads; ++h) {
      const auto at = [&](const void* base, int64_t row) {
        return static_cast<const std::byte*>(base) + (h * view.capacity + row) * view.head_dim * 4;
      };
      heads.push_back({{at(view.keys, 17), at(view.values, 17), 13, nullptr},
                       {at(view.keys, 0), at(view.values, 0), 17, nullptr}});
    }
    auto& head_views = views.emplace_back();
    for (const auto& head : heads) head_views.emplace_back(head);
  }
  DenseCache tail = MakeCache(10);
  std::vector<float> logits;
  const ForwardPlan plan{
      .spans = [&](int64_t layer) { return &views[layer]; }, .tail = &tail, .first_position = 30};
  KVTIER_ASSERT_OK(Forward(*model_, std::span(ids).subspan(30), plan, scratch, {}, &logits));
  EXPECT_LT(MaxDifference(logits, {whole.begin() + 30 * 264, whole.end()}), kTolerance);
}

TEST_P(ForwardTest, HandsOutQueriesAndStopsAfterTheLast) {
  const std::vector<uint32_t> ids = RandomIds(12, 264);
  DenseCache cache = MakeCache(12);
  ForwardScratch scratch = MakeScratch(12);
  std::vector<int64_t> layers;
  const ForwardPlan plan{.tail = &cache,
                         .on_queries =
                             [&](int64_t layer, TensorView q, KvLayerView tail) {
                               layers.push_back(layer);
                               EXPECT_EQ(q.rows, 12);
                               EXPECT_EQ(q.cols, 4 * 32);
                               EXPECT_EQ(tail.kv_heads, 2);
                               return absl::OkStatus();
                             },
                         .stop_after_last_queries = true};
  KVTIER_ASSERT_OK(Forward(*model_, ids, plan, scratch, {}));
  EXPECT_THAT(layers, ::testing::ElementsAre(0, 1));
  EXPECT_EQ(cache.length(), 12);
}

TEST_P(ForwardTest, RefusesWhatDoesNotFit) {
  DenseCache cache = MakeCache(4);
  ForwardScratch scratch = MakeScratch(8);
  const auto run = [&](std::vector<uint32_t> ids, int64_t position) {
    return Forward(*model_, ids, {.tail = &cache, .first_position = position}, scratch, {});
  };
  const auto refused = [](const char* why) {
    return StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr(why));
  };
  EXPECT_THAT(run({}, 0), refused("no tokens"));
  EXPECT_THAT(run({1, 2, 264}, 0), refused("id 264 at index 2"));
  EXPECT_THAT(run({1, 2, 3, 4, 5}, 0), refused("room for 4"));
  EXPECT_THAT(run(std::vector<uint32_t>(9, 1), 0), refused("scratch for 8"));
  EXPECT_THAT(run({1, 2}, 4095), refused("the model has 4096"));
  EXPECT_EQ(cache.length(), 0) << "a refused pass must leave the tail alone";
  KVTIER_EXPECT_OK(run({1, 2}, 4094));
}

TEST_P(ForwardTest, TiedEmbeddingsServeAsTheHead) {
  Load({.tied_embeddings = true, .dtype = DType::kF32});
  const std::vector<float> logits = AllLogits({5, 6, 7}, 3);
  EXPECT_EQ(logits.size(), 3u * 264);
  for (float logit : logits) ASSERT_TRUE(std::isfinite(logit));
}

INSTANTIATE_TEST_SUITE_P(Backends, ForwardTest, ::testing::Values("reference", "cpu"),
                         [](const auto& param) { return std::string(param.param); });

}  // namespace
}  // namespace kvtier
