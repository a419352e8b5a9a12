// Readers, puts, drops, deletes and verifications of the same few keys at once, for the thread
// sanitizer: every byte read is verified, nothing deadlocks, nobody is refused for ever, and the
// counters add up in the end.
#include <algorithm>
#include <array>
#include <atomic>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/log.h"
#include "base/status_matchers.h"
#include "gtest/gtest.h"
#include "store/tiered_store.h"
#include "tests/testing/random.h"
#include "tests/testing/store_checks.h"
#include "tests/testing/temp_dir.h"
#include "tests/testing/test_object.h"

namespace kvtier {
namespace {

constexpr uint64_t kKeys = 4;
constexpr uint64_t kUploads = 4;

enum class Tiers { kHostAlone, kHostOverDisk, kHostOverSmallDisk };

class StoreStressTest : public testing::TestWithParam<Tiers> {
 protected:
  StoreStressTest() {
    for (uint64_t key = 0; key < kKeys; ++key) {
      for (uint64_t upload = 0; upload < kUploads; ++upload) {
        objects_[key][upload] =
            MakeTestObject({.layers = 2, .edges = "0.3,0.6,1", .seed = key, .upload_seed = upload});
      }
    }
    const uint64_t object_bytes = objects_[0][0].manifest->total_bytes();
    absl::StatusOr<std::unique_ptr<TieredStore>> store = OpenTestStore(
        has_disk() ? dir_.File("store") : "", 2 * object_bytes, Clock::Real(),
        /*env=*/nullptr, GetParam() == Tiers::kHostOverSmallDisk ? 4 * object_bytes : 0);
    KVTIER_CHECK_OK(store);
    store_ = *std::move(store);
  }

  bool has_disk() const { return GetParam() != Tiers::kHostAlone; }
  const Key& KeyOf(uint64_t key) const { return objects_[key][0].manifest->key; }

  // Asks again until there is room: a reader that is kept out for ever hangs the test.
  void Read(uint64_t key) {
    while (!TryRead(key)) {
      ++reads_refused_;
      std::this_thread::yield();
    }
  }

  // False: others have the memory now.
  bool TryRead(uint64_t key) {
    absl::StatusOr<std::unique_ptr<PinnedObject>> pinned =
        store_->Pin(tenant_, KeyOf(key), std::nullopt);
    if (!pinned.ok()) {
      EXPECT_THAT(pinned, StatusIs(absl::StatusCode::kNotFound));
      return true;
    }
    const auto& uploads = objects_[key];
    const auto object = std::ranges::find_if(uploads, [&](const CompressedObject& candidate) {
      return candidate.manifest->upload_id == (*pinned)->manifest()->upload_id;
    });
    KVTIER_CHECK(object != uploads.end());
    const absl::Status read = CheckPinned(**pinned, *object, (*pinned)->resident_bands());
    if (absl::IsResourceExhausted(read)) return false;
    KVTIER_EXPECT_OK(read);
    ++objects_read_;
    return true;
  }

  void Write(std::mt19937_64& random) {
    const uint64_t key = RandomUniform(random, 0, kKeys - 1);
    switch (RandomUniform(random, 0, 5)) {
      case 0:
        store_->Delete(tenant_, KeyOf(key)).IgnoreError();
        return;
      case 1:
        store_->DropBands(tenant_, KeyOf(key), 1 + static_cast<uint32_t>(random() % 2))
            .IgnoreError();
        return;
      case 2: {
        const absl::Status verified = store_->Verify(tenant_, KeyOf(key));
        if (absl::IsResourceExhausted(verified)) {
          ++verifications_refused_;
        } else {
          EXPECT_TRUE(verified.ok() || absl::IsNotFound(verified)) << verified;
        }
        return;
      }
      default: {
        const CompressedObject& object = objects_[key][random() % kUploads];
        const Durability durability =
            has_disk() && random() % 2 == 0 ? Durability::kDisk : Durability::kHost;
        const absl::Status put = store_->Put(tenant_, object, durability).status();
        // Two threads may send the same upload: one of them finds it gone, sealed by the other and
        // deleted by a third.
        EXPECT_TRUE(put.ok() || absl::IsResourceExhausted(put) || absl::IsNotFound(put)) << put;
        return;
      }
    }
  }

  TempDir dir_;
  const TenantId tenant_;
  std::array<std::array<CompressedObject, kUploads>, kKeys> objects_;
  std::unique_ptr<TieredStore> store_;
  std::atomic<uint64_t> objects_read_{0};
  std::atomic<uint64_t> reads_refused_{0};  // Each for the lack of memory.
  std::atomic<uint64_t> verifications_refused_{0};
};

TEST_P(StoreStressTest, EveryByteIsRightWhileEverythingHappensAtOnce) {
  const uint64_t seed = TestSeed();
  SCOPED_TRACE(SeedTrace(seed));
  const int rounds = has_disk() ? 60 : 400;
  std::atomic<int> writers{2};
  std::vector<std::thread> threads;
  for (uint64_t writer = 0; writer < 2; ++writer) {
    threads.emplace_back([this, &writers, rounds, writer_seed = seed + writer] {
      std::mt19937_64 random(writer_seed);
      // On a busy machine the readers may come late.
      for (int round = 0; round < rounds || objects_read_ < 50; ++round) Write(random);
      --writers;
    });
  }
  for (uint64_t reader = 0; reader < 2; ++reader) {
    threads.emplace_back([this, &writers, reader] {
      for (uint64_t round = reader; writers > 0; ++round) Read(round % kKeys);
    });
  }
  for (std::thread& thread : threads) thread.join();

  const StoreCounters& counters = store_->counters();
  EXPECT_EQ(counters.requests,
            counters.host_hits + counters.disk_hits + counters.misses + counters.failures);
  EXPECT_EQ(counters.checksum_failures, 0u);
  EXPECT_EQ(counters.bands_lost, 0u);
  KVTIER_EXPECT_OK(store_->CheckInvariants());
  EXPECT_GE(counters.reads_refused, reads_refused_ + verifications_refused_);
  RecordProperty("reads_refused", absl::StrCat(reads_refused_.load()));
  RecordProperty("verifications_refused", absl::StrCat(verifications_refused_.load()));
  const uint64_t refused_before = counters.reads_refused;
  // Alone, everybody is served at once.
  for (uint64_t key = 0; key < kKeys; ++key) EXPECT_TRUE(TryRead(key)) << "key " << key;
  EXPECT_EQ(counters.reads_refused, refused_before);
  for (uint64_t key = 0; key < kKeys; ++key) {
    store_->Delete(tenant_, KeyOf(key)).IgnoreError();
  }
  EXPECT_EQ(store_->object_count(), 0u);
  EXPECT_EQ(store_->host_usage().bytes, 0u);
  if (has_disk()) {
    EXPECT_EQ(store_->disk_usage()->bytes, 0u);
  }
}

INSTANTIATE_TEST_SUITE_P(Tiers, StoreStressTest,
                         testing::Values(Tiers::kHostAlone, Tiers::kHostOverDisk,
                                         Tiers::kHostOverSmallDisk),
                         [](const testing::TestParamInfo<Tiers>& tiers) {
                           return tiers.param == Tiers::kHostAlone      ? "HostAlone"
                                  : tiers.param == Tiers::kHostOverDisk ? "HostOverDisk"
                                                                        : "HostOverSmallDisk";
                         });

}  // namespace
}  // namespace kvtier
