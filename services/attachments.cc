#include "services/attachments.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "base/status_macros.h"
#include "base/too_large.h"
#include "services/status_grpc.h"

namespace kvtier {

// Bytes of all Rooms.
struct Attachments::Account {
  std::atomic<uint64_t> bytes{0};
};

namespace {

// A cache and what it counts for, which is given back after its memory.
struct Held {
  Attachments::Room room;
  std::shared_ptr<const ResidentCache> cache;
};

// Until an object is detached, or a question answered.
absl::Status TryAgainLater(absl::string_view message) {
  constexpr absl::Duration kDelay = absl::Seconds(2);
  return WithRetryAfter(absl::ResourceExhaustedError(message), kDelay);
}

}  // namespace

Attachments::Room::~Room() {
  if (account_ != nullptr) account_->bytes -= bytes_;
}

Attachments::Attachments(Options options, Metrics& metrics)
    : options_(options), metrics_(metrics), account_(std::make_shared<Account>()) {}

absl::Status Attachments::ChargeLocked(uint64_t bytes) {
  if (entries_.size() >= options_.objects_max) {
    return TryAgainLater(
        absl::StrCat("this worker holds ", entries_.size(), " objects, its limit; detach one"));
  }
  if (options_.bytes_max != 0 && bytes > options_.bytes_max) {
    return TooLargeError(absl::StrCat("attaching ", bytes, " bytes exceeds this worker's limit of ",
                                      options_.bytes_max));
  }
  // Charged under the lock, so that only giving back runs beside this.
  const uint64_t used = account_->bytes.load();
  if (options_.bytes_max != 0 && (used > options_.bytes_max || bytes > options_.bytes_max - used)) {
    return TryAgainLater(
        absl::StrCat("attaching ", bytes, " bytes beside the ", used,
                     " attached, on their way or still read exceeds this worker's limit of ",
                     options_.bytes_max));
  }
  account_->bytes += bytes;
  return absl::OkStatus();
}

absl::StatusOr<Attachments::Room> Attachments::Reserve(uint64_t bytes) {
  MutexLock lock(&mutex_);
  KVTIER_RETURN_IF_ERROR(ChargeLocked(bytes));
  return Room(account_, bytes);
}

void Attachments::ExportLocked() {
  metrics_.worker_attached_objects.Set(static_cast<double>(entries_.size()));
  metrics_.worker_attached_bytes.Set(static_cast<double>(bytes_));
}

Attachments::Entry* Attachments::FindLocked(const Key& key, const UploadId& upload,
                                            uint32_t band_count) {
  for (auto& [id, entry] : entries_) {
    const Manifest& manifest = entry.cache->manifest();
    if (manifest.key == key && manifest.upload_id == upload &&
        entry.cache->band_count() == band_count) {
      return &entry;
    }
  }
  return nullptr;
}

absl::StatusOr<Attachments::Entry> Attachments::FindAndReference(const Key& key,
                                                                 const UploadId& upload,
                                                                 uint32_t band_count) {
  MutexLock lock(&mutex_);
  Entry* entry = FindLocked(key, upload, band_count);
  if (entry == nullptr) return absl::NotFoundError("");
  ++entry->references;
  return *entry;
}

absl::StatusOr<Attachments::Entry> Attachments::Add(std::shared_ptr<const ResidentCache> cache,
                                                    Room room) {
  MutexLock lock(&mutex_);
  const Manifest& manifest = cache->manifest();
  if (Entry* entry = FindLocked(manifest.key, manifest.upload_id, cache->band_count())) {
    ++entry->references;
    return *entry;
  }
  const uint64_t reserved = std::exchange(room.bytes_, 0);
  room.account_->bytes -= reserved;
  KVTIER_RETURN_IF_ERROR(ChargeLocked(cache->bytes()));
  room.bytes_ = cache->bytes();
  const auto held = std::make_shared<Held>(Held{std::move(room), std::move(cache)});
  cache = std::shared_ptr<const ResidentCache>(held, held->cache.get());
  const uint64_t id = next_id_++;
  bytes_ += cache->bytes();
  Entry& entry = entries_[id];
  entry = Entry{.id = id, .cache = std::move(cache), .references = 1, .running_asks = 0};
  ExportLocked();
  return entry;
}

absl::Status Attachments::Remove(uint64_t id) {
  std::shared_ptr<const ResidentCache> last;  // Freed after the lock.
  MutexLock lock(&mutex_);
  const auto it = entries_.find(id);
  if (it == entries_.end()) return absl::NotFoundError(absl::StrCat("no attachment ", id));
  if (--it->second.references > 0) return absl::OkStatus();
  last = std::move(it->second.cache);
  bytes_ -= last->bytes();
  entries_.erase(it);
  ExportLocked();
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<Attachments::Ask>> Attachments::BeginAsk(uint64_t id) {
  MutexLock lock(&mutex_);
  const auto it = entries_.find(id);
  if (it == entries_.end()) return absl::NotFoundError(absl::StrCat("no attachment ", id));
  if (it->second.running_asks >= options_.asks_per_object_max) {
    return TryAgainLater(absl::StrCat("attachment ", id, " answers ", it->second.running_asks,
                                      " questions already, its limit"));
  }
  ++it->second.running_asks;
  return std::make_unique<Ask>(*this, id, it->second.cache);
}

void Attachments::EndAsk(uint64_t id) {
  MutexLock lock(&mutex_);
  // A detached attachment is gone; its questions finish on the cache they hold.
  if (const auto it = entries_.find(id); it != entries_.end()) --it->second.running_asks;
}

std::vector<Attachments::Entry> Attachments::List() {
  MutexLock lock(&mutex_);
  std::vector<Entry> list;
  for (const auto& [id, entry] : entries_) list.push_back(entry);
  std::sort(list.begin(), list.end(), [](const Entry& a, const Entry& b) { return a.id < b.id; });
  return list;
}

}  // namespace kvtier
