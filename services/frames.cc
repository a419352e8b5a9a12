#include "services/frames.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <string>
#include <utility>

#include <google/protobuf/io/zero_copy_stream_impl_lite.h>
#include <grpcpp/impl/codegen/proto_utils.h>
#include <grpcpp/impl/codegen/rpc_method.h>

#include "absl/strings/str_cat.h"
#include "base/log.h"
#include "base/status_macros.h"

namespace kvtier {
namespace {

// Field numbers of store.proto; frames_test compares with the generated classes.
constexpr uint32_t kFetchResponseFrame = 2;
constexpr uint32_t kPutRequestChunk = 2;
constexpr uint32_t kPayload = 15;

enum WireType : uint32_t { kVarint = 0, kFixed64 = 1, kLengthDelimited = 2, kFixed32 = 5 };

// The largest prefix of ours: two tags and lengths, three fields.
constexpr size_t kPrefixBytesMax = 64;

// Appends protobuf fields to a small buffer. Zero is not written, as the generated classes do.
class PrefixWriter {
 public:
  void Varint(uint64_t value) {
    while (value >= 0x80) {
      Byte(static_cast<uint8_t>(value | 0x80));
      value >>= 7;
    }
    Byte(static_cast<uint8_t>(value));
  }
  void Tag(uint32_t field, WireType type) { Varint(field << 3 | type); }
  void NumberField(uint32_t field, uint64_t value) {
    if (value == 0) return;
    Tag(field, kVarint);
    Varint(value);
  }
  void Append(const PrefixWriter& other) {
    for (size_t i = 0; i < other.size_; ++i) Byte(other.bytes_[i]);
  }
  const uint8_t* data() const { return bytes_.data(); }
  size_t size() const { return size_; }

 private:
  void Byte(uint8_t byte) {
    KVTIER_CHECK_LT(size_, bytes_.size());
    bytes_[size_++] = byte;
  }
  std::array<uint8_t, kPrefixBytesMax> bytes_{};
  size_t size_ = 0;
};

// `fields` are those of the inner message before its payload, in order, starting at number 1.
grpc::ByteBuffer MakePayloadMessage(uint32_t outer_field, std::span<const uint64_t> fields,
                                    const SegmentRef& segment, SegmentEntry::ByteRange range) {
  KVTIER_CHECK_LT(range.begin, range.end);
  KVTIER_CHECK_LE(range.end, segment.bytes().size());
  const uint64_t bytes = range.end - range.begin;

  PrefixWriter inner;
  for (size_t i = 0; i < fields.size(); ++i) {
    inner.NumberField(static_cast<uint32_t>(i + 1), fields[i]);
  }
  inner.Tag(kPayload, kLengthDelimited);
  inner.Varint(bytes);
  PrefixWriter prefix;
  prefix.Tag(outer_field, kLengthDelimited);
  prefix.Varint(inner.size() + bytes);
  prefix.Append(inner);

  // gRPC wants a pointer to mutable memory but only reads what it sends.
  auto* const data = const_cast<std::byte*>(segment.bytes().data() + range.begin);
  auto* const pin = new SegmentRef(segment);
  const grpc::Slice slices[] = {
      grpc::Slice(prefix.data(), prefix.size()),
      grpc::Slice(
          data, bytes, [](void* held) { delete static_cast<SegmentRef*>(held); }, pin)};
  return grpc::ByteBuffer(slices, std::size(slices));
}

absl::Status Malformed(absl::string_view what) {
  return absl::InvalidArgumentError(absl::StrCat("malformed message: ", what));
}

// Walks protobuf fields across the slices of one message.
class SliceCursor {
 public:
  explicit SliceCursor(const std::vector<grpc::Slice>& slices) : slices_(slices) {
    for (const grpc::Slice& slice : slices_) remaining_ += slice.size();
  }

  uint64_t remaining() const { return remaining_; }

  absl::StatusOr<uint64_t> Varint() {
    uint64_t value = 0;
    for (int shift = 0; shift < 64; shift += 7) {
      if (remaining_ == 0) return Malformed("truncated number");
      const uint8_t byte = Byte();
      value |= static_cast<uint64_t>(byte & 0x7F) << shift;
      if ((byte & 0x80) == 0) return value;
    }
    return Malformed("number of more than ten bytes");
  }

  // A length that is there.
  absl::StatusOr<uint64_t> Length() {
    KVTIER_ASSIGN_OR_RETURN(const uint64_t length, Varint());
    if (length > remaining_) return Malformed("length past the end");
    return length;
  }

  absl::Status SkipField(uint32_t type) {
    switch (type) {
      case kVarint:
        return Varint().status();
      case kFixed64:
        return Skip(8);
      case kFixed32:
        return Skip(4);
      case kLengthDelimited: {
        KVTIER_ASSIGN_OR_RETURN(const uint64_t length, Length());
        return Skip(length);
      }
      default:
        return Malformed("wire type");
    }
  }

  // REQUIRES: count <= remaining(). Calls `piece` for each contiguous part of the next bytes.
  template <typename Piece>
  void Take(uint64_t count, Piece piece) {
    remaining_ -= count;
    while (count > 0) {
      const grpc::Slice& slice = slices_[index_];
      const uint64_t here = std::min<uint64_t>(count, slice.size() - offset_);
      if (here > 0) {
        piece(std::span<const std::byte>(
            reinterpret_cast<const std::byte*>(slice.begin()) + offset_, here));
      }
      offset_ += here;
      count -= here;
      if (offset_ == slice.size()) {
        ++index_;
        offset_ = 0;
      }
    }
  }

 private:
  // REQUIRES: remaining() > 0
  uint8_t Byte() {
    uint8_t byte = 0;
    Take(1, [&](std::span<const std::byte> piece) { byte = static_cast<uint8_t>(piece[0]); });
    return byte;
  }
  absl::Status Skip(uint64_t count) {
    if (count > remaining_) return Malformed("field past the end");
    Take(count, [](std::span<const std::byte>) {});
    return absl::OkStatus();
  }

  const std::vector<grpc::Slice>& slices_;
  size_t index_ = 0;
  uint64_t offset_ = 0;  // Inside slices_[index_].
  uint64_t remaining_ = 0;
};

// The fields 1..N of the inner message, all numbers, and its payload.
template <size_t kFields>
struct PayloadMessage {
  std::array<uint64_t, kFields> fields{};
  WirePayload payload;
};

template <size_t kFields>
absl::Status ReadInner(SliceCursor& cursor, uint64_t length, PayloadMessage<kFields>& out) {
  const uint64_t end = cursor.remaining() - length;  // Of the cursor when the message is read.
  while (cursor.remaining() > end) {
    KVTIER_ASSIGN_OR_RETURN(const uint64_t tag, cursor.Varint());
    const auto field = static_cast<uint32_t>(tag >> 3);
    const auto type = static_cast<uint32_t>(tag & 7);
    if (field == kPayload && type == kLengthDelimited) {
      KVTIER_ASSIGN_OR_RETURN(const uint64_t bytes, cursor.Length());
      if (cursor.remaining() - bytes < end || cursor.remaining() < end) {
        return Malformed("payload past the end");
      }
      out.payload.pieces.clear();  // Of a repeated field the last one counts.
      out.payload.bytes = bytes;
      cursor.Take(bytes,
                  [&](std::span<const std::byte> piece) { out.payload.pieces.push_back(piece); });
    } else if (field >= 1 && field <= kFields && type == kVarint) {
      KVTIER_ASSIGN_OR_RETURN(out.fields[field - 1], cursor.Varint());
    } else {
      KVTIER_RETURN_IF_ERROR(cursor.SkipField(type));
    }
  }
  if (cursor.remaining() != end) return Malformed("field past the end of its message");
  return absl::OkStatus();
}

template <size_t kFields>
absl::StatusOr<std::optional<PayloadMessage<kFields>>> ReadPayloadMessage(
    const grpc::ByteBuffer& message, uint32_t outer_field) {
  PayloadMessage<kFields> out;
  // References to gRPC's buffers, not copies.
  if (!message.Dump(&out.payload.slices).ok()) return Malformed("no bytes");
  SliceCursor cursor(out.payload.slices);
  bool found = false;
  while (cursor.remaining() > 0) {
    KVTIER_ASSIGN_OR_RETURN(const uint64_t tag, cursor.Varint());
    const auto type = static_cast<uint32_t>(tag & 7);
    if (tag >> 3 != outer_field || type != kLengthDelimited) {
      KVTIER_RETURN_IF_ERROR(cursor.SkipField(type));
      continue;
    }
    if (found) return Malformed("two payloads in one message");
    found = true;
    KVTIER_ASSIGN_OR_RETURN(const uint64_t length, cursor.Length());
    KVTIER_RETURN_IF_ERROR(ReadInner(cursor, length, out));
  }
  if (!found) return std::optional<PayloadMessage<kFields>>();
  return std::optional<PayloadMessage<kFields>>(std::move(out));
}

}  // namespace

grpc::ByteBuffer MakeFrame(BandIndex band, LayerIndex layer, uint64_t offset,
                           const SegmentRef& segment, SegmentEntry::ByteRange range) {
  const uint64_t fields[] = {band.value(), layer.value(), offset};
  return MakePayloadMessage(kFetchResponseFrame, fields, segment, range);
}

grpc::ByteBuffer MakePutChunk(uint64_t object_offset, const SegmentRef& segment,
                              SegmentEntry::ByteRange range) {
  const uint64_t fields[] = {object_offset};
  return MakePayloadMessage(kPutRequestChunk, fields, segment, range);
}

absl::StatusOr<std::optional<SegmentFrameView>> ReadFrame(const grpc::ByteBuffer& message) {
  KVTIER_ASSIGN_OR_RETURN(auto parsed, ReadPayloadMessage<3>(message, kFetchResponseFrame));
  if (!parsed.has_value()) return std::optional<SegmentFrameView>();
  // Wider numbers are cut, as the generated classes do.
  return SegmentFrameView{.band = static_cast<uint32_t>(parsed->fields[0]),
                          .layer = static_cast<uint32_t>(parsed->fields[1]),
                          .offset = parsed->fields[2],
                          .payload = std::move(parsed->payload)};
}

absl::StatusOr<std::optional<PutChunkView>> ReadPutChunk(const grpc::ByteBuffer& message) {
  KVTIER_ASSIGN_OR_RETURN(auto parsed, ReadPayloadMessage<1>(message, kPutRequestChunk));
  if (!parsed.has_value()) return std::optional<PutChunkView>();
  return PutChunkView{.object_offset = parsed->fields[0], .payload = std::move(parsed->payload)};
}

grpc::ByteBuffer SerializeToByteBuffer(const google::protobuf::MessageLite& message) {
  const std::string bytes = message.SerializeAsString();
  const grpc::Slice slice(bytes);
  return grpc::ByteBuffer(&slice, 1);
}

absl::Status ParseFromByteBuffer(const grpc::ByteBuffer& buffer,
                                 google::protobuf::MessageLite& message) {
  grpc::ByteBuffer view(buffer);  // A reference: the reader wants it mutable.
  grpc::ProtoBufferReader reader(&view);
  if (!reader.status().ok() || !message.ParseFromZeroCopyStream(&reader)) {
    return absl::InvalidArgumentError(absl::StrCat("not a ", message.GetTypeName(), " message"));
  }
  return absl::OkStatus();
}

std::unique_ptr<grpc::ClientReader<grpc::ByteBuffer>> StartRawFetch(
    grpc::Channel& channel, grpc::ClientContext* context, const v1::FetchRequest& request) {
  const grpc::internal::RpcMethod method("/kvtier.v1.StoreService/Fetch",
                                         grpc::internal::RpcMethod::SERVER_STREAMING);
  return std::unique_ptr<grpc::ClientReader<grpc::ByteBuffer>>(
      grpc::internal::ClientReaderFactory<grpc::ByteBuffer>::Create(&channel, method, context,
                                                                    request));
}

std::unique_ptr<grpc::ClientWriter<grpc::ByteBuffer>> StartRawPut(grpc::Channel& channel,
                                                                  grpc::ClientContext* context,
                                                                  v1::PutResponse* response) {
  const grpc::internal::RpcMethod method("/kvtier.v1.StoreService/Put",
                                         grpc::internal::RpcMethod::CLIENT_STREAMING);
  return std::unique_ptr<grpc::ClientWriter<grpc::ByteBuffer>>(
      grpc::internal::ClientWriterFactory<grpc::ByteBuffer>::Create(&channel, method, context,
                                                                    response));
}

}  // namespace kvtier
