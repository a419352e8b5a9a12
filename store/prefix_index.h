// Which stored contexts are prefixes of a prompt. Objects are indexed at their last full block,
// under the chained hash that names all tokens up to it (kvcache/token_block_hash.h); a prompt
// comes as the hashes of all its full blocks. Any of them may be the last one of an object, so each
// is looked up: a longer match says nothing about shorter ones, and there is nothing to bisect.
//
// A match means equal blocks. The tokens of the object behind its last full block, fewer than one
// block of them, are not known here: the caller confirms a match by the key (docs/protocol.md,
// "Prefix lookup").
//
// An object costs 65 bytes, divided by the load of the table (7/16 to 7/8): 75 to 149 bytes. A
// block that nobody has costs one byte of the table's control bytes, 1 to 2 MiB for a million
// objects, which stay in the processor's cache; those and the slots are prefetched.
//
// A tenant's table is 64 tables, chosen by a byte of the hash. Growing a table moves all that is in
// it, under the lock: 64th parts of it, at different moments, so that no lookup waits for the
// whole.
//
// Thread-safe. One lock, held for the blocks of one prompt: if each table had its own, each probe
// would take one.
#ifndef KVTIER_STORE_PREFIX_INDEX_H_
#define KVTIER_STORE_PREFIX_INDEX_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/container/inlined_vector.h"
#include "absl/strings/string_view.h"
#include "base/mutex.h"
#include "kvcache/ids.h"

namespace kvtier {

// An indexed object.
struct PrefixMatch {
  uint32_t context_tokens = 0;
  UploadId upload;
  friend bool operator==(const PrefixMatch&, const PrefixMatch&) = default;
};

// A prompt.
struct PrefixQuery {
  // Hashes of the prompt's full blocks, first block first, TokenBlockHash::kSize bytes each, laid
  // end to end.
  absl::string_view block_hashes;
  // Context tokens of the prompt. Longer objects are no prefixes of it.
  uint64_t context_tokens = UINT64_MAX;
};

class PrefixIndex {
 public:
  // REQUIRES: (hash, object) is not indexed for this tenant.
  void Insert(const TenantId& tenant, const TokenBlockHash& last_block_hash,
              const PrefixMatch& object) ABSL_LOCKS_EXCLUDED(mutex_);
  // Fine if it is not there.
  void Remove(const TenantId& tenant, const TokenBlockHash& last_block_hash,
              const PrefixMatch& object) ABSL_LOCKS_EXCLUDED(mutex_);

  // Objects of the tenant that end at a block of the prompt, longest first; of equally long ones in
  // the order of upload ids. At most `matches_max`.
  // REQUIRES: block_hashes holds whole hashes.
  std::vector<PrefixMatch> Find(const TenantId& tenant, const PrefixQuery& query,
                                size_t matches_max) const ABSL_LOCKS_EXCLUDED(mutex_);

  size_t size() const ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  // So that hashes are looked up where they lie in the request. absl's hash is seeded by process:
  // nobody can send hashes that collide in the table.
  struct HashOf {
    using is_transparent = void;
    size_t operator()(absl::string_view bytes) const {
      return absl::Hash<absl::string_view>{}(bytes);
    }
    size_t operator()(const TokenBlockHash& hash) const { return (*this)(hash.AsStringView()); }
  };
  struct Equal {
    using is_transparent = void;
    static absl::string_view View(absl::string_view bytes) { return bytes; }
    static absl::string_view View(const TokenBlockHash& hash) { return hash.AsStringView(); }
    template <typename A, typename B>
    bool operator()(const A& a, const B& b) const {
      return View(a) == View(b);
    }
  };
  // Longest first. Nearly always one: others have the same blocks and another tail.
  using Objects = absl::InlinedVector<PrefixMatch, 1>;
  using Table = absl::flat_hash_map<TokenBlockHash, Objects, HashOf, Equal>;
  static constexpr size_t kTables = 64;
  struct Tenant {
    size_t objects = 0;
    std::array<Table, kTables> tables;
    // The hashes are SHA-256, any of their bytes will do. A client that makes its own up slows down
    // its own tenant only.
    static size_t Which(absl::string_view hash) {
      return static_cast<unsigned char>(hash.back()) % kTables;
    }
    Table& Of(absl::string_view hash) { return tables[Which(hash)]; }
    const Table& Of(absl::string_view hash) const { return tables[Which(hash)]; }
  };

  mutable Mutex mutex_;
  // None is empty.
  absl::flat_hash_map<TenantId, std::unique_ptr<Tenant>> tenants_ ABSL_GUARDED_BY(mutex_);
  size_t size_ ABSL_GUARDED_BY(mutex_) = 0;
};

}  // namespace kvtier

#endif  // KVTIER_STORE_PREFIX_INDEX_H_
