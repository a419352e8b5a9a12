#include "store/tiered_store.h"

#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/fair_share.h"
#include "base/limits.h"
#include "base/log.h"
#include "base/simulated_clock.h"
#include "base/status_matchers.h"
#include "base/sync_point.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/testing/store_checks.h"
#include "tests/testing/temp_dir.h"
#include "tests/testing/test_object.h"

namespace kvtier {
namespace {

using testing::HasSubstr;

class TieredStoreTest : public testing::Test {
 protected:
  static constexpr uint64_t kPlenty = 64 << 20;
  static constexpr uint32_t kBands = 6;

  TieredStoreTest() { Open(kPlenty); }

  void Open(uint64_t host_bytes, bool with_disk = true, uint64_t disk_bytes = 0) {
    store_.reset();
    absl::StatusOr<std::unique_ptr<TieredStore>> store =
        OpenTestStore(with_disk ? dir_.File("store") : "", host_bytes, clock_, nullptr, disk_bytes);
    KVTIER_CHECK_OK(store);
    store_ = *std::move(store);
  }
  absl::StatusOr<ObjectStat> Put(const CompressedObject& object,
                                 Durability durability = Durability::kDisk) {
    return store_->Put(tenant_, object, durability);
  }
  absl::Status Check(const CompressedObject& object, uint32_t bands) {
    return CheckStored(*store_, tenant_, object, bands);
  }
  ObjectStat Stat(const CompressedObject& object) {
    absl::StatusOr<ObjectStat> stat = store_->Stat(tenant_, object.manifest->key);
    KVTIER_CHECK_OK(stat);
    return *stat;
  }
  static CompressedObject Object(uint64_t seed, uint64_t upload_seed = 0) {
    return MakeTestObject({.seed = seed, .upload_seed = upload_seed});
  }
  static uint64_t Bytes(const CompressedObject& object) { return object.manifest->total_bytes(); }

  TempDir dir_;
  SimulatedClock clock_;
  const TenantId tenant_;
  std::unique_ptr<TieredStore> store_;
  const CompressedObject a_ = Object(1);
  const CompressedObject b_ = Object(2);
};

// --- Put -----------------------------------------------------------------------------------------

TEST_F(TieredStoreTest, ServesWhatWasPutFromHostAndAfterARestartFromDisk) {
  KVTIER_ASSERT_OK_AND_ASSIGN(const ObjectStat stat, Put(a_));
  EXPECT_EQ(stat.resident_bands, kBands);
  EXPECT_EQ(stat.host_bands, kBands);
  EXPECT_EQ(stat.disk_bands, kBands);
  EXPECT_EQ(stat.sealed_at, clock_.Now());
  KVTIER_EXPECT_OK(Check(a_, kBands));
  EXPECT_EQ(store_->counters().host_hits, 1u);
  Open(kPlenty);
  EXPECT_EQ(Stat(a_).host_bands, 0u);
  KVTIER_EXPECT_OK(Check(a_, kBands));
  EXPECT_EQ(store_->counters().disk_hits, 1u);
  // What was read with room to spare is in host memory now.
  EXPECT_EQ(Stat(a_).host_bands, kBands);
  KVTIER_EXPECT_OK(Check(a_, kBands));
  EXPECT_EQ(store_->counters().host_hits, 1u);
}

TEST_F(TieredStoreTest, HostDurabilityLastsAsLongAsTheProcess) {
  KVTIER_ASSERT_OK(Put(a_, Durability::kHost));
  EXPECT_EQ(Stat(a_).disk_bands, 0u);
  KVTIER_EXPECT_OK(Check(a_, kBands));
  Open(kPlenty);
  KVTIER_EXPECT_OK(Check(a_, 0));
}

TEST_F(TieredStoreTest, AHostObjectSentAgainForTheDiskIsThereAfterARestart) {
  KVTIER_ASSERT_OK(Put(a_, Durability::kHost));
  KVTIER_ASSERT_OK_AND_ASSIGN(const ObjectStat stat, Put(a_));
  EXPECT_EQ(stat.durability, Durability::kDisk);
  EXPECT_EQ(stat.disk_bands, kBands);
  Open(kPlenty);
  KVTIER_EXPECT_OK(Check(a_, kBands));
}

TEST_F(TieredStoreTest, WhatIsAskedOfAnUploadIsNotDoneToAnother) {
  const CompressedObject other = Object(1, /*upload_seed=*/7);
  ASSERT_EQ(other.manifest->key, a_.manifest->key);
  KVTIER_ASSERT_OK(Put(a_));
  const Key& key = a_.manifest->key;
  const UploadId& gone = other.manifest->upload_id;
  const auto aborted = StatusIs(absl::StatusCode::kAborted, HasSubstr(gone.ToHex()));
  EXPECT_THAT(store_->Delete(tenant_, key, gone), aborted);
  EXPECT_THAT(store_->DropBands(tenant_, key, 1, gone), aborted);
  EXPECT_THAT(store_->Verify(tenant_, key, gone), aborted);
  KVTIER_EXPECT_OK(Check(a_, kBands));
  KVTIER_EXPECT_OK(store_->Delete(tenant_, key, a_.manifest->upload_id));
  KVTIER_EXPECT_OK(Check(a_, 0));
}

TEST_F(TieredStoreTest, DiskDurabilityNeedsADisk) {
  Open(kPlenty, /*with_disk=*/false);
  EXPECT_THAT(Put(a_), StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("no disk")));
  KVTIER_ASSERT_OK(Put(a_, Durability::kHost));
  KVTIER_EXPECT_OK(Check(a_, kBands));
  EXPECT_EQ(store_->disk_usage(), std::nullopt);
}

TEST_F(TieredStoreTest, AnUploadResumesAndIsSealedOnce) {
  const std::vector<std::byte> bytes = ConcatenateSegments(a_);
  EXPECT_THAT(store_->UploadedBytes(tenant_, a_.manifest->upload_id),
              StatusIs(absl::StatusCode::kNotFound));
  KVTIER_ASSERT_OK_AND_ASSIGN(const auto first,
                              store_->StartUpload(tenant_, a_.manifest, Durability::kDisk));
  KVTIER_ASSERT_OK(first->Append(0, std::span(bytes).first(bytes.size() / 2)));
  EXPECT_THAT(store_->FinishUpload(tenant_, first),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("bytes have arrived")));
  KVTIER_EXPECT_OK(Check(a_, 0));

  KVTIER_ASSERT_OK_AND_ASSIGN(const auto second,
                              store_->StartUpload(tenant_, a_.manifest, Durability::kDisk));
  EXPECT_EQ(second, first);
  KVTIER_ASSERT_OK_AND_ASSIGN(const uint64_t from,
                              store_->UploadedBytes(tenant_, a_.manifest->upload_id));
  KVTIER_ASSERT_OK(second->Append(from, std::span(bytes).subspan(from)));
  KVTIER_ASSERT_OK(store_->FinishUpload(tenant_, second));
  KVTIER_EXPECT_OK(store_->FinishUpload(tenant_, first));
  EXPECT_EQ(store_->counters().uploads_sealed, 1u);
  EXPECT_THAT(store_->UploadedBytes(tenant_, a_.manifest->upload_id), IsOkAndHolds(bytes.size()));
  KVTIER_EXPECT_OK(Check(a_, kBands));
}

// Two streams send the same upload; the object goes between their ends, and a third one begins.
TEST_F(TieredStoreTest, AnUploadThatEndsLateLeavesOneThatWasBegunAnewAlone) {
  const std::vector<std::byte> bytes = ConcatenateSegments(a_);
  KVTIER_ASSERT_OK_AND_ASSIGN(const auto late,
                              store_->StartUpload(tenant_, a_.manifest, Durability::kHost));
  KVTIER_ASSERT_OK(late->Append(0, bytes));
  KVTIER_ASSERT_OK(store_->FinishUpload(tenant_, late));
  KVTIER_ASSERT_OK(store_->Delete(tenant_, a_.manifest->key));
  KVTIER_ASSERT_OK_AND_ASSIGN(const auto anew,
                              store_->StartUpload(tenant_, a_.manifest, Durability::kHost));
  ASSERT_NE(anew, late);
  KVTIER_ASSERT_OK(anew->Append(0, std::span(bytes).first(bytes.size() / 2)));
  EXPECT_THAT(store_->FinishUpload(tenant_, late), StatusIs(absl::StatusCode::kNotFound));
  KVTIER_EXPECT_OK(Check(a_, 0));
  KVTIER_ASSERT_OK(anew->Append(bytes.size() / 2, std::span(bytes).subspan(bytes.size() / 2)));
  KVTIER_EXPECT_OK(store_->FinishUpload(tenant_, anew));
  KVTIER_EXPECT_OK(Check(a_, kBands));
}

TEST_F(TieredStoreTest, AnUploadIdNamesOneObjectOnly) {
  auto other = std::make_shared<Manifest>(*b_.manifest);
  other->upload_id = a_.manifest->upload_id;
  KVTIER_ASSERT_OK(store_->StartUpload(tenant_, a_.manifest, Durability::kDisk));
  EXPECT_THAT(store_->StartUpload(tenant_, other, Durability::kDisk),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("another object")));
  store_->AbandonUpload(tenant_, a_.manifest->upload_id);
  KVTIER_ASSERT_OK(Put(a_));
  EXPECT_THAT(store_->StartUpload(tenant_, other, Durability::kDisk),
              StatusIs(absl::StatusCode::kInvalidArgument));
}

// Whether an id is taken by another tenant cannot be told from any answer to the upload: neither
// while that one is open, nor when it is stored, nor when it is gone and still read.
TEST_F(TieredStoreTest, AnUploadIdOfAnotherTenantIsAnUnknownOne) {
  const TenantId stranger = *TenantId::FromString("stranger");
  const UploadId& id = a_.manifest->upload_id;
  const std::vector<std::byte> bytes = ConcatenateSegments(b_);
  auto guess = std::make_shared<Manifest>(*b_.manifest);
  guess->upload_id = id;
  std::unique_ptr<PinnedObject> reader;
  for (const char* state : {"open", "stored", "deleted"}) {
    for (const Durability durability : {Durability::kHost, Durability::kDisk}) {
      SCOPED_TRACE(state);
      if (state == std::string("open")) {
        KVTIER_ASSERT_OK(store_->StartUpload(tenant_, a_.manifest, Durability::kDisk));
      } else if (state == std::string("stored")) {
        KVTIER_ASSERT_OK(Put(a_));
      } else if (reader == nullptr) {
        KVTIER_ASSERT_OK_AND_ASSIGN(reader, store_->Pin(tenant_, a_.manifest->key, id));
        KVTIER_ASSERT_OK(store_->Delete(tenant_, a_.manifest->key));
      }
      EXPECT_THAT(store_->UploadedBytes(stranger, id), StatusIs(absl::StatusCode::kNotFound));
      KVTIER_ASSERT_OK_AND_ASSIGN(const auto upload,
                                  store_->StartUpload(stranger, guess, durability));
      EXPECT_THAT(store_->UploadedBytes(stranger, id), IsOkAndHolds(0u));
      KVTIER_ASSERT_OK(upload->Append(0, bytes));
      EXPECT_THAT(store_->UploadedBytes(stranger, id), IsOkAndHolds(bytes.size()));
      KVTIER_ASSERT_OK_AND_ASSIGN(const ObjectStat stat, store_->FinishUpload(stranger, upload));
      EXPECT_EQ(stat.tenant, stranger);
      EXPECT_EQ(stat.resident_bands, kBands);
      auto stored = std::make_shared<Manifest>(*b_.manifest);
      stored->upload_id = stat.manifest->upload_id;
      KVTIER_EXPECT_OK(
          CheckStored(*store_, stranger, CompressedObject{stored, b_.segments}, kBands));
      if (state == std::string("stored")) {
        KVTIER_EXPECT_OK(Check(a_, kBands));
      }
      if (reader != nullptr) {
        KVTIER_EXPECT_OK(CheckPinned(*reader, a_, kBands));
      }
      KVTIER_EXPECT_OK(store_->CheckInvariants());
      KVTIER_ASSERT_OK(store_->Delete(stranger, b_.manifest->key));
      if (reader != nullptr) {
        KVTIER_EXPECT_OK(CheckPinned(*reader, a_, kBands));
      }
    }
  }
  reader.reset();
}

TEST_F(TieredStoreTest, RefusesAnInconsistentManifest) {
  auto manifest = std::make_shared<Manifest>(*a_.manifest);
  manifest->bands[1].layers[0].heads[0].rows += 1;
  EXPECT_THAT(store_->StartUpload(tenant_, manifest, Durability::kDisk),
              StatusIs(absl::StatusCode::kInvalidArgument));
}

TEST_F(TieredStoreTest, AResumedUploadReplacesWhatItWasBegunToReplace) {
  const UploadId stored = b_.manifest->upload_id, other = Object(3).manifest->upload_id;
  KVTIER_ASSERT_OK(store_->StartUpload(tenant_, a_.manifest, Durability::kDisk, stored));
  KVTIER_EXPECT_OK(store_->StartUpload(tenant_, a_.manifest, Durability::kDisk, stored));
  for (const std::optional<UploadId>& differs : {std::optional(other), std::optional<UploadId>()}) {
    EXPECT_THAT(store_->StartUpload(tenant_, a_.manifest, Durability::kDisk, differs),
                StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr(stored.ToHex())));
  }
}

TEST_F(TieredStoreTest, OpenUploadsAreBoundedAndIdleOnesGo) {
  std::vector<std::shared_ptr<Upload>> sending;
  // Of as many tenants as there are uploads: one alone gets half of them.
  for (uint64_t i = 0; i < limits::kUploadsMax; ++i) {
    const TenantId sender = i == 0 ? tenant_ : *TenantId::FromString(absl::StrCat("sender", i));
    KVTIER_ASSERT_OK_AND_ASSIGN(
        const auto upload,
        store_->StartUpload(sender, Object(100 + i).manifest, Durability::kDisk));
    sending.push_back(upload);
  }
  EXPECT_THAT(store_->StartUpload(tenant_, a_.manifest, Durability::kDisk),
              StatusIs(absl::StatusCode::kResourceExhausted, HasSubstr("kUploadsMax")));
  clock_.AdvanceTime(limits::kUploadIdleMax + absl::Seconds(1));
  KVTIER_EXPECT_OK(store_->StartUpload(tenant_, a_.manifest, Durability::kDisk));
  EXPECT_THAT(store_->UploadedBytes(tenant_, Object(100).manifest->upload_id),
              StatusIs(absl::StatusCode::kNotFound));
}

TEST_F(TieredStoreTest, NoTenantTakesAllOpenUploads) {
  const TenantId other = *TenantId::FromString("other"), third = *TenantId::FromString("third");
  std::vector<std::shared_ptr<Upload>> sending;
  uint64_t seed = 100;
  // Starts uploads until one is refused, and says why.
  const auto take_all = [&](const TenantId& tenant) -> absl::Status {
    for (;;) {
      auto upload = store_->StartUpload(tenant, Object(++seed).manifest, Durability::kDisk);
      if (!upload.ok()) return upload.status();
      sending.push_back(*std::move(upload));
    }
  };
  EXPECT_THAT(take_all(tenant_), StatusIs(absl::StatusCode::kResourceExhausted,
                                          HasSubstr("tenant default has 32 uploads open")));
  EXPECT_EQ(sending.size(), ShareOfOne(limits::kUploadsMax));
  EXPECT_THAT(take_all(other), StatusIs(absl::StatusCode::kResourceExhausted));
  EXPECT_LT(sending.size(), limits::kUploadsMax);
  KVTIER_EXPECT_OK(store_->StartUpload(third, Object(3).manifest, Durability::kDisk));
  EXPECT_EQ(store_->counters().upload_share_refusals, 2u);
  sending.clear();  // Nobody sends them any more: they give way.
  KVTIER_EXPECT_OK(store_->StartUpload(tenant_, a_.manifest, Durability::kDisk));
}

TEST_F(TieredStoreTest, UploadsThatNobodySendsGiveWayToNewOnes) {
  store_.reset();
  KVTIER_ASSERT_OK_AND_ASSIGN(store_, TieredStore::Create({.host_budget_bytes = kPlenty,
                                                           .upload_bytes_max = Bytes(a_) * 5 / 2},
                                                          nullptr, clock_));
  const auto is_open = [&](const CompressedObject& object) {
    return store_->UploadedBytes(tenant_, object.manifest->upload_id).ok();
  };
  const auto start = [&](const CompressedObject& object) {
    return store_->StartUpload(tenant_, object.manifest, Durability::kHost);
  };
  KVTIER_ASSERT_OK_AND_ASSIGN(auto sending, start(a_));
  clock_.AdvanceTime(absl::Seconds(1));
  KVTIER_ASSERT_OK(start(b_));  // Its stream has ended.
  clock_.AdvanceTime(absl::Seconds(1));
  const CompressedObject c = Object(3);
  KVTIER_ASSERT_OK_AND_ASSIGN(auto sending_too, start(c));
  EXPECT_TRUE(is_open(a_));
  EXPECT_FALSE(is_open(b_));
  EXPECT_THAT(start(b_),
              StatusIs(absl::StatusCode::kResourceExhausted, HasSubstr("upload_bytes_max")));
  EXPECT_TRUE(is_open(a_));
  EXPECT_TRUE(is_open(c));
  // The longest idle one goes first, and only as many as must.
  sending.reset();
  sending_too.reset();
  clock_.AdvanceTime(absl::Seconds(1));
  KVTIER_ASSERT_OK(start(a_));
  KVTIER_ASSERT_OK(start(b_));
  EXPECT_TRUE(is_open(a_));
  EXPECT_FALSE(is_open(c));
}

TEST_F(TieredStoreTest, AnAbandonedUploadCannotBeFinished) {
  KVTIER_ASSERT_OK_AND_ASSIGN(const auto upload,
                              store_->StartUpload(tenant_, a_.manifest, Durability::kDisk));
  KVTIER_ASSERT_OK(upload->Append(0, ConcatenateSegments(a_)));
  store_->AbandonUpload(tenant_, a_.manifest->upload_id);
  EXPECT_THAT(store_->FinishUpload(tenant_, upload), StatusIs(absl::StatusCode::kNotFound));
  KVTIER_EXPECT_OK(Check(a_, 0));
}

// --- Replacing -----------------------------------------------------------------------------------

TEST_F(TieredStoreTest, AWholeObjectIsNotReplaced) {
  KVTIER_ASSERT_OK(Put(a_, Durability::kHost));
  const CompressedObject again = Object(1, 1);
  KVTIER_ASSERT_OK_AND_ASSIGN(const ObjectStat stat, Put(again, Durability::kDisk));
  EXPECT_EQ(stat.manifest->upload_id, a_.manifest->upload_id);
  // But the durability that was asked for now holds.
  EXPECT_EQ(stat.durability, Durability::kDisk);
  Open(kPlenty);
  KVTIER_EXPECT_OK(Check(a_, kBands));
}

TEST_F(TieredStoreTest, CompressingAgainRestoresRatioOneWhileAReaderHoldsTheOldUpload) {
  KVTIER_ASSERT_OK(Put(a_));
  KVTIER_ASSERT_OK(store_->DropBands(tenant_, a_.manifest->key, 3));
  KVTIER_ASSERT_OK_AND_ASSIGN(auto reader, store_->Pin(tenant_, a_.manifest->key, std::nullopt));
  const CompressedObject again = Object(1, 1);
  KVTIER_ASSERT_OK(Put(again));
  KVTIER_EXPECT_OK(Check(again, kBands));
  KVTIER_EXPECT_OK(CheckPinned(*reader, a_, 3));
  EXPECT_THAT(store_->Pin(tenant_, a_.manifest->key, a_.manifest->upload_id),
              StatusIs(absl::StatusCode::kAborted));
  const uint64_t with_both = store_->disk_usage()->bytes;
  reader.reset();
  EXPECT_LT(store_->disk_usage()->bytes, with_both);
  EXPECT_EQ(store_->host_usage().bytes, Bytes(again));
  KVTIER_EXPECT_OK(Check(again, kBands));
  Open(kPlenty);
  KVTIER_EXPECT_OK(Check(again, kBands));
}

TEST_F(TieredStoreTest, WhatIsOnDiskIsReplacedOnDisk) {
  KVTIER_ASSERT_OK(Put(a_));
  KVTIER_ASSERT_OK(store_->DropBands(tenant_, a_.manifest->key, 2));
  const CompressedObject again = Object(1, 1);
  KVTIER_ASSERT_OK_AND_ASSIGN(const ObjectStat stat, Put(again, Durability::kHost));
  EXPECT_EQ(stat.durability, Durability::kDisk);
  Open(kPlenty);
  KVTIER_EXPECT_OK(Check(again, kBands));
}

// Its client does not know of the other id, and may not have heard that it is done.
TEST_F(TieredStoreTest, AnUploadThatGotAnotherIdReplacesOnceHoweverOftenItIsSent) {
  const TenantId stranger = *TenantId::FromString("stranger");
  KVTIER_ASSERT_OK(store_->Put(stranger, a_, Durability::kHost));
  for (const Durability durability : {Durability::kHost, Durability::kDisk}) {
    KVTIER_ASSERT_OK(Put(b_));
    auto manifest = std::make_shared<Manifest>(*b_.manifest);
    manifest->upload_id = a_.manifest->upload_id;
    const CompressedObject sent{manifest, b_.segments};
    const UploadId first = b_.manifest->upload_id;
    KVTIER_ASSERT_OK_AND_ASSIGN(const auto upload,
                                store_->StartUpload(tenant_, manifest, durability, first));
    for (const SegmentRef& segment : sent.segments) {
      KVTIER_ASSERT_OK(upload->Append(upload->uploaded_bytes(), segment.bytes()));
    }
    KVTIER_ASSERT_OK_AND_ASSIGN(const ObjectStat stat, store_->FinishUpload(tenant_, upload));
    EXPECT_NE(stat.manifest->upload_id, a_.manifest->upload_id);
    EXPECT_NE(stat.manifest->upload_id, first);
    for (int i = 0; i < 2; ++i) {
      KVTIER_ASSERT_OK_AND_ASSIGN(const ObjectStat again, store_->FinishUpload(tenant_, upload));
      EXPECT_EQ(again.manifest->upload_id, stat.manifest->upload_id);
      KVTIER_ASSERT_OK_AND_ASSIGN(const ObjectStat whole,
                                  store_->Put(tenant_, sent, durability, first));
      EXPECT_EQ(whole.manifest->upload_id, stat.manifest->upload_id);
    }
    // Another one that comes too late does not.
    manifest = std::make_shared<Manifest>(*manifest);
    manifest->upload_id = MakeTestObject({.seed = 77}).manifest->upload_id;
    EXPECT_THAT(store_->Put(tenant_, {manifest, b_.segments}, durability, first),
                StatusIs(absl::StatusCode::kAborted));
    KVTIER_EXPECT_OK(store_->CheckInvariants());
    KVTIER_ASSERT_OK(store_->Delete(tenant_, b_.manifest->key));
  }
}

TEST_F(TieredStoreTest, AnUploadReplacesTheOneItWasMadeFromAlthoughThatIsWhole) {
  for (const Durability durability : {Durability::kHost, Durability::kDisk}) {
    const CompressedObject old = Object(durability == Durability::kHost ? 60 : 61, 0);
    const CompressedObject made = Object(durability == Durability::kHost ? 60 : 61, 1);
    KVTIER_ASSERT_OK(store_->Put(tenant_, old, durability));
    KVTIER_ASSERT_OK_AND_ASSIGN(auto reader, store_->Pin(tenant_, old.manifest->key, std::nullopt));
    KVTIER_ASSERT_OK_AND_ASSIGN(const ObjectStat stat, store_->Put(tenant_, made, Durability::kHost,
                                                                   old.manifest->upload_id));
    EXPECT_EQ(stat.manifest->upload_id, made.manifest->upload_id);
    EXPECT_EQ(stat.durability, durability);
    KVTIER_EXPECT_OK(CheckPinned(*reader, old, kBands));
    reader.reset();
    KVTIER_EXPECT_OK(Check(made, kBands));
    // Made from an upload that is gone: whoever made it looks again.
    const CompressedObject late = Object(durability == Durability::kHost ? 60 : 61, 2);
    EXPECT_THAT(
        store_->Put(tenant_, late, durability, old.manifest->upload_id),
        StatusIs(absl::StatusCode::kAborted, testing::HasSubstr(made.manifest->upload_id.ToHex())));
    KVTIER_EXPECT_OK(Check(made, kBands));
    KVTIER_ASSERT_OK(store_->Delete(tenant_, made.manifest->key));
    EXPECT_THAT(store_->Put(tenant_, late, durability, made.manifest->upload_id),
                StatusIs(absl::StatusCode::kAborted, testing::HasSubstr("none of this key")));
  }
}

TEST_F(TieredStoreTest, BandsGivenUpWhileAnUploadWasMadeFromThemStayGivenUp) {
  const auto with_edges = [](const char* edges, uint64_t upload_seed) {
    return MakeTestObject({.edges = edges, .seed = 71, .upload_seed = upload_seed});
  };
  const CompressedObject old = with_edges("0.1,0.3,1", 0);
  const CompressedObject whole = with_edges("0.2,1", 1);
  KVTIER_ASSERT_OK(Put(old));
  KVTIER_ASSERT_OK_AND_ASSIGN(
      const auto upload,
      store_->StartUpload(tenant_, whole.manifest, Durability::kDisk, old.manifest->upload_id));
  KVTIER_ASSERT_OK(upload->Append(0, ConcatenateSegments(whole)));
  KVTIER_ASSERT_OK(store_->DropBands(tenant_, old.manifest->key, 2));  // To 0.3.
  EXPECT_THAT(store_->FinishUpload(tenant_, upload),
              StatusIs(absl::StatusCode::kAborted, HasSubstr("were given up meanwhile")));
  EXPECT_THAT(store_->UploadedBytes(tenant_, whole.manifest->upload_id),
              StatusIs(absl::StatusCode::kNotFound))
      << "it can never be sealed, so it holds no memory";
  EXPECT_THAT(store_->FinishUpload(tenant_, upload), StatusIs(absl::StatusCode::kNotFound));
  KVTIER_EXPECT_OK(Check(old, 2));
  // What ends where the rest ends replaces it.
  CompressedObject rest = with_edges("0.05,0.3,1", 2);
  auto ends_at_03 = std::make_shared<Manifest>(*rest.manifest);
  ends_at_03->bands.resize(2);
  rest.segments.resize(2 * ends_at_03->geometry.layer_count());
  rest.manifest = std::move(ends_at_03);
  KVTIER_ASSERT_OK_AND_ASSIGN(const ObjectStat stat, store_->Put(tenant_, rest, Durability::kDisk,
                                                                 old.manifest->upload_id));
  EXPECT_EQ(stat.manifest->upload_id, rest.manifest->upload_id);
  KVTIER_EXPECT_OK(Check(rest, 2));
}

TEST_F(TieredStoreTest, WhatReachesFurtherStaysWhateverTheNumberOfBands) {
  const auto with_edges = [](const char* edges, uint64_t upload_seed) {
    return MakeTestObject({.edges = edges, .seed = 70, .upload_seed = upload_seed});
  };
  const CompressedObject many = with_edges("0.1,0.2,0.3,0.4,0.5,1", 0);
  KVTIER_ASSERT_OK(Put(many));
  KVTIER_ASSERT_OK(store_->DropBands(tenant_, many.manifest->key, 5));  // To 0.5, in five bands.
  const CompressedObject whole = with_edges("0.9,1", 1);
  KVTIER_ASSERT_OK_AND_ASSIGN(const ObjectStat stat, Put(whole));
  EXPECT_EQ(stat.manifest->upload_id, whole.manifest->upload_id);
  KVTIER_ASSERT_OK_AND_ASSIGN(const ObjectStat kept, Put(with_edges("0.1,0.2,1", 2)));
  EXPECT_EQ(kept.manifest->upload_id, whole.manifest->upload_id);
}

// --- Giving up -----------------------------------------------------------------------------------

TEST_F(TieredStoreTest, DroppedBandsAreGoneButForThoseWhoPinnedThem) {
  KVTIER_ASSERT_OK(Put(a_));
  KVTIER_ASSERT_OK_AND_ASSIGN(auto reader, store_->Pin(tenant_, a_.manifest->key, std::nullopt));
  KVTIER_ASSERT_OK(store_->DropBands(tenant_, a_.manifest->key, 2));
  EXPECT_EQ(store_->counters().bands_dropped, kBands - 2);
  KVTIER_EXPECT_OK(Check(a_, 2));
  EXPECT_EQ(Stat(a_).host_bands, 2u);
  KVTIER_EXPECT_OK(CheckPinned(*reader, a_, kBands));
  EXPECT_EQ(store_->host_usage().bytes, Bytes(a_));
  reader.reset();
  EXPECT_EQ(store_->host_usage().bytes, a_.manifest->PrefixBytes(2));
  KVTIER_EXPECT_OK(store_->DropBands(tenant_, a_.manifest->key, 5));  // Fewer already.
  EXPECT_THAT(store_->DropBands(tenant_, a_.manifest->key, 0),
              StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(store_->DropBands(tenant_, b_.manifest->key, 1),
              StatusIs(absl::StatusCode::kNotFound));
  Open(kPlenty);
  KVTIER_EXPECT_OK(Check(a_, 2));
}

TEST_F(TieredStoreTest, ADeletedObjectIsGoneButForThoseWhoPinnedIt) {
  KVTIER_ASSERT_OK(Put(a_));
  KVTIER_ASSERT_OK_AND_ASSIGN(auto reader, store_->Pin(tenant_, a_.manifest->key, std::nullopt));
  KVTIER_ASSERT_OK(store_->Delete(tenant_, a_.manifest->key));
  KVTIER_EXPECT_OK(Check(a_, 0));
  EXPECT_THAT(store_->Delete(tenant_, a_.manifest->key), StatusIs(absl::StatusCode::kNotFound));
  KVTIER_EXPECT_OK(CheckPinned(*reader, a_, kBands));
  reader.reset();
  EXPECT_EQ(store_->host_usage().bytes, 0u);
  EXPECT_EQ(store_->disk_usage()->bytes, 0u);
  EXPECT_EQ(store_->object_count(), 0u);
  KVTIER_ASSERT_OK(Put(a_));  // The same upload id may come again now.
  KVTIER_EXPECT_OK(Check(a_, kBands));
}

TEST_F(TieredStoreTest, TenantsDoNotSeeEachOther) {
  const TenantId other = *TenantId::FromString("other");
  KVTIER_ASSERT_OK(Put(a_));
  KVTIER_EXPECT_OK(CheckStored(*store_, other, a_, 0));
  EXPECT_THAT(store_->List(other, std::nullopt, 10), testing::IsEmpty());
  EXPECT_THAT(store_->Delete(other, a_.manifest->key), StatusIs(absl::StatusCode::kNotFound));
  KVTIER_EXPECT_OK(Check(a_, kBands));
}

TEST_F(TieredStoreTest, ListsInKeyOrderInPages) {
  std::vector<Key> keys;
  for (uint64_t seed = 1; seed <= 5; ++seed) {
    KVTIER_ASSERT_OK(Put(Object(seed), Durability::kHost));
    keys.push_back(Object(seed).manifest->key);
  }
  std::ranges::sort(keys);
  std::vector<Key> listed;
  std::optional<Key> after;
  for (;;) {
    const std::vector<ObjectStat> page = store_->List(tenant_, after, 2);
    if (page.empty()) break;
    EXPECT_LE(page.size(), 2u);
    for (const ObjectStat& stat : page) listed.push_back(stat.manifest->key);
    after = listed.back();
  }
  EXPECT_EQ(listed, keys);
}

// --- Host memory ---------------------------------------------------------------------------------

TEST_F(TieredStoreTest, BandsLeaveHostFromTheTopOfTheColdestObjectOnceItIsOnDisk) {
  Open(Bytes(a_) + Bytes(b_));
  KVTIER_ASSERT_OK(Put(a_, Durability::kHost));
  KVTIER_ASSERT_OK(Put(b_, Durability::kHost));
  KVTIER_EXPECT_OK(Check(a_, kBands));  // b is the colder one now.
  const CompressedObject small = MakeTestObject({.context_tokens = 6, .seed = 3});
  KVTIER_ASSERT_OK(Put(small, Durability::kHost));
  EXPECT_EQ(Stat(a_).host_bands, kBands);
  EXPECT_EQ(Stat(a_).disk_bands, 0u);
  EXPECT_EQ(Stat(b_).disk_bands, kBands);
  EXPECT_EQ(Stat(b_).host_bands, kBands - 1);
  EXPECT_EQ(store_->counters().bands_demoted, 1u);
  for (const CompressedObject* object : {&a_, &b_, &small}) {
    KVTIER_EXPECT_OK(Check(*object, kBands));
  }
  EXPECT_LE(store_->host_usage().bytes, store_->host_usage().budget_bytes);
}

TEST_F(TieredStoreTest, AnObjectLargerThanHostMemoryIsServedFromDiskAndNotTakenIn) {
  KVTIER_ASSERT_OK(Put(a_));
  Open(a_.manifest->PrefixBytes(2));
  KVTIER_EXPECT_OK(Check(a_, kBands));
  EXPECT_EQ(store_->counters().disk_hits, 1u);
  EXPECT_LE(store_->host_usage().bytes, store_->host_usage().budget_bytes);
  EXPECT_THAT(Put(b_),
              StatusIs(absl::StatusCode::kResourceExhausted, HasSubstr("host_budget_bytes")));
}

TEST_F(TieredStoreTest, OpenUploadsAreHostMemoryAndGiveWayWhenNobodySendsThem) {
  Open(Bytes(a_) + Bytes(b_) / 2, /*with_disk=*/false);
  KVTIER_ASSERT_OK_AND_ASSIGN(auto sending,
                              store_->StartUpload(tenant_, a_.manifest, Durability::kHost));
  EXPECT_EQ(store_->host_usage().bytes, Bytes(a_));
  EXPECT_THAT(Put(b_, Durability::kHost), StatusIs(absl::StatusCode::kResourceExhausted));
  sending.reset();
  KVTIER_EXPECT_OK(Put(b_, Durability::kHost));
  EXPECT_EQ(store_->host_usage().bytes, Bytes(b_));
  EXPECT_THAT(store_->UploadedBytes(tenant_, a_.manifest->upload_id),
              StatusIs(absl::StatusCode::kNotFound));
}

TEST_F(TieredStoreTest, WithAFullDiskAHostObjectGivesUpItsTopBandInstead) {
  Open(Bytes(a_) + Bytes(b_) / 4, /*with_disk=*/true, /*disk_bytes=*/1);
  KVTIER_ASSERT_OK(Put(a_, Durability::kHost));
  EXPECT_THAT(Put(b_, Durability::kDisk),
              StatusIs(absl::StatusCode::kResourceExhausted, HasSubstr("disk budget")));
  KVTIER_ASSERT_OK(Put(b_, Durability::kHost));
  const uint32_t kept = Stat(a_).resident_bands;
  EXPECT_LT(kept, kBands);
  EXPECT_GE(kept, 1u);
  EXPECT_EQ(store_->counters().bands_dropped, kBands - kept);
  KVTIER_EXPECT_OK(Check(a_, kept));
  KVTIER_EXPECT_OK(Check(b_, kBands));
}

TEST_F(TieredStoreTest, WhatWasPutOnDiskStaysInTheMemoryThatItArrivedIn) {
  KVTIER_ASSERT_OK(Put(b_));
  const uint64_t disk_bytes = store_->disk_usage()->bytes;
  KVTIER_ASSERT_OK(store_->Delete(tenant_, b_.manifest->key));
  Open(Bytes(a_) + 2 * Bytes(b_), /*with_disk=*/true, disk_bytes);
  KVTIER_ASSERT_OK(Put(a_, Durability::kHost));
  KVTIER_ASSERT_OK_AND_ASSIGN(const ObjectStat stat, Put(b_, Durability::kDisk));
  EXPECT_EQ(stat.host_bands, kBands);
  EXPECT_EQ(store_->host_usage().bytes, Bytes(a_) + Bytes(b_));
  EXPECT_EQ(store_->counters().bands_dropped, 0u);
  KVTIER_EXPECT_OK(Check(a_, kBands));
  KVTIER_EXPECT_OK(Check(b_, kBands));
}

TEST_F(TieredStoreTest, PinnedBandsThatOnlyHostMemoryHasStayThere) {
  Open(Bytes(a_) + Bytes(b_) / 2);
  KVTIER_ASSERT_OK(Put(a_, Durability::kHost));
  KVTIER_ASSERT_OK_AND_ASSIGN(auto reader, store_->Pin(tenant_, a_.manifest->key, std::nullopt));
  KVTIER_ASSERT_OK(store_->DropBands(tenant_, a_.manifest->key, 2));
  EXPECT_THAT(Put(b_, Durability::kHost), StatusIs(absl::StatusCode::kResourceExhausted));
  KVTIER_EXPECT_OK(CheckPinned(*reader, a_, kBands));
  reader.reset();
  KVTIER_EXPECT_OK(Put(b_, Durability::kHost));
  KVTIER_EXPECT_OK(Check(a_, 2));
}

TEST_F(TieredStoreTest, VerifyFindsDamageInHostMemoryAndTheDiskServesInstead) {
  const auto flip = [&](uint32_t band) {
    KVTIER_ASSERT_OK_AND_ASSIGN(const auto pinned,
                                store_->Pin(tenant_, a_.manifest->key, std::nullopt));
    KVTIER_ASSERT_OK_AND_ASSIGN(const SegmentRef segment,
                                pinned->Read(BandIndex(band), LayerIndex(1)));
    // What a memory cell that lost its value does.
    const_cast<std::byte&>(segment.bytes()[0]) ^= std::byte{1};
  };
  KVTIER_ASSERT_OK(Put(a_));
  KVTIER_EXPECT_OK(store_->Verify(tenant_, a_.manifest->key));
  flip(2);
  KVTIER_EXPECT_OK(store_->Verify(tenant_, a_.manifest->key));
  EXPECT_EQ(store_->counters().checksum_failures, 1u);
  EXPECT_EQ(Stat(a_).host_bands, 2u);
  KVTIER_EXPECT_OK(Check(a_, kBands));

  Open(kPlenty, /*with_disk=*/false);
  KVTIER_ASSERT_OK(Put(a_, Durability::kHost));
  flip(3);
  EXPECT_THAT(store_->Verify(tenant_, a_.manifest->key), StatusIs(absl::StatusCode::kDataLoss));
  EXPECT_EQ(store_->counters().bands_lost, kBands - 3);
  KVTIER_EXPECT_OK(Check(a_, 3));
  EXPECT_THAT(store_->Verify(tenant_, b_.manifest->key), StatusIs(absl::StatusCode::kNotFound));
}

// --- Counters and races --------------------------------------------------------------------------

TEST_F(TieredStoreTest, EveryRequestIsAHitAMissOrAFailure) {
  KVTIER_ASSERT_OK(Put(a_));
  KVTIER_EXPECT_OK(Check(a_, kBands));
  KVTIER_EXPECT_OK(Check(b_, 0));
  EXPECT_THAT(store_->Pin(tenant_, a_.manifest->key, b_.manifest->upload_id),
              StatusIs(absl::StatusCode::kAborted));
  KVTIER_EXPECT_OK(
      store_->Pin(tenant_, a_.manifest->key, a_.manifest->upload_id));  // Reads nothing.
  Open(kPlenty);
  KVTIER_EXPECT_OK(Check(a_, kBands));
  const StoreCounters& counters = store_->counters();
  EXPECT_EQ(counters.requests,
            counters.host_hits + counters.disk_hits + counters.misses + counters.failures);
  EXPECT_EQ(counters.disk_hits, 1u);
}

TEST_F(TieredStoreTest, ReadingPastThePinnedBandsIsOutOfRange) {
  KVTIER_ASSERT_OK(Put(a_));
  KVTIER_ASSERT_OK_AND_ASSIGN(const auto reader,
                              store_->Pin(tenant_, a_.manifest->key, std::nullopt));
  EXPECT_THAT(reader->Read(BandIndex(kBands), LayerIndex(0)),
              StatusIs(absl::StatusCode::kOutOfRange));
  EXPECT_THAT(reader->Read(BandIndex(0), LayerIndex(3)), StatusIs(absl::StatusCode::kOutOfRange));
}

#ifdef KVTIER_SYNC_POINTS
TEST_F(TieredStoreTest, ReadersAreServedWhileAnotherObjectIsBeingSealed) {
  KVTIER_ASSERT_OK(Put(a_));
  absl::Status during = absl::UnknownError("the point was not passed");
  const ScopedSyncPoint at("store.seal.before_manifest", [&] { during = Check(a_, kBands); });
  KVTIER_ASSERT_OK(Put(b_));
  KVTIER_EXPECT_OK(during);
}

TEST_F(TieredStoreTest, ABandDemotedBetweenHostAndDiskIsStillRead) {
  KVTIER_ASSERT_OK(Put(a_));
  Open(kPlenty);
  bool is_first = true;
  const ScopedSyncPoint at("store.read.after_host_miss", [&] {
    if (std::exchange(is_first, false)) Put(b_).IgnoreError();
  });
  KVTIER_EXPECT_OK(Check(a_, kBands));
}
#endif

}  // namespace
}  // namespace kvtier
