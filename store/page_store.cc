#include "store/page_store.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "base/bytes.h"
#include "base/limits.h"
#include "base/log.h"
#include "base/status_macros.h"
#include "base/sync_point.h"
#include "store/page_cache.h"

namespace kvtier {
namespace {

absl::Status OtherBytesError() {
  return absl::AlreadyExistsError("other bytes are stored under this key, and stay");
}

// A string may have room for more than it holds, which no budget knows.
void TrimCapacity(std::string& bytes) {
  if (bytes.capacity() - bytes.size() > bytes.size() / 8) bytes.shrink_to_fit();
}

class PageStoreImpl final : public PageStore {
 public:
  PageStoreImpl(const PageStoreOptions& options, std::unique_ptr<PageTier> disk)
      : disk_(std::move(disk)),
        quotas_(options.tenant_quotas),
        host_(options.host_budget_bytes, options.shards, kPageOverheadBytes,
              options.tenant_quotas) {}

  std::vector<absl::Status> Put(const TenantId& tenant, std::vector<PagePut> pages,
                                Durability durability) override {
    KVTIER_CHECK(durability == Durability::kHost || disk_ != nullptr);
    std::vector<absl::Status> statuses(pages.size());
    std::vector<PageCache::Inserted> inserted(pages.size());  // Held: not evicted meanwhile.
    // Host memory first, whatever the durability: that is where the first of two wins.
    for (size_t i = 0; i < pages.size(); ++i) {
      statuses[i] = PutInHost({tenant, pages[i].key}, &pages[i], &inserted[i]);
    }
    if (durability == Durability::kDisk) PutOnDisk(tenant, pages, inserted, &statuses);
    for (size_t i = 0; i < pages.size(); ++i) {
      ++(statuses[i].ok() ? (inserted[i].is_new ? counters_.stored : counters_.kept)
         : absl::IsAlreadyExists(statuses[i]) ? counters_.conflicts
                                              : counters_.refused);
    }
    return statuses;
  }

  bool GetFromHost(const TenantId& tenant, std::span<const PageKey> keys,
                   std::vector<PageRef>* pages) override {
    pages->assign(keys.size(), nullptr);
    uint64_t hits = 0;
    bool on_disk = false;
    for (size_t i = 0; i < keys.size(); ++i) {
      (*pages)[i] = host_.Get(tenant, keys[i]);
      if ((*pages)[i] != nullptr) {
        ++hits;
      } else if (!on_disk && disk_ != nullptr) {
        on_disk = disk_->Find({tenant, keys[i]}).has_value();
      }
    }
    counters_.host_hits += hits;
    counters_.gets += hits;
    if (!on_disk) {
      counters_.misses += keys.size() - hits;
      counters_.gets += keys.size() - hits;
    }
    return on_disk;
  }

  std::vector<absl::Status> GetFromDisk(const TenantId& tenant, std::span<const PageKey> keys,
                                        uint64_t bytes_max, std::vector<PageRef>* pages) override {
    std::vector<absl::Status> statuses(keys.size());
    uint64_t bytes = 0;
    for (const PageRef& page : *pages) bytes += page == nullptr ? 0 : page->bytes().size();
    for (size_t i = 0; i < keys.size(); ++i) {
      PageRef& page = (*pages)[i];
      if (page != nullptr) continue;
      const std::optional<PageDigest> found = disk_->Find({tenant, keys[i]});
      if (found.has_value() && (bytes > bytes_max || found->bytes > bytes_max - bytes)) {
        ++counters_.gets;
        ++counters_.failures;
        statuses[i] = absl::ResourceExhaustedError(
            absl::StrCat("more than ", bytes_max, " bytes of pages in one call"));
        continue;
      }
      statuses[i] = ReadFromDisk({tenant, keys[i]}, &page);
      if (page != nullptr) bytes += page->bytes().size();
    }
    return statuses;
  }

  std::vector<PagePlace> Locate(const TenantId& tenant, std::span<const PageKey> keys) override {
    std::vector<PagePlace> places(keys.size(), PagePlace::kNowhere);
    for (size_t i = 0; i < keys.size(); ++i) {
      if (host_.Contains(tenant, keys[i])) {
        places[i] = PagePlace::kHost;
      } else if (disk_ != nullptr && disk_->Find({tenant, keys[i]}).has_value()) {
        places[i] = PagePlace::kDisk;
      }
    }
    return places;
  }

  std::vector<absl::Status> Delete(const TenantId& tenant, std::span<const PageKey> keys) override {
    std::vector<absl::Status> statuses(keys.size());
    std::vector<PageName> on_disk;
    std::vector<bool> was_there(keys.size());
    for (size_t i = 0; i < keys.size(); ++i) {
      if (disk_ != nullptr && disk_->Find({tenant, keys[i]}).has_value()) {
        on_disk.push_back({tenant, keys[i]});
        was_there[i] = true;
      }
    }
    // The disk first: what is gone from memory alone would be read again from there.
    absl::Status removed;
    if (!on_disk.empty()) removed = disk_->Remove(on_disk);
    for (size_t i = 0; i < keys.size(); ++i) {
      if (was_there[i] && !removed.ok()) {
        statuses[i] = removed;
        continue;
      }
      if (host_.Remove(tenant, keys[i])) was_there[i] = true;
      if (was_there[i]) ++counters_.deleted;
      if (!was_there[i]) statuses[i] = absl::NotFoundError("");
    }
    return statuses;
  }

  bool has_disk() const override { return disk_ != nullptr; }
  const PageCounters& counters() const override { return counters_; }
  PageHostUsage host_usage() const override {
    return {.pages = host_.pages(),
            .bytes = host_.bytes(),
            .budget_bytes = host_.budget_bytes(),
            .evicted = host_.evicted(),
            .quota_evicted = host_.quota_evicted(),
            .quota_refused = host_.quota_refused()};
  }
  TenantPages usage_of(const TenantId& tenant) const override {
    const TenantUse host = host_.UseOf(tenant);
    return {.host_pages = host.objects,
            .host_bytes = host.resident_bytes,
            .disk_bytes = disk_ == nullptr ? 0 : disk_->BytesOf(tenant),
            .quota_bytes = quotas_.Of(tenant)};
  }
  std::optional<PageTierUsage> disk_usage() const override {
    if (disk_ == nullptr) return std::nullopt;
    return disk_->Usage();
  }

 private:
  absl::Status PutInHost(const PageName& name, PagePut* put, PageCache::Inserted* inserted) {
    const uint64_t size = put->bytes.size();
    if (size == 0 || size > limits::kPageBytesMax) {
      return absl::InvalidArgumentError(
          absl::StrCat("a page of ", size, " bytes; it must be 1 to ", limits::kPageBytesMax));
    }
    const Crc32c crc32c = ComputeCrc32c(AsBytes(put->bytes));
    if (put->crc32c.has_value() && *put->crc32c != crc32c) {
      return absl::InvalidArgumentError("the page does not match its CRC32C");
    }
    // Before anybody can see it; once more below, because the disk may have got another meanwhile.
    const auto differs = [&] {
      const std::optional<PageDigest> on_disk = disk_ == nullptr ? std::nullopt : disk_->Find(name);
      return on_disk.has_value() && *on_disk != PageDigest{static_cast<uint32_t>(size), crc32c};
    };
    if (differs()) return OtherBytesError();
    TrimCapacity(put->bytes);
    KVTIER_ASSIGN_OR_RETURN(*inserted, host_.Insert(name, crc32c, &put->bytes));
    if (!inserted->is_new) {
      const Page& there = *inserted->page;
      return there.bytes().size() == size && there.crc32c() == crc32c ? absl::OkStatus()
                                                                      : OtherBytesError();
    }
    if (differs()) {
      host_.Remove(name.tenant, name.key);
      return OtherBytesError();
    }
    return absl::OkStatus();
  }

  // Those whose status is OK. One that the disk refuses stays in host memory.
  void PutOnDisk(const TenantId& tenant, const std::vector<PagePut>& pages,
                 const std::vector<PageCache::Inserted>& inserted,
                 std::vector<absl::Status>* statuses) {
    std::vector<PageTier::Write> writes;
    std::vector<size_t> of;  // Index of each write in `pages`.
    const uint64_t quota = quotas_.Of(tenant);
    uint64_t on_disk = quota == 0 ? 0 : disk_->BytesOf(tenant);
    for (size_t i = 0; i < pages.size(); ++i) {
      if (!(*statuses)[i].ok()) continue;
      const Page& page = *inserted[i].page;
      if (quota != 0 && !disk_->Find({tenant, pages[i].key}).has_value()) {
        const uint64_t charge = disk_->ChargeOf(page.bytes().size());
        if (on_disk > quota || charge > quota - on_disk) {
          ++counters_.disk_quota_refused;
          (*statuses)[i] = absl::ResourceExhaustedError(
              absl::StrCat("tenant ", tenant.name(), " has ", on_disk, " bytes of pages on disk, ",
                           charge, " more are beyond its quota of ", quota));
          continue;
        }
        on_disk += charge;
      }
      writes.push_back({{tenant, pages[i].key}, page.bytes(), page.crc32c()});
      of.push_back(i);
    }
    std::vector<absl::Status> written = disk_->Put(writes);
    for (size_t w = 0; w < of.size(); ++w) (*statuses)[of[w]] = std::move(written[w]);
  }

  absl::Status ReadFromDisk(const PageName& name, PageRef* page) {
    ++counters_.gets;
    const uint64_t removals = host_.Removals(name.key);
    absl::StatusOr<std::string> bytes = disk_->Get(name);
    KVTIER_SYNC_POINT("store.pages.after_disk_read");
    if (!bytes.ok()) {
      if (absl::IsNotFound(bytes.status())) {
        ++counters_.misses;
      } else {
        ++counters_.failures;
        if (absl::IsDataLoss(bytes.status())) ++counters_.checksum_failures;
      }
      return bytes.status();
    }
    ++counters_.disk_hits;
    const Crc32c crc32c = ComputeCrc32c(AsBytes(*bytes));  // The tier has compared it.
    const absl::StatusOr<PageCache::Inserted> inserted =
        host_.Insert(name, crc32c, &*bytes, removals);
    // Where there is no room in memory, or it has been deleted since, it is served all the same.
    *page =
        inserted.ok() ? inserted->page : std::make_shared<const Page>(*std::move(bytes), crc32c);
    return absl::OkStatus();
  }

  const std::unique_ptr<PageTier> disk_;  // May be null.
  const TenantQuotas quotas_;
  PageCache host_;
  PageCounters counters_;
};

}  // namespace

std::unique_ptr<PageStore> PageStore::Create(const PageStoreOptions& options,
                                             std::unique_ptr<PageTier> disk) {
  return std::make_unique<PageStoreImpl>(options, std::move(disk));
}

std::vector<absl::StatusOr<PageRef>> PageStore::Get(const TenantId& tenant,
                                                    std::span<const PageKey> keys) {
  std::vector<PageRef> pages;
  std::vector<absl::Status> statuses(keys.size());
  if (GetFromHost(tenant, keys, &pages)) statuses = GetFromDisk(tenant, keys, UINT64_MAX, &pages);
  std::vector<absl::StatusOr<PageRef>> results;
  for (size_t i = 0; i < keys.size(); ++i) {
    if (pages[i] != nullptr) {
      results.emplace_back(std::move(pages[i]));
    } else {
      results.emplace_back(statuses[i].ok() ? absl::NotFoundError("") : statuses[i]);
    }
  }
  return results;
}

}  // namespace kvtier
