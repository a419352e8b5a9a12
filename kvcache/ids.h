// Small strong types that name things everywhere: layers, bands, heads, tenants, uploads, objects.
// All are values: trivially copyable where they can be, comparable, hashable with absl containers.
// Numbers of different kinds never convert into each other (tests/compile_fail holds the proof).
#ifndef KVTIER_KVCACHE_IDS_H_
#define KVTIER_KVCACHE_IDS_H_

#include <array>
#include <compare>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <utility>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace kvtier {

// An index that cannot be mistaken for an index of another kind.
template <typename Tag>
class Index {
 public:
  constexpr Index() = default;
  constexpr explicit Index(uint32_t value) : value_(value) {}
  constexpr uint32_t value() const { return value_; }
  friend constexpr auto operator<=>(Index, Index) = default;
  template <typename H>
  friend H AbslHashValue(H h, Index i) {
    return H::combine(std::move(h), i.value_);
  }

 private:
  uint32_t value_ = 0;
};

using LayerIndex = Index<struct LayerTag>;  // Model layer, counted from 0, sliding layers included.
using BandIndex = Index<struct BandTag>;    // 0 is the most important band.

// Half-open ranges. Empty ranges are allowed where a method says so.
struct HeadRange {
  uint32_t begin = 0;  // First KV head.
  uint32_t end = 0;    // One past the last.
  uint32_t size() const { return end - begin; }
  friend bool operator==(const HeadRange&, const HeadRange&) = default;
};
struct LayerRange {
  uint32_t begin = 0;
  uint32_t end = 0;
  uint32_t size() const { return end - begin; }
  friend bool operator==(const LayerRange&, const LayerRange&) = default;
};

// Fixed-size opaque bytes with hexadecimal text form. `Tag` separates the kinds.
template <typename Tag, size_t kBytes>
class FixedBytes {
 public:
  static constexpr size_t kSize = kBytes;
  constexpr FixedBytes() : bytes_{} {}
  explicit FixedBytes(const std::array<std::byte, kBytes>& bytes) : bytes_(bytes) {}

  // INVALID_ARGUMENT unless exactly kBytes bytes / 2*kBytes hexadecimal digits are given.
  static absl::StatusOr<FixedBytes> FromBytes(std::span<const std::byte> bytes);
  static absl::StatusOr<FixedBytes> FromBytes(absl::string_view bytes);
  static absl::StatusOr<FixedBytes> FromHex(absl::string_view hex);

  std::string ToHex() const;
  std::span<const std::byte, kBytes> bytes() const { return bytes_; }
  // The same bytes as text, for keys of stores and protobuf fields.
  absl::string_view AsStringView() const {
    return {reinterpret_cast<const char*>(bytes_.data()), bytes_.size()};
  }
  bool IsZero() const { return *this == FixedBytes(); }
  friend auto operator<=>(const FixedBytes&, const FixedBytes&) = default;
  template <typename H>
  friend H AbslHashValue(H h, const FixedBytes& b) {
    return H::combine(std::move(h), b.AsStringView());
  }

 private:
  std::array<std::byte, kBytes> bytes_;
};

// Names the tokens of a stored context (SHA-256 of its KeyDescriptor). Not a checksum of any bytes.
using Key = FixedBytes<struct KeyTag, 32>;
// SHA-256 of a file set, a prompt profile, a recipe.
using Digest = FixedBytes<struct DigestTag, 32>;
// Names one computation of a Key: two computations may differ in bytes and never mix.
using UploadId = FixedBytes<struct UploadTag, 16>;
// One link of the chain of token-block hashes (token_block_hash.h).
using TokenBlockHash = FixedBytes<struct TokenBlockHashTag, 32>;

// Fresh from the operating system's random source.
UploadId MakeUploadId();

// Who owns an object. At most limits::kTenantBytesMax bytes of [A-Za-z0-9._-]; "default" when
// nobody says otherwise.
class TenantId {
 public:
  TenantId() : name_("default") {}
  static absl::StatusOr<TenantId> FromString(absl::string_view name);
  absl::string_view name() const { return name_; }
  friend auto operator<=>(const TenantId&, const TenantId&) = default;
  template <typename H>
  friend H AbslHashValue(H h, const TenantId& t) {
    return H::combine(std::move(h), t.name_);
  }

 private:
  explicit TenantId(std::string name) : name_(std::move(name)) {}
  std::string name_;
};

// Names one segment: the bytes of one (band, layer) of one upload of one tenant's key.
struct SegmentId {
  TenantId tenant;
  Key key;
  UploadId upload;
  BandIndex band;
  LayerIndex layer;
  friend auto operator<=>(const SegmentId&, const SegmentId&) = default;
  template <typename H>
  friend H AbslHashValue(H h, const SegmentId& id) {
    return H::combine(std::move(h), id.tenant, id.key, id.upload, id.band, id.layer);
  }
};

// For messages: "key 1a2b3c4d.. upload 9f8e.. band 2 layer 5".
std::string ToString(const SegmentId& id);

}  // namespace kvtier

#endif  // KVTIER_KVCACHE_IDS_H_
