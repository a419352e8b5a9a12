#include "store/disk_format.h"

#include <limits>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "base/bytes.h"
#include "base/crc32c.h"
#include "base/limits.h"
#include "base/status_macros.h"

namespace kvtier::disk_format {
namespace {

constexpr absl::string_view kFormatPrefix = "kvtier store format ";
constexpr size_t kPartKeyBytes = UploadId::kSize + 3 * sizeof(uint32_t);
constexpr size_t kCrcBytes = sizeof(uint32_t);
constexpr uint32_t kPinnedFlag = 1;
constexpr int64_t kNever = std::numeric_limits<int64_t>::max();

// Big endian, so that keys sort by number.
void AppendBigEndian(uint32_t value, std::string* out) {
  for (int shift = 24; shift >= 0; shift -= 8) out->push_back(static_cast<char>(value >> shift));
}

uint32_t LoadBigEndian(absl::string_view bytes) {
  uint32_t value = 0;
  for (size_t i = 0; i < sizeof(value); ++i) value = value << 8 | static_cast<uint8_t>(bytes[i]);
  return value;
}

Crc32c RecordCrc(absl::string_view record_key, absl::string_view body) {
  return ExtendCrc32c(ComputeCrc32c(AsBytes(record_key)), AsBytes(body));
}

void AppendCrc(absl::string_view record_key, std::string* value) {
  const Crc32c crc = RecordCrc(record_key, *value);
  ByteWriter(value).WriteU32(crc.value());
}

// The value without its CRC32C, which has been checked.
absl::StatusOr<absl::string_view> CheckCrc(absl::string_view record_key, absl::string_view value) {
  if (value.size() < kCrcBytes) return absl::DataLossError("record is truncated");
  const absl::string_view body = value.substr(0, value.size() - kCrcBytes);
  const Crc32c stored(LoadLittleEndian<uint32_t>(AsBytes(value).data() + body.size()));
  if (stored != RecordCrc(record_key, body)) {
    return absl::DataLossError("record fails its CRC32C");
  }
  return body;
}

absl::StatusOr<ObjectName> ParseObjectRecordKey(absl::string_view record_key) {
  if (record_key.size() < Key::kSize + 1) return absl::DataLossError("record key is too short");
  const size_t tenant_bytes = record_key.size() - Key::kSize - 1;
  if (record_key[tenant_bytes] != '\0') return absl::DataLossError("record key has no separator");
  absl::StatusOr<TenantId> tenant = TenantId::FromString(record_key.substr(0, tenant_bytes));
  if (!tenant.ok()) return absl::DataLossError(tenant.status().message());
  KVTIER_ASSIGN_OR_RETURN(const Key key, Key::FromBytes(record_key.substr(tenant_bytes + 1)));
  return ObjectName{*std::move(tenant), key};
}

absl::StatusOr<ObjectRecord> ParseObjectRecord(absl::string_view record_key,
                                               absl::string_view body) {
  KVTIER_ASSIGN_OR_RETURN(ObjectName name, ParseObjectRecordKey(record_key));
  ByteReader reader(AsBytes(body));
  KVTIER_ASSIGN_OR_RETURN(const uint32_t version, reader.ReadU32());
  if (version != kObjectRecordVersion) {
    return absl::DataLossError(absl::StrCat("object record of version ", version));
  }
  KVTIER_ASSIGN_OR_RETURN(const int64_t sealed_at_ns, reader.ReadI64());
  KVTIER_ASSIGN_OR_RETURN(const uint32_t manifest_bytes, reader.ReadU32());
  KVTIER_ASSIGN_OR_RETURN(const ByteSpan manifest, reader.ReadBytes(manifest_bytes));
  KVTIER_RETURN_IF_ERROR(reader.ExpectEnd());
  KVTIER_ASSIGN_OR_RETURN(Manifest decoded, DecodeManifest(manifest));
  if (decoded.key != name.key) return absl::DataLossError("record of another key");
  return ObjectRecord{std::move(name), std::move(decoded), absl::FromUnixNanos(sealed_at_ns)};
}

}  // namespace

std::string PartKey(const UploadId& upload, BandIndex band, LayerIndex layer, uint32_t part) {
  std::string key(upload.AsStringView());
  AppendBigEndian(band.value(), &key);
  AppendBigEndian(layer.value(), &key);
  AppendBigEndian(part, &key);
  return key;
}

std::string BandBegin(const UploadId& upload, BandIndex band) {
  std::string key(upload.AsStringView());
  AppendBigEndian(band.value(), &key);
  return key;
}

std::string UploadEnd(const UploadId& upload) {
  static_assert(limits::kBandsMax < 0xffff'ffff);
  return BandBegin(upload, BandIndex(0xffff'ffff));
}

std::optional<PartName> ParsePartKey(absl::string_view key) {
  if (key.size() != kPartKeyBytes) return std::nullopt;
  absl::StatusOr<UploadId> upload = UploadId::FromBytes(key.substr(0, UploadId::kSize));
  if (!upload.ok()) return std::nullopt;
  return PartName{*upload, BandIndex(LoadBigEndian(key.substr(UploadId::kSize)))};
}

uint64_t BandChargeBytes(const BandEntry& band) {
  constexpr uint64_t kFileBytes = 4096;         // Footer, properties, end of the last page.
  constexpr uint64_t kPartOverheadBytes = 128;  // Key, index entry, block trailer.
  uint64_t bytes = 0;
  for (const SegmentEntry& layer : band.layers) {
    const uint64_t segment_bytes = layer.encoded_bytes();
    bytes += segment_bytes + PartCount(segment_bytes) * kPartOverheadBytes;
  }
  return bytes == 0 ? 0 : bytes + kFileBytes;
}

std::string ObjectRecordKey(const TenantId& tenant, const Key& key) {
  return absl::StrCat(tenant.name(), absl::string_view("\0", 1), key.AsStringView());
}

std::string EncodeObjectRecord(const TenantId& tenant, const Manifest& manifest,
                               absl::Time sealed_at) {
  const std::string encoded_manifest = EncodeManifest(manifest);
  std::string value;
  ByteWriter writer(&value);
  writer.WriteU32(kObjectRecordVersion);
  writer.WriteI64(absl::ToUnixNanos(sealed_at));
  writer.WriteU32(static_cast<uint32_t>(encoded_manifest.size()));
  writer.WriteBytes(encoded_manifest);
  AppendCrc(ObjectRecordKey(tenant, manifest.key), &value);
  return value;
}

absl::StatusOr<ObjectRecord> DecodeObjectRecord(absl::string_view record_key,
                                                absl::string_view value) {
  KVTIER_ASSIGN_OR_RETURN(const absl::string_view body, CheckCrc(record_key, value));
  absl::StatusOr<ObjectRecord> record = ParseObjectRecord(record_key, body);
  // The CRC32C says that we wrote it, so whatever does not parse is damage, not bad input.
  if (!record.ok()) return absl::DataLossError(record.status().message());
  return record;
}

std::string EncodeResidencyRecord(const UploadId& upload, uint32_t band_count) {
  std::string value;
  ByteWriter(&value).WriteU32(band_count);
  AppendCrc(upload.AsStringView(), &value);
  return value;
}

absl::StatusOr<uint32_t> DecodeResidencyRecord(const UploadId& upload, absl::string_view value) {
  KVTIER_ASSIGN_OR_RETURN(const absl::string_view body, CheckCrc(upload.AsStringView(), value));
  if (body.size() != sizeof(uint32_t))
    return absl::DataLossError("residency record has a wrong size");
  return LoadLittleEndian<uint32_t>(AsBytes(body).data());
}

std::string EncodeAttributesRecord(const UploadId& upload, const ObjectAttributes& attributes) {
  std::string value;
  ByteWriter writer(&value);
  writer.WriteU32(kAttributesRecordVersion);
  writer.WriteU32(attributes.pinned ? kPinnedFlag : 0);
  writer.WriteI64(attributes.expires_at == absl::InfiniteFuture()
                      ? kNever
                      : absl::ToUnixNanos(attributes.expires_at));
  AppendCrc(upload.AsStringView(), &value);
  return value;
}

absl::StatusOr<ObjectAttributes> DecodeAttributesRecord(const UploadId& upload,
                                                        absl::string_view value) {
  KVTIER_ASSIGN_OR_RETURN(const absl::string_view body, CheckCrc(upload.AsStringView(), value));
  const auto parse = [&]() -> absl::StatusOr<ObjectAttributes> {
    ByteReader reader(AsBytes(body));
    KVTIER_ASSIGN_OR_RETURN(const uint32_t version, reader.ReadU32());
    if (version != kAttributesRecordVersion) {
      return absl::DataLossError(absl::StrCat("attributes record of version ", version));
    }
    KVTIER_ASSIGN_OR_RETURN(const uint32_t flags, reader.ReadU32());
    KVTIER_ASSIGN_OR_RETURN(const int64_t expires_at_ns, reader.ReadI64());
    KVTIER_RETURN_IF_ERROR(reader.ExpectEnd());
    if ((flags & ~kPinnedFlag) != 0) return absl::DataLossError("attributes record: unknown flags");
    return ObjectAttributes{.pinned = (flags & kPinnedFlag) != 0,
                            .expires_at = expires_at_ns == kNever
                                              ? absl::InfiniteFuture()
                                              : absl::FromUnixNanos(expires_at_ns)};
  };
  absl::StatusOr<ObjectAttributes> attributes = parse();
  if (!attributes.ok()) return absl::DataLossError(attributes.status().message());
  return attributes;
}

std::string EncodeFormatFile() { return absl::StrCat(kFormatPrefix, kStoreFormatVersion, "\n"); }

absl::StatusOr<uint32_t> ParseFormatFile(absl::string_view text) {
  uint32_t version = 0;
  if (!absl::ConsumePrefix(&text, kFormatPrefix) || !absl::ConsumeSuffix(&text, "\n") ||
      !absl::SimpleAtoi(text, &version)) {
    return absl::FailedPreconditionError("the FORMAT file is not one of a kvtier store");
  }
  if (version < kOldestStoreFormatVersion || version > kStoreFormatVersion) {
    return absl::FailedPreconditionError(
        absl::StrCat("store of format ", version, ", this build reads formats ",
                     kOldestStoreFormatVersion, " to ", kStoreFormatVersion));
  }
  return version;
}

}  // namespace kvtier::disk_format
