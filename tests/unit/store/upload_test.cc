#include "store/upload.h"

#include <algorithm>
#include <chrono>
#include <future>
#include <random>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/status_matchers.h"
#include "base/sync_point.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/testing/random.h"
#include "tests/testing/test_object.h"

namespace kvtier {
namespace {

class UploadTest : public testing::Test {
 protected:
  UploadTest() : upload_(*Upload::Create(object_.manifest, *memory_)) {}

  absl::Status Append(uint64_t begin, uint64_t end) {
    return upload_->Append(begin, std::span(bytes_).subspan(begin, end - begin));
  }
  void ExpectWhole() {
    ASSERT_TRUE(upload_->complete());
    const std::vector<SegmentRef> segments = upload_->segments();
    ASSERT_EQ(segments.size(), object_.segments.size());
    for (size_t i = 0; i < segments.size(); ++i) {
      EXPECT_TRUE(std::ranges::equal(segments[i].bytes(), object_.segments[i].bytes())) << i;
    }
  }

  const std::shared_ptr<HostMemory> memory_ =
      HostMemory::Create({}, std::make_shared<MemoryBudget>(0));
  const CompressedObject object_ = MakeTestObject({.seed = 3});
  std::vector<std::byte> bytes_ = ConcatenateSegments(object_);
  const uint64_t first_bytes_ = object_.segments[0].bytes().size();
  const std::shared_ptr<Upload> upload_;
};

TEST_F(UploadTest, TakesTheWholeObjectAtOnce) {
  EXPECT_FALSE(upload_->complete());
  KVTIER_ASSERT_OK(Append(0, bytes_.size()));
  EXPECT_EQ(upload_->uploaded_bytes(), bytes_.size());
  ExpectWhole();
}

#ifdef KVTIER_SYNC_POINTS
TEST_F(UploadTest, SaysHowFarItIsWhileItVerifies) {
  KVTIER_ASSERT_OK(Append(0, first_bytes_));
  std::future<uint64_t> uploaded;
  bool has_answered = false;
  {
    const ScopedSyncPoint at("upload.append.before_verify", [&] {
      if (uploaded.valid()) return;
      uploaded = std::async(std::launch::async, [&] { return upload_->uploaded_bytes(); });
      has_answered = uploaded.wait_for(std::chrono::seconds(10)) == std::future_status::ready;
    });
    KVTIER_ASSERT_OK(Append(first_bytes_, bytes_.size()));
  }
  EXPECT_TRUE(has_answered);
  EXPECT_EQ(uploaded.get(), first_bytes_);
}
#endif

TEST_F(UploadTest, TakesPiecesOfAnySizeWithRepeats) {
  const uint64_t seed = TestSeed();
  SCOPED_TRACE(SeedTrace(seed));
  std::mt19937_64 random(seed);
  uint64_t received = 0;
  uint64_t uploaded = 0;
  while (received < bytes_.size()) {
    const uint64_t begin = RandomUniform(random, 0, received);
    const uint64_t end =
        RandomUniform(random, begin, std::min<uint64_t>(bytes_.size(), begin + 5000));
    KVTIER_ASSERT_OK(Append(begin, end));
    received = std::max(received, end);
    EXPECT_GE(upload_->uploaded_bytes(), uploaded);
    EXPECT_LE(upload_->uploaded_bytes(), received);
    uploaded = upload_->uploaded_bytes();
  }
  ExpectWhole();
  KVTIER_EXPECT_OK(Append(0, bytes_.size()));  // All of it repeated.
  ExpectWhole();
}

TEST_F(UploadTest, CountsWholeSegmentsOnly) {
  KVTIER_ASSERT_OK(Append(0, first_bytes_ - 1));
  EXPECT_EQ(upload_->uploaded_bytes(), 0u);
  KVTIER_ASSERT_OK(Append(first_bytes_ - 1, first_bytes_));
  EXPECT_EQ(upload_->uploaded_bytes(), first_bytes_);
}

TEST_F(UploadTest, RefusesAGap) {
  KVTIER_ASSERT_OK(Append(0, 100));
  EXPECT_THAT(Append(101, 102),
              StatusIs(absl::StatusCode::kInvalidArgument, testing::HasSubstr("gap between 100")));
  KVTIER_EXPECT_OK(Append(100, 102));
}

TEST_F(UploadTest, RefusesWhatReachesPastTheEnd) {
  std::vector<std::byte> more = bytes_;
  more.push_back(std::byte{0});
  EXPECT_THAT(upload_->Append(0, more), StatusIs(absl::StatusCode::kInvalidArgument,
                                                 testing::HasSubstr("past the object's end")));
  EXPECT_THAT(upload_->Append(~uint64_t{0}, more), StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_EQ(upload_->uploaded_bytes(), 0u);
}

TEST_F(UploadTest, AWrongSegmentIsNamedAndCanBeSentAgain) {
  KVTIER_ASSERT_OK(Append(0, first_bytes_));
  bytes_[first_bytes_ + 7] ^= std::byte{1};
  EXPECT_THAT(
      Append(first_bytes_, bytes_.size()),
      StatusIs(absl::StatusCode::kInvalidArgument,
               testing::AllOf(testing::HasSubstr("band 0, layer 1"), testing::HasSubstr("head"))));
  EXPECT_EQ(upload_->uploaded_bytes(), first_bytes_);
  EXPECT_FALSE(upload_->complete());
  bytes_[first_bytes_ + 7] ^= std::byte{1};
  KVTIER_ASSERT_OK(Append(first_bytes_, bytes_.size()));
  ExpectWhole();
}

TEST_F(UploadTest, AWrongHeadIsRefusedBeforeItsSegmentIsWhole) {
  const SegmentEntry& entry = object_.manifest->segment(BandIndex(0), LayerIndex(1));
  ASSERT_GT(entry.heads.size(), 1u);
  const uint64_t head_end = first_bytes_ + entry.heads[0].encoded_bytes;
  KVTIER_ASSERT_OK(Append(0, first_bytes_));
  bytes_[first_bytes_] ^= std::byte{1};
  KVTIER_ASSERT_OK(Append(first_bytes_, head_end - 1));
  EXPECT_THAT(
      Append(head_end - 1, head_end),
      StatusIs(absl::StatusCode::kInvalidArgument,
               testing::AllOf(testing::HasSubstr("layer 1"), testing::HasSubstr("head 0"))));
  EXPECT_EQ(upload_->uploaded_bytes(), first_bytes_);
  EXPECT_THAT(Append(head_end, bytes_.size()),
              StatusIs(absl::StatusCode::kInvalidArgument, testing::HasSubstr("gap")));
  // Sent again from the segment's beginning, in other pieces, with a good segment's bytes first.
  bytes_[first_bytes_] ^= std::byte{1};
  for (uint64_t at = 0; at < bytes_.size(); at += 7) {
    KVTIER_ASSERT_OK(Append(at, std::min<uint64_t>(bytes_.size(), at + 7)));
  }
  ExpectWhole();
}

TEST_F(UploadTest, RefusesWhatIsIntactButNoSegment) {
  for (const uint32_t band : {0u, 2u, 5u}) {
    SCOPED_TRACE(band);
    const CompressedObject wrong = WithWrongPosition(object_, BandIndex(band), LayerIndex(1));
    KVTIER_ASSERT_OK_AND_ASSIGN(const auto upload, Upload::Create(wrong.manifest, *memory_));
    EXPECT_THAT(
        upload->Append(0, ConcatenateSegments(wrong)),
        StatusIs(absl::StatusCode::kInvalidArgument,
                 testing::AllOf(testing::HasSubstr(absl::StrCat("band ", band, ", layer 1")),
                                testing::HasSubstr("position"))));
    EXPECT_FALSE(upload->complete());
  }
}

TEST_F(UploadTest, PassesEmptySegments) {
  const CompressedObject tiny = MakeTestObject(
      {.layers = 2, .kv_heads = 1, .system_tokens = 0, .context_tokens = 3, .seed = 5});
  KVTIER_ASSERT_OK_AND_ASSIGN(const auto upload, Upload::Create(tiny.manifest, *memory_));
  KVTIER_ASSERT_OK(upload->Append(0, ConcatenateSegments(tiny)));
  EXPECT_TRUE(upload->complete());
}

}  // namespace
}  // namespace kvtier
