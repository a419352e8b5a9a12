#include "kvcache/token_block_hash.h"

#include "base/bytes.h"
#include "kvcache/sha256.h"

namespace kvtier {

std::vector<TokenBlockHash> ComputeTokenBlockHashes(const Digest& head_digest,
                                                    std::span<const uint32_t> context_token_ids) {
  std::vector<TokenBlockHash> hashes;
  hashes.reserve(context_token_ids.size() / kTokenBlockTokens);
  std::span<const std::byte> previous = head_digest.bytes();
  for (std::span<const uint32_t> rest = context_token_ids; rest.size() >= kTokenBlockTokens;
       rest = rest.subspan(kTokenBlockTokens)) {
    Sha256 hash;
    hash.Update(previous);
    hash.Update(AsBytes(rest.first(kTokenBlockTokens)));
    hashes.emplace_back(hash.Finish());
    previous = hashes.back().bytes();  // Stays valid: the capacity was reserved.
  }
  return hashes;
}

}  // namespace kvtier
