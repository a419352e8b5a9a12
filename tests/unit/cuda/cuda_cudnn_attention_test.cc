// cuDNN without a device: it accepts the operations of every kind of call that it is given. Where
// the program was built without it, it says so.
#include "cuda/cuda_cudnn_attention.h"

#include <string>

#include "base/status_matchers.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace kvtier {
namespace {

using ::testing::HasSubstr;

CudnnShape Shape(bool causal) {
  return {.rows = 2030,
          .key_rows = 34'001,
          .head_rows = 34'100,
          .kv_heads = 8,
          .group = 4,
          .head_dim = 128,
          .scale = 0.088f,
          .causal = causal};
}

#if defined(KVTIER_WITH_CUDNN)

TEST(CudnnAttentionTest, AcceptsEveryKindOfCall) {
  for (const int capability : {80, 90}) {
    for (const int64_t dim : {64, 96, 128, 256}) {
      for (const bool lse : {false, true}) {
        CudnnShape context = Shape(/*causal=*/false);
        CudnnShape prefill = Shape(/*causal=*/true);
        context.head_dim = prefill.head_dim = dim;
        context.lse = prefill.lse = lse;
        CudnnShape windowed = prefill;
        windowed.window = 512;
        CudnnShape square = prefill;
        square.key_rows = square.rows;
        CudnnShape odd = prefill;
        odd.rows = 71;
        odd.key_rows = 333;
        odd.group = 7;
        for (CudnnShape shape : {context, prefill, windowed, square, odd}) {
          for (const bool lengths : {false, true}) {
            shape.lengths = lengths;
            KVTIER_EXPECT_OK(CheckCudnnOperations(shape, capability)) << shape.ToString();
          }
        }
      }
    }
  }
}

TEST(CudnnAttentionTest, SaysWhatItDoesNotTake) {
  CudnnShape shape = Shape(/*causal=*/true);
  shape.head_dim = 100;
  EXPECT_THAT(CheckCudnnOperations(shape, 90),
              StatusIs(absl::StatusCode::kUnimplemented, HasSubstr("heads of 100")));
  shape = Shape(/*causal=*/true);
  shape.key_rows = shape.rows - 1;  // Rows that see nothing.
  EXPECT_THAT(CheckCudnnOperations(shape, 90), StatusIs(absl::StatusCode::kUnimplemented));
}

#else

TEST(CudnnAttentionTest, SaysThatItIsNotThere) {
  EXPECT_THAT(CheckCudnnOperations(Shape(true), 90),
              StatusIs(absl::StatusCode::kUnavailable, HasSubstr("install-deps.sh --cuda")));
  EXPECT_THAT(MakeCudnnAttention(nullptr), StatusIs(absl::StatusCode::kUnavailable));
}

#endif

}  // namespace
}  // namespace kvtier
