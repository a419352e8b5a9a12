// What every Backend must do, held against ReferenceBackend case by case. A backend's test makes an
// instance of the suite:
//   INSTANTIATE_TEST_SUITE_P(Cpu, BackendConformanceTest,
//                            ::testing::Values(BackendCase{"cpu", [] { return MakeCpuBackend();
//                            }}), BackendCaseName);
// with all of backend_conformance*.cc among its sources. Memory goes through Allocate, Upload and
// Download only, so that devices run it too.
#ifndef KVTIER_TESTS_CONFORMANCE_BACKEND_CONFORMANCE_H_
#define KVTIER_TESTS_CONFORMANCE_BACKEND_CONFORMANCE_H_

#include <functional>
#include <memory>
#include <ostream>
#include <string>

#include "compressor/backend.h"
#include "gtest/gtest.h"

namespace kvtier {

struct BackendCase {
  std::string name;
  // Null when this machine cannot run it: the tests are skipped.
  std::function<std::unique_ptr<Backend>()> make;
  // Products of bf16 weights take activations rounded to bf16: the tests give such activations to
  // both sides, so that the tolerances stay those of fp32 sums.
  bool bf16_products = false;
};

inline void PrintTo(const BackendCase& c, std::ostream* os) { *os << c.name; }

inline std::string BackendCaseName(const ::testing::TestParamInfo<BackendCase>& info) {
  return info.param.name;
}

class BackendConformanceTest : public ::testing::TestWithParam<BackendCase> {
 protected:
  void SetUp() override;

  std::unique_ptr<Backend> backend_;
  std::unique_ptr<Backend> reference_;
};

}  // namespace kvtier

#endif  // KVTIER_TESTS_CONFORMANCE_BACKEND_CONFORMANCE_H_
