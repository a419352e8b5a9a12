// Opaque pages: an engine's KV blocks under keys that it chooses. Immutable bytes, whole or not
// there; what they mean is the engine's business.
#ifndef KVTIER_STORE_PAGE_H_
#define KVTIER_STORE_PAGE_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <utility>

#include "absl/strings/string_view.h"
#include "base/crc32c.h"
#include "kvcache/ids.h"

namespace kvtier {

// Chosen by the engine: a hash of all that the page's bytes depend on.
using PageKey = FixedBytes<struct PageKeyTag, 32>;

struct PageName {
  TenantId tenant;
  PageKey key;
  friend auto operator<=>(const PageName&, const PageName&) = default;
  template <typename H>
  friend H AbslHashValue(H h, const PageName& name) {
    return H::combine(std::move(h), name.tenant, name.key);
  }
};

// The bytes of one page. Held by whoever reads them, as long as they like; `on_destroyed` (may be
// empty) hears when the last of them lets go.
class Page {
 public:
  Page(std::string bytes, Crc32c crc32c, std::function<void()> on_destroyed = nullptr)
      : bytes_(std::move(bytes)), crc32c_(crc32c), on_destroyed_(std::move(on_destroyed)) {}
  ~Page() {
    if (on_destroyed_) on_destroyed_();
  }
  Page(const Page&) = delete;
  Page& operator=(const Page&) = delete;

  absl::string_view bytes() const { return bytes_; }
  Crc32c crc32c() const { return crc32c_; }

 private:
  const std::string bytes_;
  const Crc32c crc32c_;
  const std::function<void()> on_destroyed_;
};

using PageRef = std::shared_ptr<const Page>;

}  // namespace kvtier

#endif  // KVTIER_STORE_PAGE_H_
