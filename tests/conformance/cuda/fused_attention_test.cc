// Which attention of a device's backend a library gets, what it is asked for, and what happens
// where it has none after all.
#include <cstdint>
#include <memory>
#include <random>
#include <utility>
#include <vector>

#include "base/status_matchers.h"
#include "cuda/device_backend.h"
#include "cuda/emulated/emulated_device.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/conformance/backend_tensors.h"
#include "tests/conformance/plain_fused_attention.h"

namespace kvtier {
namespace {

using ::testing::HasSubstr;
using ::testing::SizeIs;

constexpr int64_t kHeads = 2;
constexpr int64_t kGroup = 2;
constexpr int64_t kDim = 64;
constexpr int64_t kRows = 5;

class FusedRoutingTest : public ::testing::Test {
 protected:
  FusedRoutingTest() {
    std::shared_ptr<Device> device = MakeEmulatedDevice();
    backend_ = MakeDeviceBackend(device, MakePlainGemm(device), DType::kBf16,
                                 MakePlainFusedAttention(log_))
                   .value();
    own_ = MakeDeviceBackend(device, MakePlainGemm(device), DType::kBf16).value();
    context_ = Rows(40);
    tail_ = Rows(9);
    q_ = MakeActivations(*backend_, RandomFloats(random_, kRows * kHeads * kGroup * kDim), kRows,
                         kHeads * kGroup * kDim);
    for (int64_t h = 0; h < kHeads; ++h) {
      const int64_t at = h * 40 * kDim * 2;
      spans_[h].keys = static_cast<const std::byte*>(context_.view.keys) + at;
      spans_[h].values = static_cast<const std::byte*>(context_.view.values) + at;
      spans_[h].rows = 30;
      heads_.emplace_back(&spans_[h], 1);
    }
  }

  Layer Rows(int64_t capacity) {
    const Floats keys = RandomFloats(random_, kHeads * capacity * kDim);
    return MakeLayer(*backend_, keys, RandomFloats(random_, kHeads * capacity * kDim), DType::kBf16,
                     kHeads, capacity, kDim);
  }

  absl::Status Attend(Backend& backend, const Tensor& out, int64_t window = 0) {
    return backend.Attention({.q = q_,
                              .spans = &heads_,
                              .span_dtype = DType::kBf16,
                              .tail = tail_.view,
                              .tail_rows = 7,
                              .scale = 0.25f,
                              .window = window,
                              .out = out});
  }

  Tensor Out() { return backend_->Allocate(DType::kBf16, kRows, kHeads * kGroup * kDim).value(); }

  std::shared_ptr<FusedAttentionLog> log_ = std::make_shared<FusedAttentionLog>();
  std::unique_ptr<Backend> backend_;  // With a library,
  std::unique_ptr<Backend> own_;      // and without.
  std::mt19937_64 random_{5};
  Layer context_;
  Layer tail_;
  Tensor q_;
  RowSpan spans_[kHeads];
  HeadSpans heads_;
};

TEST_F(FusedRoutingTest, TwoRunsAreTwoCallsMerged) {
  const Tensor out = Out();
  const Tensor expected = Out();
  KVTIER_ASSERT_OK(Attend(*backend_, out));
  KVTIER_ASSERT_OK(Attend(*own_, expected));
  ExpectNear(Read(*backend_, out), Read(*own_, expected), 0x1p-8, 0x1p-8);
  const std::vector<FusedAttentionParams> calls = log_->calls();
  ASSERT_THAT(calls, SizeIs(2));
  EXPECT_EQ(calls[0].keys, context_.view.keys);
  EXPECT_FALSE(calls[0].causal);
  EXPECT_EQ(calls[1].keys, tail_.view.keys);
  EXPECT_TRUE(calls[1].causal);
  EXPECT_EQ(calls[1].out, out.data());
  for (const FusedAttentionParams& call : calls) EXPECT_NE(call.lse, nullptr);
}

TEST_F(FusedRoutingTest, OneRunIsOneCallWithoutNormalisers) {
  heads_ = {{}, {}};
  const Tensor out = Out();
  KVTIER_ASSERT_OK(Attend(*backend_, out, /*window=*/3));
  const std::vector<FusedAttentionParams> calls = log_->calls();
  ASSERT_THAT(calls, SizeIs(1));
  EXPECT_EQ(calls[0].q, q_.data());
  EXPECT_EQ(calls[0].out, out.data());
  EXPECT_EQ(calls[0].lse, nullptr);
  EXPECT_EQ(calls[0].window, 3);
  EXPECT_EQ(calls[0].scale, 0.25f);
}

TEST_F(FusedRoutingTest, WhatTheLibraryDoesNotTakeRunsOnOwnKernels) {
  // One of both calls is enough.
  log_->takes = [](const FusedAttentionParams& params) { return !params.causal; };
  const Tensor out = Out();
  const Tensor expected = Out();
  KVTIER_ASSERT_OK(Attend(*backend_, out));
  KVTIER_ASSERT_OK(Attend(*own_, expected));
  EXPECT_EQ(Read(*backend_, out), Read(*own_, expected));
  EXPECT_THAT(log_->calls(), SizeIs(0));
}

TEST_F(FusedRoutingTest, WhatTheLibraryHasNoKernelForAfterAllRunsOnOwnKernels) {
  log_->result = [](const FusedAttentionParams& params) {
    return params.causal ? absl::UnimplementedError("no plan") : absl::OkStatus();
  };
  const Tensor out = Out();
  const Tensor expected = Out();
  KVTIER_ASSERT_OK(Attend(*backend_, out));
  KVTIER_ASSERT_OK(Attend(*own_, expected));
  EXPECT_EQ(Read(*backend_, out), Read(*own_, expected));
  EXPECT_THAT(log_->calls(), SizeIs(2));
}

TEST_F(FusedRoutingTest, WhatTheLibraryDidIsCounted) {
  const std::shared_ptr<const LibraryCounters> counters = backend_->library_counters();
  ASSERT_NE(counters, nullptr);
  EXPECT_EQ(own_->library_counters(), nullptr);
  const Tensor out = Out();
  KVTIER_ASSERT_OK(Attend(*backend_, out));
  EXPECT_EQ(counters->attention_calls, 2u);
  EXPECT_EQ(counters->attention_fallbacks, 0u);
  log_->result = [](const FusedAttentionParams& params) {
    return params.causal ? absl::UnimplementedError("no plan") : absl::OkStatus();
  };
  KVTIER_ASSERT_OK(Attend(*backend_, out));
  EXPECT_EQ(counters->attention_calls, 3u);
  EXPECT_EQ(counters->attention_fallbacks, 1u);
  log_->result = nullptr;
  log_->takes = [](const FusedAttentionParams&) { return false; };  // Not asked for.
  KVTIER_ASSERT_OK(Attend(*backend_, out));
  EXPECT_EQ(counters->attention_calls, 3u);
  EXPECT_EQ(counters->attention_fallbacks, 1u);
}

TEST_F(FusedRoutingTest, AFailureOfTheLibraryIsTheCallers) {
  log_->result = [](const FusedAttentionParams&) { return absl::InternalError("broken"); };
  EXPECT_THAT(Attend(*backend_, Out()), StatusIs(absl::StatusCode::kInternal, HasSubstr("broken")));
}

// A library may read rows behind the last one with the weight zero: zero times NaN is NaN.
TEST_F(FusedRoutingTest, NewTensorsHoldZeros) {
  KVTIER_ASSERT_OK_AND_ASSIGN(const Tensor tensor, backend_->Allocate(DType::kBf16, 3, 100));
  EXPECT_THAT(Read(*backend_, tensor), ::testing::Each(0.0f));
}

}  // namespace
}  // namespace kvtier
