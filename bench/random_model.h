// Checkpoints with the geometry of real models and seeded random weights, for measuring speed: how
// fast a model runs does not depend on what it has learned.
#ifndef KVTIER_BENCH_RANDOM_MODEL_H_
#define KVTIER_BENCH_RANDOM_MODEL_H_

#include <string>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"

namespace kvtier::bench {

// Writes config.json, model.safetensors (bf16) and kvtier_prompt_profile.json of a shape to
// `folder`, which is made. Holds no more than a few megabytes. Equal seeds give equal bytes.
//   qwen2.5-0.5b  24 layers, hidden 896, 14 query and 2 KV heads of 64, MLP 4864, 151,936 ids, tied
//   two-layers    2 layers, hidden 256, 8 query and 4 KV heads of 64, MLP 512, 260 ids; for long
//                 contexts (65,536 positions)
//   tiny          2 layers, hidden 64, chunks of 100; for tests of the bench itself
// INVALID_ARGUMENT: another name. UNAVAILABLE: the file system refused.
absl::Status WriteRandomModel(absl::string_view shape, const std::string& folder);

}  // namespace kvtier::bench

#endif  // KVTIER_BENCH_RANDOM_MODEL_H_
