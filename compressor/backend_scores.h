// The log scores of one context where its backend keeps them, from the scoring pass that writes
// them (scoring.h) to the ranking and packing that read them (packer.h). On a CPU that is a
// ScoreTable; a device keeps them in its own memory, so that they cross to the host for whoever
// wants the table and not on the way from one launch to the next.
//
// A row is one KV head of one scored layer; [layers, kv_heads, tokens] row-major, as ScoreTable.
#ifndef KVTIER_COMPRESSOR_BACKEND_SCORES_H_
#define KVTIER_COMPRESSOR_BACKEND_SCORES_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <span>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "compressor/ranking.h"

namespace kvtier {

class Backend;  // compressor/backend.h

struct ScoreShape {
  uint32_t layers = 0;  // Scored ones.
  uint32_t kv_heads = 0;
  uint64_t tokens = 0;

  uint64_t rows() const { return uint64_t{layers} * kv_heads; }
  uint64_t pairs() const { return rows() * tokens; }
  bool operator==(const ScoreShape&) const = default;
};

// What Inspect() found.
struct ScoreVerdict {
  // Index, among all pairs, of the first score that is NaN or infinite, and that score.
  std::optional<uint64_t> not_finite;
  float not_finite_score = 0;
  float best = 0;  // The largest score if all are finite; -inf if there is none.
};

// Made by Backend::MakeScores, which it does not outlive. Contents of a new one are unspecified.
// Calls are enqueued in the backend's order and wait only where it says so. Thread-safe as the
// backend: calls on different objects may run at once.
class BackendScores {
 public:
  explicit BackendScores(const ScoreShape& shape) : shape_(shape) {}
  virtual ~BackendScores() = default;
  BackendScores(const BackendScores&) = delete;
  BackendScores& operator=(const BackendScores&) = delete;

  const ScoreShape& shape() const { return shape_; }

  // Backend memory from the first head of a layer on: ScoreArgs::out of a chunk that begins with
  // `token`, with out_stride shape().tokens.
  float* From(uint32_t layer, uint64_t token) {
    return data() + uint64_t{layer} * shape_.kv_heads * shape_.tokens + token;
  }

  // All scores, from the host. INVALID_ARGUMENT: a table of another shape (both named), or one
  // whose sizes do not fit each other.
  absl::Status Write(const ScoreTable& table);

  // Tokens [begin, end) of row r score values[r]. INVALID_ARGUMENT: not as many values as rows, or
  // tokens that there are not.
  absl::Status Fill(uint64_t begin, uint64_t end, std::span<const float> values);

  // Looks at tokens [first_token, tokens) of every row, once the backend has computed them: waits.
  // REQUIRES: first_token <= shape().tokens.
  virtual absl::StatusOr<ScoreVerdict> Inspect(uint64_t first_token) const = 0;

  // A copy on the host. Waits.
  virtual absl::StatusOr<ScoreTable> Read() const = 0;

  // The scores themselves where they are a table of the host, which has them when the backend's
  // operations return; null elsewhere.
  virtual const ScoreTable* host() const { return nullptr; }

 protected:
  virtual float* data() = 0;  // [rows, tokens] in backend memory.
  // With arguments that fit.
  virtual absl::Status RunWrite(std::span<const float> log_scores) = 0;
  virtual absl::Status RunFill(uint64_t begin, uint64_t end, std::span<const float> values) = 0;

 private:
  const ScoreShape shape_;
};

// In memory of the host: for backends that compute there, and the twin of every other one.
std::unique_ptr<BackendScores> MakeHostScores(const ScoreShape& shape);

// Scores of the backend that hold what `table` does. Errors as MakeScores and Write.
absl::StatusOr<std::unique_ptr<BackendScores>> PlaceScores(Backend& backend,
                                                           const ScoreTable& table);

// The table on the host, or why there is none.
absl::StatusOr<ScoreTable> ReadScores(absl::StatusOr<std::unique_ptr<BackendScores>> scores);

// INVALID_ARGUMENT: a score of the tokens from first_token on that is NaN or infinite: an overflow
// in the model must not pass for an opinion about the context. Names the first one's layer, head
// and context token (the first is 0). Waits; errors of the device.
absl::Status CheckFinite(const BackendScores& scores, uint64_t first_token);

}  // namespace kvtier

#endif  // KVTIER_COMPRESSOR_BACKEND_SCORES_H_
