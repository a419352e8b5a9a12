#include "services/prefix_lookup.h"

#include <algorithm>
#include <string>
#include <utility>

#include <grpcpp/client_context.h>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/limits.h"
#include "base/log.h"
#include "base/status_macros.h"
#include "kvcache/token_block_hash.h"
#include "kvtier/v1/store.grpc.pb.h"
#include "services/status_grpc.h"
#include "services/tenant.h"

namespace kvtier {
namespace {

using Prompt = std::span<const uint32_t>;

// Longer contexts than the longest that can be stored still have stored prefixes.
Prompt WhatCanBeStored(Prompt prompt) {
  return prompt.first(std::min<size_t>(prompt.size(), limits::kContextTokensMax));
}

uint64_t HashBytes(Prompt prompt) {
  return WhatCanBeStored(prompt).size() / kTokenBlockTokens * TokenBlockHash::kSize;
}

// How many of the first prompts one call may ask for, at least one. REQUIRES: not empty.
size_t CountOfNextCall(std::span<const Prompt> prompts) {
  uint64_t bytes = 0;
  size_t count = 0;
  while (count < std::min<size_t>(prompts.size(), limits::kLookupBatchMax)) {
    bytes += HashBytes(prompts[count]);
    if (count > 0 && bytes > limits::kControlMessageBytesMax) break;
    ++count;
  }
  return count;
}

// The longest candidate whose key is the prompt's. Candidates of one length share the key that they
// must have, so that each length costs one hash over the tokens.
absl::StatusOr<std::optional<PrefixHit>> Confirm(const KeyDescriptorHead& head, Prompt prompt,
                                                 const v1::LookupResult& result) {
  uint64_t length = UINT64_MAX;
  Key expected;
  for (const v1::LookupCandidate& candidate : result.candidates()) {
    KVTIER_ASSIGN_OR_RETURN(const Key key, Key::FromBytes(candidate.name().key()));
    KVTIER_ASSIGN_OR_RETURN(const UploadId upload,
                            UploadId::FromBytes(candidate.name().upload_id()));
    if (candidate.context_tokens() > prompt.size()) continue;
    if (candidate.context_tokens() != length) {
      length = candidate.context_tokens();
      KVTIER_ASSIGN_OR_RETURN(expected, ComputeKey(head, prompt.first(length)));
    }
    if (key == expected) return PrefixHit{key, upload, length, candidate};
  }
  return std::optional<PrefixHit>();
}

}  // namespace

struct PrefixLookup::Impl {
  Impl(const std::shared_ptr<grpc::Channel>& channel, TenantId its_tenant)
      : tenant(std::move(its_tenant)), stub(v1::StoreService::NewStub(channel)) {}

  absl::Status LookupSome(const KeyDescriptorHead& head, const Digest& head_digest,
                          std::span<const Prompt> prompts, absl::Time deadline,
                          std::optional<Ratio> min_ratio, std::span<std::optional<PrefixHit>> hits);
  void CountFailure(const absl::Status& status, size_t prompts);

  const TenantId tenant;
  const std::unique_ptr<v1::StoreService::Stub> stub;
  PrefixLookupCounters counters;
};

PrefixLookup::PrefixLookup(std::shared_ptr<grpc::Channel> channel, TenantId tenant)
    : impl_(std::make_unique<Impl>(channel, std::move(tenant))) {}
PrefixLookup::~PrefixLookup() = default;

const PrefixLookupCounters& PrefixLookup::counters() const { return impl_->counters; }

absl::Status PrefixLookup::Impl::LookupSome(const KeyDescriptorHead& head,
                                            const Digest& head_digest,
                                            std::span<const Prompt> prompts, absl::Time deadline,
                                            std::optional<Ratio> min_ratio,
                                            std::span<std::optional<PrefixHit>> hits) {
  v1::LookupRequest request;
  request.set_candidates_max(limits::kLookupCandidatesMax);
  if (min_ratio.has_value()) request.set_min_ratio(min_ratio->ToDouble());
  for (const Prompt prompt : prompts) {
    v1::LookupPrompt& message = *request.add_prompts();
    message.set_context_tokens(prompt.size());
    std::string& bytes = *message.mutable_block_hashes();
    bytes.reserve(HashBytes(prompt));
    for (const TokenBlockHash& hash :
         ComputeTokenBlockHashes(head_digest, WhatCanBeStored(prompt))) {
      bytes.append(hash.AsStringView().data(), TokenBlockHash::kSize);
    }
  }
  grpc::ClientContext context;
  if (deadline != absl::InfiniteFuture()) context.set_deadline(absl::ToChronoTime(deadline));
  AddTenant(tenant, context);
  v1::LookupResponse response;
  KVTIER_RETURN_IF_ERROR(FromGrpcStatus(stub->Lookup(&context, request, &response)));
  if (response.results_size() != static_cast<int>(prompts.size())) {
    return absl::InternalError("the store answered for another number of prompts");
  }
  for (size_t i = 0; i < prompts.size(); ++i) {
    const v1::LookupResult& result = response.results(static_cast<int>(i));
    absl::StatusOr<std::optional<PrefixHit>> hit = Confirm(head, prompts[i], result);
    if (!hit.ok()) {
      CountFailure(hit.status(), 1);
      continue;
    }
    ++(hit->has_value()                ? counters.hits
       : result.candidates_size() == 0 ? counters.misses
                                       : counters.unconfirmed);
    hits[i] = *std::move(hit);
  }
  return absl::OkStatus();
}

void PrefixLookup::Impl::CountFailure(const absl::Status& status, size_t prompts) {
  switch (status.code()) {
    case absl::StatusCode::kDeadlineExceeded:
      counters.late += prompts;
      break;
    case absl::StatusCode::kUnavailable:
    case absl::StatusCode::kResourceExhausted:
      counters.unavailable += prompts;
      break;
    default:
      KVTIER_LOG_EVERY_N_SEC(WARNING, 10) << "prefix lookup: " << status;
      counters.refused += prompts;
  }
}

std::vector<std::optional<PrefixHit>> PrefixLookup::Lookup(const KeyDescriptorHead& head,
                                                           std::span<const Prompt> prompts,
                                                           absl::Time deadline,
                                                           std::optional<Ratio> min_ratio) {
  std::vector<std::optional<PrefixHit>> hits(prompts.size());
  impl_->counters.prompts += prompts.size();
  const absl::StatusOr<Digest> head_digest = ComputeHeadDigest(head);
  if (!head_digest.ok()) {
    impl_->CountFailure(head_digest.status(), prompts.size());
    return hits;
  }
  for (size_t begin = 0, count = 0; begin < prompts.size(); begin += count) {
    count = CountOfNextCall(prompts.subspan(begin));
    const absl::Status looked_up =
        impl_->LookupSome(head, *head_digest, prompts.subspan(begin, count), deadline, min_ratio,
                          std::span(hits).subspan(begin, count));
    if (!looked_up.ok()) impl_->CountFailure(looked_up, count);
  }
  return hits;
}

}  // namespace kvtier
