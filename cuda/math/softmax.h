// Softmax in the log2 domain over logits that come in tiles, and the merge of parts that were
// computed apart. A row's state is its largest logit so far and the sum of exp2(logit - largest).
#ifndef KVTIER_CUDA_MATH_SOFTMAX_H_
#define KVTIER_CUDA_MATH_SOFTMAX_H_

#include <cmath>

#include "cuda/simt.h"

namespace kvtier {

inline constexpr float kLog2E = 1.4426950408889634f;
inline constexpr float kLn2 = 0.6931471805599453f;

KVTIER_HOST_DEVICE inline float MinusInfinity() { return -INFINITY; }

// exp2(logit - largest), 0 where nothing has been seen. NaN stays NaN.
KVTIER_HOST_DEVICE inline float SoftmaxWeight(float logit, float largest) {
  return logit == MinusInfinity() ? 0.0f : exp2f(logit - largest);
}

// log2 of the sum of exp2 of all logits; -inf if there was none.
KVTIER_HOST_DEVICE inline float LogSum2(float largest, float sum) { return largest + log2f(sum); }

// Weights with which a part of normaliser `part` counts in one of normaliser `whole` (both log2).
KVTIER_HOST_DEVICE inline float PartWeight(float part, float whole) {
  return SoftmaxWeight(part, whole);
}

// The share of the one of two sets of keys in both together, by their normalisers (natural logs); 0
// and 1 where a set has no keys.
KVTIER_HOST_DEVICE inline float PartShare(float part, float other) {
  return 1 / (1 + expf(other - part));
}

}  // namespace kvtier

#endif  // KVTIER_CUDA_MATH_SOFTMAX_H_
