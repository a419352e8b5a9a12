#include "store/event_log.h"

#include <array>
#include <atomic>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/simulated_clock.h"
#include "base/status_matchers.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace kvtier {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

class EventLogTest : public testing::Test {
 protected:
  static Key KeyOf(uint8_t n) {
    std::array<std::byte, Key::kSize> bytes{};
    bytes[0] = std::byte{n};
    return Key(bytes);
  }
  static UploadId UploadOf(uint8_t n) {
    std::array<std::byte, UploadId::kSize> bytes{};
    bytes[0] = std::byte{n};
    return UploadId(bytes);
  }
  void Lower(EventLog& log, const TenantId& tenant, uint8_t n) {
    log.Append(tenant, KeyOf(n), UploadOf(n),
               StoreEvent::Lowered{n, StoreEvent::Lowered::Reason::kDegraded});
  }
  static std::vector<uint64_t> Sequences(EventWatcher& watcher, size_t count_max = 1000) {
    const absl::StatusOr<std::vector<StoreEvent>> events = watcher.Next(count_max);
    EXPECT_THAT(events, IsOk());
    std::vector<uint64_t> sequences;
    if (events.ok()) {
      for (const StoreEvent& event : *events) sequences.push_back(event.sequence);
    }
    return sequences;
  }

  SimulatedClock clock_;
  EventLog log_{{.events_max = 4, .watchers_max = 3, .watchers_per_tenant_max = 2}, clock_};
  const TenantId a_ = *TenantId::FromString("a");
  const TenantId b_ = *TenantId::FromString("b");
};

TEST_F(EventLogTest, AWatcherSeesEachEventOfItsTenantOnceInOrder) {
  KVTIER_ASSERT_OK_AND_ASSIGN(const auto watcher, log_.Watch(a_, 0));
  EXPECT_THAT(Sequences(*watcher), IsEmpty());
  Lower(log_, a_, 1);
  Lower(log_, b_, 2);
  clock_.AdvanceTime(absl::Seconds(3));
  Lower(log_, a_, 3);
  KVTIER_ASSERT_OK_AND_ASSIGN(const std::vector<StoreEvent> first, watcher->Next(1));
  ASSERT_EQ(first.size(), 1u);
  EXPECT_EQ(first[0].sequence, 1u);
  EXPECT_EQ(first[0].key, KeyOf(1));
  EXPECT_EQ(first[0].upload, UploadOf(1));
  EXPECT_EQ(std::get<StoreEvent::Lowered>(first[0].change).resident_bands, 1u);
  KVTIER_ASSERT_OK_AND_ASSIGN(const std::vector<StoreEvent> second, watcher->Next(10));
  ASSERT_EQ(second.size(), 1u);
  EXPECT_EQ(second[0].sequence, 3u);
  EXPECT_EQ(second[0].at, SimulatedClock::DefaultStart() + absl::Seconds(3));
  EXPECT_THAT(Sequences(*watcher), IsEmpty());
}

TEST_F(EventLogTest, AWatcherGoesOnWhereItWas) {
  for (uint8_t n = 1; n <= 4; ++n) Lower(log_, a_, n);
  {
    KVTIER_ASSERT_OK_AND_ASSIGN(const auto watcher, log_.Watch(a_, 2));
    EXPECT_THAT(Sequences(*watcher), ElementsAre(3, 4));
  }
  KVTIER_ASSERT_OK_AND_ASSIGN(const auto again, log_.Watch(a_, 4));
  Lower(log_, a_, 5);
  EXPECT_THAT(Sequences(*again), ElementsAre(5));
}

TEST_F(EventLogTest, WhatIsNotKeptCannotBeReplayed) {
  for (uint8_t n = 1; n <= 6; ++n) Lower(log_, a_, n);  // 1 and 2 are gone.
  EXPECT_THAT(log_.Watch(a_, 1), StatusIs(absl::StatusCode::kOutOfRange, HasSubstr("number 2")));
  KVTIER_ASSERT_OK_AND_ASSIGN(const auto watcher, log_.Watch(a_, 2));
  EXPECT_THAT(Sequences(*watcher), ElementsAre(3, 4, 5, 6));
  EXPECT_THAT(log_.Watch(a_, 7), StatusIs(absl::StatusCode::kOutOfRange));  // Ahead.
}

TEST_F(EventLogTest, ABusyTenantDoesNotShortenTheReplayOfAnother) {
  Lower(log_, b_, 1);
  for (int n = 0; n < 100; ++n) Lower(log_, a_, 2);
  KVTIER_ASSERT_OK_AND_ASSIGN(const auto watcher, log_.Watch(b_, 0));
  EXPECT_THAT(Sequences(*watcher), ElementsAre(1));
  // A tenant that never had an event has missed none.
  KVTIER_EXPECT_OK(log_.Watch(*TenantId::FromString("c"), 0));
}

TEST_F(EventLogTest, ManyTenantsTogetherStayWithinTheBound) {
  for (int n = 0; n < 100; ++n) {
    Lower(log_, *TenantId::FromString(absl::StrCat("t", n)), 1);
  }
  // One of the four that are left, and one that has been forgotten.
  int known = 0;
  for (int n = 0; n < 100; ++n) {
    const TenantId tenant = *TenantId::FromString(absl::StrCat("t", n));
    const auto watcher = log_.Watch(tenant, static_cast<uint64_t>(n));
    if (!watcher.ok()) {
      EXPECT_THAT(watcher, StatusIs(absl::StatusCode::kOutOfRange));
      continue;
    }
    known += static_cast<int>(Sequences(**watcher).size());
  }
  EXPECT_EQ(known, 4);
}

TEST_F(EventLogTest, ASlowWatcherIsCutAndAnIdleOneIsNot) {
  KVTIER_ASSERT_OK_AND_ASSIGN(const auto slow, log_.Watch(a_, 0));
  KVTIER_ASSERT_OK_AND_ASSIGN(const auto idle, log_.Watch(b_, 0));
  for (uint8_t n = 1; n <= 5; ++n) Lower(log_, a_, n);
  EXPECT_THAT(slow->Next(1), StatusIs(absl::StatusCode::kAborted, HasSubstr("fell behind")));
  EXPECT_EQ(log_.watchers_cut(), 1u);
  EXPECT_THAT(Sequences(*idle), IsEmpty());
}

TEST_F(EventLogTest, WakesOnceWhenThereIsSomethingToSay) {
  KVTIER_ASSERT_OK_AND_ASSIGN(const auto watcher, log_.Watch(a_, 0));
  int wakes = 0;
  watcher->NotifyOnce([&] { ++wakes; });
  Lower(log_, b_, 1);
  EXPECT_EQ(wakes, 0);
  Lower(log_, a_, 1);
  EXPECT_EQ(wakes, 1);
  Lower(log_, a_, 2);
  EXPECT_EQ(wakes, 1);
  watcher->NotifyOnce([&] { ++wakes; });  // They are there already.
  EXPECT_EQ(wakes, 2);
  EXPECT_EQ(Sequences(*watcher).size(), 2u);
  watcher->NotifyOnce([&] { ++wakes; });
  EXPECT_EQ(wakes, 2);
  log_.Close();
  EXPECT_EQ(wakes, 3);
  EXPECT_THAT(watcher->Next(1), StatusIs(absl::StatusCode::kUnavailable));
  EXPECT_THAT(log_.Watch(a_, 0), StatusIs(absl::StatusCode::kUnavailable));
}

TEST_F(EventLogTest, WatchersAreBoundedInAllAndForEachTenant) {
  KVTIER_ASSERT_OK_AND_ASSIGN(auto first, log_.Watch(a_, 0));
  KVTIER_ASSERT_OK_AND_ASSIGN(const auto second, log_.Watch(a_, 0));
  EXPECT_THAT(log_.Watch(a_, 0), StatusIs(absl::StatusCode::kResourceExhausted,
                                          HasSubstr("kWatchersPerTenantMax) is 2")));
  KVTIER_ASSERT_OK_AND_ASSIGN(const auto third, log_.Watch(b_, 0));
  EXPECT_THAT(log_.Watch(b_, 0),
              StatusIs(absl::StatusCode::kResourceExhausted, HasSubstr("kWatchersMax) is 3")));
  EXPECT_EQ(log_.watcher_count(), 3u);
  first.reset();
  KVTIER_EXPECT_OK(log_.Watch(b_, 0));
}

// Two threads change two tenants' objects while watchers of both come, read and go.
TEST(EventLogStressTest, NoEventIsLostOrSeenTwice) {
  constexpr int kEvents = 3000;
  EventLog log({.events_max = 2 * kEvents}, Clock::Real());
  const TenantId tenants[] = {*TenantId::FromString("a"), *TenantId::FromString("b")};
  std::vector<std::thread> threads;
  std::atomic<int> failures{0};
  for (const TenantId& tenant : tenants) {
    threads.emplace_back([&log, &tenant] {
      for (uint32_t n = 1; n <= kEvents; ++n) {
        log.Append(tenant, Key(), UploadId(),
                   StoreEvent::Lowered{n, StoreEvent::Lowered::Reason::kLost});
      }
    });
    for (int watcher_count = 0; watcher_count < 2; ++watcher_count) {
      threads.emplace_back([&log, &tenant, &failures] {
        uint32_t expected = 1;
        uint64_t after = 0;
        while (expected <= kEvents) {
          // A new watcher every few events: it goes on where the last one was.
          absl::StatusOr<std::unique_ptr<EventWatcher>> watcher = log.Watch(tenant, after);
          if (!watcher.ok()) {
            ++failures;
            return;
          }
          Mutex mutex;
          CondVar woken;
          bool is_woken = false;
          (*watcher)->NotifyOnce([&] {
            MutexLock lock(&mutex);
            is_woken = true;
            woken.Signal();
          });
          {
            MutexLock lock(&mutex);
            while (!is_woken) woken.Wait(&mutex);
          }
          const absl::StatusOr<std::vector<StoreEvent>> events = (*watcher)->Next(37);
          if (!events.ok() || events->empty()) {
            ++failures;
            return;
          }
          for (const StoreEvent& event : *events) {
            if (std::get<StoreEvent::Lowered>(event.change).resident_bands != expected++ ||
                event.sequence <= after) {
              ++failures;
            }
            after = event.sequence;
          }
        }
      });
    }
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(failures, 0);
  EXPECT_EQ(log.last_sequence(), 2u * kEvents);
}

}  // namespace
}  // namespace kvtier
