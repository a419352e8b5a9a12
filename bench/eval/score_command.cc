// kvtier-eval score: one context's scores and what they keep, in a file that other programs can
// read (docs/recipes.md lists its tensors).
#include <iostream>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "absl/flags/flag.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "base/bytes.h"
#include "base/status_macros.h"
#include "bench/eval/command.h"
#include "bench/eval/command_line.h"
#include "bench/eval/context_scores.h"
#include "compressor/rule_ranking.h"
#include "compressor/safetensors_writer.h"

ABSL_FLAG(std::string, recipe, "kvzip", "score: the recipe to score and select by");
ABSL_FLAG(double, ratio, 0.3, "score: kept fraction, in (0, 1]");

namespace kvtier {
namespace {

// Which pairs are kept at `ratio`, and the threshold of the last of them.
struct Selection {
  std::vector<uint8_t> kept;  // As the table's scores; 1 is kept.
  uint64_t count = 0;
  float threshold = 0;
};

absl::StatusOr<Selection> Select(const ScoredContext& scored, Ratio ratio, bool system_prompt) {
  std::vector<Ratio> edges = {ratio};
  if (ratio != Ratio()) edges.emplace_back();
  KVTIER_ASSIGN_OR_RETURN(const BandEdges bands, BandEdges::Create(edges));
  KVTIER_ASSIGN_OR_RETURN(
      const BandAssignment assignment,
      AssignBandsByRule(scored.scores, bands, scored.recipe.selection(), system_prompt));
  Selection selection;
  selection.kept.reserve(assignment.band.size());
  for (const uint8_t band : assignment.band) {
    selection.kept.push_back(band == 0 ? 1 : 0);
    selection.count += band == 0 ? 1 : 0;
  }
  selection.threshold = assignment.thresholds[0];
  return selection;
}

std::string ScoredLayers(const Geometry& geometry) {
  std::string layers;
  for (uint32_t layer = 0; layer < geometry.layer_count(); ++layer) {
    if (geometry.layers[layer] != LayerKind::kGlobal) continue;
    absl::StrAppend(&layers, layers.empty() ? "" : ",", layer);
  }
  return layers;
}

}  // namespace

absl::Status ScoreCommand() {
  const std::string out = absl::GetFlag(FLAGS_out);
  if (out.empty()) return absl::InvalidArgumentError("--out is missing");
  KVTIER_ASSIGN_OR_RETURN(const Ratio ratio, Ratio::FromDouble(absl::GetFlag(FLAGS_ratio)));
  KVTIER_ASSIGN_OR_RETURN(const ContextScores inputs, LoadContextScores());
  if (inputs.contexts.size() != 1) {
    return absl::InvalidArgumentError("--token_ids: one file, not several");
  }
  Progress progress;
  KVTIER_ASSIGN_OR_RETURN(const ScoredContext scored,
                          ScoreOneContext(inputs, 0, absl::GetFlag(FLAGS_recipe), progress));
  const Model& model = *inputs.model;
  const uint64_t system_tokens =
      inputs.system.has_value() ? inputs.system->size() : model.profile().prefix.size();
  KVTIER_ASSIGN_OR_RETURN(const Selection selection, Select(scored, ratio, system_tokens > 0));

  const ScoreTable& table = scored.scores;
  const double kept_ratio =
      static_cast<double>(selection.count) / static_cast<double>(table.pairs());
  const std::vector<int64_t> shape = {table.layers, table.kv_heads,
                                      static_cast<int64_t>(table.tokens)};
  const std::map<std::string, SafetensorsEntry> tensors = {
      {"log_scores",
       {.dtype = "F32",
        .shape = shape,
        .bytes = AsBytes(std::span<const float>(table.log_scores))}},
      {"kept",
       {.dtype = "U8", .shape = shape, .bytes = AsBytes(std::span<const uint8_t>(selection.kept))}},
      {"last_logits",
       {.dtype = "F32",
        .shape = {static_cast<int64_t>(scored.last_logits.size())},
        .bytes = AsBytes(std::span<const float>(scored.last_logits))}}};
  const Geometry geometry = model.config().MakeGeometry(inputs.options.kv_dtype);
  const std::map<std::string, std::string> metadata = {
      {"format", "kvtier-scores/1"},
      {"recipe", scored.recipe.ToString()},
      {"ratio", ratio.ToString()},
      {"kept_pairs", absl::StrCat(selection.count)},
      {"pairs", absl::StrCat(table.pairs())},
      {"kept_ratio", absl::StrFormat("%.9f", kept_ratio)},
      {"threshold", absl::StrFormat("%.9g", selection.threshold)},
      {"first_position", absl::StrCat(scored.first_position)},
      {"system_tokens", absl::StrCat(system_tokens)},
      {"context_tokens", absl::StrCat(inputs.contexts[0].size())},
      {"scored_layers", ScoredLayers(geometry)},
      {"kv_dtype", std::string(DTypeName(inputs.options.kv_dtype))},
      {"model", model.name()},
      {"model_digest", model.digest().ToHex()},
      {"prompt_profile_digest", model.profile().ComputeDigest().ToHex()}};
  KVTIER_RETURN_IF_ERROR(WriteSafetensors(out, tensors, metadata));
  std::cout << absl::StrFormat(
      "%s: %d of %d pairs kept (%.6f), threshold %.6g, in %d layers x %d heads x %d tokens\n",
      scored.recipe.ToString(), selection.count, table.pairs(), kept_ratio, selection.threshold,
      table.layers, table.kv_heads, table.tokens);
  return absl::OkStatus();
}

}  // namespace kvtier
