#include "compressor/rope.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <numbers>
#include <vector>

#include "absl/strings/str_cat.h"

namespace kvtier {
namespace {

// theta^(2i / D) for each pair.
std::vector<float> Periods(double theta, int64_t head_dim) {
  std::vector<float> periods;
  for (int64_t d = 0; d < head_dim; d += 2) {
    const float exponent = static_cast<float>(d) / static_cast<float>(head_dim);
    periods.push_back(std::pow(static_cast<float>(theta), exponent));
  }
  return periods;
}

float Llama3Frequency(const RopeSpec& spec, float frequency) {
  const float factor = static_cast<float>(spec.factor);
  const float length = static_cast<float>(spec.original_positions);
  const float low = static_cast<float>(spec.low_frequency_factor);
  const float high = static_cast<float>(spec.high_frequency_factor);
  const float wavelength = static_cast<float>(2 * std::numbers::pi) / frequency;
  if (wavelength < length / high) return frequency;
  if (wavelength > length / low) return frequency / factor;
  const float smooth = (length / wavelength - low) / (high - low);
  return (1 - smooth) * frequency / factor + smooth * frequency;
}

// The pair that turns `rotations` times over the original length; fractional.
double PairOfRotations(const RopeSpec& spec, int64_t head_dim, double rotations) {
  const double length = static_cast<double>(spec.original_positions);
  return static_cast<double>(head_dim) * std::log(length / (rotations * 2 * std::numbers::pi)) /
         (2 * std::log(spec.theta));
}

std::vector<float> YarnFrequencies(const RopeSpec& spec, int64_t head_dim) {
  double low = PairOfRotations(spec, head_dim, spec.beta_fast);
  double high = PairOfRotations(spec, head_dim, spec.beta_slow);
  if (spec.truncate) {
    low = std::floor(low);
    high = std::ceil(high);
  }
  low = std::max(low, 0.0);
  high = std::min(high, static_cast<double>(head_dim - 1));
  if (low == high) high += 0.001;
  const float factor = static_cast<float>(spec.factor);
  std::vector<float> frequencies;
  for (float period : Periods(spec.theta, head_dim)) {
    const float pair = static_cast<float>(frequencies.size());
    const float ramp = (pair - static_cast<float>(low)) / static_cast<float>(high - low);
    const float kept = 1 - std::clamp(ramp, 0.0f, 1.0f);
    frequencies.push_back(1 / (factor * period) * (1 - kept) + 1 / period * kept);
  }
  return frequencies;
}

std::string Text(double value) {
  char text[40];
  std::snprintf(text, sizeof(text), "%.17g", value);
  return text;
}

}  // namespace

RopeTable RopeSpec::MakeTable(int64_t head_dim) const {
  RopeTable table;
  if (kind == RopeKind::kYarn) {
    table.inverse_frequencies = YarnFrequencies(*this, head_dim);
    table.attention_scaling = static_cast<float>(attention_factor);
    return table;
  }
  for (float period : Periods(theta, head_dim)) {
    float frequency = 1 / period;
    if (kind == RopeKind::kLinear) frequency /= static_cast<float>(factor);
    if (kind == RopeKind::kLlama3) frequency = Llama3Frequency(*this, frequency);
    table.inverse_frequencies.push_back(frequency);
  }
  return table;
}

std::string RopeSpec::Fingerprint(int64_t head_dim) const {
  const auto text = [&](absl::string_view type, auto... parts) {
    return absl::StrCat("rope/1 rotation=half type=", type, " theta=", Text(theta),
                        " dims=", head_dim, parts...);
  };
  switch (kind) {
    case RopeKind::kDefault:
      return text("default");
    case RopeKind::kLinear:
      return text("linear", " factor=", Text(factor));
    case RopeKind::kLlama3:
      return text("llama3", " factor=", Text(factor), " original=", original_positions,
                  " low=", Text(low_frequency_factor), " high=", Text(high_frequency_factor));
    case RopeKind::kYarn:
      return text("yarn", " factor=", Text(factor), " original=", original_positions,
                  " fast=", Text(beta_fast), " slow=", Text(beta_slow),
                  " truncate=", truncate ? 1 : 0, " attention=", Text(attention_factor));
  }
  return "";
}

double YarnAttentionFactor(double factor, double mscale, double mscale_all_dim) {
  const auto scale = [factor](double size) {
    return factor <= 1 ? 1.0 : 0.1 * size * std::log(factor) + 1.0;
  };
  if (mscale != 0 && mscale_all_dim != 0) return scale(mscale) / scale(mscale_all_dim);
  return scale(1);
}

}  // namespace kvtier
