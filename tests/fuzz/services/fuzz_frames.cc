// Any bytes in any slices as a received FetchResponse and PutRequest: ReadFrame and ReadPutChunk
// refuse them or stay inside them, give the same however the bytes are cut, and mean what the
// generated classes mean.
//
// Input: u8 cuts, u8 length[cuts], then the message. Its first length[0] bytes are one slice, the
// next length[1] another (0: an empty one), and so on; what is left is the last.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/aligned_bytes.h"
#include "base/bytes.h"
#include "base/log.h"
#include "kvtier/v1/store.pb.h"
#include "services/frames.h"

namespace kvtier {
namespace {

// A slice with exactly these bytes on the heap, so that ASan sees a read past its end. gRPC copies
// small slices into themselves, and a buffer then joins them: not one with an owner.
grpc::Slice SliceOf(ByteSpan bytes) {
  auto* const copy = new std::byte[bytes.size()];
  std::copy(bytes.begin(), bytes.end(), copy);
  return grpc::Slice(copy, bytes.size(),
                     [](void* owned) { delete[] static_cast<std::byte*>(owned); });
}

grpc::ByteBuffer Whole(ByteSpan message) {
  const grpc::Slice slice = SliceOf(message);
  return grpc::ByteBuffer(&slice, 1);
}

grpc::ByteBuffer Cut(ByteSpan message, ByteSpan lengths) {
  std::vector<grpc::Slice> slices;
  for (const std::byte length : lengths) {
    const size_t bytes = std::min<size_t>(std::to_integer<uint8_t>(length), message.size());
    slices.push_back(SliceOf(message.first(bytes)));
    message = message.subspan(bytes);
  }
  slices.push_back(SliceOf(message));
  return grpc::ByteBuffer(slices.data(), slices.size());
}

// The payload, every byte of which is read; it lies in the slices that hold it.
std::string Flatten(const WirePayload& payload) {
  std::string bytes;
  for (const auto piece : payload.pieces) {
    const auto holds = [&piece](const grpc::Slice& slice) {
      const auto* const begin = reinterpret_cast<const std::byte*>(slice.begin());
      return piece.data() >= begin && piece.data() + piece.size() <= begin + slice.size();
    };
    KVTIER_CHECK(std::any_of(payload.slices.begin(), payload.slices.end(), holds));
    bytes += ToString(piece);
  }
  KVTIER_CHECK_EQ(bytes.size(), payload.bytes);
  return bytes;
}

// What a reader said, without the memory it lies in.
struct Seen {
  absl::StatusCode code = absl::StatusCode::kOk;
  bool payload_there = false;
  std::vector<uint64_t> numbers;
  std::string payload;
  friend bool operator==(const Seen&, const Seen&) = default;
};

std::vector<uint64_t> NumbersOf(const SegmentFrameView& v) { return {v.band, v.layer, v.offset}; }
std::vector<uint64_t> NumbersOf(const PutChunkView& v) { return {v.object_offset}; }
std::vector<uint64_t> NumbersOf(const v1::SegmentFrame& f) {
  return {f.band(), f.layer(), f.offset()};
}
std::vector<uint64_t> NumbersOf(const v1::PutChunk& c) { return {c.object_offset()}; }

template <typename View>
Seen Look(const absl::StatusOr<std::optional<View>>& view) {
  Seen seen;
  seen.code = view.status().code();
  if (!view.ok()) {
    KVTIER_CHECK(seen.code == absl::StatusCode::kInvalidArgument) << view.status();
    return seen;
  }
  seen.payload_there = view->has_value();
  if (!seen.payload_there) return seen;
  seen.numbers = NumbersOf(**view);
  seen.payload = Flatten((*view)->payload);
  return seen;
}

// `inner` is what the generated class says, null where it has none. Being stricter is allowed.
template <typename Inner>
void CheckAgrees(const Seen& seen, const Inner* inner) {
  if (seen.code != absl::StatusCode::kOk || inner == nullptr) return;
  KVTIER_CHECK(seen.payload_there);
  KVTIER_CHECK(seen.numbers == NumbersOf(*inner));
  KVTIER_CHECK(seen.payload == inner->payload());
}

SegmentRef SegmentOf(const std::string& bytes) {
  return SegmentRef::Own(AlignedBytes::Copy(AsBytes(bytes)));
}

// What was understood can be sent again and is understood the same way.
void CheckFrameAgain(const Seen& seen) {
  if (!seen.payload_there || seen.payload.empty()) return;
  const grpc::ByteBuffer again =
      MakeFrame(BandIndex(static_cast<uint32_t>(seen.numbers[0])),
                LayerIndex(static_cast<uint32_t>(seen.numbers[1])), seen.numbers[2],
                SegmentOf(seen.payload), {0, seen.payload.size()});
  KVTIER_CHECK(Look(ReadFrame(again)) == seen);
}
void CheckChunkAgain(const Seen& seen) {
  if (!seen.payload_there || seen.payload.empty()) return;
  const grpc::ByteBuffer again =
      MakePutChunk(seen.numbers[0], SegmentOf(seen.payload), {0, seen.payload.size()});
  KVTIER_CHECK(Look(ReadPutChunk(again)) == seen);
}

void Receive(ByteSpan message, const grpc::ByteBuffer& buffer) {
  const std::string text = ToString(message);
  v1::FetchResponse response;
  const bool is_response = response.ParseFromString(text);
  v1::FetchResponse parsed_response;
  KVTIER_CHECK_EQ(ParseFromByteBuffer(buffer, parsed_response).ok(), is_response);
  const Seen frame = Look(ReadFrame(buffer));
  KVTIER_CHECK(frame == Look(ReadFrame(Whole(message))));
  CheckAgrees(frame, is_response && response.has_frame() ? &response.frame() : nullptr);
  CheckFrameAgain(frame);

  v1::PutRequest request;
  const bool is_request = request.ParseFromString(text);
  v1::PutRequest parsed_request;
  KVTIER_CHECK_EQ(ParseFromByteBuffer(buffer, parsed_request).ok(), is_request);
  const Seen chunk = Look(ReadPutChunk(buffer));
  KVTIER_CHECK(chunk == Look(ReadPutChunk(Whole(message))));
  CheckAgrees(chunk, is_request && request.has_chunk() ? &request.chunk() : nullptr);
  CheckChunkAgain(chunk);
}

}  // namespace
}  // namespace kvtier

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  kvtier::ByteSpan bytes = kvtier::AsBytes(std::span(data, size));
  if (bytes.empty()) return 0;
  const size_t cuts = std::min<size_t>(data[0], size - 1);
  const kvtier::ByteSpan message = bytes.subspan(1 + cuts);
  kvtier::Receive(message, kvtier::Cut(message, bytes.subspan(1, cuts)));
  return 0;
}
