#include "bench/evaluation.h"

#include <algorithm>
#include <atomic>
#include <thread>  // NOLINT(build/c++11)
#include <utility>

#include "base/mutex.h"
#include "base/status_macros.h"
#include "compressor/baselines.h"
#include "compressor/dense_reference.h"
#include "compressor/forward.h"
#include "compressor/packing.h"
#include "compressor/pipeline.h"
#include "compressor/sampler.h"
#include "compressor/scoring.h"
#include "kvcache/recipe.h"

namespace kvtier {
namespace {

constexpr int64_t kPrefillRows = 512;

// The same from the plain decoder, which takes question and answer at once.
absl::StatusOr<bool> AnswersExactlyBy(DenseReferenceDecoder& decoder, const PromptProfile& profile,
                                      const Question& question) {
  const std::vector<uint32_t>& answer = question.answer_ids;
  std::vector<uint32_t> ids = profile.WrapQuery(question.question_ids);
  const size_t asked = ids.size();
  ids.insert(ids.end(), answer.begin(), answer.end() - 1);
  KVTIER_ASSIGN_OR_RETURN(const std::vector<float> rows, decoder.Logits(ids));
  const size_t vocabulary = rows.size() / ids.size();
  for (size_t i = 0; i < answer.size(); ++i) {
    const std::span<const float> row(rows.data() + (asked - 1 + i) * vocabulary, vocabulary);
    if (Greedy(row) != answer[i]) return false;
  }
  return true;
}

// Whether a question is answered exactly; holds one thread's decoder.
using Answerer = std::function<absl::StatusOr<bool>(const Question&)>;

// Asks every question on `threads` threads, each with an answerer of its own.
absl::StatusOr<ExactCount> CountWith(std::span<const Question> questions, int threads,
                                     const Evaluation::OnQuestion& on_question,
                                     const std::function<absl::StatusOr<Answerer>()>& make) {
  ExactCount count;
  Mutex mutex;
  absl::Status failure;
  std::atomic<size_t> next{0};
  const auto work = [&]() -> absl::Status {
    KVTIER_ASSIGN_OR_RETURN(const auto answers_exactly, make());
    for (size_t i = next++; i < questions.size(); i = next++) {
      KVTIER_ASSIGN_OR_RETURN(const bool exact, answers_exactly(questions[i]));
      if (exact) {
        MutexLock lock(&mutex);
        ++count.exact;
        ++count.by_kind[static_cast<int>(questions[i].kind)];
      }
      if (on_question) on_question();
    }
    return absl::OkStatus();
  };
  const auto run = [&] {
    const absl::Status status = work();
    MutexLock lock(&mutex);
    failure.Update(status);
  };
  std::vector<std::thread> pool;
  for (int t = 1; t < threads; ++t) pool.emplace_back(run);
  run();
  for (std::thread& thread : pool) thread.join();
  KVTIER_RETURN_IF_ERROR(failure);
  return count;
}

}  // namespace

absl::StatusOr<bool> AnswersExactly(Decoder& decoder, const PromptProfile& profile,
                                    const Question& question) {
  const std::vector<uint32_t>& answer = question.answer_ids;
  decoder.Reset();
  KVTIER_ASSIGN_OR_RETURN(const std::span<const float> first,
                          decoder.Append(profile.WrapQuery(question.question_ids)));
  const size_t vocabulary = first.size();
  if (Greedy(first) != answer[0]) return false;
  if (answer.size() == 1) return true;
  // Row i holds the logits after answer[i].
  KVTIER_ASSIGN_OR_RETURN(const std::vector<float> rows,
                          decoder.AppendAllLogits(std::span(answer).first(answer.size() - 1)));
  for (size_t i = 0; i + 1 < answer.size(); ++i) {
    if (Greedy(std::span(rows).subspan(i * vocabulary, vocabulary)) != answer[i + 1]) return false;
  }
  return true;
}

absl::StatusOr<uint32_t> CountFull(const std::string& model_folder, const PromptProfile& profile,
                                   std::span<const uint32_t> tokens,
                                   std::span<const Question> questions, int threads,
                                   const std::function<void()>& on_question) {
  const auto make = [&]() -> absl::StatusOr<Answerer> {
    KVTIER_ASSIGN_OR_RETURN(std::shared_ptr<DenseReferenceDecoder> decoder,
                            DenseReferenceDecoder::Create(model_folder, DType::kBf16));
    KVTIER_RETURN_IF_ERROR(decoder->Prefill(tokens));
    return [&profile, decoder](const Question& question) {
      return AnswersExactlyBy(*decoder, profile, question);
    };
  };
  KVTIER_ASSIGN_OR_RETURN(const ExactCount count, CountWith(questions, threads, on_question, make));
  return count.exact;
}

int64_t TailTokensMax(const PromptProfile& profile, std::span<const Question> questions) {
  size_t tokens = 1;
  for (const Question& question : questions) {
    tokens = std::max(tokens,
                      profile.WrapQuery(question.question_ids).size() + question.answer_ids.size());
  }
  return static_cast<int64_t>(tokens);
}

absl::StatusOr<std::unique_ptr<Evaluation>> Evaluation::Create(const Model& model,
                                                               std::span<const uint32_t> context,
                                                               AttentionVotes* votes) {
  const Pipeline pipeline(model, {});
  CompressInput input;
  input.context = context;
  KVTIER_RETURN_IF_ERROR(pipeline.Validate(input));
  KVTIER_ASSIGN_OR_RETURN(const KeyDescriptorHead head, pipeline.DescribeKey(input));

  Manifest identity;
  KVTIER_ASSIGN_OR_RETURN(identity.key, ComputeKey(head, context));
  identity.upload_id = MakeUploadId();
  identity.model_name = model.name();
  identity.model_digest = head.model_digest;
  identity.recipe = "evaluation";  // Never stored: these objects live in this process only.
  identity.prompt_profile_digest = head.prompt_profile_digest;
  identity.geometry = model.config().MakeGeometry(head.kv_dtype);
  identity.system_tokens = head.system_token_ids.size();
  identity.context_tokens = context.size();

  std::vector<uint32_t> ids = head.system_token_ids;
  ids.insert(ids.end(), context.begin(), context.end());
  KVTIER_ASSIGN_OR_RETURN(DenseCache cache, DenseCache::Create(model.backend(), identity.geometry,
                                                               static_cast<int64_t>(ids.size())));
  KVTIER_ASSIGN_OR_RETURN(ForwardScratch scratch, ForwardScratch::Create(model, kPrefillRows));
  if (votes != nullptr) {
    KVTIER_ASSIGN_OR_RETURN(
        *votes,
        PrefillWithVotes(model, ids, static_cast<int64_t>(identity.system_tokens), cache, scratch));
  } else {
    KVTIER_RETURN_IF_ERROR(Prefill(model, ids, cache, scratch, nullptr));
  }
  return std::unique_ptr<Evaluation>(
      new Evaluation(model, context, std::move(cache), std::move(identity)));
}

Evaluation::Evaluation(const Model& model, std::span<const uint32_t> context, DenseCache cache,
                       Manifest identity)
    : model_(&model), context_(context), cache_(std::move(cache)), identity_(std::move(identity)) {}

absl::StatusOr<ScoreTable> Evaluation::KvzipScores() const { return RecipeScores({}, {}); }

absl::StatusOr<ScoreTable> Evaluation::RecipeScores(const Recipe& recipe,
                                                    const RecipeInputs& inputs) const {
  const auto rows = static_cast<int64_t>(model_->profile().RepeatRowsMax(context_.size()));
  KVTIER_ASSIGN_OR_RETURN(ForwardScratch scratch, ForwardScratch::Create(*model_, rows));
  return ReadScores(ScoreByRecipe(recipe, inputs, *model_, context_,
                                  static_cast<int64_t>(identity_.system_tokens), cache_, scratch,
                                  CancelToken(), nullptr));
}

ScoreTable Evaluation::RandomScores(uint64_t seed) const {
  return kvtier::RandomScores(identity_.geometry, context_.size(), seed);
}

absl::StatusOr<AttentionVotes> Evaluation::QuestionVotes(
    std::span<const uint32_t> question_ids) const {
  const std::vector<uint32_t> question = model_->profile().WrapQuery(question_ids);
  KVTIER_ASSIGN_OR_RETURN(ForwardScratch scratch,
                          ForwardScratch::Create(*model_, static_cast<int64_t>(question.size())));
  return kvtier::QuestionVotes(*model_, cache_, static_cast<int64_t>(identity_.system_tokens),
                               question, scratch);
}

absl::StatusOr<ScoreTable> Evaluation::SnapKvScores(std::span<const uint32_t> question_ids) const {
  KVTIER_ASSIGN_OR_RETURN(const AttentionVotes votes, QuestionVotes(question_ids));
  return kvtier::SnapKvScores(votes);
}

absl::StatusOr<CompressedObject> Evaluation::Pack(const ScoreTable& scores, CodecId codec) const {
  const BandEdges edges = BandEdges::Default();
  KVTIER_ASSIGN_OR_RETURN(
      const BandAssignment bands,
      AssignBands(scores, edges, /*first_token_first=*/identity_.system_tokens == 0));
  Manifest identity = identity_;
  if (codec != CodecId::kRaw) {  // Only a recipe can name a codec.
    Recipe recipe;
    recipe.row_codec = codec;
    identity.recipe = recipe.ToString();
  }
  return PackObject(model_->backend(), cache_, scores, bands, edges, identity);
}

absl::StatusOr<std::shared_ptr<const RaggedCache>> Evaluation::BandsOf(
    const CompressedObject& object, Ratio ratio) {
  const Manifest& manifest = *object.manifest;
  const std::vector<Ratio> edges = manifest.edges();
  KVTIER_ASSIGN_OR_RETURN(
      const uint32_t bands,
      ChooseBands(edges, static_cast<uint32_t>(edges.size()), ratio, /*min_ratio=*/ratio));
  const auto begin = object.segments.begin();
  return RaggedCache::Create(object.manifest, bands, HeadRange{0, manifest.geometry.kv_heads},
                             {begin, begin + uint64_t{bands} * manifest.geometry.layer_count()});
}

absl::StatusOr<ExactCount> Evaluation::CountExact(const CompressedObject& object, Ratio ratio,
                                                  std::span<const Question> questions, int threads,
                                                  const OnQuestion& on_question) const {
  KVTIER_ASSIGN_OR_RETURN(const std::shared_ptr<const RaggedCache> cache, BandsOf(object, ratio));
  const int64_t tail_tokens = TailTokensMax(model_->profile(), questions);
  const auto make = [&]() -> absl::StatusOr<Answerer> {
    KVTIER_ASSIGN_OR_RETURN(std::shared_ptr<Decoder> decoder,
                            Decoder::Create(*model_, cache, tail_tokens));
    return [this, decoder](const Question& question) {
      return AnswersExactly(*decoder, model_->profile(), question);
    };
  };
  KVTIER_ASSIGN_OR_RETURN(ExactCount count, CountWith(questions, threads, on_question, make));
  count.bytes = cache->bytes();
  return count;
}

}  // namespace kvtier
