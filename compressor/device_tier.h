// The objects that a compressor made last, kept packed in its device's memory, so that they can go
// to a worker's GPU without a way through the store. A copy, never the only one: what is not here
// is in the store.
//
// Bounded in bytes. The object that was used longest ago goes first, whole; an object that is
// larger than what can be had keeps its lowest bands, which are a valid cache. What somebody reads
// stays where it is and counts until the last Pin of it is gone, so device memory is never freed
// under a transfer and never exceeds the bound.
//
//   DeviceTier tier({.bytes_max = 8 << 30}, backend);
//   tier.Insert(TenantId(), object).IgnoreError();    // Counted; the store has it anyway.
//   KVTIER_ASSIGN_OR_RETURN(auto pin, tier.Pin(tenant, key, upload));
//   communicator.Send(pin->segment(band, layer).data, ...);
#ifndef KVTIER_COMPRESSOR_DEVICE_TIER_H_
#define KVTIER_COMPRESSOR_DEVICE_TIER_H_

#include <cstdint>
#include <list>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/mutex.h"
#include "compressor/backend.h"
#include "kvcache/compressed_object.h"
#include "kvcache/ids.h"

namespace kvtier {

// An object whose lowest bands lie in device memory. Immutable.
class DeviceObject {
 public:
  virtual ~DeviceObject() = default;
  virtual const std::shared_ptr<const Manifest>& manifest() const = 0;
  // Bands 0 .. resident_bands()-1 are there; at least one.
  virtual uint32_t resident_bands() const = 0;
  // The encoded bytes of a segment in device memory, as [1, bytes / 4] of fp32; no data if it has
  // no bytes. REQUIRES: a resident band.
  virtual TensorView segment(BandIndex band, LayerIndex layer) const = 0;
};

// Where the sending end of a link finds objects. Thread-safe.
class DeviceObjectSource {
 public:
  virtual ~DeviceObjectSource() = default;
  // Keeps the object as it is until the last copy of the result is gone.
  //   NOT_FOUND  it is not here (no message)
  //   ABORTED    another upload of that key is
  virtual absl::StatusOr<std::shared_ptr<const DeviceObject>> Pin(
      const TenantId& tenant, const Key& key, const std::optional<UploadId>& upload) = 0;
};

struct DeviceTierUsage {
  uint64_t objects = 0;
  uint64_t bytes = 0;  // Of objects, and of those that have gone but are still read.
  uint64_t inserted = 0;
  uint64_t shortened = 0;  // Of them, with fewer bands than they have.
  uint64_t evicted = 0;    // For want of room.
  uint64_t refused = 0;    // Not even band 0 fits beside what is read, or the device failed.
  uint64_t hits = 0;
  uint64_t misses = 0;
};

// Thread-safe. The backend outlives it and every Pin.
class DeviceTier final : public DeviceObjectSource {
 public:
  struct Options {
    uint64_t bytes_max = 0;  // 0: nothing is kept.
  };
  DeviceTier(const Options& options, Backend& backend);
  ~DeviceTier() override;

  // Copies the object to the device; replaces another upload of its key. Returns how many bands it
  // kept.
  //   RESOURCE_EXHAUSTED  not even band 0 fits beside what is being read, or into the device
  //   INTERNAL            the device failed
  // On an error nothing of the object is here.
  absl::StatusOr<uint32_t> Insert(const TenantId& tenant, const CompressedObject& object);
  // Lets go of the object; nothing if it is not here.
  void Remove(const TenantId& tenant, const Key& key);

  absl::StatusOr<std::shared_ptr<const DeviceObject>> Pin(
      const TenantId& tenant, const Key& key, const std::optional<UploadId>& upload) override;

  DeviceTierUsage usage() const;

 private:
  class Object;
  struct Account;
  using Name = std::pair<TenantId, Key>;
  struct Entry {
    std::shared_ptr<const Object> object;
    std::list<Name>::iterator recency;
  };

  // Takes an object out of the index. The caller lets it go after the lock.
  std::shared_ptr<const Object> TakeLocked(const Name& name) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // The object used longest ago that nobody reads; null if there is none.
  std::shared_ptr<const Object> TakeVictimLocked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Makes room for the longest prefix of bands that can be had, and charges it. 0: none.
  uint32_t Reserve(const Manifest& manifest);

  const Options options_;
  Backend& backend_;
  const std::shared_ptr<Account> account_;  // Shared with objects: they may outlive the tier.
  mutable Mutex mutex_;
  absl::flat_hash_map<Name, Entry> entries_ ABSL_GUARDED_BY(mutex_);
  std::list<Name> recency_ ABSL_GUARDED_BY(mutex_);  // Front: used last.
  DeviceTierUsage counts_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace kvtier

#endif  // KVTIER_COMPRESSOR_DEVICE_TIER_H_
