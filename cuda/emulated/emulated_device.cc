#include "cuda/emulated/emulated_device.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <map>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/mutex.h"
#include "base/status_macros.h"
#include "cuda/emulated/host_simt.h"
#include "cuda/thread_capture.h"

namespace kvtier {
namespace {

constexpr uint64_t kAlignment = 256;
constexpr uint64_t kGuardBytes = 256;  // Behind each allocation.
constexpr int kGuard = 0xA5;

class EmulatedDevice final : public Device {
 public:
  EmulatedDevice(uint64_t bytes_max, std::shared_ptr<EmulatedDeviceLog> log)
      : bytes_max_(bytes_max), log_(std::move(log)) {}
  ~EmulatedDevice() override {
    for (const auto& [memory, bytes] : allocations_) std::free(memory);
  }

  absl::string_view name() const override { return "emulated"; }
  int multiprocessors() const override { return 4; }
  DeviceStream stream() const override { return nullptr; }
  absl::Status Enter() override { return absl::OkStatus(); }

  absl::StatusOr<void*> Allocate(uint64_t bytes) override {
    KVTIER_RETURN_IF_ERROR(thread_capture::Refuse(*this, "allocate"));
    MutexLock lock(&mutex_);
    if (bytes > bytes_max_ - bytes_used_) {
      return absl::ResourceExhaustedError(
          absl::StrCat("emulated: no memory for ", bytes, " bytes"));
    }
    const uint64_t whole = (bytes + kGuardBytes + kAlignment - 1) / kAlignment * kAlignment;
    void* memory = std::aligned_alloc(kAlignment, whole);
    if (memory == nullptr) {
      return absl::ResourceExhaustedError(
          absl::StrCat("emulated: no memory for ", bytes, " bytes"));
    }
    std::memset(memory, 0xFF, bytes);
    std::memset(static_cast<char*>(memory) + bytes, kGuard, whole - bytes);
    allocations_[memory] = bytes;
    bytes_used_ += bytes;
    bytes_peak_ = std::max(bytes_peak_, bytes_used_);
    return memory;
  }

  absl::StatusOr<DeviceMemoryUse> MemoryUse() override {
    MutexLock lock(&mutex_);
    return DeviceMemoryUse{.bytes = bytes_used_, .peak_bytes = bytes_peak_};
  }
  absl::Status ResetMemoryPeak() override {
    MutexLock lock(&mutex_);
    bytes_peak_ = bytes_used_;
    return absl::OkStatus();
  }

  void Free(void* memory) override {
    thread_capture::Refuse(*this, "free").IgnoreError();  // Spoils the capture.
    MutexLock lock(&mutex_);
    const auto found = allocations_.find(memory);
    if (found == allocations_.end()) {
      damage_ = "memory freed that is not allocated";
      return;
    }
    Inspect(found->first, found->second);
    bytes_used_ -= found->second;
    allocations_.erase(found);
    std::free(memory);
  }

  absl::Status CopyIn(const void* host, void* device, uint64_t bytes) override {
    KVTIER_RETURN_IF_ERROR(thread_capture::Refuse(*this, "copy in"));
    if (bytes > 0) std::memcpy(device, host, bytes);
    return absl::OkStatus();
  }
  absl::Status CopyOut(const void* device, void* host, uint64_t bytes) override {
    KVTIER_RETURN_IF_ERROR(thread_capture::Refuse(*this, "copy out"));
    CountWait(bytes);
    if (bytes > 0) std::memcpy(host, device, bytes);
    return absl::OkStatus();
  }
  // Copied by Wait() and not before, so that a missing wait leaves the host with what it had, and
  // memory that was freed or written meanwhile shows.
  absl::StatusOr<std::unique_ptr<PendingCopy>> BeginCopyOut(const void* device, void* host,
                                                            uint64_t bytes) override {
    KVTIER_RETURN_IF_ERROR(thread_capture::Refuse(*this, "begin to copy out"));
    return std::make_unique<LateCopy>(*this, device, host, bytes);
  }
  absl::Status Zero(void* device, uint64_t bytes) override {
    if (bytes == 0) return absl::OkStatus();
    if (host_simt::Recording* const recording = host_simt::CurrentRecording()) {
      recording->push_back([device, bytes] {
        std::memset(device, 0, bytes);
        return 0;
      });
      return absl::OkStatus();
    }
    std::memset(device, 0, bytes);
    return absl::OkStatus();
  }
  absl::Status Synchronize() override {
    KVTIER_RETURN_IF_ERROR(thread_capture::Refuse(*this, "wait"));
    CountWait(0);
    return Check(0, "synchronize");
  }

  // What the thread launches from here on is put off, until each Replay() of the graph.
  absl::Status BeginCapture() override {
    KVTIER_RETURN_IF_ERROR(thread_capture::Begin(*this, nullptr));
    host_simt::Record(new host_simt::Recording);
    return absl::OkStatus();
  }
  absl::StatusOr<std::unique_ptr<DeviceGraph>> EndCapture() override {
    const absl::Status captured = thread_capture::End(*this);
    const std::unique_ptr<host_simt::Recording> recording(host_simt::CurrentRecording());
    host_simt::Record(nullptr);
    KVTIER_RETURN_IF_ERROR(captured);
    return std::make_unique<Graph>(*this, std::move(*recording));
  }

  absl::Status Check(DeviceError error, absl::string_view operation) override {
    if (error != 0) {
      return absl::InternalError(
          absl::StrCat("emulated: ", operation, ": error ", error, ": ", host_simt::LastError()));
    }
    MutexLock lock(&mutex_);
    for (const auto& [memory, bytes] : allocations_) Inspect(memory, bytes);
    if (damage_.empty()) return absl::OkStatus();
    return absl::InternalError(absl::StrCat("emulated: ", operation, ": ", damage_));
  }

 private:
  void CountWait(uint64_t bytes_out) {
    if (log_ == nullptr) return;
    ++log_->waits;
    log_->bytes_out += static_cast<int64_t>(bytes_out);
  }

  class Graph final : public DeviceGraph {
   public:
    Graph(EmulatedDevice& owner, host_simt::Recording launches)
        : owner_(owner), launches_(std::move(launches)) {}
    absl::Status Replay() override {
      KVTIER_RETURN_IF_ERROR(thread_capture::Refuse(owner_, "replay"));
      for (const std::function<int()>& launch : launches_) {
        KVTIER_RETURN_IF_ERROR(owner_.Check(launch(), "replay"));
      }
      return absl::OkStatus();
    }

   private:
    EmulatedDevice& owner_;
    const host_simt::Recording launches_;
  };

  class LateCopy final : public PendingCopy {
   public:
    LateCopy(EmulatedDevice& owner, const void* device, void* host, uint64_t bytes)
        : owner_(owner), device_(device), host_(host), bytes_(bytes) {}
    absl::Status Wait() override {
      if (bytes_ > 0 && !owner_.Holds(device_, bytes_)) {
        return absl::InternalError(absl::StrCat("emulated: a copy of ", bytes_,
                                                " bytes out of memory that is not allocated"));
      }
      return owner_.CopyOut(device_, host_, bytes_);
    }

   private:
    EmulatedDevice& owner_;
    const void* const device_;
    void* const host_;
    const uint64_t bytes_;
  };

  // Whether [data, data + bytes) lies in one allocation.
  bool Holds(const void* data, uint64_t bytes) {
    MutexLock lock(&mutex_);
    auto found = allocations_.upper_bound(const_cast<void*>(data));
    if (found == allocations_.begin()) return false;
    --found;
    const uint64_t at = static_cast<const char*>(data) - static_cast<const char*>(found->first);
    return at <= found->second && bytes <= found->second - at;
  }

  void Inspect(void* memory, uint64_t bytes) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    const auto* guard = static_cast<const unsigned char*>(memory) + bytes;
    for (uint64_t i = 0; i < kGuardBytes; ++i) {
      if (guard[i] == kGuard) continue;
      damage_ = absl::StrCat("byte ", i, " behind an allocation of ", bytes, " was written");
      return;
    }
  }

  const uint64_t bytes_max_;
  const std::shared_ptr<EmulatedDeviceLog> log_;
  Mutex mutex_;
  std::map<void*, uint64_t> allocations_ ABSL_GUARDED_BY(mutex_);
  uint64_t bytes_used_ ABSL_GUARDED_BY(mutex_) = 0;
  uint64_t bytes_peak_ ABSL_GUARDED_BY(mutex_) = 0;
  std::string damage_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace

std::shared_ptr<Device> MakeEmulatedDevice(uint64_t bytes_max,
                                           std::shared_ptr<EmulatedDeviceLog> log) {
  return std::make_shared<EmulatedDevice>(bytes_max, std::move(log));
}

}  // namespace kvtier
