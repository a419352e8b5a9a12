#include "base/sync_point.h"

#include <csignal>
#include <cstdlib>
#include <future>
#include <iostream>
#include <thread>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace kvtier {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

class SyncPointTest : public ::testing::Test {
 protected:
  SyncPointTest() { SyncPoints::ClearAll(); }
  ~SyncPointTest() override { SyncPoints::ClearAll(); }
};

TEST_F(SyncPointTest, CallsTheCallbackOfItsName) {
  int calls = 0;
  SyncPoints::SetCallback("test.a", [&] { ++calls; });
  SyncPoints::Pass("test.a");
  SyncPoints::Pass("test.b");
  EXPECT_EQ(calls, 1);
  SyncPoints::ClearCallback("test.a");
  SyncPoints::Pass("test.a");
  EXPECT_EQ(calls, 1);
}

TEST_F(SyncPointTest, CountsPassesWithAndWithoutCallbacks) {
  EXPECT_THAT(SyncPoints::PassedNames(), IsEmpty());
  SyncPoints::SetCallback("test.never", [] {});
  SyncPoints::Pass("test.b");
  SyncPoints::Pass("test.a");
  SyncPoints::Pass("test.b");
  EXPECT_EQ(SyncPoints::PassCount("test.a"), 1);
  EXPECT_EQ(SyncPoints::PassCount("test.b"), 2);
  EXPECT_EQ(SyncPoints::PassCount("test.never"), 0);
  EXPECT_EQ(SyncPoints::PassCount("test.unknown"), 0);
  EXPECT_THAT(SyncPoints::PassedNames(), ElementsAre("test.a", "test.b"));
  SyncPoints::ClearAll();
  EXPECT_THAT(SyncPoints::PassedNames(), IsEmpty());
}

TEST_F(SyncPointTest, ScopedCallbackEndsWithItsScope) {
  int calls = 0;
  {
    ScopedSyncPoint scoped("test.a", [&] { ++calls; });
    SyncPoints::Pass("test.a");
  }
  SyncPoints::Pass("test.a");
  EXPECT_EQ(calls, 1);
}

TEST_F(SyncPointTest, CallbackMayPassAndChangePoints) {
  int calls = 0;
  SyncPoints::SetCallback("test.inner", [&] { ++calls; });
  SyncPoints::SetCallback("test.outer", [&] {
    SyncPoints::Pass("test.inner");
    SyncPoints::ClearCallback("test.outer");
  });
  SyncPoints::Pass("test.outer");
  SyncPoints::Pass("test.outer");
  EXPECT_EQ(calls, 1);
}

TEST_F(SyncPointTest, BlockedCallbackBlocksNobodyElse) {
  // The first thread stays in its callback until the main thread has passed another point.
  std::promise<void> entered;
  std::promise<void> release;
  SyncPoints::SetCallback("test.gate", [&] {
    entered.set_value();
    release.get_future().wait();
  });
  std::thread blocked([] { SyncPoints::Pass("test.gate"); });
  entered.get_future().wait();
  SyncPoints::Pass("test.other");
  EXPECT_EQ(SyncPoints::PassCount("test.other"), 1);
  release.set_value();
  blocked.join();
}

TEST_F(SyncPointTest, MacroPassesThePointOnlyWherePointsAreCompiledIn) {
  KVTIER_SYNC_POINT("test.macro");
#ifdef KVTIER_SYNC_POINTS
  EXPECT_EQ(SyncPoints::PassCount("test.macro"), 1);
#else
  EXPECT_EQ(SyncPoints::PassCount("test.macro"), 0);
#endif
}

class SyncPointDeathTest : public ::testing::Test {
 protected:
  // The child starts anew: it reads the environment at its own first point.
  SyncPointDeathTest() { GTEST_FLAG_SET(death_test_style, "threadsafe"); }

  static void PassTwice(const char* crash_at) {
    setenv("KVTIER_CRASH_AT", crash_at, 1);
    SyncPoints::Pass("test.crash");
    SyncPoints::ClearAll();  // A test that clears its points does not disarm the crash.
    SyncPoints::Pass("test.other");
    std::cerr << "passed once\n";
    SyncPoints::Pass("test.crash");
    std::cerr << "passed twice\n";
    std::_Exit(0);
  }
};

TEST_F(SyncPointDeathTest, CrashesAtTheFirstPassByDefault) {
  EXPECT_EXIT(PassTwice("test.crash"), ::testing::KilledBySignal(SIGKILL), "^$");
}

TEST_F(SyncPointDeathTest, CrashesAtTheNthPass) {
  EXPECT_EXIT(PassTwice("test.crash:2"), ::testing::KilledBySignal(SIGKILL), "^passed once\n$");
}

TEST_F(SyncPointDeathTest, DoesNotCrashBeforeTheNthPassOrElsewhere) {
  EXPECT_EXIT(PassTwice("test.crash:3"), ::testing::ExitedWithCode(0), "passed twice");
  EXPECT_EXIT(PassTwice("test"), ::testing::ExitedWithCode(0), "passed twice");
}

TEST_F(SyncPointDeathTest, RefusesAMalformedVariable) {
  EXPECT_DEATH(PassTwice("test.crash:soon"), "expected <name>");
  EXPECT_DEATH(PassTwice("test.crash:0"), "expected <name>");
}

}  // namespace
}  // namespace kvtier
