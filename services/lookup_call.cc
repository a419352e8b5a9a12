#include "services/lookup_call.h"

#include <algorithm>
#include <cmath>
#include <optional>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/limits.h"
#include "base/status_macros.h"
#include "services/load_times.h"
#include "services/lookup_request.h"

namespace kvtier::store_calls {
namespace {

constexpr uint32_t kCandidatesDefault = 4;

// The smallest ratio there is: whatever is resident.
Ratio AnyRatio() { return *Ratio::FromMillionths(1); }

// Rounded up: 0 says that nothing is known.
uint64_t ToMicroseconds(absl::Duration duration) {
  return static_cast<uint64_t>(std::max(1.0, std::ceil(absl::ToDoubleMicroseconds(duration))));
}

void FillCandidate(CallEnvironment& environment, const ObjectStat& stat,
                   v1::LookupCandidate& candidate) {
  const Manifest& manifest = *stat.manifest;
  const uint64_t bytes = manifest.PrefixBytes(stat.resident_bands);
  candidate.mutable_name()->set_key(std::string(manifest.key.AsStringView()));
  candidate.mutable_name()->set_upload_id(std::string(manifest.upload_id.AsStringView()));
  candidate.set_system_tokens(manifest.system_tokens);
  candidate.set_context_tokens(manifest.context_tokens);
  candidate.set_resident_ratio_millionths(
      manifest.bands[stat.resident_bands - 1].edge.millionths());
  candidate.set_resident_bytes(bytes);
  const bool in_host = stat.host_bands >= stat.resident_bands;
  candidate.set_tier(in_host ? v1::TIER_HOST : v1::TIER_DISK);
  const std::optional<absl::Duration> load = environment.load_times().Estimate(
      in_host ? LoadTimes::Source::kHost : LoadTimes::Source::kDisk, bytes);
  if (load.has_value()) candidate.set_load_us(ToMicroseconds(*load));
  if (const double rate = environment.options().prefill_tokens_per_second; rate > 0) {
    candidate.set_prefill_us(
        ToMicroseconds(absl::Seconds(static_cast<double>(manifest.logical_length()) / rate)));
  }
}

}  // namespace

absl::Status Lookup(CallEnvironment& environment, const TenantId& tenant,
                    const v1::LookupRequest& request, v1::LookupResponse& response) {
  KVTIER_RETURN_IF_ERROR(CheckLookupRequest(request));
  Ratio min_ratio = AnyRatio();
  if (request.min_ratio() != 0) {
    KVTIER_ASSIGN_OR_RETURN(min_ratio, Ratio::FromDouble(request.min_ratio()));
  }
  const uint32_t candidates_max =
      request.candidates_max() == 0 ? kCandidatesDefault : request.candidates_max();
  uint64_t blocks = 0;
  uint64_t matched = 0;
  for (const v1::LookupPrompt& prompt : request.prompts()) {
    v1::LookupResult& result = *response.add_results();
    PrefixQuery query{.block_hashes = prompt.block_hashes()};
    if (prompt.context_tokens() != 0) query.context_tokens = prompt.context_tokens();
    for (const ObjectStat& stat :
         environment.store().FindPrefixes(tenant, query, min_ratio, candidates_max)) {
      FillCandidate(environment, stat, *result.add_candidates());
    }
    blocks += prompt.block_hashes().size() / TokenBlockHash::kSize;
    matched += result.candidates_size() > 0 ? 1 : 0;
  }
  Metrics& metrics = environment.metrics();
  metrics.store_lookup_prompts.Increment(static_cast<double>(request.prompts_size()));
  metrics.store_lookup_matches.Increment(static_cast<double>(matched));
  metrics.store_lookup_blocks.Increment(static_cast<double>(blocks));
  return absl::OkStatus();
}

}  // namespace kvtier::store_calls
