#include "compressor/checkpoint.h"

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <system_error>
#include <utility>

#include <nlohmann/json.hpp>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "base/limits.h"
#include "base/status_macros.h"
#include "compressor/json_text.h"

namespace kvtier {
namespace {

namespace fs = std::filesystem;

constexpr absl::string_view kIndexName = "model.safetensors.index.json";

// Only a file beside the index: a checkpoint must not make us read elsewhere.
bool IsPlainWeightFileName(const std::string& name) {
  return absl::EndsWith(name, ".safetensors") && name.find('/') == std::string::npos &&
         name.find('\\') == std::string::npos && name.find('\0') == std::string::npos &&
         name.size() <= limits::kNameBytesMax;
}

absl::StatusOr<CheckpointIndex> ReadIndex(const fs::path& path) {
  std::ifstream in(path, std::ios::binary);
  if (!in) return absl::NotFoundError(absl::StrCat(path.string(), ": cannot be read"));
  std::error_code error;
  const uintmax_t size = fs::file_size(path, error);
  if (error) return absl::NotFoundError(absl::StrCat(path.string(), ": ", error.message()));
  // One byte more than the limit shows that it is passed, whatever the size.
  std::string text(std::min<uintmax_t>(size, limits::kSafetensorsHeaderBytesMax + 1), '\0');
  in.read(text.data(), static_cast<std::streamsize>(text.size()));
  text.resize(static_cast<size_t>(in.gcount()));
  return CheckpointIndex::Parse(text);
}

absl::StatusOr<std::vector<fs::path>> ListWeightFiles(const fs::path& folder) {
  std::error_code error;
  std::vector<fs::path> files;
  fs::directory_iterator it(folder, error);
  for (; !error && it != fs::directory_iterator(); it.increment(error)) {
    if (it->path().extension() == ".safetensors") files.push_back(it->path());
  }
  if (error) return absl::NotFoundError(absl::StrCat(folder.string(), ": ", error.message()));
  if (files.empty()) {
    return absl::NotFoundError(absl::StrCat(folder.string(), ": no *.safetensors file"));
  }
  if (files.size() > limits::kCheckpointShardsMax) {
    return absl::InvalidArgumentError(absl::StrCat(folder.string(), ": ", files.size(),
                                                   " weight files, at most ",
                                                   limits::kCheckpointShardsMax));
  }
  std::sort(files.begin(), files.end());
  return files;
}

std::vector<fs::path> FilesOf(const CheckpointIndex& index, const fs::path& folder) {
  std::set<std::string> names;
  for (const auto& [tensor, file] : index.files) names.insert(file);
  std::vector<fs::path> paths;
  for (const std::string& name : names) paths.push_back(folder / name);
  return paths;
}

std::string Shape(const std::vector<int64_t>& shape) {
  return absl::StrCat("[", absl::StrJoin(shape, ", "), "]");
}

// All bits of the exponent set: NaN or infinity. In blocks, so that the usual case, none, is one
// pass of vector code.
template <typename Word>
int64_t FindFullExponent(std::span<const std::byte> bytes, Word mask) {
  constexpr size_t kBlock = 1024;
  const size_t count = bytes.size() / sizeof(Word);
  Word words[kBlock];
  for (size_t begin = 0; begin < count; begin += kBlock) {
    const size_t size = std::min(kBlock, count - begin);
    std::memcpy(words, bytes.data() + begin * sizeof(Word), size * sizeof(Word));
    unsigned found = 0;
    for (size_t i = 0; i < size; ++i) found |= (words[i] & mask) == mask;
    if (found == 0) continue;
    for (size_t i = 0; i < size; ++i) {
      if ((words[i] & mask) == mask) return static_cast<int64_t>(begin + i);
    }
  }
  return -1;
}

}  // namespace

int64_t FindNotFinite(std::span<const std::byte> bytes, DType dtype) {
  if (dtype == DType::kF32) return FindFullExponent<uint32_t>(bytes, 0x7f800000u);
  return FindFullExponent<uint16_t>(bytes, dtype == DType::kBf16 ? 0x7f80 : 0x7c00);
}

absl::StatusOr<CheckpointIndex> CheckpointIndex::Parse(absl::string_view text) {
  const auto bad = [](auto... parts) {
    return absl::InvalidArgumentError(absl::StrCat(kIndexName, ": ", parts...));
  };
  if (text.size() > limits::kSafetensorsHeaderBytesMax) {
    return bad(text.size(), " bytes, at most ", limits::kSafetensorsHeaderBytesMax);
  }
  KVTIER_RETURN_IF_ERROR(CheckJsonObject(text, kIndexName));
  const nlohmann::json object =
      nlohmann::json::parse(text.begin(), text.end(), nullptr, /*allow_exceptions=*/false);
  if (!object.is_object()) return bad("not a JSON object");
  const auto map = object.find("weight_map");
  if (map == object.end() || !map->is_object()) return bad("weight_map is missing or no object");
  CheckpointIndex index;
  std::set<std::string> files;
  for (const auto& [tensor, file] : map->items()) {
    const std::string at =
        absl::StrCat("weight_map[\"", tensor.substr(0, limits::kNameBytesMax), "\"]");
    if (!file.is_string()) return bad(at, " is no string");
    const std::string name = file.get<std::string>();
    if (!IsPlainWeightFileName(name)) {
      return bad(at, " is \"", name.substr(0, 80),
                 "\", no name of a .safetensors file in the same folder");
    }
    files.insert(name);
    index.files.emplace(tensor, name);
  }
  if (files.empty()) return bad("weight_map is empty");
  if (files.size() > limits::kCheckpointShardsMax) {
    return bad(files.size(), " weight files, at most ", limits::kCheckpointShardsMax);
  }
  return index;
}

absl::StatusOr<Checkpoint> Checkpoint::Open(const std::string& folder) {
  const fs::path root(folder);
  std::error_code error;
  CheckpointIndex index;
  std::vector<fs::path> paths;
  if (fs::exists(root / "model.safetensors", error)) {
    paths = {root / "model.safetensors"};
  } else if (fs::exists(root / std::string(kIndexName), error)) {
    KVTIER_ASSIGN_OR_RETURN(index, ReadIndex(root / std::string(kIndexName)));
    paths = FilesOf(index, root);
  } else {
    KVTIER_ASSIGN_OR_RETURN(paths, ListWeightFiles(root));
  }

  Checkpoint checkpoint;
  for (const fs::path& path : paths) {
    if (!index.files.empty() && !fs::exists(path, error)) {
      return absl::NotFoundError(
          absl::StrCat(kIndexName, " names ", path.filename().string(), ", which is not there"));
    }
    KVTIER_ASSIGN_OR_RETURN(auto file, SafetensorsFile::Open(path.string()));
    for (const auto& [name, entry] : file->entries()) {
      if (!checkpoint.tensors_.emplace(name, &entry).second) {
        return absl::InvalidArgumentError(
            absl::StrCat(path.string(), ": tensor \"", name, "\" is in another file too"));
      }
      if (index.files.empty()) continue;
      const auto said = index.files.find(name);
      if (said == index.files.end() || said->second != path.filename().string()) {
        return absl::InvalidArgumentError(absl::StrCat(
            path.string(), ": tensor \"", name, "\" is here, ", kIndexName, " says ",
            said == index.files.end() ? "nothing of it" : absl::StrCat("in ", said->second)));
      }
    }
    checkpoint.files_.push_back(std::move(file));
  }
  for (const auto& [tensor, file] : index.files) {
    if (checkpoint.Has(tensor)) continue;
    return absl::InvalidArgumentError(absl::StrCat("tensor \"", tensor, "\" is not in ", file,
                                                   ", where ", kIndexName, " says it is"));
  }
  return checkpoint;
}

absl::StatusOr<Checkpoint::Taken> Checkpoint::Take(const std::string& name,
                                                   const std::vector<int64_t>& shape) {
  const auto it = tensors_.find(name);
  if (it == tensors_.end()) {
    return absl::InvalidArgumentError(
        absl::StrCat("tensor \"", name, "\" is missing, its shape would be ", Shape(shape)));
  }
  const SafetensorsEntry& entry = *it->second;
  if (entry.shape != shape) {
    return absl::InvalidArgumentError(absl::StrCat("tensor \"", name, "\" has shape ",
                                                   Shape(entry.shape), ", not ", Shape(shape)));
  }
  Taken taken{.bytes = entry.bytes, .dtype = DType::kF32};
  if (entry.dtype == "BF16") {
    taken.dtype = DType::kBf16;
  } else if (entry.dtype == "F16") {
    taken.dtype = DType::kF16;
  } else if (entry.dtype != "F32") {
    return absl::UnimplementedError(absl::StrCat("tensor \"", name, "\" has dtype ", entry.dtype));
  }
  if (const int64_t index = FindNotFinite(taken.bytes, taken.dtype); index >= 0) {
    return absl::InvalidArgumentError(absl::StrCat("tensor \"", name, "\", shape ", Shape(shape),
                                                   ": element ", index, " is NaN or infinite"));
  }
  taken_.insert(name);
  return taken;
}

void Checkpoint::Release(const Taken& taken) const {
  for (const auto& file : files_) {
    const std::less_equal<const std::byte*> before;
    const std::span<const std::byte> all = file->bytes();
    if (before(all.data(), taken.bytes.data()) &&
        before(taken.bytes.data() + taken.bytes.size(), all.data() + all.size())) {
      file->Release(taken.bytes);
    }
  }
}

absl::Status Checkpoint::ExpectNoneLeft(std::span<const absl::string_view> ignored) const {
  for (const auto& [name, entry] : tensors_) {
    // Old checkpoints carry the RoPE frequencies, which follow from the configuration.
    if (taken_.count(name) > 0 || absl::EndsWith(name, ".rotary_emb.inv_freq")) continue;
    if (std::any_of(ignored.begin(), ignored.end(), [&name = name](absl::string_view prefix) {
          return absl::StartsWith(name, prefix);
        })) {
      continue;
    }
    return absl::InvalidArgumentError(
        absl::StrCat("tensor \"", name, "\", shape ", Shape(entry->shape), ", is unexpected"));
  }
  return absl::OkStatus();
}

}  // namespace kvtier
