#include "kvcache/segment_filler.h"

#include <algorithm>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/aligned_bytes.h"
#include "base/status_matchers.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/unit/kvcache/random_object.h"

namespace kvtier {
namespace {

using ::testing::HasSubstr;

class SegmentFillerTest : public ::testing::Test {
 protected:
  SegmentFillerTest() {
    ObjectShape shape = TinyShape();
    shape.geometry.kv_heads = 4;
    shape.context_tokens = 60;
    object_ = MakeRandomObject(shape);
  }
  const SegmentEntry& entry() const {
    return object_.manifest->segment(BandIndex(0), LayerIndex(1));
  }
  ByteSpan bytes() const { return object_.segment(BandIndex(0), LayerIndex(1)).bytes(); }

  // Fills `out` in pieces of `piece_bytes`; the first error ends it.
  static absl::Status Fill(SegmentFiller& filler, ByteSpan from, size_t piece_bytes) {
    while (!from.empty()) {
      const size_t count = std::min(piece_bytes, from.size());
      if (const absl::Status status = filler.Append(from.first(count)); !status.ok()) return status;
      from = from.subspan(count);
    }
    return filler.Append({});
  }

  CompressedObject object_;
};

TEST_F(SegmentFillerTest, PutsPiecesOfAnySizeTogether) {
  for (const size_t piece : {size_t{1}, size_t{7}, size_t{64}, bytes().size()}) {
    AlignedBytes out = AlignedBytes::Allocate(bytes().size());
    SegmentFiller filler(entry(), HeadRange{0, 4}, out.span(), SegmentFiller::Check::kVerify);
    EXPECT_FALSE(filler.done());
    KVTIER_EXPECT_OK(Fill(filler, bytes(), piece));
    EXPECT_TRUE(filler.done());
    EXPECT_EQ(filler.filled(), bytes().size());
    EXPECT_TRUE(std::ranges::equal(out.span(), bytes()));
  }
}

TEST_F(SegmentFillerTest, NamesTheHeadWhoseByteWasFlipped) {
  uint64_t begin = 0;
  for (uint32_t head = 0; head < 4; ++head) {
    const uint64_t size = entry().heads[head].encoded_bytes;
    ASSERT_GT(size, 0u);
    for (const uint64_t at : {begin, begin + size - 1}) {
      AlignedBytes damaged = AlignedBytes::Copy(bytes());
      damaged.data()[at] ^= std::byte{1};
      AlignedBytes out = AlignedBytes::Allocate(bytes().size());
      SegmentFiller filler(entry(), HeadRange{0, 4}, out.span(), SegmentFiller::Check::kVerify);
      const absl::Status status = Fill(filler, damaged.span(), 13);
      EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss);
      EXPECT_THAT(status.message(), HasSubstr(absl::StrCat("head ", head)));
    }
    begin += size;
  }
}

TEST_F(SegmentFillerTest, TakesTheBytesOfSomeHeads) {
  const SegmentEntry::ByteRange range = entry().HeadBytes(HeadRange{1, 3});
  AlignedBytes out = AlignedBytes::Allocate(range.end - range.begin);
  SegmentFiller filler(entry(), HeadRange{1, 3}, out.span(), SegmentFiller::Check::kVerify);
  KVTIER_EXPECT_OK(Fill(filler, bytes().subspan(range.begin, range.end - range.begin), 100));
  EXPECT_TRUE(filler.done());
}

TEST_F(SegmentFillerTest, TrustingCopiesDamagedBytesAsTheyAre) {
  AlignedBytes damaged = AlignedBytes::Copy(bytes());
  damaged.data()[3] ^= std::byte{1};
  AlignedBytes out = AlignedBytes::Allocate(bytes().size());
  SegmentFiller filler(entry(), HeadRange{0, 4}, out.span(), SegmentFiller::Check::kTrust);
  KVTIER_EXPECT_OK(Fill(filler, damaged.span(), 50));
  EXPECT_TRUE(std::ranges::equal(out.span(), damaged.span()));
}

TEST_F(SegmentFillerTest, HeadsWithoutRowsAreJudgedToo) {
  SegmentEntry entry;
  entry.heads.resize(3);  // No rows, no bytes, the checksum of nothing.
  SegmentFiller filler(entry, HeadRange{0, 3}, {}, SegmentFiller::Check::kVerify);
  EXPECT_TRUE(filler.done());
  KVTIER_EXPECT_OK(filler.Append({}));
  entry.heads[2].crc32c = Crc32c(1);
  SegmentFiller wrong(entry, HeadRange{0, 3}, {}, SegmentFiller::Check::kVerify);
  EXPECT_EQ(wrong.Append({}).code(), absl::StatusCode::kDataLoss);
}

}  // namespace
}  // namespace kvtier
