// Messages of StoreService that carry payload, made and read without copying the payload. On the
// wire they are ordinary FetchResponse and PutRequest messages, which any generated class reads and
// writes; only this program's ends avoid the copies (notes: docs/protocol.md, "Zero copy").
//
// Making one: a few bytes of fields, then a slice that references the segment's memory. The slice
// holds a SegmentRef until gRPC has sent the last byte, whoever else lets go of the segment.
// Reading one: the fields are parsed where they lie, the payload is handed out as pieces of gRPC's
// own receive buffers. Any valid encoding is understood (order of fields, unknown fields); hostile
// bytes are refused before anything is allocated for them.
//
// Plain functions: thread-safe.
#ifndef KVTIER_SERVICES_FRAMES_H_
#define KVTIER_SERVICES_FRAMES_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include <google/protobuf/message_lite.h>
#include <grpcpp/channel.h>
#include <grpcpp/client_context.h>
#include <grpcpp/support/byte_buffer.h>
#include <grpcpp/support/slice.h>
#include <grpcpp/support/sync_stream.h>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kvcache/ids.h"
#include "kvcache/manifest.h"
#include "kvcache/segment_ref.h"
#include "kvtier/v1/store.pb.h"

namespace kvtier {

// Bytes inside a received message. The pieces, in order, are the payload; they live while this
// does. Move-only: a piece may lie inside a slice object (gRPC keeps small slices there), which a
// move of the vector leaves in place and a copy would not.
struct WirePayload {
  WirePayload() = default;
  WirePayload(WirePayload&&) = default;
  WirePayload& operator=(WirePayload&&) = default;
  std::vector<grpc::Slice> slices;  // Own the bytes.
  std::vector<std::span<const std::byte>> pieces;
  uint64_t bytes = 0;  // Of all pieces.
};

struct SegmentFrameView {
  uint32_t band = 0;
  uint32_t layer = 0;
  uint64_t offset = 0;
  WirePayload payload;
};

struct PutChunkView {
  uint64_t object_offset = 0;
  WirePayload payload;
};

// Bytes [begin, end) of a segment as a FetchResponse with a frame; `offset` is what the frame says.
// REQUIRES: a range inside the segment, begin < end.
grpc::ByteBuffer MakeFrame(BandIndex band, LayerIndex layer, uint64_t offset,
                           const SegmentRef& segment, SegmentEntry::ByteRange range);
// The same as a PutRequest with a chunk.
grpc::ByteBuffer MakePutChunk(uint64_t object_offset, const SegmentRef& segment,
                              SegmentEntry::ByteRange range);

// Nothing if the message is well formed but has no frame (chunk): parse it as a whole then.
// INVALID_ARGUMENT: not a protobuf message, or two frames in one.
absl::StatusOr<std::optional<SegmentFrameView>> ReadFrame(const grpc::ByteBuffer& message);
absl::StatusOr<std::optional<PutChunkView>> ReadPutChunk(const grpc::ByteBuffer& message);

// Messages without payload.
grpc::ByteBuffer SerializeToByteBuffer(const google::protobuf::MessageLite& message);
// INVALID_ARGUMENT if it does not parse.
absl::Status ParseFromByteBuffer(const grpc::ByteBuffer& buffer,
                                 google::protobuf::MessageLite& message);

// Client calls whose messages we serialize ourselves.
std::unique_ptr<grpc::ClientReader<grpc::ByteBuffer>> StartRawFetch(
    grpc::Channel& channel, grpc::ClientContext* context, const v1::FetchRequest& request);
std::unique_ptr<grpc::ClientWriter<grpc::ByteBuffer>> StartRawPut(grpc::Channel& channel,
                                                                  grpc::ClientContext* context,
                                                                  v1::PutResponse* response);

}  // namespace kvtier

#endif  // KVTIER_SERVICES_FRAMES_H_
