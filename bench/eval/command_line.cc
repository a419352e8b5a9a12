#include "bench/eval/command_line.h"

#include <algorithm>
#include <fstream>
#include <iostream>
#include <sstream>
#include <thread>  // NOLINT(build/c++11)

#include "absl/flags/flag.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "base/status_macros.h"

ABSL_FLAG(std::string, model, "", "folder of the checkpoint; texts need a vocabulary of bytes");
ABSL_FLAG(std::string, document, "", "file whose bytes are the context");
ABSL_FLAG(std::string, questions, "", "JSON file of questions, as `kvtier-eval questions` writes");
ABSL_FLAG(std::string, out, "", "file to write the result to; empty: standard output");
ABSL_FLAG(uint64_t, seed, 1, "questions: which ones to draw");
ABSL_FLAG(std::vector<std::string>, ratios, {},
          "kept fractions, separated by commas; empty: what the command finds useful");
ABSL_FLAG(uint32_t, threads, 0, "work done at once; 0: one per core");

namespace kvtier {

absl::StatusOr<std::string> ReadWhole(absl::string_view flag, const std::string& path) {
  if (path.empty()) return absl::InvalidArgumentError(absl::StrCat("--", flag, " is missing"));
  std::ifstream file(path, std::ios::binary);
  std::ostringstream content;
  if (!file || !(content << file.rdbuf() || file.peek() == EOF)) {
    return absl::InvalidArgumentError(absl::StrCat("--", flag, ": cannot read ", path));
  }
  return content.str();
}

absl::StatusOr<std::string> ModelFlag() {
  std::string folder = absl::GetFlag(FLAGS_model);
  if (folder.empty()) return absl::InvalidArgumentError("--model is missing");
  return folder;
}

absl::Status WriteFile(const std::string& path, absl::string_view content) {
  std::ofstream file(path, std::ios::binary);
  file << content << "\n";
  file.close();
  return file ? absl::OkStatus() : absl::UnavailableError(absl::StrCat("cannot write ", path));
}

absl::Status WriteOut(absl::string_view content) {
  const std::string path = absl::GetFlag(FLAGS_out);
  if (!path.empty()) return WriteFile(path, content);
  std::cout << content << std::endl;
  return absl::OkStatus();
}

int ThreadsFlag() {
  const int threads = static_cast<int>(absl::GetFlag(FLAGS_threads));
  return threads > 0 ? threads : std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
}

absl::StatusOr<std::vector<Ratio>> RatiosFlag(const std::vector<std::string>& otherwise) {
  const std::vector<std::string> given = absl::GetFlag(FLAGS_ratios);
  std::vector<Ratio> ratios;
  for (const std::string& text : given.empty() ? otherwise : given) {
    double value = 0;
    if (!absl::SimpleAtod(text, &value)) {
      return absl::InvalidArgumentError(absl::StrCat("--ratios: \"", text, "\" is no number"));
    }
    KVTIER_ASSIGN_OR_RETURN(const Ratio ratio, Ratio::FromDouble(value));
    ratios.push_back(ratio);
  }
  return ratios;
}

absl::StatusOr<ByteVocabulary> RequireBytes(const PromptProfile& profile) {
  if (profile.byte_vocabulary.has_value()) return *profile.byte_vocabulary;
  return absl::InvalidArgumentError(
      absl::StrCat("prompt profile ", profile.name,
                   " declares no byte vocabulary, so a document's tokens are unknown here"));
}

}  // namespace kvtier
