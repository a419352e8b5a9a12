// Flags of programs that run a model, and loading it.
#ifndef KVTIER_SERVICES_MODEL_FLAGS_H_
#define KVTIER_SERVICES_MODEL_FLAGS_H_

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "compressor/model.h"
#include "services/compute_device.h"
#include "services/metrics.h"

namespace kvtier {

// A backend and the models loaded onto it, in the order of --model.
struct LoadedModels {
  std::unique_ptr<Backend> backend;
  std::vector<std::unique_ptr<Model>> models;
};

// How many threads --threads gives one operation of the CPU backend.
int ThreadsFromFlags();

// From --model and --device, on one of `backends`. A fall back to the CPU is logged with its reason
// and shows in kvtier_compute_device.
//   INVALID_ARGUMENT  no model, two of one name, or a device that is unknown or cannot be had
absl::StatusOr<LoadedModels> LoadModelsFromFlags(const DeviceBackends& backends, Metrics& metrics);

}  // namespace kvtier

#endif  // KVTIER_SERVICES_MODEL_FLAGS_H_
