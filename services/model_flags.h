// Flags of programs that run a model, and loading it.
#ifndef KVTIER_SERVICES_MODEL_FLAGS_H_
#define KVTIER_SERVICES_MODEL_FLAGS_H_

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "compressor/model.h"

namespace kvtier {

// A backend and the models loaded onto it, in the order of --model.
struct LoadedModels {
  std::unique_ptr<Backend> backend;
  std::vector<std::unique_ptr<Model>> models;
};

// From --model, --device and --threads.
//   INVALID_ARGUMENT  no model, two of one name, or an unknown device (named)
absl::StatusOr<LoadedModels> LoadModelsFromFlags();

}  // namespace kvtier

#endif  // KVTIER_SERVICES_MODEL_FLAGS_H_
