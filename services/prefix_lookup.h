// What an engine asks before it prefills: is a prefix of this prompt stored? For the path on which
// a scheduler waits: it has a deadline, and whatever goes wrong is a miss, counted by its reason
// and never an error.
//
//   PrefixLookup lookup(channel, TenantId());
//   auto hits = lookup.Lookup(head, prompts, Clock::Real().Now() + absl::Milliseconds(5));
//   if (hits[0].has_value()) ... fetch hits[0]->key (FetchRequest::expected_bytes:
//     hits[0]->candidate.resident_bytes()), prefill what is behind hits[0]->context_tokens
#ifndef KVTIER_SERVICES_PREFIX_LOOKUP_H_
#define KVTIER_SERVICES_PREFIX_LOOKUP_H_

#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include <grpcpp/channel.h>

#include "absl/time/time.h"
#include "kvcache/bands.h"
#include "kvcache/ids.h"
#include "kvcache/key_descriptor.h"
#include "kvtier/v1/store.pb.h"

namespace kvtier {

// A stored object that is a prefix of the prompt: its key is the key of the prompt's first
// `context_tokens` tokens.
struct PrefixHit {
  Key key;
  UploadId upload;
  uint64_t context_tokens = 0;
  v1::LookupCandidate candidate;  // As the store told it: sizes, ratio, tier, times.
};

// Per prompt. Invariant: prompts == hits + the misses of every kind.
struct PrefixLookupCounters {
  std::atomic<uint64_t> prompts{0}, hits{0};
  std::atomic<uint64_t> misses{0};       // No candidate.
  std::atomic<uint64_t> unconfirmed{0};  // Candidates, but each has another tail.
  std::atomic<uint64_t> late{0};         // No answer by the deadline.
  std::atomic<uint64_t> unavailable{0};  // No server, or it was too busy.
  std::atomic<uint64_t> refused{0};      // The server refused the request, or its answer made no
                                         // sense: somebody should look.
};

// Thread-safe.
class PrefixLookup {
 public:
  explicit PrefixLookup(std::shared_ptr<grpc::Channel> channel, TenantId tenant = TenantId());
  ~PrefixLookup();

  // For each prompt (its context tokens, in the order of `prompts`) the longest stored context that
  // it begins with and that is resident to at least `min_ratio`. One call for all of them; what is
  // beyond the server's limits (prompts, bytes of hashes) is cut into several, one after the other,
  // which share the deadline. A head that makes no key descriptor (a required field is empty)
  // counts as refused.
  std::vector<std::optional<PrefixHit>> Lookup(const KeyDescriptorHead& head,
                                               std::span<const std::span<const uint32_t>> prompts,
                                               absl::Time deadline,
                                               std::optional<Ratio> min_ratio = std::nullopt);

  const PrefixLookupCounters& counters() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace kvtier

#endif  // KVTIER_SERVICES_PREFIX_LOOKUP_H_
