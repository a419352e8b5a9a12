#include "services/model_flags.h"

#include <set>
#include <utility>

#include "absl/flags/flag.h"
#include "absl/strings/str_cat.h"
#include "base/log.h"
#include "base/status_macros.h"

ABSL_FLAG(std::vector<std::string>, model, {},
          "checkpoint folders, comma separated: config.json, *.safetensors, "
          "kvtier_prompt_profile.json");
ABSL_FLAG(std::string, device, "cpu",
          "cpu, cuda:N, or auto: the first GPU, the CPU where there is none");
ABSL_FLAG(int, threads, 0, "threads that work on one operation; 0: one per core");

namespace kvtier {

int ThreadsFromFlags() { return absl::GetFlag(FLAGS_threads); }

absl::StatusOr<LoadedModels> LoadModelsFromFlags(const DeviceBackends& backends, Metrics& metrics) {
  const std::vector<std::string> folders = absl::GetFlag(FLAGS_model);
  if (folders.empty()) return absl::InvalidArgumentError("--model names no checkpoint folder");
  LoadedModels loaded;
  KVTIER_ASSIGN_OR_RETURN(const DeviceChoice choice,
                          DeviceChoice::Parse(absl::GetFlag(FLAGS_device)));
  KVTIER_ASSIGN_OR_RETURN(ComputeDevice device, OpenComputeDevice(choice, backends));
  loaded.backend = std::move(device.backend);
  metrics.SetComputeDevice(choice.ToString(), loaded.backend->name());
  metrics.ExportLibraries(loaded.backend->library_counters());
  if (!device.fallback_reason.empty()) {
    const std::string text = absl::StrCat("--device ", choice.ToString(), ": computing on ",
                                          loaded.backend->name(), ": ", device.fallback_reason);
    // Who asked for a GPU by name has a machine that is not as it should be.
    if (choice.kind == DeviceChoice::Kind::kCuda) {
      KVTIER_LOG(WARNING) << text;
    } else {
      KVTIER_LOG(INFO) << text;
    }
  }
  std::set<std::string> names;
  for (const std::string& folder : folders) {
    KVTIER_ASSIGN_OR_RETURN(std::unique_ptr<Model> model, Model::Load(folder, *loaded.backend));
    if (!names.insert(model->name()).second) {
      return absl::InvalidArgumentError(
          absl::StrCat("--model: two folders are called '", model->name(), "'"));
    }
    KVTIER_LOG(INFO) << "loaded " << model->name() << " (" << model->weight_bytes()
                     << " bytes of weights) on " << loaded.backend->name();
    loaded.models.push_back(std::move(model));
  }
  return loaded;
}

}  // namespace kvtier
