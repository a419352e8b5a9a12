// 95 % intervals of the scores that kvtier-eval quality prints. Samples of one document share a
// cache, so they are not independent: both intervals are widened accordingly.
// Plain functions: any thread may call.
#ifndef KVTIER_BENCH_QUALITY_INTERVALS_H_
#define KVTIER_BENCH_QUALITY_INTERVALS_H_

#include <cstdint>
#include <span>

namespace kvtier {

struct Interval {
  double value = 0;
  double low = 0;
  double high = 0;
};

// Two-sided 95 % quantile of the normal distribution.
inline constexpr double kZ95 = 1.959963984540054;

// Share of right samples with Wilson's score interval. right[i] is 0 or 1; document[i] ascends.
// Where documents differ more than chance allows, the number of samples is divided by the design
// effect (variance between documents over binomial variance).
// REQUIRES: as many documents as samples, at least one.
Interval ShareRight(std::span<const uint8_t> right, std::span<const uint32_t> document);

// Wilson's interval of `right` out of `samples` > 0 (which need not be integers).
Interval Wilson(double right, double samples);

// Mean of a[i] - b[i], the same samples under two methods. The standard error is the larger of
// Agresti and Min's for paired proportions, which is not zero where no pair differs, and the one
// over documents. Held inside [-1, 1].
Interval PairedDifference(std::span<const uint8_t> a, std::span<const uint8_t> b,
                          std::span<const uint32_t> document);

}  // namespace kvtier

#endif  // KVTIER_BENCH_QUALITY_INTERVALS_H_
