#include "services/machine_devices.h"

#include "cuda/cuda_backend.h"

namespace kvtier {

DeviceBackends MachineDevices(int threads) {
  DeviceBackends backends = CpuDevices(threads);
#ifdef KVTIER_WITH_CUDA
  backends.cuda = [](int ordinal) { return MakeCudaBackend(ordinal); };
#endif
  return backends;
}

}  // namespace kvtier
