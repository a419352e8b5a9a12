// The C interface of ragged attention on a device: the bits of the backend's attention over several
// layers, launched one by one and replayed as a CUDA graph with new queries. Rows stay as they were
// when the graph was captured, as they must; an engine's steps, which append rows, are not here.
#include <cstdint>
#include <memory>
#include <random>
#include <vector>

#include <cuda_runtime_api.h>

#include "base/status_matchers.h"
#include "compressor/activations.h"
#include "cuda/cuda_device.h"
#include "cuda/cuda_gemm.h"
#include "cuda/device_backend.h"
#include "cuda/kvtier_ragged_decode.h"
#include "gtest/gtest.h"
#include "tests/conformance/backend_tensors.h"
#include "tests/gpu/gpu_check.h"
#include "tests/testing/random.h"

namespace kvtier {
namespace {

constexpr int64_t kHeads = 3;
constexpr int64_t kGroup = 4;
constexpr int64_t kDim = 128;
constexpr int64_t kCapacity = 3000;
constexpr int64_t kLayers = 4;
// Rows of each head that are kept; a tail of one row comes behind them.
constexpr int64_t kRows[kHeads] = {2900, 1, 70};
constexpr float kScale = 0.0883883f;

// One layer: rows, queries, outputs and a plan.
struct DecodeLayer {
  Layer kept;
  Layer tail;
  std::vector<RowSpan> spans;  // Of the kept rows, head by head.
  HeadSpans lists;             // Into spans.
  Tensor q;
  Tensor expected;
  Tensor out;
  std::vector<uint64_t> plan;  // 16-byte aligned as operator new aligns.
  DeviceMemory device_plan;
  DeviceMemory workspace;
  uint64_t workspace_bytes = 0;

  kvtier_ragged_io Io(DeviceStream stream) const {
    return {.struct_bytes = sizeof(kvtier_ragged_io),
            .version = KVTIER_RAGGED_VERSION,
            .q = q.data(),
            .out = out.data(),
            .workspace = workspace.as<void>(),
            .workspace_bytes = workspace_bytes,
            .stream = stream};
  }
};

class RaggedGraphTest : public ::testing::Test {
 protected:
  void SetUp() override {
    KVTIER_ASSERT_OK_AND_ASSIGN(device_, MakeCudaDevice(DeviceUnderTest()));
    KVTIER_ASSERT_OK_AND_ASSIGN(std::unique_ptr<Gemm> gemm, MakeCudaGemm(device_));
    KVTIER_ASSERT_OK_AND_ASSIGN(backend_,
                                MakeDeviceBackend(device_, std::move(gemm), DType::kBf16));
    KVTIER_ASSERT_OK(device_->Enter());
  }

  Layer RandomLayer(std::mt19937_64& random, int64_t capacity) {
    const int64_t count = kHeads * capacity * kDim;
    return MakeLayer(*backend_, RandomFloats(random, count), RandomFloats(random, count),
                     DType::kBf16, kHeads, capacity, kDim);
  }

  // A layer with what the backend makes of it.
  void Fill(std::mt19937_64& random, DecodeLayer& layer) {
    layer.kept = RandomLayer(random, kCapacity);
    layer.tail = RandomLayer(random, 1);
    const int64_t columns = kHeads * kGroup * kDim;
    layer.q = MakeActivations(*backend_, Floats(columns), 1, columns);
    layer.expected = MakeActivations(*backend_, Floats(columns), 1, columns);
    layer.out = MakeActivations(*backend_, Floats(columns), 1, columns);
    layer.spans.resize(kHeads);
    std::vector<kvtier_ragged_span> c_spans;
    std::vector<int64_t> begin = {0};
    for (int64_t head = 0; head < kHeads; ++head) {
      const int64_t at = head * kCapacity * kDim * 2;
      RowSpan& span = layer.spans[head];
      span.keys = static_cast<const std::byte*>(layer.kept.view.keys) + at;
      span.values = static_cast<const std::byte*>(layer.kept.view.values) + at;
      span.rows = static_cast<uint32_t>(kRows[head]);
      layer.lists.push_back(std::span(&span, 1));
      const int64_t tail_at = head * kDim * 2;
      c_spans.push_back(Raw(span.keys, span.values, kRows[head]));
      c_spans.push_back(Raw(static_cast<const std::byte*>(layer.tail.view.keys) + tail_at,
                            static_cast<const std::byte*>(layer.tail.view.values) + tail_at, 1));
      begin.push_back(static_cast<int64_t>(c_spans.size()));
    }
    Plan(c_spans, begin, layer);
    Ask(random, layer);
  }

  // New queries in the place of the old ones, and what the backend answers them.
  void Ask(std::mt19937_64& random, DecodeLayer& layer) {
    KVTIER_ASSERT_OK(
        UploadFloats(*backend_, RandomFloats(random, kHeads * kGroup * kDim), layer.q));
    AttentionArgs args{.q = layer.q, .spans = &layer.lists, .span_dtype = DType::kBf16};
    args.tail = layer.tail.view;
    args.tail_rows = 1;
    args.scale = kScale;
    args.out = layer.expected;
    KVTIER_ASSERT_OK(backend_->Attention(args));
  }

  static kvtier_ragged_span Raw(const void* keys, const void* values, int64_t rows) {
    return {.keys = keys,
            .values = values,
            .key_scales = nullptr,
            .value_scales = nullptr,
            .rows = rows,
            .codec = KVTIER_RAGGED_RAW,
            .reserved = 0};
  }

  void Plan(const std::vector<kvtier_ragged_span>& spans, const std::vector<int64_t>& begin,
            DecodeLayer& layer) {
    const kvtier_ragged_shape shape{.struct_bytes = sizeof(kvtier_ragged_shape),
                                    .version = KVTIER_RAGGED_VERSION,
                                    .q_dtype = KVTIER_RAGGED_BF16,
                                    .kv_dtype = KVTIER_RAGGED_BF16,
                                    .query_rows = 1,
                                    .group = kGroup,
                                    .kv_heads = kHeads,
                                    .head_dim = kDim,
                                    .window = 0,
                                    .scale = kScale,
                                    .multiprocessors = device_->multiprocessors(),
                                    .spans = spans.data(),
                                    .span_begin = begin.data()};
    kvtier_ragged_sizes sizes{sizeof(kvtier_ragged_sizes), KVTIER_RAGGED_VERSION, 0, 0};
    ASSERT_EQ(kvtier_ragged_plan(&shape, nullptr, 0, &sizes), KVTIER_RAGGED_OK);
    layer.plan.resize(sizes.plan_bytes / sizeof(uint64_t));  // A multiple of 16.
    ASSERT_EQ(kvtier_ragged_plan(&shape, layer.plan.data(), sizes.plan_bytes, &sizes),
              KVTIER_RAGGED_OK);
    KVTIER_ASSERT_OK_AND_ASSIGN(layer.device_plan,
                                DeviceMemory::Of(device_, std::span<const uint64_t>(layer.plan)));
    KVTIER_ASSERT_OK_AND_ASSIGN(layer.workspace,
                                DeviceMemory::Allocate(device_, sizes.workspace_bytes));
    layer.workspace_bytes = sizes.workspace_bytes;
  }

  void Decode(const std::vector<DecodeLayer>& layers) {
    for (const DecodeLayer& layer : layers) {
      const kvtier_ragged_io io = layer.Io(device_->stream());
      ASSERT_EQ(kvtier_ragged_decode(layer.plan.data(), layer.device_plan.as<void>(), &io),
                KVTIER_RAGGED_OK);
    }
  }

  // Then forgets them.
  void ExpectOutputs(const std::vector<DecodeLayer>& layers) {
    for (const DecodeLayer& layer : layers) {
      EXPECT_EQ(Read(*backend_, layer.out), Read(*backend_, layer.expected));
      KVTIER_EXPECT_OK(device_->Zero(layer.out.data(), layer.out.bytes()));
    }
  }

  std::shared_ptr<Device> device_;
  std::unique_ptr<Backend> backend_;
};

TEST_F(RaggedGraphTest, DecodesTheBackendsBitsLaunchedAndReplayed) {
  std::mt19937_64 random(TestSeed());
  std::vector<DecodeLayer> layers(kLayers);
  for (DecodeLayer& layer : layers) ASSERT_NO_FATAL_FAILURE(Fill(random, layer));
  ASSERT_NO_FATAL_FAILURE(Decode(layers));  // Also what must come before a capture.
  ExpectOutputs(layers);

  const auto stream = static_cast<cudaStream_t>(device_->stream());
  ASSERT_EQ(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), cudaSuccess);
  Decode(layers);
  cudaGraph_t graph = nullptr;
  ASSERT_EQ(cudaStreamEndCapture(stream, &graph), cudaSuccess);
  cudaGraphExec_t step = nullptr;
  ASSERT_EQ(cudaGraphInstantiate(&step, graph, 0), cudaSuccess);
  for (int run = 0; run < 3; ++run) {
    for (DecodeLayer& layer : layers) ASSERT_NO_FATAL_FAILURE(Ask(random, layer));
    ASSERT_EQ(cudaGraphLaunch(step, stream), cudaSuccess);
    KVTIER_ASSERT_OK(device_->Synchronize());
    ExpectOutputs(layers);
  }
  EXPECT_EQ(cudaGraphExecDestroy(step), cudaSuccess);
  EXPECT_EQ(cudaGraphDestroy(graph), cudaSuccess);
}

}  // namespace
}  // namespace kvtier
