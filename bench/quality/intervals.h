// 95 % intervals of the scores that kvtier-eval quality prints. Samples of one document share a
// cache and a text, so they are not independent: every interval counts documents as the draws.
//
// As for surveys that draw clusters, the number of samples is divided by a design effect, and the
// quantile is Student's t with documents - 1 degrees of freedom. The effect is the larger of two:
//   - the cell's own: variance between documents over the variance of independent samples;
//   - 1 + (m - 1) rho (Kish 1965), m the samples of a document and rho the intraclass correlation
//     of all cells of the task together (IntraclassCorrelation).
// The second matters where a cell tells nothing about its own: all samples right, or no pair that
// differs. ASSUMPTION: failures that such a cell did not show would fall into the same documents
// as much as those of the task's other cells do. Where no cell tells, a document is one draw
// (rho = 1). Wilson's interval over an effective number of samples is what Franco, Little, Louis
// and Slud recommend (J. Surv. Stat. Methodol. 2019), with the effect from a model of the whole
// sample, because that of one cell alone covers too little.
//
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

// Two-sided 95 % quantile of Student's t: 12.71 for one degree of freedom, 1.96 for very many.
// REQUIRES: degrees > 0.
double StudentT95(uint32_t degrees);

// How alike samples of one document are in all `cells` of a task together, from 0 (no more than
// others) to 1 (all the same): the sum of their variances between documents over the sum of those
// of independent samples gives the design effect, and that rho. Cells without both outcomes add
// nothing; 1 if no cell has both or there is one document.
// REQUIRES: of every cell as many samples as documents, at least one; document[i] ascends.
double IntraclassCorrelation(std::span<const std::span<const uint8_t>> cells,
                             std::span<const uint32_t> document);

// Share of right samples. right[i] is 0 or 1; document[i] ascends. `rho` from 0 to 1: the task's
// IntraclassCorrelation. One document says nothing about others: [0, 1].
// REQUIRES: as many documents as samples, at least one.
Interval ShareRight(std::span<const uint8_t> right, std::span<const uint32_t> document, double rho);

// Wilson's score interval of `right` out of `samples` > 0 (which need not be integers).
Interval Wilson(double right, double samples, double quantile = kZ95);

// Mean of a[i] - b[i], the same samples under two methods, after Agresti and Min 2005 (whose error
// is not zero where no pair differs) over the effective number of samples, and at least the error
// between documents. Held inside [-1, 1], which it is for one document. Otherwise as ShareRight.
// Too wide rather than too narrow where two methods miss the same documents: rho is that of scores.
Interval PairedDifference(std::span<const uint8_t> a, std::span<const uint8_t> b,
                          std::span<const uint32_t> document, double rho);

}  // namespace kvtier

#endif  // KVTIER_BENCH_QUALITY_INTERVALS_H_
