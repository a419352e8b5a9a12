#include "compressor/safetensors_writer.h"

#include <cstdint>
#include <optional>

#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "base/bytes.h"
#include "base/status_macros.h"
#include "base/whole_file.h"

namespace kvtier {

absl::Status WriteSafetensors(const std::string& path,
                              const std::map<std::string, SafetensorsEntry>& entries,
                              const std::map<std::string, std::string>& metadata) {
  nlohmann::json header = nlohmann::json::object();
  if (!metadata.empty()) header["__metadata__"] = metadata;
  uint64_t offset = 0;
  for (const auto& [tensor, entry] : entries) {
    if (SafetensorsBytes(entry.dtype, entry.shape) != entry.bytes.size()) {
      return absl::InvalidArgumentError(
          absl::StrCat(path, ": tensor \"", tensor, "\": bytes do not fit dtype and shape"));
    }
    header[tensor] = {{"dtype", entry.dtype},
                      {"shape", entry.shape},
                      {"data_offsets", {offset, offset + entry.bytes.size()}}};
    offset += entry.bytes.size();
  }
  // Names may come from folders and manifests: what is not UTF-8 is replaced, not thrown.
  std::string text =
      header.dump(-1, ' ', /*ensure_ascii=*/true, nlohmann::json::error_handler_t::replace);
  text.append((8 - text.size() % 8) % 8, ' ');  // Data starts aligned.
  std::string prefix;
  ByteWriter(&prefix).WriteU64(text.size());

  KVTIER_ASSIGN_OR_RETURN(WholeFile file, WholeFile::Create(path));
  KVTIER_RETURN_IF_ERROR(file.Append(AsBytes(prefix + text)));
  for (const auto& [tensor, entry] : entries) {
    KVTIER_RETURN_IF_ERROR(file.Append(entry.bytes));
  }
  return file.Commit();
}

}  // namespace kvtier
