#include "tests/testing/random.h"

#include <cstdlib>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "base/log.h"

namespace kvtier {

uint64_t TestSeed() {
  const char* const variable = std::getenv("KVTIER_TEST_SEED");
  if (variable == nullptr) return 1;
  uint64_t seed = 0;
  KVTIER_CHECK(absl::SimpleAtoi(variable, &seed)) << "KVTIER_TEST_SEED=" << variable;
  return seed;
}

std::string SeedTrace(uint64_t seed) { return absl::StrCat("replay with KVTIER_TEST_SEED=", seed); }

std::vector<std::byte> RandomBytes(std::mt19937_64& random, size_t count) {
  std::vector<std::byte> bytes(count);
  uint64_t word = 0;
  for (size_t i = 0; i < count; ++i) {
    if (i % sizeof(word) == 0) word = random();
    bytes[i] = static_cast<std::byte>(word >> (8 * (i % sizeof(word))));
  }
  return bytes;
}

uint64_t RandomUniform(std::mt19937_64& random, uint64_t low, uint64_t high) {
  KVTIER_CHECK_LE(low, high);
  return std::uniform_int_distribution<uint64_t>(low, high)(random);
}

}  // namespace kvtier
