// The one form of shared ownership in kvtier: segment bytes that several readers pin.
#ifndef KVTIER_KVCACHE_SEGMENT_REF_H_
#define KVTIER_KVCACHE_SEGMENT_REF_H_

#include <memory>
#include <span>
#include <utility>

#include "base/aligned_bytes.h"

namespace kvtier {

// Keeps `bytes()` alive and unchanged while it (or a copy of it) exists. Cheap to copy; copies may
// be destroyed on any thread. The bytes start at a 64-byte boundary.
class SegmentRef {
 public:
  SegmentRef() = default;
  SegmentRef(std::shared_ptr<const void> owner, std::span<const std::byte> bytes)
      : owner_(std::move(owner)), bytes_(bytes) {}
  // Takes over a buffer.
  static SegmentRef Own(AlignedBytes bytes) {
    auto owner = std::make_shared<const AlignedBytes>(std::move(bytes));
    std::span<const std::byte> view = owner->span();
    return SegmentRef(std::move(owner), view);
  }
  std::span<const std::byte> bytes() const { return bytes_; }
  const std::shared_ptr<const void>& owner() const { return owner_; }

 private:
  std::shared_ptr<const void> owner_;
  std::span<const std::byte> bytes_;
};

}  // namespace kvtier

#endif  // KVTIER_KVCACHE_SEGMENT_REF_H_
