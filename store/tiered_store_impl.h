// The implementation of TieredStore, in several files: tiered_store.cc (start-up, the index, giving
// up), tiered_store_life.cc (every change of what is served), tiered_store_put.cc (uploads),
// tiered_store_room.cc (making room), tiered_store_read.cc (pins, reads, losses),
// tiered_store_hold.cc (bands for leases), tiered_store_attributes.cc (pinning, expiry),
// tiered_store_fill.cc (memory for what is read, and bands that come back),
// tiered_store_debts.cc (what could not be removed from the disk at once),
// tiered_store_tenants.cc (accounts, quotas, events). Private to store/.
//
// How it stays correct without a lock around disk work:
//   1. Where bands are is asked of the tiers, never remembered here. What is decided about an
//   object
//      is in its ObjectState, under mutex_.
//   2. Operations that put bands of a key or give them up on request take turns per key. A reader
//      takes no turn. Whoever holds a turn takes another one (of a victim of MakeRoom) only if it
//      is free at that moment.
//   3. Losses and removals only lower things (band_limit, bands of a tier), so they need no turn:
//      lowering twice, in any order, is lowering once to the least.
//   4. Bytes go last: an ObjectState that serves fewer bands than the tiers hold is in garbage_
//      until nobody pins it and Trim has removed the difference.
//
// Lock order: mutex_, then a tier's own or the event log's. The host tier may be called under
// mutex_ (it only touches memory), of the disk tier only BandCount and Usage.
#ifndef KVTIER_STORE_TIERED_STORE_IMPL_H_
#define KVTIER_STORE_TIERED_STORE_IMPL_H_

#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/functional/function_ref.h"
#include "base/mutex.h"
#include "store/band_fill.h"
#include "store/event_log.h"
#include "store/expiry_queue.h"
#include "store/host_memory.h"
#include "store/host_tier.h"
#include "store/object_change.h"
#include "store/object_index.h"
#include "store/object_policy.h"
#include "store/object_watch.h"
#include "store/prefix_hints.h"
#include "store/read_memory.h"
#include "store/tenant_ledger.h"
#include "store/tiered_store.h"
#include "store/turns.h"

namespace kvtier {

class PinnedObjectImpl;

class TieredStoreImpl final : public TieredStore {
 public:
  using ObjectPtr = ObjectIndex::ObjectPtr;

  struct Policies {
    ObjectPolicy host;
    ObjectPolicy disk;
  };
  TieredStoreImpl(TieredStoreOptions options, Policies policies, std::unique_ptr<DurableTier> disk,
                  Clock& clock);
  ~TieredStoreImpl() override;

  absl::Status Recover() ABSL_LOCKS_EXCLUDED(mutex_);

  absl::StatusOr<std::shared_ptr<Upload>> StartUpload(const TenantId& tenant,
                                                      std::shared_ptr<const Manifest> manifest,
                                                      Durability durability,
                                                      const std::optional<UploadId>& replaces,
                                                      absl::Duration ttl) override;
  absl::StatusOr<uint64_t> UploadedBytes(const TenantId& tenant, const UploadId& upload) override;
  absl::StatusOr<ObjectStat> FinishUpload(const TenantId& tenant,
                                          const std::shared_ptr<Upload>& upload) override;
  void AbandonUpload(const TenantId& tenant, const UploadId& upload) override;

  absl::StatusOr<std::unique_ptr<PinnedObject>> Pin(const TenantId& tenant, const Key& key,
                                                    const std::optional<UploadId>& upload) override;
  absl::StatusOr<ObjectStat> Stat(const TenantId& tenant, const Key& key) override;
  std::vector<ObjectStat> FindPrefixes(const TenantId& tenant, const PrefixQuery& prompt,
                                       Ratio min_ratio, size_t candidates_max) override;
  absl::Status Delete(const TenantId& tenant, const Key& key,
                      const std::optional<UploadId>& upload) override;
  absl::Status DropBands(const TenantId& tenant, const Key& key, uint32_t band_count,
                         const std::optional<UploadId>& upload) override;
  std::vector<ObjectStat> List(const TenantId& tenant, const std::optional<Key>& after,
                               size_t limit) override;
  absl::Status Verify(const TenantId& tenant, const Key& key,
                      const std::optional<UploadId>& upload) override;
  absl::StatusOr<VerifiedCopies> VerifyCopies(const UploadId& upload, BandIndex band,
                                              LayerIndex layer) override;
  std::optional<ObjectName> NextObject(const std::optional<ObjectName>& after) override;

  absl::StatusOr<ObjectStat> SetAttributes(const TenantId& tenant, const Key& key,
                                           const std::optional<UploadId>& upload,
                                           const AttributeChange& change) override;
  uint64_t RemoveExpired() override;
  absl::StatusOr<std::unique_ptr<ObjectWatch>> Watch(const TenantId& tenant,
                                                     const std::optional<uint64_t>& after) override;
  void StopWatches() override { event_log_.Close(); }

  absl::Status CheckInvariants() override;

  const StoreCounters& counters() const override { return counters_; }
  TierUsage host_usage() const override { return host_->Usage(); }
  HostMemory::Counters host_memory_counters() const override { return memory_->counters(); }
  std::optional<TierUsage> disk_usage() const override {
    return disk_ == nullptr ? std::nullopt : std::optional(disk_->Usage());
  }
  uint64_t object_count() const override {
    MutexLock lock(&mutex_);
    return index_.size();
  }
  uint64_t incarnation() const override { return incarnation_; }
  TenantStat StatOfTenant(const TenantId& tenant) const override;
  std::vector<std::pair<TenantId, TenantStat>> StatOfConfiguredTenants() const override;
  uint32_t watch_count() const override { return event_log_.watcher_count(); }
  uint64_t watches_cut() const override { return event_log_.watchers_cut(); }

 private:
  friend class PinnedObjectImpl;
  class Watching;

  // An upload id is one tenant's: another's of the same bytes is another upload.
  using UploadName = std::pair<TenantId, UploadId>;
  struct OpenUpload {
    UploadName name() const { return {tenant, upload->manifest()->upload_id}; }
    std::shared_ptr<Upload> upload;
    TenantId tenant;
    Durability durability;
    std::optional<UploadId> replaces;
    absl::Duration ttl = absl::InfiniteDuration();
    uint64_t seen_bytes = 0;  // Progress when we last looked, and when that was.
    absl::Time seen_at;
  };

  // What making room in host memory may cost, at most.
  enum class RoomCost {
    kNothing,     // Only what is on disk as well leaves host memory.
    kDiskWrites,  // Also what must be written there first.
    kQuality,     // Also bands that the disk has no room for: they are lost for good.
  };

  // Whose band goes.
  struct Victim {
    ObjectPtr object;
    std::optional<Turns::Turn> turn;  // Nothing if the caller holds it.
  };
  using ObjectSet = std::set<const ObjectState*>;

  // One turn per (tenant, key).
  static std::string TurnName(const TenantId& tenant, const Key& key);

  // --- tiered_store.cc
  uint32_t HostBands(const ObjectState& object) const;
  uint32_t DiskBands(const ObjectState& object) const;
  uint32_t ResidentBands(const ObjectState& object) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  ObjectStat StatOf(const ObjectState& object) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Removes the bytes of everything in garbage_ that nobody pins. What fails stays there for the
  // next time.
  void Trim() ABSL_LOCKS_EXCLUDED(mutex_);

  // --- tiered_store_life.cc: the only ways in which what new readers see of an object changes.
  // Makes a new object current, in place of one of the same key.
  void Insert(const ObjectPtr& object, ChangeCause cause) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // New readers see at most the first `band_count` bands from now on (0: its key does not find it);
  // Trim removes the bytes when nobody pins them. REQUIRES, unless the cause is kLoss: what a crash
  // brings back has been lowered first.
  void Lower(const ObjectPtr& object, uint32_t band_count, ChangeCause cause)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Called once for each change, by the two above: whoever must know is told here.
  void OnChange(const ObjectChange& change) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Tells the policies what the tiers hold of it. To be called after bands have moved.
  void TellPolicies(const ObjectPtr& object) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::Status CheckObject(const ObjectState& object) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  // Removes what is on disk of the record, and all of it from new readers. REQUIRES: its turn.
  absl::Status RemoveWhole(const ObjectPtr& object, ChangeCause cause) ABSL_LOCKS_EXCLUDED(mutex_);

  // --- tiered_store_attributes.cc
  // An expired object is a miss, whoever asks; its bytes go with the next RemoveExpired.
  bool IsExpired(const ObjectState& object) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Null if there is none, or it has expired.
  ObjectPtr FindLive(const TenantId& tenant, const Key& key) const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // NOT_FOUND: a miss. ABORTED: `upload` is given and another one is current.
  absl::StatusOr<ObjectPtr> FindNamed(const TenantId& tenant, const Key& key,
                                      const std::optional<UploadId>& upload) const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // In memory alone, at once: nothing of it is given up while its record is written. REQUIRES: its
  // turn.
  void Decide(ObjectState& object, const ObjectAttributes& attributes)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Puts on disk what has been decided, if the object is there; if that fails it is as `before`.
  // REQUIRES: its turn.
  absl::Status RecordOrUndo(const ObjectPtr& object, const ObjectAttributes& before)
      ABSL_LOCKS_EXCLUDED(mutex_);
  // Makes it live until `expires_at`, if it does not live longer. REQUIRES: its turn.
  absl::Status Prolong(const ObjectPtr& object, absl::Time expires_at) ABSL_LOCKS_EXCLUDED(mutex_);
  // What is in memory of them, on disk. REQUIRES: its turn; a band of it is on disk.
  absl::Status RecordAttributes(const ObjectPtr& object) ABSL_LOCKS_EXCLUDED(mutex_);
  // RESOURCE_EXHAUSTED: it replaces a pinned object, and pinning it would exceed the limit.
  absl::StatusOr<ObjectAttributes> AttributesOfNew(const OpenUpload& open,
                                                   absl::Time sealed_at) const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  // --- tiered_store_fill.cc
  // What `allocate` gives, which charges `bytes`, after others have made room for it if need be.
  absl::StatusOr<std::shared_ptr<BandMemory>> AllocateMakingRoom(
      uint64_t bytes, RoomCost most,
      absl::FunctionRef<absl::StatusOr<std::shared_ptr<BandMemory>>()> allocate)
      ABSL_LOCKS_EXCLUDED(mutex_);
  absl::StatusOr<std::shared_ptr<BandMemory>> AllocatePiece(uint64_t bytes, RoomCost most)
      ABSL_LOCKS_EXCLUDED(mutex_);
  // Out of free room, or of that of bands on their way in.
  absl::StatusOr<std::shared_ptr<BandMemory>> AllocateFreePiece(uint64_t bytes)
      ABSL_LOCKS_EXCLUDED(mutex_);
  // A slot for one segment. Never waits for another reader. RESOURCE_EXHAUSTED (counted): the
  // reader has begun, and others have all there is besides its slots; or what is in memory is being
  // read, sent, leased or uploaded, is in the hands of somebody who makes room at this moment, or
  // would be lost for the sake of more than a few readers.
  absl::StatusOr<ReadMemory::Slot> RoomToRead(const TenantId& tenant, ReadMemory& memory)
      ABSL_LOCKS_EXCLUDED(mutex_);
  // The reader is done.
  void EndReading(const TenantId& tenant, ReadMemory& memory) ABSL_LOCKS_EXCLUDED(mutex_);
  // Takes a place among kReadersAtAnyCost. False: there is none for this tenant now.
  bool BeginReadingAtAnyCost(const TenantId& tenant, const ReadMemory& memory)
      ABSL_LOCKS_EXCLUDED(mutex_);
  // Gives it back, if this reader has one.
  void EndReadingAtAnyCost(const TenantId& tenant, const ReadMemory& memory)
      ABSL_LOCKS_EXCLUDED(mutex_);
  // What is on disk as well, nobody reads, and is worth less than the band `band` of `object`.
  std::optional<Victim> NextVictimWorthLess(const ObjectPtr& object, BandIndex band,
                                            const ObjectSet& passed_over)
      ABSL_LOCKS_EXCLUDED(mutex_);
  // Demotes such, and nothing else, until there is room for the band. False: that does not suffice.
  bool MakeRoomByValue(const ObjectPtr& object, BandIndex band) ABSL_LOCKS_EXCLUDED(mutex_);
  bool MayBeFilled(const ObjectState& object, BandIndex band) const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Memory for a band that a reader of it begins to read from disk. Null: nobody has room that is
  // worth less, or another reader fills it already.
  std::shared_ptr<BandFill> BeginFill(const ObjectPtr& object, BandIndex band)
      ABSL_LOCKS_EXCLUDED(mutex_);
  // It is whole, or nobody will complete it.
  void EndFill(const ObjectPtr& object, BandIndex band, const std::shared_ptr<BandFill>& fill)
      ABSL_LOCKS_EXCLUDED(mutex_);
  // One of those under way gives its memory back; of an object, the highest first, since the others
  // are of no use without those below. False: there is none.
  bool DropAFill() ABSL_LOCKS_EXCLUDED(mutex_);
  // Of bands that are in host memory by now, or given up. To be called after bands have moved.
  void DropUselessFills(const ObjectState& object) ABSL_LOCKS_EXCLUDED(mutex_);
  // Whether host memory has all bands below `band`, and may have it.
  bool IsNextInHost(const ObjectPtr& object, BandIndex band) ABSL_LOCKS_EXCLUDED(mutex_);
  // Keeps a whole band that was read from disk in host memory, where it lies already.
  void TakeIn(const ObjectPtr& object, BandIndex band, const BandMemory& memory)
      ABSL_LOCKS_EXCLUDED(mutex_);

  // --- tiered_store_debts.cc
  // Bands of an upload from `keep` on that are on disk without ever having been sealed: what put
  // them there failed, and so did removing them. They cost room, and nobody is served from them.
  struct DiskDebt {
    ObjectName name;
    uint32_t keep = 0;
  };
  struct DueDebt {
    UploadId upload;
    uint32_t keep = 0;
    Turns::Turn turn;
  };
  void OweDisk(const ObjectName& name, const UploadId& upload, uint32_t keep,
               const absl::Status& why) ABSL_LOCKS_EXCLUDED(mutex_);
  // They have been removed.
  void SettleDiskDebt(const UploadId& upload) ABSL_LOCKS_EXCLUDED(mutex_);
  std::optional<DueDebt> NextDiskDebt(const std::optional<UploadId>& after)
      ABSL_LOCKS_EXCLUDED(mutex_);
  // Removes what was left, as far as its turns are free and the disk allows.
  void PayDiskDebts() ABSL_LOCKS_EXCLUDED(mutex_);

  // --- tiered_store_put.cc
  // Null if there is none of this id; INVALID_ARGUMENT if it is of another object.
  absl::StatusOr<std::shared_ptr<Upload>> FindOpen(const TenantId& tenant, const Manifest& manifest,
                                                   Durability durability,
                                                   const std::optional<UploadId>& replaces)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Uploads that nobody is sending give way, longest idle first, into `closed`: their memory goes
  // after the lock.
  absl::Status MakeRoomForUpload(const TenantId& tenant, const Manifest& manifest,
                                 std::vector<std::shared_ptr<Upload>>* closed)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void CloseIdleUploads() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void CloseUpload(const UploadName& name) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // REQUIRES for the following: the caller holds the key's turn.
  absl::StatusOr<ObjectStat> KeepStored(const ObjectPtr& stored, const OpenUpload& open);
  absl::StatusOr<ObjectStat> Publish(const OpenUpload& open, Durability durability);
  // The manifest under which an upload is stored, and its id in sealing_. The tiers name bytes by
  // the id alone; one that another tenant has there, which no honest client meets (128 random
  // bits), is exchanged for one of ours, so that nobody learns that it is taken.
  std::shared_ptr<const Manifest> ReserveUploadId(const OpenUpload& open)
      ABSL_LOCKS_EXCLUDED(mutex_);
  // All bands, sealed, or nothing.
  absl::Status StoreOnDisk(const OpenUpload& open, const Manifest& manifest, absl::Time sealed_at,
                           const ObjectAttributes& attributes);
  // Memory for an upload, for which others make room.
  absl::StatusOr<std::shared_ptr<Upload>> AllocateUpload(
      const std::shared_ptr<const Manifest>& manifest) ABSL_LOCKS_EXCLUDED(mutex_);
  // The upload that nobody is sending for the longest time gives way, if there is one.
  bool CloseAnIdleUpload() ABSL_LOCKS_EXCLUDED(mutex_);
  // Host memory takes over the bands of an upload, without needing room. All bands, or nothing.
  absl::Status StoreInHost(const Manifest& manifest, const std::vector<SegmentRef>& segments);
  // The same for an object that the disk has: as many bands as are worth their memory.
  void FillHost(const ObjectPtr& object, const std::vector<SegmentRef>& segments);

  // --- tiered_store_room.cc
  // The next victim that `may_go` and whose turn is free, or that is `own` (may be null), whose
  // turn the caller holds.
  std::optional<Victim> NextVictim(ObjectPolicy& policy, const ObjectPtr& own,
                                   absl::FunctionRef<bool(const ObjectState&)> may_go)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // `may_be_read`: readers fall back to the disk.
  std::optional<Victim> NextHostVictim(const ObjectPtr& own, RoomCost most,
                                       const ObjectSet& passed_over, bool may_be_read)
      ABSL_LOCKS_EXCLUDED(mutex_);
  std::optional<Victim> NextDiskVictim(const ObjectSet& passed_over) ABSL_LOCKS_EXCLUDED(mutex_);
  // Whether bands of it may be lost for good: nobody reads them, and its tenant has not pinned it.
  static bool MayGiveUp(const ObjectState& object) {
    return object.pin_count == 0 && !object.attributes.pinned;
  }
  bool MayLeaveHost(const ObjectState& object, RoomCost most) const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  // Makes `bytes` of the host budget free, taking them from the top of the least valuable objects.
  // Beyond kNothing, bands on their way in go before what must be written or given up for good, and
  // what is read goes when nothing else is left. `own` (may be null): whose turn the caller holds.
  // RESOURCE_EXHAUSTED names the limit.
  absl::Status MakeRoom(uint64_t bytes, const ObjectPtr& own, RoomCost most)
      ABSL_LOCKS_EXCLUDED(mutex_);
  // Takes the top band of `victim` out of host memory. REQUIRES: its turn.
  absl::Status DemoteTopBand(const ObjectPtr& victim, RoomCost most) ABSL_LOCKS_EXCLUDED(mutex_);
  // Makes every resident band be on disk, sealed. REQUIRES: its turn; host memory holds what the
  // disk lacks.
  absl::Status EnsureOnDisk(const ObjectPtr& object) ABSL_LOCKS_EXCLUDED(mutex_);
  // What EnsureOnDisk would take from the disk's budget.
  uint64_t BytesNotOnDisk(const ObjectPtr& object) ABSL_LOCKS_EXCLUDED(mutex_);
  // Calls `store`, which puts `bytes` on disk or leaves nothing there, after and, while the disk
  // refuses, again after making room.
  absl::Status StoreMakingRoom(uint64_t bytes, absl::FunctionRef<absl::Status()> store)
      ABSL_LOCKS_EXCLUDED(mutex_);
  // Makes `bytes` of the disk's budget free by giving bands up for good. `disk_is_full`: it refuses
  // although the budget has room, so at least that much must go.
  absl::Status MakeDiskRoom(uint64_t bytes, bool disk_is_full) ABSL_LOCKS_EXCLUDED(mutex_);
  // Whether sealing it would add an object to an index that is full. A key that is there already
  // keeps its place.
  bool NeedsIndexRoom(const TenantId& tenant, const Manifest& manifest) const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Nothing: no object may go.
  std::optional<Victim> NextIndexVictim(const ObjectSet& passed_over) ABSL_LOCKS_EXCLUDED(mutex_);
  // Gives up whole objects, least valuable first, until there is place for one more.
  // RESOURCE_EXHAUSTED: all are read or pinned.
  absl::Status MakeIndexRoom() ABSL_LOCKS_EXCLUDED(mutex_);
  // Gives up the top band of `victim` for good, or all of them at its floor. REQUIRES: its turn.
  // RESOURCE_EXHAUSTED: somebody reads it.
  absl::Status GiveUpTopBand(const ObjectPtr& victim) ABSL_LOCKS_EXCLUDED(mutex_);

  // --- tiered_store_tenants.cc
  // Brings the account of its tenant up to date with so many bands. Every change of bands goes
  // through it.
  void Account(ObjectState& object, uint32_t bands) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void ReserveUploadBytes(const TenantId& tenant, uint64_t bytes)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void ReleaseUploadBytes(const TenantId& tenant, uint64_t bytes)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void TellQuotaPolicy(const ObjectPtr& object, uint32_t bands)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // What the tenant must give up before an upload may begin. RESOURCE_EXHAUSTED: it is larger than
  // the quota.
  absl::StatusOr<uint64_t> QuotaExcess(const TenantId& tenant, const Manifest& manifest) const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Nothing: there is no excess (any more). RESOURCE_EXHAUSTED: nothing of the tenant may go.
  absl::StatusOr<std::optional<Victim>> NextQuotaVictim(const TenantId& tenant,
                                                        const Manifest& manifest,
                                                        const ObjectSet& passed_over)
      ABSL_LOCKS_EXCLUDED(mutex_);
  // Gives up bands of the tenant's own objects until there is no excess. RESOURCE_EXHAUSTED: that
  // does not suffice, since the rest is pinned or read.
  absl::Status MakeRoomInQuota(const TenantId& tenant, const Manifest& manifest)
      ABSL_LOCKS_EXCLUDED(mutex_);
  // Accounts for a change, and tells those who watch.
  void Announce(const ObjectChange& change) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  // --- tiered_store_hold.cc
  struct HeldBand {
    std::shared_ptr<const BandMemory> memory;
    bool from_disk = false;
  };
  // Finds a band in host memory, or reads it into there. REQUIRES: `object` is pinned.
  absl::StatusOr<HeldBand> Hold(const ObjectPtr& object, BandIndex band, BandPlacement placement)
      ABSL_LOCKS_EXCLUDED(mutex_);

  // A file that an earlier lease made of a band, if it is still held; else null.
  std::shared_ptr<const BandMemory> FileCopy(const ObjectPtr& object, BandIndex band,
                                             BandPlacement placement) ABSL_LOCKS_EXCLUDED(mutex_);
  // What leases of this band are to hold: `memory`, or the file that another made meanwhile.
  std::shared_ptr<const BandMemory> ShareFileCopy(const ObjectPtr& object, BandIndex band,
                                                  const std::shared_ptr<const BandMemory>& memory)
      ABSL_LOCKS_EXCLUDED(mutex_);

  // --- tiered_store_read.cc
  struct ReadResult {
    SegmentRef segment;
    bool from_disk = false;
  };
  // What is read from disk lies in `memory`.
  absl::StatusOr<ReadResult> Read(const ObjectPtr& object, BandIndex band, LayerIndex layer,
                                  ReadMemory& memory) ABSL_LOCKS_EXCLUDED(mutex_);
  // From disk into `out`. If that copy is damaged: the one in host memory, if there is one now.
  absl::StatusOr<std::optional<SegmentRef>> ReadDisk(const ObjectPtr& object, BandIndex band,
                                                     LayerIndex layer, MutableByteSpan out)
      ABSL_LOCKS_EXCLUDED(mutex_);
  // Bands from `band` on have no intact copy: gives them up everywhere, and counts.
  void Lose(const ObjectPtr& object, BandIndex band) ABSL_LOCKS_EXCLUDED(mutex_);
  void Unpin(const ObjectPtr& object) ABSL_LOCKS_EXCLUDED(mutex_);
  // The same, unless bytes wait for it: false then.
  bool TryUnpin(const ObjectPtr& object) ABSL_LOCKS_EXCLUDED(mutex_);
  // A pin that is not counted as a request. REQUIRES: the object is current.
  std::unique_ptr<PinnedObjectImpl> PinUncounted(const ObjectPtr& object)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::StatusOr<VerifiedCopies> VerifySegmentCopies(const ObjectPtr& object, BandIndex band,
                                                     LayerIndex layer);
  // False: it has no other copy, and has been given up.
  absl::StatusOr<bool> DropDamagedHostCopy(const ObjectPtr& object, BandIndex band)
      ABSL_LOCKS_EXCLUDED(mutex_);
  // False: there was nothing to repair from any more.
  absl::StatusOr<bool> RepairDiskCopy(const ObjectPtr& object, BandIndex band);

  const TieredStoreOptions options_;
  const uint64_t upload_bytes_max_;
  const uint64_t incarnation_;
  Clock& clock_;
  const std::shared_ptr<HostMemory> memory_;
  const std::unique_ptr<HostTier> host_;
  const std::unique_ptr<DurableTier> disk_;  // May be null.
  StoreCounters counters_;
  Turns turns_;

  EventLog event_log_;    // Appended to under mutex_ only, so that a snapshot has a number.
  PrefixIndex prefixes_;  // Kept by index_; searched without mutex_.
  mutable Mutex mutex_;
  PrefixHints hints_ ABSL_GUARDED_BY(mutex_);
  ObjectIndex index_ ABSL_GUARDED_BY(mutex_){prefixes_};
  std::map<UploadName, OpenUpload> uploads_ ABSL_GUARDED_BY(mutex_);
  std::set<UploadId> sealing_ ABSL_GUARDED_BY(mutex_);  // On their way into the tiers.
  uint64_t upload_bytes_ ABSL_GUARDED_BY(mutex_) = 0;
  uint64_t pin_count_ ABSL_GUARDED_BY(mutex_) = 0;
  std::set<ObjectPtr> garbage_ ABSL_GUARDED_BY(mutex_);
  std::map<UploadId, DiskDebt> disk_debts_ ABSL_GUARDED_BY(mutex_);
  // Those for which bands may have been given up for good.
  std::map<TenantId, const ReadMemory*> readers_at_any_cost_ ABSL_GUARDED_BY(mutex_);
  // Bands on their way from disk into host memory; by upload, in ascending bands.
  std::map<std::pair<UploadId, BandIndex>, std::shared_ptr<BandFill>> fills_
      ABSL_GUARDED_BY(mutex_);
  ObjectPolicy host_policy_ ABSL_GUARDED_BY(mutex_);
  ObjectPolicy disk_policy_ ABSL_GUARDED_BY(mutex_);
  const Ratio floor_ratio_;
  TenantLedger ledger_ ABSL_GUARDED_BY(mutex_);
  // Of every tenant with a quota and objects: over what is resident, in whatever tier.
  std::map<TenantId, ObjectPolicy> quota_policies_ ABSL_GUARDED_BY(mutex_);
  ExpiryQueue expiring_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace kvtier

#endif  // KVTIER_STORE_TIERED_STORE_IMPL_H_
