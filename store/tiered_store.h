// Where sealed objects live: host memory over a durable tier.
//
// Invariants (see also tier.h):
//   1. The resident bands of an object are always a prefix of its bands.
//   2. Before the first band of an object leaves host memory, the whole object is on disk, sealed.
//      From then on what is in host memory is a subset of what is on disk, and both are prefixes.
//   3. (tenant, key) names at most one current upload. Replacing it is atomic; readers that pinned
//      the old upload keep reading it, and its bytes go when the last of them is done.
//   4. What was acknowledged with kDisk survives a crash until policy, visibly, gives it up.
//
// Under pressure (docs/adr/0010-degrade.md): bands leave host memory for the disk, least valuable
// first; where that is full, or there is none, bands are given up for good from the top of the
// least valuable objects; at its floor ratio an object goes whole. So does one that must make place
// in a full index. What somebody has pinned keeps its bytes. Only when nothing may go, new work
// gets RESOURCE_EXHAUSTED.
//
// Thread-safe. No lock is held during disk work that another object's reader would need.
#ifndef KVTIER_STORE_TIERED_STORE_H_
#define KVTIER_STORE_TIERED_STORE_H_

#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "base/clock.h"
#include "base/limits.h"
#include "kvcache/compressed_object.h"
#include "kvcache/transport.h"
#include "store/durable_tier.h"
#include "store/host_memory.h"
#include "store/object_stat.h"
#include "store/object_watch.h"
#include "store/prefix_index.h"
#include "store/tenant_ledger.h"
#include "store/upload.h"

namespace kvtier {

// What a client asks for by.
struct ObjectName {
  TenantId tenant;
  Key key;
  friend bool operator==(const ObjectName&, const ObjectName&) = default;
};

// Of one segment, all of whose copies that were read are intact now.
struct VerifiedCopies {
  uint64_t bytes_read = 0;  // Of all copies together.
  bool repaired = false;    // One was damaged: written again from the other, or given up for it.
  absl::Status unread;      // RESOURCE_EXHAUSTED: there was no host memory for the disk's copy.
};

// Counted since start. Invariant: requests == host_hits + disk_hits + misses + failures, each a
// Pin() that was served wholly from host, partly or wholly from disk, not at all, or by an error. A
// Pin() that succeeds is counted when it is released; one from which nothing was read is a miss.
struct StoreCounters {
  std::atomic<uint64_t> requests{0}, host_hits{0}, disk_hits{0}, misses{0}, failures{0};
  std::atomic<uint64_t> uploads_sealed{0}, uploads_refused{0};
  std::atomic<uint64_t> bands_demoted{0};  // Left host memory, still on disk.
  std::atomic<uint64_t> bands_filled{0};   // Came back into host memory from disk.
  std::atomic<uint64_t> bands_dropped{0};  // Gone for good, by pressure or request, while the
                                           // object stays.
  std::atomic<uint64_t> bands_lost{0};     // Gone because bytes failed their checksum.
  std::atomic<uint64_t> checksum_failures{0};
  std::atomic<uint64_t> reads_refused{0};    // For want of host memory, read-ahead included.
  std::atomic<uint64_t> log_damage{0};       // See DurableCounters; found at start-up.
  std::atomic<uint64_t> objects_evicted{0};  // Gone whole, by pressure.
  std::atomic<uint64_t> objects_expired{0};
  std::atomic<uint64_t> quota_give_ups{
      0};  // Steps in which a tenant gave up its own for its quota.
  std::atomic<uint64_t> quota_refusals{0};
  std::atomic<uint64_t> upload_share_refusals{0};  // A tenant's share of the open uploads.
  std::atomic<uint64_t> extensions_seen{0};  // Sealed objects that extend a stored one, as far as a
                                             // lookup before them told.
  // Bands that a failed seal left on disk because their removal failed too, and removals that
  // succeeded later. What is between the two still takes room.
  std::atomic<uint64_t> disk_cleanups_failed{0}, disk_cleanups_repeated{0};
};

struct TenantStat {
  TenantUse use;
  uint64_t quota_bytes = 0;       // 0: none.
  uint64_t pinned_bytes_max = 0;  // 0: no limit.
};

// What is not given stays.
struct AttributeChange {
  std::optional<bool> pinned = std::nullopt;
  std::optional<absl::Time> expires_at = std::nullopt;
};

class ObjectState;  // Private to the implementation.

// Pins one upload of one object: its resident bands at the time of Pin() stay readable. Releasing
// it is its destruction, which may remove from disk what was waiting for it, or TryRelease. Thread-
// safe for reading. REQUIRES: dies before its store. Segments that were read may outlive both.
class PinnedObject {
 public:
  virtual ~PinnedObject() = default;
  virtual const std::shared_ptr<const Manifest>& manifest() const = 0;
  virtual uint32_t resident_bands() const = 0;
  // That of the first `band_count` bands only `layers` will be read; without it, everything. It
  // decides how much memory a read from disk takes, and what may come back into memory meanwhile.
  // REQUIRES: before anything is read; a range of the manifest's layers.
  virtual void WillRead(uint32_t band_count, LayerRange layers) = 0;
  // DATA_LOSS: no intact copy is left; that band and all higher ones have been given up and
  // counted, and a new Pin() sees what remains.
  //   RESOURCE_EXHAUSTED  no room in host memory for what is read from disk: others read, send or
  //                       upload there, and a later call finds some when they are done. A reader
  //                       that holds at most one segment at a time, and has got one from disk, gets
  //                       them all
  // Waits for the disk if it must.
  virtual absl::StatusOr<SegmentRef> Read(BandIndex band, LayerIndex layer) = 0;
  // The same if the segment lies in host memory; nothing otherwise. Never waits for a disk, nor for
  // somebody who does.
  virtual std::optional<SegmentRef> ReadFromMemory(BandIndex band, LayerIndex layer) = 0;
  // Lets go of the pin now, if that removes nothing from a tier: true, and the object may only be
  // destroyed from here on, which costs nothing then. False: nothing has happened, and its
  // destruction may wait for the disk. Never waits, as above.
  virtual bool TryRelease() = 0;
  // A whole band in host memory, for as long as the result lives, whatever is evicted meanwhile;
  // fetched from disk if it must be. Codes as Read, and
  //   RESOURCE_EXHAUSTED  no room for it in host memory, or no file for kFile
  virtual absl::StatusOr<std::shared_ptr<const BandMemory>> Hold(BandIndex band,
                                                                 BandPlacement placement) = 0;
  // Counts no request when the pin goes, whatever was read: the caller was sent elsewhere, and the
  // same request is counted there.
  virtual void LeaveUncounted() = 0;
};

struct TieredStoreOptions {
  // Of everything in host memory: bands, open uploads. An object must fit.
  uint64_t host_budget_bytes = uint64_t{1} << 30;
  HostMemory::Options memory = {};
  uint64_t upload_bytes_max = 0;  // Of all open uploads together. 0: the host budget.
  // Which bands go first when there is no room, in host memory and on disk: "gdsf" or "lru"
  // (store/eviction.h).
  std::string eviction_policy = "gdsf";
  // Objects in the index. A new one beyond them takes the place of the least valuable one that
  // nobody reads or has pinned, which goes whole. Uploads that are open already do not count, so
  // their number (limits::kUploadsMax) may come on top.
  uint64_t objects_max = limits::kObjectsMax;
  // Pressure does not shrink an object below its first edge that reaches this, in (0, 1]: at that
  // floor it goes whole.
  double floor_ratio = 0.1;
  // What each tenant may use. Over it, the tenant's own objects go first.
  TenantQuotas tenant_quotas = {};
};

class TieredStore {
 public:
  // Opens the store and recovers every sealed object. `disk` may be null: host memory only, and
  // kDisk is refused. `clock` must outlive the store.
  //   INVALID_ARGUMENT  an option (named); and as DurableTier::Recover
  static absl::StatusOr<std::unique_ptr<TieredStore>> Create(TieredStoreOptions options,
                                                             std::unique_ptr<DurableTier> disk,
                                                             Clock& clock);
  virtual ~TieredStore() = default;

  // Begins an upload, or finds the one already begun with the same upload id (resume). If that
  // upload is sealed, nothing needs to be appended: FinishUpload says what is stored.
  //   INVALID_ARGUMENT    manifest inconsistent; another manifest, or another upload to replace,
  //                       under an upload id of the same tenant
  //   RESOURCE_EXHAUSTED  too many uploads, of all or of this tenant (base/fair_share.h), or
  //                       larger than memory allows now. Uploads to which
  //                       nobody but the store holds a reference give way first, longest idle
  //                       first: those that failed must not keep others out
  //   FAILED_PRECONDITION kDisk asked of a store without disk
  //   RESOURCE_EXHAUSTED  also: the tenant's quota is used up (named), and giving up bands of its
  //                       own objects does not suffice; or there are objects_max objects, and none
  //                       of them may go
  // Here and in FinishUpload it is too large (base/too_large.h) if only a larger budget, limit or
  // quota would admit it.
  // `replaces`: the stored upload that this one was made from (re-banding), and is to replace
  // although that one may be whole. `ttl`: from sealing on; infinite: it never expires, or, where
  // it replaces an upload, when that one would have. A resumed upload keeps what it began with.
  virtual absl::StatusOr<std::shared_ptr<Upload>> StartUpload(
      const TenantId& tenant, std::shared_ptr<const Manifest>, Durability durability,
      const std::optional<UploadId>& replaces, absl::Duration ttl) = 0;
  absl::StatusOr<std::shared_ptr<Upload>> StartUpload(const TenantId& tenant,
                                                      std::shared_ptr<const Manifest> manifest,
                                                      Durability durability,
                                                      const std::optional<UploadId>& replaces) {
    return StartUpload(tenant, std::move(manifest), durability, replaces, absl::InfiniteDuration());
  }
  absl::StatusOr<std::shared_ptr<Upload>> StartUpload(const TenantId& tenant,
                                                      std::shared_ptr<const Manifest> manifest,
                                                      Durability durability) {
    return StartUpload(tenant, std::move(manifest), durability, std::nullopt);
  }
  // Bytes of an upload that need not be sent again; all of them once it is sealed. NOT_FOUND:
  // unknown here (start at 0).
  virtual absl::StatusOr<uint64_t> UploadedBytes(const TenantId& tenant,
                                                 const UploadId& upload) = 0;
  // Seals a complete upload with its durability; when it returns OK the object is acknowledged.
  // Finishing twice is fine. What is stored may have another upload id than was sent: if another
  // tenant has that one. If a stored upload of the key is resident to at least the ratio that
  // this one ends at, that one stays and its state is returned instead, unless this one replaces
  // it. What is on disk is replaced on disk, also by an upload that asked for kHost.
  //   INVALID_ARGUMENT    bytes missing
  //   ABORTED             the upload that this one replaces is not the current one any more, or
  //                       has lost bands meanwhile and ends below this one. The upload is closed:
  //                       it cannot be sealed any more
  //   RESOURCE_EXHAUSTED  no room, also after giving up what may be given up of others; or the same
  //                       upload was stored and removed, and somebody still reads it. Nothing is
  //                       kept of the upload on disk
  //   NOT_FOUND           abandoned, or idle for longer than limits::kUploadIdleMax, or given way;
  //                       also if it has been begun anew since, which stays open
  virtual absl::StatusOr<ObjectStat> FinishUpload(const TenantId& tenant,
                                                  const std::shared_ptr<Upload>& upload) = 0;
  virtual void AbandonUpload(const TenantId& tenant, const UploadId& upload) = 0;
  // Convenience for callers that hold a whole object: start, append everything, finish.
  absl::StatusOr<ObjectStat> Put(const TenantId& tenant, const CompressedObject& object,
                                 Durability durability,
                                 const std::optional<UploadId>& replaces = std::nullopt,
                                 absl::Duration ttl = absl::InfiniteDuration());

  // NOT_FOUND: a miss. ABORTED: `upload` is given and another one is current. Never waits for a
  // disk.
  virtual absl::StatusOr<std::unique_ptr<PinnedObject>> Pin(
      const TenantId& tenant, const Key& key, const std::optional<UploadId>& upload) = 0;
  // Like Pin, without pinning or counting a request.
  virtual absl::StatusOr<ObjectStat> Stat(const TenantId& tenant, const Key& key) = 0;

  // Objects that may be prefixes of a prompt, longest first, at most `candidates_max`; the caller
  // confirms one by its key. Only such that are resident to at least `min_ratio`. Counts nothing:
  // a prompt is no request for an object yet.
  virtual std::vector<ObjectStat> FindPrefixes(const TenantId& tenant, const PrefixQuery& prompt,
                                               Ratio min_ratio, size_t candidates_max) = 0;

  // Removes the object; current readers finish. NOT_FOUND when there is none; ABORTED as Pin.
  virtual absl::Status Delete(const TenantId& tenant, const Key& key,
                              const std::optional<UploadId>& upload = std::nullopt) = 0;
  // Gives up bands above the first `band_count` for good, in every tier (counted). REQUIRES
  // band_count >= 1 (INVALID_ARGUMENT otherwise). NOT_FOUND, ABORTED as Pin.
  virtual absl::Status DropBands(const TenantId& tenant, const Key& key, uint32_t band_count,
                                 const std::optional<UploadId>& upload = std::nullopt) = 0;

  // Changes what is decided about an object. NOT_FOUND, ABORTED as Pin.
  //   RESOURCE_EXHAUSTED  its tenant's pinned bytes, or those of all, would exceed their limit; or
  //                       the disk is full. Nothing has changed
  virtual absl::StatusOr<ObjectStat> SetAttributes(const TenantId& tenant, const Key& key,
                                                   const std::optional<UploadId>& upload,
                                                   const AttributeChange& change) = 0;
  // Removes what has expired, which nobody finds any more; returns how many objects went. What
  // cannot be removed now is tried again by the next call (ExpirySweeper makes it).
  virtual uint64_t RemoveExpired() = 0;

  // What happens to the tenant's objects after event number `after`, if that is known; otherwise,
  // or without a number, a snapshot and what happens after it.
  //   RESOURCE_EXHAUSTED  too many watches
  //   UNAVAILABLE         StopWatches was called
  virtual absl::StatusOr<std::unique_ptr<ObjectWatch>> Watch(
      const TenantId& tenant, const std::optional<uint64_t>& after) = 0;
  // Ends all watches (their Next says UNAVAILABLE), for good.
  virtual void StopWatches() = 0;

  // Objects of a tenant in key order, after `after`, at most `limit`.
  virtual std::vector<ObjectStat> List(const TenantId& tenant, const std::optional<Key>& after,
                                       size_t limit) = 0;
  // Reads everything resident of an object and checks every CRC and row. DATA_LOSS as Read does,
  // NOT_FOUND, ABORTED as Pin.
  //   RESOURCE_EXHAUSTED  there was no host memory for copies on disk: it takes only what is free,
  //                       and what the disk has as well and nobody reads. The others were checked
  virtual absl::Status Verify(const TenantId& tenant, const Key& key,
                              const std::optional<UploadId>& upload = std::nullopt) = 0;
  // The same for one segment, pinned only while this runs; for going through a store bit by bit.
  // NOT_FOUND: the upload is not current, or the band not resident. RESOURCE_EXHAUSTED: the disk
  // has the only copy, and there was no host memory for it.
  virtual absl::StatusOr<VerifiedCopies> VerifyCopies(const UploadId& upload, BandIndex band,
                                                      LayerIndex layer) = 0;
  // The object after `after` in the order of (tenant, key), over all tenants: the first one if it
  // is not given, none after the last.
  virtual std::optional<ObjectName> NextObject(const std::optional<ObjectName>& after) = 0;

  // For tests: INTERNAL naming what is broken of the invariants above, of the budgets, or of what
  // the policies were told. REQUIRES: no other call is running; pins and open uploads are fine.
  virtual absl::Status CheckInvariants() = 0;

  virtual const StoreCounters& counters() const = 0;
  virtual TierUsage host_usage() const = 0;
  virtual HostMemory::Counters host_memory_counters() const = 0;
  virtual std::optional<TierUsage> disk_usage() const = 0;
  virtual uint64_t object_count() const = 0;
  // Random at every start: what UploadedBytes says, and numbers of events, hold within one
  // incarnation.
  virtual uint64_t incarnation() const = 0;
  virtual TenantStat StatOfTenant(const TenantId& tenant) const = 0;
  // Of those with a quota of their own: a bounded number.
  virtual std::vector<std::pair<TenantId, TenantStat>> StatOfConfiguredTenants() const = 0;
  virtual uint32_t watch_count() const = 0;
  virtual uint64_t watches_cut() const = 0;  // Ended because they fell behind.
};

}  // namespace kvtier

#endif  // KVTIER_STORE_TIERED_STORE_H_
