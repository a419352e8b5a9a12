// A closed-form example of the definitions in docs/recipes.md, from keys and queries to bands and
// segments, on the plain formulas and on both CPU backends.
#include <cmath>
#include <memory>

#include "base/bytes.h"
#include "base/status_matchers.h"
#include "compressor/cpu_backend.h"
#include "compressor/packing.h"
#include "compressor/ranking.h"
#include "compressor/reference_backend.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/unit/compressor/compress_testing.h"

namespace kvtier {
namespace {

using ::testing::ElementsAre;

constexpr int kHeads = 2, kGroup = 2, kDim = 4, kRepeatRows = 5;
constexpr int64_t kSystemTokens = 2, kContextTokens = 5;
constexpr int64_t kChunkEnd[] = {3, 5};  // m = 3: context tokens [0, 3) and [3, 5).

double GoldenKey(int h, int64_t j, int d) { return std::cos(0.5 * h + 0.37 * j + 0.8 * d); }
double GoldenQuery(int t, int h, int g, int i, int d) {
  return 2 * std::sin(0.7 * (1 + h) + 0.3 * g + 0.11 * i + 0.9 * d + 0.4 * t);
}
double GoldenRepeatKey(int t, int h, int i, int d) {
  return std::cos(0.5 * h + 0.37 * (7 + i) + 0.8 * d + 0.2 * t);
}

constexpr double kScores[kHeads][kContextTokens] = {
    {0.200480, 0.111356, 0.053475, 0.071589, 0.032413},
    {0.212092, 0.124096, 0.061333, 0.102199, 0.048925}};
constexpr double kLogScores[kHeads][kContextTokens] = {
    {-1.607043, -2.195023, -2.928533, -2.636807, -3.429202},
    {-1.550736, -2.086703, -2.791430, -2.280829, -3.017460}};
constexpr double kFullSoftmax[kHeads][kContextTokens] = {
    {0.193429, 0.107440, 0.051595, 0.038741, 0.017540},
    {0.203636, 0.119148, 0.058888, 0.051876, 0.024834}};

PlainScoreInput GoldenInput(int t, int h) {
  PlainScoreInput in;
  in.group = kGroup;
  in.head_dim = kDim;
  in.rows = kRepeatRows;
  in.sink_rows = kSystemTokens;
  in.chunk_begin = kSystemTokens + (t == 0 ? 0 : kChunkEnd[t - 1]);
  in.chunk_end = kSystemTokens + kChunkEnd[t];
  in.scale = 0.5;
  in.query = [t, h](int g, int i, int d) { return GoldenQuery(t, h, g, i, d); };
  in.key = [h](int64_t j, int d) { return GoldenKey(h, j, d); };
  in.repeat_key = [t, h](int i, int d) { return GoldenRepeatKey(t, h, i, d); };
  return in;
}

TEST(KvzipGoldenTest, PlainFormulasGiveThePrintedScores) {
  for (int h = 0; h < kHeads; ++h) {
    for (int t = 0; t < 2; ++t) {
      PlainScoreInput in = GoldenInput(t, h);
      const std::vector<double> local = PlainScores(in);
      in.full_keys = kSystemTokens + kContextTokens;
      const std::vector<double> full = PlainScores(in);
      for (size_t c = 0; c < local.size(); ++c) {
        const int64_t j = in.chunk_begin - kSystemTokens + c;
        EXPECT_NEAR(local[c], kLogScores[h][j], 1e-6);
        EXPECT_NEAR(std::exp(local[c]), kScores[h][j], 1e-6);
        EXPECT_NEAR(std::exp(full[c]), kFullSoftmax[h][j], 1e-6);
        EXPECT_GE(local[c], full[c]);
      }
    }
  }
}

// A cache of one layer with the golden keys and the repeat rows of chunk `t`.
struct GoldenState {
  DenseCache cache;
  DenseCache repeat;
  Tensor q;
};

DenseCache FillCache(Backend& backend, const Geometry& geometry, int64_t rows,
                     const std::function<double(int h, int64_t j, int d)>& key) {
  absl::StatusOr<DenseCache> cache = DenseCache::Create(backend, geometry, rows);
  KVTIER_CHECK_OK(cache);
  std::vector<float> k(rows * kHeads * kDim);
  for (int64_t j = 0; j < rows; ++j) {
    for (int h = 0; h < kHeads; ++h) {
      for (int d = 0; d < kDim; ++d) {
        k[(j * kHeads + h) * kDim + d] = static_cast<float>(key(h, j, d));
      }
    }
  }
  absl::StatusOr<Tensor> tensor = backend.Allocate(DType::kF32, rows, kHeads * kDim);
  KVTIER_CHECK_OK(tensor);
  KVTIER_CHECK_OK(backend.Upload(AsBytes(std::span<const float>(k)), *tensor));
  KVTIER_CHECK_OK(backend.AppendKv(*tensor, *tensor, cache->layer(0), 0));  // Values = keys.
  cache->SetLength(rows);
  return *std::move(cache);
}

class KvzipGoldenBackendTest : public ::testing::TestWithParam<bool> {
 protected:
  KvzipGoldenBackendTest()
      : backend_(GetParam() ? MakeCpuBackend({.threads = 2}) : MakeReferenceBackend()) {
    geometry_.kv_heads = kHeads;
    geometry_.head_dim = kDim;
    geometry_.dtype = DType::kF32;
    geometry_.layers = {LayerKind::kGlobal};
  }

  absl::Status ScoreChunk(const DenseCache& cache, int t, ScoreTable& table,
                          bool full_softmax = false) {
    const DenseCache repeat =
        FillCache(*backend_, geometry_, kRepeatRows,
                  [t](int h, int64_t i, int d) { return GoldenRepeatKey(t, h, i, d); });
    std::vector<float> q;
    for (int i = 0; i < kRepeatRows; ++i) {
      for (int hg = 0; hg < kHeads * kGroup; ++hg) {
        for (int d = 0; d < kDim; ++d) {
          q.push_back(static_cast<float>(GoldenQuery(t, hg / kGroup, hg % kGroup, i, d)));
        }
      }
    }
    KVTIER_ASSIGN_OR_RETURN(Tensor queries,
                            backend_->Allocate(DType::kF32, kRepeatRows, kHeads * kGroup * kDim));
    KVTIER_RETURN_IF_ERROR(backend_->Upload(AsBytes(std::span<const float>(q)), queries));
    const PlainScoreInput in = GoldenInput(t, 0);
    ScoreArgs args;
    args.q = queries;
    args.cache = cache.layer(0);
    args.sink_rows = in.sink_rows;
    args.chunk_begin = in.chunk_begin;
    args.chunk_end = in.chunk_end;
    args.repeat = repeat.layer(0);
    args.scale = 0.5f;
    if (full_softmax) args.full_rows = kSystemTokens + kContextTokens;
    args.out = &table.at(0, 0, in.chunk_begin - kSystemTokens);
    args.out_stride = kContextTokens;
    return backend_->ScoreColumnMax(args);
  }

  std::unique_ptr<Backend> backend_;
  Geometry geometry_;
};

TEST_P(KvzipGoldenBackendTest, FullSoftmaxScoresAreThePrintedOnes) {
  const DenseCache cache =
      FillCache(*backend_, geometry_, kSystemTokens + kContextTokens, &GoldenKey);
  ScoreTable table = ScoreTable::Create(1, kHeads, kContextTokens);
  for (int t = 0; t < 2; ++t) KVTIER_ASSERT_OK(ScoreChunk(cache, t, table, true));
  for (int h = 0; h < kHeads; ++h) {
    for (int j = 0; j < kContextTokens; ++j) {
      EXPECT_NEAR(std::exp(table.at(0, h, j)), kFullSoftmax[h][j], 1e-6) << h << " " << j;
    }
  }
}

TEST_P(KvzipGoldenBackendTest, ScoresBandsAndSegmentsAreThePrintedOnes) {
  const DenseCache cache =
      FillCache(*backend_, geometry_, kSystemTokens + kContextTokens, &GoldenKey);
  ScoreTable table = ScoreTable::Create(1, kHeads, kContextTokens);
  KVTIER_ASSERT_OK(ScoreChunk(cache, 1, table));  // Chunks may run in any order.
  KVTIER_ASSERT_OK(ScoreChunk(cache, 0, table));
  for (int h = 0; h < kHeads; ++h) {
    for (int j = 0; j < kContextTokens; ++j) {
      EXPECT_NEAR(table.at(0, h, j), kLogScores[h][j], 2e-6) << h << " " << j;
    }
  }

  const BandEdges edges = BandEdges::Default();
  KVTIER_ASSERT_OK_AND_ASSIGN(const BandAssignment bands, AssignBands(table, edges, false));
  EXPECT_THAT(bands.band, ElementsAre(1, 3, 5, 4, 5, 0, 2, 5, 4, 5));

  Manifest identity;
  identity.key = *Key::FromBytes(std::string(32, 'k'));
  identity.upload_id = MakeUploadId();
  identity.recipe = "kvzip/1";
  identity.geometry = geometry_;
  identity.system_tokens = kSystemTokens;
  identity.context_tokens = kContextTokens;
  KVTIER_ASSERT_OK_AND_ASSIGN(const CompressedObject object,
                              PackObject(*backend_, cache, table, bands, edges, identity));
  // Positions of both heads, band by band; the two system rows are in band 0 of each head.
  const std::vector<uint32_t> expected[2][6] = {{{0, 1}, {2}, {}, {3}, {5}, {4, 6}},
                                                {{0, 1, 2}, {}, {3}, {}, {5}, {4, 6}}};
  for (uint32_t b = 0; b < edges.size(); ++b) {
    const SegmentRef& segment = object.segment(BandIndex(b), LayerIndex(0));
    KVTIER_EXPECT_OK(
        VerifySegmentContent(*object.manifest, BandIndex(b), LayerIndex(0), segment.bytes()));
    for (uint32_t h = 0; h < kHeads; ++h) {
      KVTIER_ASSERT_OK_AND_ASSIGN(
          const HeadRows rows,
          ReadHead(geometry_, object.manifest->segment(BandIndex(b), LayerIndex(0)),
                   HeadRange{0, kHeads}, segment.bytes(), h));
      EXPECT_EQ(std::vector<uint32_t>(rows.positions.begin(), rows.positions.end()),
                expected[h][b]);
      for (uint32_t i = 0; i < rows.rows; ++i) {
        const uint32_t p = rows.positions[i];
        const auto* key = reinterpret_cast<const float*>(rows.keys) + i * kDim;
        for (int d = 0; d < kDim; ++d) {
          EXPECT_EQ(key[d], static_cast<float>(GoldenKey(static_cast<int>(h), p, d)));
        }
        if (p < kSystemTokens) {
          EXPECT_EQ(static_cast<float>(rows.log_scores[i]), INFINITY);
        } else {
          EXPECT_NEAR(static_cast<float>(rows.log_scores[i]), kLogScores[h][p - kSystemTokens],
                      2e-3);
        }
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(CpuBackends, KvzipGoldenBackendTest, ::testing::Bool(),
                         [](const auto& param) { return param.param ? "cpu" : "reference"; });

}  // namespace
}  // namespace kvtier
