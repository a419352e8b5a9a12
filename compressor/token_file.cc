#include "compressor/token_file.h"

#include <fstream>

#include <nlohmann/json.hpp>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "base/bytes.h"
#include "base/limits.h"
#include "base/status_macros.h"

namespace kvtier {
namespace {

// A JSON id takes at most 12 bytes with its comma and space.
constexpr uint64_t kTokenFileBytesMax = uint64_t{12} * limits::kContextTokensMax;

absl::StatusOr<std::string> ReadAtMost(const std::string& path, uint64_t bytes_max) {
  std::ifstream file(path, std::ios::binary);
  if (!file) return absl::InvalidArgumentError(absl::StrCat("cannot read ", path));
  std::string bytes(bytes_max + 1, '\0');
  file.read(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  if (file.bad()) return absl::InvalidArgumentError(absl::StrCat("cannot read ", path));
  bytes.resize(static_cast<size_t>(file.gcount()));
  if (bytes.size() <= bytes_max) return bytes;
  return absl::InvalidArgumentError(
      absl::StrCat(path, " is longer than the limit of ", bytes_max, " bytes"));
}

}  // namespace

absl::StatusOr<std::vector<uint32_t>> ReadTokenIds(const std::string& path) {
  KVTIER_ASSIGN_OR_RETURN(const std::string bytes, ReadAtMost(path, kTokenFileBytesMax));
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
          absl::StrCat(expected, "; element ", ids.size(), " is ",
                       id.is_number() ? id.dump() : absl::StrCat("of type ", id.type_name())));
    }
    ids.push_back(id.get<uint32_t>());
  }
  return ids;
}

}  // namespace kvtier
