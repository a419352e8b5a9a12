#include "services/lookup_request.h"

#include "absl/strings/str_cat.h"
#include "base/limits.h"
#include "base/status_macros.h"
#include "kvcache/bands.h"
#include "kvcache/ids.h"
#include "kvcache/token_block_hash.h"

namespace kvtier {

static_assert(limits::kLookupBlocksMax == limits::kContextTokensMax / kTokenBlockTokens);
// Any one prompt fits. What keeps to this never meets gRPC's own limit, which is larger and names
// nothing (services/server.cc); 16 MiB are 32 of the longest prompts, and some 30 ms of one thread.
static_assert(limits::kLookupBlocksMax * TokenBlockHash::kSize <= limits::kControlMessageBytesMax);

absl::Status CheckLookupRequest(const v1::LookupRequest& request) {
  if (request.prompts_size() > static_cast<int>(limits::kLookupBatchMax)) {
    return absl::InvalidArgumentError(absl::StrCat(request.prompts_size(), " prompts, at most ",
                                                   limits::kLookupBatchMax, " in one call"));
  }
  if (request.candidates_max() > limits::kLookupCandidatesMax) {
    return absl::InvalidArgumentError(absl::StrCat("candidates_max ", request.candidates_max(),
                                                   " is above ", limits::kLookupCandidatesMax));
  }
  if (request.min_ratio() != 0) {
    KVTIER_RETURN_IF_ERROR(Ratio::FromDouble(request.min_ratio()).status());
  }
  uint64_t bytes_of_all = 0;
  for (int i = 0; i < request.prompts_size(); ++i) {
    const size_t bytes = request.prompts(i).block_hashes().size();
    if (bytes % TokenBlockHash::kSize != 0 ||
        bytes > limits::kLookupBlocksMax * TokenBlockHash::kSize) {
      return absl::InvalidArgumentError(
          absl::StrCat("block_hashes of prompt ", i, " has ", bytes, " bytes; it must be at most ",
                       limits::kLookupBlocksMax, " hashes of ", TokenBlockHash::kSize));
    }
    bytes_of_all += bytes;
  }
  if (bytes_of_all > limits::kControlMessageBytesMax) {
    return absl::InvalidArgumentError(
        absl::StrCat("block_hashes of all prompts have ", bytes_of_all, " bytes, at most ",
                     limits::kControlMessageBytesMax, " (lookup_bytes_max) in one call"));
  }
  return absl::OkStatus();
}

}  // namespace kvtier
