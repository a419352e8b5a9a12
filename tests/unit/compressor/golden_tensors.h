// Tensors of golden files (tests/golden/README.md), however they are aligned.
#ifndef KVTIER_TESTS_UNIT_COMPRESSOR_GOLDEN_TENSORS_H_
#define KVTIER_TESTS_UNIT_COMPRESSOR_GOLDEN_TENSORS_H_

#include <string>
#include <vector>

#include "base/bytes.h"
#include "base/log.h"
#include "compressor/safetensors.h"

namespace kvtier {

// The elements in the order of the file. Dies, naming it, if there is no such tensor: the golden
// file is not what the test was written for. REQUIRES: elements of T's size.
template <typename T>
std::vector<T> GoldenTensor(const SafetensorsFile& file, const std::string& name) {
  const auto found = file.entries().find(name);
  KVTIER_CHECK(found != file.entries().end()) << file.path() << " has no tensor " << name;
  std::vector<T> values;
  for (ByteSpan bytes = found->second.bytes; !bytes.empty(); bytes = bytes.subspan(sizeof(T))) {
    values.push_back(LoadLittleEndian<T>(bytes.data()));
  }
  return values;
}

}  // namespace kvtier

#endif  // KVTIER_TESTS_UNIT_COMPRESSOR_GOLDEN_TENSORS_H_
