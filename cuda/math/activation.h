// What gates an MLP, and the rotation of RoPE, for one element.
#ifndef KVTIER_CUDA_MATH_ACTIVATION_H_
#define KVTIER_CUDA_MATH_ACTIVATION_H_

#include <cmath>

#include "cuda/simt.h"

namespace kvtier {

KVTIER_HOST_DEVICE inline float Silu(float x) { return x / (1.0f + expf(-x)); }

// 1/2 x (1 + tanh(u)) is x / (1 + exp(-2u)), which does not cancel where tanh nears -1.
KVTIER_HOST_DEVICE inline float GeluTanh(float x) {
  constexpr float kTwoRootTwoOverPi = 1.5957691216057308f;
  return x / (1.0f + expf(-kTwoRootTwoOverPi * (x + 0.044715f * x * x * x)));
}

struct RotatedPair {
  float first;
  float second;
};

// The halves' elements d and d + head_dim / 2 at an angle. The angle is position * frequency,
// rounded to fp32, as models are trained; cosine and sine are of fp32 accuracy at any angle.
KVTIER_HOST_DEVICE inline RotatedPair Rotate(float first, float second, float position,
                                             float frequency, float scaling) {
  const float angle = position * frequency;
  const float c = cosf(angle) * scaling;
  const float s = sinf(angle) * scaling;
  return {first * c - second * s, second * c + first * s};
}

}  // namespace kvtier

#endif  // KVTIER_CUDA_MATH_ACTIVATION_H_
