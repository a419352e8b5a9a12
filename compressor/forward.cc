#include "compressor/forward.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "compressor/activations.h"

namespace kvtier {
namespace {

// Rows that pass through an MLP at once: enough for products at full rate. Activations of 16 bits
// are a device's, where the narrowest product then has tiles for every multiprocessor.
int64_t MlpRows(DType activation) { return activation == DType::kF32 ? 256 : 1024; }

absl::Status Check(const Model& model, std::span<const uint32_t> ids, const ForwardPlan& plan,
                   const ForwardScratch& scratch, std::span<float> logits, bool all_logits) {
  const ModelConfig& config = model.config();
  const int64_t rows = static_cast<int64_t>(ids.size());
  const auto bad = [](auto... parts) {
    return absl::InvalidArgumentError(absl::StrCat("forward: ", parts...));
  };
  if (rows == 0) return bad("no tokens");
  if (rows > scratch.rows_max()) return bad(rows, " rows, scratch for ", scratch.rows_max());
  for (size_t i = 0; i < ids.size(); ++i) {
    if (ids[i] >= config.vocabulary) {
      return bad("id ", ids[i], " at index ", i, ", vocabulary ", config.vocabulary);
    }
  }
  if (plan.first_position < 0 || rows > config.positions_max - plan.first_position) {
    return bad("positions [", plan.first_position, ", ", plan.first_position + rows,
               "), the model has ", config.positions_max);
  }
  if (plan.tail == nullptr) return bad("no tail");
  if (rows > plan.tail->capacity() - plan.tail->length()) {
    return bad(rows, " rows, the tail has room for ", plan.tail->capacity() - plan.tail->length());
  }
  const Geometry& geometry = plan.tail->geometry();
  if (geometry.layer_count() != config.layers || geometry.kv_heads != config.kv_heads ||
      geometry.head_dim != config.head_dim) {
    return bad("the tail is of another model");
  }
  const bool wants_logits = !logits.empty() || all_logits;
  if (!logits.empty() && static_cast<int64_t>(logits.size()) != config.vocabulary) {
    return bad("room for ", logits.size(), " logits, vocabulary ", config.vocabulary);
  }
  if (wants_logits && plan.stop_after_last_queries) return bad("logits of a pass that stops early");
  return absl::OkStatus();
}

// x += bias, or x = its heads after their norm; neither where the family has none.
absl::Status AddBias(Backend& backend, TensorView x, const Tensor& bias) {
  return bias.rows() == 0 ? absl::OkStatus() : backend.AddInPlace(x, bias);
}
absl::Status NormHeads(Backend& backend, TensorView x, const Tensor& weight, float epsilon) {
  if (weight.rows() == 0) return absl::OkStatus();
  TensorView heads = x;  // [rows * heads, head_dim]
  heads.cols = weight.cols();
  heads.rows = x.rows * x.cols / heads.cols;
  return backend.RmsNorm(heads, weight, epsilon, heads);
}

// The layer's queries, and its new keys and values in the tail.
absl::Status ProjectAndAppend(const Model& model, TokenOps& tokens, int64_t layer, int64_t rows,
                              ForwardScratch& s) {
  Backend& backend = model.backend();
  const ModelConfig& config = model.config();
  const LayerWeights& w = model.layer(layer);
  const RopeTable& rope = model.rope(layer);
  const auto head = [rows](const Tensor& t) { return TensorView(t).Rows(0, rows); };
  KVTIER_RETURN_IF_ERROR(
      backend.RmsNorm(head(s.x), w.attention_norm, config.rms_epsilon, head(s.normed)));
  KVTIER_RETURN_IF_ERROR(tokens.Linear(head(s.normed), *w.q, head(s.q)));
  KVTIER_RETURN_IF_ERROR(tokens.Linear(head(s.normed), *w.k, head(s.k)));
  KVTIER_RETURN_IF_ERROR(tokens.Linear(head(s.normed), *w.v, head(s.v)));
  KVTIER_RETURN_IF_ERROR(AddBias(backend, head(s.q), w.q_bias));
  KVTIER_RETURN_IF_ERROR(AddBias(backend, head(s.k), w.k_bias));
  KVTIER_RETURN_IF_ERROR(AddBias(backend, head(s.v), w.v_bias));
  KVTIER_RETURN_IF_ERROR(NormHeads(backend, head(s.q), w.q_norm, config.rms_epsilon));
  KVTIER_RETURN_IF_ERROR(NormHeads(backend, head(s.k), w.k_norm, config.rms_epsilon));
  KVTIER_RETURN_IF_ERROR(tokens.Rope(head(s.q), config.q_heads, rope));
  KVTIER_RETURN_IF_ERROR(tokens.Rope(head(s.k), config.kv_heads, rope));
  return tokens.AppendKv(layer, head(s.k), head(s.v));
}

// x += projected, after a norm of its own where the family has one.
absl::Status AddProjected(Backend& backend, TensorView projected, const Tensor& norm, float epsilon,
                          TensorView x) {
  if (norm.rows() > 0) {
    KVTIER_RETURN_IF_ERROR(backend.RmsNorm(projected, norm, epsilon, projected));
  }
  return backend.AddInPlace(x, projected);
}

// The layer behind its queries: attention, output projection, MLP, both residuals.
absl::Status AttendAndMix(const Model& model, TokenOps& tokens, int64_t layer, int64_t rows,
                          ForwardScratch& s) {
  Backend& backend = model.backend();
  const ModelConfig& config = model.config();
  const LayerWeights& w = model.layer(layer);
  const float epsilon = config.rms_epsilon;
  const auto head = [rows](const Tensor& t) { return TensorView(t).Rows(0, rows); };
  KVTIER_RETURN_IF_ERROR(tokens.Attention(layer, head(s.q), head(s.attended)));
  // What was normed has been used: projections of the layer go there.
  KVTIER_RETURN_IF_ERROR(tokens.Linear(head(s.attended), *w.o, head(s.normed)));
  KVTIER_RETURN_IF_ERROR(
      AddProjected(backend, head(s.normed), w.attention_out_norm, epsilon, head(s.x)));
  // The widest activations exist for some rows at a time.
  for (int64_t begin = 0; begin < rows; begin += s.gate.rows()) {
    const int64_t count = std::min(rows - begin, s.gate.rows());
    const TensorView x = TensorView(s.x).Rows(begin, count);
    const TensorView normed = TensorView(s.normed).Rows(begin, count);
    const TensorView gate = TensorView(s.gate).Rows(0, count);
    const TensorView up = TensorView(s.up).Rows(0, count);
    KVTIER_RETURN_IF_ERROR(backend.RmsNorm(x, w.mlp_norm, epsilon, normed));
    KVTIER_RETURN_IF_ERROR(tokens.Linear(normed, *w.gate, gate));
    KVTIER_RETURN_IF_ERROR(tokens.Linear(normed, *w.up, up));
    KVTIER_RETURN_IF_ERROR(backend.GateMul(config.activation(), gate, up, gate));
    KVTIER_RETURN_IF_ERROR(tokens.Linear(gate, *w.down, normed));
    KVTIER_RETURN_IF_ERROR(AddProjected(backend, normed, w.mlp_out_norm, epsilon, x));
  }
  return absl::OkStatus();
}

// Logits of as many rows as there is room for, from row `first` on. Only the rows whose logits are
// wanted go through the LM head, the widest layer of all.
absl::Status ComputeLogits(const Model& model, TokenOps& tokens, int64_t first, TensorView logits,
                           ForwardScratch& s) {
  const TensorView x = TensorView(s.x).Rows(first, logits.rows);
  const TensorView normed = TensorView(s.normed).Rows(first, logits.rows);
  KVTIER_RETURN_IF_ERROR(
      model.backend().RmsNorm(x, model.final_norm(), model.config().rms_epsilon, normed));
  return tokens.Linear(normed, model.lm_head(), logits);
}

// Tokens that the host names, at positions that it names, in a plan.
class PlannedTokens final : public TokenOps {
 public:
  PlannedTokens(const Model& model, std::span<const uint32_t> ids, const ForwardPlan& plan)
      : model_(model), backend_(model.backend()), ids_(ids), plan_(plan) {}

  absl::Status Embed(const TensorView& table, float scale, TensorView y) override {
    return backend_.Embed(ids_, table, scale, y);
  }
  absl::Status Linear(TensorView x, const LinearWeights& weights, TensorView y) override {
    return backend_.Linear(x, weights, y);
  }
  absl::Status Rope(TensorView x, int64_t heads, const RopeTable& table) override {
    return backend_.Rope(x, heads, table, plan_.first_position);
  }
  absl::Status AppendKv(int64_t layer, TensorView k, TensorView v) override {
    return backend_.AppendKv(k, v, plan_.tail->layer(layer), plan_.tail->length());
  }
  absl::Status Attention(int64_t layer, TensorView q, TensorView out) override {
    const KvLayerView tail = plan_.tail->layer(layer);
    return backend_.Attention({.q = q,
                               .spans = plan_.spans ? plan_.spans(layer) : nullptr,
                               .span_dtype = tail.dtype,
                               .tail = tail,
                               .tail_rows = plan_.tail->length() + q.rows,
                               .scale = model_.config().softmax_scale(),
                               .window = model_.config().layer_window(layer),
                               .out = out,
                               .readable_span_rows = plan_.readable_span_rows,
                               .odd_rows = plan_.odd_rows});
  }

 private:
  const Model& model_;
  Backend& backend_;
  const std::span<const uint32_t> ids_;
  const ForwardPlan& plan_;
};

}  // namespace

absl::StatusOr<ForwardScratch> ForwardScratch::Create(const Model& model, int64_t rows_max) {
  const ModelConfig& c = model.config();
  Backend& backend = model.backend();
  const DType dtype = backend.activation_dtype();
  ForwardScratch s;
  s.rows_max_ = rows_max;
  const int64_t q_width = c.q_heads * c.head_dim;
  const int64_t kv_width = c.kv_heads * c.head_dim;
  KVTIER_ASSIGN_OR_RETURN(s.x, backend.Allocate(dtype, rows_max, c.hidden));
  KVTIER_ASSIGN_OR_RETURN(s.normed, backend.Allocate(dtype, rows_max, c.hidden));
  KVTIER_ASSIGN_OR_RETURN(s.q, backend.Allocate(dtype, rows_max, q_width));
  KVTIER_ASSIGN_OR_RETURN(s.k, backend.Allocate(dtype, rows_max, kv_width));
  KVTIER_ASSIGN_OR_RETURN(s.v, backend.Allocate(dtype, rows_max, kv_width));
  KVTIER_ASSIGN_OR_RETURN(s.attended, backend.Allocate(dtype, rows_max, q_width));
  const int64_t mlp_rows = std::min(rows_max, MlpRows(dtype));
  KVTIER_ASSIGN_OR_RETURN(s.gate, backend.Allocate(dtype, mlp_rows, c.intermediate));
  KVTIER_ASSIGN_OR_RETURN(s.up, backend.Allocate(dtype, mlp_rows, c.intermediate));
  KVTIER_ASSIGN_OR_RETURN(s.logits, backend.Allocate(dtype, 1, c.vocabulary));
  return s;
}

uint64_t ForwardScratch::EstimateBytes(const ModelConfig& c, DType activation, int64_t rows_max) {
  const int64_t row = 2 * c.hidden + 2 * (c.q_heads + c.kv_heads) * c.head_dim;
  const int64_t mlp = 2 * c.intermediate * std::min(rows_max, MlpRows(activation));
  return static_cast<uint64_t>(rows_max * row + mlp + c.vocabulary) * DTypeBytes(activation);
}

absl::Status Forward(const Model& model, std::span<const uint32_t> ids, const ForwardPlan& plan,
                     ForwardScratch& scratch, std::span<float> logits,
                     std::vector<float>* all_logits) {
  KVTIER_RETURN_IF_ERROR(Check(model, ids, plan, scratch, logits, all_logits != nullptr));
  Backend& backend = model.backend();
  const ModelConfig& config = model.config();
  const int64_t rows = static_cast<int64_t>(ids.size());
  PlannedTokens tokens(model, ids, plan);

  KVTIER_RETURN_IF_ERROR(tokens.Embed(model.embedding(), config.embedding_scale(),
                                      TensorView(scratch.x).Rows(0, rows)));
  for (int64_t index = 0; index < config.layers; ++index) {
    KVTIER_RETURN_IF_ERROR(ProjectAndAppend(model, tokens, index, rows, scratch));
    if (plan.on_attention_input) {
      KVTIER_RETURN_IF_ERROR(
          plan.on_attention_input(index, TensorView(scratch.normed).Rows(0, rows)));
    }
    if (plan.on_queries) {
      KVTIER_RETURN_IF_ERROR(
          plan.on_queries(index, TensorView(scratch.q).Rows(0, rows), plan.tail->layer(index)));
    }
    if (plan.stop_after_last_queries && index + 1 == config.layers) break;
    KVTIER_RETURN_IF_ERROR(AttendAndMix(model, tokens, index, rows, scratch));
  }
  plan.tail->SetLength(plan.tail->length() + rows);
  if (logits.empty() && all_logits == nullptr) return absl::OkStatus();

  if (all_logits != nullptr) {
    KVTIER_ASSIGN_OR_RETURN(Tensor all,
                            backend.Allocate(backend.activation_dtype(), rows, config.vocabulary));
    KVTIER_RETURN_IF_ERROR(ComputeLogits(model, tokens, 0, all, scratch));
    all_logits->resize(static_cast<size_t>(rows * config.vocabulary));
    KVTIER_RETURN_IF_ERROR(DownloadFloats(backend, all, *all_logits));
    if (!logits.empty()) {
      std::copy(all_logits->end() - config.vocabulary, all_logits->end(), logits.begin());
    }
    return absl::OkStatus();
  }
  KVTIER_RETURN_IF_ERROR(ComputeLogits(model, tokens, rows - 1, scratch.logits, scratch));
  return DownloadFloats(backend, scratch.logits, logits);
}

absl::Status ForwardStep(const Model& model, TokenOps& step, ForwardScratch& scratch) {
  const ModelConfig& config = model.config();
  KVTIER_RETURN_IF_ERROR(
      step.Embed(model.embedding(), config.embedding_scale(), TensorView(scratch.x).Rows(0, 1)));
  for (int64_t layer = 0; layer < config.layers; ++layer) {
    KVTIER_RETURN_IF_ERROR(ProjectAndAppend(model, step, layer, 1, scratch));
    KVTIER_RETURN_IF_ERROR(AttendAndMix(model, step, layer, 1, scratch));
  }
  return ComputeLogits(model, step, 0, scratch.logits, scratch);
}

absl::Status Prefill(const Model& model, std::span<const uint32_t> ids, DenseCache& cache,
                     ForwardScratch& scratch,
                     const std::function<absl::Status(int64_t done)>& on_piece) {
  const size_t piece = static_cast<size_t>(scratch.rows_max());
  for (size_t begin = 0; begin < ids.size(); begin += piece) {
    const size_t rows = std::min(piece, ids.size() - begin);
    const ForwardPlan plan{.tail = &cache, .first_position = cache.length()};
    KVTIER_RETURN_IF_ERROR(Forward(model, ids.subspan(begin, rows), plan, scratch, {}));
    model.CountPrefilled(rows);
    if (on_piece) KVTIER_RETURN_IF_ERROR(on_piece(static_cast<int64_t>(begin + rows)));
  }
  return absl::OkStatus();
}

}  // namespace kvtier
