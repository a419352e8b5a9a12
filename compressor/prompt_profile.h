// The token ids around a context (docs/checkpoints.md). Data, not code: made once per tokenizer,
// its digest is part of every key. The compressor never tokenises.
//
// kvtier_prompt_profile.json is one object: version 1 and the fields of PromptProfile by name.
//   {"version": 1, "name": "llama-3", "prefix": [128000], "postfix": [271], "first_prompt": [1],
//    "later_prompt": [2], "query_prefix": [271], "hint_tokens": 8, "chunk_tokens": 2000,
//    "byte_vocabulary": {"first_id": 0}, "special_tokens": {"<|begin_of_text|>": 128000}}
// version, name and the five lists are required; the rest may be absent (defaults below).
#ifndef KVTIER_COMPRESSOR_PROMPT_PROFILE_H_
#define KVTIER_COMPRESSOR_PROMPT_PROFILE_H_

#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "kvcache/ids.h"

namespace kvtier {

// Declares that a model's vocabulary is bytes: id = byte + first_id. Lets tools accept text.
struct ByteVocabulary {
  uint32_t first_id = 0;
  std::vector<uint32_t> Encode(absl::string_view text) const;
  // Ids that are no bytes become '?' only in text for people; never used for comparison.
  std::string Decode(std::span<const uint32_t> ids) const;
};

struct PromptProfile {
  std::string name;
  std::vector<uint32_t> prefix;        // Default system prompt, protected; may be empty.
  std::vector<uint32_t> postfix;       // After every repeat prompt and every query.
  std::vector<uint32_t> first_prompt;  // Repeat prompt of chunk 0.
  std::vector<uint32_t> later_prompt;  // Of every later chunk; its hint ids follow.
  std::vector<uint32_t> query_prefix;  // Before every query.
  uint32_t hint_tokens = 8;
  uint32_t chunk_tokens = 2000;  // m
  std::optional<ByteVocabulary> byte_vocabulary;
  std::map<std::string, uint32_t> special_tokens;  // Names of ids, for people and tools.

  // Reads kvtier_prompt_profile.json. INVALID_ARGUMENT naming the field; unknown fields refused.
  // UNIMPLEMENTED: another version.
  static absl::StatusOr<PromptProfile> Parse(absl::string_view json);
  static absl::StatusOr<PromptProfile> Load(const std::string& path);
  // SHA-256 over a canonical encoding of everything that changes scores or questions.
  Digest ComputeDigest() const;
  // INVALID_ARGUMENT: an id >= vocabulary, chunk_tokens of 0.
  absl::Status Validate(int64_t vocabulary) const;

  // Number of scoring chunks of a context; 0 for an empty one.
  uint32_t ChunkCount(uint64_t context_tokens) const;
  struct Chunk {
    uint64_t begin = 0;  // In context positions, 0 = first context token.
    uint64_t end = 0;
  };
  Chunk ChunkAt(uint64_t context_tokens, uint32_t chunk) const;
  // The repeat input of a chunk: prompt, hint, postfix, the chunk's ids.
  std::vector<uint32_t> RepeatInput(std::span<const uint32_t> context, uint32_t chunk) const;
  // Rows of the longest repeat input of a context: bounds memory and positions.
  uint64_t RepeatRowsMax(uint64_t context_tokens) const;
  // query_prefix ++ question ++ postfix.
  std::vector<uint32_t> WrapQuery(std::span<const uint32_t> question) const;
};

}  // namespace kvtier

#endif  // KVTIER_COMPRESSOR_PROMPT_PROFILE_H_
