// Which rows of a backend's attention lie so that a library takes them in one call, or in two.
#include "cuda/fused_calls.h"

#include <cstdint>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace kvtier {
namespace {

using ::testing::IsEmpty;
using ::testing::SizeIs;

constexpr int64_t kHeads = 3;
constexpr int64_t kDim = 16;
constexpr int64_t kRowBytes = kDim * 2;

// Addresses alone: nothing is read.
class FusedCallsTest : public ::testing::Test {
 protected:
  FusedCallsTest() {
    args_.q = View(/*rows=*/5, /*cols=*/kHeads * 4 * kDim, 0x1000);
    args_.out = View(5, kHeads * 4 * kDim, 0x5000);
    args_.tail = {.keys = Address(0x1000'0000),
                  .values = Address(0x2000'0000),
                  .dtype = DType::kBf16,
                  .kv_heads = kHeads,
                  .capacity = 64,
                  .head_dim = kDim};
    args_.tail_rows = 20;
    args_.scale = 0.5f;
  }

  static void* Address(uintptr_t address) { return reinterpret_cast<void*>(address); }
  static TensorView View(int64_t rows, int64_t cols, uintptr_t address) {
    TensorView view;
    view.data = Address(address);
    view.dtype = DType::kBf16;
    view.rows = rows;
    view.cols = cols;
    return view;
  }
  // Rows of each head in a cache at these addresses with room for `capacity`.
  void AddSpans(uintptr_t keys, uintptr_t values, uint32_t rows, int64_t capacity) {
    spans_.resize(kHeads);
    for (int64_t h = 0; h < kHeads; ++h) {
      RowSpan span;
      span.keys = static_cast<const std::byte*>(Address(keys + h * capacity * kRowBytes));
      span.values = static_cast<const std::byte*>(Address(values + h * capacity * kRowBytes));
      span.rows = rows;
      spans_[h].push_back(span);
    }
  }
  std::vector<FusedAttentionParams> Calls() {
    heads_.assign(spans_.begin(), spans_.end());
    args_.spans = spans_.empty() ? nullptr : &heads_;
    return FusedCalls(args_);
  }

  AttentionArgs args_;
  std::vector<std::vector<RowSpan>> spans_;
  HeadSpans heads_;
};

TEST_F(FusedCallsTest, ATailIsOneCausalCall) {
  const auto calls = Calls();
  ASSERT_THAT(calls, SizeIs(1));
  const FusedAttentionParams& call = calls[0];
  EXPECT_EQ(call.q, args_.q.data);
  EXPECT_EQ(call.keys, args_.tail.keys);
  EXPECT_EQ(call.values, args_.tail.values);
  EXPECT_EQ(call.rows, 5);
  EXPECT_EQ(call.key_rows, 20);
  EXPECT_EQ(call.head_rows, 64);
  EXPECT_EQ(call.readable_rows, 64);
  EXPECT_EQ(call.kv_heads, kHeads);
  EXPECT_EQ(call.group, 4);
  EXPECT_EQ(call.head_dim, kDim);
  EXPECT_TRUE(call.causal);
  EXPECT_EQ(call.scale, 0.5f);
  // Spans without rows are none.
  AddSpans(0x4000'0000, 0x6000'0000, 0, 10);
  EXPECT_THAT(Calls(), SizeIs(1));
}

TEST_F(FusedCallsTest, AWindowThatHoldsEveryRowIsNone) {
  args_.window = 20;
  EXPECT_EQ(Calls()[0].window, 0);
  args_.window = 19;
  EXPECT_EQ(Calls()[0].window, 19);
}

TEST_F(FusedCallsTest, AContextApartIsACallOfItsOwn) {
  AddSpans(0x4000'0000, 0x6000'0000, 100, 128);
  const auto calls = Calls();
  ASSERT_THAT(calls, SizeIs(2));
  EXPECT_EQ(calls[0].keys, spans_[0][0].keys);
  EXPECT_EQ(calls[0].values, spans_[0][0].values);
  EXPECT_EQ(calls[0].key_rows, 100);
  EXPECT_EQ(calls[0].readable_rows, 100);
  EXPECT_EQ(calls[0].head_rows, 128);
  EXPECT_FALSE(calls[0].causal);
  EXPECT_EQ(calls[1].key_rows, 20);
  EXPECT_TRUE(calls[1].causal);
  args_.window = 119;  // Leaves each query other rows of the context.
  EXPECT_THAT(Calls(), IsEmpty());
  args_.window = 120;
  EXPECT_THAT(Calls(), SizeIs(2));
}

TEST_F(FusedCallsTest, ATailBehindItsContextIsOneRun) {
  AddSpans(0x1000'0000 - 30 * kRowBytes, 0x2000'0000 - 30 * kRowBytes, 30, 64);
  args_.window = 40;
  auto calls = Calls();
  ASSERT_THAT(calls, SizeIs(1));
  EXPECT_EQ(calls[0].keys, spans_[0][0].keys);
  EXPECT_EQ(calls[0].key_rows, 50);
  EXPECT_EQ(calls[0].readable_rows, 50);  // How far the cache goes is not known.
  EXPECT_EQ(calls[0].head_rows, 64);
  EXPECT_TRUE(calls[0].causal);
  EXPECT_EQ(calls[0].window, 40);
  // A row between both, or values elsewhere: two runs.
  args_.window = 0;
  spans_.clear();
  AddSpans(0x1000'0000 - 31 * kRowBytes, 0x2000'0000 - 31 * kRowBytes, 30, 64);
  EXPECT_THAT(Calls(), SizeIs(2));
  spans_.clear();
  AddSpans(0x1000'0000 - 30 * kRowBytes, 0x6000'0000, 30, 64);
  EXPECT_THAT(Calls(), SizeIs(2));
  // Heads of another length.
  spans_.clear();
  AddSpans(0x1000'0000 - 30 * kRowBytes, 0x2000'0000 - 30 * kRowBytes, 30, 65);
  EXPECT_THAT(Calls(), SizeIs(2));
}

TEST_F(FusedCallsTest, RowsBehindAContextMayBeRead) {
  AddSpans(0x4000'0000, 0x6000'0000, 100, 128);
  args_.readable_span_rows = 128;
  auto calls = Calls();
  ASSERT_THAT(calls, SizeIs(2));
  EXPECT_EQ(calls[0].key_rows, 100);
  EXPECT_EQ(calls[0].readable_rows, 128);
  EXPECT_EQ(calls[0].head_rows, 128);
  EXPECT_EQ(calls[1].key_rows, 20);
  args_.readable_span_rows = 129;  // A row of the next head.
  EXPECT_THAT(Calls(), IsEmpty());
}

TEST_F(FusedCallsTest, OddRowsAreCutIntoPowersOfTwo) {
  args_.q = View(1337, kHeads * 4 * kDim, 0x10'0000);
  args_.out = View(1337, kHeads * 4 * kDim, 0x80'0000);
  args_.tail.capacity = 4096;
  args_.tail_rows = 3000;
  args_.window = 50;
  EXPECT_THAT(CommonRowCalls(args_), SizeIs(1));
  args_.odd_rows = true;
  const std::vector<AttentionArgs> calls = CommonRowCalls(args_);
  ASSERT_THAT(calls, SizeIs(3));
  int64_t begin = 0;
  const int64_t rows[] = {1024, 256, 57};
  for (size_t i = 0; i < calls.size(); ++i) {
    EXPECT_EQ(calls[i].q.rows, rows[i]);
    EXPECT_EQ(calls[i].q.data, args_.q.Rows(begin, 1).data);
    EXPECT_EQ(calls[i].out.rows, rows[i]);
    EXPECT_EQ(calls[i].out.data, args_.out.Rows(begin, 1).data);
    begin += rows[i];
    EXPECT_EQ(calls[i].tail_rows, 3000 - 1337 + begin);
    EXPECT_EQ(calls[i].window, 50);
    EXPECT_FALSE(calls[i].odd_rows);
  }
  args_.q.rows = args_.out.rows = 63;
  EXPECT_THAT(CommonRowCalls(args_), SizeIs(1));
}

TEST_F(FusedCallsTest, OneHeadNeedsNoDistance) {
  args_.q.cols = 4 * kDim;
  args_.tail.kv_heads = 1;
  AddSpans(0x4000'0000, 0x6000'0000, 100, 128);
  spans_.resize(1);
  const auto calls = Calls();
  ASSERT_THAT(calls, SizeIs(2));
  EXPECT_EQ(calls[0].head_rows, 100);
  args_.readable_span_rows = 128;
  EXPECT_EQ(Calls()[0].head_rows, 128);
  EXPECT_EQ(Calls()[0].readable_rows, 128);
}

TEST_F(FusedCallsTest, WhatDoesNotLieTogetherIsNoCall) {
  AddSpans(0x4000'0000, 0x6000'0000, 100, 128);
  const auto whole = spans_;
  spans_[1][0].rows = 99;  // Heads of uneven lengths,
  EXPECT_THAT(Calls(), IsEmpty());
  spans_ = whole;
  spans_[2].clear();  // or one without rows;
  EXPECT_THAT(Calls(), IsEmpty());
  spans_ = whole;
  spans_[2][0].values += kRowBytes;  // values that are not as far apart as keys;
  EXPECT_THAT(Calls(), IsEmpty());
  spans_ = whole;
  spans_[2][0].keys += kRowBytes;  // heads at uneven distances,
  EXPECT_THAT(Calls(), IsEmpty());
  spans_.clear();
  AddSpans(0x4000'0000, 0x6000'0000, 100, 99);  // that overlap,
  EXPECT_THAT(Calls(), IsEmpty());
  spans_ = whole;
  for (auto& head : spans_) {
    head[0].codec = CodecId::kInt8;  // coded rows,
  }
  EXPECT_THAT(Calls(), IsEmpty());
  spans_ = whole;
  for (auto& head : spans_) {
    head.push_back(head[0]);  // several spans.
  }
  EXPECT_THAT(Calls(), IsEmpty());
}

TEST_F(FusedCallsTest, OtherTypesAreNoCall) {
  args_.q.dtype = DType::kF32;
  EXPECT_THAT(Calls(), IsEmpty());
  args_.q.dtype = DType::kBf16;
  args_.span_dtype = DType::kF32;
  EXPECT_THAT(Calls(), IsEmpty());
}

}  // namespace
}  // namespace kvtier
