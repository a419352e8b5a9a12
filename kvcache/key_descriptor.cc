#include "kvcache/key_descriptor.h"

#include <array>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "base/bytes.h"
#include "base/limits.h"
#include "base/status_macros.h"
#include "kvcache/sha256.h"

namespace kvtier {
namespace {

constexpr absl::string_view kMagic = "KVTKEYDS";
constexpr uint32_t kVersion = 1;

constexpr absl::string_view kDerivedMagic = "KVTKEYDV";
constexpr uint32_t kDerivedVersion = 1;

// How a payload is read. Values are hashed into keys; never renumber.
enum class FieldType : uint8_t { kText = 1, kDigest = 2, kEnum = 3, kTokenIds = 4 };

// Order of the fields and their tags: ascending, each once. A new field is a new version.
enum class Tag : uint16_t {
  kTenantSalt = 1,
  kModelDigest = 2,
  kAdapter = 3,
  kKvDtype = 4,
  kRope = 5,
  kPromptProfileDigest = 6,
  kRecipe = 7,
  kSystemTokenIds = 8,
  kContextTokenIds = 9,
};
constexpr uint16_t kTagMax = 9;

struct FieldHeader {
  uint16_t tag;
  uint8_t type;
  uint64_t payload_bytes;
};

absl::string_view TagName(Tag tag) {
  constexpr std::array<absl::string_view, kTagMax> kNames = {
      "tenant_salt",           "model_digest", "adapter",          "kv_dtype",         "rope",
      "prompt_profile_digest", "recipe",       "system_token_ids", "context_token_ids"};
  return kNames[static_cast<uint16_t>(tag) - 1];
}

absl::Status Refuse(Tag tag, absl::string_view reason) {
  return absl::InvalidArgumentError(absl::StrCat("key descriptor: ", TagName(tag), ": ", reason));
}

void WriteFieldHeader(ByteWriter& writer, Tag tag, FieldType type, uint64_t payload_bytes) {
  writer.WriteU16(static_cast<uint16_t>(tag));
  writer.WriteU8(static_cast<uint8_t>(type));
  writer.WriteU64(payload_bytes);
}

void WriteField(ByteWriter& writer, Tag tag, FieldType type, ByteSpan payload) {
  WriteFieldHeader(writer, tag, type, payload.size());
  writer.WriteBytes(payload);
}

absl::Status CheckText(Tag tag, absl::string_view text, uint64_t bytes_max, bool may_be_empty) {
  if (text.empty() && !may_be_empty) return Refuse(tag, "empty");
  if (text.size() > bytes_max) {
    return Refuse(tag, absl::StrCat(text.size(), " bytes, at most ", bytes_max));
  }
  return absl::OkStatus();
}

absl::Status CheckTokens(Tag tag, std::span<const uint32_t> ids, uint64_t tokens_max) {
  if (ids.size() > tokens_max) {
    return Refuse(tag, absl::StrCat(ids.size(), " tokens, at most ", tokens_max));
  }
  return absl::OkStatus();
}

absl::Status CheckHead(const KeyDescriptorHead& head) {
  KVTIER_RETURN_IF_ERROR(
      CheckText(Tag::kTenantSalt, head.tenant_salt, limits::kNameBytesMax, false));
  if (head.model_digest.IsZero()) return Refuse(Tag::kModelDigest, "all zero");
  KVTIER_RETURN_IF_ERROR(CheckText(Tag::kAdapter, head.adapter, limits::kNameBytesMax, true));
  if (!DTypeFromByte(static_cast<uint8_t>(head.kv_dtype)).ok()) {
    return Refuse(Tag::kKvDtype, "unknown value");
  }
  KVTIER_RETURN_IF_ERROR(CheckText(Tag::kRope, head.rope, kRopeTextBytesMax, false));
  if (head.prompt_profile_digest.IsZero()) return Refuse(Tag::kPromptProfileDigest, "all zero");
  KVTIER_RETURN_IF_ERROR(CheckText(Tag::kRecipe, head.recipe, limits::kNameBytesMax, false));
  return CheckTokens(Tag::kSystemTokenIds, head.system_token_ids, limits::kSystemTokensMax);
}

absl::Status CheckContext(std::span<const uint32_t> context) {
  return CheckTokens(Tag::kContextTokenIds, context, limits::kContextTokensMax);
}

// The canonical bytes up to and including the system token ids.
std::string EncodeHead(const KeyDescriptorHead& head) {
  std::string out;
  ByteWriter writer(&out);
  writer.WriteBytes(kMagic);
  writer.WriteU32(kVersion);
  const std::byte dtype{static_cast<uint8_t>(head.kv_dtype)};
  WriteField(writer, Tag::kTenantSalt, FieldType::kText, AsBytes(head.tenant_salt));
  WriteField(writer, Tag::kModelDigest, FieldType::kDigest, head.model_digest.bytes());
  WriteField(writer, Tag::kAdapter, FieldType::kText, AsBytes(head.adapter));
  WriteField(writer, Tag::kKvDtype, FieldType::kEnum, ByteSpan(&dtype, 1));
  WriteField(writer, Tag::kRope, FieldType::kText, AsBytes(head.rope));
  WriteField(writer, Tag::kPromptProfileDigest, FieldType::kDigest,
             head.prompt_profile_digest.bytes());
  WriteField(writer, Tag::kRecipe, FieldType::kText, AsBytes(head.recipe));
  WriteField(writer, Tag::kSystemTokenIds, FieldType::kTokenIds,
             AsBytes(std::span<const uint32_t>(head.system_token_ids)));
  return out;
}

// The last field without its payload.
std::string EncodeContextHeader(uint64_t tokens) {
  std::string out;
  ByteWriter writer(&out);
  WriteFieldHeader(writer, Tag::kContextTokenIds, FieldType::kTokenIds, 4 * tokens);
  return out;
}

// The payload of field `tag`, which must come next. Says which of the possible mistakes it is.
absl::StatusOr<ByteSpan> ReadField(ByteReader& reader, Tag tag, FieldType type) {
  if (reader.remaining() == 0) return Refuse(tag, "missing");
  FieldHeader header;
  KVTIER_ASSIGN_OR_RETURN(header.tag, reader.ReadU16());
  KVTIER_ASSIGN_OR_RETURN(header.type, reader.ReadU8());
  KVTIER_ASSIGN_OR_RETURN(header.payload_bytes, reader.ReadU64());
  const uint16_t expected = static_cast<uint16_t>(tag);
  if (header.tag == 0 || header.tag > kTagMax) {
    return absl::InvalidArgumentError(absl::StrCat("key descriptor: unknown field ", header.tag));
  }
  if (header.tag < expected) return Refuse(Tag{header.tag}, "repeated or out of order");
  if (header.tag > expected) return Refuse(tag, "missing or out of order");
  if (header.type != static_cast<uint8_t>(type)) {
    return Refuse(tag, absl::StrCat("type ", header.type, ", expected ", static_cast<int>(type)));
  }
  if (header.payload_bytes > reader.remaining()) return Refuse(tag, "truncated");
  return reader.ReadBytes(header.payload_bytes);
}

absl::StatusOr<std::string> ReadText(ByteReader& reader, Tag tag) {
  KVTIER_ASSIGN_OR_RETURN(const ByteSpan payload, ReadField(reader, tag, FieldType::kText));
  return ToString(payload);
}

absl::StatusOr<Digest> ReadDigest(ByteReader& reader, Tag tag) {
  KVTIER_ASSIGN_OR_RETURN(const ByteSpan payload, ReadField(reader, tag, FieldType::kDigest));
  if (payload.size() != Digest::kSize) return Refuse(tag, "not 32 bytes");
  return Digest::FromBytes(payload);
}

absl::StatusOr<std::vector<uint32_t>> ReadTokens(ByteReader& reader, Tag tag) {
  KVTIER_ASSIGN_OR_RETURN(const ByteSpan payload, ReadField(reader, tag, FieldType::kTokenIds));
  if (payload.size() % 4 != 0) return Refuse(tag, "not a whole number of token ids");
  std::vector<uint32_t> ids(payload.size() / 4);
  if (!ids.empty()) std::memcpy(ids.data(), payload.data(), payload.size());
  return ids;
}

}  // namespace

absl::StatusOr<std::string> EncodeKeyDescriptor(const KeyDescriptor& descriptor) {
  KVTIER_RETURN_IF_ERROR(CheckHead(descriptor.head));
  KVTIER_RETURN_IF_ERROR(CheckContext(descriptor.context_token_ids));
  const std::span<const uint32_t> context(descriptor.context_token_ids);
  std::string out = EncodeHead(descriptor.head);
  out += EncodeContextHeader(context.size());
  ByteWriter(&out).WriteBytes(AsBytes(context));
  return out;
}

absl::StatusOr<KeyDescriptor> DecodeKeyDescriptor(std::span<const std::byte> bytes) {
  ByteReader reader(bytes);
  KVTIER_ASSIGN_OR_RETURN(const ByteSpan magic, reader.ReadBytes(kMagic.size()));
  if (AsStringView(magic) != kMagic) {
    return absl::InvalidArgumentError("key descriptor: wrong magic");
  }
  KVTIER_ASSIGN_OR_RETURN(const uint32_t version, reader.ReadU32());
  if (version != kVersion) {
    return absl::InvalidArgumentError(
        absl::StrCat("key descriptor: version ", version, ", this build reads ", kVersion));
  }
  KeyDescriptor descriptor;
  KeyDescriptorHead& head = descriptor.head;
  KVTIER_ASSIGN_OR_RETURN(head.tenant_salt, ReadText(reader, Tag::kTenantSalt));
  KVTIER_ASSIGN_OR_RETURN(head.model_digest, ReadDigest(reader, Tag::kModelDigest));
  KVTIER_ASSIGN_OR_RETURN(head.adapter, ReadText(reader, Tag::kAdapter));
  KVTIER_ASSIGN_OR_RETURN(const ByteSpan dtype, ReadField(reader, Tag::kKvDtype, FieldType::kEnum));
  if (dtype.size() != 1) return Refuse(Tag::kKvDtype, "not one byte");
  KVTIER_ASSIGN_OR_RETURN(head.kv_dtype, DTypeFromByte(std::to_integer<uint8_t>(dtype[0])));
  KVTIER_ASSIGN_OR_RETURN(head.rope, ReadText(reader, Tag::kRope));
  KVTIER_ASSIGN_OR_RETURN(head.prompt_profile_digest,
                          ReadDigest(reader, Tag::kPromptProfileDigest));
  KVTIER_ASSIGN_OR_RETURN(head.recipe, ReadText(reader, Tag::kRecipe));
  KVTIER_ASSIGN_OR_RETURN(head.system_token_ids, ReadTokens(reader, Tag::kSystemTokenIds));
  KVTIER_ASSIGN_OR_RETURN(descriptor.context_token_ids, ReadTokens(reader, Tag::kContextTokenIds));
  if (reader.remaining() != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("key descriptor: ", reader.remaining(), " bytes after the last field"));
  }
  KVTIER_RETURN_IF_ERROR(CheckHead(head));
  KVTIER_RETURN_IF_ERROR(CheckContext(descriptor.context_token_ids));
  return descriptor;
}

absl::StatusOr<Key> ComputeKey(const KeyDescriptor& descriptor) {
  return ComputeKey(descriptor.head, descriptor.context_token_ids);
}

absl::StatusOr<Key> ComputeKey(const KeyDescriptorHead& head, std::span<const uint32_t> context) {
  KVTIER_RETURN_IF_ERROR(CheckHead(head));
  KVTIER_RETURN_IF_ERROR(CheckContext(context));
  Sha256 hash;
  hash.Update(EncodeHead(head));
  hash.Update(EncodeContextHeader(context.size()));
  hash.Update(AsBytes(context));
  return Key(hash.Finish());
}

absl::StatusOr<Digest> ComputeHeadDigest(const KeyDescriptorHead& head) {
  KVTIER_RETURN_IF_ERROR(CheckHead(head));
  return ComputeSha256(AsBytes(EncodeHead(head)));
}

absl::StatusOr<Key> DeriveKey(const Key& key, absl::string_view recipe) {
  if (key.IsZero()) return absl::InvalidArgumentError("derived key: the key is all zero");
  if (recipe.empty() || recipe.size() > limits::kNameBytesMax) {
    return absl::InvalidArgumentError(
        absl::StrCat("derived key: a recipe of ", recipe.size(),
                     " bytes, at most kNameBytesMax = ", limits::kNameBytesMax));
  }
  std::string bytes;
  ByteWriter writer(&bytes);
  writer.WriteBytes(kDerivedMagic);
  writer.WriteU32(kDerivedVersion);
  writer.WriteBytes(key.bytes());
  writer.WriteU32(static_cast<uint32_t>(recipe.size()));
  writer.WriteBytes(recipe);
  const Digest digest = ComputeSha256(AsBytes(bytes));
  return Key::FromBytes(digest.bytes());
}

}  // namespace kvtier
