#include "cuda/cuda_cublas_lt.h"

#include <dlfcn.h>

#include <string>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "base/status_macros.h"

namespace kvtier {
namespace {

// Where the loader looks, and then where the toolkit of this build has it.
constexpr const char* kNames[] = {KVTIER_CUBLAS_LT_SONAME, KVTIER_CUBLAS_LT_PATH};

absl::StatusOr<void*> Open() {
  std::string reasons;
  for (const char* const name : kNames) {
    if (void* const library = dlopen(name, RTLD_NOW | RTLD_LOCAL)) return library;
    const char* const reason = dlerror();
    absl::StrAppend(&reasons, reasons.empty() ? "" : "; ", reason == nullptr ? name : reason);
  }
  return absl::UnavailableError(absl::StrCat("cannot load cuBLASLt: ", reasons));
}

template <typename Function>
absl::Status Find(void* library, const char* name, Function* function) {
  *function = reinterpret_cast<Function>(dlsym(library, name));
  if (*function != nullptr) return absl::OkStatus();
  return absl::UnavailableError(absl::StrCat("cuBLASLt has no ", name));
}

absl::StatusOr<CublasLt> Load() {
  KVTIER_ASSIGN_OR_RETURN(void* const library, Open());
  CublasLt lt = {};
#define KVTIER_FIND(name) KVTIER_RETURN_IF_ERROR(Find(library, "cublasLt" #name, &lt.name))
  KVTIER_FIND(Create);
  KVTIER_FIND(Destroy);
  KVTIER_FIND(GetStatusName);
  KVTIER_FIND(GetVersion);
  KVTIER_FIND(Matmul);
  KVTIER_FIND(MatmulAlgoGetHeuristic);
  KVTIER_FIND(MatmulDescCreate);
  KVTIER_FIND(MatmulDescDestroy);
  KVTIER_FIND(MatmulDescSetAttribute);
  KVTIER_FIND(MatmulPreferenceCreate);
  KVTIER_FIND(MatmulPreferenceDestroy);
  KVTIER_FIND(MatmulPreferenceSetAttribute);
  KVTIER_FIND(MatrixLayoutCreate);
  KVTIER_FIND(MatrixLayoutDestroy);
#undef KVTIER_FIND
  return lt;
}

}  // namespace

absl::StatusOr<const CublasLt*> LoadCublasLt() {
  static const auto* const loaded = new absl::StatusOr<CublasLt>(Load());
  if (!loaded->ok()) return loaded->status();
  return &**loaded;
}

}  // namespace kvtier
