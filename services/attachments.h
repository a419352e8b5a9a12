// The objects that a worker holds in the memory that it computes on, and how many questions run on
// each.
//
//   KVTIER_ASSIGN_OR_RETURN(Attachments::Room room, attachments.Reserve(bytes));
//   ... fetch ...
//   KVTIER_ASSIGN_OR_RETURN(Attachments::Entry entry, attachments.Add(cache, std::move(room)));
#ifndef KVTIER_SERVICES_ATTACHMENTS_H_
#define KVTIER_SERVICES_ATTACHMENTS_H_

#include <atomic>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/limits.h"
#include "base/mutex.h"
#include "compressor/resident_cache.h"
#include "services/metrics.h"

namespace kvtier {

// Thread-safe. Caches stay readable for as long as somebody holds the shared_ptr, also after
// Remove, and count until then.
class Attachments {
 private:
  struct Account;

 public:
  struct Options {
    uint32_t objects_max = limits::kAttachedObjectsMax;
    // Encoded bytes together of what is attached, is on its way here, or is detached and still
    // read; 0: unbounded.
    uint64_t bytes_max = 0;
    uint32_t asks_per_object_max = limits::kConcurrentAsksPerObjectMax;
  };
  // Bytes that count against bytes_max until it is destroyed. Move-only; may outlive its
  // Attachments.
  class Room {
   public:
    Room(Room&& other) noexcept
        : account_(std::move(other.account_)), bytes_(std::exchange(other.bytes_, 0)) {}
    Room& operator=(Room&&) = delete;
    ~Room();

   private:
    friend class Attachments;
    Room(std::shared_ptr<Account> account, uint64_t bytes)
        : account_(std::move(account)), bytes_(bytes) {}
    std::shared_ptr<Account> account_;
    uint64_t bytes_;
  };
  struct Entry {
    uint64_t id = 0;
    std::shared_ptr<const ResidentCache> cache;
    uint32_t references = 0;  // Attach calls not yet answered by a Detach.
    uint32_t running_asks = 0;
  };
  // Counts one running question; releases it when destroyed.
  class Ask {
   public:
    Ask(Attachments& owner, uint64_t id, std::shared_ptr<const ResidentCache> cache)
        : owner_(&owner), id_(id), cache_(std::move(cache)) {}
    ~Ask() { owner_->EndAsk(id_); }
    Ask(const Ask&) = delete;
    Ask& operator=(const Ask&) = delete;
    const std::shared_ptr<const ResidentCache>& cache() const { return cache_; }

   private:
    Attachments* owner_;
    uint64_t id_;
    std::shared_ptr<const ResidentCache> cache_;
  };

  Attachments(Options options, Metrics& metrics);

  // Before a fetch: room for another object of `bytes`. RESOURCE_EXHAUSTED naming the limit that it
  // would exceed, and when to try again unless it does so alone.
  absl::StatusOr<Room> Reserve(uint64_t bytes);
  // The attachment of this upload and band count, with one reference more; NOT_FOUND.
  absl::StatusOr<Entry> FindAndReference(const Key& key, const UploadId& upload,
                                         uint32_t band_count);
  // Adds a cache, or finds that another call has added the same meanwhile and drops this one. Of
  // another size than its room, it takes what it needs. RESOURCE_EXHAUSTED as Reserve().
  absl::StatusOr<Entry> Add(std::shared_ptr<const ResidentCache> cache, Room room);
  // Drops one reference; the last one lets go of the cache. NOT_FOUND.
  absl::Status Remove(uint64_t id);
  // NOT_FOUND: no such attachment. RESOURCE_EXHAUSTED: too many questions at once
  // (named), and when to try again.
  absl::StatusOr<std::unique_ptr<Ask>> BeginAsk(uint64_t id);
  std::vector<Entry> List();

  const Options& options() const { return options_; }

 private:
  friend class Ask;
  void EndAsk(uint64_t id);
  Entry* FindLocked(const Key& key, const UploadId& upload, uint32_t band_count)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Charges `bytes` for one object more.
  absl::Status ChargeLocked(uint64_t bytes) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void ExportLocked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const Options options_;
  Metrics& metrics_;
  const std::shared_ptr<Account> account_;  // Shared with every Room.
  Mutex mutex_;
  absl::flat_hash_map<uint64_t, Entry> entries_ ABSL_GUARDED_BY(mutex_);
  uint64_t bytes_ ABSL_GUARDED_BY(mutex_) = 0;  // Of entries_.
  uint64_t next_id_ ABSL_GUARDED_BY(mutex_) = 1;
};

}  // namespace kvtier

#endif  // KVTIER_SERVICES_ATTACHMENTS_H_
