#include "store/reuse_model.h"

#include <cmath>
#include <random>

#include "gtest/gtest.h"
#include "tests/testing/random.h"

namespace kvtier {
namespace {

const absl::Time kStart = absl::FromUnixSeconds(1'767'225'600);

double WidthSeconds(int bucket) {
  return absl::ToDoubleSeconds(ReuseModel::BucketBegin(bucket + 1) -
                               ReuseModel::BucketBegin(bucket));
}

// One object of `reuse_class` that is watched from age 0 until it is asked for at `age`, or, if
// `asked` is false, only until then.
void Watch(ReuseModel& model, int reuse_class, absl::Duration age, bool asked) {
  const int last = ReuseModel::BucketOf(age);
  for (int bucket = 0; bucket <= last; ++bucket) {
    const ReuseModel::Cell cell{reuse_class, bucket};
    const absl::Time begin = kStart + ReuseModel::BucketBegin(bucket);
    model.Enter(cell, begin);
    if (bucket == last && asked) model.Asked(cell);
    model.Leave(cell, begin, kStart + std::min(age, ReuseModel::BucketBegin(bucket + 1)));
  }
}

TEST(ReuseModelTest, BucketsCoverAllAges) {
  EXPECT_EQ(ReuseModel::BucketBegin(0), absl::ZeroDuration());
  EXPECT_EQ(ReuseModel::BucketBegin(ReuseModel::kAgeBuckets), absl::InfiniteDuration());
  for (int bucket = 0; bucket < ReuseModel::kAgeBuckets; ++bucket) {
    const absl::Duration begin = ReuseModel::BucketBegin(bucket);
    ASSERT_LT(begin, ReuseModel::BucketBegin(bucket + 1));
    EXPECT_EQ(ReuseModel::BucketOf(begin), bucket);
    if (bucket > 0) {
      EXPECT_EQ(ReuseModel::BucketOf(begin - absl::Nanoseconds(1)), bucket - 1);
    }
  }
  EXPECT_EQ(ReuseModel::BucketOf(-absl::Seconds(5)), 0);
  EXPECT_EQ(ReuseModel::BucketOf(absl::Hours(24 * 365)), ReuseModel::kAgeBuckets - 1);
}

TEST(ReuseModelTest, WithoutDataTheOrderIsThatOfLru) {
  const ReuseModel model({1, 4, 1}, kStart);
  for (int bucket = 0; bucket + 1 < ReuseModel::kAgeBuckets; ++bucket) {
    EXPECT_GT(model.Index({0, bucket}), model.Index({0, bucket + 1})) << bucket;
    EXPECT_EQ(model.Index({0, bucket}), model.Index({2, bucket})) << bucket;
    EXPECT_GT(model.Index({1, bucket}), model.Index({0, bucket})) << bucket;
  }
}

TEST(ReuseModelTest, RateIsRequestsOverWatchedTime) {
  std::mt19937_64 random(TestSeed());
  SCOPED_TRACE(SeedTrace(TestSeed()));
  ReuseModel model({1, 1}, kStart);
  // Class 0 asks at 0.02 per second whatever the age, class 1 five times less often.
  std::exponential_distribution<double> often(0.02), rarely(0.004);
  for (int i = 0; i < 20'000; ++i) {
    Watch(model, 0, absl::Seconds(often(random)), true);
    const double age = rarely(random);
    Watch(model, 1, absl::Seconds(std::min(age, 600.0)), age < 600);
  }
  model.Learn(kStart + absl::Hours(1));
  for (int bucket = 6; bucket < 13; ++bucket) {  // 7 to 90 s.
    EXPECT_NEAR(model.Rate({0, bucket}), 0.02, 0.002) << bucket;
    EXPECT_NEAR(model.Rate({1, bucket}), 0.004, 0.0008) << bucket;
  }
}

TEST(ReuseModelTest, ObjectsStillThereHaveBeenWatchedToo) {
  ReuseModel left({1}, kStart), present({1}, kStart);
  const absl::Time end = kStart + absl::Seconds(0.25);
  for (int i = 0; i < 100; ++i) {
    left.Enter({0, 0}, kStart);
    left.Leave({0, 0}, kStart, end);
    present.Enter({0, 0}, kStart);
  }
  left.Learn(end);
  present.Learn(end);
  EXPECT_DOUBLE_EQ(left.Rate({0, 0}), present.Rate({0, 0}));
  EXPECT_LT(left.Rate({0, 0}), ReuseModel({1}, kStart).Rate({0, 0}));
}

TEST(ReuseModelTest, IndexIsTheBestPlan) {
  // Nobody asks in the first ten seconds, many do until a minute, none later: while waiting for the
  // busy time an object is worth as much as that promises, and after it next to nothing.
  ReuseModel model({1}, kStart);
  std::mt19937_64 random(TestSeed());
  SCOPED_TRACE(SeedTrace(TestSeed()));
  std::uniform_real_distribution<double> busy(10, 60);
  for (int i = 0; i < 5000; ++i) {
    Watch(model, 0, absl::Seconds(i % 2 == 0 ? busy(random) : 3000), i % 2 == 0);
  }
  model.Learn(kStart + absl::Hours(1));
  EXPECT_LT(model.Rate({0, 0}), 0.1 * model.Rate({0, ReuseModel::BucketOf(absl::Seconds(30))}));
  EXPECT_GT(model.Index({0, 0}), 0.005);
  EXPECT_GT(model.Index({0, ReuseModel::BucketOf(absl::Seconds(8))}), model.Index({0, 0}));
  EXPECT_LT(model.Index({0, ReuseModel::BucketOf(absl::Seconds(300))}), 0.001);

  // The definition, by brute force over plans.
  for (int begin = 0; begin < ReuseModel::kAgeBuckets; ++begin) {
    double best = 0;
    for (int end = begin + 1; end <= ReuseModel::kAgeBuckets; ++end) {
      double logged = 0, asked = 0, seconds = 0;
      for (int bucket = begin; bucket < end; ++bucket) {
        const double width = bucket + 1 == ReuseModel::kAgeBuckets ? std::exp2(20) - std::exp2(19.5)
                                                                   : WidthSeconds(bucket);
        const double rate = model.Rate({0, bucket});
        asked += std::exp(logged) - std::exp(logged - rate * width);
        seconds += (std::exp(logged) - std::exp(logged - rate * width)) / rate;
        logged -= rate * width;
      }
      best = std::max(best, asked / seconds);
    }
    EXPECT_NEAR(model.Index({0, begin}) / best, 1, 1e-6) << begin;
  }
}

TEST(ReuseModelTest, OldHabitsFade) {
  ReuseModel model({1}, kStart);
  const ReuseModel::Cell cell{0, 0};
  const auto watch = [&](double seconds, int requests, int times) {
    for (int i = 0; i < times; ++i) {
      model.Enter(cell, kStart);
      for (int j = 0; j < requests; ++j) model.Asked(cell);
      model.Leave(cell, kStart, kStart + absl::Seconds(seconds));
      if (i % 1000 == 999) model.Learn(kStart);
    }
  };
  watch(0.1, 1, 200'000);  // Ten a second for a long time,
  EXPECT_NEAR(model.Rate(cell), 10, 0.1);
  watch(1, 1, 200'000);  // then one a second: without fading the mean would be 1.8.
  EXPECT_NEAR(model.Rate(cell), 1, 0.2);
}

}  // namespace
}  // namespace kvtier
