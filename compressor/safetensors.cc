#include "compressor/safetensors.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <optional>
#include <utility>

#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "base/bytes.h"
#include "base/limits.h"
#include "base/status_macros.h"
#include "compressor/json_text.h"

namespace kvtier {
namespace {

using nlohmann::json;

constexpr uint64_t kPrefixBytes = 8;  // The header's length.

// Bytes of one element.
std::optional<uint64_t> ElementBytes(absl::string_view dtype) {
  static constexpr struct {
    absl::string_view name;
    uint64_t bytes;
  } kTypes[] = {{"F64", 8},     {"F32", 4}, {"F16", 2}, {"BF16", 2}, {"F8_E4M3", 1},
                {"F8_E5M2", 1}, {"I64", 8}, {"I32", 4}, {"I16", 2},  {"I8", 1},
                {"U64", 8},     {"U32", 4}, {"U16", 2}, {"U8", 1},   {"BOOL", 1}};
  for (const auto& type : kTypes) {
    if (type.name == dtype) return type.bytes;
  }
  return std::nullopt;
}

// Bytes of dtype and shape; nothing on overflow or a negative extent.
std::optional<uint64_t> ShapeBytes(uint64_t element_bytes, const std::vector<int64_t>& shape) {
  uint64_t bytes = element_bytes;
  for (int64_t extent : shape) {
    if (extent < 0 || __builtin_mul_overflow(bytes, static_cast<uint64_t>(extent), &bytes)) {
      return std::nullopt;
    }
  }
  return bytes;
}

std::optional<uint64_t> AsUnsigned(const json& value) {
  if (!value.is_number_unsigned()) return std::nullopt;
  return value.get<uint64_t>();
}

struct Parser {
  absl::string_view file_name;
  std::span<const std::byte> data;  // Behind the header.

  absl::Status Bad(absl::string_view what) const {
    return absl::InvalidArgumentError(absl::StrCat(file_name, ": ", what));
  }
  absl::Status BadTensor(absl::string_view tensor, absl::string_view what) const {
    return Bad(absl::StrCat("tensor \"", tensor.substr(0, limits::kNameBytesMax), "\": ", what));
  }

  absl::StatusOr<SafetensorsEntry> ParseEntry(absl::string_view tensor, const json& fields) const {
    if (!fields.is_object() || fields.size() != 3 || !fields.contains("dtype") ||
        !fields.contains("shape") || !fields.contains("data_offsets")) {
      return BadTensor(tensor, "not exactly the fields dtype, shape, data_offsets");
    }
    SafetensorsEntry entry;
    if (!fields["dtype"].is_string()) return BadTensor(tensor, "dtype is no string");
    entry.dtype = fields["dtype"].get<std::string>();
    const std::optional<uint64_t> element_bytes = ElementBytes(entry.dtype);
    if (!element_bytes.has_value()) {
      return BadTensor(tensor, absl::StrCat("unknown dtype ", entry.dtype.substr(0, 16)));
    }
    const json& shape = fields["shape"];
    if (!shape.is_array() || shape.size() > limits::kTensorRankMax) {
      return BadTensor(tensor,
                       absl::StrCat("shape is no list of at most ", limits::kTensorRankMax));
    }
    for (const json& extent : shape) {
      const std::optional<uint64_t> value = AsUnsigned(extent);
      if (!value.has_value() || *value > uint64_t{INT64_MAX}) {
        return BadTensor(tensor, "shape has an extent that is no size");
      }
      entry.shape.push_back(static_cast<int64_t>(*value));
    }
    const std::optional<uint64_t> bytes = ShapeBytes(*element_bytes, entry.shape);
    if (!bytes.has_value()) return BadTensor(tensor, "the product of the shape overflows");

    const json& offsets = fields["data_offsets"];
    if (!offsets.is_array() || offsets.size() != 2) {
      return BadTensor(tensor, "data_offsets is no pair");
    }
    const std::optional<uint64_t> begin = AsUnsigned(offsets[0]);
    const std::optional<uint64_t> end = AsUnsigned(offsets[1]);
    if (!begin.has_value() || !end.has_value() || *begin > *end || *end > data.size()) {
      return BadTensor(
          tensor, absl::StrCat("data_offsets out of range, the data has ", data.size(), " bytes"));
    }
    if (*end - *begin != *bytes) {
      return BadTensor(tensor, absl::StrCat("data_offsets span ", *end - *begin,
                                            " bytes, dtype and shape take ", *bytes));
    }
    entry.bytes = data.subspan(*begin, *end - *begin);
    return entry;
  }

  // The tensors tile the data: no byte unused, none used twice.
  absl::Status CheckTiling(const std::map<std::string, SafetensorsEntry>& entries) const {
    std::vector<std::pair<const std::string*, std::span<const std::byte>>> order;
    for (const auto& [tensor, entry] : entries) order.emplace_back(&tensor, entry.bytes);
    std::sort(order.begin(), order.end(), [](const auto& a, const auto& b) {
      return std::make_pair(a.second.data(), a.second.size()) <
             std::make_pair(b.second.data(), b.second.size());
    });
    uint64_t offset = 0;
    for (const auto& [tensor, bytes] : order) {
      const uint64_t begin = static_cast<uint64_t>(bytes.data() - data.data());
      if (begin < offset) return BadTensor(*tensor, "overlaps another tensor");
      if (begin > offset) return BadTensor(*tensor, absl::StrCat("a gap before byte ", begin));
      offset = begin + bytes.size();
    }
    if (offset == data.size()) return absl::OkStatus();
    return Bad(absl::StrCat(data.size() - offset, " bytes behind the last tensor"));
  }
};

class MappedSafetensors final : public SafetensorsFile {
 public:
  MappedSafetensors(std::string path, std::span<const std::byte> bytes)
      : path_(std::move(path)), bytes_(bytes) {}
  ~MappedSafetensors() override { munmap(const_cast<std::byte*>(bytes_.data()), bytes_.size()); }
  MappedSafetensors(const MappedSafetensors&) = delete;
  MappedSafetensors& operator=(const MappedSafetensors&) = delete;

  absl::Status Parse() {
    KVTIER_ASSIGN_OR_RETURN(entries_, ParseSafetensors(bytes_, path_, &metadata_));
    return absl::OkStatus();
  }
  const std::map<std::string, SafetensorsEntry>& entries() const override { return entries_; }
  const std::map<std::string, std::string>& metadata() const override { return metadata_; }
  const std::string& path() const override { return path_; }
  std::span<const std::byte> bytes() const override { return bytes_; }

  void Release(std::span<const std::byte> part) const override {
    // Whole pages only: a neighbour may be in use.
    const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    const size_t offset = static_cast<size_t>(part.data() - bytes_.data());
    const size_t begin = (offset + page - 1) / page * page;
    const size_t end = (offset + part.size()) / page * page;
    if (begin >= end) return;
    // Private and read-only, so that nothing can be lost. A refusal costs memory only.
    madvise(const_cast<std::byte*>(bytes_.data()) + begin, end - begin, MADV_DONTNEED);
  }

 private:
  const std::string path_;
  const std::span<const std::byte> bytes_;
  std::map<std::string, SafetensorsEntry> entries_;
  std::map<std::string, std::string> metadata_;
};

}  // namespace

absl::StatusOr<std::map<std::string, SafetensorsEntry>> ParseSafetensors(
    std::span<const std::byte> file, absl::string_view name,
    std::map<std::string, std::string>* metadata) {
  Parser parser{.file_name = name, .data = {}};
  if (file.size() < kPrefixBytes) return parser.Bad("truncated before the header's length");
  const uint64_t header_bytes = LoadLittleEndian<uint64_t>(file.data());
  if (header_bytes > limits::kSafetensorsHeaderBytesMax) {
    return parser.Bad(absl::StrCat("a header of ", header_bytes, " bytes, at most ",
                                   limits::kSafetensorsHeaderBytesMax));
  }
  if (header_bytes > file.size() - kPrefixBytes) {
    return parser.Bad(
        absl::StrCat("truncated: a header of ", header_bytes, " bytes in a file of ", file.size()));
  }
  parser.data = file.subspan(kPrefixBytes + header_bytes);
  const absl::string_view text = AsStringView(file.subspan(kPrefixBytes, header_bytes));
  KVTIER_RETURN_IF_ERROR(CheckJsonObject(text, absl::StrCat(name, ": header")));
  const json header = json::parse(text.begin(), text.end(), nullptr, /*allow_exceptions=*/false);
  if (!header.is_object()) return parser.Bad("header: not a JSON object");
  if (header.size() > limits::kCheckpointTensorsMax) {
    return parser.Bad(
        absl::StrCat(header.size(), " tensors, at most ", limits::kCheckpointTensorsMax));
  }
  std::map<std::string, SafetensorsEntry> entries;
  for (const auto& [tensor, fields] : header.items()) {
    if (tensor == "__metadata__") {
      if (!fields.is_object()) return parser.Bad("__metadata__ is no object");
      for (const auto& [field, value] : fields.items()) {
        if (!value.is_string()) {
          return parser.Bad(absl::StrCat("__metadata__: ", field.substr(0, limits::kNameBytesMax),
                                         " is no string"));
        }
        if (metadata != nullptr) metadata->emplace(field, value.get<std::string>());
      }
      continue;
    }
    KVTIER_ASSIGN_OR_RETURN(SafetensorsEntry entry, parser.ParseEntry(tensor, fields));
    entries.emplace(tensor, std::move(entry));
  }
  KVTIER_RETURN_IF_ERROR(parser.CheckTiling(entries));
  return entries;
}

absl::StatusOr<std::unique_ptr<SafetensorsFile>> SafetensorsFile::Open(const std::string& path) {
  const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) {
    const std::string message = absl::StrCat(path, ": ", std::strerror(errno));
    if (errno == ENOENT || errno == ENOTDIR) return absl::NotFoundError(message);
    return absl::InvalidArgumentError(message);
  }
  struct stat status = {};
  if (fstat(fd, &status) != 0 || !S_ISREG(status.st_mode) || status.st_size <= 0) {
    close(fd);
    return absl::InvalidArgumentError(absl::StrCat(path, ": truncated: not a file with content"));
  }
  const size_t size = static_cast<size_t>(status.st_size);
  void* memory = mmap(nullptr, size, PROT_READ, MAP_PRIVATE, fd, 0);
  const int error = errno;
  close(fd);
  if (memory == MAP_FAILED) {
    return absl::ResourceExhaustedError(absl::StrCat(path, ": mmap: ", std::strerror(error)));
  }
  auto file = std::make_unique<MappedSafetensors>(
      path, std::span<const std::byte>(static_cast<const std::byte*>(memory), size));
  KVTIER_RETURN_IF_ERROR(file->Parse());
  return file;
}

std::optional<uint64_t> SafetensorsBytes(absl::string_view dtype,
                                         const std::vector<int64_t>& shape) {
  const std::optional<uint64_t> element_bytes = ElementBytes(dtype);
  return element_bytes.has_value() ? ShapeBytes(*element_bytes, shape) : std::nullopt;
}

}  // namespace kvtier
