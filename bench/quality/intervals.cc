#include "bench/quality/intervals.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "base/log.h"

namespace kvtier {
namespace {

// Variance of the mean of `values`, taking a document's samples as one draw. 0 for one document.
double ClusteredVariance(std::span<const double> values, std::span<const uint32_t> document) {
  double mean = 0;
  for (double value : values) mean += value;
  mean /= static_cast<double>(values.size());
  double squares = 0;
  double documents = 0;
  for (size_t i = 0; i < values.size();) {
    double sum = 0;
    const uint32_t current = document[i];
    for (; i < values.size() && document[i] == current; ++i) sum += values[i] - mean;
    squares += sum * sum;
    ++documents;
  }
  if (documents < 2) return 0;
  const double count = static_cast<double>(values.size());
  return squares / (count * count) * documents / (documents - 1);
}

}  // namespace

Interval Wilson(double right, double samples) {
  const double share = right / samples;
  const double z2 = kZ95 * kZ95;
  const double middle = (share + z2 / (2 * samples)) / (1 + z2 / samples);
  const double half = kZ95 / (1 + z2 / samples) *
                      std::sqrt(share * (1 - share) / samples + z2 / (4 * samples * samples));
  // Rounding must not push the ends past the share itself at 0 and 1.
  return {share, std::min(share, std::max(0.0, middle - half)),
          std::max(share, std::min(1.0, middle + half))};
}

Interval ShareRight(std::span<const uint8_t> right, std::span<const uint32_t> document) {
  KVTIER_CHECK_EQ(right.size(), document.size());
  KVTIER_CHECK_GT(right.size(), 0u);
  const std::vector<double> values(right.begin(), right.end());
  double count = 0;
  for (double value : values) count += value;
  const auto samples = static_cast<double>(values.size());
  const double share = count / samples;
  const double binomial = share * (1 - share) / samples;
  double effect = 1;
  if (binomial > 0) effect = std::max(1.0, ClusteredVariance(values, document) / binomial);
  return Wilson(count / effect, samples / effect);
}

Interval PairedDifference(std::span<const uint8_t> a, std::span<const uint8_t> b,
                          std::span<const uint32_t> document) {
  KVTIER_CHECK_EQ(a.size(), b.size());
  KVTIER_CHECK_EQ(a.size(), document.size());
  KVTIER_CHECK_GT(a.size(), 0u);
  std::vector<double> differences(a.size());
  double sum = 0;
  double discordant = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    differences[i] = static_cast<double>(a[i]) - static_cast<double>(b[i]);
    sum += differences[i];
    discordant += differences[i] * differences[i];
  }
  const auto samples = static_cast<double>(a.size());
  // Half a sample more of each outcome: Agresti and Min 2005.
  const double variance =
      (discordant + 1 - sum * sum / (samples + 2)) / ((samples + 2) * (samples + 2));
  const double error = std::sqrt(std::max(variance, ClusteredVariance(differences, document)));
  const double mean = sum / samples;
  return {mean, std::max(-1.0, mean - kZ95 * error), std::min(1.0, mean + kZ95 * error)};
}

}  // namespace kvtier
