// Random operations on a store against a plain map: what is resident is always a prefix, exactly
// the one that the map says, byte for byte, over restarts too.
#include <map>
#include <random>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/log.h"
#include "base/simulated_clock.h"
#include "base/status_matchers.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "store/tiered_store.h"
#include "tests/testing/random.h"
#include "tests/testing/store_checks.h"
#include "tests/testing/temp_dir.h"
#include "tests/testing/test_object.h"

namespace kvtier {
namespace {

constexpr uint64_t kKeys = 5;
constexpr uint32_t kBands = 4;

CompressedObject ObjectOf(uint64_t key, uint64_t upload) {
  return MakeTestObject({.layers = 2,
                         .context_tokens = 40,
                         .edges = "0.2,0.4,0.7,1",
                         .seed = key,
                         .upload_seed = upload});
}

struct Entry {
  uint64_t upload = 0;
  uint32_t bands = 0;
  bool on_disk = false;
};

struct Reader {
  std::unique_ptr<PinnedObject> pinned;
  uint64_t key = 0;
  Entry entry;
};

class StorePropertyTest : public testing::Test {
 protected:
  StorePropertyTest() { Open(); }

  void Open() {
    readers_.clear();
    store_.reset();
    absl::StatusOr<std::unique_ptr<TieredStore>> store =
        OpenTestStore(dir_.File("store"), 3 * ObjectOf(1, 0).manifest->total_bytes(), clock_);
    KVTIER_CHECK_OK(store);
    store_ = *std::move(store);
    std::erase_if(map_, [](const auto& item) { return !item.second.on_disk; });
  }

  void CheckAll() {
    for (uint64_t key = 0; key < kKeys; ++key) {
      const auto found = map_.find(key);
      const Entry entry = found == map_.end() ? Entry{} : found->second;
      KVTIER_ASSERT_OK(CheckStored(*store_, tenant_, ObjectOf(key, entry.upload), entry.bands))
          << "key " << key;
    }
    for (const ObjectStat& stat : store_->List(tenant_, std::nullopt, 100)) {
      EXPECT_EQ(stat.resident_bands, std::max(stat.host_bands, stat.disk_bands));
      // Invariant 2: once a band has left host memory, all of them are on disk.
      if (stat.host_bands < stat.resident_bands) {
        EXPECT_EQ(stat.disk_bands, stat.resident_bands);
      }
    }
    KVTIER_EXPECT_OK(store_->CheckInvariants());
    EXPECT_EQ(store_->object_count(), map_.size());
    const TierUsage usage = store_->host_usage();
    EXPECT_LE(usage.bytes, usage.budget_bytes);
  }

  void Put(uint64_t key, Durability durability) {
    const uint64_t upload = ++uploads_;
    absl::StatusOr<ObjectStat> stat = store_->Put(tenant_, ObjectOf(key, upload), durability);
    if (!stat.ok()) {
      // Readers may hold all of host memory.
      EXPECT_THAT(stat, StatusIs(absl::StatusCode::kResourceExhausted));
      return;
    }
    Entry& entry = map_[key];
    if (entry.bands < kBands) entry = {upload, kBands, entry.on_disk};
    // The rest may have been demoted; the store says so.
    entry.on_disk = stat->disk_bands == kBands || durability == Durability::kDisk;
  }

  void Step(std::mt19937_64& random) {
    const uint64_t key = RandomUniform(random, 0, kKeys - 1);
    const auto found = map_.find(key);
    switch (RandomUniform(random, 0, 9)) {
      case 0:
      case 1:
        return Put(key, Durability::kHost);
      case 2:
      case 3:
        return Put(key, Durability::kDisk);
      case 4:
        EXPECT_EQ(store_->Delete(tenant_, ObjectOf(key, 0).manifest->key).ok(),
                  found != map_.end());
        map_.erase(key);
        return;
      case 5: {
        const uint32_t bands = static_cast<uint32_t>(RandomUniform(random, 1, kBands));
        const absl::Status dropped =
            store_->DropBands(tenant_, ObjectOf(key, 0).manifest->key, bands);
        EXPECT_EQ(dropped.ok(), found != map_.end());
        if (dropped.ok()) found->second.bands = std::min(found->second.bands, bands);
        return;
      }
      case 6:
      case 7: {
        if (found == map_.end() || readers_.size() >= 3) return;
        absl::StatusOr<std::unique_ptr<PinnedObject>> pinned =
            store_->Pin(tenant_, ObjectOf(key, 0).manifest->key, std::nullopt);
        KVTIER_ASSERT_OK(pinned);
        readers_.push_back({*std::move(pinned), key, found->second});
        return;
      }
      case 8: {
        if (readers_.empty()) return;
        const size_t at = RandomUniform(random, 0, readers_.size() - 1);
        Reader& reader = readers_[at];
        KVTIER_EXPECT_OK(CheckPinned(*reader.pinned, ObjectOf(reader.key, reader.entry.upload),
                                     reader.entry.bands));
        readers_.erase(readers_.begin() + static_cast<ptrdiff_t>(at));
        return;
      }
      default:
        // What was demoted meanwhile survives as well.
        for (auto& [stored_key, entry] : map_) {
          entry.on_disk =
              store_->Stat(tenant_, ObjectOf(stored_key, 0).manifest->key)->disk_bands > 0;
        }
        return Open();
    }
  }

  TempDir dir_;
  SimulatedClock clock_;
  const TenantId tenant_;
  std::unique_ptr<TieredStore> store_;
  std::vector<Reader> readers_;  // Die before the store.
  std::map<uint64_t, Entry> map_;
  uint64_t uploads_ = 0;
};

TEST_F(StorePropertyTest, ResidentBandsAreThePrefixThatAMapSays) {
  const uint64_t seed = TestSeed();
  SCOPED_TRACE(SeedTrace(seed));
  std::mt19937_64 random(seed);
  for (int step = 0; step < 150; ++step) {
    SCOPED_TRACE(absl::StrCat("step ", step));
    Step(random);
    CheckAll();
    if (HasFatalFailure() || HasNonfatalFailure()) return;
  }
}

}  // namespace
}  // namespace kvtier
