#include "store/reuse_model.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <utility>

#include "base/log.h"

namespace kvtier {
namespace {

constexpr int kBuckets = ReuseModel::kAgeBuckets;

// Rate x (age + 1 s) of an object about which nothing is known. Only its order of magnitude
// matters: the fit replaces it by what all classes together show.
constexpr double kPriorRate = 0.05;
// Requests that a belief weighs against what was observed.
constexpr double kPriorWeight = 1;
// Alternating steps of the fit of class factors and age profile; it moves little after the second.
constexpr int kFitSteps = 4;

// Begins of the buckets in seconds: 2^(i/2) - 1.
const std::array<double, kBuckets + 1>& BeginSeconds() {
  static const std::array<double, kBuckets + 1> begins = [] {
    std::array<double, kBuckets + 1> result;
    for (int i = 0; i <= kBuckets; ++i) result[static_cast<size_t>(i)] = std::exp2(0.5 * i) - 1;
    return result;
  }();
  return begins;
}

double Width(int bucket) {
  const auto& begins = BeginSeconds();
  return begins[static_cast<size_t>(bucket) + 1] - begins[static_cast<size_t>(bucket)];
}

// What is believed of the age profile before anything is seen, for the middle of the bucket.
double PriorProfile(int bucket) {
  const auto& begins = BeginSeconds();
  const double middle =
      0.5 * (begins[static_cast<size_t>(bucket)] + begins[static_cast<size_t>(bucket) + 1]);
  return kPriorRate / (middle + 1);
}

}  // namespace

absl::Duration ReuseModel::BucketBegin(int bucket) {
  static const std::array<absl::Duration, kBuckets + 1> begins = [] {
    std::array<absl::Duration, kBuckets + 1> result;
    for (size_t i = 0; i < kBuckets; ++i) result[i] = absl::Seconds(BeginSeconds()[i]);
    result[kBuckets] = absl::InfiniteDuration();
    return result;
  }();
  return begins[static_cast<size_t>(bucket)];
}

int ReuseModel::BucketOf(absl::Duration age) {
  int low = 0, high = kBuckets;  // The first bucket that begins after `age` is in (low, high].
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    (BucketBegin(middle) <= age ? low : high) = middle;
  }
  return low;
}

ReuseModel::ReuseModel(std::vector<double> first_guesses, absl::Time start)
    : first_guesses_(std::move(first_guesses)),
      start_(start),
      cells_(first_guesses_.size() * kAgeBuckets) {
  KVTIER_CHECK(!first_guesses_.empty());
  Learn(start);
}

void ReuseModel::Enter(Cell cell, absl::Time now) {
  State& state = cells_[Position(cell)];
  state.present += 1;
  state.present_since_s += absl::ToDoubleSeconds(now - start_);
}

void ReuseModel::Leave(Cell cell, absl::Time since, absl::Time now) {
  State& state = cells_[Position(cell)];
  state.present -= 1;
  state.present_since_s -= absl::ToDoubleSeconds(since - start_);
  state.seconds += std::max(0.0, absl::ToDoubleSeconds(now - since));
}

void ReuseModel::Asked(Cell cell) { cells_[Position(cell)].asked += 1; }

void ReuseModel::Learn(absl::Time now) {
  const double now_s = absl::ToDoubleSeconds(now - start_);
  const size_t class_count = first_guesses_.size();
  const auto cell = [&](size_t k, size_t b) -> State& { return cells_[k * kAgeBuckets + b]; };

  double asked_all = 0;
  std::vector<double> seconds(cells_.size());
  std::array<double, kBuckets> prior, profile;
  for (size_t i = 0; i < cells_.size(); ++i) {
    // Those that are still there have been watched too. Sums of doubles may be off by a rounding.
    seconds[i] =
        cells_[i].seconds + std::max(0.0, cells_[i].present * now_s - cells_[i].present_since_s);
    asked_all += cells_[i].asked;
  }
  for (size_t b = 0; b < kBuckets; ++b) prior[b] = PriorProfile(static_cast<int>(b));
  profile = prior;

  // Rates of the form factor[k] * profile[b]: the likeliest given one of the two, in turns. Every
  // estimate is (requests + weight) / (expected requests at the belief + weight) x belief.
  std::vector<double> factor = first_guesses_;
  for (int step = 0; step < kFitSteps; ++step) {
    double expected_all = 0;
    for (size_t k = 0; k < class_count; ++k) {
      double asked = 0, expected = 0, at_prior = 0;
      for (size_t b = 0; b < kBuckets; ++b) {
        asked += cell(k, b).asked;
        expected += seconds[k * kAgeBuckets + b] * profile[b];
        at_prior += seconds[k * kAgeBuckets + b] * prior[b];
      }
      factor[k] = (asked + kPriorWeight) / (expected + kPriorWeight / first_guesses_[k]);
      expected_all += factor[k] * at_prior;
    }
    const double scale = (asked_all + kPriorWeight) / (expected_all + kPriorWeight);
    for (size_t b = 0; b < kBuckets; ++b) {
      double asked = 0, weighted_s = 0;
      for (size_t k = 0; k < class_count; ++k) {
        asked += cell(k, b).asked;
        weighted_s += factor[k] * seconds[k * kAgeBuckets + b];
      }
      profile[b] = (asked + kPriorWeight) / (weighted_s + kPriorWeight / (scale * prior[b]));
    }
  }
  for (size_t k = 0; k < class_count; ++k) {
    for (size_t b = 0; b < kBuckets; ++b) {
      cell(k, b).rate = (cell(k, b).asked + kPriorWeight) /
                        (seconds[k * kAgeBuckets + b] + kPriorWeight / (factor[k] * profile[b]));
    }
    FitIndex(static_cast<int>(k));
  }

  if (asked_all >= kAskedMax) {
    for (State& state : cells_) {
      state.asked /= 2;
      state.seconds /= 2;
    }
  }
}

void ReuseModel::FitIndex(int reuse_class) {
  for (int begin = 0; begin < kBuckets; ++begin) {
    double still_unasked = 1, asked = 0, kept_s = 0, best = 0;
    for (int b = begin; b < kBuckets; ++b) {
      const double rate = Rate({reuse_class, b});
      const double asked_here = -std::expm1(-rate * Width(b));  // Of those that got this far.
      asked += still_unasked * asked_here;
      kept_s += still_unasked * asked_here / rate;
      still_unasked *= 1 - asked_here;
      best = std::max(best, asked / kept_s);
    }
    cells_[Position({reuse_class, begin})].index = best;
  }
}

}  // namespace kvtier
