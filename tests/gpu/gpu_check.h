// What the tests of kvtier-gpu-check know about the run.
#ifndef KVTIER_TESTS_GPU_GPU_CHECK_H_
#define KVTIER_TESTS_GPU_GPU_CHECK_H_

namespace kvtier {

// --device. Set before any test runs.
int DeviceUnderTest();

}  // namespace kvtier

#endif  // KVTIER_TESTS_GPU_GPU_CHECK_H_
