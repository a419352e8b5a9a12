#include "cuda/cuda_device.h"

#include <algorithm>
#include <limits>
#include <optional>
#include <utility>

#include <cuda_runtime_api.h>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "cuda/cuda_download_ring.h"
#include "cuda/cuda_error.h"
#include "cuda/cuda_upload_ring.h"
#include "cuda/thread_capture.h"

namespace kvtier {
namespace {

// An error is read and cleared, so that later calls do not report it again. Some (a kernel that
// read memory that is not there) stay until the process ends; the device then answers INTERNAL to
// everything.
absl::Status ToStatus(absl::StatusCode code, cudaError_t error, absl::string_view device,
                      absl::string_view what) {
  cudaGetLastError();
  return absl::Status(code, absl::StrCat(device, ": ", what, ": ", cudaGetErrorName(error), " (",
                                         cudaGetErrorString(error), ")"));
}

absl::Status Map(cudaError_t error, absl::string_view device, absl::string_view what) {
  if (error == cudaSuccess) return absl::OkStatus();
  return ToStatus(CodeOfCudaError(error), error, device, what);
}

// Of a call that counts or describes devices.
absl::Status MapProbe(cudaError_t error, absl::string_view device, absl::string_view what) {
  if (error == cudaSuccess) return absl::OkStatus();
  return ToStatus(CodeOfCudaProbeError(error), error, device, what);
}

class CudaDevice final : public Device {
 public:
  CudaDevice(int ordinal, int multiprocessors)
      : ordinal_(ordinal),
        multiprocessors_(multiprocessors),
        name_(absl::StrCat("cuda:", ordinal)) {}

  ~CudaDevice() override {
    if (cudaSetDevice(ordinal_) != cudaSuccess) {
      cudaGetLastError();
      return;
    }
    if (stream_ != nullptr) {
      cudaStreamSynchronize(stream_);
      cudaStreamDestroy(stream_);
    }
    uploads_.reset();  // The stream is empty: nothing reads it any more.
    downloads_.reset();
    if (pool_ != nullptr) cudaMemPoolDestroy(pool_);
    cudaGetLastError();
  }

  absl::Status Start() {
    KVTIER_RETURN_IF_ERROR(Enter());
    KVTIER_RETURN_IF_ERROR(
        Mapped(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "create a stream"));
    KVTIER_RETURN_IF_ERROR(
        Mapped(uploads_.emplace().Start(),
               absl::StrCat("make ", CudaUploadRing::kSlots * CudaUploadRing::kSlotBytes,
                            " bytes of pinned memory for uploads")));
    cudaMemPoolProps properties = {};
    properties.allocType = cudaMemAllocationTypePinned;
    properties.location.type = cudaMemLocationTypeDevice;
    properties.location.id = ordinal_;
    KVTIER_RETURN_IF_ERROR(Mapped(cudaMemPoolCreate(&pool_, &properties), "create a memory pool"));
    uint64_t keep = std::numeric_limits<uint64_t>::max();
    return Mapped(cudaMemPoolSetAttribute(pool_, cudaMemPoolAttrReleaseThreshold, &keep),
                  "keep the pool's memory");
  }

  absl::string_view name() const override { return name_; }
  int multiprocessors() const override { return multiprocessors_; }
  DeviceStream stream() const override { return thread_capture::StreamOr(*this, stream_); }

  absl::Status Enter() override { return Mapped(cudaSetDevice(ordinal_), "make current"); }

  absl::StatusOr<void*> Allocate(uint64_t bytes) override {
    KVTIER_RETURN_IF_ERROR(thread_capture::Refuse(*this, "allocate"));
    void* memory = nullptr;
    const cudaError_t error =
        cudaMallocFromPoolAsync(&memory, std::max<uint64_t>(bytes, 1), pool_, stream_);
    if (error != cudaSuccess) {
      return Mapped(error, absl::StrCat("allocate ", bytes, " bytes"));
    }
    return memory;
  }

  // Where it fails, the context is gone and its memory with it.
  void Free(void* memory) override {
    thread_capture::Refuse(*this, "free").IgnoreError();  // Spoils the capture.
    if (cudaSetDevice(ordinal_) != cudaSuccess || cudaFreeAsync(memory, stream_) != cudaSuccess) {
      cudaGetLastError();
    }
  }

  absl::StatusOr<DeviceMemoryUse> MemoryUse() override {
    DeviceMemoryUse use;
    KVTIER_RETURN_IF_ERROR(
        Mapped(cudaMemPoolGetAttribute(pool_, cudaMemPoolAttrUsedMemCurrent, &use.bytes),
               "memory in use"));
    KVTIER_RETURN_IF_ERROR(
        Mapped(cudaMemPoolGetAttribute(pool_, cudaMemPoolAttrUsedMemHigh, &use.peak_bytes),
               "peak of memory in use"));
    return use;
  }
  absl::Status ResetMemoryPeak() override {
    uint64_t zero = 0;  // The only value that may be set: from now on.
    return Mapped(cudaMemPoolSetAttribute(pool_, cudaMemPoolAttrUsedMemHigh, &zero),
                  "reset the peak of memory in use");
  }

  absl::Status CopyIn(const void* host, void* device, uint64_t bytes) override {
    KVTIER_RETURN_IF_ERROR(thread_capture::Refuse(*this, "copy in"));
    // Not cudaMemcpyAsync out of the caller's memory: what that has read when it returns, and
    // whether it waits for the stream, depends on the kind of memory and the size.
    return Mapped(uploads_->Copy(host, device, bytes, stream_), "copy in");
  }

  absl::Status CopyOut(const void* device, void* host, uint64_t bytes) override {
    KVTIER_RETURN_IF_ERROR(thread_capture::Refuse(*this, "copy out"));
    if (bytes == 0) return absl::OkStatus();
    KVTIER_RETURN_IF_ERROR(
        Mapped(cudaMemcpyAsync(host, device, bytes, cudaMemcpyDeviceToHost, stream_), "copy out"));
    return Synchronize();
  }

  absl::StatusOr<std::unique_ptr<PendingCopy>> BeginCopyOut(const void* device, void* host,
                                                            uint64_t bytes) override {
    KVTIER_RETURN_IF_ERROR(thread_capture::Refuse(*this, "begin to copy out"));
    std::unique_ptr<CudaDownloadRing::Copy> copy;
    KVTIER_RETURN_IF_ERROR(
        Mapped(downloads_->Begin(device, host, bytes, stream_, &copy), "begin to copy out"));
    return std::make_unique<Download>(*this, std::move(copy));
  }

  absl::Status Zero(void* device, uint64_t bytes) override {
    if (bytes == 0) return absl::OkStatus();
    return Mapped(cudaMemsetAsync(device, 0, bytes, static_cast<cudaStream_t>(stream())),
                  "clear memory");
  }

  absl::Status Synchronize() override {
    KVTIER_RETURN_IF_ERROR(thread_capture::Refuse(*this, "wait"));
    return Mapped(cudaStreamSynchronize(stream_), "wait for the stream");
  }

  // In a stream of its own: into one that captures, other threads' launches would be captured, too.
  absl::Status BeginCapture() override {
    cudaStream_t stream = nullptr;
    KVTIER_RETURN_IF_ERROR(Mapped(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking),
                                  "create a stream for a capture"));
    absl::Status status = thread_capture::Begin(*this, stream);
    if (status.ok()) {
      // What other threads do meanwhile does not spoil it.
      status = Mapped(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal),
                      "begin a capture");
      if (status.ok()) return status;
      thread_capture::End(*this).IgnoreError();
    }
    cudaStreamDestroy(stream);
    return status;
  }

  absl::StatusOr<std::unique_ptr<DeviceGraph>> EndCapture() override {
    auto* const stream = static_cast<cudaStream_t>(thread_capture::StreamOr(*this, nullptr));
    absl::Status status = thread_capture::End(*this);
    if (stream == nullptr) return status;
    cudaGraph_t graph = nullptr;
    const cudaError_t ended = cudaStreamEndCapture(stream, &graph);  // Always: it is capturing.
    cudaStreamDestroy(stream);
    status.Update(Mapped(ended, "end a capture"));
    cudaGraphExec_t executable = nullptr;
    if (status.ok()) {
      status = Mapped(cudaGraphInstantiate(&executable, graph, 0), "make a graph executable");
    }
    if (graph != nullptr) cudaGraphDestroy(graph);
    KVTIER_RETURN_IF_ERROR(status);
    return std::make_unique<Graph>(*this, executable);
  }

  absl::Status Check(DeviceError error, absl::string_view operation) override {
    return Mapped(static_cast<cudaError_t>(error), operation);
  }

 private:
  class Graph final : public DeviceGraph {
   public:
    Graph(CudaDevice& device, cudaGraphExec_t executable)
        : device_(device), executable_(executable) {}
    // The driver keeps what a launch that is under way needs.
    ~Graph() override {
      if (!device_.Enter().ok() || cudaGraphExecDestroy(executable_) != cudaSuccess) {
        cudaGetLastError();
      }
    }
    Graph(const Graph&) = delete;
    Graph& operator=(const Graph&) = delete;
    absl::Status Replay() override {
      KVTIER_RETURN_IF_ERROR(thread_capture::Refuse(device_, "replay"));
      return device_.Mapped(cudaGraphLaunch(executable_, device_.stream_), "replay a graph");
    }

   private:
    CudaDevice& device_;
    cudaGraphExec_t const executable_;
  };

  class Download final : public PendingCopy {
   public:
    Download(CudaDevice& device, std::unique_ptr<CudaDownloadRing::Copy> copy)
        : device_(device), copy_(std::move(copy)) {}
    absl::Status Wait() override { return device_.Mapped(copy_->Wait(), "copy out"); }

   private:
    CudaDevice& device_;
    const std::unique_ptr<CudaDownloadRing::Copy> copy_;
  };

  absl::Status Mapped(cudaError_t error, absl::string_view what) const {
    return Map(error, name_, what);
  }

  const int ordinal_;
  const int multiprocessors_;
  const std::string name_;
  cudaStream_t stream_ = nullptr;
  cudaMemPool_t pool_ = nullptr;
  std::optional<CudaUploadRing> uploads_;
  std::optional<CudaDownloadRing> downloads_{std::in_place};
};

}  // namespace

absl::StatusOr<int> CountCudaDevices() {
  int count = 0;
  KVTIER_RETURN_IF_ERROR(MapProbe(cudaGetDeviceCount(&count), "cuda", "count devices"));
  if (count == 0) return absl::UnavailableError("cuda: the driver shows no device");
  return count;
}

absl::StatusOr<CudaDeviceInfo> DescribeCudaDevice(int ordinal) {
  KVTIER_ASSIGN_OR_RETURN(const int count, CountCudaDevices());
  const std::string name = absl::StrCat("cuda:", ordinal);
  if (ordinal < 0 || ordinal >= count) {
    return absl::UnavailableError(absl::StrCat(name, ": no such device, the driver shows ", count));
  }
  cudaDeviceProp properties;
  KVTIER_RETURN_IF_ERROR(MapProbe(cudaGetDeviceProperties(&properties, ordinal), name, "describe"));
  CudaDeviceInfo info;
  info.model = properties.name;
  info.compute_major = properties.major;
  info.compute_minor = properties.minor;
  info.multiprocessors = properties.multiProcessorCount;
  info.memory_bytes = properties.totalGlobalMem;
  KVTIER_RETURN_IF_ERROR(
      MapProbe(cudaDriverGetVersion(&info.driver_version), name, "driver version"));
  KVTIER_RETURN_IF_ERROR(
      MapProbe(cudaRuntimeGetVersion(&info.runtime_version), name, "runtime version"));
  if (info.compute_major < 8) {
    return absl::FailedPreconditionError(
        absl::StrCat(name, " (", info.model, ") has compute capability ", info.compute_major, ".",
                     info.compute_minor, ", 8.0 is needed"));
  }
  int pools = 0;
  KVTIER_RETURN_IF_ERROR(
      MapProbe(cudaDeviceGetAttribute(&pools, cudaDevAttrMemoryPoolsSupported, ordinal), name,
               "memory pools"));
  if (pools == 0) {
    return absl::FailedPreconditionError(
        absl::StrCat(name, " (", info.model, ") has no stream-ordered memory"));
  }
  return info;
}

absl::StatusOr<std::shared_ptr<Device>> MakeCudaDevice(int ordinal) {
  KVTIER_ASSIGN_OR_RETURN(const CudaDeviceInfo info, DescribeCudaDevice(ordinal));
  auto device = std::make_shared<CudaDevice>(ordinal, info.multiprocessors);
  KVTIER_RETURN_IF_ERROR(device->Start());
  return std::shared_ptr<Device>(std::move(device));
}

}  // namespace kvtier
