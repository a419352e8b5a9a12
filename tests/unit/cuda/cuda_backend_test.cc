// What a program sees where there is no GPU, built with CUDA or without.
#include "cuda/cuda_backend.h"

#include "base/status_matchers.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace kvtier {
namespace {

TEST(CudaBackendTest, ADeviceThatIsNotThereIsUnavailable) {
  for (const int ordinal : {-1, 1000}) {
    EXPECT_THAT(MakeCudaBackend(ordinal),
                StatusIs(absl::StatusCode::kUnavailable, ::testing::HasSubstr("cuda")));
  }
}

}  // namespace
}  // namespace kvtier
