// The objects that a worker holds in memory, and how many questions run on each.
#ifndef KVTIER_SERVICES_ATTACHMENTS_H_
#define KVTIER_SERVICES_ATTACHMENTS_H_

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/limits.h"
#include "base/mutex.h"
#include "kvcache/ragged_view.h"
#include "services/metrics.h"

namespace kvtier {

// Thread-safe. Caches stay readable for as long as somebody holds the shared_ptr, also after
// Remove.
class Attachments {
 public:
  struct Options {
    uint32_t objects_max = limits::kAttachedObjectsMax;
    uint64_t bytes_max = 0;  // Encoded bytes of all attachments together; 0: unbounded.
    uint32_t asks_per_object_max = limits::kConcurrentAsksPerObjectMax;
  };
  struct Entry {
    uint64_t id = 0;
    std::shared_ptr<const RaggedCache> cache;
    uint32_t references = 0;  // Attach calls not yet answered by a Detach.
    uint32_t running_asks = 0;
  };
  // Counts one running question; releases it when destroyed.
  class Ask {
   public:
    Ask(Attachments& owner, uint64_t id, std::shared_ptr<const RaggedCache> cache)
        : owner_(&owner), id_(id), cache_(std::move(cache)) {}
    ~Ask() { owner_->EndAsk(id_); }
    Ask(const Ask&) = delete;
    Ask& operator=(const Ask&) = delete;
    const std::shared_ptr<const RaggedCache>& cache() const { return cache_; }

   private:
    Attachments* owner_;
    uint64_t id_;
    std::shared_ptr<const RaggedCache> cache_;
  };

  Attachments(Options options, Metrics& metrics);

  // RESOURCE_EXHAUSTED naming the limit, if `bytes` more would exceed it. Asked before a fetch.
  absl::Status CheckRoom(uint64_t bytes);
  // The attachment of this upload and band count, with one reference more; NOT_FOUND.
  absl::StatusOr<Entry> FindAndReference(const Key& key, const UploadId& upload,
                                         uint32_t band_count);
  // Adds a cache, or finds that another call has added the same meanwhile and drops this one.
  absl::StatusOr<Entry> Add(std::shared_ptr<const RaggedCache> cache);
  // Drops one reference; the last one lets go of the cache. NOT_FOUND.
  absl::Status Remove(uint64_t id);
  // NOT_FOUND: no such attachment. RESOURCE_EXHAUSTED: too many questions at once (named).
  absl::StatusOr<std::unique_ptr<Ask>> BeginAsk(uint64_t id);
  std::vector<Entry> List();

  const Options& options() const { return options_; }

 private:
  friend class Ask;
  void EndAsk(uint64_t id);
  Entry* FindLocked(const Key& key, const UploadId& upload, uint32_t band_count)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::Status CheckRoomLocked(uint64_t bytes) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void ExportLocked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const Options options_;
  Metrics& metrics_;
  Mutex mutex_;
  absl::flat_hash_map<uint64_t, Entry> entries_ ABSL_GUARDED_BY(mutex_);
  uint64_t bytes_ ABSL_GUARDED_BY(mutex_) = 0;
  uint64_t next_id_ ABSL_GUARDED_BY(mutex_) = 1;
};

}  // namespace kvtier

#endif  // KVTIER_SERVICES_ATTACHMENTS_H_
