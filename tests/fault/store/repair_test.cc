// Damage that is found while something else happens to the same object, and bytes that are intact
// but wrong.
#include <atomic>
#include <cstddef>
#include <filesystem>
#include <future>
#include <memory>
#include <string>

#include "base/log.h"
#include "base/mutex.h"
#include "base/simulated_clock.h"
#include "base/status_matchers.h"
#include "base/sync_point.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "store/scrubber.h"
#include "store/tiered_store.h"
#include "tests/testing/files.h"
#include "tests/testing/store_checks.h"
#include "tests/testing/temp_dir.h"
#include "tests/testing/test_object.h"

namespace kvtier {
namespace {

using testing::HasSubstr;

constexpr uint64_t kHostBytes = 64 << 20;
constexpr uint32_t kBands = 6;

class RepairTest : public testing::Test {
 protected:
  RepairTest() { Open(); }
  ~RepairTest() override { SyncPoints::ClearAll(); }

  void Open() {
    store_.reset();
    absl::StatusOr<std::unique_ptr<TieredStore>> store =
        OpenTestStore(dir_.File("store"), kHostBytes, clock_);
    KVTIER_CHECK_OK(store);
    store_ = *std::move(store);
  }
  absl::Status Put(const CompressedObject& object, Durability durability) {
    return store_->Put(TenantId(), object, durability).status();
  }
  absl::Status Check(const CompressedObject& object, uint32_t bands) {
    return CheckStored(*store_, TenantId(), object, bands);
  }
  std::unique_ptr<PinnedObject> Pin() {
    absl::StatusOr<std::unique_ptr<PinnedObject>> pinned =
        store_->Pin(TenantId(), object_.manifest->key, std::nullopt);
    KVTIER_CHECK_OK(pinned);
    return *std::move(pinned);
  }
  void FlipOnDisk(uint32_t band, uint32_t layer) {
    const std::string bytes(
        AsStringView(object_.segment(BandIndex(band), LayerIndex(layer)).bytes()).substr(0, 4096));
    for (const auto& entry : std::filesystem::recursive_directory_iterator(dir_.File("store"))) {
      if (entry.path().extension() != ".sst") continue;
      const size_t at = ReadFile(entry.path()).find(bytes);
      if (at != std::string::npos) return FlipBit(entry.path(), at, 0);
    }
    FAIL() << "band " << band << " is not on disk";
  }
  // What a memory cell that lost its value does.
  static void FlipInMemory(PinnedObject& pinned, uint32_t band) {
    const absl::StatusOr<SegmentRef> segment = pinned.Read(BandIndex(band), LayerIndex(0));
    KVTIER_CHECK_OK(segment);
    const_cast<std::byte&>(segment->bytes()[0]) ^= std::byte{1};
  }

  TempDir dir_;
  SimulatedClock clock_;
  std::unique_ptr<TieredStore> store_;
  const CompressedObject object_ = MakeTestObject({.context_tokens = 300, .seed = 1});
};

#ifdef KVTIER_SYNC_POINTS
// Its record is not this upload's to write any more, and its readers keep what is intact.
TEST_F(RepairTest, AnUploadThatIsDeletedBeforeItsRepairIsLeftAlone) {
  KVTIER_ASSERT_OK(Put(object_, Durability::kDisk));
  FlipOnDisk(2, 1);
  auto reader = Pin();
  {
    const ScopedSyncPoint at("store.verify.before_repair", [&] {
      KVTIER_EXPECT_OK(store_->Delete(TenantId(), object_.manifest->key));
    });
    KVTIER_EXPECT_OK(store_->Verify(TenantId(), object_.manifest->key));
  }
  EXPECT_EQ(store_->counters().checksum_failures, 1u);
  EXPECT_EQ(store_->counters().bands_lost, 0u);
  KVTIER_EXPECT_OK(CheckPinned(*reader, object_, kBands));
  reader.reset();
  KVTIER_EXPECT_OK(store_->CheckInvariants());
  EXPECT_EQ(store_->disk_usage()->bytes, 0u);
  Open();
  KVTIER_EXPECT_OK(Check(object_, 0));
}

// While an object is on its way to the disk what is there is not sealed, so it is no copy to fall
// back to: whoever finds host memory damaged waits until it is.
TEST_F(RepairTest, DamageInMemoryIsNotRepairedFromACopyThatIsNotSealed) {
  KVTIER_ASSERT_OK(Put(object_, Durability::kHost));
  std::atomic<int> files{0};
  std::promise<void> found;
  std::future<absl::Status> verified;
  {
    const ScopedSyncPoint repair("store.verify.before_repair", [&] { found.set_value(); });
    const ScopedSyncPoint put("store.put_band.after_file", [&] {
      if (++files != 4) return;
      const auto reader = Pin();
      FlipInMemory(*reader, 1);  // Written already.
      verified = std::async(std::launch::async,
                            [&] { return store_->Verify(TenantId(), object_.manifest->key); });
      found.get_future().wait();
    });
    KVTIER_EXPECT_OK(Put(object_, Durability::kDisk));
    KVTIER_EXPECT_OK(verified.get());
  }
  EXPECT_EQ(store_->counters().checksum_failures, 1u);
  EXPECT_EQ(store_->counters().bands_lost, 0u);
  KVTIER_EXPECT_OK(store_->CheckInvariants());
  const absl::StatusOr<ObjectStat> stat = store_->Stat(TenantId(), object_.manifest->key);
  KVTIER_ASSERT_OK(stat);
  EXPECT_EQ(stat->host_bands, 1u);
  EXPECT_EQ(stat->disk_bands, kBands);
  KVTIER_EXPECT_OK(Check(object_, kBands));
}
#endif

// Bytes that Put refuses today, in a store that took them in before: the pass that finds them gives
// them up, and the next one has nothing to count.
TEST_F(RepairTest, AScrubCountsContentThatIsWrongOnce) {
  const CompressedObject wrong = WithWrongPosition(object_, BandIndex(3), LayerIndex(1));
  store_.reset();
  {
    KVTIER_ASSERT_OK_AND_ASSIGN(const auto disk, OpenRocksDbTier({.folder = dir_.File("store")}));
    KVTIER_ASSERT_OK(disk->Recover());
    const size_t layers = wrong.manifest->geometry.layer_count();
    for (uint32_t band = 0; band < kBands; ++band) {
      KVTIER_ASSERT_OK(disk->PutBand(*wrong.manifest, BandIndex(band),
                                     std::span(wrong.segments).subspan(band * layers, layers)));
    }
    KVTIER_ASSERT_OK(disk->Seal(TenantId(), *wrong.manifest, clock_.Now()));
  }
  Open();
  {
    Scrubber scrubber({.bytes_per_second = UINT64_MAX,
                       .start_delay = absl::ZeroDuration(),
                       .pass_interval = absl::Seconds(1)},
                      *store_, clock_);
    while (scrubber.counters().passes < 3) {
      clock_.AwaitWaiters(1);
      if (scrubber.counters().passes < 3) clock_.AdvanceTime(absl::Seconds(1));
    }
    EXPECT_EQ(scrubber.counters().lost, 1u);
    EXPECT_EQ(scrubber.counters().errors, 0u);
  }
  EXPECT_EQ(store_->counters().bands_lost, kBands - 3);
  EXPECT_EQ(store_->counters().checksum_failures, 0u);
  KVTIER_EXPECT_OK(Check(wrong, 3));
  KVTIER_EXPECT_OK(store_->CheckInvariants());
  // As for every other writer.
  KVTIER_EXPECT_OK(store_->Delete(TenantId(), wrong.manifest->key));
  EXPECT_THAT(Put(wrong, Durability::kDisk),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("band 3, layer 1")));
}

}  // namespace
}  // namespace kvtier
