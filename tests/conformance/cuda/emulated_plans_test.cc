// What a library of attention is asked for over whole compressions: contexts of about one length
// ask for the same, and what may be read behind the rows that count is there and finite.
#include <cmath>
#include <cstdint>
#include <memory>
#include <random>
#include <set>
#include <utility>
#include <vector>

#include "base/half.h"
#include "base/status_matchers.h"
#include "compressor/pipeline.h"
#include "cuda/cudnn_shape.h"
#include "cuda/device_backend.h"
#include "cuda/emulated/emulated_device.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/conformance/backend_tensors.h"
#include "tests/conformance/plain_fused_attention.h"
#include "tests/testing/random.h"
#include "tests/unit/compressor/compress_testing.h"

namespace kvtier {
namespace {

std::unique_ptr<Backend> BackendWith(std::shared_ptr<FusedAttentionLog> log) {
  const std::shared_ptr<Device> device = MakeEmulatedDevice();
  return MakeDeviceBackend(device, MakePlainGemm(device), DType::kBf16,
                           log == nullptr ? nullptr : MakePlainFusedAttention(std::move(log)))
      .value();
}

// Every row that a library may read with the weight zero.
absl::Status ReadableIsFinite(const FusedAttentionParams& p) {
  for (const void* const rows : {p.keys, p.values}) {
    for (int64_t head = 0; head < p.kv_heads; ++head) {
      const auto* from = static_cast<const bfloat16*>(rows) + head * p.head_rows * p.head_dim;
      for (int64_t i = 0; i < p.readable_rows * p.head_dim; ++i) {
        if (!std::isfinite(static_cast<float>(from[i]))) {
          return absl::InternalError("a readable row is not finite");
        }
      }
    }
  }
  return absl::OkStatus();
}

struct Asked {
  std::set<CudnnShape> shapes;
  std::vector<FusedAttentionParams> calls;
};

Asked Compress(uint64_t context_tokens) {
  auto log = std::make_shared<FusedAttentionLog>();
  log->takes = CudnnTakes;
  log->result = ReadableIsFinite;
  TinyModelOptions model;
  model.head_dim = 16;
  model.chunk_tokens = 100;
  model.prefix_tokens = 3;
  // Scoring stops before the last layer's attention: two layers have one of it.
  model.layers = 2;
  const TestModel tiny = MakeTestModel(model, BackendWith(log));
  const std::vector<uint32_t> context = RandomTokens(context_tokens, /*seed=*/3);
  CompressInput input;
  input.context = context;
  KVTIER_EXPECT_OK(
      Pipeline(*tiny.model, {.prefill_rows = 128}).Compress(input, nullptr, CancelToken()));
  Asked asked{.shapes = {}, .calls = log->calls()};
  for (const FusedAttentionParams& call : asked.calls) asked.shapes.insert(CudnnShapeOf(call));
  return asked;
}

TEST(EmulatedPlansTest, ContextsOfAboutOneLengthAskForTheSame) {
  const Asked one = Compress(310);
  const Asked other = Compress(305);  // 313 and 308 rows: caches of 320.
  EXPECT_FALSE(one.shapes.empty());
  EXPECT_EQ(one.shapes, other.shapes);
  int64_t with_lengths = 0;
  for (const FusedAttentionParams& call : one.calls) {
    const CudnnShape shape = CudnnShapeOf(call);
    EXPECT_GE(shape.rows, kCudnnQueryRowsMin);
    // Planned for no more than may be read, in whole caches.
    EXPECT_LE(shape.key_rows, call.readable_rows);
    EXPECT_EQ(call.head_rows, CudnnCacheRows(call.head_rows));
    EXPECT_TRUE(shape.lengths || shape.key_rows == call.key_rows) << shape.ToString();
    with_lengths += shape.lengths ? 1 : 0;
    // What is told is the truth: no row behind the context or the queries.
    EXPECT_LE(call.key_rows, 3 + 310);
  }
  EXPECT_GT(with_lengths, 0);
  EXPECT_NE(Compress(330).shapes, one.shapes) << "another capacity is another plan";
}

TEST(EmulatedPlansTest, AttentionOfOddRowsIsTheSameInPieces) {
  constexpr int64_t kHeads = 2;
  constexpr int64_t kDim = 64;
  constexpr int64_t kRows = 203;  // 128, 64 and 11.
  constexpr int64_t kContext = 90;
  auto log = std::make_shared<FusedAttentionLog>();
  log->takes = CudnnTakes;
  const auto with = BackendWith(log);
  const auto without = BackendWith(nullptr);
  for (const int64_t window : {0, 40}) {
    SCOPED_TRACE(window);
    const auto attend = [&](Backend& backend) {
      std::mt19937_64 random(TestSeed());
      const Tensor q = MakeActivations(backend, RandomFloats(random, kRows * kHeads * 2 * kDim, 2),
                                       kRows, kHeads * 2 * kDim);
      const Tensor out =
          MakeActivations(backend, Floats(kRows * kHeads * 2 * kDim), kRows, kHeads * 2 * kDim);
      const Floats keys = RandomFloats(random, kHeads * 128 * kDim);
      const Layer context = MakeLayer(backend, keys, keys, DType::kBf16, kHeads, 128, kDim);
      const Floats own = RandomFloats(random, kHeads * 256 * kDim);
      const Layer tail = MakeLayer(backend, own, own, DType::kBf16, kHeads, 256, kDim);
      std::vector<RowSpan> spans(kHeads);
      HeadSpans heads;
      for (int64_t h = 0; h < kHeads; ++h) {
        const int64_t at = h * 128 * kDim * 2;
        spans[h].keys = static_cast<const std::byte*>(context.view.keys) + at;
        spans[h].values = static_cast<const std::byte*>(context.view.values) + at;
        spans[h].rows = kContext;
        heads.emplace_back(&spans[h], window > 0 ? 0 : 1);  // A window over two runs is no call.
      }
      KVTIER_EXPECT_OK(backend.Attention({.q = q,
                                          .spans = &heads,
                                          .span_dtype = DType::kBf16,
                                          .tail = tail.view,
                                          .tail_rows = kRows + 20,
                                          .scale = 0.125f,
                                          .window = window,
                                          .out = out,
                                          .readable_span_rows = 128,
                                          .odd_rows = true}));
      return Read(backend, out);
    };
    const size_t before = log->calls().size();
    ExpectNear(attend(*with), attend(*without), 0x1p-7, 0x1p-6);
    // Two calls for each of two pieces, and none for the rest.
    EXPECT_EQ(log->calls().size() - before, window > 0 ? 2u : 4u);
  }
}

}  // namespace
}  // namespace kvtier
