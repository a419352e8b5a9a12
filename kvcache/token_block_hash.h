// Chained hashes over blocks of context tokens, by which a store finds the stored contexts that
// are prefixes of a prompt. hash[i] = SHA-256(hash[i-1] ++ token ids of block i, u32 little
// endian); hash[-1] is the digest of the key descriptor without its context tokens. A trailing
// partial block has no hash: an object is indexed at its last full block.
#ifndef KVTIER_KVCACHE_TOKEN_BLOCK_HASH_H_
#define KVTIER_KVCACHE_TOKEN_BLOCK_HASH_H_

#include <cstdint>
#include <span>
#include <vector>

#include "kvcache/ids.h"

namespace kvtier {

// Tokens of one block. Part of the format: changing it makes old objects unfindable by prefix.
inline constexpr uint32_t kTokenBlockTokens = 64;

// One hash per full block, in order; empty for contexts shorter than a block.
std::vector<TokenBlockHash> ComputeTokenBlockHashes(const Digest& head_digest,
                                                    std::span<const uint32_t> context_token_ids);

}  // namespace kvtier

#endif  // KVTIER_KVCACHE_TOKEN_BLOCK_HASH_H_
