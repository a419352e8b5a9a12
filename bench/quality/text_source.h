// Real text for the tasks of kvtier-eval quality: ASCII files that are on the machine anyway, or a
// folder that the caller names.
#ifndef KVTIER_BENCH_QUALITY_TEXT_SOURCE_H_
#define KVTIER_BENCH_QUALITY_TEXT_SOURCE_H_

#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace kvtier {

// Immutable after Load; any thread may read.
class TextSource {
 public:
  // Every file below `folders`, in order of path, that is plain ASCII of at least kTextBytesMin
  // bytes; files that begin alike count once, of long ones the first kTextBytesMax bytes.
  // With `held_out`, only the fifth that the fixture model was never trained on: those whose path's
  // SHA-256 begins with a byte below 51 (scripts/fixture_model/documents.py).
  // INVALID_ARGUMENT: a folder that cannot be read, or no such file below all of them.
  static absl::StatusOr<TextSource> Load(const std::vector<std::string>& folders, bool held_out);

  // A stretch of exactly `bytes` bytes from a random place; texts too short are joined.
  std::string Cut(size_t bytes, std::mt19937_64& random) const;

  size_t files() const { return texts_.size(); }
  // Hexadecimal SHA-256 over all texts: two machines with the same digest draw the same documents.
  const std::string& digest() const { return digest_; }

 private:
  TextSource() = default;
  std::vector<std::string> texts_;
  std::string digest_;
};

inline constexpr size_t kTextBytesMin = 600;
inline constexpr size_t kTextBytesMax = 200'000;

}  // namespace kvtier

#endif  // KVTIER_BENCH_QUALITY_TEXT_SOURCE_H_
