// When which upload expires, soonest first. Not thread-safe: TieredStore's mutex guards it.
#ifndef KVTIER_STORE_EXPIRY_QUEUE_H_
#define KVTIER_STORE_EXPIRY_QUEUE_H_

#include <optional>
#include <set>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "absl/time/time.h"
#include "kvcache/ids.h"

namespace kvtier {

class ExpiryQueue {
 public:
  // InfiniteFuture() takes the upload out.
  void Set(const UploadId& upload, absl::Time expires_at) {
    Remove(upload);
    if (expires_at == absl::InfiniteFuture()) return;
    times_.emplace(upload, expires_at);
    queue_.emplace(expires_at, upload);
  }
  // Fine if it is not there.
  void Remove(const UploadId& upload) {
    const auto found = times_.find(upload);
    if (found == times_.end()) return;
    queue_.erase({found->second, upload});
    times_.erase(found);
  }
  // The first one after `after` (nothing: the first of all) whose time has come.
  using Entry = std::pair<absl::Time, UploadId>;
  std::optional<Entry> Due(absl::Time now, const std::optional<Entry>& after) const {
    const auto at = after.has_value() ? queue_.upper_bound(*after) : queue_.begin();
    if (at == queue_.end() || at->first > now) return std::nullopt;
    return *at;
  }
  size_t size() const { return queue_.size(); }

 private:
  std::set<Entry> queue_;
  absl::flat_hash_map<UploadId, absl::Time> times_;
};

}  // namespace kvtier

#endif  // KVTIER_STORE_EXPIRY_QUEUE_H_
