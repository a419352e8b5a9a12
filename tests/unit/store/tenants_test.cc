// Quotas, pins, time to live and events of a TieredStore.
#include <map>
#include <random>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/log.h"
#include "base/simulated_clock.h"
#include "base/status_matchers.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "store/expiry_sweeper.h"
#include "store/tiered_store.h"
#include "tests/testing/random.h"
#include "tests/testing/store_checks.h"
#include "tests/testing/temp_dir.h"
#include "tests/testing/test_object.h"

namespace kvtier {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

// What a watcher knows: the current upload of each key, and its bands.
using Known = std::map<Key, std::pair<UploadId, uint32_t>>;

Known Listed(TieredStore& store, const TenantId& tenant) {
  Known known;
  for (const ObjectStat& stat : store.List(tenant, std::nullopt, 10000)) {
    known[stat.manifest->key] = {stat.manifest->upload_id, stat.resident_bands};
  }
  return known;
}

class TenantsTest : public testing::Test {
 protected:
  static constexpr uint64_t kPlenty = 64 << 20;

  void Open(TieredStoreOptions options = {}, bool with_disk = true, uint64_t disk_bytes = 0) {
    store_.reset();
    std::unique_ptr<DurableTier> disk;
    if (with_disk) {
      absl::StatusOr<std::unique_ptr<DurableTier>> opened =
          OpenRocksDbTier({.folder = dir_.File("store"), .budget_bytes = disk_bytes});
      KVTIER_CHECK_OK(opened);
      disk = *std::move(opened);
    }
    absl::StatusOr<std::unique_ptr<TieredStore>> store =
        TieredStore::Create(options, std::move(disk), clock_);
    KVTIER_CHECK_OK(store);
    store_ = *std::move(store);
  }
  static TieredStoreOptions Quota(const TenantId& tenant, uint64_t bytes) {
    TieredStoreOptions options;
    options.tenant_quotas.of = {{tenant, bytes}};
    return options;
  }
  static CompressedObject Object(uint64_t seed, uint64_t upload_seed = 0) {
    return MakeTestObject({.seed = seed, .upload_seed = upload_seed});
  }
  static uint64_t Bytes(const CompressedObject& object) { return object.manifest->total_bytes(); }
  absl::StatusOr<ObjectStat> Put(const TenantId& tenant, const CompressedObject& object,
                                 Durability durability = Durability::kDisk,
                                 absl::Duration ttl = absl::InfiniteDuration()) {
    return store_->Put(tenant, object, durability, std::nullopt, ttl);
  }
  absl::Status SetPinned(const TenantId& tenant, const CompressedObject& object, bool pinned) {
    return store_->SetAttributes(tenant, object.manifest->key, std::nullopt, {.pinned = pinned})
        .status();
  }
  uint32_t Resident(const TenantId& tenant, const CompressedObject& object) {
    const absl::StatusOr<ObjectStat> stat = store_->Stat(tenant, object.manifest->key);
    return stat.ok() ? stat->resident_bands : 0;
  }

  TempDir dir_;
  SimulatedClock clock_;
  const TenantId a_ = *TenantId::FromString("a");
  const TenantId b_ = *TenantId::FromString("b");
  std::unique_ptr<TieredStore> store_;
  const CompressedObject one_ = Object(1);
  const CompressedObject two_ = Object(2);
  const CompressedObject three_ = Object(3);
  static constexpr uint32_t kBands = 6;
};

// --- Quotas --------------------------------------------------------------------------------------

TEST_F(TenantsTest, ATenantOverItsQuotaPaysWithItsOwnObjects) {
  Open(Quota(a_, Bytes(one_) * 5 / 2));
  const CompressedObject others = Object(1, 99);  // Upload ids are unique over all tenants.
  KVTIER_ASSERT_OK(Put(b_, others));
  KVTIER_ASSERT_OK(Put(a_, one_));
  KVTIER_ASSERT_OK(Put(a_, two_));
  EXPECT_EQ(store_->StatOfTenant(a_).use.bytes(), Bytes(one_) + Bytes(two_));
  KVTIER_ASSERT_OK(Put(a_, three_));
  const TenantStat stat = store_->StatOfTenant(a_);
  EXPECT_LE(stat.use.bytes(), stat.quota_bytes);
  EXPECT_EQ(stat.use.upload_bytes, 0u);
  KVTIER_EXPECT_OK(CheckStored(*store_, a_, three_, kBands));
  const uint32_t left = Resident(a_, one_) + Resident(a_, two_);
  EXPECT_LT(left, 2 * kBands);
  EXPECT_GT(left, 0u);  // It degraded, and nothing went that had not to.
  EXPECT_GT(store_->counters().quota_give_ups, 0u);
  EXPECT_EQ(store_->counters().quota_refusals, 0u);
  KVTIER_EXPECT_OK(CheckStored(*store_, b_, others, kBands));
  KVTIER_EXPECT_OK(store_->CheckInvariants());
  // The same after a restart: what is given up stays so, and the account is right.
  const uint64_t used = stat.use.bytes();
  Open(Quota(a_, Bytes(one_) * 5 / 2));
  EXPECT_EQ(store_->StatOfTenant(a_).use.bytes(), used);
  EXPECT_EQ(store_->StatOfTenant(b_).use.bytes(), Bytes(others));
}

TEST_F(TenantsTest, AQuotaThatDoesNotSufficeIsNamedAndNothingGoes) {
  Open(Quota(a_, Bytes(one_) * 3 / 2));
  KVTIER_ASSERT_OK(Put(a_, one_));
  KVTIER_ASSERT_OK_AND_ASSIGN(const auto read, store_->Pin(a_, one_.manifest->key, std::nullopt));
  EXPECT_THAT(
      Put(a_, two_),
      StatusIs(absl::StatusCode::kResourceExhausted,
               HasSubstr(absl::StrCat("tenant a uses ", Bytes(one_), " bytes of its quota"))));
  EXPECT_EQ(Resident(a_, one_), kBands);  // Somebody reads it.
  EXPECT_EQ(store_->counters().quota_refusals, 1u);
  EXPECT_EQ(store_->StatOfTenant(a_).use.upload_bytes, 0u);
  // Larger than the quota: nothing else could help.
  const CompressedObject large = MakeTestObject({.context_tokens = 600, .seed = 9});
  EXPECT_THAT(Put(a_, large), StatusIs(absl::StatusCode::kResourceExhausted));
  EXPECT_EQ(Resident(a_, one_), kBands);
}

TEST_F(TenantsTest, OpenUploadsCountAndAReplacementCountsOnce) {
  Open(Quota(a_, Bytes(one_) * 3 / 2));
  KVTIER_ASSERT_OK(store_->StartUpload(a_, one_.manifest, Durability::kHost));
  EXPECT_EQ(store_->StatOfTenant(a_).use.upload_bytes, Bytes(one_));
  EXPECT_THAT(store_->StartUpload(a_, two_.manifest, Durability::kHost),
              StatusIs(absl::StatusCode::kResourceExhausted));
  store_->AbandonUpload(a_, one_.manifest->upload_id);
  EXPECT_EQ(store_->StatOfTenant(a_).use, TenantUse());
  KVTIER_ASSERT_OK(Put(a_, one_));
  const CompressedObject again = Object(1, 7);
  KVTIER_ASSERT_OK(store_->Put(a_, again, Durability::kDisk, one_.manifest->upload_id));
  KVTIER_EXPECT_OK(CheckStored(*store_, a_, again, kBands));
  EXPECT_EQ(store_->StatOfTenant(a_).use.bytes(), Bytes(again));
}

// --- Pins ----------------------------------------------------------------------------------------

TEST_F(TenantsTest, APinnedObjectStaysWholeUnderPressureAlsoAfterARestart) {
  const uint64_t disk_bytes = Bytes(one_) * 4;
  Open({}, /*with_disk=*/true, disk_bytes);
  KVTIER_ASSERT_OK(Put(a_, one_));
  KVTIER_ASSERT_OK(SetPinned(a_, one_, true));
  EXPECT_EQ(store_->StatOfTenant(a_).use.pinned_bytes, Bytes(one_));
  Open({}, /*with_disk=*/true, disk_bytes);
  KVTIER_ASSERT_OK_AND_ASSIGN(const ObjectStat stat, store_->Stat(a_, one_.manifest->key));
  EXPECT_TRUE(stat.attributes.pinned);
  EXPECT_EQ(store_->StatOfTenant(a_).use.pinned_bytes, Bytes(one_));
  for (uint64_t seed = 10; seed < 30; ++seed) KVTIER_ASSERT_OK(Put(b_, Object(seed)));
  EXPECT_GT(store_->counters().bands_dropped + store_->counters().objects_evicted, 0u);
  KVTIER_EXPECT_OK(CheckStored(*store_, a_, one_, kBands));
  KVTIER_ASSERT_OK(SetPinned(a_, one_, false));
  for (uint64_t seed = 30; seed < 50; ++seed) KVTIER_ASSERT_OK(Put(b_, Object(seed)));
  EXPECT_LT(Resident(a_, one_), kBands);
  KVTIER_EXPECT_OK(store_->CheckInvariants());
}

TEST_F(TenantsTest, APutThatNeedsPinnedSpaceIsRefused) {
  TieredStoreOptions options;
  options.host_budget_bytes = Bytes(one_) * 5 / 2;
  Open(options, /*with_disk=*/false);
  KVTIER_ASSERT_OK(Put(a_, one_, Durability::kHost));
  KVTIER_ASSERT_OK(SetPinned(a_, one_, true));
  KVTIER_ASSERT_OK(Put(a_, two_, Durability::kHost));
  KVTIER_ASSERT_OK_AND_ASSIGN(const auto read, store_->Pin(a_, two_.manifest->key, std::nullopt));
  EXPECT_THAT(Put(a_, three_, Durability::kHost), StatusIs(absl::StatusCode::kResourceExhausted));
  KVTIER_EXPECT_OK(CheckStored(*store_, a_, one_, kBands));
}

TEST_F(TenantsTest, PinningMakesNothingDurable) {
  Open();
  KVTIER_ASSERT_OK(Put(a_, one_, Durability::kHost));
  KVTIER_ASSERT_OK(SetPinned(a_, one_, true));
  Open();
  EXPECT_EQ(Resident(a_, one_), 0u);
}

TEST_F(TenantsTest, WhatIsPinnedInHostMemoryIsPinnedOnDiskWhenItGoesThere) {
  TieredStoreOptions options;
  options.host_budget_bytes = Bytes(one_) * 3 / 2;
  Open(options);
  KVTIER_ASSERT_OK(Put(a_, one_, Durability::kHost, absl::Hours(1)));
  KVTIER_ASSERT_OK(SetPinned(a_, one_, true));
  KVTIER_ASSERT_OK(Put(a_, two_, Durability::kHost));  // One of them must go to the disk.
  KVTIER_ASSERT_OK(Put(a_, three_, Durability::kHost));
  KVTIER_ASSERT_OK_AND_ASSIGN(const ObjectStat before, store_->Stat(a_, one_.manifest->key));
  ASSERT_EQ(before.disk_bands, kBands);
  Open(options);
  KVTIER_ASSERT_OK_AND_ASSIGN(const ObjectStat after, store_->Stat(a_, one_.manifest->key));
  EXPECT_EQ(after.attributes, before.attributes);
  EXPECT_EQ(after.attributes.expires_at, clock_.Now() + absl::Hours(1));
}

TEST_F(TenantsTest, PinnedBytesAreBounded) {
  Open(Quota(a_, Bytes(one_) * 3));
  KVTIER_ASSERT_OK(Put(a_, one_));
  KVTIER_ASSERT_OK(Put(a_, two_));
  KVTIER_ASSERT_OK(SetPinned(a_, one_, true));
  KVTIER_ASSERT_OK(SetPinned(a_, one_, true));  // Doing it twice is fine.
  EXPECT_THAT(SetPinned(a_, two_, true),
              StatusIs(absl::StatusCode::kResourceExhausted, HasSubstr("has pinned")));
  EXPECT_EQ(store_->StatOfTenant(a_).pinned_bytes_max, Bytes(one_) * 3 / 2);
  // The pin passes on to the upload that replaces a pinned one.
  const CompressedObject again = Object(1, 7);
  KVTIER_ASSERT_OK(store_->Put(a_, again, Durability::kDisk, one_.manifest->upload_id));
  KVTIER_ASSERT_OK_AND_ASSIGN(const ObjectStat stat, store_->Stat(a_, one_.manifest->key));
  EXPECT_TRUE(stat.attributes.pinned);
  KVTIER_ASSERT_OK(store_->Delete(a_, one_.manifest->key));
  EXPECT_EQ(store_->StatOfTenant(a_).use.pinned_bytes, 0u);
  KVTIER_EXPECT_OK(SetPinned(a_, two_, true));
}

TEST_F(TenantsTest, AttributesAreOfOneTenantsCurrentUpload) {
  Open();
  KVTIER_ASSERT_OK(Put(a_, one_));
  EXPECT_THAT(SetPinned(b_, one_, true), StatusIs(absl::StatusCode::kNotFound));
  EXPECT_THAT(SetPinned(a_, two_, true), StatusIs(absl::StatusCode::kNotFound));
  EXPECT_THAT(
      store_->SetAttributes(a_, one_.manifest->key, two_.manifest->upload_id, {.pinned = true}),
      StatusIs(absl::StatusCode::kAborted));
}

// --- Time to live --------------------------------------------------------------------------------

TEST_F(TenantsTest, AnExpiredObjectIsAMissAtOnceAndIsSweptLater) {
  Open();
  KVTIER_ASSERT_OK(Put(a_, one_, Durability::kDisk, absl::Seconds(10)));
  KVTIER_ASSERT_OK(Put(a_, two_));
  clock_.AdvanceTime(absl::Seconds(9));
  KVTIER_EXPECT_OK(CheckStored(*store_, a_, one_, kBands));
  EXPECT_EQ(store_->RemoveExpired(), 0u);
  clock_.AdvanceTime(absl::Seconds(1));
  EXPECT_THAT(store_->Pin(a_, one_.manifest->key, std::nullopt),
              StatusIs(absl::StatusCode::kNotFound));
  EXPECT_THAT(store_->Stat(a_, one_.manifest->key), StatusIs(absl::StatusCode::kNotFound));
  EXPECT_THAT(store_->Verify(a_, one_.manifest->key), StatusIs(absl::StatusCode::kNotFound));
  EXPECT_THAT(store_->Delete(a_, one_.manifest->key), StatusIs(absl::StatusCode::kNotFound));
  EXPECT_THAT(SetPinned(a_, one_, true), StatusIs(absl::StatusCode::kNotFound));
  // A page of one is whole although an expired object comes before it.
  EXPECT_EQ(store_->List(a_, std::nullopt, 1).size(), 1u);
  const uint64_t before = store_->disk_usage()->bytes;
  EXPECT_EQ(store_->RemoveExpired(), 1u);
  EXPECT_LT(store_->disk_usage()->bytes, before);
  EXPECT_EQ(store_->counters().objects_expired, 1u);
  EXPECT_EQ(store_->object_count(), 1u);
  EXPECT_EQ(store_->RemoveExpired(), 0u);
}

TEST_F(TenantsTest, ReadersOfAnExpiredObjectFinish) {
  Open();
  KVTIER_ASSERT_OK(Put(a_, one_, Durability::kHost, absl::Seconds(10)));
  KVTIER_ASSERT_OK_AND_ASSIGN(const auto read, store_->Pin(a_, one_.manifest->key, std::nullopt));
  clock_.AdvanceTime(absl::Seconds(11));
  EXPECT_EQ(store_->RemoveExpired(), 1u);
  KVTIER_EXPECT_OK(CheckPinned(*read, one_, kBands));
}

TEST_F(TenantsTest, ExpirySurvivesARestartAndCanBeChanged) {
  Open();
  KVTIER_ASSERT_OK(Put(a_, one_, Durability::kDisk, absl::Seconds(10)));
  KVTIER_ASSERT_OK(Put(a_, two_, Durability::kDisk, absl::Seconds(10)));
  KVTIER_ASSERT_OK(store_->SetAttributes(a_, two_.manifest->key, std::nullopt,
                                         {.expires_at = absl::InfiniteFuture()}));
  KVTIER_ASSERT_OK(SetPinned(a_, one_, true));  // Which does not keep it from expiring.
  Open();
  clock_.AdvanceTime(absl::Seconds(10));
  EXPECT_EQ(Resident(a_, one_), 0u);
  EXPECT_EQ(store_->RemoveExpired(), 1u);
  KVTIER_EXPECT_OK(CheckStored(*store_, a_, two_, kBands));
}

TEST_F(TenantsTest, APutOfAStoredObjectLengthensItsLifeAndNeverShortensIt) {
  Open();
  KVTIER_ASSERT_OK(Put(a_, one_, Durability::kDisk, absl::Seconds(10)));
  KVTIER_ASSERT_OK(Put(a_, Object(1, 5), Durability::kDisk, absl::Seconds(5)));
  clock_.AdvanceTime(absl::Seconds(6));
  EXPECT_EQ(Resident(a_, one_), kBands);
  KVTIER_ASSERT_OK(Put(a_, Object(1, 6), Durability::kDisk, absl::Seconds(10)));
  Open();
  clock_.AdvanceTime(absl::Seconds(5));
  KVTIER_EXPECT_OK(CheckStored(*store_, a_, one_, kBands));
  // An expired one is no longer in the way of another upload.
  clock_.AdvanceTime(absl::Seconds(5));
  const CompressedObject other = Object(1, 8);
  KVTIER_ASSERT_OK(Put(a_, other));
  KVTIER_EXPECT_OK(CheckStored(*store_, a_, other, kBands));
  EXPECT_EQ(store_->RemoveExpired(), 0u);
}

TEST_F(TenantsTest, TheSweeperRemovesWhatHasExpired) {
  Open();
  KVTIER_ASSERT_OK(Put(a_, one_, Durability::kHost, absl::Seconds(10)));
  const ExpirySweeper sweeper(*store_, clock_);
  clock_.AwaitWaiters(1);  // It has looked, and waits.
  EXPECT_EQ(store_->object_count(), 1u);
  clock_.AdvanceTime(absl::Seconds(10));
  clock_.AwaitWaiters(1);
  EXPECT_EQ(store_->object_count(), 0u);
}

// --- Events --------------------------------------------------------------------------------------

// Applies what a watch says, as docs/protocol.md tells clients to.
class Watcher {
 public:
  Watcher(TieredStore& store, TenantId tenant) : store_(store), tenant_(std::move(tenant)) {}

  void Start(const std::optional<uint64_t>& after = std::nullopt) {
    watch_.reset();
    absl::StatusOr<std::unique_ptr<ObjectWatch>> watch = store_.Watch(tenant_, after);
    KVTIER_CHECK_OK(watch);
    watch_ = *std::move(watch);
    bool is_first = true;
    had_snapshot = false;
    while (std::optional<ObjectWatch::Part> part = watch_->NextPart(3)) {
      if (std::exchange(is_first, false)) known.clear();
      had_snapshot = true;
      for (const ObjectStat& stat : part->objects) {
        known[stat.manifest->key] = {stat.manifest->upload_id, stat.resident_bands};
      }
      sequence = watch_->snapshot_sequence();
    }
  }
  // False if it was cut.
  bool Apply() {
    for (;;) {
      const absl::StatusOr<std::vector<StoreEvent>> events = watch_->events().Next(5);
      if (!events.ok()) return false;
      if (events->empty()) return true;
      for (const StoreEvent& event : *events) ApplyOne(event);
    }
  }

  bool had_snapshot = false;
  uint64_t sequence = 0;
  Known known;
  std::vector<std::string> log;  // One word for each event.
  int contradictions = 0;        // Events that do not fit what came before.

 private:
  void ApplyOne(const StoreEvent& event) {
    if (event.sequence <= sequence) ++contradictions;
    sequence = event.sequence;
    const auto at = known.find(event.key);
    if (const auto* sealed = std::get_if<StoreEvent::Sealed>(&event.change)) {
      if (at != known.end()) ++contradictions;  // Its end should have come first.
      known[event.key] = {event.upload, sealed->object->resident_bands};
      log.push_back("sealed");
      return;
    }
    if (at == known.end() || at->second.first != event.upload) {
      ++contradictions;
      return;
    }
    if (const auto* lowered = std::get_if<StoreEvent::Lowered>(&event.change)) {
      if (lowered->resident_bands >= at->second.second) ++contradictions;
      at->second.second = lowered->resident_bands;
      static constexpr const char* kNames[] = {"degraded", "requested", "lost-bands"};
      log.push_back(kNames[static_cast<int>(lowered->reason)]);
    } else {
      static constexpr const char* kNames[] = {"deleted", "replaced", "evicted", "expired", "lost"};
      log.push_back(kNames[static_cast<int>(std::get<StoreEvent::Removed>(event.change).reason)]);
      known.erase(at);
    }
  }

  TieredStore& store_;
  const TenantId tenant_;
  std::unique_ptr<ObjectWatch> watch_;
};

TEST_F(TenantsTest, AWatcherHearsOfEachChangeOfItsTenantWithItsCause) {
  Open();
  KVTIER_ASSERT_OK(Put(a_, one_));
  KVTIER_ASSERT_OK(Put(b_, two_));
  Watcher watcher(*store_, a_);
  watcher.Start();
  EXPECT_TRUE(watcher.had_snapshot);
  EXPECT_EQ(watcher.known, Listed(*store_, a_));
  EXPECT_EQ(watcher.known.size(), 1u);

  KVTIER_ASSERT_OK(store_->DropBands(a_, one_.manifest->key, 2));
  KVTIER_ASSERT_OK(store_->DropBands(a_, one_.manifest->key, 4));  // Changes nothing.
  KVTIER_ASSERT_OK(Put(a_, Object(1, 7)));
  KVTIER_ASSERT_OK(Put(b_, Object(3, 99)));
  KVTIER_ASSERT_OK(store_->Delete(a_, one_.manifest->key));
  KVTIER_ASSERT_OK(Put(a_, three_, Durability::kHost, absl::Seconds(1)));
  clock_.AdvanceTime(absl::Seconds(1));
  store_->RemoveExpired();
  ASSERT_TRUE(watcher.Apply());
  EXPECT_THAT(watcher.log,
              ElementsAre("requested", "replaced", "sealed", "deleted", "sealed", "expired"));
  EXPECT_EQ(watcher.contradictions, 0);
  EXPECT_THAT(watcher.known, IsEmpty());

  // A second one goes on where the first one was, without a snapshot.
  Watcher second(*store_, a_);
  KVTIER_ASSERT_OK(Put(a_, Object(4)));
  second.Start(watcher.sequence);
  EXPECT_FALSE(second.had_snapshot);
  ASSERT_TRUE(second.Apply());
  EXPECT_THAT(second.log, ElementsAre("sealed"));
}

TEST_F(TenantsTest, PressureIsSeen) {
  Open({}, /*with_disk=*/true, Bytes(one_) * 3);
  Watcher watcher(*store_, a_);
  watcher.Start();
  for (uint64_t seed = 10; seed < 25; ++seed) KVTIER_ASSERT_OK(Put(a_, Object(seed)));
  ASSERT_TRUE(watcher.Apply());
  EXPECT_THAT(watcher.log, testing::Contains("degraded"));
  EXPECT_EQ(watcher.contradictions, 0);
  EXPECT_EQ(watcher.known, Listed(*store_, a_));
}

TEST_F(TenantsTest, AfterARestartAWatcherBeginsWithASnapshot) {
  Open();
  KVTIER_ASSERT_OK(Put(a_, one_));
  Open();
  Watcher watcher(*store_, a_);
  watcher.Start(17);  // Of the store before.
  EXPECT_TRUE(watcher.had_snapshot);
  EXPECT_EQ(watcher.known, Listed(*store_, a_));
  store_->StopWatches();
  EXPECT_FALSE(watcher.Apply());
  EXPECT_THAT(store_->Watch(a_, std::nullopt), StatusIs(absl::StatusCode::kUnavailable));
}

// Writers and readers change everything at once under pressure; watchers come at any moment, some
// go on where an earlier one was. Each ends with what List says.
TEST_F(TenantsTest, SnapshotAndEventsAreAlwaysWhatListSays) {
  TieredStoreOptions options = Quota(b_, Bytes(one_) * 4);
  options.host_budget_bytes = Bytes(one_) * 6;
  Open(options, /*with_disk=*/false);
  constexpr int kSteps = 400;
  const uint64_t test_seed = TestSeed();
  std::vector<std::thread> threads;
  for (uint64_t writer = 0; writer < 2; ++writer) {
    for (const TenantId* const tenant_of : {&a_, &b_}) {
      threads.emplace_back([this, writer, test_seed, &tenant = *tenant_of] {
        std::mt19937_64 random(test_seed + writer * 2 + (tenant == a_ ? 0 : 1));
        const uint64_t upload_seed_begin = 1000 * (writer * 2 + (tenant == a_ ? 0 : 1));
        const auto below = [&](uint64_t bound) { return random() % bound; };
        for (int step = 0; step < kSteps; ++step) {
          const uint64_t seed = below(8);
          const Key key = Object(seed).manifest->key;
          switch (below(6)) {
            case 0:
              store_->Delete(tenant, key).IgnoreError();
              break;
            case 1:
              store_->DropBands(tenant, key, static_cast<uint32_t>(1 + below(kBands)))
                  .IgnoreError();
              break;
            case 2:
              store_->RemoveExpired();
              break;
            case 3:
              store_
                  ->SetAttributes(tenant, key, std::nullopt,
                                  {.pinned = below(4) == 0,
                                   .expires_at = below(2) == 0 ? clock_.Now() + absl::Seconds(2)
                                                               : absl::InfiniteFuture()})
                  .IgnoreError();
              clock_.AdvanceTime(absl::Seconds(1));
              break;
            default:
              Put(tenant, Object(seed, upload_seed_begin + static_cast<uint64_t>(step)),
                  Durability::kHost)
                  .IgnoreError();
          }
        }
      });
    }
  }
  std::vector<std::unique_ptr<Watcher>> watchers;
  for (int i = 0; i < 6; ++i) {
    watchers.push_back(std::make_unique<Watcher>(*store_, i < 3 ? a_ : b_));
  }
  for (const std::unique_ptr<Watcher>& watcher : watchers) {
    threads.emplace_back([&watcher] {
      watcher->Start();
      for (int round = 0; round < 50; ++round) {
        if (!watcher->Apply()) {
          watcher->Start();
        } else if (round % 7 == 3) {
          watcher->Start(watcher->sequence);
        }
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  store_->RemoveExpired();
  for (size_t i = 0; i < watchers.size(); ++i) {
    ASSERT_TRUE(watchers[i]->Apply());
    EXPECT_EQ(watchers[i]->known, Listed(*store_, i < 3 ? a_ : b_)) << "watcher " << i;
    EXPECT_EQ(watchers[i]->contradictions, 0) << "watcher " << i;
  }
  EXPECT_LE(store_->StatOfTenant(b_).use.bytes(), Bytes(one_) * 4);
  KVTIER_EXPECT_OK(store_->CheckInvariants());
  watchers.clear();
}

}  // namespace
}  // namespace kvtier
