// Rotary position embeddings: the parameters a checkpoint names, and the frequencies they mean.
// Frequencies are computed in fp32 in the order in which transformers computes them, because near
// position 131,071 one unit in the last place of a frequency turns a key by up to 8e-3 rad.
//
// Kinds whose frequencies depend on the length of the input (dynamic NTK, LongRoPE) cannot be
// built: keys are cached after their rotation.
#ifndef KVTIER_COMPRESSOR_ROPE_H_
#define KVTIER_COMPRESSOR_ROPE_H_

#include <cstdint>
#include <string>

#include "compressor/backend.h"

namespace kvtier {

enum class RopeKind : uint8_t {
  kDefault,  // 1 / theta^(2i / D)
  kLinear,   // ... divided by factor (Chen et al. 2023, arXiv 2306.15595)
  kLlama3,   // Slow frequencies divided by factor, fast ones kept, a blend between (Llama 3.1)
  kYarn,     // The blend by rotations over the original length (Peng et al. 2023, arXiv 2309.00071)
};

// Immutable value, as config.json gives it. Fields that a kind does not use keep their defaults.
struct RopeSpec {
  RopeKind kind = RopeKind::kDefault;
  double theta = 10000.0;
  double factor = 1.0;                 // kLinear, kLlama3, kYarn
  int64_t original_positions = 0;      // kLlama3, kYarn: positions the model was first trained for
  double low_frequency_factor = 1.0;   // kLlama3
  double high_frequency_factor = 4.0;  // kLlama3
  double beta_fast = 32.0;             // kYarn: rotations above which a frequency is kept
  double beta_slow = 1.0;              // kYarn: rotations below which it is divided by factor
  bool truncate = true;                // kYarn: round the ends of the blend to whole pairs
  double attention_factor = 1.0;       // kYarn: multiplies cos and sin

  // REQUIRES: head_dim even and positive; what config.json may hold (model_config.cc checks it).
  RopeTable MakeTable(int64_t head_dim) const;
  // Canonical text of every parameter that counts, for the key.
  std::string Fingerprint(int64_t head_dim) const;
  friend bool operator==(const RopeSpec&, const RopeSpec&) = default;
};

// YaRN's factor on cos and sin where the checkpoint does not name one. The two scales are those of
// DeepSeek's checkpoints; 0 stands for absent, and they count only together.
double YarnAttentionFactor(double factor, double mscale, double mscale_all_dim);

}  // namespace kvtier

#endif  // KVTIER_COMPRESSOR_ROPE_H_
