// The C interface over the emulator, whose device memory is the host's: the bits of the backend's
// attention. What it refuses is in ragged_python_test.py.
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <random>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/aligned_bytes.h"
#include "base/half.h"
#include "base/status_matchers.h"
#include "cuda/device_backend.h"
#include "cuda/emulated/emulated_device.h"
#include "cuda/kvtier_ragged_decode.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kvcache/row_codec.h"
#include "tests/testing/random.h"

namespace kvtier {
namespace {

constexpr int64_t kHeads = 2;
constexpr int64_t kGroup = 4;

AlignedBytes RandomBf16(std::mt19937_64& random, int64_t count) {
  std::uniform_real_distribution<float> uniform(-2, 2);
  AlignedBytes bytes = AlignedBytes::Allocate(count * sizeof(bfloat16));
  for (bfloat16& x : bytes.As<bfloat16>()) x = bfloat16(uniform(random));
  return bytes;
}

// Rows of one codec, and the memory that they lie in.
struct CodedRows {
  AlignedBytes keys, values, key_scales, value_scales;
  RowSpan span;
};

CodedRows RandomRows(std::mt19937_64& random, CodecId codec, int64_t rows, int64_t dim) {
  CodedRows coded;
  coded.keys = RandomBf16(random, rows * dim);
  coded.values = RandomBf16(random, rows * dim);
  if (const RowCodec* row_codec = FindRowCodec(codec); row_codec != nullptr) {
    for (AlignedBytes* array : {&coded.keys, &coded.values}) {
      AlignedBytes codes = AlignedBytes::Allocate(rows * row_codec->code_bytes(dim));
      AlignedBytes scales = AlignedBytes::Allocate(rows * row_codec->scale_bytes());
      KVTIER_EXPECT_OK(EncodeRows(*row_codec, DType::kBf16, array->data(), rows, dim, codes.data(),
                                  scales.data()));
      *array = std::move(codes);
      (array == &coded.keys ? coded.key_scales : coded.value_scales) = std::move(scales);
    }
  }
  coded.span.keys = coded.keys.data();
  coded.span.values = coded.values.data();
  coded.span.key_scales = coded.key_scales.data();
  coded.span.value_scales = coded.value_scales.data();
  coded.span.rows = rows;
  coded.span.codec = codec;
  return coded;
}

kvtier_ragged_span ToC(const RowSpan& span) {
  return {.keys = span.keys,
          .values = span.values,
          .key_scales = span.key_scales,
          .value_scales = span.value_scales,
          .rows = span.rows,
          .codec = static_cast<int32_t>(span.codec),
          .reserved = 0};
}

struct DecodeCase {
  int64_t head_dim;  // 64: tensor cores; 80: the kernel for every shape.
  int64_t query_rows;
};

class RaggedDecodeTest : public ::testing::TestWithParam<DecodeCase> {};

TEST_P(RaggedDecodeTest, GivesTheBitsOfTheBackend) {
  const auto [dim, query_rows] = GetParam();
  std::mt19937_64 random(TestSeed());
  const int64_t tail_rows = 3;
  // One head holds nearly everything.
  std::vector<CodedRows> rows;
  rows.push_back(RandomRows(random, CodecId::kRaw, 700, dim));
  rows.push_back(RandomRows(random, CodecId::kInt8, 60, dim));
  rows.push_back(RandomRows(random, CodecId::kInt4, 33, dim));
  rows.push_back(RandomRows(random, CodecId::kInt4, 1, dim));
  const std::vector<RowSpan> head0{rows[0].span, rows[1].span, rows[2].span};
  const std::vector<RowSpan> head1{rows[3].span};
  const HeadSpans spans{head0, head1};
  AlignedBytes tail_keys = RandomBf16(random, kHeads * tail_rows * dim);
  AlignedBytes tail_values = RandomBf16(random, kHeads * tail_rows * dim);
  const int64_t columns = kHeads * kGroup * dim;
  AlignedBytes q = RandomBf16(random, query_rows * columns);
  const float scale = 1 / std::sqrt(static_cast<float>(dim));

  std::shared_ptr<Device> device = MakeEmulatedDevice();
  KVTIER_ASSERT_OK_AND_ASSIGN(const auto backend,
                              MakeDeviceBackend(device, MakePlainGemm(device), DType::kBf16));
  AlignedBytes expected = AlignedBytes::Allocate(q.size());
  AttentionArgs args;
  args.q.data = q.data();
  args.q.dtype = DType::kBf16;
  args.q.rows = query_rows;
  args.q.cols = columns;
  args.out = args.q;
  args.out.data = expected.data();
  args.spans = &spans;
  args.span_dtype = DType::kBf16;
  args.tail = {.keys = tail_keys.data(),
               .values = tail_values.data(),
               .dtype = DType::kBf16,
               .kv_heads = kHeads,
               .capacity = tail_rows,
               .head_dim = dim};
  args.tail_rows = tail_rows;
  args.scale = scale;
  KVTIER_ASSERT_OK(backend->Attention(args));

  std::vector<kvtier_ragged_span> c_spans;
  std::vector<int64_t> begin = {0};
  for (int64_t head = 0; head < kHeads; ++head) {
    for (const RowSpan& span : spans[head]) c_spans.push_back(ToC(span));
    const uint64_t at = head * tail_rows * dim * sizeof(bfloat16);
    c_spans.push_back({.keys = tail_keys.data() + at,
                       .values = tail_values.data() + at,
                       .key_scales = nullptr,
                       .value_scales = nullptr,
                       .rows = tail_rows,
                       .codec = KVTIER_RAGGED_RAW,
                       .reserved = 0});
    begin.push_back(static_cast<int64_t>(c_spans.size()));
  }
  const kvtier_ragged_shape shape{.struct_bytes = sizeof(kvtier_ragged_shape),
                                  .version = kvtier_ragged_version(),
                                  .q_dtype = KVTIER_RAGGED_BF16,
                                  .kv_dtype = KVTIER_RAGGED_BF16,
                                  .query_rows = query_rows,
                                  .group = kGroup,
                                  .kv_heads = kHeads,
                                  .head_dim = dim,
                                  .window = 0,
                                  .scale = scale,
                                  .multiprocessors = device->multiprocessors(),
                                  .spans = c_spans.data(),
                                  .span_begin = begin.data()};
  kvtier_ragged_sizes sizes{sizeof(kvtier_ragged_sizes), KVTIER_RAGGED_VERSION, 0, 0};
  ASSERT_EQ(kvtier_ragged_plan(&shape, nullptr, 0, &sizes), KVTIER_RAGGED_OK);
  EXPECT_GT(sizes.workspace_bytes, 0u);
  AlignedBytes plan = AlignedBytes::Allocate(sizes.plan_bytes);
  EXPECT_EQ(kvtier_ragged_plan(&shape, plan.data(), sizes.plan_bytes - 1, &sizes),
            KVTIER_RAGGED_TOO_SMALL);
  ASSERT_EQ(kvtier_ragged_plan(&shape, plan.data(), sizes.plan_bytes, &sizes), KVTIER_RAGGED_OK);
  AlignedBytes on_device = AlignedBytes::Copy(std::as_const(plan).span());
  AlignedBytes workspace = AlignedBytes::Allocate(sizes.workspace_bytes);
  AlignedBytes out = AlignedBytes::Allocate(q.size());
  const kvtier_ragged_io io{.struct_bytes = sizeof(kvtier_ragged_io),
                            .version = KVTIER_RAGGED_VERSION,
                            .q = q.data(),
                            .out = out.data(),
                            .workspace = workspace.data(),
                            .workspace_bytes = sizes.workspace_bytes,
                            .stream = nullptr};
  for (int run = 0; run < 2; ++run) {  // A plan serves more than once.
    std::memset(out.data(), 0xFF, out.size());
    ASSERT_EQ(kvtier_ragged_decode(plan.data(), on_device.data(), &io), KVTIER_RAGGED_OK);
    EXPECT_EQ(std::memcmp(out.data(), expected.data(), out.size()), 0) << "run " << run;
  }
}

INSTANTIATE_TEST_SUITE_P(Shapes, RaggedDecodeTest,
                         ::testing::Values(DecodeCase{64, 1}, DecodeCase{64, 3}, DecodeCase{80, 1},
                                           DecodeCase{80, 2}),
                         [](const auto& each) {
                           return absl::StrCat("dim", each.param.head_dim, "_rows",
                                               each.param.query_rows);
                         });

TEST(RaggedDecodeErrorTest, EveryCodeHasWords) {
  for (int code = KVTIER_RAGGED_NO_MEMORY; code <= KVTIER_RAGGED_OK; ++code) {
    EXPECT_THAT(kvtier_ragged_error(code), ::testing::StrNe("unknown code"));
  }
  EXPECT_STREQ(kvtier_ragged_error(700), "CUDA error");
  EXPECT_STREQ(kvtier_ragged_error(-100), "unknown code");
}

}  // namespace
}  // namespace kvtier
