#include "tests/conformance/backend_conformance.h"

#include "compressor/reference_backend.h"

namespace kvtier {

void BackendConformanceTest::SetUp() {
  backend_ = GetParam().make();
  if (backend_ == nullptr) GTEST_SKIP() << "this machine cannot run " << GetParam().name;
  reference_ = MakeReferenceBackend();
}

}  // namespace kvtier
