#include "store/scrubber.h"

#include <algorithm>
#include <atomic>
#include <memory>
#include <thread>
#include <vector>

#include "base/log.h"
#include "base/simulated_clock.h"
#include "base/status_matchers.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/testing/store_checks.h"
#include "tests/testing/temp_dir.h"
#include "tests/testing/test_object.h"

namespace kvtier {
namespace {

constexpr uint64_t kHostBytes = 64 << 20;
constexpr uint64_t kBytesPerSecond = 1000;

class ScrubberTest : public testing::Test {
 protected:
  void Open(const std::string& folder, uint64_t host_bytes) {
    absl::StatusOr<std::unique_ptr<TieredStore>> store = OpenTestStore(folder, host_bytes, clock_);
    KVTIER_CHECK_OK(store);
    store_ = *std::move(store);
  }
  uint64_t Put(uint64_t seed, Durability durability, const TenantId& tenant = TenantId()) {
    const CompressedObject object = MakeTestObject({.seed = seed});
    KVTIER_CHECK_OK(store_->Put(tenant, object, durability));
    for (const SegmentRef& segment : object.segments) {
      segment_bytes_max_ = std::max<uint64_t>(segment_bytes_max_, segment.bytes().size());
    }
    return object.manifest->total_bytes();
  }
  // Lets time pass, a second at a time, until a pass has ended; the rate is checked all along.
  void AwaitPass(const Scrubber& scrubber, uint64_t pass) {
    while (scrubber.counters().passes < pass) {
      clock_.AwaitWaiters(1);
      if (scrubber.counters().passes >= pass) return;
      const auto seconds = static_cast<uint64_t>(absl::ToInt64Seconds(clock_.Now() - begin_));
      ASSERT_LE(scrubber.counters().bytes, kBytesPerSecond * seconds + segment_bytes_max_);
      ASSERT_LT(seconds, 1'000'000u);
      clock_.AdvanceTime(absl::Seconds(1));
    }
  }

  TempDir dir_;
  SimulatedClock clock_;
  const absl::Time begin_ = clock_.Now();
  std::unique_ptr<TieredStore> store_;
  uint64_t segment_bytes_max_ = 0;
};

const ScrubberOptions kAtOnce = {.bytes_per_second = kBytesPerSecond,
                                 .start_delay = absl::ZeroDuration(),
                                 .pass_interval = absl::Hours(24)};

TEST_F(ScrubberTest, APassReadsEveryCopyOfEveryTenantWithinItsRate) {
  Open(dir_.File("store"), kHostBytes);
  uint64_t bytes = 0;
  bytes += 2 * Put(1, Durability::kDisk);  // On disk and in host memory.
  bytes += Put(2, Durability::kHost);
  KVTIER_ASSERT_OK_AND_ASSIGN(const TenantId other, TenantId::FromString("other"));
  bytes += 2 * Put(3, Durability::kDisk, other);
  segment_bytes_max_ *= 2;  // Both copies.
  Scrubber scrubber(kAtOnce, *store_, clock_);
  AwaitPass(scrubber, 1);
  EXPECT_EQ(scrubber.counters().bytes, bytes);
  EXPECT_EQ(scrubber.counters().repaired, 0u);
  EXPECT_EQ(scrubber.counters().lost, 0u);
  EXPECT_EQ(scrubber.counters().errors, 0u);
  // At least the time that the rate makes of it, and no fetch was counted.
  EXPECT_GE(absl::ToDoubleSeconds(clock_.Now() - begin_),
            static_cast<double>(bytes) / kBytesPerSecond - 1);
  EXPECT_EQ(store_->counters().requests, 0u);
}

TEST_F(ScrubberTest, ThePassesKeepTheirInterval) {
  Open("", kHostBytes);
  const uint64_t bytes = Put(1, Durability::kHost);
  Scrubber scrubber({.bytes_per_second = uint64_t{1} << 40,
                     .start_delay = absl::Minutes(1),
                     .pass_interval = absl::Hours(1)},
                    *store_, clock_);
  clock_.AwaitWaiters(1);
  clock_.AdvanceTime(absl::Seconds(59));
  EXPECT_EQ(scrubber.counters().bytes, 0u);
  clock_.AdvanceTime(absl::Seconds(1));
  for (uint64_t pass = 1; pass <= 3; ++pass) {
    while (scrubber.counters().passes < pass) {
      clock_.AwaitWaiters(1);
      if (scrubber.counters().passes < pass) clock_.AdvanceTime(absl::Microseconds(1));
    }
    clock_.AwaitWaiters(1);
    EXPECT_EQ(scrubber.counters().bytes, pass * bytes);
    clock_.AdvanceTime(absl::Minutes(59));
    clock_.AwaitWaiters(1);
    EXPECT_EQ(scrubber.counters().passes, pass);
    clock_.AdvanceTime(absl::Minutes(1));
  }
}

TEST_F(ScrubberTest, AnObjectThatGoesMeanwhileIsNoError) {
  Open("", kHostBytes);
  Put(1, Durability::kHost);
  Put(2, Durability::kHost);
  Scrubber scrubber(kAtOnce, *store_, clock_);
  clock_.AwaitWaiters(1);
  KVTIER_ASSERT_OK(store_->Delete(TenantId(), MakeTestObject({.seed = 1}).manifest->key));
  KVTIER_ASSERT_OK(store_->Delete(TenantId(), MakeTestObject({.seed = 2}).manifest->key));
  EXPECT_EQ(store_->host_usage().bytes, 0u) << "the scrubber pins nothing while it waits";
  AwaitPass(scrubber, 1);
  EXPECT_EQ(scrubber.counters().lost, 0u);
  EXPECT_EQ(scrubber.counters().errors, 0u);
}

TEST_F(ScrubberTest, StopsWhileItWaits) {
  Open("", kHostBytes);
  Put(1, Durability::kHost);
  Scrubber scrubber({.bytes_per_second = 1}, *store_, clock_);
  clock_.AwaitWaiters(1);
}  // The destructor returns although no time passes.

TEST_F(ScrubberTest, ARateOfZeroReadsNothing) {
  Open("", kHostBytes);
  Put(1, Durability::kHost);
  Scrubber scrubber({.bytes_per_second = 0}, *store_, clock_);
  EXPECT_EQ(clock_.waiter_count(), 0);
  EXPECT_EQ(scrubber.counters().bytes, 0u);
}

TEST_F(ScrubberTest, RunsBesideWritersAndReadersWithoutFalseAlarm) {
  // Little host memory, but an upload and what its writer reads fit for each thread.
  Open(dir_.File("store"), 8 * MakeTestObject({}).manifest->total_bytes());
  Scrubber scrubber({.bytes_per_second = UINT64_MAX,
                     .start_delay = absl::ZeroDuration(),
                     .pass_interval = absl::ZeroDuration()},
                    *store_, Clock::Real());
  constexpr uint64_t kThreads = 3;
  constexpr uint64_t kRounds = 15;
  std::vector<std::thread> threads;
  for (uint64_t thread = 0; thread < kThreads; ++thread) {
    threads.emplace_back([&, thread] {
      for (uint64_t round = 0; round < kRounds; ++round) {
        const CompressedObject object = MakeTestObject({.seed = 1 + thread, .upload_seed = round});
        const uint32_t bands = static_cast<uint32_t>(object.manifest->bands.size());
        KVTIER_EXPECT_OK(store_->Put(TenantId(), object, Durability::kDisk));
        KVTIER_EXPECT_OK(CheckStored(*store_, TenantId(), object, bands));
        KVTIER_EXPECT_OK(store_->DropBands(TenantId(), object.manifest->key, 2));
        KVTIER_EXPECT_OK(CheckStored(*store_, TenantId(), object, 2));
        if (round % 2 == 0) {
          KVTIER_EXPECT_OK(store_->Delete(TenantId(), object.manifest->key));
        }
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(scrubber.counters().repaired, 0u);
  EXPECT_EQ(scrubber.counters().lost, 0u);
  EXPECT_EQ(scrubber.counters().errors, 0u);
  EXPECT_EQ(store_->counters().bands_lost, 0u);
}

}  // namespace
}  // namespace kvtier
