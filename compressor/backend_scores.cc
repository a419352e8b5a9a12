#include "compressor/backend_scores.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "compressor/backend.h"

namespace kvtier {
namespace {

class HostScores final : public BackendScores {
 public:
  explicit HostScores(const ScoreShape& shape)
      : BackendScores(shape),
        table_(ScoreTable::Create(shape.layers, shape.kv_heads, shape.tokens)) {}

  absl::StatusOr<ScoreVerdict> Inspect(uint64_t first_token) const override {
    ScoreVerdict verdict;
    verdict.best = -std::numeric_limits<float>::infinity();
    const uint64_t tokens = shape().tokens;
    for (uint64_t row = 0; row < shape().rows(); ++row) {
      for (uint64_t i = row * tokens + first_token; i < (row + 1) * tokens; ++i) {
        const float score = table_.log_scores[i];
        if (!std::isfinite(score)) {
          verdict.not_finite = i;
          verdict.not_finite_score = score;
          return verdict;
        }
        verdict.best = std::max(verdict.best, score);
      }
    }
    return verdict;
  }
  absl::StatusOr<ScoreTable> Read() const override { return table_; }
  const ScoreTable* host() const override { return &table_; }

 protected:
  float* data() override { return table_.log_scores.data(); }
  absl::Status RunWrite(std::span<const float> log_scores) override {
    std::copy(log_scores.begin(), log_scores.end(), table_.log_scores.begin());
    return absl::OkStatus();
  }
  absl::Status RunFill(uint64_t begin, uint64_t end, std::span<const float> values) override {
    for (size_t row = 0; row < values.size(); ++row) {
      std::fill_n(table_.log_scores.data() + row * shape().tokens + begin, end - begin,
                  values[row]);
    }
    return absl::OkStatus();
  }

 private:
  ScoreTable table_;
};

}  // namespace

absl::Status BackendScores::Write(const ScoreTable& table) {
  const ScoreShape given{
      .layers = table.layers, .kv_heads = table.kv_heads, .tokens = table.tokens};
  if (given != shape_) {
    return absl::InvalidArgumentError(absl::StrCat(
        "scores of ", table.layers, " layers x ", table.kv_heads, " heads x ", table.tokens,
        " tokens for ", shape_.layers, " x ", shape_.kv_heads, " x ", shape_.tokens));
  }
  if (table.pairs() != shape_.pairs()) return CheckScores(table);  // Says so.
  return RunWrite(table.log_scores);
}

absl::Status BackendScores::Fill(uint64_t begin, uint64_t end, std::span<const float> values) {
  if (values.size() != shape_.rows() || begin > end || end > shape_.tokens) {
    return absl::InvalidArgumentError(
        absl::StrCat("scores: ", values.size(), " values for tokens [", begin, ", ", end, ") of ",
                     shape_.rows(), " rows of ", shape_.tokens));
  }
  return values.empty() || begin == end ? absl::OkStatus() : RunFill(begin, end, values);
}

std::unique_ptr<BackendScores> MakeHostScores(const ScoreShape& shape) {
  return std::make_unique<HostScores>(shape);
}

absl::StatusOr<std::unique_ptr<BackendScores>> PlaceScores(Backend& backend,
                                                           const ScoreTable& table) {
  KVTIER_ASSIGN_OR_RETURN(
      std::unique_ptr<BackendScores> scores,
      backend.MakeScores(
          {.layers = table.layers, .kv_heads = table.kv_heads, .tokens = table.tokens}));
  KVTIER_RETURN_IF_ERROR(scores->Write(table));
  return scores;
}

absl::StatusOr<ScoreTable> ReadScores(absl::StatusOr<std::unique_ptr<BackendScores>> scores) {
  if (!scores.ok()) return scores.status();
  return (*scores)->Read();
}

absl::Status CheckFinite(const BackendScores& scores, uint64_t first_token) {
  KVTIER_ASSIGN_OR_RETURN(const ScoreVerdict verdict, scores.Inspect(first_token));
  if (!verdict.not_finite.has_value()) return absl::OkStatus();
  const ScoreShape& shape = scores.shape();
  const uint64_t row = *verdict.not_finite / shape.tokens;
  return absl::InvalidArgumentError(absl::StrCat(
      "score of layer ", row / shape.kv_heads, ", head ", row % shape.kv_heads, ", context token ",
      *verdict.not_finite % shape.tokens - first_token, " is ", verdict.not_finite_score));
}

}  // namespace kvtier
