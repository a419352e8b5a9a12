#include "bench/quality/document_run.h"

#include <algorithm>
#include <map>
#include <memory>
#include <optional>
#include <utility>

#include "absl/status/status.h"
#include "base/status_macros.h"
#include "bench/quality/asker.h"
#include "bench/quality/document_state.h"
#include "bench/quality/ranked_rows.h"
#include "compressor/decoder.h"
#include "compressor/dense_spans.h"
#include "kvcache/codec_id.h"
#include "kvcache/ragged_view.h"

namespace kvtier {
namespace {

// Where the codecs are compared.
constexpr uint32_t kCodecMillionths = 300'000;

using Bits = std::vector<uint8_t>;  // [samples] 0 or 1

// The questions of one document as ids: [samples][hops].
struct Asked {
  std::vector<std::vector<AskedIds>> samples;
  int64_t rows_max = 1;
};

absl::StatusOr<Asked> Encode(const PromptProfile& profile, const TaskDocument& document) {
  if (!profile.byte_vocabulary.has_value()) {
    return absl::InvalidArgumentError("the model's prompt profile declares no byte vocabulary");
  }
  Asked asked;
  for (const Sample& sample : document.samples) {
    std::vector<AskedIds>& hops = asked.samples.emplace_back();
    for (const Hop& hop : sample.hops) {
      hops.push_back({profile.WrapQuery(profile.byte_vocabulary->Encode(hop.question)),
                      profile.byte_vocabulary->Encode(hop.answer)});
      const size_t rows = hops.back().question.size() + hops.back().answer.size();
      asked.rows_max = std::max(asked.rows_max, static_cast<int64_t>(rows));
    }
  }
  return asked;
}

class DocumentRun {
 public:
  DocumentRun(const DocumentPlan& plan, DocumentState& state, const Asked& asked, Asker& asker)
      : plan_(plan), state_(state), asked_(asked), asker_(asker) {}

  absl::StatusOr<std::vector<Cell>> Run() {
    KVTIER_RETURN_IF_ERROR(AskFull());
    for (const Method* method : plan_.methods) {
      if (method->fitted) {
        KVTIER_RETURN_IF_ERROR(AskFitted(*method));
      } else {
        KVTIER_RETURN_IF_ERROR(AskUnfitted(*method));
      }
      if (absl::string_view(method->name) == "kvzip") KVTIER_RETURN_IF_ERROR(AskStored());
    }
    return std::move(cells_);
  }

 private:
  int64_t first_position() const { return state_.evaluation().cache().length(); }
  // The last edge keeps everything and is not asked again.
  uint32_t evicting_edges() const { return plan_.edges.size() - 1; }
  Backend& backend() const { return plan_.model.backend(); }

  void AddCell(absl::string_view method, Ratio ratio, Setting setting, Origin origin, Bits right) {
    Cell& cell = cells_.emplace_back();
    cell.method = std::string(method);
    cell.ratio = ratio;
    cell.setting = setting;
    cell.origin = origin;
    cell.right = std::move(right);
  }

  uint32_t first_edge(const Method& method) const {
    uint32_t edge = 0;
    while (edge < evicting_edges() &&
           plan_.edges.edge(BandIndex(edge)).ToDouble() < method.ratio_min) {
      ++edge;
    }
    return edge;
  }

  // Every method's cells of one setting; `right` is [edges][samples].
  void AddCells(const Method& method, Setting setting, const std::vector<Bits>& right) {
    for (uint32_t e = first_edge(method); e < evicting_edges(); ++e) {
      AddCell(method.name, plan_.edges.edge(BandIndex(e)), setting, Origin::kSelected, right[e]);
    }
    AddCell(method.name, Ratio(), setting, Origin::kFull, full_);
  }

  absl::StatusOr<bool> AnswersAll(const std::vector<AskedIds>& hops, const LayerSpans& spans) {
    for (const AskedIds& hop : hops) {
      KVTIER_ASSIGN_OR_RETURN(const bool right, asker_.Answers(hop, spans, first_position()));
      if (!right) return false;
    }
    return true;
  }

  absl::Status AskFull() {
    const DenseSpans dense(state_.evaluation().cache());
    const LayerSpans spans = [&dense](int64_t layer) { return dense.layer(layer); };
    for (const auto& hops : asked_.samples) {
      KVTIER_ASSIGN_OR_RETURN(const bool right, AnswersAll(hops, spans));
      full_.push_back(right);
    }
    for (Setting setting : {Setting::kPerQuery, Setting::kShared}) {
      AddCell("full", Ratio(), setting, Origin::kFull, full_);
    }
    return absl::OkStatus();
  }

  absl::Status Select(const Method& method, const AttentionVotes* question) {
    KVTIER_ASSIGN_OR_RETURN(const BandAssignment assignment,
                            method.assign(state_, question, plan_.edges));
    return rows_.Fill(backend(), state_.evaluation().cache(), state_.evaluation().system_tokens(),
                      assignment.band, plan_.edges.size());
  }

  // All samples at all ratios from one selection: [edges][samples], empty where not asked.
  absl::StatusOr<std::vector<Bits>> AskOneCache(const Method& method,
                                                const AttentionVotes* question) {
    KVTIER_RETURN_IF_ERROR(Select(method, question));
    std::vector<Bits> right(plan_.edges.size());
    for (uint32_t e = first_edge(method); e < evicting_edges(); ++e) {
      const LayerSpans spans = rows_.At(e);
      for (const auto& hops : asked_.samples) {
        KVTIER_ASSIGN_OR_RETURN(const bool one, AnswersAll(hops, spans));
        right[e].push_back(one);
      }
    }
    return right;
  }

  absl::Status AskUnfitted(const Method& method) {
    KVTIER_ASSIGN_OR_RETURN(const std::vector<Bits> right, AskOneCache(method, nullptr));
    AddCells(method, Setting::kPerQuery, right);
    AddCells(method, Setting::kShared, right);
    return absl::OkStatus();
  }

  absl::Status AskFitted(const Method& method) {
    // Each hop is a question of its own and has a cache of its own.
    std::vector<Bits> right(plan_.edges.size(), Bits(asked_.samples.size(), 1));
    for (size_t s = 0; s < asked_.samples.size(); ++s) {
      for (size_t h = 0; h < asked_.samples[s].size(); ++h) {
        KVTIER_ASSIGN_OR_RETURN(const bool some, AskOneHop(method, s, h, right));
        if (!some) break;  // No ratio can still answer the whole sample.
      }
    }
    AddCells(method, Setting::kPerQuery, right);
    KVTIER_ASSIGN_OR_RETURN(const AttentionVotes* first, VotesOf(0, 0));
    KVTIER_ASSIGN_OR_RETURN(const std::vector<Bits> shared, AskOneCache(method, first));
    AddCells(method, Setting::kShared, shared);
    return absl::OkStatus();
  }

  // KVzip again, through objects packed at the default band edges: without loss wherever a ratio is
  // such an edge, and with each lossy codec at the ratio that people use.
  absl::Status AskStored() {
    KVTIER_ASSIGN_OR_RETURN(const ScoreTable* scores, state_.Scores(Scorer::kKvzip));
    const BandEdges stored = BandEdges::Default();
    for (CodecId codec : {CodecId::kRaw, CodecId::kInt8, CodecId::kInt4}) {
      KVTIER_ASSIGN_OR_RETURN(const CompressedObject object,
                              state_.evaluation().Pack(*scores, codec));
      for (const Ratio edge : stored.edges()) {
        const auto asked = plan_.edges.edges();
        if (std::find(asked.begin(), asked.end(), edge) == asked.end()) continue;
        if (codec != CodecId::kRaw && edge.millionths() != kCodecMillionths) continue;
        KVTIER_ASSIGN_OR_RETURN(const auto cache, Evaluation::BandsOf(object, edge));
        KVTIER_ASSIGN_OR_RETURN(const Bits right, AskBands(*cache));
        for (Setting setting : {Setting::kPerQuery, Setting::kShared}) {
          AddCell("kvzip", edge, setting, Origin::kBands, right);
          cells_.back().codec = std::string(CodecName(codec));
        }
      }
    }
    return absl::OkStatus();
  }

  // All samples from the bands of an object: [samples].
  absl::StatusOr<Bits> AskBands(const RaggedCache& cache) {
    std::vector<HeadSpans> layers(cache.geometry().layer_count());
    for (uint32_t l = 0; l < layers.size(); ++l) {
      for (uint32_t h = 0; h < cache.geometry().kv_heads; ++h) {
        layers[l].push_back(cache.spans(LayerIndex(l), h));
      }
    }
    const LayerSpans spans = [&layers](int64_t layer) { return &layers[layer]; };
    Bits right;
    for (const auto& hops : asked_.samples) {
      KVTIER_ASSIGN_OR_RETURN(const bool one, AnswersAll(hops, spans));
      right.push_back(one);
    }
    return right;
  }

  // Clears right[edge][sample] where the hop is answered wrongly; false if that leaves none.
  absl::StatusOr<bool> AskOneHop(const Method& method, size_t s, size_t h,
                                 std::vector<Bits>& right) {
    KVTIER_ASSIGN_OR_RETURN(const AttentionVotes* votes, VotesOf(s, h));
    KVTIER_RETURN_IF_ERROR(Select(method, votes));
    bool some = false;
    for (uint32_t e = first_edge(method); e < evicting_edges(); ++e) {
      if (right[e][s] == 0) continue;
      KVTIER_ASSIGN_OR_RETURN(const bool one,
                              asker_.Answers(asked_.samples[s][h], rows_.At(e), first_position()));
      right[e][s] = one;
      some = some || one;
    }
    return some;
  }

  // Of one question, counted once for all methods.
  absl::StatusOr<const AttentionVotes*> VotesOf(size_t s, size_t h) {
    std::optional<AttentionVotes>& votes = votes_[{s, h}];
    if (!votes.has_value()) {
      const Evaluation& evaluation = state_.evaluation();
      const std::vector<uint32_t>& question = asked_.samples[s][h].question;
      KVTIER_ASSIGN_OR_RETURN(
          ForwardScratch scratch,
          ForwardScratch::Create(plan_.model, static_cast<int64_t>(question.size())));
      KVTIER_ASSIGN_OR_RETURN(votes, QuestionVotes(plan_.model, evaluation.cache(),
                                                   static_cast<int64_t>(evaluation.system_tokens()),
                                                   question, scratch));
    }
    return &*votes;
  }

  const DocumentPlan& plan_;
  DocumentState& state_;
  const Asked& asked_;
  Asker& asker_;
  RankedRows rows_;
  std::map<std::pair<size_t, size_t>, std::optional<AttentionVotes>> votes_;  // By sample, hop.
  Bits full_;
  std::vector<Cell> cells_;
};

}  // namespace

absl::StatusOr<DocumentAnswers> AskDocument(const DocumentPlan& plan,
                                            const TaskDocument& document) {
  const PromptProfile& profile = plan.model.profile();
  KVTIER_ASSIGN_OR_RETURN(const Asked asked, Encode(profile, document));
  KVTIER_ASSIGN_OR_RETURN(const std::unique_ptr<DocumentState> state,
                          DocumentState::Create(plan.model, plan.inputs,
                                                profile.byte_vocabulary->Encode(document.text)));
  KVTIER_ASSIGN_OR_RETURN(
      const std::unique_ptr<Asker> asker,
      Asker::Create(plan.model, state->evaluation().cache().geometry(), asked.rows_max));
  DocumentAnswers answers;
  KVTIER_ASSIGN_OR_RETURN(answers.cells, DocumentRun(plan, *state, asked, *asker).Run());
  for (const Sample& sample : document.samples) answers.depth.push_back(sample.depth);
  return answers;
}

}  // namespace kvtier
