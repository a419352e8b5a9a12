// A device that hands every call to another one, counts what a step may not do, and fails captures
// when it is told to. Thread-safe as the other one is.
#ifndef KVTIER_TESTS_CONFORMANCE_CUDA_WATCHED_DEVICE_H_
#define KVTIER_TESTS_CONFORMANCE_CUDA_WATCHED_DEVICE_H_

#include <atomic>
#include <cstdint>
#include <memory>
#include <utility>

#include "base/status_macros.h"
#include "cuda/device.h"

namespace kvtier {

class WatchedDevice final : public Device {
 public:
  explicit WatchedDevice(std::shared_ptr<Device> inner) : inner_(std::move(inner)) {}

  struct Counts {
    uint64_t allocations = 0;
    uint64_t frees = 0;
    uint64_t uploads = 0;
    uint64_t uploaded_bytes = 0;
    uint64_t downloads = 0;
    uint64_t downloaded_bytes = 0;
    uint64_t waits = 0;  // Other than for what a download brings.
    uint64_t captures = 0;
  };
  Counts counts() const {
    return {allocations_,      frees_, uploads_, uploaded_bytes_, downloads_,
            downloaded_bytes_, waits_, captures_};
  }

  // What the next captures end with; OK: a graph.
  void FailCaptures(absl::Status status) { failure_ = std::move(status); }

  absl::string_view name() const override { return inner_->name(); }
  int multiprocessors() const override { return inner_->multiprocessors(); }
  DeviceStream stream() const override { return inner_->stream(); }
  absl::Status Enter() override { return inner_->Enter(); }
  absl::StatusOr<void*> Allocate(uint64_t bytes) override {
    ++allocations_;
    return inner_->Allocate(bytes);
  }
  void Free(void* memory) override {
    ++frees_;
    inner_->Free(memory);
  }
  absl::StatusOr<DeviceMemoryUse> MemoryUse() override { return inner_->MemoryUse(); }
  absl::Status ResetMemoryPeak() override { return inner_->ResetMemoryPeak(); }
  absl::Status CopyIn(const void* host, void* device, uint64_t bytes) override {
    ++uploads_;
    uploaded_bytes_ += bytes;
    return inner_->CopyIn(host, device, bytes);
  }
  absl::Status CopyOut(const void* device, void* host, uint64_t bytes) override {
    ++downloads_;
    downloaded_bytes_ += bytes;
    return inner_->CopyOut(device, host, bytes);
  }
  absl::StatusOr<std::unique_ptr<PendingCopy>> BeginCopyOut(const void* device, void* host,
                                                            uint64_t bytes) override {
    return inner_->BeginCopyOut(device, host, bytes);
  }
  absl::Status Zero(void* device, uint64_t bytes) override { return inner_->Zero(device, bytes); }
  absl::Status Synchronize() override {
    ++waits_;
    return inner_->Synchronize();
  }
  absl::Status BeginCapture() override {
    ++captures_;
    return inner_->BeginCapture();
  }
  absl::StatusOr<std::unique_ptr<DeviceGraph>> EndCapture() override {
    absl::StatusOr<std::unique_ptr<DeviceGraph>> graph = inner_->EndCapture();
    KVTIER_RETURN_IF_ERROR(failure_);
    return graph;
  }
  absl::Status Check(DeviceError error, absl::string_view operation) override {
    return inner_->Check(error, operation);
  }

 private:
  const std::shared_ptr<Device> inner_;
  absl::Status failure_;
  std::atomic<uint64_t> allocations_{0};
  std::atomic<uint64_t> frees_{0};
  std::atomic<uint64_t> uploads_{0};
  std::atomic<uint64_t> uploaded_bytes_{0};
  std::atomic<uint64_t> downloads_{0};
  std::atomic<uint64_t> downloaded_bytes_{0};
  std::atomic<uint64_t> waits_{0};
  std::atomic<uint64_t> captures_{0};
};

}  // namespace kvtier

#endif  // KVTIER_TESTS_CONFORMANCE_CUDA_WATCHED_DEVICE_H_
