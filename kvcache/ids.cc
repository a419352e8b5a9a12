#include "kvcache/ids.h"

#include <sys/random.h>

#include <cerrno>
#include <cstring>

#include "absl/status/status.h"
#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "base/bytes.h"
#include "base/limits.h"
#include "base/log.h"

namespace kvtier {

template <typename Tag, size_t kBytes>
absl::StatusOr<FixedBytes<Tag, kBytes>> FixedBytes<Tag, kBytes>::FromBytes(
    std::span<const std::byte> bytes) {
  if (bytes.size() != kBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("expected ", kBytes, " bytes, got ", bytes.size()));
  }
  std::array<std::byte, kBytes> copy;
  std::memcpy(copy.data(), bytes.data(), kBytes);
  return FixedBytes(copy);
}

template <typename Tag, size_t kBytes>
absl::StatusOr<FixedBytes<Tag, kBytes>> FixedBytes<Tag, kBytes>::FromBytes(
    absl::string_view bytes) {
  return FromBytes(AsBytes(bytes));
}

template <typename Tag, size_t kBytes>
absl::StatusOr<FixedBytes<Tag, kBytes>> FixedBytes<Tag, kBytes>::FromHex(absl::string_view hex) {
  if (hex.size() != 2 * kBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("expected ", 2 * kBytes, " hexadecimal digits, got ", hex.size()));
  }
  for (char c : hex) {  // absl::HexStringToBytes does not check its input in this release.
    if (!absl::ascii_isxdigit(static_cast<unsigned char>(c))) {
      return absl::InvalidArgumentError("not a hexadecimal digit");
    }
  }
  return FromBytes(absl::HexStringToBytes(hex));
}

template <typename Tag, size_t kBytes>
std::string FixedBytes<Tag, kBytes>::ToHex() const {
  return absl::BytesToHexString(AsStringView());
}

template class FixedBytes<struct KeyTag, 32>;
template class FixedBytes<struct DigestTag, 32>;
template class FixedBytes<struct UploadTag, 16>;
template class FixedBytes<struct TokenBlockHashTag, 32>;
template class FixedBytes<struct PageKeyTag, 32>;  // store/page.h

UploadId MakeUploadId() {
  std::array<std::byte, UploadId::kSize> bytes;
  size_t filled = 0;
  while (filled < bytes.size()) {
    const ssize_t got = getrandom(bytes.data() + filled, bytes.size() - filled, 0);
    // Only an interrupted wait for the pool to be seeded may fail here.
    KVTIER_CHECK(got > 0 || errno == EINTR);
    if (got > 0) filled += static_cast<size_t>(got);
  }
  return UploadId(bytes);
}

absl::StatusOr<TenantId> TenantId::FromString(absl::string_view name) {
  if (name.empty()) return absl::InvalidArgumentError("tenant: empty");
  if (name.size() > limits::kTenantBytesMax) {
    return absl::InvalidArgumentError(absl::StrCat(
        "tenant: ", name.size(), " bytes, at most kTenantBytesMax = ", limits::kTenantBytesMax));
  }
  for (char c : name) {
    if (!absl::ascii_isalnum(static_cast<unsigned char>(c)) && c != '.' && c != '_' && c != '-') {
      return absl::InvalidArgumentError("tenant: only letters, digits, '.', '_' and '-'");
    }
  }
  return TenantId(std::string(name));
}

std::string ToString(const SegmentId& id) {
  const auto start = [](std::span<const std::byte> bytes) {
    return absl::BytesToHexString(kvtier::AsStringView(bytes.first(4)));
  };
  return absl::StrCat("key ", start(id.key.bytes()), ".. upload ", start(id.upload.bytes()),
                      ".. band ", id.band.value(), " layer ", id.layer.value());
}

}  // namespace kvtier
