// Host memory that reading from disk takes: it is in the budget, readers that have begun finish,
// and bands come back where there is room or what is there is worth less.
#include <algorithm>
#include <atomic>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/log.h"
#include "base/mutex.h"
#include "base/simulated_clock.h"
#include "base/status_matchers.h"
#include "base/sync_point.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "store/read_memory.h"
#include "store/tiered_store.h"
#include "tests/testing/store_checks.h"
#include "tests/testing/temp_dir.h"
#include "tests/testing/test_object.h"

namespace kvtier {
namespace {

using testing::HasSubstr;

constexpr uint64_t kPlenty = 64 << 20;
constexpr uint32_t kBands = 3;
constexpr uint32_t kLayers = 3;

class ReadRoomTest : public testing::Test {
 protected:
  ReadRoomTest() { Open(kPlenty); }

  // `disk_bytes`: 0 is without a limit.
  void Open(uint64_t host_bytes, uint64_t disk_bytes = 0, const std::string& policy = "lru") {
    store_.reset();
    absl::StatusOr<std::unique_ptr<TieredStore>> store = OpenTestStore(
        dir_.File("store"),
        {.host_budget_bytes = host_bytes, .upload_bytes_max = 1 << 30, .eviction_policy = policy},
        clock_, disk_bytes);
    KVTIER_CHECK_OK(store);
    store_ = *std::move(store);
  }
  // The disk takes nothing more.
  void OpenWithFullDisk(uint64_t host_bytes) {
    const uint64_t disk_bytes = store_->disk_usage()->bytes;
    Open(host_bytes, disk_bytes);
  }
  static CompressedObject Object(uint64_t seed) {
    return MakeTestObject({.layers = kLayers, .edges = "0.2,0.5,1", .seed = seed});
  }
  static TenantId Tenant(int i) { return *TenantId::FromString(absl::StrCat("tenant", i)); }
  void Put(const CompressedObject& object, Durability durability = Durability::kDisk,
           const TenantId& tenant = TenantId()) {
    clock_.AdvanceTime(absl::Seconds(1));
    KVTIER_CHECK_OK(store_->Put(tenant, object, durability));
  }
  std::unique_ptr<PinnedObject> Pin(const CompressedObject& object,
                                    const TenantId& tenant = TenantId()) {
    absl::StatusOr<std::unique_ptr<PinnedObject>> pinned =
        store_->Pin(tenant, object.manifest->key, std::nullopt);
    KVTIER_CHECK_OK(pinned);
    return *std::move(pinned);
  }
  absl::Status Read(const CompressedObject& object) {
    return CheckStored(*store_, tenant_, object, kBands);
  }
  uint32_t HostBands(const CompressedObject& object) {
    return store_->Stat(tenant_, object.manifest->key)->host_bands;
  }
  uint64_t used_bytes() { return store_->host_usage().bytes; }

  static uint64_t SegmentBytesMax(const CompressedObject& object) {
    uint64_t bytes = 0;
    for (const SegmentRef& segment : object.segments) {
      bytes = std::max<uint64_t>(bytes, segment.bytes().size());
    }
    return bytes;
  }

  TempDir dir_;
  SimulatedClock clock_;
  const TenantId tenant_;
  std::unique_ptr<TieredStore> store_;
};

TEST_F(ReadRoomTest, SegmentsFromDiskAreInTheBudgetWhileAnybodyHasThem) {
  const CompressedObject a = Object(1), b = Object(2);
  Put(a);
  Put(b);
  const uint64_t slot = std::max(SegmentBytesMax(a), SegmentBytesMax(b));
  Open(2 * slot);
  EXPECT_EQ(used_bytes(), 0u);
  auto reader = Pin(a);
  KVTIER_ASSERT_OK_AND_ASSIGN(SegmentRef first, reader->Read(BandIndex(0), LayerIndex(0)));
  EXPECT_EQ(used_bytes(), 2 * SegmentBytesMax(a)) << "the one being sent, the one being read";
  KVTIER_ASSERT_OK_AND_ASSIGN(SegmentRef second, reader->Read(BandIndex(1), LayerIndex(0)));
  EXPECT_EQ(used_bytes(), 2 * SegmentBytesMax(a));
  EXPECT_THAT(reader->Read(BandIndex(2), LayerIndex(0)),
              StatusIs(absl::StatusCode::kResourceExhausted, HasSubstr("host_budget_bytes")));
  EXPECT_EQ(store_->counters().reads_refused, 1u);
  auto other = Pin(b);
  EXPECT_THAT(other->Read(BandIndex(0), LayerIndex(0)),
              StatusIs(absl::StatusCode::kResourceExhausted));
  first = SegmentRef();
  KVTIER_EXPECT_OK(reader->Read(BandIndex(2), LayerIndex(0)));
  // The reader is done; what was read outlives it and is paid for.
  reader.reset();
  EXPECT_EQ(used_bytes(), SegmentBytesMax(a));
  EXPECT_TRUE(std::ranges::equal(second.bytes(), a.segment(BandIndex(1), LayerIndex(0)).bytes()));
  KVTIER_EXPECT_OK(CheckPinned(*other, b, kBands));
  other.reset();
  second = SegmentRef();
  EXPECT_EQ(used_bytes(), 0u);
  KVTIER_EXPECT_OK(store_->CheckInvariants());
}

// Host memory is full of b. Whether a reader of a gets memory is a matter of what holds b there.
TEST_F(ReadRoomTest, AReaderIsRefusedOnlyWhileNothingInMemoryMayGo) {
  const CompressedObject a = Object(1), b = Object(2);
  Put(a);
  const auto open_full_of_b = [&] {
    Open(b.manifest->total_bytes());
    store_->Delete(tenant_, b.manifest->key).IgnoreError();  // Put anew it is in memory as well.
    Put(b);
    ASSERT_EQ(used_bytes(), store_->host_usage().budget_bytes);
  };
  {
    SCOPED_TRACE("nothing holds it");
    open_full_of_b();
    KVTIER_EXPECT_OK(Read(a));
    EXPECT_EQ(store_->counters().reads_refused, 0u);
  }
  {
    SCOPED_TRACE("a reader, who can go on from the disk");
    open_full_of_b();
    const auto other = Pin(b);
    KVTIER_EXPECT_OK(Read(a));
    KVTIER_EXPECT_OK(CheckPinned(*other, b, kBands));
    EXPECT_EQ(store_->counters().reads_refused, 0u);
  }
  {
    SCOPED_TRACE("a lease");
    open_full_of_b();
    auto other = Pin(b);
    std::vector<std::shared_ptr<const BandMemory>> held;
    for (uint32_t band = 0; band < kBands; ++band) {
      KVTIER_ASSERT_OK_AND_ASSIGN(auto memory, other->Hold(BandIndex(band), BandPlacement::kAny));
      held.push_back(std::move(memory));
    }
    EXPECT_THAT(Read(a),
                StatusIs(absl::StatusCode::kResourceExhausted, HasSubstr("host_budget_bytes")));
    EXPECT_EQ(store_->counters().reads_refused, 1u);
    EXPECT_EQ(used_bytes(), b.manifest->total_bytes()) << "a refused reader keeps nothing";
    held.clear();
    KVTIER_EXPECT_OK(Read(a));
    EXPECT_EQ(store_->counters().reads_refused, 1u);
  }
  {
    SCOPED_TRACE("an upload under way");
    const CompressedObject c = Object(3);
    Open(c.manifest->total_bytes());
    KVTIER_ASSERT_OK_AND_ASSIGN(auto upload,
                                store_->StartUpload(tenant_, c.manifest, Durability::kHost));
    EXPECT_THAT(Read(a), StatusIs(absl::StatusCode::kResourceExhausted));
    EXPECT_EQ(store_->counters().reads_refused, 1u);
    store_->AbandonUpload(tenant_, c.manifest->upload_id);
    upload.reset();
    KVTIER_EXPECT_OK(Read(a));
    EXPECT_EQ(store_->counters().reads_refused, 1u);
  }
  KVTIER_EXPECT_OK(store_->CheckInvariants());
}

// What is in memory can leave it only for good. Otherwise no reader would ever get any.
TEST_F(ReadRoomTest, WhereTheDiskIsFullAFewReadersGetMemoryAtAnyCost) {
  constexpr int kReaders = ReadMemory::kReadersAtAnyCost + 1;
  std::vector<CompressedObject> objects;
  for (int i = 0; i < kReaders; ++i) {
    objects.push_back(
        MakeTestObject({.layers = kLayers, .edges = "1", .seed = static_cast<uint64_t>(i) + 1}));
    Put(objects.back(), Durability::kDisk, Tenant(i));
  }
  const CompressedObject another = MakeTestObject({.layers = kLayers, .edges = "1", .seed = 50});
  Put(another, Durability::kDisk, Tenant(0));
  // A band of it is smaller than a segment of theirs, so that each slot costs a band or more.
  const CompressedObject big = MakeTestObject({.layers = kLayers,
                                               .context_tokens = 180,
                                               .edges = "0.1,0.2,0.3,0.4,0.5,0.6,0.7,0.8,0.9,1",
                                               .seed = 99});
  OpenWithFullDisk(big.manifest->total_bytes());
  Put(big, Durability::kHost);
  ASSERT_EQ(used_bytes(), store_->host_usage().budget_bytes);
  // Nothing of these gives way.
  std::vector<std::unique_ptr<PinnedObject>> readers;
  for (int i = 0; i < kReaders; ++i) readers.push_back(Pin(objects[i], Tenant(i)));
  auto reader_of_another = Pin(another, Tenant(0));
  const auto read = [](PinnedObject& reader) {
    return reader.Read(BandIndex(0), LayerIndex(0)).status();
  };
  const auto is_refused = StatusIs(absl::StatusCode::kResourceExhausted);
  {
    const auto reader_of_big = Pin(big);
    EXPECT_THAT(read(*readers[0]), is_refused);
  }
  EXPECT_EQ(store_->counters().bands_dropped, 0u) << "what somebody reads is not given up";

  for (int i = 0; i + 1 < kReaders; ++i) {
    const uint64_t dropped = store_->counters().bands_dropped;
    KVTIER_ASSERT_OK(read(*readers[i]));
    EXPECT_GT(store_->counters().bands_dropped, dropped);
    if (i > 0) continue;
    EXPECT_THAT(read(*reader_of_another), is_refused) << "one of each tenant";
  }
  const uint64_t dropped = store_->counters().bands_dropped;
  EXPECT_THAT(read(*readers.back()), is_refused);
  EXPECT_EQ(store_->counters().bands_dropped, dropped) << "it waits for one of the others";
  EXPECT_GT(HostBands(big), 0u);
  KVTIER_EXPECT_OK(CheckPinned(*readers[0], objects[0], 1));
  readers[0].reset();
  KVTIER_EXPECT_OK(CheckPinned(*readers.back(), objects.back(), 1));
  EXPECT_EQ(store_->counters().bands_dropped, dropped);
  for (int i = 1; i + 1 < kReaders; ++i) {
    KVTIER_EXPECT_OK(CheckPinned(*readers[i], objects[i], 1));
  }
  EXPECT_EQ(store_->counters().reads_refused, 3u);
  readers.clear();
  reader_of_another.reset();
  KVTIER_EXPECT_OK(store_->CheckInvariants());
}

// The place is taken before anything is given up for it, and not after.
TEST_F(ReadRoomTest, TwoReadersOfATenantAtOnceCostBandsOnlyOnce) {
  const CompressedObject a = Object(1), b = Object(2), one = Object(3), two = Object(4);
  Put(a);
  Put(b);
  OpenWithFullDisk(one.manifest->total_bytes() + two.manifest->total_bytes());
  Put(one, Durability::kHost);
  Put(two, Durability::kHost);
  const auto reader_of_a = Pin(a), reader_of_b = Pin(b);
  Mutex mutex;
  CondVar changed;
  int reached = 0;
  bool may_go_on = false;
  const ScopedSyncPoint at("store.give_up.before_record", [&] {
    MutexLock lock(&mutex);
    ++reached;
    changed.SignalAll();
    while (reached == 1 && !may_go_on) changed.Wait(&mutex);
  });
  absl::Status read;
  std::thread thread([&] { read = CheckPinned(*reader_of_a, a, kBands); });
  {
    MutexLock lock(&mutex);
    while (reached == 0) changed.Wait(&mutex);
  }
  EXPECT_THAT(reader_of_b->Read(BandIndex(0), LayerIndex(0)),
              StatusIs(absl::StatusCode::kResourceExhausted));
  {
    MutexLock lock(&mutex);
    EXPECT_EQ(reached, 1) << "only one makes room";
    may_go_on = true;
    changed.SignalAll();
  }
  thread.join();
  KVTIER_EXPECT_OK(read);
  KVTIER_EXPECT_OK(store_->CheckInvariants());
}

TEST_F(ReadRoomTest, ReadersThatCostNobodyAnythingTakeNoPlaceOfThoseThatMay) {
  constexpr size_t kReaders = ReadMemory::kReadersAtAnyCost + 1;
  const CompressedObject a = Object(1), b = Object(2), h = Object(3);
  Put(a);
  Put(b);
  OpenWithFullDisk(kReaders * ReadMemory::kSlots * SegmentBytesMax(a) + h.manifest->total_bytes());
  std::vector<std::unique_ptr<PinnedObject>> readers;
  for (size_t i = 0; i < kReaders; ++i) {
    readers.push_back(Pin(a));
    readers.back()->WillRead(kBands, {1, kLayers});  // Of some layers: nothing comes back.
    KVTIER_ASSERT_OK(readers.back()->Read(BandIndex(0), LayerIndex(1)));
  }
  Put(h, Durability::kHost);
  const auto reader = Pin(b);
  KVTIER_EXPECT_OK(CheckPinned(*reader, b, kBands));
  EXPECT_GT(store_->counters().bands_dropped, 0u);
}

// Full of `h`, of which the disk has nothing and takes nothing, and of what costs nothing.
class FullDiskReadRoomTest : public ReadRoomTest {
 protected:
  void ExpectThatNothingWasLost() {
    EXPECT_EQ(HostBands(h_), kBands);
    EXPECT_EQ(store_->counters().bands_dropped, 0u);
    EXPECT_EQ(store_->counters().objects_evicted, 0u);
    EXPECT_EQ(store_->counters().reads_refused, 0u);
    KVTIER_EXPECT_OK(store_->CheckInvariants());
  }

  const CompressedObject a_ = Object(1), d_ = Object(2), h_ = Object(3);
};

TEST_F(FullDiskReadRoomTest, WhatTheDiskHasGoesInPlaceOfWhatItRefuses) {
  Put(a_);
  Put(d_);
  for (const bool is_read : {false, true}) {
    SCOPED_TRACE(is_read ? "somebody reads it" : "nobody reads it");
    OpenWithFullDisk(d_.manifest->total_bytes() + h_.manifest->total_bytes());
    KVTIER_ASSERT_OK(Read(d_));
    ASSERT_EQ(HostBands(d_), kBands);
    Put(h_, Durability::kHost);
    clock_.AdvanceTime(absl::Hours(1));
    KVTIER_ASSERT_OK(Read(d_));  // Worth more than h.
    ASSERT_EQ(used_bytes(), store_->host_usage().budget_bytes);
    const auto reader_of_d = is_read ? Pin(d_) : nullptr;
    KVTIER_ASSERT_OK(Read(a_));
    EXPECT_LT(HostBands(d_), kBands);
    ExpectThatNothingWasLost();
  }
}

TEST_F(FullDiskReadRoomTest, ABandOnItsWayInGoesInPlaceOfWhatTheDiskRefuses) {
  Put(a_);
  Put(d_);
  const uint64_t band = d_.manifest->bands[0].encoded_bytes();
  ASSERT_GE(band, SegmentBytesMax(a_));
  OpenWithFullDisk(h_.manifest->total_bytes() + ReadMemory::kSlots * SegmentBytesMax(d_) + band);
  Put(h_, Durability::kHost);
  const auto reader_of_d = Pin(d_);
  KVTIER_ASSERT_OK(reader_of_d->Read(BandIndex(0), LayerIndex(0)));
  ASSERT_EQ(used_bytes(), store_->host_usage().budget_bytes);
  KVTIER_EXPECT_OK(Read(a_));
  KVTIER_EXPECT_OK(CheckPinned(*reader_of_d, d_, kBands));
  ExpectThatNothingWasLost();
}

TEST_F(FullDiskReadRoomTest, ALeaseNeedsRoomForItsBandAloneAndCostsNobodyAnything) {
  Put(a_);
  OpenWithFullDisk(h_.manifest->total_bytes() + a_.manifest->bands[0].encoded_bytes());
  Put(h_, Durability::kHost);
  const auto reader = Pin(a_);
  {
    KVTIER_ASSERT_OK_AND_ASSIGN(const auto held, reader->Hold(BandIndex(0), BandPlacement::kAny));
    for (uint32_t layer = 0; layer < kLayers; ++layer) {
      EXPECT_TRUE(std::ranges::equal(held->Segment(LayerIndex(layer)).bytes(),
                                     a_.segment(BandIndex(0), LayerIndex(layer)).bytes()));
    }
    EXPECT_THAT(reader->Hold(BandIndex(1), BandPlacement::kAny),
                StatusIs(absl::StatusCode::kResourceExhausted));
  }
  ExpectThatNothingWasLost();
}

// --- What a reader takes -------------------------------------------------------------------------

TEST_F(ReadRoomTest, SlotsAreOfTheLargestSegmentThatWillBeRead) {
  const CompressedObject a = MakeTestObject({.layers = kLayers, .edges = "0.1,1"});
  Put(a);
  Open(kPlenty);
  const auto reader = Pin(a);
  reader->WillRead(1, {1, 3});
  KVTIER_ASSERT_OK(reader->Read(BandIndex(0), LayerIndex(1)));
  EXPECT_EQ(used_bytes(),
            ReadMemory::kSlots * std::max(a.segment(BandIndex(0), LayerIndex(1)).bytes().size(),
                                          a.segment(BandIndex(0), LayerIndex(2)).bytes().size()));
  for (const auto& [band, layer] : {std::pair(1u, 1u), std::pair(0u, 0u)}) {
    EXPECT_THAT(reader->Read(BandIndex(band), LayerIndex(layer)),
                StatusIs(absl::StatusCode::kOutOfRange));
  }
}

TEST_F(ReadRoomTest, ABandComesBackOnlyWithAReaderOfAllOfIt) {
  const CompressedObject a = Object(1);
  Put(a);
  Open(kPlenty);
  const uint64_t slots = ReadMemory::kSlots * SegmentBytesMax(a), bands = a.manifest->total_bytes();
  {
    const auto reader = Pin(a);
    KVTIER_ASSERT_OK(reader->Read(BandIndex(0), LayerIndex(1)));
    KVTIER_ASSERT_OK(reader->Read(BandIndex(0), LayerIndex(0)));
    EXPECT_EQ(used_bytes(), slots) << "not from its first layer on";
    KVTIER_ASSERT_OK(reader->Read(BandIndex(1), LayerIndex(0)));
    EXPECT_EQ(used_bytes(), slots) << "nor when it goes on";
  }
  {
    const auto reader = Pin(a);
    KVTIER_ASSERT_OK(reader->Read(BandIndex(0), LayerIndex(0)));
    EXPECT_EQ(used_bytes(), slots + bands);
    KVTIER_ASSERT_OK(reader->Read(BandIndex(0), LayerIndex(2)));
    EXPECT_EQ(used_bytes(), slots + bands) << "two reads at a time may end out of order";
  }
  {
    const auto reader = Pin(a);
    reader->WillRead(kBands, {0, kLayers - 1});
    KVTIER_ASSERT_OK(reader->Read(BandIndex(0), LayerIndex(0)));
    EXPECT_LE(used_bytes(), slots) << "of some layers";
  }
  EXPECT_EQ(HostBands(a), 0u);
}

TEST_F(ReadRoomTest, BandsComeBackWhicheverIsWholeFirst) {
  const CompressedObject a = Object(1);
  Put(a);
  Open(kPlenty);
  {
    const auto reader = Pin(a);
    for (uint32_t layer = 0; layer < kLayers; ++layer) {
      for (uint32_t i = 0; i < kBands; ++i) {
        const bool is_last = layer + 1 == kLayers;
        if (is_last) {
          EXPECT_EQ(HostBands(a), 0u) << "before the last of them is whole";
        }
        const BandIndex band(is_last ? kBands - 1 - i : i);
        KVTIER_ASSERT_OK(reader->Read(band, LayerIndex(layer)));
      }
    }
    EXPECT_EQ(HostBands(a), kBands);
  }
  EXPECT_EQ(used_bytes(), a.manifest->total_bytes());
  KVTIER_EXPECT_OK(store_->CheckInvariants());
}

TEST_F(ReadRoomTest, ABandOnItsWayInThatComesFromElsewhereIsPaidForOnce) {
  const CompressedObject a = Object(1);
  Put(a);
  Open(kPlenty);
  const uint64_t slots = ReadMemory::kSlots * SegmentBytesMax(a), bands = a.manifest->total_bytes();
  const auto reader = Pin(a);
  KVTIER_ASSERT_OK(reader->Read(BandIndex(0), LayerIndex(0)));
  ASSERT_EQ(used_bytes(), slots + bands);
  {
    const auto other = Pin(a);
    KVTIER_ASSERT_OK(other->Hold(BandIndex(0), BandPlacement::kAny));
  }
  EXPECT_EQ(HostBands(a), 1u);
  EXPECT_EQ(used_bytes(), slots + bands);
  KVTIER_EXPECT_OK(CheckPinned(*reader, a, kBands));
  EXPECT_EQ(HostBands(a), kBands);
}

TEST_F(ReadRoomTest, ReadingAheadTakesNothingFromAnybodyButBandsOnTheirWayIn) {
  const CompressedObject a = Object(1), b = Object(2), d = Object(3);
  for (const CompressedObject* object : {&a, &b, &d}) Put(*object);
  const uint64_t band = d.manifest->bands[0].encoded_bytes();
  {
    SCOPED_TRACE("a band on its way in");
    Open(ReadMemory::kSlots * SegmentBytesMax(d) + band + SegmentBytesMax(a));
    const auto reader_of_d = Pin(d);
    KVTIER_ASSERT_OK(reader_of_d->Read(BandIndex(0), LayerIndex(0)));
    const auto reader = Pin(a);
    KVTIER_ASSERT_OK_AND_ASSIGN(const SegmentRef one, reader->Read(BandIndex(0), LayerIndex(0)));
    KVTIER_ASSERT_OK_AND_ASSIGN(const SegmentRef two, reader->Read(BandIndex(1), LayerIndex(0)));
    EXPECT_EQ(store_->counters().reads_refused, 0u);
  }
  {
    SCOPED_TRACE("bands that are there");
    Open(d.manifest->total_bytes() + SegmentBytesMax(a));
    KVTIER_ASSERT_OK(store_->Delete(tenant_, d.manifest->key));
    Put(d);  // Anew it is in memory as well.
    ASSERT_EQ(HostBands(d), kBands);
    const auto reader = Pin(a);
    reader->WillRead(kBands, {0, kLayers - 1});  // Of some layers: nothing comes back.
    {
      KVTIER_ASSERT_OK_AND_ASSIGN(const SegmentRef one, reader->Read(BandIndex(0), LayerIndex(0)));
      EXPECT_THAT(reader->Read(BandIndex(1), LayerIndex(0)),
                  StatusIs(absl::StatusCode::kResourceExhausted));
    }
    EXPECT_EQ(HostBands(d), kBands);
    KVTIER_EXPECT_OK(reader->Read(BandIndex(1), LayerIndex(0)));
  }
}

TEST_F(ReadRoomTest, OneSlotWillDoWhereThereIsNoRoomForTwo) {
  const CompressedObject a = Object(1);
  Put(a);
  Open(SegmentBytesMax(a));
  const auto reader = Pin(a);
  {
    KVTIER_ASSERT_OK_AND_ASSIGN(const SegmentRef first, reader->Read(BandIndex(0), LayerIndex(0)));
    EXPECT_EQ(used_bytes(), SegmentBytesMax(a));
    EXPECT_THAT(reader->Read(BandIndex(1), LayerIndex(0)),
                StatusIs(absl::StatusCode::kResourceExhausted))
        << "no read-ahead";
  }
  KVTIER_EXPECT_OK(CheckPinned(*reader, a, kBands));
}

TEST_F(ReadRoomTest, AReleasedPinHasGivenItsMemoryBack) {
  const CompressedObject a = Object(1);
  Put(a);
  Open(kPlenty);
  const auto reader = Pin(a);
  KVTIER_ASSERT_OK(reader->Read(BandIndex(0), LayerIndex(0)));
  EXPECT_GT(used_bytes(), 0u);
  EXPECT_TRUE(reader->TryRelease());
  EXPECT_EQ(used_bytes(), 0u) << "while the pin is still there to be destroyed";
}

TEST_F(ReadRoomTest, ManyReadersAtOnceOfASmallBudgetAllFinish) {
  constexpr uint64_t kReaders = 24;
  std::vector<CompressedObject> objects;
  for (uint64_t i = 0; i < kReaders; ++i) {
    objects.push_back(Object(i + 1));
    Put(objects.back());
  }
  // As long as it is under way it leaves room for no slot.
  const CompressedObject large = MakeTestObject({.context_tokens = 150, .seed = 99});
  Open(large.manifest->total_bytes() + 64);
  KVTIER_ASSERT_OK_AND_ASSIGN(auto upload,
                              store_->StartUpload(tenant_, large.manifest, Durability::kHost));
  std::atomic<uint64_t> refused{0};
  std::atomic<bool> is_over_budget{false};
  std::vector<std::thread> readers;
  for (const CompressedObject& object : objects) {
    readers.emplace_back([&] {
      for (bool is_done = false; !is_done;) {
        const auto pinned = Pin(object);
        is_done = true;
        bool has_begun = false;
        for (uint32_t i = 0; is_done && i < kLayers * kBands; ++i) {
          const BandIndex band(i % kBands);
          const LayerIndex layer(i / kBands);
          const absl::StatusOr<SegmentRef> segment = pinned->Read(band, layer);
          if (absl::IsResourceExhausted(segment.status())) {
            EXPECT_FALSE(has_begun) << "a reader of one segment at a time goes on";
            ++refused;
            is_done = false;
          } else {
            KVTIER_ASSERT_OK(segment);
            has_begun = true;
            EXPECT_TRUE(std::ranges::equal(segment->bytes(), object.segment(band, layer).bytes()));
          }
          const TierUsage usage = store_->host_usage();
          if (usage.bytes > usage.budget_bytes) is_over_budget = true;
        }
        if (!is_done) std::this_thread::yield();
      }
    });
  }
  while (refused < kReaders) std::this_thread::yield();
  store_->AbandonUpload(tenant_, large.manifest->upload_id);
  upload.reset();
  for (std::thread& reader : readers) reader.join();
  EXPECT_FALSE(is_over_budget);
  EXPECT_EQ(store_->counters().reads_refused, refused);
  KVTIER_EXPECT_OK(store_->CheckInvariants());
}

TEST_F(ReadRoomTest, ABandOnItsWayInGivesWayToAnUpload) {
  const CompressedObject a = Object(1), b = Object(2);
  Put(a);
  const uint64_t slots = ReadMemory::kSlots * SegmentBytesMax(a);
  Open(b.manifest->total_bytes() + slots);
  const auto reader = Pin(a);
  KVTIER_ASSERT_OK(reader->Read(BandIndex(0), LayerIndex(0)));
  EXPECT_GT(used_bytes(), slots) << "its first band is on its way";
  KVTIER_ASSERT_OK(store_->Put(tenant_, b, Durability::kHost));
  KVTIER_EXPECT_OK(CheckPinned(*reader, a, kBands));
  EXPECT_EQ(HostBands(b), kBands);
  KVTIER_EXPECT_OK(store_->CheckInvariants());
}

TEST_F(ReadRoomTest, ABandOnItsWayInStaysWhereWhatTheDiskHasMayGo) {
  const CompressedObject a = MakeTestObject({.layers = kLayers, .edges = "1", .seed = 1});
  const CompressedObject d = Object(2);
  const CompressedObject b = MakeTestObject({.layers = kLayers, .context_tokens = 40, .seed = 3});
  Put(a);
  Put(d);
  const uint64_t band = a.manifest->bands[0].encoded_bytes();
  Open(d.manifest->total_bytes() + ReadMemory::kSlots * SegmentBytesMax(a) + band);
  KVTIER_ASSERT_OK(Read(d));
  const auto reader = Pin(a);
  KVTIER_ASSERT_OK(reader->Read(BandIndex(0), LayerIndex(0)));
  ASSERT_EQ(used_bytes(), store_->host_usage().budget_bytes);
  KVTIER_ASSERT_OK(store_->Put(tenant_, b, Durability::kHost));
  EXPECT_LT(HostBands(d), kBands);
  KVTIER_EXPECT_OK(CheckPinned(*reader, a, 1));
  EXPECT_EQ(HostBands(a), 1u);
}

TEST_F(ReadRoomTest, WhatIsReadOftenComesBackInPlaceOfWhatIsNot) {
  const CompressedObject a = Object(1), b = Object(2), c = Object(3);
  for (const CompressedObject* object : {&a, &b, &c}) Put(*object);
  Open(a.manifest->total_bytes() + b.manifest->total_bytes() +
           ReadMemory::kSlots * SegmentBytesMax(c) + 64,
       /*disk_bytes=*/0, "gdsf");
  for (int i = 0; i < 3; ++i) {
    KVTIER_ASSERT_OK(Read(a));
    KVTIER_ASSERT_OK(Read(b));
    clock_.AdvanceTime(absl::Seconds(1));
  }
  EXPECT_EQ(HostBands(a) + HostBands(b), 2 * kBands);
  EXPECT_EQ(HostBands(c), 0u);
  for (int i = 0; i < 30; ++i) {
    clock_.AdvanceTime(absl::Seconds(10));
    KVTIER_ASSERT_OK(Read(c));
    KVTIER_ASSERT_OK(store_->CheckInvariants());
  }
  EXPECT_EQ(HostBands(c), kBands);
  EXPECT_LT(HostBands(a) + HostBands(b), 2 * kBands);
  const uint64_t hits = store_->counters().host_hits;
  KVTIER_ASSERT_OK(Read(c));
  EXPECT_EQ(store_->counters().host_hits, hits + 1);
  EXPECT_EQ(store_->counters().bands_dropped, 0u);
  EXPECT_GT(store_->counters().bands_filled, 2 * kBands);
}

// Four objects that are asked for every eight seconds, and a pass over sixty that are not. Of one
// band each: of several, the first ones of what is asked for seldom may well be worth more than the
// last ones of what is asked for often.
TEST_F(ReadRoomTest, APassOverManyDoesNotDisplaceWhatIsReadOften) {
  constexpr uint64_t kHot = 4, kCold = 60;
  constexpr int kSteps = 600;
  std::vector<CompressedObject> objects;
  for (uint64_t i = 0; i < kHot + kCold; ++i) {
    objects.push_back(MakeTestObject({.layers = kLayers, .edges = "1", .seed = i + 1}));
    Put(objects.back());
  }
  const auto read = [&](uint64_t i) { return CheckStored(*store_, tenant_, objects[i], 1); };
  Open(5 * objects[0].manifest->total_bytes() + ReadMemory::kSlots * SegmentBytesMax(objects[0]),
       /*disk_bytes=*/0, "gdsf");
  uint64_t hits = 0;
  for (int step = 0; step < kSteps; ++step) {
    clock_.AdvanceTime(absl::Seconds(2));
    const uint64_t before = store_->counters().host_hits;
    KVTIER_ASSERT_OK(read(static_cast<uint64_t>(step) % kHot));
    if (step >= kSteps / 2) hits += store_->counters().host_hits - before;
    KVTIER_ASSERT_OK(read(kHot + static_cast<uint64_t>(step) % kCold));
  }
  EXPECT_GT(hits, kSteps / 2 * 9 / 10);
  KVTIER_EXPECT_OK(store_->CheckInvariants());
}

// --- Verification --------------------------------------------------------------------------------

TEST_F(ReadRoomTest, AVerificationTakesOnlyWhatIsFreeOrOnDiskAsWell) {
  const CompressedObject a = Object(1), b = Object(2), h = Object(3);
  const auto verify = [&](const CompressedObject& object) {
    return store_->VerifyCopies(object.manifest->upload_id, BandIndex(0), LayerIndex(0));
  };
  const auto is_refused = StatusIs(absl::StatusCode::kResourceExhausted);
  Put(a);
  Open(h.manifest->total_bytes());
  Put(h, Durability::kHost);
  EXPECT_THAT(verify(a), is_refused);
  EXPECT_EQ(store_->Stat(tenant_, h.manifest->key)->disk_bands, 0u) << "nothing was written";
  EXPECT_THAT(store_->Verify(tenant_, a.manifest->key), is_refused);
  EXPECT_EQ(store_->counters().reads_refused, 2u);

  Open(b.manifest->total_bytes());
  Put(b);
  {
    auto reader = Pin(b);
    std::vector<std::shared_ptr<const BandMemory>> held;
    for (uint32_t band = 0; band < kBands; ++band) {
      KVTIER_ASSERT_OK_AND_ASSIGN(auto memory, reader->Hold(BandIndex(band), BandPlacement::kAny));
      held.push_back(std::move(memory));
    }
    KVTIER_ASSERT_OK_AND_ASSIGN(const VerifiedCopies verified, verify(b));
    EXPECT_THAT(verified.unread, is_refused);
    EXPECT_EQ(verified.bytes_read, b.segment(BandIndex(0), LayerIndex(0)).bytes().size());
    EXPECT_THAT(store_->Verify(tenant_, b.manifest->key), is_refused);
  }
  EXPECT_EQ(HostBands(b), kBands);
  KVTIER_EXPECT_OK(store_->Verify(tenant_, a.manifest->key));
  KVTIER_EXPECT_OK(store_->Verify(tenant_, b.manifest->key));
  EXPECT_LT(HostBands(b), kBands);
}

}  // namespace
}  // namespace kvtier
