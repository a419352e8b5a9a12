// Chooses the next token from logits.
#ifndef KVTIER_COMPRESSOR_SAMPLER_H_
#define KVTIER_COMPRESSOR_SAMPLER_H_

#include <cstdint>
#include <random>
#include <span>

namespace kvtier {

// Deterministic for a seed. Not thread-safe: one per answer.
class Sampler {
 public:
  // temperature 0 is greedy: the lowest id among the largest logits. Above 0: a draw from the
  // softmax of logits / temperature. REQUIRES: temperature is finite and not negative.
  Sampler(double temperature, uint64_t seed);

  // A NaN among the logits is never chosen; if there is nothing else, the answer is 0.
  // REQUIRES: logits is not empty.
  uint32_t Next(std::span<const float> logits);

 private:
  double temperature_;
  std::mt19937_64 random_;
};

// Sampler's choice at temperature 0.
uint32_t Greedy(std::span<const float> logits);

}  // namespace kvtier

#endif  // KVTIER_COMPRESSOR_SAMPLER_H_
