#include "bench/quality/asker.h"

#include <algorithm>
#include <utility>

#include "absl/status/status.h"
#include "base/status_macros.h"
#include "compressor/sampler.h"

namespace kvtier {
namespace {

// The backend multiplies rows in blocks of eight and the remainder one by one, each of which costs
// as much as a block: rows are filled up to blocks, with ids whose rows nobody looks at.
constexpr size_t kBlockRows = 8;
// Of an answer: few enough to stop soon after a wrong id, enough for the matrix products.
constexpr size_t kPieceRows = 3 * kBlockRows;

size_t RoundUp(size_t rows) { return (rows + kBlockRows - 1) / kBlockRows * kBlockRows; }

}  // namespace

absl::StatusOr<std::unique_ptr<Asker>> Asker::Create(const Model& model, const Geometry& geometry,
                                                     int64_t rows_max) {
  const auto rows = static_cast<int64_t>(RoundUp(static_cast<size_t>(rows_max)));
  KVTIER_ASSIGN_OR_RETURN(DenseCache tail, DenseCache::Create(model.backend(), geometry, rows));
  KVTIER_ASSIGN_OR_RETURN(ForwardScratch scratch, ForwardScratch::Create(model, rows));
  return std::unique_ptr<Asker>(new Asker(model, std::move(tail), std::move(scratch)));
}

Asker::Asker(const Model& model, DenseCache tail, ForwardScratch scratch)
    : model_(&model), tail_(std::move(tail)), scratch_(std::move(scratch)) {}

absl::StatusOr<bool> Asker::Answers(const AskedIds& asked, const LayerSpans& spans,
                                    int64_t first_position) {
  if (asked.question.empty() || asked.answer.empty()) {
    return absl::InvalidArgumentError("asking: an empty question or answer");
  }
  // The question and the answer but its last id, whose successor nobody asks for.
  std::vector<uint32_t> ids = asked.question;
  ids.insert(ids.end(), asked.answer.begin(), asked.answer.end() - 1);
  const size_t real = ids.size();
  ids.resize(RoundUp(real), ids.back());
  tail_.SetLength(0);
  ForwardPlan plan;
  plan.spans = spans;
  plan.tail = &tail_;
  // First the question and what fills its last blocks, then the rest in pieces: a wrong id ends it.
  for (size_t begin = 0; begin < real;) {
    const size_t least = begin == 0 ? asked.question.size() + kBlockRows / 2 : kPieceRows;
    const size_t rows = std::min(RoundUp(least), ids.size() - begin);
    plan.first_position = first_position + static_cast<int64_t>(begin);
    KVTIER_RETURN_IF_ERROR(Forward(*model_, std::span(ids).subspan(begin, rows), plan, scratch_,
                                   /*logits=*/{}, &logits_));
    const size_t vocabulary = logits_.size() / rows;
    // Row r of the whole predicts answer[r - (question - 1)].
    const size_t end = std::min(begin + rows, real);
    for (size_t row = std::max(begin, asked.question.size() - 1); row < end; ++row) {
      const std::span<const float> logits(&logits_[(row - begin) * vocabulary], vocabulary);
      if (Greedy(logits) != asked.answer[row - (asked.question.size() - 1)]) return false;
    }
    begin += rows;
  }
  return true;
}

}  // namespace kvtier
