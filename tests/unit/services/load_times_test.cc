#include "services/load_times.h"

#include "gtest/gtest.h"

namespace kvtier {
namespace {

using Source = LoadTimes::Source;

TEST(LoadTimesTest, KnowsNothingBeforeTheFirstFetch) {
  LoadTimes times;
  EXPECT_FALSE(times.Estimate(Source::kHost, 1).has_value());
  times.Record(Source::kHost, 1000, absl::ZeroDuration());  // Neither says anything about a rate.
  times.Record(Source::kHost, 0, absl::Seconds(1));
  EXPECT_FALSE(times.Estimate(Source::kHost, 1).has_value());
  times.Record(Source::kHost, 1000, absl::Seconds(1));
  EXPECT_EQ(times.Estimate(Source::kHost, 500), absl::Milliseconds(500));
  EXPECT_FALSE(times.Estimate(Source::kDisk, 1).has_value()) << "sources are apart";
}

TEST(LoadTimesTest, FollowsWhatFetchesTakeNow) {
  LoadTimes times;
  for (int i = 0; i < 100; ++i) times.Record(Source::kDisk, 1000, absl::Seconds(1));
  for (int i = 0; i < 160; ++i) times.Record(Source::kDisk, 1000, absl::Seconds(4));
  EXPECT_NEAR(absl::ToDoubleSeconds(*times.Estimate(Source::kDisk, 1000)), 4, 0.02);
}

TEST(LoadTimesTest, SmallFetchesDoNotHideTheRateOfLargeOnes) {
  LoadTimes times;
  for (int i = 0; i < 8; ++i) {
    times.Record(Source::kHost, 1'000'000'000, absl::Seconds(1));
    times.Record(Source::kHost, 1000, absl::Milliseconds(1));  // A thousandth of the rate.
  }
  EXPECT_NEAR(absl::ToDoubleSeconds(*times.Estimate(Source::kHost, 1'000'000'000)), 1, 0.01);
}

}  // namespace
}  // namespace kvtier
