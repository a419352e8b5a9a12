// Runs a fuzz target without libFuzzer: each file of the given folders as it is, then a fixed
// number of seeded mutations of each. So every preset, also under g++, replays what fuzzing has
// found, and a finding is repeatable: the same corpus gives the same inputs.
//
// Usage: target FOLDER...

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <random>
#include <vector>

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

namespace {

constexpr int kMutationsPerFile = 200;

std::vector<uint8_t> ReadFile(const std::filesystem::path& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
}

// An exact-size copy, so that ASan sees a read one byte past the input.
void Run(const std::vector<uint8_t>& input) {
  const std::vector<uint8_t> exact(input.begin(), input.end());
  LLVMFuzzerTestOneInput(exact.data(), exact.size());
}

// Cuts, flips a bit, sets a byte to an extreme, or repeats a piece: what breaks length fields.
std::vector<uint8_t> Mutate(std::vector<uint8_t> bytes, std::mt19937_64& random) {
  const auto below = [&random](size_t bound) { return static_cast<size_t>(random() % bound); };
  const size_t edits = 1 + below(3);
  for (size_t i = 0; i < edits && !bytes.empty(); ++i) {
    const size_t at = below(bytes.size());
    switch (below(4)) {
      case 0:
        bytes.resize(at);
        break;
      case 1:
        bytes[at] = static_cast<uint8_t>(bytes[at] ^ (1u << below(8)));
        break;
      case 2:
        bytes[at] = below(2) == 0 ? 0x00 : 0xff;
        break;
      default: {
        const size_t length = std::min<size_t>(1 + below(16), bytes.size() - at);
        const std::vector<uint8_t> piece(bytes.begin() + static_cast<std::ptrdiff_t>(at),
                                         bytes.begin() + static_cast<std::ptrdiff_t>(at + length));
        bytes.insert(bytes.begin() + static_cast<std::ptrdiff_t>(at), piece.begin(), piece.end());
      }
    }
  }
  return bytes;
}

}  // namespace

int main(int argc, char** argv) {
  std::vector<std::filesystem::path> files;
  for (int i = 1; i < argc; ++i) {
    std::error_code error;
    for (const auto& entry : std::filesystem::recursive_directory_iterator(argv[i], error)) {
      if (entry.is_regular_file()) files.push_back(entry.path());
    }
    if (error) {
      std::fprintf(stderr, "%s: %s\n", argv[i], error.message().c_str());
      return 1;
    }
  }
  std::sort(files.begin(), files.end());  // directory order differs between machines
  if (files.empty()) {
    std::fprintf(stderr, "no corpus files: an empty run must not pass\n");
    return 1;
  }

  Run({});
  for (const auto& path : files) {
    // Named before it runs: after a crash this line says which file to look at.
    std::printf("%s\n", path.c_str());
    std::fflush(stdout);
    const std::vector<uint8_t> bytes = ReadFile(path);
    Run(bytes);
    std::mt19937_64 random(bytes.size());
    for (int i = 0; i < kMutationsPerFile; ++i) Run(Mutate(bytes, random));
  }
  std::printf("%zu files, %d mutations each\n", files.size(), kMutationsPerFile);
  return 0;
}
