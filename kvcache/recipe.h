// How a cache was scored, selected and encoded: the part of a key and a manifest that says which
// rows an object keeps and why (docs/recipes.md). One canonical text per recipe.
//
//   recipe = scorer "/" version *( ";" option )
//   option = "scores=" 64 hexadecimal digits     recipe head only, and always there
//          | "rect=layer" | "rect=object"        cut down to a rectangle by re-banding
//          | "codec=" row codec                  absent for raw
//
// Options come in this order, each at most once. "kvzip/1", "head/1;scores=6b86...", "kvzip+/1".
// Immutable values; any thread may call.
#ifndef KVTIER_KVCACHE_RECIPE_H_
#define KVTIER_KVCACHE_RECIPE_H_

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "kvcache/codec_id.h"
#include "kvcache/ids.h"
#include "kvcache/selection.h"

namespace kvtier {

enum class Scorer { kKvzip, kKvpress, kKvzipPlus, kUniform, kHead, kFullSoftmax };
// "kvzip", "kvpress", "kvzip+", "uniform", "head", "full-softmax"
absl::string_view ScorerName(Scorer scorer);
// All of them, for messages and help: "kvzip, kvpress, ...".
std::string ScorerNames();

// The same number of rows in every head of a layer, or of the whole object: what an engine whose
// cache is a plain tensor can load. Cut from a stored object (compressor/rebanding.h), never
// computed, hence not to be asked of a compressor.
enum class Rectangle { kNone, kLayer, kObject };

struct Recipe {
  Scorer scorer = Scorer::kKvzip;
  // Changes whenever the same tokens would get other scores or another order. Chunk length and
  // prompts are not part of it: the prompt profile's digest covers them.
  uint32_t version = 1;
  // SHA-256 of the file of head scores; all zero unless the scorer is kHead.
  Digest head_scores;
  Rectangle rectangle = Rectangle::kNone;  // Only of scorers whose rule is kExact.
  // How rows are encoded. Anything but "raw" loses precision, hence its place here.
  CodecId row_codec = CodecId::kRaw;

  // Reads canonical text and nothing else: Parse(text)->ToString() == text.
  // INVALID_ARGUMENT naming the text and what is known.
  static absl::StatusOr<Recipe> Parse(absl::string_view text);
  // Reads what a person writes: as Parse, but without "/version" the newest one is meant, and
  // recipe head may leave the digest open (all zero), since the server fills it in.
  // Rectangles are refused.
  static absl::StatusOr<Recipe> ParseRequest(absl::string_view text);
  std::string ToString() const;

  SelectionRule selection() const;
  // False for recipe head, whose scores do not depend on the context.
  bool repeats_context() const { return scorer != Scorer::kHead; }
  friend bool operator==(const Recipe&, const Recipe&) = default;
};

// The rule by which the row counts of a manifest with this recipe text are checked. Texts that
// Parse refuses (other producers, later versions, opaque pages) are held to kExact.
SelectionRule SelectionOfRecipe(absl::string_view text);
// The codec that every segment of a manifest with this recipe text has; kRaw for such texts.
CodecId CodecOfRecipe(absl::string_view text);

}  // namespace kvtier

#endif  // KVTIER_KVCACHE_RECIPE_H_
