// One device as its backend sees it: memory in stream order, copies, one stream to compute on.
// CudaDevice (cuda/cuda_device.h) is a GPU, EmulatedDevice (cuda/emulated/) the CPU of a test.
//
// Everything but BeginCopyOut runs in the order of the one stream: freed memory may be given out
// again at once, as whoever gets it comes later in the stream. Thread-safe; a thread calls Enter()
// before it launches.
//
// A capture keeps the launches of one thread instead of running them, with all that they were
// given:
//   device->BeginCapture();  LaunchOne(..., device->stream());  LaunchTwo(..., device->stream());
//   auto graph = device->EndCapture();
//   graph->Replay();  // Both, as often as wanted, over the same memory.
#ifndef KVTIER_CUDA_DEVICE_H_
#define KVTIER_CUDA_DEVICE_H_

#include <cstdint>
#include <memory>
#include <span>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "cuda/simt.h"

namespace kvtier {

// Of the memory that Allocate() gave out, whatever the pool keeps besides.
struct DeviceMemoryUse {
  uint64_t bytes = 0;
  uint64_t peak_bytes = 0;  // Since the device or the last ResetMemoryPeak().
};

// A copy to the host that is under way. Not thread-safe; gone before its device.
class PendingCopy {
 public:
  // When it is gone, the device reads and writes nothing for it any more.
  virtual ~PendingCopy() = default;
  // Waits until the host's memory has the bytes. Once.
  virtual absl::Status Wait() = 0;
};

// Launches that were captured. Not thread-safe; gone before its device. The memory that they use
// stays as long as a replay may run.
class DeviceGraph {
 public:
  virtual ~DeviceGraph() = default;
  // Enqueues them all, in the order of the device's stream. INTERNAL: the device failed.
  // REQUIRES: Device::Enter() on this thread.
  virtual absl::Status Replay() = 0;
};

class Device {
 public:
  virtual ~Device() = default;
  virtual absl::string_view name() const = 0;  // "cuda:0", "emulated"
  virtual int multiprocessors() const = 0;
  // Where this thread launches: the device's stream, or inside a capture that of the capture.
  virtual DeviceStream stream() const = 0;

  // Makes the device the calling thread's.
  virtual absl::Status Enter() = 0;

  // At least 256-byte aligned; contents unspecified. Not null, also for 0 bytes.
  // RESOURCE_EXHAUSTED: naming the bytes.
  virtual absl::StatusOr<void*> Allocate(uint64_t bytes) = 0;
  virtual void Free(void* memory) = 0;
  // In stream order, as allocations and frees are, so that waiting for the stream changes nothing.
  virtual absl::StatusOr<DeviceMemoryUse> MemoryUse() = 0;
  virtual absl::Status ResetMemoryPeak() = 0;

  // The host's memory may change as soon as this returns; the device's has it in stream order.
  virtual absl::Status CopyIn(const void* host, void* device, uint64_t bytes) = 0;
  // Waits until the host's memory has it.
  virtual absl::Status CopyOut(const void* device, void* host, uint64_t bytes) = 0;
  // The same beside what the stream does next: of what it has written by now. Until Wait() has
  // returned, or the result is gone, the device's memory stays as it is and the host's is not to be
  // looked at.
  virtual absl::StatusOr<std::unique_ptr<PendingCopy>> BeginCopyOut(const void* device, void* host,
                                                                    uint64_t bytes) = 0;
  virtual absl::Status Zero(void* device, uint64_t bytes) = 0;
  virtual absl::Status Synchronize() = 0;

  // From now until EndCapture() what this thread launches, and what it clears, is kept and not run;
  // other threads go on as ever. What cannot be kept fails with FAILED_PRECONDITION and spoils the
  // capture: allocations, copies, waiting; freeing memory spoils it, too. Each kernel has been
  // launched before, as its first use may load it.
  // FAILED_PRECONDITION: this thread is in a capture. UNIMPLEMENTED: the device has none.
  virtual absl::Status BeginCapture() = 0;
  // After BeginCapture() always, also where a launch failed. FAILED_PRECONDITION: no capture, or a
  // spoiled one. INTERNAL, RESOURCE_EXHAUSTED: the device makes no graph of it.
  virtual absl::StatusOr<std::unique_ptr<DeviceGraph>> EndCapture() = 0;

  // What a launch returned, as a status naming `operation` and the device: RESOURCE_EXHAUSTED for
  // memory, INTERNAL for the rest.
  virtual absl::Status Check(DeviceError error, absl::string_view operation) = 0;
};

// Owned device memory; keeps its device. Move-only.
class DeviceMemory {
 public:
  static absl::StatusOr<DeviceMemory> Allocate(std::shared_ptr<Device> device, uint64_t bytes) {
    absl::StatusOr<void*> data = device->Allocate(bytes);
    if (!data.ok()) return data.status();
    return DeviceMemory(std::move(device), *data);
  }
  // Memory that holds what `host` does.
  template <typename T>
  static absl::StatusOr<DeviceMemory> Of(std::shared_ptr<Device> device, std::span<const T> host) {
    absl::StatusOr<DeviceMemory> memory = Allocate(std::move(device), host.size_bytes());
    if (!memory.ok() || host.empty()) return memory;
    const absl::Status copied =
        memory->device_->CopyIn(host.data(), memory->data_, host.size_bytes());
    if (!copied.ok()) return copied;
    return memory;
  }

  DeviceMemory() = default;
  ~DeviceMemory() {
    if (data_ != nullptr) device_->Free(data_);
  }
  DeviceMemory(DeviceMemory&& other) noexcept
      : device_(std::move(other.device_)), data_(std::exchange(other.data_, nullptr)) {}
  DeviceMemory& operator=(DeviceMemory&& other) noexcept {
    std::swap(device_, other.device_);
    std::swap(data_, other.data_);
    return *this;
  }

  // Null if it holds nothing.
  template <typename T>
  T* as() const {
    return static_cast<T*>(data_);
  }

 private:
  DeviceMemory(std::shared_ptr<Device> device, void* data)
      : device_(std::move(device)), data_(data) {}

  std::shared_ptr<Device> device_;
  void* data_ = nullptr;
};

}  // namespace kvtier

#endif  // KVTIER_CUDA_DEVICE_H_
