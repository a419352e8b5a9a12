#include "cuda/cuda_cudnn_attention.h"

#include <dlfcn.h>

#include <array>
#include <exception>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include <cuda_runtime_api.h>
#include <cudnn_frontend.h>

#include "absl/strings/str_cat.h"
#include "base/log.h"
#include "base/mutex.h"
#include "base/status_macros.h"
#include "cuda/plan_cache.h"

// The frontend's headers call cuDNN through this, which they want by this name.
namespace cudnn_frontend {
void* cudnn_dlhandle = nullptr;  // NOLINT: written once, before any of them is used.
}  // namespace cudnn_frontend

namespace kvtier {
namespace {

namespace fe = cudnn_frontend;

constexpr size_t kVersionMin = 90600;  // Bottom-right masks of lengths that are no multiples of 64.

// Where the loader looks, and then where this build found it.
constexpr const char* kNames[] = {KVTIER_CUDNN_SONAME, KVTIER_CUDNN_PATH};

// Of the tensors of a graph.
enum Uid : int64_t { kQ = 1, kK, kV, kO, kStats, kRows, kKeyRows };

// The headers throw, too.
template <typename Call>
fe::error_t Caught(Call call) {
  try {
    return call();
  } catch (const std::exception& thrown) {
    return {fe::error_code_t::CUDNN_BACKEND_API_FAILED, thrown.what()};
  }
}

fe::error_t ToError(cudnnStatus_t status) {
  if (status == CUDNN_STATUS_SUCCESS) return {};
  return {fe::error_code_t::CUDNN_BACKEND_API_FAILED, fe::detail::get_error_string(status)};
}

absl::Status Load() {
  std::string reasons;
  for (const char* const name : kNames) {
    fe::cudnn_dlhandle = dlopen(name, RTLD_NOW | RTLD_LOCAL);
    if (fe::cudnn_dlhandle != nullptr) break;
    const char* const reason = dlerror();
    absl::StrAppend(&reasons, reasons.empty() ? "" : "; ", reason == nullptr ? name : reason);
  }
  if (fe::cudnn_dlhandle == nullptr) {
    return absl::UnavailableError(absl::StrCat("cannot load cuDNN: ", reasons));
  }
  size_t version = 0;
  fe::error_t asked = Caught([&version]() -> fe::error_t {
    version = fe::detail::get_backend_version();
    return {};
  });
  if (asked.is_bad()) {
    return absl::UnavailableError(absl::StrCat("cuDNN does not work: ", asked.get_message()));
  }
  // NVIDIA's frontend refuses these two for bf16.
  if (version < kVersionMin || version == 91000 || version == 91001) {
    return absl::FailedPreconditionError(absl::StrCat(
        "cuDNN ", version, " cannot be used: 90600 is needed, and not 91000 or 91001"));
  }
  return absl::OkStatus();
}

// Once a process; cuDNN stays loaded to the end.
absl::Status Loaded() {
  static const auto* const loaded = new absl::Status(Load());
  return *loaded;
}

fe::graph::Tensor_attributes Rows(Uid uid, const char* name, int64_t heads, int64_t rows,
                                  int64_t dim, int64_t head_stride, int64_t row_stride) {
  return fe::graph::Tensor_attributes()
      .set_uid(uid)
      .set_name(name)
      .set_dim({1, heads, rows, dim})
      .set_stride({heads * head_stride + rows * row_stride, head_stride, row_stride, 1});
}

fe::graph::Tensor_attributes Length(Uid uid, const char* name) {
  return fe::graph::Tensor_attributes()
      .set_uid(uid)
      .set_name(name)
      .set_dim({1, 1, 1, 1})
      .set_stride({1, 1, 1, 1})
      .set_data_type(fe::DataType_t::INT32);
}

// The operations of a shape; layouts are those of FusedAttentionParams.
std::shared_ptr<fe::graph::Graph> Describe(const CudnnShape& s, int compute_capability) {
  auto graph = std::make_shared<fe::graph::Graph>();
  graph->set_io_data_type(fe::DataType_t::BFLOAT16)
      .set_intermediate_data_type(fe::DataType_t::FLOAT)
      .set_compute_data_type(fe::DataType_t::FLOAT)
      .set_sm_version(compute_capability);
  const int64_t heads = s.kv_heads * s.group;
  const int64_t key_head = s.head_rows * s.head_dim;
  auto q = graph->tensor(Rows(kQ, "q", heads, s.rows, s.head_dim, s.head_dim, heads * s.head_dim));
  auto k = graph->tensor(Rows(kK, "k", s.kv_heads, s.key_rows, s.head_dim, key_head, s.head_dim));
  auto v = graph->tensor(Rows(kV, "v", s.kv_heads, s.key_rows, s.head_dim, key_head, s.head_dim));
  auto options = fe::graph::SDPA_attributes()
                     .set_name("attention")
                     // Left to itself the frontend takes cuDNN's unified operation where there is
                     // no mask, for which 9.19 has no kernel on compute capability 9.0.
                     .set_implementation(fe::AttentionImplementation_t::COMPOSITE)
                     .set_generate_stats(s.lse)
                     .set_attn_scale(s.scale);
  if (s.causal) {
    options.set_diagonal_alignment(fe::DiagonalAlignment_t::BOTTOM_RIGHT)
        .set_diagonal_band_right_bound(0);
    // The row's own key and window - 1 before it.
    if (s.window > 0) options.set_diagonal_band_left_bound(s.window);
  }
  if (s.lengths) {
    options.set_padding_mask(true)
        .set_seq_len_q(graph->tensor(Length(kRows, "rows")))
        .set_seq_len_kv(graph->tensor(Length(kKeyRows, "key rows")));
  }
  auto [out, stats] = graph->sdpa(q, k, v, options);
  out->set_output(true)
      .set_uid(kO)
      .set_dim({1, heads, s.rows, s.head_dim})
      .set_stride({heads * s.rows * s.head_dim, s.head_dim, heads * s.head_dim, 1});
  if (stats != nullptr) {
    stats->set_output(true)
        .set_uid(kStats)
        .set_data_type(fe::DataType_t::FLOAT)
        .set_dim({1, heads, s.rows, 1})
        .set_stride({heads * s.rows, s.rows, 1, 1});
  }
  return graph;
}

struct Plan {
  std::shared_ptr<fe::graph::Graph> graph;  // Null: cuDNN has none.
  int64_t workspace_bytes = 0;
};

class CudnnAttention final : public FusedAttention {
 public:
  CudnnAttention(std::shared_ptr<Device> device, int compute_capability)
      : device_(std::move(device)),
        compute_capability_(compute_capability),
        plans_(kCudnnPlansMax) {}

  ~CudnnAttention() override {
    cudnnHandle_t const handle = handle_;
    if (handle == nullptr) return;
    // Nothing runs a plan any more when it is destroyed.
    if (device_->Enter().ok()) device_->Synchronize().IgnoreError();
    const fe::error_t ended =
        Caught([handle] { return ToError(fe::detail::destroy_handle(handle)); });
    if (ended.is_bad()) cudaGetLastError();  // The context is gone, and the handle with it.
  }

  absl::Status Start() {
    cudnnHandle_t handle = nullptr;
    auto* const stream = static_cast<cudaStream_t>(device_->stream());
    fe::error_t started = Caught([&handle] { return ToError(fe::detail::create_handle(&handle)); });
    if (started.is_good()) {
      started = Caught([=] { return ToError(fe::detail::set_stream(handle, stream)); });
    }
    MutexLock lock(&mutex_);
    handle_ = handle;
    return Mapped(started, "start cuDNN");
  }

  bool Takes(const FusedAttentionParams& params) const override { return CudnnTakes(params); }
  int64_t CacheRows(int64_t rows) const override { return CudnnCacheRows(rows); }

  absl::Status Run(const FusedAttentionParams& p) override {
    const CudnnShape shape = CudnnShapeOf(p);
    // A handle serves one thread at a time. What is held while it launches is short; a plan is made
    // under it, too, because whoever waits most often waits for the same one.
    MutexLock lock(&mutex_);
    KVTIER_ASSIGN_OR_RETURN(const Plan* const plan, PlanOf(shape));
    if (plan->graph == nullptr) {
      return absl::UnimplementedError(absl::StrCat("cuDNN has no plan for ", shape.ToString()));
    }
    DeviceMemory workspace;
    if (plan->workspace_bytes > 0) {
      KVTIER_ASSIGN_OR_RETURN(workspace,
                              DeviceMemory::Allocate(device_, uint64_t(plan->workspace_bytes)));
    }
    std::unordered_map<int64_t, void*> tensors = {{kQ, const_cast<void*>(p.q)},
                                                  {kK, const_cast<void*>(p.keys)},
                                                  {kV, const_cast<void*>(p.values)},
                                                  {kO, p.out}};
    if (shape.lse) tensors[kStats] = p.lse;
    DeviceMemory lengths;
    if (shape.lengths) {
      const std::array<int32_t, 2> host = {static_cast<int32_t>(p.rows),
                                           static_cast<int32_t>(p.key_rows)};
      KVTIER_ASSIGN_OR_RETURN(lengths, DeviceMemory::Of(device_, std::span<const int32_t>(host)));
      tensors[kRows] = lengths.as<int32_t>();
      tensors[kKeyRows] = lengths.as<int32_t>() + 1;
    }
    cudnnHandle_t const handle = handle_;
    return Mapped(
        Caught([&] { return plan->graph->execute(handle, tensors, workspace.as<void>()); }),
        absl::StrCat("attention of ", shape.ToString()));
  }

 private:
  absl::Status Mapped(fe::error_t error, absl::string_view what) const {
    if (error.is_good()) return absl::OkStatus();
    cudaGetLastError();  // What the library's own calls left: later calls of ours would report it.
    return absl::InternalError(
        absl::StrCat(device_->name(), ": ", what, ": cuDNN: ", error.get_message()));
  }

  // The shape's plan, made if there is none yet; without a graph where cuDNN has none.
  absl::StatusOr<const Plan*> PlanOf(const CudnnShape& shape)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    if (const Plan* const found = plans_.Find(shape)) return found;
    // One that is dropped may still be running.
    if (plans_.full()) KVTIER_RETURN_IF_ERROR(device_->Synchronize());
    Plan plan;
    plan.graph = Describe(shape, compute_capability_);
    cudnnHandle_t const handle = handle_;
    fe::error_t made = Caught([&] {
      return plan.graph->build(handle, {fe::HeurMode_t::A, fe::HeurMode_t::FALLBACK});
    });
    if (made.is_good()) {
      made = Caught([&] { return plan.graph->get_workspace_size(plan.workspace_bytes); });
    }
    if (made.is_bad()) {
      cudaGetLastError();
      KVTIER_LOG(WARNING) << device_->name() << ": cuDNN has no plan for " << shape.ToString()
                          << ", which runs on slower kernels: " << made.get_message();
      plan = Plan();
    }
    return &plans_.Insert(shape, std::move(plan));
  }

  const std::shared_ptr<Device> device_;
  const int compute_capability_;
  Mutex mutex_;
  cudnnHandle_t handle_ ABSL_GUARDED_BY(mutex_) = nullptr;
  PlanCache<CudnnShape, Plan> plans_ ABSL_GUARDED_BY(mutex_);
};

// Of the device that this thread has entered; 90 is 9.0.
absl::StatusOr<int> ComputeCapability(Device& device) {
  int ordinal = 0;
  int major = 0;
  int minor = 0;
  KVTIER_RETURN_IF_ERROR(device.Check(cudaGetDevice(&ordinal), "current device"));
  KVTIER_RETURN_IF_ERROR(device.Check(
      cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, ordinal), "describe"));
  KVTIER_RETURN_IF_ERROR(device.Check(
      cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, ordinal), "describe"));
  return 10 * major + minor;
}

}  // namespace

absl::StatusOr<std::unique_ptr<FusedAttention>> MakeCudnnAttention(std::shared_ptr<Device> device) {
  KVTIER_RETURN_IF_ERROR(Loaded());
  KVTIER_RETURN_IF_ERROR(device->Enter());
  KVTIER_ASSIGN_OR_RETURN(const int compute_capability, ComputeCapability(*device));
  auto attention = std::make_unique<CudnnAttention>(std::move(device), compute_capability);
  KVTIER_RETURN_IF_ERROR(attention->Start());
  return std::unique_ptr<FusedAttention>(std::move(attention));
}

absl::Status CheckCudnnOperations(const CudnnShape& shape, int compute_capability) {
  KVTIER_RETURN_IF_ERROR(Loaded());
  fe::error_t checked = Caught([&]() -> fe::error_t {
    const auto graph = Describe(shape, compute_capability);
    fe::error_t valid = graph->validate();
    return valid.is_bad() ? valid : graph->build_operation_graph(nullptr);
  });
  if (checked.is_good()) return absl::OkStatus();
  return absl::UnimplementedError(
      absl::StrCat("cuDNN does not take ", shape.ToString(), ": ", checked.get_message()));
}

}  // namespace kvtier
