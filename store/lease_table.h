// Leases: objects that stay in host memory, unchanged, while somebody reads them.
//
// A lease belongs to whoever holds its Lease handle: a stream or a connection. It ends with the
// handle and with nothing else, never because of a clock. What it holds is neither evicted nor
// degraded nor used for anything else, and stays charged to the budget of host memory.
//
// Both the number of leases and the bytes under them are bounded, so that readers cannot keep the
// store from taking anything new; a band that several leases hold counts once. Both are shared
// among tenants (base/fair_share.h), so that none keeps the others out.
//
// A lease has a name, for calls that read under it. The name carries the store's incarnation as
// its epoch: a name from before a restart holds nothing.
#ifndef KVTIER_STORE_LEASE_TABLE_H_
#define KVTIER_STORE_LEASE_TABLE_H_

#include <cstdint>
#include <map>
#include <memory>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"
#include "base/limits.h"
#include "base/mutex.h"
#include "kvcache/transport.h"
#include "store/host_memory.h"
#include "store/tiered_store.h"

namespace kvtier {

struct LeaseId {
  uint64_t id = 0;
  uint64_t epoch = 0;
  friend bool operator==(const LeaseId&, const LeaseId&) = default;
};

// What a lease holds: bands 0..bands.size()-1 of one upload. Immutable; may outlive its lease, when
// a read that began under it goes on.
class HeldObject {
 public:
  HeldObject(TenantId tenant, std::unique_ptr<PinnedObject> pinned,
             std::vector<std::shared_ptr<const BandMemory>> bands)
      : tenant_(std::move(tenant)), pinned_(std::move(pinned)), bands_(std::move(bands)) {}

  const TenantId& tenant() const { return tenant_; }
  const std::shared_ptr<const Manifest>& manifest() const { return pinned_->manifest(); }
  uint32_t band_count() const { return static_cast<uint32_t>(bands_.size()); }
  const BandMemory& band(BandIndex band) const { return *bands_[band.value()]; }
  // REQUIRES: a band that is held.
  SegmentRef Segment(BandIndex band, LayerIndex layer) const {
    return bands_[band.value()]->Segment(layer);
  }

 private:
  const TenantId tenant_;
  const std::unique_ptr<PinnedObject> pinned_;
  const std::vector<std::shared_ptr<const BandMemory>> bands_;
};

class LeaseTable;

// Holds the lease until it is destroyed, which may wait for the disk. Not thread-safe.
class Lease {
 public:
  ~Lease();
  Lease(const Lease&) = delete;
  Lease& operator=(const Lease&) = delete;

  LeaseId id() const { return id_; }
  const HeldObject& object() const { return *object_; }

 private:
  friend class LeaseTable;
  Lease(LeaseTable& table, LeaseId id, std::shared_ptr<const HeldObject> object)
      : table_(table), id_(id), object_(std::move(object)) {}
  LeaseTable& table_;
  const LeaseId id_;
  std::shared_ptr<const HeldObject> object_;
};

// Thread-safe.
class LeaseTable {
 public:
  struct Options {
    uint32_t leases_max = limits::kLeasesMax;
    uint64_t bytes_max = 0;  // Of all bands held. 0: what the host budget allows.
  };
  struct Usage {
    uint64_t leases = 0;
    uint64_t bytes = 0;
    uint64_t bytes_max = 0;
    // Since start, for either bound, a tenant's share of it, or lack of host memory.
    uint64_t refused = 0;
  };

  // `store` must outlive us; every lease must end before.
  LeaseTable(const Options& options, TieredStore& store);
  ~LeaseTable();
  LeaseTable(const LeaseTable&) = delete;
  LeaseTable& operator=(const LeaseTable&) = delete;

  // Holds the bands that serve `request` (its layers and heads do not matter: bands are whole).
  //   NOT_FOUND, ABORTED, DATA_LOSS  as TieredStore::Pin and Read
  //   INVALID_ARGUMENT               min_ratio above ratio
  //   RESOURCE_EXHAUSTED             too many leases or bytes under them (of all, or the tenant's
  //                                  share), or no host memory. What other tenants hold is not
  //                                  told.
  absl::StatusOr<std::unique_ptr<Lease>> Acquire(const FetchRequest& request,
                                                 BandPlacement placement)
      ABSL_LOCKS_EXCLUDED(mutex_);

  // What a lease of this tenant holds. ABORTED: it has ended, or is of another epoch or tenant.
  absl::StatusOr<std::shared_ptr<const HeldObject>> Find(const TenantId& tenant, LeaseId id) const
      ABSL_LOCKS_EXCLUDED(mutex_);

  Usage usage() const ABSL_LOCKS_EXCLUDED(mutex_);
  const Options& options() const { return options_; }

 private:
  friend class Lease;
  // Of one stored object, by its manifest, which a lease keeps: an upload id can name another
  // object as soon as nobody reads the first one, and that is before its lease is counted out.
  using BandName = std::pair<const Manifest*, uint32_t>;

  absl::Status Reserve(const TenantId& tenant, const Manifest& manifest, uint32_t band_count)
      ABSL_LOCKS_EXCLUDED(mutex_);
  void Release(const TenantId& tenant, const Manifest& manifest, uint32_t band_count)
      ABSL_LOCKS_EXCLUDED(mutex_);
  void End(LeaseId id) ABSL_LOCKS_EXCLUDED(mutex_);

  const Options options_;
  TieredStore& store_;
  const uint64_t epoch_;

  mutable Mutex mutex_;
  uint64_t next_id_ ABSL_GUARDED_BY(mutex_) = 1;
  uint64_t reserved_ ABSL_GUARDED_BY(mutex_) = 0;  // Leases, those being acquired included.
  struct Own {
    uint64_t leases = 0;
    uint64_t bytes = 0;  // An object has one tenant, so a band is counted for one.
  };
  // Of each tenant that has any: at most leases_max entries.
  absl::flat_hash_map<TenantId, Own> own_ ABSL_GUARDED_BY(mutex_);
  uint64_t bytes_ ABSL_GUARDED_BY(mutex_) = 0;
  uint64_t refused_ ABSL_GUARDED_BY(mutex_) = 0;
  std::map<BandName, uint32_t> band_holders_ ABSL_GUARDED_BY(mutex_);
  absl::flat_hash_map<uint64_t, std::shared_ptr<const HeldObject>> leases_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace kvtier

#endif  // KVTIER_STORE_LEASE_TABLE_H_
