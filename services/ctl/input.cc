#include "services/ctl/input.h"

#include <fstream>

#include <nlohmann/json.hpp>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "base/bytes.h"
#include "base/limits.h"
#include "base/status_macros.h"

namespace kvtier::ctl {

absl::StatusOr<std::string> ReadFile(const std::string& path, uint64_t bytes_max) {
  std::ifstream file(path, std::ios::binary);
  if (!file) return absl::InvalidArgumentError(absl::StrCat("cannot read ", path));
  std::string bytes;
  std::vector<char> piece(1 << 16);
  while (file.read(piece.data(), static_cast<std::streamsize>(piece.size())), file.gcount() > 0) {
    bytes.append(piece.data(), static_cast<size_t>(file.gcount()));
    if (bytes.size() > bytes_max) {
      return absl::InvalidArgumentError(
          absl::StrCat(path, " is longer than the limit of ", bytes_max, " bytes"));
    }
  }
  if (file.bad()) return absl::InvalidArgumentError(absl::StrCat("cannot read ", path));
  return bytes;
}

absl::Status WriteFile(const std::string& path, absl::string_view bytes) {
  std::ofstream file(path, std::ios::binary | std::ios::trunc);
  file.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  file.close();
  if (!file) return absl::UnavailableError(absl::StrCat("cannot write ", path));
  return absl::OkStatus();
}

absl::StatusOr<std::vector<uint32_t>> ReadTokenIds(const std::string& path) {
  // A JSON id takes at most 12 bytes with its comma and space.
  KVTIER_ASSIGN_OR_RETURN(const std::string bytes,
                          ReadFile(path, uint64_t{12} * limits::kContextTokensMax));
  std::vector<uint32_t> ids;
  if (absl::EndsWith(path, ".u32")) {
    if (bytes.size() % 4 != 0) {
      return absl::InvalidArgumentError(
          absl::StrCat(path, " has ", bytes.size(), " bytes, not a multiple of 4"));
    }
    ByteReader reader(AsBytes(absl::string_view(bytes)));
    while (reader.remaining() > 0) {
      KVTIER_ASSIGN_OR_RETURN(const uint32_t id, reader.ReadU32());
      ids.push_back(id);
    }
    return ids;
  }
  const nlohmann::json json = nlohmann::json::parse(bytes, nullptr, /*allow_exceptions=*/false);
  const std::string expected =
      absl::StrCat(path, " must be a JSON array of token ids, or raw u32 in a file named *.u32");
  if (!json.is_array()) return absl::InvalidArgumentError(expected);
  for (const nlohmann::json& id : json) {
    if (!id.is_number_unsigned() || id.get<uint64_t>() > UINT32_MAX) {
      return absl::InvalidArgumentError(
          absl::StrCat(expected, "; element ", ids.size(), " is ", id.dump()));
    }
    ids.push_back(id.get<uint32_t>());
  }
  return ids;
}

absl::StatusOr<std::vector<uint32_t>> EncodeText(absl::string_view text,
                                                 const std::optional<ByteVocabulary>& vocabulary,
                                                 absl::string_view model,
                                                 absl::string_view flag_for_ids) {
  if (!vocabulary.has_value()) {
    return absl::InvalidArgumentError(absl::StrCat(
        "model '", model, "' does not declare a byte vocabulary, so text cannot be turned into ",
        "token ids here; tokenize it with the checkpoint's own tokenizer and pass ", flag_for_ids,
        " FILE (a JSON array of ids, or raw u32 in a file named *.u32)"));
  }
  return vocabulary->Encode(text);
}

}  // namespace kvtier::ctl
