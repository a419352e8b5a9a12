#include "compressor/sampler.h"

#include <cmath>

#include "base/log.h"

namespace kvtier {

uint32_t Greedy(std::span<const float> logits) {
  KVTIER_CHECK(!logits.empty());
  size_t best = 0;
  for (size_t i = 1; i < logits.size(); ++i) {
    if (logits[i] > logits[best] || (std::isnan(logits[best]) && !std::isnan(logits[i]))) best = i;
  }
  return std::isnan(logits[best]) ? 0 : static_cast<uint32_t>(best);
}

Sampler::Sampler(double temperature, uint64_t seed) : temperature_(temperature), random_(seed) {
  KVTIER_CHECK(std::isfinite(temperature) && temperature >= 0) << temperature;
}

uint32_t Sampler::Next(std::span<const float> logits) {
  const uint32_t best = Greedy(logits);
  if (temperature_ == 0) return best;
  // Not std::uniform_real_distribution, whose result differs between standard libraries.
  const double uniform = static_cast<double>(random_() >> 11) * 0x1p-53;  // [0, 1)
  if (!std::isfinite(logits[best])) return best;
  const auto weight = [&](float logit) {
    return std::isnan(logit) ? 0.0 : std::exp((double{logit} - logits[best]) / temperature_);
  };
  double total = 0;
  for (float logit : logits) total += weight(logit);
  double left = uniform * total;
  for (size_t i = 0; i < logits.size(); ++i) {
    left -= weight(logits[i]);
    if (left < 0) return static_cast<uint32_t>(i);
  }
  return best;  // Rounding used up the total before the last weight.
}

}  // namespace kvtier
