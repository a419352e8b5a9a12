#include "bench/quality/text_source.h"

#include <algorithm>
#include <cstddef>
#include <filesystem>
#include <fstream>
#include <set>
#include <span>
#include <sstream>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "kvcache/sha256.h"

namespace kvtier {
namespace {

Digest DigestOf(absl::string_view text) {
  return ComputeSha256(std::as_bytes(std::span(text.data(), text.size())));
}

bool IsHeldOut(const std::string& path) {
  constexpr auto kOneInFive = std::byte{51};
  return DigestOf(path).bytes()[0] < kOneInFive;
}

bool IsAscii(absl::string_view text) {
  return std::all_of(text.begin(), text.end(), [](char c) {
    return c == '\n' || c == '\t' || c == '\r' || (c >= 32 && c < 127);
  });
}

// Empty if it cannot be read.
std::string ReadStart(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::string text(kTextBytesMax, '\0');
  file.read(text.data(), static_cast<std::streamsize>(text.size()));
  text.resize(static_cast<size_t>(std::max<std::streamsize>(0, file.gcount())));
  return text;
}

absl::StatusOr<std::vector<std::string>> PathsBelow(const std::string& folder) {
  std::vector<std::string> paths;
  std::error_code error;
  const auto options = std::filesystem::directory_options::skip_permission_denied;
  auto entry = std::filesystem::recursive_directory_iterator(folder, options, error);
  while (!error && entry != std::filesystem::recursive_directory_iterator()) {
    std::error_code unknown;  // A link to nowhere or to itself is no text, and no failure.
    if (entry->is_regular_file(unknown)) paths.push_back(entry->path());
    entry.increment(error);
  }
  if (error) {
    return absl::InvalidArgumentError(absl::StrCat("cannot read ", folder, ": ", error.message()));
  }
  return paths;
}

}  // namespace

absl::StatusOr<TextSource> TextSource::Load(const std::vector<std::string>& folders,
                                            bool held_out) {
  std::vector<std::string> paths;
  for (const std::string& folder : folders) {
    const absl::StatusOr<std::vector<std::string>> some = PathsBelow(folder);
    if (!some.ok()) return some.status();
    paths.insert(paths.end(), some->begin(), some->end());
  }
  std::sort(paths.begin(), paths.end());
  TextSource source;
  std::set<std::string> beginnings;
  std::string digests;
  for (const std::string& path : paths) {
    if (held_out && !IsHeldOut(path)) continue;
    std::string text = ReadStart(path);
    if (text.size() < kTextBytesMin || !IsAscii(text)) continue;
    if (!beginnings.insert(text.substr(0, 2000)).second) continue;
    absl::StrAppend(&digests, DigestOf(text).ToHex());
    source.texts_.push_back(std::move(text));
  }
  if (source.texts_.empty()) {
    return absl::InvalidArgumentError(absl::StrCat("no ", held_out ? "held-out " : "",
                                                   "ASCII text of ", kTextBytesMin, " bytes below ",
                                                   absl::StrJoin(folders, ", ")));
  }
  source.digest_ = DigestOf(digests).ToHex();
  return source;
}

std::string TextSource::Cut(size_t bytes, std::mt19937_64& random) const {
  std::string text = texts_[random() % texts_.size()];
  while (text.size() < bytes) absl::StrAppend(&text, "\n\n", texts_[random() % texts_.size()]);
  return text.substr(random() % (text.size() - bytes + 1), bytes);
}

}  // namespace kvtier
