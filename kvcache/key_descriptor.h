// Everything that a stored cache depends on, in one canonical encoding whose SHA-256 is the Key.
// A missing field in a cache key is the most common source of silent corruption in this field, so
// each field must be set, the encoding is versioned and typed, and decoding refuses unknown,
// missing, repeated and misordered fields. Grammar: docs/object_format.md. The golden vectors in
// tests/golden/key_vectors.json keep every client language on the same key.
//
// The ratio, the band edges and lossless codecs are not in the key: one object serves them all.
// A lossy row encoding is part of the recipe, hence of the key.
#ifndef KVTIER_KVCACHE_KEY_DESCRIPTOR_H_
#define KVTIER_KVCACHE_KEY_DESCRIPTOR_H_

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "kvcache/geometry.h"
#include "kvcache/ids.h"

namespace kvtier {

// LongRoPE spells out two factors per pair of dimensions, hence more than limits::kNameBytesMax.
inline constexpr uint32_t kRopeTextBytesMax = 16 * 1024;

// The descriptor without the context's tokens: what all contexts of one configuration share.
struct KeyDescriptorHead {
  std::string tenant_salt;  // Separates tenants; the tenant's name unless a secret is set.
  Digest model_digest;      // Over config.json and every weight file (compressor/checkpoint.h).
  std::string adapter;      // Name and digest of a LoRA adapter; empty means none.
  DType kv_dtype = DType::kBf16;
  std::string rope;  // Canonical text of every RoPE parameter (model_config.h makes it).
  Digest prompt_profile_digest;            // compressor/prompt_profile.h
  std::string recipe;                      // Canonical text of the scorer recipe, e.g. "kvzip/1".
  std::vector<uint32_t> system_token_ids;  // Protected tokens before the context, prefix included.
};

struct KeyDescriptor {
  KeyDescriptorHead head;
  std::vector<uint32_t> context_token_ids;
};

// Canonical bytes. INVALID_ARGUMENT when a required field is empty (a digest: all zero) or a limit
// is exceeded; only the adapter and the token lists may be empty. This holds for every function
// here.
absl::StatusOr<std::string> EncodeKeyDescriptor(const KeyDescriptor& descriptor);
// INVALID_ARGUMENT on anything but the canonical encoding of one descriptor of this version.
absl::StatusOr<KeyDescriptor> DecodeKeyDescriptor(std::span<const std::byte> bytes);

// SHA-256 of the canonical bytes.
absl::StatusOr<Key> ComputeKey(const KeyDescriptor& descriptor);
// The same without materialising the descriptor twice: `context` is used instead of
// descriptor.context_token_ids. For long contexts.
absl::StatusOr<Key> ComputeKey(const KeyDescriptorHead& head, std::span<const uint32_t> context);
// The key of what is made from a stored object without its tokens and is another selection than it:
// a rectangle. `recipe` is the new object's. Clients that know the tokens compute `key` and derive.
// INVALID_ARGUMENT: key all zero, recipe empty or above limits::kNameBytesMax.
absl::StatusOr<Key> DeriveKey(const Key& key, absl::string_view recipe);
// Hash of the head alone: the initial value of the token-block hash chain.
absl::StatusOr<Digest> ComputeHeadDigest(const KeyDescriptorHead& head);

}  // namespace kvtier

#endif  // KVTIER_KVCACHE_KEY_DESCRIPTOR_H_
