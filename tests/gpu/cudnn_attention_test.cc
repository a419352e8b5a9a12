// cuDNN's attention against its twin in plain loops: outputs, and normalisers in natural logs.
#include <cmath>
#include <cstdint>
#include <memory>
#include <random>
#include <span>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/half.h"
#include "base/status_matchers.h"
#include "cuda/cuda_cudnn_attention.h"
#include "cuda/cuda_device.h"
#include "gtest/gtest.h"
#include "tests/conformance/plain_fused_attention.h"
#include "tests/gpu/gpu_check.h"
#include "tests/testing/random.h"

namespace kvtier {
namespace {

// Some bf16 numbers on both sides.
struct Both {
  std::vector<bfloat16> host;
  DeviceMemory device;
};

class CudnnAttentionTest : public ::testing::Test {
 protected:
  void SetUp() override {
    KVTIER_ASSERT_OK_AND_ASSIGN(device_, MakeCudaDevice(DeviceUnderTest()));
    KVTIER_ASSERT_OK(device_->Enter());
    auto cudnn = MakeCudnnAttention(device_);
    // Not built in, or not on this machine: the backend then goes without, too, and says so.
    if (absl::IsUnavailable(cudnn.status())) GTEST_SKIP() << cudnn.status();
    KVTIER_ASSERT_OK(cudnn);
    cudnn_ = *std::move(cudnn);
  }

  Both Random(int64_t count, float size) {
    std::uniform_real_distribution<float> uniform(-size, size);
    Both both;
    both.host.resize(count);
    for (bfloat16& x : both.host) x = bfloat16(uniform(random_));
    both.device = DeviceMemory::Of(device_, std::span<const bfloat16>(both.host)).value();
    return both;
  }

  void ExpectEqualsThePlainLoops(FusedAttentionParams p) {
    SCOPED_TRACE(absl::StrCat("rows ", p.rows, " keys ", p.key_rows, " of ", p.head_rows, " heads ",
                              p.kv_heads, " x ", p.group, " dim ", p.head_dim, " causal ", p.causal,
                              " window ", p.window));
    const int64_t width = p.kv_heads * p.group * p.head_dim;
    const Both q = Random(p.rows * width, 2);
    const Both keys = Random(p.kv_heads * p.head_rows * p.head_dim, 1);
    const Both values = Random(p.kv_heads * p.head_rows * p.head_dim, 1);
    p.scale = 1 / std::sqrt(static_cast<float>(p.head_dim));
    std::vector<bfloat16> out(p.rows * width);
    std::vector<float> lse(p.kv_heads * p.group * p.rows);
    p.q = q.host.data();
    p.keys = keys.host.data();
    p.values = values.host.data();
    p.out = out.data();
    p.lse = lse.data();
    RunPlainFusedAttention(p);
    KVTIER_ASSERT_OK_AND_ASSIGN(const DeviceMemory device_out,
                                DeviceMemory::Allocate(device_, out.size() * sizeof(bfloat16)));
    KVTIER_ASSERT_OK_AND_ASSIGN(const DeviceMemory device_lse,
                                DeviceMemory::Allocate(device_, lse.size() * sizeof(float)));
    p.q = q.device.as<void>();
    p.keys = keys.device.as<void>();
    p.values = values.device.as<void>();
    p.out = device_out.as<void>();
    p.lse = device_lse.as<float>();
    ASSERT_TRUE(cudnn_->Takes(p));
    std::vector<bfloat16> first;
    for (int run = 0; run < 2; ++run) {
      KVTIER_ASSERT_OK(cudnn_->Run(p));
      std::vector<bfloat16> mine(out.size());
      std::vector<float> mine_lse(lse.size());
      KVTIER_ASSERT_OK(device_->CopyOut(p.out, mine.data(), mine.size() * sizeof(bfloat16)));
      KVTIER_ASSERT_OK(device_->CopyOut(p.lse, mine_lse.data(), mine_lse.size() * sizeof(float)));
      for (size_t i = 0; i < out.size(); ++i) {
        const auto expected = static_cast<float>(out[i]);
        ASSERT_NEAR(static_cast<float>(mine[i]), expected, 1e-2 + 0x1p-7 * std::abs(expected))
            << "element " << i;
        if (run > 0) {
          ASSERT_EQ(mine[i].bits, first[i].bits) << "a second run differs";
        }
      }
      for (size_t i = 0; i < lse.size(); ++i) {
        ASSERT_NEAR(mine_lse[i], lse[i], 1e-4 * (1 + std::abs(lse[i]))) << "row " << i;
      }
      first = mine;
    }
  }

  std::mt19937_64 random_{TestSeed()};
  std::shared_ptr<Device> device_;
  std::unique_ptr<FusedAttention> cudnn_;
};

TEST_F(CudnnAttentionTest, EqualsThePlainLoops) {
  const auto params = [](int64_t rows, int64_t keys, int64_t head_rows, int64_t readable,
                         bool causal, int64_t window, int64_t group, int64_t dim) {
    return FusedAttentionParams{.rows = rows,
                                .key_rows = keys,
                                .head_rows = head_rows,
                                .readable_rows = readable,
                                .kv_heads = 2,
                                .group = group,
                                .head_dim = dim,
                                .causal = causal,
                                .window = window};
  };
  ExpectEqualsThePlainLoops(params(64, 64, 64, 64, true, 0, 4, 128));
  ExpectEqualsThePlainLoops(params(71, 333, 400, 333, true, 0, 4, 128));
  ExpectEqualsThePlainLoops(params(71, 333, 400, 400, true, 0, 4, 128));  // Lengths with the call,
  ExpectEqualsThePlainLoops(params(71, 334, 400, 400, true, 0, 4, 128));  // by the same plan.
  ExpectEqualsThePlainLoops(params(71, 333, 400, 400, true, 100, 1, 128));
  ExpectEqualsThePlainLoops(params(90, 90, 90, 90, true, 37, 5, 64));
  ExpectEqualsThePlainLoops(params(71, 333, 400, 333, false, 0, 7, 96));
  ExpectEqualsThePlainLoops(params(71, 333, 400, 400, false, 0, 7, 96));
  ExpectEqualsThePlainLoops(params(65, 1, 10, 1, false, 0, 2, 64));
  ExpectEqualsThePlainLoops(params(70, 200, 200, 200, true, 0, 2, 256));
}

}  // namespace
}  // namespace kvtier
