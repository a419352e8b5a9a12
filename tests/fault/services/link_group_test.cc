// Tensor-parallel groups, cached communicators, turns, and the fallback of the receiving end.
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_split.h"
#include "base/simulated_clock.h"
#include "base/status_matchers.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/fault/services/link_testing.h"

namespace kvtier {
namespace {

using ::absl::StatusCode;
using ::testing::HasSubstr;
using ::testing::Not;
using Fault = FakeCommunicatorFactory::Fault;

// A sender and a tensor-parallel group of four, each with a quarter of eight heads or all of them.
class LinkGroupTest : public testing::Test {
 protected:
  static constexpr uint32_t kRanks = 4;

  explicit LinkGroupTest(const TestObjectOptions& options = {.layers = 3, .kv_heads = 8})
      : object_(MakeTestObject(options)), sender_(links_, clock_) {
    KVTIER_CHECK_OK(sender_.tier.Insert(TenantId(), object_));
    for (uint32_t rank = 0; rank < kRanks; ++rank) {
      workers_.push_back(std::make_unique<LinkWorkerWorld>(
          links_, clock_, sender_.Connect(), object_,
          LinkTransportOptions{.group = "tp", .ranks = kRanks, .rank = rank}));
    }
  }
  ~LinkGroupTest() override {
    workers_.clear();
    sender_.server->Shutdown();
    sender_.tier.Remove(TenantId(), object_.manifest->key);
    EXPECT_EQ(sender_.tier.usage().bytes, 0u) << "something is pinned";
    EXPECT_EQ(links_.uses_after_failure(), 0);
  }

  static HeadRange Quarter(uint32_t rank) { return {2 * rank, 2 * rank + 2}; }

  // Every rank fetches its heads at the same time, and has them, byte for byte.
  void FetchAll(bool sliced) {
    std::vector<std::thread> threads;
    for (uint32_t rank = 0; rank < kRanks; ++rank) {
      threads.emplace_back([this, rank, sliced] {
        const HeadRange heads = sliced ? Quarter(rank) : HeadRange{0, 8};
        CheckingSink sink(object_, heads);
        KVTIER_EXPECT_OK(workers_[rank]->transport->Fetch(WholeObject(object_, heads),
                                                          absl::InfiniteFuture(), sink));
        sink.ExpectWhole();
      });
    }
    for (std::thread& thread : threads) thread.join();
  }
  uint64_t Received() const {
    uint64_t received = 0;
    for (const auto& worker : workers_) received += worker->counters.received;
    return received;
  }

  SimulatedClock clock_;
  FakeLinks links_{clock_};
  const CompressedObject object_;
  LinkSenderWorld sender_;
  std::vector<std::unique_ptr<LinkWorkerWorld>> workers_;
};

TEST_F(LinkGroupTest, EachRankGetsItsHeads) {
  FetchAll(/*sliced=*/true);
  EXPECT_EQ(Received(), kRanks);
  EXPECT_EQ(sender_.counters.sent, kRanks);
  EXPECT_EQ(sender_.counters.sent_bytes, object_.manifest->total_bytes());
  EXPECT_THAT(sender_.communicators.steps_taken(), Not(HasSubstr("broadcast")));
  FetchAll(/*sliced=*/true);
  EXPECT_EQ(Received(), 2 * kRanks);
  EXPECT_EQ(links_.groups_made(), 1) << "the communicator is kept";
}

TEST_F(LinkGroupTest, WhatAllWantIsBroadcast) {
  FetchAll(/*sliced=*/false);
  EXPECT_EQ(Received(), kRanks);
  EXPECT_THAT(sender_.communicators.steps_taken(), HasSubstr("broadcast"));
  EXPECT_THAT(sender_.communicators.steps_taken(), Not(HasSubstr("send")));
  FetchAll(/*sliced=*/true);
  EXPECT_EQ(links_.groups_made(), 1) << "one communicator serves both";
}

TEST_F(LinkGroupTest, DeathOfOneRankAtEveryStepCostsNobodyItsBytes) {
  FetchAll(true);
  // Counts from here: the steps of a transfer on a communicator that is there already.
  workers_[2]->communicators.FailAt(0, Fault::kDie);
  sender_.communicators.FailAt(0, Fault::kDie);
  FetchAll(true);
  const int worker_steps = workers_[2]->communicators.steps();
  const int sender_steps = sender_.communicators.steps();
  ASSERT_GT(sender_steps, worker_steps);
  for (const bool at_sender : {false, true}) {
    FakeCommunicatorFactory& victim =
        at_sender ? sender_.communicators : workers_[2]->communicators;
    for (int step = 1; step <= (at_sender ? sender_steps : worker_steps); ++step) {
      SCOPED_TRACE(testing::Message() << (at_sender ? "sender" : "rank 2") << " step " << step);
      victim.FailAt(step, Fault::kDie);
      FetchAll(true);  // Here bytes are checked, wherever they came from.
      victim.FailAt(0, Fault::kDie);
      const uint64_t received = Received();
      FetchAll(true);
      EXPECT_EQ(Received(), received + kRanks) << "the link is whole again";
    }
  }
}

TEST_F(LinkGroupTest, ARankThatStartsAnewGetsAnewCommunicator) {
  FetchAll(true);
  workers_[1] = std::make_unique<LinkWorkerWorld>(
      links_, clock_, sender_.Connect(), object_,
      LinkTransportOptions{.group = "tp", .ranks = kRanks, .rank = 1});
  FetchAll(true);
  EXPECT_EQ(links_.groups_made(), 2);
  EXPECT_EQ(workers_[1]->counters.received, 1u);
  EXPECT_EQ(workers_[0]->counters.received, 2u);
}

TEST_F(LinkGroupTest, RanksThatDoNotComeAreNotWaitedForForever) {
  CheckingSink sink(object_, Quarter(0));
  std::thread fetch([&] {
    KVTIER_EXPECT_OK(workers_[0]->transport->Fetch(WholeObject(object_, Quarter(0)),
                                                   absl::InfiniteFuture(), sink));
  });
  clock_.AwaitWaiters(1);  // The sender waits for the other three.
  clock_.AdvanceTime(absl::Minutes(3));
  fetch.join();
  sink.ExpectWhole();
  EXPECT_EQ(workers_[0]->counters.fallback_failures, 1u);
  EXPECT_EQ(workers_[0]->store.fetches(), 1);
}

TEST_F(LinkGroupTest, ASenderThatStopsIsNotWaitedFor) {
  CheckingSink sink(object_, Quarter(0));
  std::thread fetch([&] {
    KVTIER_EXPECT_OK(workers_[0]->transport->Fetch(WholeObject(object_, Quarter(0)),
                                                   absl::InfiniteFuture(), sink));
  });
  clock_.AwaitWaiters(1);  // The sender waits for the other three.
  sender_.sender.Stop(absl::UnavailableError("stopping"));
  fetch.join();  // Without the clock.
  sink.ExpectWhole();
  EXPECT_EQ(workers_[0]->counters.fallback_failures, 1u);
  FetchAll(/*sliced=*/true);
  EXPECT_EQ(Received(), 0u) << "nobody enters any more";
}

TEST_F(LinkGroupTest, AGroupOfAnotherSizeIsRefusedWhileOneIsUnderWay) {
  CheckingSink sink(object_, Quarter(0)), other_sink(object_, {0, 8});
  std::thread fetch([&] {
    KVTIER_EXPECT_OK(workers_[0]->transport->Fetch(WholeObject(object_, Quarter(0)),
                                                   absl::InfiniteFuture(), sink));
  });
  clock_.AwaitWaiters(1);
  LinkWorkerWorld alone(links_, clock_, sender_.Connect(), object_, {.group = "tp"});
  KVTIER_EXPECT_OK(
      alone.transport->Fetch(WholeObject(object_), absl::InfiniteFuture(), other_sink));
  EXPECT_EQ(alone.counters.fallback_failures, 1u);
  clock_.AdvanceTime(absl::Minutes(3));
  fetch.join();
  CheckingSink later(object_, {0, 8});
  KVTIER_EXPECT_OK(alone.transport->Fetch(WholeObject(object_), absl::InfiniteFuture(), later));
  EXPECT_EQ(alone.counters.received, 1u) << "an idle group may change";
}

// One worker.
class LinkPeerTest : public testing::Test {
 protected:
  explicit LinkPeerTest()
      : object_(MakeTestObject({.layers = 8, .kv_heads = 4})),
        sender_(links_, clock_),
        worker_(links_, clock_, sender_.Connect(), object_) {}
  void Insert() { KVTIER_CHECK_OK(sender_.tier.Insert(TenantId(), object_)); }
  absl::Status Fetch(CheckingSink& sink) {
    return worker_.transport->Fetch(WholeObject(object_), absl::InfiniteFuture(), sink);
  }

  SimulatedClock clock_;
  FakeLinks links_{clock_};
  const CompressedObject object_;
  LinkSenderWorld sender_;
  LinkWorkerWorld worker_;
};

TEST_F(LinkPeerTest, LayersAreHandedOverWhileLaterOnesHaveNotBeenSent) {
  Insert();
  CheckingSink sink(object_, {0, 4});
  bool seen = false;
  sink.on_segment = [&](BandIndex band, LayerIndex layer) -> absl::Status {
    if (layer.value() == 0 && band.value() == 0) {
      const std::string steps = sender_.communicators.steps_taken();
      int ended = 0;
      for (const auto step : absl::StrSplit(steps, ' ')) ended += step == "end" ? 1 : 0;
      EXPECT_LE(ended, 4) << "of 8 layers";
      seen = true;
    }
    return absl::OkStatus();
  };
  KVTIER_EXPECT_OK(Fetch(sink));
  EXPECT_TRUE(seen);
  sink.ExpectWhole();
}

TEST_F(LinkPeerTest, FetchesAtOnceTakeTurnsOnOneCommunicator) {
  Insert();
  std::vector<std::thread> threads;
  for (int i = 0; i < 6; ++i) {
    threads.emplace_back([this] {
      CheckingSink sink(object_, {0, 4});
      KVTIER_EXPECT_OK(Fetch(sink));
      sink.ExpectWhole();
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(worker_.counters.received, 6u);
  EXPECT_EQ(links_.groups_made(), 1);
  EXPECT_EQ(worker_.store.fetches(), 0);
}

TEST_F(LinkPeerTest, AMissIsAskedOfTheStoreAndCountedAsSuch) {
  CheckingSink sink(object_, {0, 4});
  KVTIER_EXPECT_OK(Fetch(sink));
  sink.ExpectWhole();
  EXPECT_EQ(worker_.counters.fallback_misses, 1u);
  EXPECT_EQ(worker_.counters.fallback_failures, 0u);
  EXPECT_EQ(sender_.counters.send_misses, 1u);

  // Another upload than the pinned one.
  KVTIER_CHECK_OK(sender_.tier.Insert(
      TenantId(), MakeTestObject({.layers = 8, .kv_heads = 4, .upload_seed = 3})));
  FetchRequest request = WholeObject(object_);
  request.upload_id = object_.manifest->upload_id;
  CheckingSink pinned(object_, {0, 4});
  KVTIER_EXPECT_OK(worker_.transport->Fetch(request, absl::InfiniteFuture(), pinned));
  pinned.ExpectWhole();
  EXPECT_EQ(worker_.counters.fallback_misses, 2u);
  EXPECT_EQ(links_.groups_made(), 0) << "no communicator for nothing";
}

// The sender's copies are not told what happens in the store.
TEST_F(LinkPeerTest, WhatTheStoreHasDeletedIsNotServed) {
  Insert();
  CheckingSink before(object_, {0, 4}), after(object_, {0, 4});
  KVTIER_EXPECT_OK(Fetch(before));
  worker_.store.Delete();
  EXPECT_THAT(Fetch(after), StatusIs(StatusCode::kNotFound));
  EXPECT_EQ(after.segments(), 0u);
  EXPECT_EQ(worker_.counters.received, 1u);
  EXPECT_EQ(worker_.counters.fallback_misses, 1u);
}

TEST_F(LinkPeerTest, WhatTheStoreHasReplacedIsNotServed) {
  KVTIER_CHECK_OK(sender_.tier.Insert(
      TenantId(), MakeTestObject({.layers = 8, .kv_heads = 4, .upload_seed = 3})));
  CheckingSink sink(object_, {0, 4});
  KVTIER_EXPECT_OK(Fetch(sink));
  sink.ExpectWhole();  // Of the store's upload.
  EXPECT_EQ(worker_.counters.fallback_misses, 1u);
  EXPECT_EQ(worker_.store.fetches(), 1);
}

TEST_F(LinkPeerTest, AStoreWithFewerBandsStillSaysWhatIsCurrent) {
  Insert();
  worker_.store.KeepBands(1);
  FetchRequest request = WholeObject(object_);
  request.min_ratio = request.ratio;  // More than the store has.
  CheckingSink sink(object_, {0, 4});
  KVTIER_EXPECT_OK(worker_.transport->Fetch(request, absl::InfiniteFuture(), sink));
  sink.ExpectWhole();
  EXPECT_EQ(worker_.counters.received, 1u);
}

TEST_F(LinkPeerTest, DamageOnTheWayIsNotHandedOver) {
  Insert();
  sender_.communicators.Corrupt();
  CheckingSink sink(object_, {0, 4});
  KVTIER_EXPECT_OK(Fetch(sink));
  sink.ExpectWhole();
  EXPECT_EQ(worker_.counters.fallback_failures, 1u);
  EXPECT_EQ(worker_.store.fetches(), 1);
}

TEST_F(LinkPeerTest, AnErrorOfTheSinkIsNotTheLinks) {
  Insert();
  CheckingSink sink(object_, {0, 4});
  sink.on_segment = [](BandIndex, LayerIndex layer) {
    return layer.value() == 3 ? absl::InternalError("enough") : absl::OkStatus();
  };
  EXPECT_THAT(Fetch(sink), StatusIs(StatusCode::kInternal, "enough"));
  EXPECT_EQ(sink.segments(), 18u);
  EXPECT_EQ(worker_.counters.failures, 1u);
  EXPECT_EQ(worker_.store.fetches(), 0);
  CheckingSink again(object_, {0, 4});
  KVTIER_EXPECT_OK(Fetch(again));
  again.ExpectWhole();
  EXPECT_EQ(worker_.counters.received, 1u);
}

TEST_F(LinkPeerTest, AStoreWithFewerBandsCannotFinishWhatTheLinkBegan) {
  Insert();
  worker_.communicators.FailAt(0, Fault::kDie);
  CheckingSink clean(object_, {0, 4});
  KVTIER_ASSERT_OK(Fetch(clean));
  const int steps = worker_.communicators.steps();
  worker_.communicators.FailAt(steps - 2,
                               Fault::kDie);  // Of the next transfer: in its last layers.
  worker_.store.KeepBands(4);
  CheckingSink sink(object_, {0, 4});
  EXPECT_FALSE(Fetch(sink).ok()) << "half of one cache and half of another are none";
  EXPECT_GT(sink.segments(), 0u);
}

TEST_F(LinkPeerTest, TheCallersDeadlineIsNotTheLinks) {
  Insert();
  sender_.communicators.FailAt(2, Fault::kHang);
  CheckingSink sink(object_, {0, 4});
  std::thread fetch([&] {
    EXPECT_THAT(
        worker_.transport->Fetch(WholeObject(object_), clock_.Now() + absl::Seconds(20), sink),
        StatusIs(StatusCode::kDeadlineExceeded));
  });
  links_.AwaitHanging();
  clock_.AdvanceTime(absl::Seconds(25));
  fetch.join();
  EXPECT_EQ(worker_.store.fetches(), 0);
  EXPECT_EQ(worker_.counters.failures, 1u);
}

// The sender has room for one group: an idle one gives way, one with a transfer under way does not.
TEST(LinkGroupLimitTest, AnIdleGroupGivesWayAndABusyOneDoesNot) {
  SimulatedClock clock;
  FakeLinks links(clock);
  const CompressedObject object = MakeTestObject({.layers = 3, .kv_heads = 4});
  LinkSenderWorld sender(links, clock, {}, {.groups_max = 1});
  KVTIER_CHECK_OK(sender.tier.Insert(TenantId(), object));
  LinkWorkerWorld single(links, clock, sender.Connect(), object, {.group = "single"});
  LinkWorkerWorld half(links, clock, sender.Connect(), object, {.group = "pair", .ranks = 2});
  const auto fetch = [&object](LinkWorkerWorld& worker) {
    CheckingSink sink(object, {0, 4});
    KVTIER_EXPECT_OK(worker.transport->Fetch(WholeObject(object), absl::InfiniteFuture(), sink));
    sink.ExpectWhole();
  };
  fetch(single);
  EXPECT_EQ(single.counters.received, 1u);

  std::thread waiting([&] { fetch(half); });  // In the place of the idle group.
  clock.AwaitWaiters(1);                      // The sender waits for the other rank.
  fetch(single);
  EXPECT_EQ(single.counters.received, 1u);
  EXPECT_EQ(single.counters.fallback_failures, 1u) << "refused; the store has it";
  clock.AdvanceTime(absl::Minutes(3));
  waiting.join();
  EXPECT_EQ(half.counters.fallback_failures, 1u);

  fetch(single);
  EXPECT_EQ(single.counters.received, 2u);
  EXPECT_EQ(links.groups_made(), 2) << "the group that gave way took its communicator along";
  EXPECT_EQ(links.uses_after_failure(), 0);
}

}  // namespace
}  // namespace kvtier
