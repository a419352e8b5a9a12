// A disk that takes a write, or a read, and does not answer. Whoever needs that disk waits;
// everybody else is served, and nothing is lost when it answers again.
#include <filesystem>
#include <memory>
#include <thread>

#include "base/log.h"
#include "base/simulated_clock.h"
#include "base/status_matchers.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "store/tiered_store.h"
#include "tests/fault/store/simulated_disk.h"
#include "tests/testing/store_checks.h"
#include "tests/testing/temp_dir.h"
#include "tests/testing/test_object.h"

namespace kvtier {
namespace {

constexpr uint64_t kHostBytes = 64 << 20;
const absl::Duration kLongTime = absl::Seconds(60);

class SlowDiskTest : public testing::Test {
 protected:
  SlowDiskTest() { std::filesystem::create_directories(folder_); }

  void Open() {
    store_.reset();
    absl::StatusOr<std::unique_ptr<TieredStore>> store =
        OpenTestStore(folder_, kHostBytes, clock_, disk_.env());
    KVTIER_CHECK_OK(store);
    store_ = *std::move(store);
  }
  absl::Status Put(const CompressedObject& object, Durability durability) {
    return store_->Put(TenantId(), object, durability).status();
  }
  absl::Status Check(const CompressedObject& object) {
    return CheckStored(*store_, TenantId(), object, kBands);
  }

  static CompressedObject ObjectOf(uint64_t seed) {
    return MakeTestObject({.edges = "0.3,0.6,1", .seed = seed});
  }
  static constexpr uint32_t kBands = 3;

  TempDir dir_;
  const std::string folder_ = dir_.File("store");
  SimulatedDisk disk_{DiskState(dir_.path())};
  SimulatedClock clock_;
  std::unique_ptr<TieredStore> store_;
};

TEST_F(SlowDiskTest, WhileAWriteHangsReadersAndHostPutsAreServed) {
  Open();
  const CompressedObject on_disk = ObjectOf(1);
  const CompressedObject in_host = ObjectOf(2);
  const CompressedObject slow = ObjectOf(3);
  const CompressedObject meanwhile = ObjectOf(4);
  KVTIER_ASSERT_OK(Put(on_disk, Durability::kDisk));
  Open();  // Out of host memory.
  KVTIER_ASSERT_OK(Put(in_host, Durability::kHost));

  disk_.HoldChanges();
  absl::Status put;
  std::thread writer([&] { put = Put(slow, Durability::kDisk); });
  EXPECT_TRUE(disk_.AwaitHeld(kLongTime));
  KVTIER_EXPECT_OK(Check(in_host));
  KVTIER_EXPECT_OK(Check(on_disk));
  KVTIER_EXPECT_OK(Put(meanwhile, Durability::kHost));
  KVTIER_EXPECT_OK(Check(meanwhile));
  KVTIER_EXPECT_OK(store_->Verify(TenantId(), on_disk.manifest->key));
  EXPECT_THAT(CheckStored(*store_, TenantId(), slow, 0), IsOk()) << "not acknowledged yet";
  disk_.Release();
  writer.join();
  KVTIER_EXPECT_OK(put);

  Open();
  KVTIER_EXPECT_OK(Check(on_disk));
  KVTIER_EXPECT_OK(Check(slow));
}

TEST_F(SlowDiskTest, WhileAReadHangsOtherObjectsAreServedFromHostMemory) {
  Open();
  const CompressedObject on_disk = ObjectOf(1);
  const CompressedObject in_host = ObjectOf(2);
  const CompressedObject meanwhile = ObjectOf(3);
  KVTIER_ASSERT_OK(Put(on_disk, Durability::kDisk));
  Open();
  KVTIER_ASSERT_OK(Put(in_host, Durability::kDisk));

  disk_.HoldReads();
  absl::Status read;
  std::thread reader([&] { read = Check(on_disk); });
  EXPECT_TRUE(disk_.AwaitHeld(kLongTime));
  KVTIER_EXPECT_OK(Check(in_host));
  KVTIER_EXPECT_OK(Put(meanwhile, Durability::kHost));
  KVTIER_EXPECT_OK(Check(meanwhile));
  KVTIER_EXPECT_OK(store_->Stat(TenantId(), on_disk.manifest->key));
  disk_.Release();
  reader.join();
  KVTIER_EXPECT_OK(read);
}

}  // namespace
}  // namespace kvtier
