#include "compressor/thread_pool.h"

#include <atomic>
#include <thread>
#include <vector>

#include "gtest/gtest.h"

namespace kvtier {
namespace {

TEST(ThreadPoolTest, RunsEveryTaskOnce) {
  for (int threads : {1, 2, 5}) {
    ThreadPool pool(threads);
    EXPECT_EQ(pool.threads(), threads);
    for (int64_t tasks : {0, 1, 2, 7, 1000}) {
      std::vector<std::atomic<int>> runs(static_cast<size_t>(tasks));
      pool.For(tasks, [&](int64_t task) { ++runs[static_cast<size_t>(task)]; });
      for (const auto& count : runs) EXPECT_EQ(count, 1);
    }
  }
}

TEST(ThreadPoolTest, CallersShareItAndEachFinishes) {
  ThreadPool pool(3);
  std::atomic<int64_t> sum{0};
  std::vector<std::thread> callers;
  for (int caller = 0; caller < 4; ++caller) {
    callers.emplace_back([&] {
      for (int round = 0; round < 50; ++round) {
        std::atomic<int64_t> mine{0};
        pool.For(20, [&](int64_t task) { mine += task; });
        EXPECT_EQ(mine, 190) << "For returned before its tasks had";
        sum += mine;
      }
    });
  }
  for (std::thread& caller : callers) caller.join();
  EXPECT_EQ(sum, 4 * 50 * 190);
}

// A caller whose pool threads are all inside another's loop does its own work.
TEST(ThreadPoolTest, ProgressesWhileThePoolIsBusy) {
  ThreadPool pool(2);
  std::atomic<int> inside{0};
  std::atomic<bool> release{false};
  std::thread busy([&] {
    pool.For(2, [&](int64_t) {
      ++inside;
      while (!release) std::this_thread::yield();
    });
  });
  while (inside < 2) std::this_thread::yield();
  int done = 0;  // Only this thread can run these.
  pool.For(10, [&](int64_t) { ++done; });
  EXPECT_EQ(done, 10);
  release = true;
  busy.join();
}

}  // namespace
}  // namespace kvtier
