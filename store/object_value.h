// What an object is worth to an eviction policy, from what its manifest says. Pure.
#ifndef KVTIER_STORE_OBJECT_VALUE_H_
#define KVTIER_STORE_OBJECT_VALUE_H_

#include <cstdint>

#include "kvcache/bands.h"
#include "kvcache/manifest.h"
#include "store/eviction.h"

namespace kvtier {

// The bands below which pressure does not shrink an object: up to its first edge >= `floor`, all of
// them if it ends before.
uint32_t FloorBands(const Manifest& manifest, Ratio floor);

// How well all bands 0..b answer, as a fraction of the whole object: the measured fidelity if the
// manifest has it at every edge, else the share of the score mass, else (nothing scored, as in an
// opaque page) the share of the bytes. Never falls with b; the last one is 1, or the fidelity at
// the last edge.
std::vector<double> PrefixQualities(const Manifest& manifest);

// What computing the object again costs, in units of one token's prefill without attention. That
// grows with every token, and attention with all tokens before it: the two are equal at
// kAttentionTokens (for Llama-3.1-8B 16 GFLOP a token against 0.26 MFLOP a pair of tokens). The
// model's size is not in the manifest, so objects of different models compare by length alone.
inline constexpr double kAttentionTokens = 65536;
double RecomputeCost(const Manifest& manifest);

// REQUIRES: 1 <= floor_bands <= bands.
EvictionObject DescribeForEviction(const Manifest& manifest, EvictionId id, uint32_t floor_bands);

}  // namespace kvtier

#endif  // KVTIER_STORE_OBJECT_VALUE_H_
