#include "services/page_messages.h"

#include <algorithm>
#include <string>

#include <google/protobuf/io/coded_stream.h>
#include <google/protobuf/wire_format_lite.h>
#include <grpcpp/impl/codegen/proto_utils.h>

#include "absl/strings/str_cat.h"
#include "base/limits.h"
#include "base/log.h"
#include "base/status_macros.h"

namespace kvtier {
namespace {

using google::protobuf::internal::WireFormatLite;
using google::protobuf::io::CodedInputStream;
using google::protobuf::io::CodedOutputStream;

constexpr uint32_t TagOf(int field, WireFormatLite::WireType type) {
  return WireFormatLite::MakeTag(field, type);
}
constexpr uint32_t kPagesTag =
    TagOf(v1::BatchGetResponse::kPagesFieldNumber, WireFormatLite::WIRETYPE_LENGTH_DELIMITED);
constexpr uint32_t kCodeTag = TagOf(v1::PageGot::kCodeFieldNumber, WireFormatLite::WIRETYPE_VARINT);
constexpr uint32_t kCrcTag =
    TagOf(v1::PageGot::kCrc32CFieldNumber, WireFormatLite::WIRETYPE_FIXED32);
constexpr uint32_t kPayloadTag =
    TagOf(v1::PageGot::kPayloadFieldNumber, WireFormatLite::WIRETYPE_LENGTH_DELIMITED);

// Tag and length of the page, its code or checksum, tag and length of the payload.
constexpr size_t kPrefixBytesMax = 32;

absl::Status Malformed(absl::string_view what) {
  return absl::InvalidArgumentError(absl::StrCat("malformed BatchGetResponse: ", what));
}

// The fields before a payload of so many bytes; none follows if it is 0.
grpc::Slice MakePrefix(absl::StatusCode code, Crc32c crc32c, uint64_t payload_bytes) {
  uint8_t inner[kPrefixBytesMax];
  uint8_t* end = inner;
  if (code != absl::StatusCode::kOk) {
    end = CodedOutputStream::WriteTagToArray(kCodeTag, end);
    end = CodedOutputStream::WriteVarint32ToArray(static_cast<uint32_t>(code), end);
  }
  if (payload_bytes > 0) {
    end = CodedOutputStream::WriteTagToArray(kCrcTag, end);
    end = CodedOutputStream::WriteLittleEndian32ToArray(crc32c.value(), end);
    end = CodedOutputStream::WriteTagToArray(kPayloadTag, end);
    end = CodedOutputStream::WriteVarint64ToArray(payload_bytes, end);
  }
  const size_t inner_bytes = static_cast<size_t>(end - inner);
  uint8_t prefix[2 * kPrefixBytesMax];
  uint8_t* at = CodedOutputStream::WriteTagToArray(kPagesTag, prefix);
  at = CodedOutputStream::WriteVarint64ToArray(inner_bytes + payload_bytes, at);
  at = std::copy(inner, end, at);
  return grpc::Slice(prefix, static_cast<size_t>(at - prefix));
}

absl::Status ReadPage(CodedInputStream& in, MutableByteSpan room, PageGotView& page) {
  while (const uint32_t tag = in.ReadTag()) {
    if (tag == kCodeTag) {
      uint32_t code = 0;
      if (!in.ReadVarint32(&code)) return Malformed("code");
      page.code = code <= 16 ? static_cast<absl::StatusCode>(code) : absl::StatusCode::kUnknown;
    } else if (tag == kCrcTag) {
      uint32_t crc = 0;
      if (!in.ReadLittleEndian32(&crc)) return Malformed("checksum");
      page.crc32c = Crc32c(crc);
    } else if (tag == kPayloadTag) {
      uint32_t bytes = 0;
      if (!in.ReadVarint32(&bytes) || bytes > INT32_MAX) return Malformed("payload");
      page.bytes = bytes;
      const bool fits = bytes <= room.size();
      const int count = static_cast<int>(bytes);
      if (!(fits ? in.ReadRaw(room.data(), count) : in.Skip(count))) return Malformed("payload");
    } else if (!WireFormatLite::SkipField(&in, tag)) {
      return Malformed("field");
    }
  }
  return in.ConsumedEntireMessage() ? absl::OkStatus() : Malformed("page");
}

}  // namespace

absl::StatusOr<std::vector<PageKey>> PageKeysFromProto(
    const google::protobuf::RepeatedPtrField<std::string>& keys) {
  if (keys.size() > static_cast<int>(limits::kPageBatchMax)) {
    return absl::InvalidArgumentError(
        absl::StrCat(keys.size(), " keys, at most ", limits::kPageBatchMax, " in one call"));
  }
  std::vector<PageKey> parsed;
  parsed.reserve(static_cast<size_t>(keys.size()));
  for (int i = 0; i < keys.size(); ++i) {
    const absl::StatusOr<PageKey> key = PageKey::FromBytes(keys.Get(i));
    if (!key.ok()) {
      return absl::InvalidArgumentError(absl::StrCat("key ", i, ": ", key.status().message()));
    }
    parsed.push_back(*key);
  }
  return parsed;
}

absl::Status CheckBatchPut(const v1::BatchPutRequest& request) {
  if (request.pages_size() > static_cast<int>(limits::kPageBatchMax)) {
    return absl::InvalidArgumentError(absl::StrCat(request.pages_size(), " pages, at most ",
                                                   limits::kPageBatchMax, " in one call"));
  }
  uint64_t bytes = 0;
  for (int i = 0; i < request.pages_size(); ++i) {
    const v1::PagePut& page = request.pages(i);
    if (page.key().size() != PageKey::kSize) {
      return absl::InvalidArgumentError(absl::StrCat("key of page ", i, " has ", page.key().size(),
                                                     " bytes, not ", PageKey::kSize));
    }
    bytes += page.payload().size();
  }
  if (bytes > limits::kPageBatchBytesMax) {
    return absl::InvalidArgumentError(absl::StrCat(bytes, " bytes of pages, at most ",
                                                   limits::kPageBatchBytesMax, " in one call"));
  }
  // A promise that this build does not know is not one to make.
  if (!v1::Durability_IsValid(request.durability())) {
    return absl::InvalidArgumentError(
        absl::StrCat("durability ", static_cast<int>(request.durability()), " is unknown"));
  }
  return absl::OkStatus();
}

grpc::ByteBuffer MakeBatchGetResponse(std::span<const absl::StatusCode> codes,
                                      std::span<const PageRef> pages) {
  KVTIER_CHECK_EQ(codes.size(), pages.size());
  std::vector<grpc::Slice> slices;
  slices.reserve(2 * pages.size());
  for (size_t i = 0; i < pages.size(); ++i) {
    if (codes[i] != absl::StatusCode::kOk) {
      slices.push_back(MakePrefix(codes[i], Crc32c(), 0));
      continue;
    }
    const absl::string_view bytes = pages[i]->bytes();
    slices.push_back(MakePrefix(codes[i], pages[i]->crc32c(), bytes.size()));
    // gRPC wants a pointer to mutable memory but only reads what it sends.
    slices.emplace_back(
        const_cast<char*>(bytes.data()), bytes.size(),
        [](void* held) { delete static_cast<PageRef*>(held); }, new PageRef(pages[i]));
  }
  return grpc::ByteBuffer(slices.data(), slices.size());
}

absl::StatusOr<std::vector<PageGotView>> ReadBatchGetResponse(
    const grpc::ByteBuffer& message, std::span<const MutableByteSpan> rooms) {
  grpc::ByteBuffer view(message);  // A reference: the reader wants it mutable.
  grpc::ProtoBufferReader reader(&view);
  if (!reader.status().ok()) return Malformed("no bytes");
  CodedInputStream in(&reader);
  std::vector<PageGotView> pages;
  pages.reserve(rooms.size());
  while (const uint32_t tag = in.ReadTag()) {
    if (tag != kPagesTag) {
      if (!WireFormatLite::SkipField(&in, tag)) return Malformed("field");
      continue;
    }
    if (pages.size() == rooms.size()) return Malformed("more pages than were asked for");
    uint32_t bytes = 0;
    if (!in.ReadVarint32(&bytes) || bytes > INT32_MAX) return Malformed("length");
    const CodedInputStream::Limit limit = in.PushLimit(static_cast<int>(bytes));
    const MutableByteSpan room = rooms[pages.size()];
    KVTIER_RETURN_IF_ERROR(ReadPage(in, room, pages.emplace_back()));
    in.PopLimit(limit);
  }
  if (!in.ConsumedEntireMessage()) return Malformed("end");
  if (pages.size() != rooms.size()) return Malformed("fewer pages than were asked for");
  return pages;
}

}  // namespace kvtier
