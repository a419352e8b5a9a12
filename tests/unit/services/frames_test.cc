#include "services/frames.h"

#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "base/bytes.h"
#include "base/status_matchers.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/testing/random.h"

namespace kvtier {
namespace {

using ::testing::HasSubstr;

// A segment, and whether somebody still holds it.
struct Pinned {
  explicit Pinned(size_t bytes) {
    AlignedBytes content = AlignedBytes::Allocate(bytes);
    for (size_t i = 0; i < bytes; ++i) content.data()[i] = static_cast<std::byte>(i * 7 + 1);
    auto owner = std::make_shared<const AlignedBytes>(std::move(content));
    alive = owner;
    const std::span<const std::byte> view = owner->span();
    segment = SegmentRef(std::move(owner), view);
  }
  SegmentRef segment;
  std::weak_ptr<const AlignedBytes> alive;
};

std::string Flatten(const grpc::ByteBuffer& buffer) {
  std::vector<grpc::Slice> slices;
  EXPECT_TRUE(buffer.Dump(&slices).ok());
  std::string bytes;
  for (const grpc::Slice& slice : slices) {
    bytes.append(reinterpret_cast<const char*>(slice.begin()), slice.size());
  }
  return bytes;
}

std::string Flatten(const WirePayload& payload) {
  std::string bytes;
  for (const auto piece : payload.pieces) bytes += ToString(piece);
  return bytes;
}

// The same bytes in slices of at most `slice_bytes`, as a transport may deliver them. Each has an
// owner: without, gRPC keeps small slices in themselves and a buffer joins them.
grpc::ByteBuffer Scatter(absl::string_view bytes, size_t slice_bytes) {
  std::vector<grpc::Slice> slices;
  for (size_t begin = 0; begin < bytes.size(); begin += slice_bytes) {
    const absl::string_view piece = bytes.substr(begin, slice_bytes);
    auto* const owned = new std::string(piece);
    slices.emplace_back(
        owned->data(), owned->size(), [](void* held) { delete static_cast<std::string*>(held); },
        owned);
  }
  return grpc::ByteBuffer(slices.data(), slices.size());
}

TEST(FramesTest, AFrameIsAnOrdinaryFetchResponse) {
  const Pinned pinned(4096);
  for (const uint64_t offset : {uint64_t{0}, uint64_t{300}, uint64_t{1} << 40}) {
    const std::string wire =
        Flatten(MakeFrame(BandIndex(2), LayerIndex(31), offset, pinned.segment, {64, 1024}));
    v1::FetchResponse expected;
    v1::SegmentFrame& frame = *expected.mutable_frame();
    frame.set_band(2);
    frame.set_layer(31);
    frame.set_offset(offset);
    frame.set_payload(std::string(AsStringView(pinned.segment.bytes().subspan(64, 960))));
    EXPECT_EQ(wire, expected.SerializeAsString());
  }
}

TEST(FramesTest, AChunkIsAnOrdinaryPutRequest) {
  const Pinned pinned(512);
  v1::PutRequest expected;
  expected.mutable_chunk()->set_object_offset(7);
  expected.mutable_chunk()->set_payload(std::string(AsStringView(pinned.segment.bytes())));
  EXPECT_EQ(Flatten(MakePutChunk(7, pinned.segment, {0, 512})), expected.SerializeAsString());
}

TEST(FramesTest, ReadsWhatTheGeneratedClassWritesHoweverItIsSliced) {
  v1::FetchResponse message;
  v1::SegmentFrame& frame = *message.mutable_frame();
  frame.set_band(5);
  frame.set_layer(300);
  frame.set_offset(uint64_t{1} << 33);
  frame.set_payload(std::string(1000, 'p') + "end");
  const std::string wire = message.SerializeAsString();
  for (const size_t slice_bytes : {size_t{1}, size_t{2}, size_t{3}, size_t{64}, wire.size()}) {
    SCOPED_TRACE(slice_bytes);
    KVTIER_ASSERT_OK_AND_ASSIGN(const auto view, ReadFrame(Scatter(wire, slice_bytes)));
    ASSERT_TRUE(view.has_value());
    EXPECT_EQ(view->band, 5u);
    EXPECT_EQ(view->layer, 300u);
    EXPECT_EQ(view->offset, uint64_t{1} << 33);
    EXPECT_EQ(view->payload.bytes, 1003u);
    EXPECT_EQ(Flatten(view->payload), frame.payload());
  }
}

TEST(FramesTest, UnknownFieldsAndAnyOrderAreUnderstood) {
  // offset = 9 after the payload, an unknown varint (field 9), fixed64 (10), fixed32 (11) and bytes
  // (12), inside and outside.
  const std::string unknown = std::string("\x48\x96\x01", 3) + std::string("\x51", 1) +
                              std::string(8, 'a') + std::string("\x5d", 1) + std::string(4, 'b') +
                              std::string("\x62\x02zz", 4);
  const std::string inner = std::string("\x7a\x03pay", 5) + unknown + std::string("\x18\x09", 2);
  const std::string wire = unknown + "\x12" + static_cast<char>(inner.size()) + inner + unknown;
  v1::FetchResponse message;
  ASSERT_TRUE(message.ParseFromString(wire)) << "the generated class reads it too";
  KVTIER_ASSERT_OK_AND_ASSIGN(const auto view, ReadFrame(Scatter(wire, 2)));
  ASSERT_TRUE(view.has_value());
  EXPECT_EQ(view->offset, 9u);
  EXPECT_EQ(Flatten(view->payload), "pay");
}

TEST(FramesTest, AMessageWithoutAFrameIsNoError) {
  v1::FetchResponse header;
  header.mutable_header()->set_band_count(3);
  KVTIER_ASSERT_OK_AND_ASSIGN(const auto view, ReadFrame(SerializeToByteBuffer(header)));
  EXPECT_FALSE(view.has_value());
  KVTIER_ASSERT_OK_AND_ASSIGN(const auto empty,
                              ReadFrame(SerializeToByteBuffer(v1::FetchResponse())));
  EXPECT_FALSE(empty.has_value());
}

TEST(FramesTest, HostileBytesAreRefused) {
  const std::pair<const char*, std::string> cases[] = {
      {"frame_length_past_the_end", std::string("\x12\x05\x08\x01", 4)},
      {"payload_length_past_the_frame", std::string("\x12\x03\x7a\x7f"
                                                    "a"
                                                    "bbbbbbbb",
                                                    13)},
      {"payload_runs_into_the_next_field", std::string("\x12\x03\x7a\x03"
                                                       "a"
                                                       "\x48\x01",
                                                       7)},
      {"length_overflow", std::string("\x12\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", 11)},
      {"endless_number", std::string(20, '\xff')},
      {"truncated_number", std::string("\x12\x02\x08\x80", 4)},
      {"group", std::string("\x13", 1)},
      {"two_frames", std::string("\x12\x02\x08\x01\x12\x02\x08\x02", 8)},
  };
  for (const auto& [name, wire] : cases) {
    SCOPED_TRACE(name);
    EXPECT_THAT(ReadFrame(Scatter(wire, 3)), StatusIs(absl::StatusCode::kInvalidArgument));
    EXPECT_THAT(ReadPutChunk(Scatter(wire, 100)), StatusIs(absl::StatusCode::kInvalidArgument));
  }
}

TEST(FramesTest, AgreesWithTheGeneratedClassOnDamagedMessages) {
  const uint64_t seed = TestSeed();
  SCOPED_TRACE(SeedTrace(seed));
  std::mt19937_64 random(seed);
  v1::FetchResponse message;
  message.mutable_frame()->set_band(1);
  message.mutable_frame()->set_layer(2);
  message.mutable_frame()->set_offset(3);
  message.mutable_frame()->set_payload("0123456789");
  const std::string original = message.SerializeAsString();
  for (int round = 0; round < 20'000; ++round) {
    std::string wire = original;
    for (uint64_t flips = RandomUniform(random, 1, 3); flips > 0; --flips) {
      wire[RandomUniform(random, 0, wire.size() - 1)] ^=
          static_cast<char>(1 << RandomUniform(random, 0, 7));
    }
    v1::FetchResponse parsed;
    const bool valid = parsed.ParseFromString(wire);
    const auto view = ReadFrame(Scatter(wire, RandomUniform(random, 1, wire.size())));
    // Being stricter is allowed (groups, repeated frames); being laxer is not needed, since the
    // wire has no other reader of a frame, but what both accept must mean the same.
    if (!valid || !view.ok() || !view->has_value()) continue;
    ASSERT_EQ((*view)->band, parsed.frame().band());
    ASSERT_EQ((*view)->layer, parsed.frame().layer());
    ASSERT_EQ((*view)->offset, parsed.frame().offset());
    ASSERT_EQ(Flatten((*view)->payload), parsed.frame().payload());
  }
}

TEST(FramesTest, AFramePinsTheSegmentUntilItsLastUser) {
  auto pinned = std::make_unique<Pinned>(1 << 20);
  const std::weak_ptr<const AlignedBytes> alive = pinned->alive;
  const std::byte* const memory = pinned->segment.bytes().data();
  grpc::ByteBuffer buffer =
      MakeFrame(BandIndex(0), LayerIndex(0), 0, pinned->segment, {0, 1 << 20});
  pinned.reset();
  EXPECT_FALSE(alive.expired()) << "the message still needs the bytes";
  {
    KVTIER_ASSERT_OK_AND_ASSIGN(const auto view, ReadFrame(buffer));
    buffer.Clear();
    ASSERT_EQ(view->payload.pieces.size(), 1u);
    EXPECT_EQ(view->payload.pieces[0].data(), memory) << "the payload was copied";
    EXPECT_FALSE(alive.expired());
  }
  EXPECT_TRUE(alive.expired()) << "nobody uses the bytes any more";
}

TEST(FramesTest, ParsesOnlyWholeMessages) {
  v1::PutRequest message;
  EXPECT_THAT(ParseFromByteBuffer(Scatter("\xff\xff\xff", 1), message),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("PutRequest")));
}

}  // namespace
}  // namespace kvtier
