#include <algorithm>
#include <map>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/bytes.h"
#include "base/crc32c.h"
#include "base/limits.h"
#include "base/log.h"
#include "base/status_macros.h"
#include "base/sync_point.h"
#include "rocksdb/db.h"
#include "rocksdb/write_batch.h"
#include "store/rocksdb_page_tier_impl.h"
#include "store/rocksdb_status.h"

namespace kvtier {
namespace {

using page_disk_format::NameKey;
using page_disk_format::Place;
using page_disk_format::PositionKey;

rocksdb::Slice ToSlice(absl::string_view text) { return {text.data(), text.size()}; }

// Names that are remembered while no write succeeds, and how many of them one batch removes. Pages
// of others may come back: whole ones.
constexpr size_t kInDoubtMax = 65536;
constexpr size_t kInDoubtOfBatch = 256;

}  // namespace

// --- In memory -----------------------------------------------------------------------------------

void RocksDbPageTier::Publish(const PageName& name, const Place& place) {
  Forget(name, std::nullopt);
  places_.emplace(name, place);
  order_[place.position] = name;
  bytes_ += ChargeOf(place.digest.bytes);
  bytes_of_[name.tenant] += ChargeOf(place.digest.bytes);
}

// With a position: only if it is still there.
bool RocksDbPageTier::Forget(const PageName& name, const std::optional<uint64_t>& position) {
  const auto found = places_.find(name);
  if (found == places_.end()) return false;
  if (position.has_value() && found->second.position != *position) return false;
  const uint64_t charge = ChargeOf(found->second.digest.bytes);
  bytes_ -= charge;
  const auto of_tenant = bytes_of_.find(name.tenant);
  of_tenant->second -= charge;
  if (of_tenant->second == 0) bytes_of_.erase(of_tenant);
  order_.erase(found->second.position);
  places_.erase(found);
  return true;
}

// RocksDB drops the oldest file at a time, so files of an earlier start may take more than a write
// buffer with them. They go before any page that was written since.
uint64_t RocksDbPageTier::Window() const {
  const uint64_t written = next_position_ - position_at_open_;
  return std::min(shares_.window, std::max(window_at_open_, written));
}

std::vector<PageName> RocksDbPageTier::TakeExpired() {
  std::vector<PageName> expired;
  while (!order_.empty() && next_position_ - order_.begin()->first > Window()) {
    const PageName name = order_.begin()->second;
    Forget(name, std::nullopt);
    ++evicted_;
    // Nobody puts it again before its record is gone. One that is busy is being removed already.
    if (busy_.insert(name).second) expired.push_back(name);
  }
  return expired;
}

void RocksDbPageTier::EndBusy(std::span<const PageName> names) {
  if (names.empty()) return;
  MutexLock lock(&mutex_);
  for (const PageName& name : names) busy_.erase(name);
  changed_.SignalAll();
}

std::optional<PageDigest> RocksDbPageTier::Find(const PageName& name) {
  MutexLock lock(&mutex_);
  const auto found = places_.find(name);
  if (found == places_.end()) return std::nullopt;
  return found->second.digest;
}

PageTierUsage RocksDbPageTier::Usage() {
  MutexLock lock(&mutex_);
  return {.pages = places_.size(),
          .bytes = bytes_,
          .budget_bytes = options_.budget_bytes,
          .page_bytes_max =
              std::min(limits::kPageBytesMax, shares_.write_buffer - kPageDiskOverheadBytes),
          .evicted = evicted_,
          .records_lost = records_lost_,
          .log_damage = messages_.log_damage() + list_cuts_,
          .resets = resets_};
}

uint64_t RocksDbPageTier::BytesOf(const TenantId& tenant) {
  MutexLock lock(&mutex_);
  const auto found = bytes_of_.find(tenant);
  return found == bytes_of_.end() ? 0 : found->second;
}

// --- Writing -------------------------------------------------------------------------------------

std::vector<PageName> RocksDbPageTier::TakeInDoubt(std::span<const Write* const> own) {
  for (const Write* page : own) in_doubt_.erase(page->name);
  std::vector<PageName> taken;
  for (auto name = in_doubt_.begin(); name != in_doubt_.end() && taken.size() < kInDoubtOfBatch;) {
    // Somebody who writes it now takes care of it himself.
    if (!busy_.insert(*name).second) {
      ++name;
      continue;
    }
    taken.push_back(*name);
    in_doubt_.erase(name++);
  }
  return taken;
}

void RocksDbPageTier::PutInDoubt(const PageName& name) {
  if (in_doubt_.size() < kInDoubtMax) in_doubt_.insert(name);
}

absl::Status RocksDbPageTier::WriteBatch(std::span<const Write* const> pages,
                                         std::span<const Place> places,
                                         std::span<const PageName> gone) {
  KVTIER_RETURN_IF_ERROR(handle_.EnsureWritable());
  std::vector<PageName> in_doubt;
  {
    MutexLock lock(&mutex_);
    in_doubt = TakeInDoubt(pages);
  }
  const absl::Status written = [&]() -> absl::Status {
    const RocksDbHandle::Access access(&handle_);
    KVTIER_RETURN_IF_ERROR(access.writable());
    return Rocks("write pages", [&] {
      rocksdb::WriteBatch batch;
      rocksdb::Status status;
      // First, so that a page that went and is put again is there afterwards.
      for (const std::span<const PageName> names : {std::span<const PageName>(in_doubt), gone}) {
        for (const PageName& name : names) {
          if (status.ok()) status = batch.Delete(NamesOf(*access), NameKey(name));
        }
      }
      for (size_t i = 0; i < pages.size(); ++i) {
        const std::string name_key = NameKey(pages[i]->name);
        if (status.ok()) {
          status = batch.Put(PagesOf(*access), PositionKey(places[i].position),
                             ToSlice(pages[i]->bytes));
        }
        if (status.ok()) {
          status = batch.Put(NamesOf(*access), name_key,
                             page_disk_format::EncodePlace(name_key, places[i]));
        }
      }
      rocksdb::WriteOptions options;
      options.sync = true;
      return status.ok() ? access->db->Write(options, &batch) : status;
    });
  }();
  if (!written.ok()) {
    handle_.MarkFailed(written);
    MutexLock lock(&mutex_);
    in_doubt_.insert(in_doubt.begin(), in_doubt.end());
    for (const Write* page : pages) PutInDoubt(page->name);
  }
  EndBusy(in_doubt);
  return written;
}

absl::Status RocksDbPageTier::PutSome(std::span<const Write* const> pages) {
  std::vector<Place> places;
  std::vector<PageName> expired;
  {
    MutexLock lock(&mutex_);
    for (const Write* page : pages) {
      places.push_back(
          {.position = next_position_,
           .digest = {.bytes = static_cast<uint32_t>(page->bytes.size()), .crc32c = page->crc32c}});
      next_position_ += ChargeOf(page->bytes.size());
    }
    expired = TakeExpired();
  }
  KVTIER_SYNC_POINT("store.pages.before_write");
  // If this fails, a crash may bring back what had expired: whole pages, which expire again.
  const absl::Status written = WriteBatch(pages, places, expired);
  EndBusy(expired);
  KVTIER_RETURN_IF_ERROR(written);
  KVTIER_SYNC_POINT("store.pages.after_write");
  MutexLock lock(&mutex_);
  for (size_t i = 0; i < pages.size(); ++i) Publish(pages[i]->name, places[i]);
  return absl::OkStatus();
}

std::vector<absl::Status> RocksDbPageTier::Put(std::span<const Write> pages) {
  std::vector<absl::Status> statuses(pages.size());
  std::vector<size_t> wanted;  // Indices of what is to be written, each name once.
  std::map<PageName, PageDigest> first_of;
  {
    MutexLock lock(&mutex_);
    const auto is_busy = [&](const Write& page) {
      mutex_.AssertHeld();
      return busy_.contains(page.name);
    };
    while (std::ranges::any_of(pages, is_busy)) changed_.Wait(&mutex_);
    for (size_t i = 0; i < pages.size(); ++i) {
      const Write& page = pages[i];
      const PageDigest digest{static_cast<uint32_t>(page.bytes.size()), page.crc32c};
      const auto there = places_.find(page.name);
      const auto [first, is_first] =
          first_of.emplace(page.name, there != places_.end() ? there->second.digest : digest);
      if (first->second != digest) {
        statuses[i] = absl::AlreadyExistsError("other bytes are stored under this key, and stay");
      } else if (ChargeOf(page.bytes.size()) > shares_.write_buffer) {
        first_of.erase(first);
        // Not RESOURCE_EXHAUSTED: waiting does not help.
        statuses[i] = absl::InvalidArgumentError(absl::StrCat(
            "a page of ", page.bytes.size(), " bytes; with page_disk_mib of ",
            options_.budget_bytes, " bytes and what page_host_mib leaves for writing ",
            "them the largest on disk is ", shares_.write_buffer - kPageDiskOverheadBytes));
      } else if (is_first && there == places_.end()) {
        wanted.push_back(i);
        busy_.insert(page.name);
      }
    }
  }
  for (size_t begin = 0; begin < wanted.size();) {
    std::vector<const Write*> some;
    uint64_t bytes = 0;
    size_t end = begin;
    for (; end < wanted.size(); ++end) {
      bytes += ChargeOf(pages[wanted[end]].bytes.size());
      if (end > begin && bytes > shares_.write_buffer) break;
      some.push_back(&pages[wanted[end]]);
    }
    const absl::Status put = PutSome(some);
    // Repetitions of a name inside the batch share what became of it.
    if (!put.ok()) {
      for (size_t i = 0; i < pages.size(); ++i) {
        const bool is_of_these =
            std::ranges::any_of(some, [&](const Write* one) { return one->name == pages[i].name; });
        if (is_of_these && statuses[i].ok()) statuses[i] = put;
      }
    }
    begin = end;
  }
  std::vector<PageName> names;
  for (const size_t i : wanted) names.push_back(pages[i].name);
  EndBusy(names);
  return statuses;
}

absl::Status RocksDbPageTier::Remove(std::span<const PageName> names) {
  const std::set<PageName> once(names.begin(), names.end());
  const std::vector<PageName> unique(once.begin(), once.end());
  {
    MutexLock lock(&mutex_);
    const auto is_busy = [&](const PageName& name) {
      mutex_.AssertHeld();
      return busy_.contains(name);
    };
    while (std::ranges::any_of(unique, is_busy)) changed_.Wait(&mutex_);
    busy_.insert(unique.begin(), unique.end());
  }
  const absl::Status removed = WriteBatch({}, {}, unique);
  if (removed.ok()) {
    MutexLock lock(&mutex_);
    for (const PageName& name : unique) Forget(name, std::nullopt);
  }
  EndBusy(unique);
  return removed;
}

// --- Reading -------------------------------------------------------------------------------------

absl::StatusOr<std::string> RocksDbPageTier::Get(const PageName& name) {
  Place place;
  {
    MutexLock lock(&mutex_);
    const auto found = places_.find(name);
    if (found == places_.end()) return absl::NotFoundError("");
    place = found->second;
  }
  std::string bytes;
  rocksdb::ReadOptions options;
  options.verify_checksums = false;  // Ours covers the page, and the hardware computes it.
  bool is_file_gone = false;
  const absl::Status read = [&]() -> absl::Status {
    const RocksDbHandle::Access access(&handle_);
    KVTIER_RETURN_IF_ERROR(access.status());
    return Rocks("read a page", [&] {
      const rocksdb::Status status =
          access->db->Get(options, PagesOf(*access), PositionKey(place.position), &bytes);
      is_file_gone = status.IsPathNotFound();
      return status;
    });
  }();
  const bool is_intact = read.ok() && bytes.size() == place.digest.bytes &&
                         ComputeCrc32c(AsBytes(bytes)) == place.digest.crc32c;
  if (is_intact) return bytes;
  if (!read.ok() && !absl::IsNotFound(read) && !absl::IsDataLoss(read) && !is_file_gone) {
    return read;
  }
  bool is_ours = false;  // To remove; somebody else may be at it.
  {
    MutexLock lock(&mutex_);
    // Gone while we read: a miss, whatever we read.
    if (!Forget(name, place.position)) return absl::NotFoundError("");
    if (absl::IsNotFound(read) && !is_file_gone) {  // Dropped with its file: no damage.
      ++evicted_;
      PutInDoubt(name);
      return absl::NotFoundError("");
    }
    is_ours = busy_.insert(name).second;
  }
  const PageName names[] = {name};
  const absl::Status removed = is_ours ? WriteBatch({}, {}, names) : absl::OkStatus();
  if (is_ours) EndBusy(names);
  if (!removed.ok()) KVTIER_LOG(WARNING) << "a damaged page comes back: " << removed.message();
  return absl::DataLossError(absl::StrCat("page ", name.key.ToHex(), " fails its CRC32C on disk"));
}

}  // namespace kvtier
