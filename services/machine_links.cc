#include "services/machine_links.h"

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#ifdef KVTIER_WITH_NCCL
#include "cuda/nccl/nccl_communicator.h"
#endif

namespace kvtier {

absl::StatusOr<std::unique_ptr<CommunicatorFactory>> MachineCommunicators(const Backend& backend) {
#ifdef KVTIER_WITH_NCCL
  absl::string_view ordinal_text = backend.name();
  int ordinal = 0;
  if (!absl::ConsumePrefix(&ordinal_text, "cuda:") || !absl::SimpleAtoi(ordinal_text, &ordinal)) {
    return absl::UnavailableError(
        absl::StrCat("a link is between GPUs, and this program computes on ", backend.name()));
  }
  return MakeNcclFactory(ordinal);
#else
  return absl::InvalidArgumentError(
      absl::StrCat("this build has no NCCL to link ", backend.name(), " with"));
#endif
}

}  // namespace kvtier
