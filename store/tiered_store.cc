#include "store/tiered_store.h"

#include <algorithm>
#include <random>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/limits.h"
#include "base/log.h"
#include "base/status_macros.h"
#include "base/sync_point.h"
#include "store/tiered_store_impl.h"

namespace kvtier {
namespace {

uint64_t MakeIncarnation() {
  std::random_device random;
  return uint64_t{random()} << 32 | random();
}

// Of all tenants together: half of where objects stay.
uint64_t PinnedBytesMax(const TieredStoreOptions& options, DurableTier* disk) {
  return (disk != nullptr ? disk->Usage().budget_bytes : options.host_budget_bytes) / 2;
}

}  // namespace

absl::StatusOr<std::unique_ptr<TieredStore>> TieredStore::Create(TieredStoreOptions options,
                                                                 std::unique_ptr<DurableTier> disk,
                                                                 Clock& clock) {
  const absl::StatusOr<Ratio> floor = Ratio::FromDouble(options.floor_ratio);
  if (!floor.ok()) {
    return absl::InvalidArgumentError(absl::StrCat("floor_ratio: ", floor.status().message()));
  }
  if (options.objects_max == 0) {
    return absl::InvalidArgumentError("objects_max is 0; a store takes at least one object");
  }
  KVTIER_ASSIGN_OR_RETURN(std::unique_ptr<EvictionPolicy> host_policy,
                          MakeEvictionPolicy(options.eviction_policy, clock));
  KVTIER_ASSIGN_OR_RETURN(std::unique_ptr<EvictionPolicy> disk_policy,
                          MakeEvictionPolicy(options.eviction_policy, clock));
  // Over a disk nothing is lost that leaves host memory.
  TieredStoreImpl::Policies policies{
      ObjectPolicy(std::move(host_policy), disk == nullptr ? std::optional(*floor) : std::nullopt),
      ObjectPolicy(std::move(disk_policy), *floor)};
  auto store =
      std::make_unique<TieredStoreImpl>(options, std::move(policies), std::move(disk), clock);
  KVTIER_RETURN_IF_ERROR(store->Recover());
  return store;
}

absl::StatusOr<ObjectStat> TieredStore::Put(const TenantId& tenant, const CompressedObject& object,
                                            Durability durability,
                                            const std::optional<UploadId>& replaces,
                                            absl::Duration ttl) {
  const UploadId& id = object.manifest->upload_id;
  KVTIER_ASSIGN_OR_RETURN(const std::shared_ptr<Upload> upload,
                          StartUpload(tenant, object.manifest, durability, replaces, ttl));
  const absl::StatusOr<ObjectStat> stat = [&]() -> absl::StatusOr<ObjectStat> {
    uint64_t offset = 0;
    for (const SegmentRef& segment : object.segments) {
      KVTIER_RETURN_IF_ERROR(upload->Append(offset, segment.bytes()));
      offset += segment.bytes().size();
    }
    return FinishUpload(tenant, upload);
  }();
  // What is not open is not ours to abandon: somebody may have begun it anew.
  if (!stat.ok() && !absl::IsNotFound(stat.status())) AbandonUpload(tenant, id);
  return stat;
}

TieredStoreImpl::TieredStoreImpl(TieredStoreOptions options, Policies policies,
                                 std::unique_ptr<DurableTier> disk, Clock& clock)
    : options_(options),
      upload_bytes_max_(options.upload_bytes_max != 0 ? options.upload_bytes_max
                                                      : options.host_budget_bytes),
      incarnation_(MakeIncarnation()),
      clock_(clock),
      memory_(HostMemory::Create(options.memory,
                                 std::make_shared<MemoryBudget>(options.host_budget_bytes))),
      host_(MakeHostTier(memory_)),
      disk_(std::move(disk)),
      event_log_({}, clock),
      host_policy_(std::move(policies.host)),
      disk_policy_(std::move(policies.disk)),
      floor_ratio_(*Ratio::FromDouble(options.floor_ratio)),
      ledger_(options.tenant_quotas, PinnedBytesMax(options, disk_.get())) {}

TieredStoreImpl::~TieredStoreImpl() {
  Trim();
  MutexLock lock(&mutex_);
  KVTIER_CHECK_EQ(pin_count_, 0u) << "a PinnedObject outlives its store";
}

absl::Status TieredStoreImpl::Recover() {
  if (disk_ == nullptr) return absl::OkStatus();
  KVTIER_ASSIGN_OR_RETURN(const std::vector<SealedObject> sealed, disk_->Recover());
  const DurableCounters found = disk_->counters();
  counters_.bands_lost += found.bands_lost;
  counters_.checksum_failures += found.records_lost;
  counters_.log_damage += found.log_damage;
  MutexLock lock(&mutex_);
  for (const SealedObject& object : sealed) {
    const auto state = std::make_shared<ObjectState>(
        object.tenant, object.manifest, object.sealed_at, Durability::kDisk, object.resident_bands);
    state->attributes = object.attributes;
    Insert(state, ChangeCause::kRecovered);
  }
  KVTIER_LOG(INFO) << "recovered " << sealed.size() << " objects, removed " << found.orphans_removed
                   << " unfinished uploads, lost " << found.records_lost << " records";
  return absl::OkStatus();
}

std::string TieredStoreImpl::TurnName(const TenantId& tenant, const Key& key) {
  return absl::StrCat(tenant.name(), "/", key.AsStringView());
}

uint32_t TieredStoreImpl::HostBands(const ObjectState& object) const {
  return host_->BandCount(object.upload());
}

uint32_t TieredStoreImpl::DiskBands(const ObjectState& object) const {
  return disk_ == nullptr ? 0 : disk_->BandCount(object.upload());
}

uint32_t TieredStoreImpl::ResidentBands(const ObjectState& object) const {
  return std::min(object.band_limit, std::max(HostBands(object), DiskBands(object)));
}

ObjectStat TieredStoreImpl::StatOf(const ObjectState& object) const {
  return ObjectStat{
      .tenant = object.tenant,
      .manifest = object.manifest,
      .resident_bands = ResidentBands(object),
      .host_bands = std::min(object.band_limit, HostBands(object)),
      .disk_bands = std::min(object.band_limit, DiskBands(object)),
      .durability = object.durability,
      .sealed_at = object.sealed_at,
      .attributes = object.attributes,
  };
}

absl::StatusOr<ObjectStat> TieredStoreImpl::Stat(const TenantId& tenant, const Key& key) {
  MutexLock lock(&mutex_);
  const ObjectPtr object = FindLive(tenant, key);
  if (object == nullptr) return absl::NotFoundError("");
  return StatOf(*object);
}

std::vector<ObjectStat> TieredStoreImpl::List(const TenantId& tenant,
                                              const std::optional<Key>& after, size_t limit) {
  std::vector<ObjectStat> stats;
  MutexLock lock(&mutex_);
  // Whole pages, also where objects have expired: a short page says that it was the last one.
  std::optional<Key> from = after;
  while (stats.size() < limit) {
    const size_t wanted = limit - stats.size();
    const std::vector<ObjectPtr> objects = index_.List(tenant, from, wanted);
    for (const ObjectPtr& object : objects) {
      if (!IsExpired(*object)) stats.push_back(StatOf(*object));
    }
    if (objects.size() < wanted) break;
    from = objects.back()->manifest->key;
  }
  return stats;
}

std::vector<ObjectStat> TieredStoreImpl::FindPrefixes(const TenantId& tenant,
                                                      const PrefixQuery& prompt, Ratio min_ratio,
                                                      size_t candidates_max) {
  std::vector<ObjectStat> stats;
  const std::vector<PrefixMatch> matches =
      prefixes_.Find(tenant, prompt, limits::kLookupCandidatesMax);
  if (matches.empty()) return stats;
  const absl::StatusOr<TokenBlockHash> last_block = TokenBlockHash::FromBytes(
      prompt.block_hashes.substr(prompt.block_hashes.size() - TokenBlockHash::kSize));
  bool has_hint = !last_block.ok();
  MutexLock lock(&mutex_);
  for (const PrefixMatch& match : matches) {
    if (stats.size() == candidates_max) break;
    const ObjectPtr object = index_.FindUpload(match.upload);
    if (object == nullptr || object->retired || IsExpired(*object)) continue;  // Gone since.
    if (!has_hint && object->manifest->last_block_hash != *last_block) {
      hints_.Remember(tenant, *last_block, object->manifest->key);
      has_hint = true;
    }
    ObjectStat stat = StatOf(*object);
    if (stat.resident_bands == 0 ||
        object->manifest->bands[stat.resident_bands - 1].edge < min_ratio) {
      continue;
    }
    stats.push_back(std::move(stat));
  }
  return stats;
}

absl::Status TieredStoreImpl::Delete(const TenantId& tenant, const Key& key,
                                     const std::optional<UploadId>& upload) {
  {
    const Turns::Turn turn = turns_.Take(TurnName(tenant, key));
    ObjectPtr object;
    {
      MutexLock lock(&mutex_);
      KVTIER_ASSIGN_OR_RETURN(object, FindNamed(tenant, key, upload));
    }
    KVTIER_RETURN_IF_ERROR(RemoveWhole(object, ChangeCause::kRequested));
  }
  Trim();
  KVTIER_SYNC_POINT("store.delete.after_segments");
  return absl::OkStatus();
}

absl::Status TieredStoreImpl::RemoveWhole(const ObjectPtr& object, ChangeCause cause) {
  KVTIER_SYNC_POINT("store.delete.before_record");
  if (DiskBands(*object) > 0) {
    KVTIER_RETURN_IF_ERROR(disk_->LowerResidency(object->upload(), 0));
  }
  KVTIER_SYNC_POINT("store.delete.after_record");
  MutexLock lock(&mutex_);
  Lower(object, 0, cause);
  return absl::OkStatus();
}

absl::Status TieredStoreImpl::DropBands(const TenantId& tenant, const Key& key, uint32_t band_count,
                                        const std::optional<UploadId>& upload) {
  if (band_count == 0) {
    return absl::InvalidArgumentError("band_count is 0; Delete removes whole objects");
  }
  {
    const Turns::Turn turn = turns_.Take(TurnName(tenant, key));
    ObjectPtr object;
    {
      MutexLock lock(&mutex_);
      KVTIER_ASSIGN_OR_RETURN(object, FindNamed(tenant, key, upload));
      if (band_count >= ResidentBands(*object)) return absl::OkStatus();
    }
    if (DiskBands(*object) > band_count) {
      KVTIER_RETURN_IF_ERROR(disk_->LowerResidency(object->upload(), band_count));
    }
    MutexLock lock(&mutex_);
    Lower(object, band_count, ChangeCause::kRequested);
  }
  Trim();
  return absl::OkStatus();
}

void TieredStoreImpl::Trim() {
  std::set<ObjectPtr> tried;
  for (;;) {
    ObjectPtr object;
    uint32_t keep = 0;
    {
      MutexLock lock(&mutex_);
      for (const ObjectPtr& candidate : garbage_) {
        if (candidate->pin_count > 0 || candidate->trimming || tried.contains(candidate)) continue;
        object = candidate;
        break;
      }
      if (object == nullptr) break;
      object->trimming = true;
      keep = object->retired ? 0 : object->band_limit;
    }
    tried.insert(object);
    absl::Status removed = host_->DropBands(object->upload(), keep);
    if (disk_ != nullptr) removed.Update(disk_->DropBands(object->upload(), keep));
    if (!removed.ok()) {
      KVTIER_LOG(WARNING) << "bytes of upload " << object->upload().ToHex()
                          << " stay for now: " << removed.message();
    }
    MutexLock lock(&mutex_);
    object->trimming = false;
    // Lowered further meanwhile: once more.
    if (keep != (object->retired ? 0 : object->band_limit)) {
      tried.erase(object);
    } else if (removed.ok()) {
      garbage_.erase(object);
      if (object->retired) index_.Forget(object);
    }
  }
  PayDiskDebts();
}

}  // namespace kvtier
