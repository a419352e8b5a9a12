#include "compressor/prompt_profile.h"

#include <algorithm>
#include <fstream>
#include <initializer_list>
#include <iterator>
#include <utility>

#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "base/bytes.h"
#include "base/limits.h"
#include "base/status_macros.h"
#include "compressor/json_text.h"
#include "kvcache/sha256.h"

namespace kvtier {
namespace {

using nlohmann::json;

// A profile holds a handful of short prompts.
constexpr uint64_t kProfileBytesMax = 1 * limits::kMiB;

absl::Status Bad(absl::string_view field, absl::string_view what) {
  return absl::InvalidArgumentError(absl::StrCat("prompt profile: ", field, " ", what));
}

absl::Status RefuseUnknown(const json& object, std::initializer_list<absl::string_view> known) {
  for (const auto& [key, value] : object.items()) {
    if (std::find(known.begin(), known.end(), key) == known.end()) {
      return Bad(key.substr(0, limits::kNameBytesMax), "is no field of it");
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<uint32_t> ParseU32(const json& value, absl::string_view field) {
  if (!value.is_number_unsigned() || value.get<uint64_t>() > UINT32_MAX) {
    return Bad(field, "is no unsigned 32-bit number");
  }
  return value.get<uint32_t>();
}

absl::StatusOr<uint32_t> ReadU32(const json& object, const char* field, uint32_t otherwise) {
  const auto it = object.find(field);
  if (it == object.end()) return otherwise;
  return ParseU32(*it, field);
}

absl::StatusOr<std::vector<uint32_t>> ReadIds(const json& object, const char* field) {
  const auto it = object.find(field);
  if (it == object.end()) return Bad(field, "is missing");
  if (!it->is_array() || it->size() > limits::kSystemTokensMax) {
    return Bad(field, absl::StrCat("is no list of at most ", limits::kSystemTokensMax, " ids"));
  }
  std::vector<uint32_t> ids;
  ids.reserve(it->size());
  for (const json& value : *it) {
    KVTIER_ASSIGN_OR_RETURN(const uint32_t id, ParseU32(value, field));
    ids.push_back(id);
  }
  return ids;
}

void Append(std::span<const uint32_t> from, std::vector<uint32_t>* to) {
  to->insert(to->end(), from.begin(), from.end());
}

void WriteIds(const std::vector<uint32_t>& ids, ByteWriter* writer) {
  writer->WriteU64(ids.size());
  for (uint32_t id : ids) writer->WriteU32(id);
}

}  // namespace

std::vector<uint32_t> ByteVocabulary::Encode(absl::string_view text) const {
  std::vector<uint32_t> ids;
  ids.reserve(text.size());
  for (char c : text) ids.push_back(first_id + static_cast<unsigned char>(c));
  return ids;
}

std::string ByteVocabulary::Decode(std::span<const uint32_t> ids) const {
  std::string text;
  text.reserve(ids.size());
  for (uint32_t id : ids) {
    text.push_back(id >= first_id && id - first_id < 256 ? static_cast<char>(id - first_id) : '?');
  }
  return text;
}

absl::StatusOr<PromptProfile> PromptProfile::Parse(absl::string_view text) {
  if (text.size() > kProfileBytesMax) {
    return absl::InvalidArgumentError(
        absl::StrCat("prompt profile: ", text.size(), " bytes, at most ", kProfileBytesMax));
  }
  KVTIER_RETURN_IF_ERROR(CheckJsonObject(text, "prompt profile"));
  const json object = json::parse(text.begin(), text.end(), nullptr, /*allow_exceptions=*/false);
  if (!object.is_object()) return absl::InvalidArgumentError("prompt profile: not a JSON object");
  KVTIER_RETURN_IF_ERROR(RefuseUnknown(
      object,
      {"version", "name", "prefix", "postfix", "first_prompt", "later_prompt", "query_prefix",
       "hint_tokens", "chunk_tokens", "byte_vocabulary", "special_tokens"}));
  KVTIER_ASSIGN_OR_RETURN(const uint32_t version, ReadU32(object, "version", 0));
  if (version == 0) return Bad("version", "is missing or 0");
  if (version != 1) {
    return absl::UnimplementedError(absl::StrCat("prompt profile: version ", version));
  }
  PromptProfile profile;
  const auto name = object.find("name");
  if (name == object.end() || !name->is_string()) return Bad("name", "is missing or no string");
  profile.name = name->get<std::string>();
  if (profile.name.size() > limits::kNameBytesMax) return Bad("name", "is too long");
  KVTIER_ASSIGN_OR_RETURN(profile.prefix, ReadIds(object, "prefix"));
  KVTIER_ASSIGN_OR_RETURN(profile.postfix, ReadIds(object, "postfix"));
  KVTIER_ASSIGN_OR_RETURN(profile.first_prompt, ReadIds(object, "first_prompt"));
  KVTIER_ASSIGN_OR_RETURN(profile.later_prompt, ReadIds(object, "later_prompt"));
  KVTIER_ASSIGN_OR_RETURN(profile.query_prefix, ReadIds(object, "query_prefix"));
  KVTIER_ASSIGN_OR_RETURN(profile.hint_tokens, ReadU32(object, "hint_tokens", profile.hint_tokens));
  KVTIER_ASSIGN_OR_RETURN(profile.chunk_tokens,
                          ReadU32(object, "chunk_tokens", profile.chunk_tokens));
  const auto bytes = object.find("byte_vocabulary");
  if (bytes != object.end() && !bytes->is_null()) {
    if (!bytes->is_object()) return Bad("byte_vocabulary", "is no object");
    KVTIER_RETURN_IF_ERROR(RefuseUnknown(*bytes, {"first_id"}));
    ByteVocabulary vocabulary;
    KVTIER_ASSIGN_OR_RETURN(vocabulary.first_id, ReadU32(*bytes, "first_id", 0));
    profile.byte_vocabulary = vocabulary;
  }
  const auto special = object.find("special_tokens");
  if (special != object.end()) {
    if (!special->is_object()) return Bad("special_tokens", "is no object");
    for (const auto& [token, value] : special->items()) {
      KVTIER_ASSIGN_OR_RETURN(const uint32_t id, ParseU32(value, "special_tokens"));
      profile.special_tokens.emplace(token, id);
    }
  }
  if (profile.chunk_tokens == 0) return Bad("chunk_tokens", "is 0");
  return profile;
}

absl::StatusOr<PromptProfile> PromptProfile::Load(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  if (!in) return absl::NotFoundError(absl::StrCat(path, ": cannot be read"));
  std::string text(kProfileBytesMax + 1, '\0');
  in.read(text.data(), static_cast<std::streamsize>(text.size()));
  text.resize(static_cast<size_t>(in.gcount()));
  return Parse(text);
}

Digest PromptProfile::ComputeDigest() const {
  std::string text;
  ByteWriter writer(&text);
  writer.WriteBytes("kvtier prompt profile 1");
  for (const std::vector<uint32_t>* ids :
       {&prefix, &postfix, &first_prompt, &later_prompt, &query_prefix}) {
    WriteIds(*ids, &writer);
  }
  writer.WriteU32(hint_tokens);
  writer.WriteU32(chunk_tokens);
  return ComputeSha256(AsBytes(text));
}

absl::Status PromptProfile::Validate(int64_t vocabulary) const {
  if (chunk_tokens == 0) return Bad("chunk_tokens", "is 0");
  const std::pair<absl::string_view, const std::vector<uint32_t>*> lists[] = {
      {"prefix", &prefix},
      {"postfix", &postfix},
      {"first_prompt", &first_prompt},
      {"later_prompt", &later_prompt},
      {"query_prefix", &query_prefix}};
  for (const auto& [field, ids] : lists) {
    for (uint32_t id : *ids) {
      if (id < vocabulary) continue;
      return Bad(field, absl::StrCat("has id ", id, ", vocabulary ", vocabulary));
    }
  }
  for (const auto& [token, id] : special_tokens) {
    if (id >= vocabulary) return Bad("special_tokens", absl::StrCat("has id ", id));
  }
  if (byte_vocabulary.has_value() && int64_t{byte_vocabulary->first_id} + 256 > vocabulary) {
    return Bad("byte_vocabulary", absl::StrCat("does not fit a vocabulary of ", vocabulary));
  }
  return absl::OkStatus();
}

uint32_t PromptProfile::ChunkCount(uint64_t context_tokens) const {
  if (context_tokens == 0) return 0;
  return static_cast<uint32_t>((context_tokens - 1) / chunk_tokens + 1);
}

PromptProfile::Chunk PromptProfile::ChunkAt(uint64_t context_tokens, uint32_t chunk) const {
  const uint64_t begin = uint64_t{chunk} * chunk_tokens;
  return {.begin = begin, .end = std::min(begin + chunk_tokens, context_tokens)};
}

std::vector<uint32_t> PromptProfile::RepeatInput(std::span<const uint32_t> context,
                                                 uint32_t chunk) const {
  const Chunk at = ChunkAt(context.size(), chunk);
  std::vector<uint32_t> ids;
  ids.reserve(RepeatRowsMax(context.size()));
  Append(chunk == 0 ? first_prompt : later_prompt, &ids);
  if (chunk > 0) {
    const uint64_t hint = std::min<uint64_t>(hint_tokens, chunk_tokens);
    Append(context.subspan(at.begin - hint, hint), &ids);
  }
  Append(postfix, &ids);
  Append(context.subspan(at.begin, at.end - at.begin), &ids);
  return ids;
}

uint64_t PromptProfile::RepeatRowsMax(uint64_t context_tokens) const {
  const uint32_t chunks = ChunkCount(context_tokens);
  if (chunks == 0) return 0;
  const uint64_t first =
      first_prompt.size() + postfix.size() + std::min<uint64_t>(context_tokens, chunk_tokens);
  if (chunks == 1) return first;
  const Chunk second = ChunkAt(context_tokens, 1);
  const uint64_t later = later_prompt.size() + std::min(hint_tokens, chunk_tokens) +
                         postfix.size() + (second.end - second.begin);
  return std::max(first, later);
}

std::vector<uint32_t> PromptProfile::WrapQuery(std::span<const uint32_t> question) const {
  std::vector<uint32_t> ids;
  ids.reserve(query_prefix.size() + question.size() + postfix.size());
  Append(query_prefix, &ids);
  Append(question, &ids);
  Append(postfix, &ids);
  return ids;
}

}  // namespace kvtier
