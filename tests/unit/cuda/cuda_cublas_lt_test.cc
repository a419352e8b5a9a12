// cuBLASLt comes when it is asked for, and a program that may use a GPU starts without it.
#include "cuda/cuda_cublas_lt.h"

#include <dlfcn.h>
#include <pthread.h>

#include "gtest/gtest.h"

namespace kvtier {
namespace {

// What the metrics server asks for. More static thread-local storage than it holds, and there are
// no threads.
constexpr size_t kSmallStackBytes = size_t{64} << 10;

TEST(CublasLtTest, ComesWhenAskedForAndLeavesThreadsTheirStacks) {
  EXPECT_EQ(dlopen(KVTIER_CUBLAS_LT_SONAME, RTLD_NOW | RTLD_NOLOAD), nullptr)
      << "it was there from the start";
  const auto library = LoadCublasLt();
  ASSERT_TRUE(library.ok()) << library.status();
  EXPECT_GE((*library)->GetVersion(), static_cast<size_t>(120000));
  EXPECT_STREQ((*library)->GetStatusName(CUBLAS_STATUS_SUCCESS), "CUBLAS_STATUS_SUCCESS");

  pthread_attr_t attributes;
  ASSERT_EQ(pthread_attr_init(&attributes), 0);
  ASSERT_EQ(pthread_attr_setstacksize(&attributes, kSmallStackBytes), 0);
  pthread_t thread;
  ASSERT_EQ(pthread_create(
                &thread, &attributes, [](void* argument) { return argument; }, nullptr),
            0);
  EXPECT_EQ(pthread_join(thread, nullptr), 0);
  pthread_attr_destroy(&attributes);
}

}  // namespace
}  // namespace kvtier
