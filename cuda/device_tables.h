// Small arrays that a launch reads, collected on the host and brought to the device by one copy.
#ifndef KVTIER_CUDA_DEVICE_TABLES_H_
#define KVTIER_CUDA_DEVICE_TABLES_H_

#include <cstddef>
#include <cstring>
#include <memory>
#include <span>
#include <type_traits>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "base/status_macros.h"
#include "cuda/device.h"

namespace kvtier {

// Not thread-safe: made, filled, uploaded and read by one call.
class DeviceTables {
 public:
  // Where the array will be: valid with At() after Upload().
  template <typename T>
  size_t Add(const std::vector<T>& array) {
    static_assert(std::is_trivially_copyable_v<T> && alignof(T) <= 16, "copied as bytes");
    const size_t at = (bytes_.size() + 15) / 16 * 16;
    bytes_.resize(at + array.size() * sizeof(T));
    if (!array.empty()) std::memcpy(bytes_.data() + at, array.data(), array.size() * sizeof(T));
    return at;
  }

  absl::Status Upload(std::shared_ptr<Device> device) {
    KVTIER_ASSIGN_OR_RETURN(
        memory_, DeviceMemory::Of(std::move(device), std::span<const std::byte>(bytes_)));
    return absl::OkStatus();
  }

  template <typename T>
  const T* At(size_t at) const {
    return reinterpret_cast<const T*>(memory_.as<std::byte>() + at);
  }

  // The device's memory, for arrays that many launches read: what At() has said stays true.
  DeviceMemory TakeMemory() && { return std::move(memory_); }

 private:
  std::vector<std::byte> bytes_;
  DeviceMemory memory_;
};

}  // namespace kvtier

#endif  // KVTIER_CUDA_DEVICE_TABLES_H_
