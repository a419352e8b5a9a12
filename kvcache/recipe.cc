#include "kvcache/recipe.h"

#include <algorithm>
#include <array>
#include <span>
#include <utility>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "base/log.h"
#include "base/status_macros.h"

namespace kvtier {
namespace {

struct KnownScorer {
  Scorer scorer;
  absl::string_view name;
  uint32_t version;  // The only one this build computes.
  SelectionRule selection;
};

constexpr std::array<KnownScorer, 6> kScorers = {{
    {Scorer::kKvzip, "kvzip", 1, SelectionRule::kExact},
    {Scorer::kKvpress, "kvpress", 1, SelectionRule::kKvpress},
    {Scorer::kKvzipPlus, "kvzip+", 1, SelectionRule::kExact},
    {Scorer::kUniform, "uniform", 1, SelectionRule::kPerHead},
    {Scorer::kHead, "head", 1, SelectionRule::kWholeHeads},
    {Scorer::kFullSoftmax, "full-softmax", 1, SelectionRule::kExact},
}};

constexpr absl::string_view kRectLayer = "rect=layer";
constexpr absl::string_view kRectObject = "rect=object";

const KnownScorer& Known(Scorer scorer) {
  const auto* known = std::find_if(kScorers.begin(), kScorers.end(),
                                   [scorer](const KnownScorer& k) { return k.scorer == scorer; });
  KVTIER_CHECK(known != kScorers.end()) << "scorer " << static_cast<int>(scorer);
  return *known;
}

enum class Form { kCanonical, kRequest };

template <typename... Parts>
absl::Status Refuse(absl::string_view text, const Parts&... parts) {
  return absl::InvalidArgumentError(absl::StrCat("recipe \"", text, "\": ", parts...));
}

absl::Status ReadScorer(absl::string_view text, absl::string_view part, Form form, Recipe& recipe) {
  const size_t slash = part.find('/');
  const absl::string_view name = part.substr(0, slash);
  const auto* known = std::find_if(kScorers.begin(), kScorers.end(),
                                   [name](const KnownScorer& k) { return k.name == name; });
  if (known == kScorers.end()) {
    return Refuse(text, "unknown scorer; this build knows: ", ScorerNames());
  }
  recipe.scorer = known->scorer;
  recipe.version = known->version;
  if (slash == absl::string_view::npos) {
    if (form == Form::kRequest) return absl::OkStatus();
    return Refuse(text, "no version; this build knows ", name, "/", known->version);
  }
  if (part.substr(slash + 1) != absl::StrCat(known->version)) {
    return Refuse(text, "unknown version; this build knows ", name, "/", known->version);
  }
  return absl::OkStatus();
}

absl::Status ReadOption(absl::string_view text, absl::string_view option, Recipe& recipe) {
  absl::string_view value = option;
  if (absl::ConsumePrefix(&value, "scores=")) {
    if (recipe.scorer != Scorer::kHead) return Refuse(text, "only head has scores of its own");
    const absl::StatusOr<Digest> digest = Digest::FromHex(value);
    if (!digest.ok() || digest->IsZero() || digest->ToHex() != value) {
      return Refuse(text, "scores= takes the file's SHA-256, 64 small hexadecimal digits");
    }
    recipe.head_scores = *digest;
    return absl::OkStatus();
  }
  if (option == kRectLayer || option == kRectObject) {
    if (Known(recipe.scorer).selection != SelectionRule::kExact) {
      return Refuse(text, "a rectangle is cut from one order over all heads, which ",
                    ScorerName(recipe.scorer), " does not have");
    }
    recipe.rectangle = option == kRectLayer ? Rectangle::kLayer : Rectangle::kObject;
    return absl::OkStatus();
  }
  if (absl::ConsumePrefix(&value, "codec=")) {
    const absl::StatusOr<CodecId> codec = CodecFromName(value);
    if (!codec.ok()) return Refuse(text, codec.status().message());
    recipe.row_codec = *codec;
    return absl::OkStatus();
  }
  return Refuse(text, "unknown option \"", option,
                "\"; there are: scores=, rect=layer, rect=object, codec=");
}

absl::StatusOr<Recipe> Read(absl::string_view text, Form form) {
  const std::vector<absl::string_view> parts = absl::StrSplit(text, ';');
  Recipe recipe;
  KVTIER_RETURN_IF_ERROR(ReadScorer(text, parts[0], form, recipe));
  for (const absl::string_view option : std::span(parts).subspan(1)) {
    KVTIER_RETURN_IF_ERROR(ReadOption(text, option, recipe));
  }
  if (form == Form::kRequest) {
    if (recipe.rectangle == Rectangle::kNone) return recipe;
    return Refuse(text, "a rectangle is cut from a stored object: compress without rect=, re-band");
  }
  if (recipe.scorer == Scorer::kHead && recipe.head_scores.IsZero()) {
    return Refuse(text, "no scores=, the SHA-256 of the file of head scores");
  }
  // Options out of order, twice, or spelt out though they are the default.
  if (recipe.ToString() != text) {
    return Refuse(text, "not canonical, that is \"", recipe.ToString(), "\"");
  }
  return recipe;
}

}  // namespace

absl::string_view ScorerName(Scorer scorer) { return Known(scorer).name; }

std::string ScorerNames() {
  return absl::StrJoin(kScorers, ", ", [](std::string* out, const KnownScorer& known) {
    absl::StrAppend(out, known.name);
  });
}

absl::StatusOr<Recipe> Recipe::Parse(absl::string_view text) {
  return Read(text, Form::kCanonical);
}

absl::StatusOr<Recipe> Recipe::ParseRequest(absl::string_view text) {
  return Read(text, Form::kRequest);
}

std::string Recipe::ToString() const {
  std::string text = absl::StrCat(ScorerName(scorer), "/", version);
  if (!head_scores.IsZero()) absl::StrAppend(&text, ";scores=", head_scores.ToHex());
  if (rectangle == Rectangle::kLayer) absl::StrAppend(&text, ";", kRectLayer);
  if (rectangle == Rectangle::kObject) absl::StrAppend(&text, ";", kRectObject);
  if (row_codec != CodecId::kRaw) absl::StrAppend(&text, ";codec=", CodecName(row_codec));
  return text;
}

SelectionRule Recipe::selection() const {
  switch (rectangle) {
    case Rectangle::kNone:
      return Known(scorer).selection;
    case Rectangle::kLayer:
      return SelectionRule::kPerLayer;
    case Rectangle::kObject:
      return SelectionRule::kPerHead;
  }
  KVTIER_CHECK(false) << "rectangle " << static_cast<int>(rectangle);
  return SelectionRule::kExact;
}

SelectionRule SelectionOfRecipe(absl::string_view text) {
  const absl::StatusOr<Recipe> recipe = Recipe::Parse(text);
  return recipe.ok() ? recipe->selection() : SelectionRule::kExact;
}

CodecId CodecOfRecipe(absl::string_view text) {
  const absl::StatusOr<Recipe> recipe = Recipe::Parse(text);
  return recipe.ok() ? recipe->row_codec : CodecId::kRaw;
}

}  // namespace kvtier
