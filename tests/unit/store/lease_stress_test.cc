// Leases that come, stall and go while puts push everything else out of host memory, for the thread
// sanitizer: every byte under a lease is right, the budget holds, and nothing is held in the end.
#include <algorithm>
#include <array>
#include <atomic>
#include <deque>
#include <thread>
#include <vector>

#include "base/clock.h"
#include "base/log.h"
#include "base/status_matchers.h"
#include "gtest/gtest.h"
#include "store/lease_table.h"
#include "tests/testing/random.h"
#include "tests/testing/store_checks.h"
#include "tests/testing/temp_dir.h"
#include "tests/testing/test_object.h"

namespace kvtier {
namespace {

constexpr size_t kObjects = 8;

bool IsRight(const HeldObject& held, const CompressedObject& object) {
  for (uint32_t band = 0; band < held.band_count(); ++band) {
    for (uint32_t layer = 0; layer < held.manifest()->geometry.layer_count(); ++layer) {
      if (!std::ranges::equal(held.Segment(BandIndex(band), LayerIndex(layer)).bytes(),
                              object.segment(BandIndex(band), LayerIndex(layer)).bytes())) {
        return false;
      }
    }
  }
  return true;
}

TEST(LeaseStressTest, EveryByteUnderALeaseIsRight) {
  const uint64_t seed = TestSeed();
  SCOPED_TRACE(SeedTrace(seed));
  const TempDir dir;
  const TenantId tenant;
  std::array<CompressedObject, kObjects> objects;
  for (size_t i = 0; i < kObjects; ++i) {
    objects[i] = MakeTestObject({.layers = 2, .edges = "0.3,0.6,1", .seed = i});
  }
  const uint64_t object_bytes = objects[0].manifest->total_bytes();
  KVTIER_ASSERT_OK_AND_ASSIGN(const auto store,
                              OpenTestStore(dir.File("store"), 8 * object_bytes, Clock::Real()));
  LeaseTable leases({.leases_max = 8, .bytes_max = 3 * object_bytes}, *store);

  std::atomic<int> writers{2};
  std::atomic<int> held{0};
  std::vector<std::thread> threads;
  for (uint64_t writer = 0; writer < 2; ++writer) {
    threads.emplace_back([&, writer] {
      std::mt19937_64 random(seed + writer);
      for (int round = 0; round < 40 || held < 40; ++round) {
        const CompressedObject& object = objects[random() % kObjects];
        if (random() % 8 == 0) {
          store->Delete(tenant, object.manifest->key).IgnoreError();
          continue;
        }
        const Durability durability = random() % 2 == 0 ? Durability::kDisk : Durability::kHost;
        const absl::Status put = store->Put(tenant, object, durability).status();
        EXPECT_TRUE(put.ok() || absl::IsResourceExhausted(put) || absl::IsNotFound(put)) << put;
        const TierUsage usage = store->host_usage();
        EXPECT_LE(usage.bytes, usage.budget_bytes);
      }
      --writers;
    });
  }
  for (uint64_t reader = 0; reader < 3; ++reader) {
    threads.emplace_back([&, reader] {
      std::mt19937_64 random(seed + 100 + reader);
      struct Stalled {
        std::unique_ptr<Lease> lease;
        size_t object;
      };
      std::deque<Stalled> stalled;
      while (writers > 0) {
        const size_t i = random() % kObjects;
        FetchRequest request;
        request.key = objects[i].manifest->key;
        request.min_ratio = *Ratio::FromDouble(0.3);
        absl::StatusOr<std::unique_ptr<Lease>> lease =
            leases.Acquire(request, random() % 2 == 0 ? BandPlacement::kFile : BandPlacement::kAny);
        if (!lease.ok()) {
          EXPECT_TRUE(absl::IsNotFound(lease.status()) ||
                      absl::IsResourceExhausted(lease.status()) ||
                      absl::IsDataLoss(lease.status()) || absl::IsAborted(lease.status()))
              << lease.status();
          if (!stalled.empty()) stalled.pop_front();  // Dies without a word.
          continue;
        }
        EXPECT_TRUE(IsRight((*lease)->object(), objects[i]));
        ++held;
        stalled.push_back({*std::move(lease), i});
        if (stalled.size() > 2) {
          EXPECT_TRUE(IsRight(stalled.front().lease->object(), objects[stalled.front().object]));
          stalled.pop_front();
        }
      }
      for (const Stalled& last : stalled) {
        EXPECT_TRUE(IsRight(last.lease->object(), objects[last.object]));
      }
    });
  }
  for (std::thread& thread : threads) thread.join();

  EXPECT_EQ(leases.usage().leases, 0u);
  EXPECT_EQ(leases.usage().bytes, 0u);
  for (const CompressedObject& object : objects) {
    store->Delete(tenant, object.manifest->key).IgnoreError();
  }
  EXPECT_EQ(store->host_usage().bytes, 0u);
}

}  // namespace
}  // namespace kvtier
