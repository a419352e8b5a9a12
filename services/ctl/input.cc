#include "services/ctl/input.h"

#include <fstream>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
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

absl::StatusOr<std::vector<uint32_t>> ParseIdList(absl::string_view text, absl::string_view flag,
                                                  uint64_t vocabulary, size_t ids_max) {
  std::vector<uint32_t> ids;
  if (text.empty()) return ids;
  for (const absl::string_view word : absl::StrSplit(text, ',')) {
    uint32_t id = 0;
    if (!absl::SimpleAtoi(word, &id) || id >= vocabulary) {
      return absl::InvalidArgumentError(absl::StrCat(
          flag, ": '", word, "' is no token id; the vocabulary has ", vocabulary, " ids"));
    }
    ids.push_back(id);
  }
  if (ids.size() > ids_max) {
    return absl::InvalidArgumentError(
        absl::StrCat(flag, " has ", ids.size(), " ids; at most ", ids_max));
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
