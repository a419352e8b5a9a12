// Backends whose activations are bf16, held against the reference on the same rounded inputs: what
// is left is fp32 sums, another order of them, and the rounding of the output. A test instantiates
// it as backend_conformance.h says, with bf16_conformance.cc and backend_tensors.cc.
#ifndef KVTIER_TESTS_CONFORMANCE_BF16_CONFORMANCE_H_
#define KVTIER_TESTS_CONFORMANCE_BF16_CONFORMANCE_H_

#include <memory>

#include "compressor/backend.h"
#include "gtest/gtest.h"
#include "tests/conformance/backend_conformance.h"

namespace kvtier {

class Bf16ConformanceTest : public ::testing::TestWithParam<BackendCase> {
 protected:
  void SetUp() override;

  std::unique_ptr<Backend> backend_;
  std::unique_ptr<Backend> reference_;
};

}  // namespace kvtier

#endif  // KVTIER_TESTS_CONFORMANCE_BF16_CONFORMANCE_H_
