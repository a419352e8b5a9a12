#include "services/attachments.h"

#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "base/status_macros.h"
#include "base/status_matchers.h"
#include "compressor/reference_backend.h"
#include "gtest/gtest.h"
#include "services/metrics.h"
#include "services/status_grpc.h"
#include "tests/testing/test_object.h"

namespace kvtier {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

std::shared_ptr<const ResidentCache> MakeCache(uint64_t seed, uint32_t band_count,
                                               uint64_t upload_seed = 0) {
  const CompressedObject object = MakeTestObject({.seed = seed, .upload_seed = upload_seed});
  const Geometry& geometry = object.manifest->geometry;
  std::vector<SegmentRef> segments(object.segments.begin(),
                                   object.segments.begin() + band_count * geometry.layer_count());
  static Backend& host = *MakeReferenceBackend().release();
  return *ResidentCache::Create(
      host, *RaggedCache::Create(object.manifest, band_count, {0, geometry.kv_heads},
                                 std::move(segments)));
}

// As a worker does.
absl::StatusOr<Attachments::Entry> Attach(Attachments& attachments,
                                          std::shared_ptr<const ResidentCache> cache) {
  KVTIER_ASSIGN_OR_RETURN(Attachments::Room room, attachments.Reserve(cache->bytes()));
  return attachments.Add(std::move(cache), std::move(room));
}

class AttachmentsTest : public ::testing::Test {
 protected:
  Attachments& Make(Attachments::Options options) {
    attachments_ = std::make_unique<Attachments>(options, metrics_);
    return *attachments_;
  }

  Metrics metrics_;
  std::unique_ptr<Attachments> attachments_;
};

TEST_F(AttachmentsTest, SharesOneCacheAmongEqualAttaches) {
  Attachments& attachments = Make({});
  const auto cache = MakeCache(1, 3);
  KVTIER_ASSERT_OK_AND_ASSIGN(const Attachments::Entry first, Attach(attachments, cache));
  KVTIER_ASSERT_OK_AND_ASSIGN(const Attachments::Entry second,
                              Attach(attachments, MakeCache(1, 3)));
  KVTIER_ASSERT_OK_AND_ASSIGN(
      const Attachments::Entry third,
      attachments.FindAndReference(cache->manifest().key, cache->manifest().upload_id, 3));
  EXPECT_EQ(second.id, first.id);
  EXPECT_EQ(second.cache, cache);
  EXPECT_EQ(third.id, first.id);
  EXPECT_EQ(third.references, 3);
  EXPECT_EQ(metrics_.worker_attached_objects.Value(), 1);
  EXPECT_EQ(metrics_.worker_attached_bytes.Value(), static_cast<double>(cache->bytes()));
}

TEST_F(AttachmentsTest, KeepsRatiosAndUploadsApart) {
  Attachments& attachments = Make({});
  KVTIER_ASSERT_OK_AND_ASSIGN(const Attachments::Entry whole, Attach(attachments, MakeCache(1, 6)));
  KVTIER_ASSERT_OK_AND_ASSIGN(const Attachments::Entry less, Attach(attachments, MakeCache(1, 3)));
  KVTIER_ASSERT_OK_AND_ASSIGN(const Attachments::Entry other,
                              Attach(attachments, MakeCache(1, 6, 9)));
  EXPECT_NE(whole.id, less.id);
  EXPECT_NE(whole.id, other.id);
  EXPECT_EQ(metrics_.worker_attached_objects.Value(), 3);
}

TEST_F(AttachmentsTest, FindsNothingThatIsNotAttached) {
  Attachments& attachments = Make({});
  const auto cache = MakeCache(1, 3);
  KVTIER_ASSERT_OK(Attach(attachments, cache));
  const Manifest& manifest = cache->manifest();
  EXPECT_THAT(attachments.FindAndReference(manifest.key, manifest.upload_id, 2),
              StatusIs(absl::StatusCode::kNotFound));
  EXPECT_THAT(attachments.FindAndReference(manifest.key, UploadId(), 3),
              StatusIs(absl::StatusCode::kNotFound));
  EXPECT_THAT(attachments.FindAndReference(Key(), manifest.upload_id, 3),
              StatusIs(absl::StatusCode::kNotFound));
  EXPECT_THAT(attachments.Remove(99), StatusIs(absl::StatusCode::kNotFound, HasSubstr("99")));
  EXPECT_THAT(attachments.BeginAsk(99), StatusIs(absl::StatusCode::kNotFound, HasSubstr("99")));
}

TEST_F(AttachmentsTest, LetsGoOfACacheAtItsLastDetach) {
  Attachments& attachments = Make({});
  auto cache = MakeCache(1, 3);
  const std::weak_ptr<const ResidentCache> watch = cache;
  uint64_t id = 0;
  {
    KVTIER_ASSERT_OK_AND_ASSIGN(const Attachments::Entry entry, Attach(attachments, cache));
    id = entry.id;
  }
  KVTIER_ASSERT_OK(Attach(attachments, std::move(cache)));
  KVTIER_EXPECT_OK(attachments.Remove(id));
  EXPECT_FALSE(watch.expired());
  KVTIER_EXPECT_OK(attachments.Remove(id));
  EXPECT_TRUE(watch.expired());
  EXPECT_THAT(attachments.Remove(id), StatusIs(absl::StatusCode::kNotFound));
  EXPECT_EQ(metrics_.worker_attached_objects.Value(), 0);
  EXPECT_EQ(metrics_.worker_attached_bytes.Value(), 0);
}

TEST_F(AttachmentsTest, NeverGivesAnIdTwice) {
  Attachments& attachments = Make({});
  KVTIER_ASSERT_OK_AND_ASSIGN(const Attachments::Entry first, Attach(attachments, MakeCache(1, 3)));
  KVTIER_ASSERT_OK(attachments.Remove(first.id));
  KVTIER_ASSERT_OK_AND_ASSIGN(const Attachments::Entry second,
                              Attach(attachments, MakeCache(1, 3)));
  EXPECT_NE(second.id, first.id);
}

TEST_F(AttachmentsTest, RefusesMoreObjectsThanItMayHold) {
  Attachments& attachments = Make({.objects_max = 1});
  KVTIER_ASSERT_OK(Attach(attachments, MakeCache(1, 3)));
  const absl::Status full = attachments.Reserve(0).status();
  EXPECT_THAT(full, StatusIs(absl::StatusCode::kResourceExhausted, HasSubstr("holds 1 objects")));
  EXPECT_GT(RetryAfter(full), absl::ZeroDuration());
  EXPECT_THAT(Attach(attachments, MakeCache(2, 3)),
              StatusIs(absl::StatusCode::kResourceExhausted, HasSubstr("holds 1 objects")));
  EXPECT_EQ(attachments.List().size(), 1);
}

TEST_F(AttachmentsTest, RefusesMoreBytesThanItMayHold) {
  const auto cache = MakeCache(1, 3);
  const uint64_t limit = cache->bytes() + 10;
  Attachments& attachments = Make({.bytes_max = limit});
  KVTIER_EXPECT_OK(attachments.Reserve(limit));
  const absl::Status too_large = attachments.Reserve(limit + 1).status();
  EXPECT_THAT(too_large, StatusIs(absl::StatusCode::kResourceExhausted));
  EXPECT_EQ(RetryAfter(too_large), std::nullopt) << "no detach makes room for it";
  EXPECT_THAT(attachments.Reserve(UINT64_MAX), StatusIs(absl::StatusCode::kResourceExhausted));
  KVTIER_ASSERT_OK_AND_ASSIGN(const Attachments::Entry entry, Attach(attachments, cache));
  KVTIER_EXPECT_OK(attachments.Reserve(10));
  const absl::Status full = attachments.Reserve(11).status();
  EXPECT_GT(RetryAfter(full), absl::ZeroDuration());
  EXPECT_THAT(full,
              StatusIs(absl::StatusCode::kResourceExhausted,
                       AllOf(HasSubstr("attaching 11 bytes"), HasSubstr(std::to_string(limit)))));
}

TEST_F(AttachmentsTest, CountsWhatIsOnItsWay) {
  const auto cache = MakeCache(1, 3);
  Attachments& attachments = Make({.bytes_max = cache->bytes()});
  {
    KVTIER_ASSERT_OK_AND_ASSIGN(const Attachments::Room room, attachments.Reserve(cache->bytes()));
    EXPECT_THAT(Attach(attachments, cache), StatusIs(absl::StatusCode::kResourceExhausted));
  }
  // A fetch that failed gives its room back.
  KVTIER_EXPECT_OK(Attach(attachments, cache));
  EXPECT_THAT(attachments.Reserve(1), StatusIs(absl::StatusCode::kResourceExhausted));
}

TEST_F(AttachmentsTest, TheSameFetchedTwiceCountsOnce) {
  const auto cache = MakeCache(1, 3);
  Attachments& attachments = Make({.bytes_max = 2 * cache->bytes()});
  KVTIER_ASSERT_OK_AND_ASSIGN(Attachments::Room first, attachments.Reserve(cache->bytes()));
  KVTIER_ASSERT_OK_AND_ASSIGN(Attachments::Room second, attachments.Reserve(cache->bytes()));
  KVTIER_EXPECT_OK(attachments.Add(cache, std::move(first)));
  KVTIER_EXPECT_OK(attachments.Add(MakeCache(1, 3), std::move(second)));
  KVTIER_EXPECT_OK(attachments.Reserve(cache->bytes()));
  EXPECT_EQ(metrics_.worker_attached_bytes.Value(), static_cast<double>(cache->bytes()));
}

TEST_F(AttachmentsTest, CountsAnObjectByItsOwnSizeWhateverWasReserved) {
  const auto cache = MakeCache(1, 3);
  Attachments& attachments = Make({.bytes_max = cache->bytes() + 5});
  KVTIER_ASSERT_OK_AND_ASSIGN(Attachments::Room small, attachments.Reserve(1));
  KVTIER_ASSERT_OK_AND_ASSIGN(const Attachments::Entry entry,
                              attachments.Add(cache, std::move(small)));
  EXPECT_THAT(attachments.Reserve(6), StatusIs(absl::StatusCode::kResourceExhausted));
  KVTIER_ASSERT_OK_AND_ASSIGN(Attachments::Room rest, attachments.Reserve(5));
  // It has become larger than there is room for.
  EXPECT_THAT(attachments.Add(MakeCache(2, 3), std::move(rest)),
              StatusIs(absl::StatusCode::kResourceExhausted));
  KVTIER_EXPECT_OK(attachments.Reserve(5));
}

TEST_F(AttachmentsTest, CountsADetachedCacheUntilNobodyReadsIt) {
  auto cache = MakeCache(1, 3);
  const uint64_t bytes = cache->bytes();
  Attachments& attachments = Make({.bytes_max = bytes});
  const uint64_t id = Attach(attachments, std::move(cache))->id;
  KVTIER_ASSERT_OK_AND_ASSIGN(auto ask, attachments.BeginAsk(id));
  KVTIER_ASSERT_OK(attachments.Remove(id));
  EXPECT_EQ(metrics_.worker_attached_bytes.Value(), 0);
  EXPECT_THAT(attachments.Reserve(1),
              StatusIs(absl::StatusCode::kResourceExhausted, HasSubstr("still read")));
  // Also where the cache outlives the question.
  const std::shared_ptr<const ResidentCache> kept = ask->cache();
  ask.reset();
  EXPECT_THAT(attachments.Reserve(1), StatusIs(absl::StatusCode::kResourceExhausted));
}

TEST_F(AttachmentsTest, RoomIsGivenBackAtTheLastDetach) {
  auto cache = MakeCache(1, 3);
  const uint64_t bytes = cache->bytes();
  Attachments& attachments = Make({.bytes_max = bytes});
  const uint64_t id = Attach(attachments, std::move(cache))->id;
  KVTIER_ASSERT_OK(attachments.Remove(id));
  KVTIER_EXPECT_OK(attachments.Reserve(bytes));
}

TEST_F(AttachmentsTest, BoundsTheQuestionsOfOneAttachment) {
  Attachments& attachments = Make({.asks_per_object_max = 2});
  KVTIER_ASSERT_OK_AND_ASSIGN(const Attachments::Entry a, Attach(attachments, MakeCache(1, 3)));
  KVTIER_ASSERT_OK_AND_ASSIGN(const Attachments::Entry b, Attach(attachments, MakeCache(2, 3)));
  KVTIER_ASSERT_OK_AND_ASSIGN(auto first, attachments.BeginAsk(a.id));
  KVTIER_ASSERT_OK_AND_ASSIGN(const auto second, attachments.BeginAsk(a.id));
  EXPECT_EQ(attachments.List()[0].running_asks, 2);
  const absl::Status refused = attachments.BeginAsk(a.id).status();
  EXPECT_THAT(refused, StatusIs(absl::StatusCode::kResourceExhausted,
                                HasSubstr("answers 2 questions already")));
  EXPECT_GT(RetryAfter(refused), absl::ZeroDuration());
  KVTIER_EXPECT_OK(attachments.BeginAsk(b.id));
  first.reset();
  KVTIER_EXPECT_OK(attachments.BeginAsk(a.id));
}

TEST_F(AttachmentsTest, LetsQuestionsFinishOnADetachedCache) {
  Attachments& attachments = Make({});
  auto cache = MakeCache(1, 3);
  const std::weak_ptr<const ResidentCache> watch = cache;
  const uint64_t id = Attach(attachments, std::move(cache))->id;
  KVTIER_ASSERT_OK_AND_ASSIGN(auto ask, attachments.BeginAsk(id));
  KVTIER_ASSERT_OK(attachments.Remove(id));
  EXPECT_THAT(attachments.BeginAsk(id), StatusIs(absl::StatusCode::kNotFound));
  EXPECT_FALSE(watch.expired());
  EXPECT_EQ(ask->cache()->band_count(), 3);
  ask.reset();
  EXPECT_TRUE(watch.expired());
}

TEST_F(AttachmentsTest, ListsInOrderOfAttaching) {
  Attachments& attachments = Make({});
  for (uint64_t seed = 1; seed <= 5; ++seed)
    KVTIER_ASSERT_OK(Attach(attachments, MakeCache(seed, 1)));
  const std::vector<Attachments::Entry> list = attachments.List();
  ASSERT_EQ(list.size(), 5);
  for (size_t i = 1; i < list.size(); ++i) EXPECT_LT(list[i - 1].id, list[i].id);
}

}  // namespace
}  // namespace kvtier
