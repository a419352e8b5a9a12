// Chooses the next token from logits.
#ifndef KVTIER_COMPRESSOR_SAMPLER_H_
#define KVTIER_COMPRESSOR_SAMPLER_H_

#include <cstdint>
#include <random>
#include <span>

namespace kvtier {

// Deterministic for a seed. Not thread-safe.
class Sampler {
 public:
  // temperature 0 is greedy: the lowest id among the largest logits.
  Sampler(double temperature, uint64_t seed);
  uint32_t Next(std::span<const float> logits);

 private:
  double temperature_;
  std::mt19937_64 random_;
};

}  // namespace kvtier

#endif  // KVTIER_COMPRESSOR_SAMPLER_H_
