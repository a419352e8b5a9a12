// What this build can compute on: the one place of the programs that knows whether cuda/ is in it.
// A library of its own, so that only programs that run models load what CUDA needs.
#ifndef KVTIER_SERVICES_MACHINE_DEVICES_H_
#define KVTIER_SERVICES_MACHINE_DEVICES_H_

#include "services/compute_device.h"

namespace kvtier {

// As CpuDevices, and GPUs where cuda/ was built.
DeviceBackends MachineDevices(int threads);

}  // namespace kvtier

#endif  // KVTIER_SERVICES_MACHINE_DEVICES_H_
