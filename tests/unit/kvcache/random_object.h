// A valid object of any shape with random scores and payload, ranked by sorting: what the format
// tests run on.
#ifndef KVTIER_TESTS_UNIT_KVCACHE_RANDOM_OBJECT_H_
#define KVTIER_TESTS_UNIT_KVCACHE_RANDOM_OBJECT_H_

#include <cstdint>
#include <string>

#include "kvcache/bands.h"
#include "kvcache/compressed_object.h"

namespace kvtier {

struct ObjectShape {
  Geometry geometry;
  uint64_t system_tokens = 0;
  uint64_t context_tokens = 0;
  BandEdges edges = BandEdges::Default();
  uint32_t window = 0;  // Rows that a sliding layer keeps.
  uint64_t seed = 1;
  std::string recipe = "kvzip/1";  // Decides which rows go where, and their codec.
};

// Two layers, two heads of four bf16 elements, one protected token, five in the context, edges 0.4
// and 1: the shape of the example in docs/object_format.md.
ObjectShape TinyShape();

// The same shape and seed give the same object. The manifest passes Validate().
CompressedObject MakeRandomObject(const ObjectShape& shape);

}  // namespace kvtier

#endif  // KVTIER_TESTS_UNIT_KVCACHE_RANDOM_OBJECT_H_
