// Budgets that do not hold what is put: quality goes first, from the top of the least valuable
// objects; whole objects go only at their floor; every loss is counted, and what somebody reads
// stays.
#include <algorithm>
#include <map>
#include <optional>
#include <random>
#include <variant>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/limits.h"
#include "base/log.h"
#include "base/simulated_clock.h"
#include "base/status_matchers.h"
#include "base/too_large.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "store/tiered_store.h"
#include "tests/testing/random.h"
#include "tests/testing/store_checks.h"
#include "tests/testing/temp_dir.h"
#include "tests/testing/test_object.h"

namespace kvtier {
namespace {

using testing::HasSubstr;

constexpr uint64_t kPlenty = 64 << 20;
constexpr uint32_t kBands = 4;
constexpr uint32_t kFloorBands = 2;  // Of the edges and the floor below.

class StorePressureTest : public testing::TestWithParam<const char*> {
 protected:
  // `disk_bytes`: no value: no disk.
  void Open(uint64_t host_bytes, std::optional<uint64_t> disk_bytes) {
    store_.reset();
    TieredStoreOptions options;
    options.host_budget_bytes = host_bytes;
    options.upload_bytes_max = kPlenty;
    options.eviction_policy = GetParam();
    options.floor_ratio = 0.25;
    options.objects_max = objects_max_;
    absl::StatusOr<std::unique_ptr<TieredStore>> store = OpenTestStore(
        disk_bytes.has_value() ? dir_.File("store") : "", options, clock_, disk_bytes.value_or(0));
    KVTIER_CHECK_OK(store);
    store_ = *std::move(store);
  }

  static CompressedObject Object(uint64_t seed, uint32_t tokens = 60) {
    return MakeTestObject({.layers = 2,
                           .head_dim = 64,
                           .context_tokens = tokens,
                           .edges = "0.1,0.3,0.6,1",
                           .seed = seed});
  }
  // What the disk charges for a whole object: put alone, and asked.
  uint64_t DiskCharge(const CompressedObject& object) {
    TempDir dir;
    absl::StatusOr<std::unique_ptr<TieredStore>> store =
        OpenTestStore(dir.File("store"), kPlenty, clock_);
    KVTIER_CHECK_OK(store);
    KVTIER_CHECK_OK((*store)->Put(tenant_, object, Durability::kDisk));
    return (*store)->disk_usage()->bytes;
  }

  absl::Status Put(const CompressedObject& object, Durability durability) {
    clock_.AdvanceTime(absl::Seconds(10));
    return store_->Put(tenant_, object, durability).status();
  }
  uint32_t Resident(const CompressedObject& object) {
    const absl::StatusOr<ObjectStat> stat = store_->Stat(tenant_, object.manifest->key);
    return stat.ok() ? stat->resident_bands : 0;
  }
  std::unique_ptr<PinnedObject> Pin(const CompressedObject& object) {
    absl::StatusOr<std::unique_ptr<PinnedObject>> pinned =
        store_->Pin(tenant_, object.manifest->key, std::nullopt);
    KVTIER_CHECK_OK(pinned);
    return *std::move(pinned);
  }

  // What was last seen of each acknowledged object, and the counters at that time.
  struct Seen {
    CompressedObject object;
    uint32_t bands = kBands;
  };
  void Acknowledged(const CompressedObject& object) { seen_[object.manifest->key] = {object}; }

  // Holds what the store has now against what was seen before: everything is served byte for byte,
  // nothing grows, nobody is below the floor, and the counters account for each band and object
  // that is missing, to the last one.
  void Account() {
    KVTIER_ASSERT_OK(store_->CheckInvariants());
    uint64_t dropped = 0, evicted = 0;
    for (auto at = seen_.begin(); at != seen_.end();) {
      Seen& seen = at->second;
      const uint32_t now = Resident(seen.object);
      ASSERT_LE(now, seen.bands);
      if (now == 0) {
        ++evicted;
        dropped += seen.bands - std::min(seen.bands, kFloorBands);  // On its way to the floor.
        at = seen_.erase(at);
        continue;
      }
      ASSERT_GE(now, std::min(seen.bands, kFloorBands));
      dropped += seen.bands - now;
      seen.bands = now;
      ++at;
    }
    const StoreCounters& counters = store_->counters();
    EXPECT_EQ(counters.bands_dropped - bands_dropped_, dropped);
    EXPECT_EQ(counters.objects_evicted - objects_evicted_, evicted);
    EXPECT_EQ(counters.bands_lost, 0u);
    EXPECT_EQ(store_->object_count(), seen_.size());
    bands_dropped_ = counters.bands_dropped;
    objects_evicted_ = counters.objects_evicted;
  }
  void CheckBytes() {
    for (const auto& [key, seen] : seen_) {
      KVTIER_EXPECT_OK(CheckStored(*store_, tenant_, seen.object, seen.bands));
    }
  }

  TempDir dir_;
  SimulatedClock clock_;
  const TenantId tenant_;
  std::unique_ptr<TieredStore> store_;
  uint64_t objects_max_ = limits::kObjectsMax;
  std::map<Key, Seen> seen_;
  uint64_t bands_dropped_ = 0, objects_evicted_ = 0;
};

TEST_P(StorePressureTest, HostMemoryAloneGivesUpBandsAndAtTheFloorObjects) {
  Open(5 * Object(1).manifest->total_bytes() / 2, std::nullopt);
  for (uint64_t seed = 1; seed <= 20; ++seed) {
    SCOPED_TRACE(seed);
    const CompressedObject object = Object(seed);
    KVTIER_ASSERT_OK(Put(object, Durability::kHost));
    EXPECT_EQ(Resident(object), kBands) << "an acknowledged put is whole";
    Acknowledged(object);
    Account();
    CheckBytes();
    if (seed == 3) {
      EXPECT_EQ(objects_evicted_, 0u) << "quality goes before objects do";
      EXPECT_GT(bands_dropped_, 0u);
    }
    if (HasFailure()) return;
  }
  EXPECT_GT(objects_evicted_, 0u);
  EXPECT_GT(seen_.size(), 2u) << "more than whole objects would be";
}

// Three times what the disk may hold, in objects that are large beside the cost of a file.
TEST_P(StorePressureTest, TheDiskTurnsOverThreeTimes) {
  constexpr uint32_t kTokens = 700;
  const uint64_t charge = DiskCharge(Object(1, kTokens));
  const uint64_t budget = 5 * charge + charge / 3;
  Open(2 * Object(1, kTokens).manifest->total_bytes(), budget);
  std::mt19937_64 random(1);
  for (uint64_t seed = 1; seed <= 16; ++seed) {
    SCOPED_TRACE(seed);
    const CompressedObject object = Object(seed, kTokens);
    KVTIER_ASSERT_OK(Put(object, seed % 3 == 0 ? Durability::kHost : Durability::kDisk));
    EXPECT_EQ(Resident(object), kBands);
    Acknowledged(object);
    Account();
    uint64_t live_bytes = 0;
    for (const auto& [key, seen] : seen_) {
      const ObjectStat stat = *store_->Stat(tenant_, key);
      live_bytes += stat.manifest->PrefixBytes(stat.disk_bands);
    }
    EXPECT_LE(store_->disk_usage()->bytes, budget);
    // Once the files of records and of RocksDB itself weigh little.
    if (seed > 4) {
      EXPECT_LE(FolderBytes(dir_.File("store")), live_bytes * 12 / 10);
    }
    // Somebody comes back now and then.
    if (random() % 2 == 0) CheckBytes();
    if (HasFailure()) return;
  }
  EXPECT_GT(bands_dropped_, 0u);
  // What is left survives as it is.
  Open(kPlenty, budget);
  std::erase_if(seen_, [&](const auto& item) { return Resident(item.second.object) == 0; });
  EXPECT_GT(seen_.size(), 5u);
  bands_dropped_ = objects_evicted_ = 0;
  Account();
  CheckBytes();
}

TEST_P(StorePressureTest, WhatIsBeingReadKeepsItsBytesOnDisk) {
  const CompressedObject a = Object(1), b = Object(2), c = Object(3);
  // Host memory for an upload and little more.
  Open(2 * a.manifest->total_bytes(), DiskCharge(a) + std::max(DiskCharge(b), DiskCharge(c)));
  KVTIER_ASSERT_OK(Put(a, Durability::kDisk));
  KVTIER_ASSERT_OK(Put(b, Durability::kDisk));
  {
    const auto reads_a = Pin(a);
    {
      const auto reads_b = Pin(b);
      const absl::Status refused = Put(c, Durability::kDisk);
      EXPECT_THAT(refused,
                  StatusIs(absl::StatusCode::kResourceExhausted, HasSubstr("disk budget")));
      EXPECT_FALSE(IsTooLarge(refused)) << "a reader will be done";
      KVTIER_EXPECT_OK(CheckPinned(*reads_b, b, kBands));
    }
    EXPECT_EQ(store_->counters().bands_dropped, 0u);
    EXPECT_EQ(store_->counters().objects_evicted, 0u);
    KVTIER_ASSERT_OK(Put(c, Durability::kDisk));
    KVTIER_EXPECT_OK(CheckPinned(*reads_a, a, kBands));
    EXPECT_EQ(Resident(a), kBands);
    EXPECT_EQ(Resident(b), 0u);  // Nothing else could give room.
  }
  KVTIER_EXPECT_OK(store_->CheckInvariants());
  EXPECT_EQ(store_->counters().objects_evicted, 1u);
}

TEST_P(StorePressureTest, WhatIsBeingReadKeepsItsBytesInHostMemory) {
  const CompressedObject a = Object(1), b = Object(2);
  Open(a.manifest->total_bytes() * 3 / 2, std::nullopt);
  KVTIER_ASSERT_OK(Put(a, Durability::kHost));
  {
    const auto reader = Pin(a);
    EXPECT_THAT(Put(b, Durability::kHost),
                StatusIs(absl::StatusCode::kResourceExhausted, HasSubstr("host_budget_bytes")));
    KVTIER_EXPECT_OK(CheckPinned(*reader, a, kBands));
  }
  KVTIER_EXPECT_OK(store_->CheckInvariants());
  KVTIER_EXPECT_OK(Put(b, Durability::kHost));
  EXPECT_LT(Resident(a), kBands);
}

TEST_P(StorePressureTest, AnObjectThatCanNeverFitCostsNobodyAnything) {
  const CompressedObject a = Object(1), large = Object(2, 300);
  for (const bool with_disk : {false, true}) {
    SCOPED_TRACE(with_disk);
    Open(2 * a.manifest->total_bytes(),
         with_disk ? std::optional(2 * DiskCharge(a)) : std::nullopt);
    KVTIER_ASSERT_OK(Put(a, with_disk ? Durability::kDisk : Durability::kHost));
    const absl::Status refused = Put(large, with_disk ? Durability::kDisk : Durability::kHost);
    EXPECT_THAT(refused, StatusIs(absl::StatusCode::kResourceExhausted, HasSubstr("budget")));
    EXPECT_TRUE(IsTooLarge(refused));
    EXPECT_EQ(Resident(a), kBands);
    KVTIER_EXPECT_OK(store_->CheckInvariants());
  }
}

// The disk takes what host memory may not hold at once.
TEST_P(StorePressureTest, AnObjectOfMoreThanTheDiskBudgetIsTooLargeForTheDiskAlone) {
  const CompressedObject large = Object(2, 300);
  Open(kPlenty, DiskCharge(large) / 2);
  const absl::Status refused = Put(large, Durability::kDisk);
  EXPECT_THAT(refused, StatusIs(absl::StatusCode::kResourceExhausted, HasSubstr("disk budget")));
  EXPECT_TRUE(IsTooLarge(refused));
  KVTIER_EXPECT_OK(Put(large, Durability::kHost));
}

TEST_P(StorePressureTest, AFullIndexGivesUpItsLeastValuableObject) {
  const CompressedObject a = Object(1), b = Object(2), c = Object(3), d = Object(4), e = Object(5);
  objects_max_ = 3;
  for (const bool with_disk : {false, true}) {
    SCOPED_TRACE(with_disk);
    const Durability durability = with_disk ? Durability::kDisk : Durability::kHost;
    Open(kPlenty, with_disk ? std::optional(kPlenty) : std::nullopt);
    for (const CompressedObject* object : {&a, &b, &c}) {
      KVTIER_ASSERT_OK(Put(*object, durability));
    }
    for (int use = 0; use < 3; ++use) {
      clock_.AdvanceTime(absl::Seconds(1));
      KVTIER_ASSERT_OK(CheckPinned(*Pin(b), b, kBands));
      KVTIER_ASSERT_OK(CheckPinned(*Pin(c), c, kBands));
    }
    KVTIER_ASSERT_OK_AND_ASSIGN(const auto watch, store_->Watch(tenant_, std::nullopt));
    KVTIER_ASSERT_OK(Put(b, durability));  // Has its place.
    EXPECT_EQ(store_->counters().objects_evicted, 0u);
    KVTIER_ASSERT_OK(Put(d, durability));
    EXPECT_EQ(store_->object_count(), 3u);
    EXPECT_EQ(Resident(a), 0u) << "nobody asked for it";
    EXPECT_EQ(store_->counters().objects_evicted, 1u);
    EXPECT_EQ(store_->counters().bands_dropped, 0u) << "the others are whole";
    KVTIER_ASSERT_OK_AND_ASSIGN(const std::vector<StoreEvent> events, watch->events().Next(10));
    ASSERT_EQ(events.size(), 2u);
    EXPECT_EQ(events[0].upload, a.manifest->upload_id);
    const auto* const removed = std::get_if<StoreEvent::Removed>(&events[0].change);
    ASSERT_NE(removed, nullptr);
    EXPECT_EQ(removed->reason, StoreEvent::Removed::Reason::kEvicted);
    KVTIER_EXPECT_OK(store_->CheckInvariants());

    // What is read or pinned keeps its place; when that is all, nothing new gets one.
    KVTIER_ASSERT_OK(
        store_->SetAttributes(tenant_, c.manifest->key, std::nullopt, {.pinned = true}));
    {
      const auto reads_b = Pin(b), reads_d = Pin(d);
      const absl::Status refused = Put(e, durability);
      EXPECT_THAT(refused,
                  StatusIs(absl::StatusCode::kResourceExhausted, HasSubstr("(objects_max)")));
      EXPECT_FALSE(IsTooLarge(refused)) << "the readers will be done";
      KVTIER_EXPECT_OK(CheckPinned(*reads_b, b, kBands));
    }
    KVTIER_ASSERT_OK(Put(e, durability));
    EXPECT_EQ(store_->object_count(), 3u);
    EXPECT_EQ(Resident(c), kBands);
    EXPECT_EQ(store_->counters().objects_evicted, 2u);
    KVTIER_EXPECT_OK(store_->CheckInvariants());
  }
  Open(kPlenty, kPlenty);  // Nor does what has gone come back.
  EXPECT_EQ(store_->object_count(), 3u);
  EXPECT_EQ(Resident(a), 0u);
  KVTIER_EXPECT_OK(CheckStored(*store_, tenant_, e, kBands));
  EXPECT_THAT(TieredStore::Create({.objects_max = 0}, nullptr, clock_),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("objects_max")));
}

TEST_P(StorePressureTest, HostObjectsDegradeWhenNeitherTierHasRoom) {
  const uint64_t bytes = Object(1).manifest->total_bytes();
  Open(2 * bytes, 3 * DiskCharge(Object(1)) / 2);
  for (uint64_t seed = 1; seed <= 15; ++seed) {
    SCOPED_TRACE(seed);
    const CompressedObject object = Object(seed);
    KVTIER_ASSERT_OK(Put(object, Durability::kHost));
    Acknowledged(object);
    Account();
    CheckBytes();
    if (HasFailure()) return;
  }
  EXPECT_GT(bands_dropped_, 0u);
  EXPECT_GT(store_->counters().bands_demoted, 0u);
}

TEST_P(StorePressureTest, AnObjectThatIsAskedForOftenIsNotEvicted) {
  const CompressedObject hot = Object(1);
  Open(2 * hot.manifest->total_bytes(), 3 * DiskCharge(hot));
  KVTIER_ASSERT_OK(Put(hot, Durability::kDisk));
  for (uint64_t seed = 2; seed <= 20; ++seed) {
    for (int use = 0; use < 3; ++use) {
      clock_.AdvanceTime(absl::Seconds(1));
      Pin(hot);
    }
    KVTIER_ASSERT_OK(Put(Object(seed), Durability::kDisk));
  }
  EXPECT_GE(Resident(hot), kFloorBands);
  EXPECT_GT(store_->counters().objects_evicted, 10u);
}

// Random operations under budgets that hold about half of what is put.
TEST_P(StorePressureTest, EveryLossIsCountedWhateverHappens) {
  const uint64_t seed = TestSeed();
  SCOPED_TRACE(SeedTrace(seed));
  std::mt19937_64 random(seed);
  const uint64_t bytes = Object(1).manifest->total_bytes();
  const uint64_t disk_bytes = 3 * DiskCharge(Object(1));
  Open(2 * bytes, disk_bytes);
  std::vector<std::pair<std::unique_ptr<PinnedObject>, Seen>> readers;
  for (int step = 0; step < 120; ++step) {
    SCOPED_TRACE(absl::StrCat("step ", step));
    const CompressedObject object = Object(RandomUniform(random, 1, 8));
    const auto found = seen_.find(object.manifest->key);
    clock_.AdvanceTime(absl::Seconds(static_cast<double>(RandomUniform(random, 0, 30))));
    switch (RandomUniform(random, 0, 9)) {
      case 0:
        if (found == seen_.end()) break;
        KVTIER_ASSERT_OK(store_->Delete(tenant_, object.manifest->key));
        seen_.erase(found);
        break;
      case 1:
      case 2:
        if (found == seen_.end() || readers.size() >= 2) break;
        readers.emplace_back(Pin(object), found->second);
        break;
      case 3: {
        if (readers.empty()) break;
        const auto& [pinned, seen] = readers.front();
        KVTIER_ASSERT_OK(CheckPinned(*pinned, seen.object, seen.bands));
        readers.erase(readers.begin());
        break;
      }
      case 4: {
        readers.clear();
        Account();  // Letting go may have trimmed.
        std::erase_if(seen_, [&](const auto& item) {
          return store_->Stat(tenant_, item.first)->disk_bands == 0;
        });
        Open(2 * bytes, disk_bytes);
        bands_dropped_ = objects_evicted_ = 0;
        break;
      }
      default: {
        // Sealed under its upload id still, while somebody reads it.
        if (found != seen_.end()) break;
        const absl::Status put =
            Put(object, random() % 2 == 0 ? Durability::kHost : Durability::kDisk);
        if (put.ok() && Resident(object) == kBands) {
          Acknowledged(object);
        } else if (!put.ok()) {
          ASSERT_THAT(put, StatusIs(absl::StatusCode::kResourceExhausted));
        }
      }
    }
    Account();
    if (step % 5 == 0) CheckBytes();
    if (HasFailure()) return;
  }
}

INSTANTIATE_TEST_SUITE_P(Policies, StorePressureTest, testing::Values("gdsf", "lru"),
                         [](const testing::TestParamInfo<const char*>& policy) {
                           return std::string(policy.param);
                         });

TEST(StoreOptionsTest, BadOnesAreNamed) {
  SimulatedClock clock;
  TieredStoreOptions options;
  options.eviction_policy = "fifo";
  EXPECT_THAT(TieredStore::Create(options, nullptr, clock),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("fifo")));
  options.eviction_policy = "lru";
  for (const double floor_ratio : {0.0, -1.0, 1.5}) {
    options.floor_ratio = floor_ratio;
    EXPECT_THAT(TieredStore::Create(options, nullptr, clock),
                StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("floor_ratio")));
  }
}

}  // namespace
}  // namespace kvtier
