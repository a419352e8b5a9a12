// Where pages survive a restart. A ring: what was written longest ago goes when there is no room.
// Thread-safe: any method from any thread; all but Find and what counts may wait for the disk.
#ifndef KVTIER_STORE_PAGE_TIER_H_
#define KVTIER_STORE_PAGE_TIER_H_

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "base/crc32c.h"
#include "store/page.h"

namespace kvtier {

// What is known of a stored page without reading it.
struct PageDigest {
  uint32_t bytes = 0;
  Crc32c crc32c;
  friend bool operator==(const PageDigest&, const PageDigest&) = default;
};

struct PageTierUsage {
  uint64_t pages = 0;
  uint64_t bytes = 0;  // As charged: with what a page costs beside its bytes.
  uint64_t budget_bytes = 0;
  uint64_t page_bytes_max = 0;  // Of one page.
  uint64_t evicted = 0;         // Pages that went for want of room, since it was opened.
  // Found when it was opened: damaged records, places of the log of writes that could not be read,
  // and whether nothing could be read, so that it began anew.
  uint64_t records_lost = 0;
  uint64_t log_damage = 0;
  uint64_t resets = 0;
};

class PageTier {
 public:
  virtual ~PageTier() = default;

  struct Write {
    PageName name;
    absl::string_view bytes;
    Crc32c crc32c;
  };
  // Keeps pages; those returned OK survive a crash from then on. One status for each:
  //   ALREADY_EXISTS      other bytes are kept under this name, and stay. The same bytes are OK.
  //   INVALID_ARGUMENT    larger than PageTierUsage::page_bytes_max
  //   RESOURCE_EXHAUSTED  the disk is full
  //   UNAVAILABLE         the medium failed; the same call may work later
  virtual std::vector<absl::Status> Put(std::span<const Write> pages) = 0;
  // NOT_FOUND: a miss. DATA_LOSS: its bytes failed their CRC32C, and it is gone now.
  virtual absl::StatusOr<std::string> Get(const PageName& name) = 0;
  // Nothing if it is not here.
  virtual std::optional<PageDigest> Find(const PageName& name) = 0;
  // After OK they do not come back, also after a crash. Fine if they are not here.
  virtual absl::Status Remove(std::span<const PageName> names) = 0;

  virtual PageTierUsage Usage() = 0;
  // Of one tenant's pages, as charged; what a page of so many bytes is charged.
  virtual uint64_t BytesOf(const TenantId& tenant) = 0;
  virtual uint64_t ChargeOf(uint64_t bytes) const = 0;
};

}  // namespace kvtier

#endif  // KVTIER_STORE_PAGE_TIER_H_
