#include "cuda/cuda_gemm.h"

#include <map>
#include <optional>
#include <string>
#include <tuple>
#include <utility>

#include <cuda_runtime_api.h>

#include "absl/strings/str_cat.h"
#include "base/mutex.h"
#include "base/status_macros.h"
#include "cuda/cuda_cublas_lt.h"

namespace kvtier {
namespace {

constexpr uint64_t kWorkspaceBytesMax = uint64_t{32} << 20;  // What NVIDIA advises for Hopper.
// Rows vary with the pieces of a prompt; the rest are the layers of a model.
constexpr size_t kAlgorithmsMax = 4096;

// What cuBLASLt made, destroyed by the function that it has for it.
template <typename T>
class Handle {
 public:
  using Destroy = cublasStatus_t (*)(T);
  explicit Handle(Destroy destroy) : destroy_(destroy) {}
  Handle(const Handle&) = delete;
  Handle& operator=(const Handle&) = delete;
  ~Handle() {
    if (value != nullptr) destroy_(value);
  }
  T value = nullptr;

 private:
  const Destroy destroy_;
};

// cuBLASLt counts columns first: row-major y [rows, out] is its y^T [out, rows], and
// y^T = W x^T with W stored transposed.
struct Problem {
  explicit Problem(const CublasLt& lt)
      : operation(lt.MatmulDescDestroy),
        weights(lt.MatrixLayoutDestroy),
        x(lt.MatrixLayoutDestroy),
        y(lt.MatrixLayoutDestroy) {}
  Handle<cublasLtMatmulDesc_t> operation;
  Handle<cublasLtMatrixLayout_t> weights;  // [in, out], read transposed
  Handle<cublasLtMatrixLayout_t> x;        // [in, rows]
  Handle<cublasLtMatrixLayout_t> y;        // [out, rows]
};

// Rows, out, in, type, and how the three pointers are aligned (16 bytes or not): what decides
// which algorithms can run.
using Shape = std::tuple<int64_t, int64_t, int64_t, Element, bool>;

Shape ShapeOf(const GemmParams& p) {
  const auto all = reinterpret_cast<uintptr_t>(p.x) | reinterpret_cast<uintptr_t>(p.weights) |
                   reinterpret_cast<uintptr_t>(p.y);
  return {p.rows, p.out, p.in, p.x_type, all % 16 == 0};
}

struct Algorithm {
  cublasLtMatmulAlgo_t value = {};
  uint64_t workspace_bytes = 0;  // That it needs; often none.
};

class CudaGemm final : public Gemm {
 public:
  CudaGemm(const CublasLt& lt, std::shared_ptr<Device> device)
      : lt_(lt), device_(std::move(device)), plain_(MakePlainGemm(device_)), handle_(lt.Destroy) {}

  absl::Status Start() { return Mapped(lt_.Create(&handle_.value), "start cuBLASLt"); }

  absl::Status Run(const GemmParams& p) override {
    if (p.rows == 0) return absl::OkStatus();
    if (!Takes(p)) return plain_->Run(p);
    Problem problem(lt_);
    KVTIER_RETURN_IF_ERROR(Describe(p, problem));
    KVTIER_ASSIGN_OR_RETURN(const auto algorithm, Choose(p, problem));
    if (!algorithm.has_value()) return plain_->Run(p);
    // A product may be several launches (parts of a sum, then their sum), between which those of
    // other threads get into the stream: each call has a workspace of its own. It goes back to the
    // pool in stream order, if it is not the caller's.
    DeviceMemory taken;
    void* workspace = p.workspace;
    if (algorithm->workspace_bytes > p.workspace_bytes) {
      KVTIER_ASSIGN_OR_RETURN(taken, DeviceMemory::Allocate(device_, algorithm->workspace_bytes));
      workspace = taken.as<void>();
    }
    const float one = 1;
    const float zero = 0;
    const cublasStatus_t status = lt_.Matmul(
        handle_.value, problem.operation.value, &one, p.weights, problem.weights.value, p.x,
        problem.x.value, &zero, p.y, problem.y.value, p.y, problem.y.value, &algorithm->value,
        workspace, algorithm->workspace_bytes, static_cast<cudaStream_t>(device_->stream()));
    if (status == CUBLAS_STATUS_SUCCESS) return absl::OkStatus();
    if (status == CUBLAS_STATUS_NOT_SUPPORTED) {  // Its own heuristic was wrong: not asked again.
      cudaGetLastError();
      {
        MutexLock lock(&mutex_);
        algorithms_[ShapeOf(p)] = std::nullopt;
      }
      return plain_->Run(p);
    }
    return Mapped(status, absl::StrCat("linear [", p.rows, ", ", p.in, "] x [", p.out, "]"));
  }

  absl::StatusOr<uint64_t> WorkspaceBytes(const GemmParams& p) override {
    if (p.rows == 0 || !Takes(p)) return uint64_t{0};
    Problem problem(lt_);
    KVTIER_RETURN_IF_ERROR(Describe(p, problem));
    KVTIER_ASSIGN_OR_RETURN(const auto algorithm, Choose(p, problem));
    return algorithm.has_value() ? algorithm->workspace_bytes : uint64_t{0};
  }

 private:
  static bool Takes(const GemmParams& p) {
    const bool one_type = p.x_type == p.weights_type && p.x_type == p.y_type;
    return one_type && p.x_type != Element::kF16;
  }

  absl::Status Mapped(cublasStatus_t status, absl::string_view what) const {
    if (status == CUBLAS_STATUS_SUCCESS) return absl::OkStatus();
    cudaGetLastError();  // What the library's own calls left: later calls of ours would report it.
    const std::string message =
        absl::StrCat(device_->name(), ": ", what, ": ", lt_.GetStatusName(status));
    if (status == CUBLAS_STATUS_ALLOC_FAILED) return absl::ResourceExhaustedError(message);
    return absl::InternalError(message);
  }

  absl::Status Describe(const GemmParams& p, Problem& problem) const {
    const cudaDataType_t type = p.x_type == Element::kBf16 ? CUDA_R_16BF : CUDA_R_32F;
    const cublasOperation_t transposed = CUBLAS_OP_T;
    KVTIER_RETURN_IF_ERROR(
        Mapped(lt_.MatmulDescCreate(&problem.operation.value, CUBLAS_COMPUTE_32F, CUDA_R_32F),
               "describe a product"));
    KVTIER_RETURN_IF_ERROR(
        Mapped(lt_.MatmulDescSetAttribute(problem.operation.value, CUBLASLT_MATMUL_DESC_TRANSA,
                                          &transposed, sizeof(transposed)),
               "describe a product"));
    KVTIER_RETURN_IF_ERROR(
        Mapped(lt_.MatrixLayoutCreate(&problem.weights.value, type, p.in, p.out, p.in),
               "describe weights"));
    KVTIER_RETURN_IF_ERROR(
        Mapped(lt_.MatrixLayoutCreate(&problem.x.value, type, p.in, p.rows, p.in), "describe x"));
    return Mapped(lt_.MatrixLayoutCreate(&problem.y.value, type, p.out, p.rows, p.out),
                  "describe y");
  }

  // Nothing: cuBLASLt has none for this shape. The first of its heuristics, which depends on
  // nothing but the shape and the device, so results repeat.
  absl::StatusOr<std::optional<Algorithm>> Choose(const GemmParams& p, const Problem& problem) {
    const Shape shape = ShapeOf(p);
    {
      MutexLock lock(&mutex_);
      const auto found = algorithms_.find(shape);
      if (found != algorithms_.end()) return found->second;
    }
    Handle<cublasLtMatmulPreference_t> preference(lt_.MatmulPreferenceDestroy);
    KVTIER_RETURN_IF_ERROR(
        Mapped(lt_.MatmulPreferenceCreate(&preference.value), "choose an algorithm"));
    const uint64_t workspace = kWorkspaceBytesMax;
    // Parts of a sum meet in fp32. The other schemes add them up in the type of the output.
    const uint32_t reduction = CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE;
    const uint32_t alignment = std::get<4>(shape) ? 16 : p.x_type == Element::kBf16 ? 2 : 4;
    KVTIER_RETURN_IF_ERROR(Set(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, workspace));
    KVTIER_RETURN_IF_ERROR(Set(preference, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, reduction));
    for (const auto attribute :
         {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
          CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES}) {
      KVTIER_RETURN_IF_ERROR(Set(preference, attribute, alignment));
    }
    cublasLtMatmulHeuristicResult_t result = {};
    int count = 0;
    const cublasStatus_t status = lt_.MatmulAlgoGetHeuristic(
        handle_.value, problem.operation.value, problem.weights.value, problem.x.value,
        problem.y.value, problem.y.value, preference.value, 1, &result, &count);
    std::optional<Algorithm> algorithm;
    if (status == CUBLAS_STATUS_SUCCESS && count > 0) {
      algorithm = Algorithm{.value = result.algo, .workspace_bytes = result.workspaceSize};
    } else if (status == CUBLAS_STATUS_NOT_SUPPORTED) {
      cudaGetLastError();
    } else if (status != CUBLAS_STATUS_SUCCESS) {
      return Mapped(status, "choose an algorithm");
    }
    MutexLock lock(&mutex_);
    if (algorithms_.size() >= kAlgorithmsMax) algorithms_.clear();
    algorithms_[shape] = algorithm;
    return algorithm;
  }

  template <typename T>
  absl::Status Set(const Handle<cublasLtMatmulPreference_t>& preference,
                   cublasLtMatmulPreferenceAttributes_t attribute, const T& value) const {
    return Mapped(
        lt_.MatmulPreferenceSetAttribute(preference.value, attribute, &value, sizeof(value)),
        "choose an algorithm");
  }

  const CublasLt& lt_;
  const std::shared_ptr<Device> device_;
  const std::unique_ptr<Gemm> plain_;
  Handle<cublasLtHandle_t> handle_;
  Mutex mutex_;
  std::map<Shape, std::optional<Algorithm>> algorithms_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace

absl::StatusOr<std::unique_ptr<Gemm>> MakeCudaGemm(std::shared_ptr<Device> device) {
  KVTIER_ASSIGN_OR_RETURN(const CublasLt* const lt, LoadCublasLt());
  KVTIER_RETURN_IF_ERROR(device->Enter());
  auto gemm = std::make_unique<CudaGemm>(*lt, std::move(device));
  KVTIER_RETURN_IF_ERROR(gemm->Start());
  return std::unique_ptr<Gemm>(std::move(gemm));
}

}  // namespace kvtier
