#include "compressor/safetensors_writer.h"

#include <cerrno>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <optional>

#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "base/bytes.h"

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

  const std::string unfinished = path + ".part";
  std::ofstream out(unfinished, std::ios::binary | std::ios::trunc);
  out << prefix << text;
  for (const auto& [tensor, entry] : entries) {
    out.write(reinterpret_cast<const char*>(entry.bytes.data()),
              static_cast<std::streamsize>(entry.bytes.size()));
  }
  out.close();
  if (out && std::rename(unfinished.c_str(), path.c_str()) == 0) return absl::OkStatus();
  const int error = errno;
  std::remove(unfinished.c_str());
  return absl::UnavailableError(absl::StrCat(path, ": cannot be written: ", std::strerror(error)));
}

}  // namespace kvtier
