// Reads safetensors files: memory-mapped, every offset checked before use. The file is never
// trusted: a lying header gives a named error, not a crash or a wild read. (A file that shrinks
// while it is mapped raises SIGBUS, as any mapping does: replace checkpoints by renaming.)
#ifndef KVTIER_COMPRESSOR_SAFETENSORS_H_
#define KVTIER_COMPRESSOR_SAFETENSORS_H_

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace kvtier {

struct SafetensorsEntry {
  std::string dtype;  // As written: "BF16", "F32", "I32", ...
  std::vector<int64_t> shape;
  std::span<const std::byte> bytes;  // Inside the mapping.
};

// Immutable after Open; safe to read from any thread. Entries point into the mapping, which lives
// as long as the object.
class SafetensorsFile {
 public:
  // INVALID_ARGUMENT naming the file and what is wrong: truncated, header too large
  // (limits::kSafetensorsHeaderBytesMax), not JSON, offsets out of range or overlapping or with
  // gaps, size that does not match dtype and shape, unknown dtype, metadata that is no text.
  // NOT_FOUND: no such file.
  static absl::StatusOr<std::unique_ptr<SafetensorsFile>> Open(const std::string& path);
  virtual ~SafetensorsFile() = default;
  virtual const std::map<std::string, SafetensorsEntry>& entries() const = 0;
  // What the header says under __metadata__; empty without it.
  virtual const std::map<std::string, std::string>& metadata() const = 0;
  virtual const std::string& path() const = 0;
  // The whole file, header included: what a digest covers.
  virtual std::span<const std::byte> bytes() const = 0;
  // Gives the memory of pages that lie inside `part` of bytes() back to the system, for what has
  // been copied: a mapping counts as memory in use as far as it has been read. It is read from the
  // file again if it is touched again.
  virtual void Release(std::span<const std::byte> part) const = 0;
};

// What Open does after mapping, apart for fuzzing: the entries of a file's image in memory, which
// they point into. `name` is for messages; `metadata`, unless null, gets what the header says under
// __metadata__. INVALID_ARGUMENT as Open.
absl::StatusOr<std::map<std::string, SafetensorsEntry>> ParseSafetensors(
    std::span<const std::byte> file, absl::string_view name,
    std::map<std::string, std::string>* metadata = nullptr);

// Bytes of a tensor; nothing for an unknown dtype, a negative extent or a product that overflows.
std::optional<uint64_t> SafetensorsBytes(absl::string_view dtype,
                                         const std::vector<int64_t>& shape);

}  // namespace kvtier

#endif  // KVTIER_COMPRESSOR_SAFETENSORS_H_
