// Randomness of tests. Every random test starts from TestSeed() and puts it in the trace, so that a
// failure prints what replays it:
//
//   const uint64_t seed = TestSeed();
//   SCOPED_TRACE(SeedTrace(seed));
//   std::mt19937_64 random(seed);
#ifndef KVTIER_TESTS_TESTING_RANDOM_H_
#define KVTIER_TESTS_TESTING_RANDOM_H_

#include <cstddef>
#include <cstdint>
#include <random>
#include <string>
#include <vector>

namespace kvtier {

// The value of KVTIER_TEST_SEED if it is set, else 1: a plain run is the same every time.
uint64_t TestSeed();

// "replay with KVTIER_TEST_SEED=<seed>"
std::string SeedTrace(uint64_t seed);

std::vector<std::byte> RandomBytes(std::mt19937_64& random, size_t count);

// A number in [low, high]. REQUIRES: low <= high
uint64_t RandomUniform(std::mt19937_64& random, uint64_t low, uint64_t high);

}  // namespace kvtier

#endif  // KVTIER_TESTS_TESTING_RANDOM_H_
