#include "base/mutex.h"

#include <thread>
#include <vector>

#include "gtest/gtest.h"

namespace kvtier {
namespace {

bool AnotherThreadCanLock(Mutex& mutex) {
  bool locked = false;
  std::thread([&] {
    if (mutex.TryLock()) {
      locked = true;
      mutex.Unlock();
    }
  }).join();
  return locked;
}

TEST(MutexTest, ExcludesOtherThreads) {
  Mutex mutex;
  int count = 0;
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([&] {
      for (int j = 0; j < 1000; ++j) {
        MutexLock lock(&mutex);
        ++count;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(count, 4000);
}

TEST(MutexTest, TryLockFailsWhileAnotherThreadHoldsIt) {
  Mutex mutex;
  {
    MutexLock lock(&mutex);
    EXPECT_FALSE(AnotherThreadCanLock(mutex));
  }
  EXPECT_TRUE(AnotherThreadCanLock(mutex));
}

TEST(CondVarTest, SignalWakesAWaiter) {
  Mutex mutex;
  CondVar changed;
  bool ready = false;
  std::thread waiter([&] {
    MutexLock lock(&mutex);
    while (!ready) changed.Wait(&mutex);
  });
  {
    MutexLock lock(&mutex);
    ready = true;
    changed.Signal();
  }
  waiter.join();
}

TEST(CondVarTest, WaitWithTimeoutReportsTheTimeoutAndHoldsTheMutexAgain) {
  Mutex mutex;
  CondVar never;
  MutexLock lock(&mutex);
  while (!never.WaitWithTimeout(&mutex, absl::Nanoseconds(1))) {
  }
  EXPECT_FALSE(AnotherThreadCanLock(mutex));
}

}  // namespace
}  // namespace kvtier
