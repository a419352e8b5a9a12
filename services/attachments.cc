#include "services/attachments.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"

namespace kvtier {

Attachments::Attachments(Options options, Metrics& metrics)
    : options_(options), metrics_(metrics) {}

absl::Status Attachments::CheckRoomLocked(uint64_t bytes) {
  if (entries_.size() >= options_.objects_max) {
    return absl::ResourceExhaustedError(
        absl::StrCat("this worker holds ", entries_.size(), " objects, its limit; detach one"));
  }
  if (options_.bytes_max != 0 && bytes_ + bytes > options_.bytes_max) {
    return absl::ResourceExhaustedError(
        absl::StrCat("attaching ", bytes, " bytes beside the ", bytes_,
                     " attached exceeds this worker's limit of ", options_.bytes_max));
  }
  return absl::OkStatus();
}

absl::Status Attachments::CheckRoom(uint64_t bytes) {
  MutexLock lock(&mutex_);
  return CheckRoomLocked(bytes);
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

absl::StatusOr<Attachments::Entry> Attachments::Add(std::shared_ptr<const RaggedCache> cache) {
  MutexLock lock(&mutex_);
  const Manifest& manifest = cache->manifest();
  if (Entry* entry = FindLocked(manifest.key, manifest.upload_id, cache->band_count())) {
    ++entry->references;
    return *entry;
  }
  KVTIER_RETURN_IF_ERROR(CheckRoomLocked(cache->bytes()));
  const uint64_t id = next_id_++;
  bytes_ += cache->bytes();
  Entry& entry = entries_[id];
  entry = Entry{.id = id, .cache = std::move(cache), .references = 1, .running_asks = 0};
  ExportLocked();
  return entry;
}

absl::Status Attachments::Remove(uint64_t id) {
  std::shared_ptr<const RaggedCache> last;  // Freed after the lock.
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
    return absl::ResourceExhaustedError(absl::StrCat(
        "attachment ", id, " answers ", it->second.running_asks, " questions already, its limit"));
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
