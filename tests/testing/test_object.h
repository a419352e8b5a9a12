// Whole objects with a valid manifest and deterministic content, for tests that need something to
// store and read back. Every byte follows from the options; two objects of one key and different
// uploads differ in their bytes, as two computations do.
//
//   const CompressedObject object = MakeTestObject({.seed = 7});
#ifndef KVTIER_TESTS_TESTING_TEST_OBJECT_H_
#define KVTIER_TESTS_TESTING_TEST_OBJECT_H_

#include <cstdint>
#include <string>
#include <vector>

#include "kvcache/compressed_object.h"
#include "kvcache/ids.h"

namespace kvtier {

struct TestObjectOptions {
  uint32_t layers = 3;
  uint32_t sliding_layers = 0;  // Of them, the first ones; windows of eight positions.
  uint32_t kv_heads = 2;
  uint32_t head_dim = 16;
  uint32_t system_tokens = 4;
  uint32_t context_tokens = 60;
  std::string edges = "0.1,0.2,0.3,0.4,0.6,1";
  uint64_t seed = 1;         // Names the key.
  uint64_t upload_seed = 0;  // With `seed`, names the upload and makes the content.
  Key key = {};              // Not zero: the key.
  TokenBlockHash last_block_hash = {};
};

// Dies if the options make no valid object.
CompressedObject MakeTestObject(const TestObjectOptions& options);

// The same object, except that in one segment the first row of its first head with rows has a
// position past the object's end. Its checksums are right, its content is not.
CompressedObject WithWrongPosition(const CompressedObject& object, BandIndex band,
                                   LayerIndex layer);

// The bytes of all segments laid end to end, as an upload sends them.
std::vector<std::byte> ConcatenateSegments(const CompressedObject& object);

}  // namespace kvtier

#endif  // KVTIER_TESTS_TESTING_TEST_OBJECT_H_
