// Quality of eviction methods on one document: prefill once, give every method the same budget, and
// count the questions that greedy decoding answers word for word.
//   KVTIER_ASSIGN_OR_RETURN(auto evaluation, Evaluation::Create(model, context));
//   KVTIER_ASSIGN_OR_RETURN(ScoreTable scores, evaluation->KvzipScores());
//   KVTIER_ASSIGN_OR_RETURN(auto exact, evaluation->CountExact(scores, ratio, questions, 2, {}));
#ifndef KVTIER_BENCH_EVALUATION_H_
#define KVTIER_BENCH_EVALUATION_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "bench/questions.h"
#include "compressor/attention_votes.h"
#include "compressor/decoder.h"
#include "compressor/dense_cache.h"
#include "compressor/model.h"
#include "compressor/ranking.h"
#include "compressor/recipe_scores.h"
#include "kvcache/bands.h"
#include "kvcache/codec_id.h"
#include "kvcache/compressed_object.h"
#include "kvcache/recipe.h"

namespace kvtier {

// Whether greedy decoding after the question gives exactly the expected ids. The question is fed
// first; if its next token is right, the answer is fed at once and every argmax is compared. That
// is the same as decoding step by step: a greedy decoder feeds the expected ids until its first
// wrong one, and one wrong id decides. Resets the decoder.
absl::StatusOr<bool> AnswersExactly(Decoder& decoder, const PromptProfile& profile,
                                    const Question& question);

// Questions that the plain dense decoder of compressor/dense_reference.h answers exactly from the
// whole cache: another code path than everything else here. Each thread reads the folder and the
// tokens (system prompt ++ context) for itself. `on_question` is called from any thread.
absl::StatusOr<uint32_t> CountFull(const std::string& model_folder, const PromptProfile& profile,
                                   std::span<const uint32_t> tokens,
                                   std::span<const Question> questions, int threads,
                                   const std::function<void()>& on_question);

// Rows of the longest question, wrapped, with its answer: what a decoder's tail must hold.
int64_t TailTokensMax(const PromptProfile& profile, std::span<const Question> questions);

struct ExactCount {
  uint32_t exact = 0;
  uint32_t by_kind[2] = {0, 0};  // Of QuestionKind.
  uint64_t bytes = 0;            // Encoded bytes of the bands that served.
};

// Holds the prefilled dense cache of the model's default system prompt and one context; KV rows are
// bf16. Thread-compatible. Does not own the model.
class Evaluation {
 public:
  using OnQuestion = std::function<void()>;  // Called from any thread after each question.

  // With `votes`, the prefill also counts them (compressor/attention_votes.h), which takes longer.
  // INVALID_ARGUMENT as Pipeline::Validate. RESOURCE_EXHAUSTED: no memory.
  static absl::StatusOr<std::unique_ptr<Evaluation>> Create(const Model& model,
                                                            std::span<const uint32_t> context,
                                                            AttentionVotes* votes = nullptr);

  // The context is used again for scoring and must stay alive.
  absl::StatusOr<ScoreTable> KvzipScores() const;
  // By another recipe that protects the system prompt, as ScoreByRecipe.
  absl::StatusOr<ScoreTable> RecipeScores(const Recipe& recipe, const RecipeInputs& inputs) const;
  ScoreTable RandomScores(uint64_t seed) const;
  // Fitted to one question (unwrapped ids), as compressor/baselines.h says.
  absl::StatusOr<ScoreTable> SnapKvScores(std::span<const uint32_t> question_ids) const;

  // The votes of one question's rows (unwrapped ids) on the context.
  absl::StatusOr<AttentionVotes> QuestionVotes(std::span<const uint32_t> question_ids) const;

  // The cache that a method keeps at each default band edge, its rows encoded by `codec`.
  absl::StatusOr<CompressedObject> Pack(const ScoreTable& scores,
                                        CodecId codec = CodecId::kRaw) const;
  // The bands of `object` that serve `ratio`, as a worker reads them. NOT_FOUND: no band edge
  // there.
  static absl::StatusOr<std::shared_ptr<const RaggedCache>> BandsOf(const CompressedObject& object,
                                                                    Ratio ratio);

  // Questions answered exactly from the bands that serve `ratio`.
  absl::StatusOr<ExactCount> CountExact(const CompressedObject& object, Ratio ratio,
                                        std::span<const Question> questions, int threads,
                                        const OnQuestion& on_question) const;

  const DenseCache& cache() const { return cache_; }
  const Model& model() const { return *model_; }
  uint64_t system_tokens() const { return identity_.system_tokens; }
  uint64_t context_tokens() const { return identity_.context_tokens; }

 private:
  Evaluation(const Model& model, std::span<const uint32_t> context, DenseCache cache,
             Manifest identity);

  const Model* model_;
  std::span<const uint32_t> context_;
  DenseCache cache_;
  Manifest identity_;
};

}  // namespace kvtier

#endif  // KVTIER_BENCH_EVALUATION_H_
