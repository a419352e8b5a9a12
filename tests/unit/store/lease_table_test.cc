#include "store/lease_table.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "base/log.h"
#include "base/simulated_clock.h"
#include "base/status_matchers.h"
#include "base/sync_point.h"
#include "base/too_large.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/testing/store_checks.h"
#include "tests/testing/temp_dir.h"
#include "tests/testing/test_object.h"

namespace kvtier {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using testing::Not;

class LeaseTableTest : public testing::Test {
 protected:
  static constexpr uint64_t kPlenty = 64 << 20;

  LeaseTableTest() { Open(kPlenty, {}); }

  void Open(uint64_t host_bytes, const LeaseTable::Options& options) {
    table_.reset();
    store_.reset();
    absl::StatusOr<std::unique_ptr<TieredStore>> store =
        OpenTestStore(dir_.File("store"), host_bytes, clock_);
    KVTIER_CHECK_OK(store);
    store_ = *std::move(store);
    table_ = std::make_unique<LeaseTable>(options, *store_);
  }
  void Put(const CompressedObject& object) {
    KVTIER_ASSERT_OK(store_->Put(tenant_, object, Durability::kDisk));
  }
  absl::StatusOr<std::unique_ptr<Lease>> Acquire(const CompressedObject& object, double ratio = 1,
                                                 BandPlacement placement = BandPlacement::kAny) {
    FetchRequest request;
    request.tenant = tenant_;
    request.key = object.manifest->key;
    request.ratio = *Ratio::FromDouble(ratio);
    request.min_ratio = *Ratio::FromDouble(0.1);
    return table_->Acquire(request, placement);
  }
  static void ExpectHolds(const HeldObject& held, const CompressedObject& object) {
    for (uint32_t band = 0; band < held.band_count(); ++band) {
      for (uint32_t layer = 0; layer < object.manifest->geometry.layer_count(); ++layer) {
        EXPECT_TRUE(std::ranges::equal(held.Segment(BandIndex(band), LayerIndex(layer)).bytes(),
                                       object.segment(BandIndex(band), LayerIndex(layer)).bytes()))
            << band << " " << layer;
      }
    }
  }
  static uint64_t Bytes(const CompressedObject& object) { return object.manifest->total_bytes(); }

  const TempDir dir_;
  SimulatedClock clock_;
  const TenantId tenant_ = *TenantId::FromString("tenant");
  const CompressedObject a_ = MakeTestObject({.seed = 1});
  const CompressedObject b_ = MakeTestObject({.seed = 2});
  std::unique_ptr<TieredStore> store_;
  std::unique_ptr<LeaseTable> table_;
};

TEST_F(LeaseTableTest, HoldsTheBandsOfTheRatioUntilItEnds) {
  Put(a_);
  {
    KVTIER_ASSERT_OK_AND_ASSIGN(const auto lease, Acquire(a_, 0.3));
    EXPECT_EQ(lease->object().band_count(), 3u);
    ExpectHolds(lease->object(), a_);
    EXPECT_EQ(table_->usage().leases, 1u);
    EXPECT_EQ(table_->usage().bytes, a_.manifest->PrefixBytes(3));
    KVTIER_ASSERT_OK_AND_ASSIGN(const auto found, table_->Find(tenant_, lease->id()));
    EXPECT_EQ(found.get(), &lease->object());
  }
  EXPECT_EQ(table_->usage().leases, 0u);
  EXPECT_EQ(table_->usage().bytes, 0u);
}

TEST_F(LeaseTableTest, BandsThatOnlyTheDiskHasAreReadIntoMemoryFiles) {
  Put(a_);
  Open(kPlenty, {});
  KVTIER_ASSERT_OK_AND_ASSIGN(const auto lease, Acquire(a_, 1, BandPlacement::kFile));
  ExpectHolds(lease->object(), a_);
  for (uint32_t band = 0; band < lease->object().band_count(); ++band) {
    KVTIER_EXPECT_OK(lease->object().band(BandIndex(band)).Export());
  }
  EXPECT_EQ(store_->Stat(tenant_, a_.manifest->key)->host_bands, 6u) << "and serve others";
}

TEST_F(LeaseTableTest, PressureTakesNothingThatIsHeld) {
  Open(Bytes(a_) + Bytes(b_), {});
  Put(a_);
  KVTIER_ASSERT_OK_AND_ASSIGN(auto lease, Acquire(a_));
  for (uint64_t seed = 10; seed < 20; ++seed) Put(MakeTestObject({.seed = seed}));
  EXPECT_EQ(store_->Stat(tenant_, a_.manifest->key)->host_bands, 6u);
  ExpectHolds(lease->object(), a_);
  EXPECT_LE(store_->host_usage().bytes, store_->host_usage().budget_bytes);
  // Deleted, and still readable.
  KVTIER_ASSERT_OK(store_->Delete(tenant_, a_.manifest->key));
  ExpectHolds(lease->object(), a_);
  EXPECT_GE(store_->host_usage().bytes, Bytes(a_));
  lease.reset();
  KVTIER_EXPECT_OK(store_->Put(tenant_, b_, Durability::kDisk));
}

TEST_F(LeaseTableTest, WhenLeasesHoldTheBudgetNewWorkIsRefused) {
  Open(Bytes(a_) + Bytes(b_) / 2, {});
  Put(a_);
  KVTIER_ASSERT_OK_AND_ASSIGN(auto lease, Acquire(a_));
  EXPECT_THAT(store_->Put(tenant_, b_, Durability::kDisk),
              StatusIs(absl::StatusCode::kResourceExhausted, HasSubstr("host_budget_bytes")));
  lease.reset();
  Put(b_);
}

TEST_F(LeaseTableTest, NumberAndBytesAreBoundedAndEqualBandsCountOnce) {
  Put(a_);
  Put(b_);
  Open(kPlenty, {.leases_max = 5, .bytes_max = Bytes(a_)});  // Three for one tenant.
  KVTIER_ASSERT_OK_AND_ASSIGN(auto first, Acquire(a_));
  KVTIER_ASSERT_OK_AND_ASSIGN(auto second, Acquire(a_));
  EXPECT_EQ(table_->usage().bytes, Bytes(a_));
  EXPECT_THAT(Acquire(b_, 0.1),
              StatusIs(absl::StatusCode::kResourceExhausted, HasSubstr("lease_bytes_max")));
  KVTIER_ASSERT_OK_AND_ASSIGN(auto third, Acquire(a_));
  EXPECT_THAT(Acquire(a_),
              StatusIs(absl::StatusCode::kResourceExhausted,
                       AllOf(HasSubstr("tenant holds 3 leases"), HasSubstr("(leases_max) of 5"))));
  EXPECT_EQ(table_->usage().refused, 2u);
  first.reset();
  second.reset();
  EXPECT_EQ(table_->usage().bytes, Bytes(a_));
  third.reset();
  EXPECT_EQ(table_->usage().bytes, 0u);
  KVTIER_EXPECT_OK(Acquire(b_, 0.1));
}

TEST_F(LeaseTableTest, OnlyALargerLimitAdmitsALeaseOfMoreThanAllMayHold) {
  Put(a_);
  Put(b_);
  Open(kPlenty, {.bytes_max = Bytes(a_)});
  const CompressedObject larger = MakeTestObject({.context_tokens = 300, .seed = 3});
  Put(larger);
  const absl::Status too_large = Acquire(larger).status();
  EXPECT_THAT(too_large,
              StatusIs(absl::StatusCode::kResourceExhausted, HasSubstr("lease_bytes_max")));
  EXPECT_TRUE(IsTooLarge(too_large));
  KVTIER_ASSERT_OK_AND_ASSIGN(const auto lease, Acquire(a_));
  const absl::Status full = Acquire(b_, 0.1).status();
  EXPECT_THAT(full, StatusIs(absl::StatusCode::kResourceExhausted, HasSubstr("lease_bytes_max")));
  EXPECT_FALSE(IsTooLarge(full));
  EXPECT_EQ(table_->usage().refused, 2u);
}

#ifdef KVTIER_SYNC_POINTS
// An upload id is free as soon as nobody reads its object, and that is before the lease of the last
// reader is counted out.
TEST_F(LeaseTableTest, AnUploadIdThatComesBackIsCountedAsAnotherObject) {
  const CompressedObject before = MakeTestObject({.seed = 3});
  const CompressedObject after = MakeTestObject({.context_tokens = 90, .seed = 3});
  ASSERT_EQ(before.manifest->upload_id, after.manifest->upload_id);
  ASSERT_NE(Bytes(before), Bytes(after));
  Put(before);
  KVTIER_ASSERT_OK_AND_ASSIGN(auto first, Acquire(before));
  KVTIER_ASSERT_OK(store_->Delete(tenant_, before.manifest->key));
  std::unique_ptr<Lease> second;
  {
    const ScopedSyncPoint at("store.lease.before_release", [&] {
      Put(after);
      KVTIER_ASSERT_OK_AND_ASSIGN(second, Acquire(after));
    });
    first.reset();
  }
  ASSERT_NE(second, nullptr);
  ExpectHolds(second->object(), after);
  EXPECT_EQ(table_->usage().bytes, Bytes(after));
  second.reset();
  EXPECT_EQ(table_->usage().bytes, 0u);
}
#endif

TEST_F(LeaseTableTest, NoTenantTakesAllLeasesAndNoneHearsOfTheOthers) {
  Open(kPlenty, {.leases_max = 3});
  Put(a_);
  KVTIER_ASSERT_OK_AND_ASSIGN(const auto first, Acquire(a_));
  KVTIER_ASSERT_OK_AND_ASSIGN(auto second, Acquire(a_));
  EXPECT_THAT(Acquire(a_), StatusIs(absl::StatusCode::kResourceExhausted));
  const TenantId other = *TenantId::FromString("other");
  const CompressedObject others_object = MakeTestObject({.seed = 3});
  KVTIER_ASSERT_OK(store_->Put(other, others_object, Durability::kDisk));
  FetchRequest request;
  request.tenant = other;
  request.key = others_object.manifest->key;
  KVTIER_ASSERT_OK_AND_ASSIGN(const auto others, table_->Acquire(request, BandPlacement::kAny));
  EXPECT_THAT(table_->Acquire(request, BandPlacement::kAny),
              StatusIs(absl::StatusCode::kResourceExhausted,
                       AllOf(HasSubstr("limit (leases_max)"), Not(HasSubstr("tenant")))));
  second.reset();
  EXPECT_THAT(Acquire(a_), StatusIs(absl::StatusCode::kResourceExhausted)) << "one of one is free";
}

TEST_F(LeaseTableTest, NoTenantTakesAllBytesAndNoneHearsOfTheOthers) {
  const CompressedObject c = MakeTestObject({.seed = 3});
  Open(kPlenty, {.bytes_max = 4 * std::max({Bytes(a_), Bytes(b_), Bytes(c)})});
  for (const CompressedObject* object : {&a_, &b_, &c}) Put(*object);
  KVTIER_ASSERT_OK_AND_ASSIGN(const auto first, Acquire(a_));
  KVTIER_ASSERT_OK_AND_ASSIGN(auto second, Acquire(b_));
  const absl::Status refused = Acquire(c).status();
  EXPECT_THAT(refused,
              StatusIs(absl::StatusCode::kResourceExhausted,
                       AllOf(HasSubstr(absl::StrCat("tenant tenant holds ", Bytes(a_) + Bytes(b_))),
                             HasSubstr("lease_bytes_max"))));
  EXPECT_FALSE(IsTooLarge(refused));
  EXPECT_EQ(table_->usage().refused, 1u);
  KVTIER_EXPECT_OK(Acquire(a_)) << "which costs no more bytes";

  const TenantId other = *TenantId::FromString("other");
  const CompressedObject of_other = MakeTestObject({.seed = 4});
  KVTIER_ASSERT_OK(store_->Put(other, of_other, Durability::kDisk));
  FetchRequest request;
  request.tenant = other;
  request.key = of_other.manifest->key;
  KVTIER_ASSERT_OK_AND_ASSIGN(const auto others, table_->Acquire(request, BandPlacement::kAny));
  EXPECT_EQ(table_->usage().bytes, Bytes(a_) + Bytes(b_) + Bytes(of_other));
  // What a tenant gives back is its own to take again.
  second.reset();
  EXPECT_EQ(table_->usage().bytes, Bytes(a_) + Bytes(of_other));
  KVTIER_EXPECT_OK(Acquire(c));
}

TEST_F(LeaseTableTest, LeasesOfASmallBandShareOneFileThatItsHolderAloneKeeps) {
  Put(a_);  // Its bands are small: they lie on the heap.
  const uint64_t before = store_->host_usage().bytes;
  KVTIER_ASSERT_OK_AND_ASSIGN(auto first, Acquire(a_, 1, BandPlacement::kFile));
  const uint64_t with_copies = store_->host_usage().bytes;
  const uint64_t files = store_->host_memory_counters().files;
  EXPECT_GT(with_copies, before);
  KVTIER_ASSERT_OK_AND_ASSIGN(auto second, Acquire(a_, 1, BandPlacement::kFile));
  EXPECT_EQ(store_->host_usage().bytes, with_copies) << "charged once";
  EXPECT_EQ(store_->host_memory_counters().files, files);
  first.reset();
  ExpectHolds(second->object(), a_);
  EXPECT_EQ(store_->host_usage().bytes, with_copies);
  second.reset();
  EXPECT_EQ(store_->host_usage().bytes, before);
  KVTIER_ASSERT_OK_AND_ASSIGN(const auto third, Acquire(a_, 1, BandPlacement::kFile));
  ExpectHolds(third->object(), a_);
}

TEST_F(LeaseTableTest, ANameHoldsNothingForOthersOrAfterTheEndOrARestart) {
  Put(a_);
  LeaseId id;
  {
    KVTIER_ASSERT_OK_AND_ASSIGN(const auto lease, Acquire(a_));
    id = lease->id();
    EXPECT_THAT(table_->Find(*TenantId::FromString("other"), id),
                StatusIs(absl::StatusCode::kAborted));
  }
  EXPECT_THAT(table_->Find(tenant_, id), StatusIs(absl::StatusCode::kAborted));
  Open(kPlenty, {});
  KVTIER_ASSERT_OK_AND_ASSIGN(const auto lease, Acquire(a_));
  EXPECT_EQ(lease->id().id, id.id);
  EXPECT_THAT(table_->Find(tenant_, id), StatusIs(absl::StatusCode::kAborted, HasSubstr("epoch")));
}

TEST_F(LeaseTableTest, MissesAndOtherUploadsAreRefusedAsByFetch) {
  EXPECT_THAT(Acquire(a_), StatusIs(absl::StatusCode::kNotFound));
  Put(a_);
  FetchRequest request;
  request.tenant = tenant_;
  request.key = a_.manifest->key;
  request.upload_id = b_.manifest->upload_id;
  EXPECT_THAT(table_->Acquire(request, BandPlacement::kAny), StatusIs(absl::StatusCode::kAborted));
  EXPECT_EQ(table_->usage().leases, 0u);
}

}  // namespace
}  // namespace kvtier
