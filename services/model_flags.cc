#include "services/model_flags.h"

#include <set>
#include <utility>

#include "absl/flags/flag.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "base/log.h"
#include "base/status_macros.h"
#include "compressor/cpu_backend.h"

ABSL_FLAG(std::vector<std::string>, model, {},
          "checkpoint folders, comma separated: config.json, *.safetensors, "
          "kvtier_prompt_profile.json");
ABSL_FLAG(std::string, device, "auto", "cpu, or auto: the best there is (the CPU in this build)");
ABSL_FLAG(int, threads, 0, "threads that work on one operation; 0: one per core");

namespace kvtier {
namespace {

absl::StatusOr<std::unique_ptr<Backend>> MakeBackend(const std::string& device, int threads) {
  if (threads < 0) return absl::InvalidArgumentError(absl::StrCat("--threads is ", threads));
  if (device == "cpu" || device == "auto") return MakeCpuBackend({.threads = threads});
  if (absl::StartsWith(device, "cuda")) {
    return absl::InvalidArgumentError(
        absl::StrCat("--device ", device, ": this build has no CUDA backend; use cpu or auto"));
  }
  return absl::InvalidArgumentError(
      absl::StrCat("--device ", device, " is unknown; use cpu or auto"));
}

}  // namespace

absl::StatusOr<LoadedModels> LoadModelsFromFlags() {
  const std::vector<std::string> folders = absl::GetFlag(FLAGS_model);
  if (folders.empty()) return absl::InvalidArgumentError("--model names no checkpoint folder");
  LoadedModels loaded;
  KVTIER_ASSIGN_OR_RETURN(loaded.backend,
                          MakeBackend(absl::GetFlag(FLAGS_device), absl::GetFlag(FLAGS_threads)));
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
