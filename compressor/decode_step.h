// Steps of decoding, one token each, whose changing inputs lie in backend memory, so that a backend
// can repeat the launches of an earlier step instead of making them anew: a device captures a step
// as a graph (cuda/device_decode_step.h, docs/adr/0023). What an object's rows need for that is
// brought over once and shared. A backend that offers none of it returns null from
// Backend::decode_steps(), and a step is a pass like any other (forward.h).
//
//   auto rows = steps->Prepare(spans_of_all_layers, DType::kBf16);        // once per object
//   auto step = steps->Create({.rows = rows, ...});                        // once per Decoder
//   step->Run({.token = 7, .position = 1200, .tail_row = 3},
//             [&] { return ForwardStep(model, *step, scratch); });
#ifndef KVTIER_COMPRESSOR_DECODE_STEP_H_
#define KVTIER_COMPRESSOR_DECODE_STEP_H_

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "compressor/backend.h"
#include "compressor/token_ops.h"

namespace kvtier {

// An object's rows as the steps of one backend read them. Immutable to its users, so any number of
// steps share it; lies in memory of the backend, which outlives it, and points into the object's.
class PreparedRows {
 public:
  virtual ~PreparedRows() = default;
};

// All that differs from one step to the next.
struct StepState {
  uint32_t token = 0;
  int64_t position = 0;
  int64_t tail_row = 0;  // The token's own, which is how many rows came before it.
};

// How the steps of one DecodeStep have run.
struct StepCounts {
  uint64_t launched = 0;          // Operation by operation,
  uint64_t replayed = 0;          // and at once, as launched before.
  uint64_t captures_refused = 0;  // Attempts to keep the launches that failed.
};

// The token operations of one question's steps. Not thread-safe; several of one object may run at
// once. Uses the memory of its spec until it is gone.
class DecodeStep : public TokenOps {
 public:
  // Brings `state` over and runs `pass`: by calling it, or by repeating what it launched before.
  // The pass launches the same operations over the same tensors at each call, whatever the state,
  // and does nothing that waits. An error of the repetition or of the pass is returned; failing to
  // keep the launches is none: it is logged, once per backend, counted, and steps are launched from
  // then on. INVALID_ARGUMENT: a state outside the spec.
  virtual absl::Status Run(const StepState& state, absl::FunctionRef<absl::Status()> pass) = 0;

  virtual StepCounts counts() const = 0;
};

struct DecodeStepSpec {
  std::shared_ptr<const PreparedRows> rows;  // Of the same backend.
  std::vector<KvLayerView> tails;            // [layers], of the dtype of the rows
  std::vector<int64_t> windows;              // [layers]; 0: none
  int64_t group = 0;                         // Query heads per KV head.
  float scale = 0;                           // The model's softmax scale.
  int64_t vocabulary = 0;
  bool replay = true;  // False: every step is launched. For measurements and tests.
};

// What a backend offers for steps. Thread-safe.
class DecodeSteps {
 public:
  virtual ~DecodeSteps() = default;
  // RESOURCE_EXHAUSTED: no memory for the tables of the rows: 64 bytes a span.
  virtual absl::StatusOr<std::shared_ptr<const PreparedRows>> Prepare(
      const std::vector<HeadSpans>& layers, DType dtype) = 0;
  // RESOURCE_EXHAUSTED: no memory. INVALID_ARGUMENT: parts of the spec that do not fit each other.
  virtual absl::StatusOr<std::unique_ptr<DecodeStep>> Create(const DecodeStepSpec& spec) = 0;
};

}  // namespace kvtier

#endif  // KVTIER_COMPRESSOR_DECODE_STEP_H_
