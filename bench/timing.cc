#include "bench/timing.h"

#include <algorithm>

#include "absl/time/time.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/status_macros.h"

namespace kvtier::bench {

absl::StatusOr<double> Seconds(const std::function<absl::Status()>& run) {
  const absl::Time begin = Clock::Real().Now();
  KVTIER_RETURN_IF_ERROR(run());
  return absl::ToDoubleSeconds(Clock::Real().Now() - begin);
}

double Median(std::vector<double> values) {
  KVTIER_CHECK(!values.empty());
  const auto middle = values.begin() + static_cast<ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

double Percentile(std::vector<double> values, double share) {
  KVTIER_CHECK(!values.empty());
  const auto at =
      values.begin() + static_cast<ptrdiff_t>(share * static_cast<double>(values.size() - 1));
  std::nth_element(values.begin(), at, values.end());
  return *at;
}

absl::StatusOr<double> MedianSeconds(int runs, const std::function<absl::Status()>& run) {
  KVTIER_RETURN_IF_ERROR(run());
  std::vector<double> seconds;
  for (int i = 0; i < std::max(1, runs); ++i) {
    KVTIER_ASSIGN_OR_RETURN(seconds.emplace_back(), Seconds(run));
  }
  return Median(std::move(seconds));
}

absl::StatusOr<std::vector<std::vector<double>>> MediansInTurns(
    int runs, const std::vector<Contender>& contenders) {
  // [contender][figure][run]
  std::vector<std::vector<std::vector<double>>> samples(contenders.size());
  for (int round = 0; round <= std::max(1, runs); ++round) {
    for (size_t i = 0; i < contenders.size(); ++i) {
      KVTIER_ASSIGN_OR_RETURN(const std::vector<double> figures, contenders[i].run());
      if (round == 0) continue;  // Warms up.
      samples[i].resize(figures.size());
      for (size_t f = 0; f < figures.size(); ++f) samples[i][f].push_back(figures[f]);
    }
  }
  std::vector<std::vector<double>> medians(contenders.size());
  for (size_t i = 0; i < contenders.size(); ++i) {
    for (std::vector<double>& values : samples[i]) medians[i].push_back(Median(std::move(values)));
  }
  return medians;
}

}  // namespace kvtier::bench
