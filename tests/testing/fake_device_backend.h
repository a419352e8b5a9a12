// A backend that plays a GPU: it computes like the reference backend, has a name and a memory of
// its own size, says that the host cannot read its tensors (it could), refuses attention over rows
// that lie elsewhere, and counts what crosses over and what is held. Thread-safe.
#ifndef KVTIER_TESTS_TESTING_FAKE_DEVICE_BACKEND_H_
#define KVTIER_TESTS_TESTING_FAKE_DEVICE_BACKEND_H_

#include <atomic>
#include <cstdint>
#include <limits>
#include <map>
#include <memory>
#include <string>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "base/mutex.h"
#include "compressor/backend.h"
#include "compressor/reference_backend.h"
#include "tests/testing/forwarding_backend.h"

namespace kvtier {

class FakeDeviceBackend final : public ForwardingBackend {
 public:
  explicit FakeDeviceBackend(std::string name,
                             uint64_t memory_bytes = std::numeric_limits<uint64_t>::max())
      : ForwardingBackend(MakeReferenceBackend()),
        name_(std::move(name)),
        memory_bytes_(memory_bytes) {}
  // REQUIRES: every tensor is gone.
  ~FakeDeviceBackend() override = default;

  uint64_t live_bytes() const { return live_bytes_.load(); }
  uint64_t uploaded_bytes() const { return uploaded_bytes_.load(); }
  uint64_t downloaded_bytes() const { return downloaded_bytes_.load(); }
  // What decode_steps() gives. REQUIRES: before others use this.
  void Offer(DecodeSteps* steps) { steps_ = steps; }
  // From now on uploads fail like those of a device that is lost.
  void Break() { broken_ = true; }

  absl::string_view name() const override { return name_; }
  absl::StatusOr<Tensor> Allocate(DType dtype, int64_t rows, int64_t cols) override;
  absl::Status Upload(std::span<const std::byte> host, TensorView to) override;
  absl::Status Download(TensorView from, std::span<std::byte> host) override;
  bool host_addressable() const override { return false; }
  DecodeSteps* decode_steps() override { return steps_; }
  // INTERNAL: rows outside of its memory, as a GPU's illegal address.
  absl::Status Attention(const AttentionArgs& args) override;
  absl::StatusOr<std::unique_ptr<LinearWeights>> PrepareLinear(std::span<const std::byte> weights,
                                                               DType dtype, int64_t out_features,
                                                               int64_t in_features) override {
    uploaded_bytes_ += weights.size();
    return ForwardingBackend::PrepareLinear(weights, dtype, out_features, in_features);
  }

 private:
  struct Held;
  static void Release(void* data, void* context);
  // Whether [data, data + bytes) lies in one tensor. Null is nowhere.
  bool Holds(const std::byte* data, uint64_t bytes);

  const std::string name_;
  const uint64_t memory_bytes_;
  DecodeSteps* steps_ = nullptr;
  std::atomic<uint64_t> live_bytes_{0};
  std::atomic<uint64_t> uploaded_bytes_{0};
  std::atomic<uint64_t> downloaded_bytes_{0};
  std::atomic<bool> broken_{false};
  Mutex mutex_;
  std::map<const std::byte*, uint64_t> tensors_ ABSL_GUARDED_BY(mutex_);  // Their bytes, by start.
};

}  // namespace kvtier

#endif  // KVTIER_TESTS_TESTING_FAKE_DEVICE_BACKEND_H_
