#include "store/page_disk_format.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "base/bytes.h"
#include "base/crc32c.h"

namespace kvtier::page_disk_format {

std::string PositionKey(uint64_t position) {
  std::string key;
  for (int shift = 56; shift >= 0; shift -= 8) key.push_back(static_cast<char>(position >> shift));
  return key;
}

std::string NameKey(const PageName& name) {
  return absl::StrCat(name.tenant.name(), absl::string_view("\0", 1), name.key.AsStringView());
}

std::optional<PageName> ParseNameKey(absl::string_view key) {
  if (key.size() < PageKey::kSize + 1) return std::nullopt;
  const size_t tenant_bytes = key.size() - PageKey::kSize - 1;
  if (key[tenant_bytes] != '\0') return std::nullopt;
  absl::StatusOr<TenantId> tenant = TenantId::FromString(key.substr(0, tenant_bytes));
  absl::StatusOr<PageKey> page = PageKey::FromBytes(key.substr(tenant_bytes + 1));
  if (!tenant.ok() || !page.ok()) return std::nullopt;
  return PageName{*std::move(tenant), *page};
}

std::string EncodePlace(absl::string_view name_key, const Place& place) {
  std::string value;
  ByteWriter writer(&value);
  writer.WriteU64(place.position);
  writer.WriteU32(place.digest.bytes);
  writer.WriteU32(place.digest.crc32c.value());
  writer.WriteU32(ExtendCrc32c(ComputeCrc32c(AsBytes(name_key)), AsBytes(value)).value());
  return value;
}

std::optional<Place> DecodePlace(absl::string_view name_key, absl::string_view value) {
  constexpr size_t kBody = 16;
  if (value.size() != kBody + sizeof(uint32_t)) return std::nullopt;
  const std::byte* const at = AsBytes(value).data();
  const Crc32c crc =
      ExtendCrc32c(ComputeCrc32c(AsBytes(name_key)), AsBytes(value.substr(0, kBody)));
  if (crc.value() != LoadLittleEndian<uint32_t>(at + kBody)) return std::nullopt;
  return Place{.position = LoadLittleEndian<uint64_t>(at),
               .digest = {.bytes = LoadLittleEndian<uint32_t>(at + 8),
                          .crc32c = Crc32c(LoadLittleEndian<uint32_t>(at + 12))}};
}

}  // namespace kvtier::page_disk_format
