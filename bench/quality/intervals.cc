#include "bench/quality/intervals.h"

#include <algorithm>
#include <cmath>
#include <numbers>
#include <vector>

#include "base/log.h"

namespace kvtier {
namespace {

struct Clusters {
  uint32_t documents = 0;
  double samples_each = 0;  // Weighted by samples: the m of 1 + (m - 1) rho.
};

Clusters ClustersOf(std::span<const uint32_t> document) {
  Clusters clusters;
  double squares = 0;
  for (size_t i = 0; i < document.size(); ++clusters.documents) {
    const size_t begin = i;
    while (i < document.size() && document[i] == document[begin]) ++i;
    squares += static_cast<double>((i - begin) * (i - begin));
  }
  clusters.samples_each = squares / static_cast<double>(document.size());
  return clusters;
}

double Mean(std::span<const double> values) {
  double sum = 0;
  for (double value : values) sum += value;
  return sum / static_cast<double>(values.size());
}

// Variance of the mean of `values`, taking every one as a draw.
double IndependentVariance(std::span<const double> values) {
  const double mean = Mean(values);
  double squares = 0;
  for (double value : values) squares += (value - mean) * (value - mean);
  const double count = static_cast<double>(values.size());
  return squares / (count * count);
}

// The same, taking a document's samples as one draw. 0 for one document.
double ClusteredVariance(std::span<const double> values, std::span<const uint32_t> document) {
  const double mean = Mean(values);
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

double DesignEffect(std::span<const double> values, std::span<const uint32_t> document,
                    const Clusters& clusters, double rho) {
  const double assumed = 1 + (clusters.samples_each - 1) * rho;
  const double independent = IndependentVariance(values);
  if (independent <= 0) return assumed;
  return std::max(assumed, ClusteredVariance(values, document) / independent);
}

// Probability that |t| is below sqrt(degrees) * tan(angle): Abramowitz and Stegun 26.7.3, 26.7.4.
double StudentInside(uint32_t degrees, double angle) {
  const bool odd = degrees % 2 == 1;
  const double cosine = std::cos(angle);
  double term = odd ? cosine : 1;
  double sum = 0;
  for (uint32_t power = odd ? 1 : 0; power + 2 <= degrees; power += 2) {
    sum += term;
    term *= cosine * cosine * (power + 1) / (power + 2);
  }
  sum *= std::sin(angle);
  return odd ? (angle + sum) * 2 / std::numbers::pi : sum;
}

}  // namespace

double StudentT95(uint32_t degrees) {
  KVTIER_CHECK_GT(degrees, 0u);
  double low = 0;
  double high = std::numbers::pi / 2;
  for (int halving = 0; halving < 60; ++halving) {
    const double middle = (low + high) / 2;
    (StudentInside(degrees, middle) < 0.95 ? low : high) = middle;
  }
  return std::sqrt(static_cast<double>(degrees)) * std::tan(low);
}

double IntraclassCorrelation(std::span<const std::span<const uint8_t>> cells,
                             std::span<const uint32_t> document) {
  KVTIER_CHECK_GT(document.size(), 0u);
  const Clusters clusters = ClustersOf(document);
  if (clusters.documents < 2) return 1;
  double independent = 0;
  double clustered = 0;
  for (std::span<const uint8_t> cell : cells) {
    KVTIER_CHECK_EQ(cell.size(), document.size());
    const std::vector<double> values(cell.begin(), cell.end());
    independent += IndependentVariance(values);
    clustered += ClusteredVariance(values, document);
  }
  if (independent <= 0) return 1;
  // Documents of one sample each: no two are of one document, and rho makes no difference.
  if (clusters.samples_each <= 1) return 0;
  return std::clamp((clustered / independent - 1) / (clusters.samples_each - 1), 0.0, 1.0);
}

Interval Wilson(double right, double samples, double quantile) {
  const double share = right / samples;
  const double q2 = quantile * quantile;
  const double middle = (share + q2 / (2 * samples)) / (1 + q2 / samples);
  const double half = quantile / (1 + q2 / samples) *
                      std::sqrt(share * (1 - share) / samples + q2 / (4 * samples * samples));
  // Rounding must not push the ends past the share itself at 0 and 1.
  return {share, std::min(share, std::max(0.0, middle - half)),
          std::max(share, std::min(1.0, middle + half))};
}

Interval ShareRight(std::span<const uint8_t> right, std::span<const uint32_t> document,
                    double rho) {
  KVTIER_CHECK_EQ(right.size(), document.size());
  KVTIER_CHECK_GT(right.size(), 0u);
  const std::vector<double> values(right.begin(), right.end());
  const double share = Mean(values);
  const Clusters clusters = ClustersOf(document);
  if (clusters.documents < 2) return {share, 0, 1};
  const double samples =
      static_cast<double>(values.size()) / DesignEffect(values, document, clusters, rho);
  return Wilson(share * samples, samples, StudentT95(clusters.documents - 1));
}

Interval PairedDifference(std::span<const uint8_t> a, std::span<const uint8_t> b,
                          std::span<const uint32_t> document, double rho) {
  KVTIER_CHECK_EQ(a.size(), b.size());
  KVTIER_CHECK_EQ(a.size(), document.size());
  KVTIER_CHECK_GT(a.size(), 0u);
  std::vector<double> differences(a.size());
  double discordant = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    differences[i] = static_cast<double>(a[i]) - static_cast<double>(b[i]);
    discordant += differences[i] * differences[i];
  }
  const double mean = Mean(differences);
  const Clusters clusters = ClustersOf(document);
  if (clusters.documents < 2) return {mean, -1, 1};
  const double effect = DesignEffect(differences, document, clusters, rho);
  const double samples = static_cast<double>(a.size()) / effect;
  const double sum = mean * samples;
  // Half a sample more of each outcome.
  const double variance =
      (discordant / effect + 1 - sum * sum / (samples + 2)) / ((samples + 2) * (samples + 2));
  const double error = StudentT95(clusters.documents - 1) *
                       std::sqrt(std::max(variance, ClusteredVariance(differences, document)));
  return {mean, std::max(-1.0, mean - error), std::min(1.0, mean + error)};
}

}  // namespace kvtier
