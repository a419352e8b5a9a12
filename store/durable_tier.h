// A tier that outlives the process: besides segments it keeps the sealed objects' records.
//
// Order on disk (docs/adr/0010-degrade.md): segments first, manifest last, so a crash leaves a
// whole object or none. Shrinking is the reverse: the residency record is lowered first (synced),
// then bytes go, highest band first. Recover() deletes whatever no record names.
#ifndef KVTIER_STORE_DURABLE_TIER_H_
#define KVTIER_STORE_DURABLE_TIER_H_

#include <memory>
#include <vector>

#include "absl/time/time.h"
#include "store/object_stat.h"
#include "store/tier.h"

namespace kvtier {

// What a sealed object's record says.
struct SealedObject {
  TenantId tenant;
  std::shared_ptr<const Manifest> manifest;
  uint32_t resident_bands = 0;
  absl::Time sealed_at;
  ObjectAttributes attributes;
};

// What the tier found damaged or left over, since it was opened.
struct DurableCounters {
  uint64_t records_lost = 0;     // Failed their checksum, or lacked their other half. A block of
                                 // them that cannot be read counts as one.
  uint64_t bands_lost = 0;       // A record said they are resident, but their files are gone.
  uint64_t orphans_removed = 0;  // Uploads that no record names, removed at start-up.
  uint64_t log_damage = 0;       // Places of the log of records that could not be read at start-up:
                                 // rot, or a write that a loss of power cut off. A torn end of the
                                 // list of files is one.
};

class DurableTier : public Tier {
 public:
  // Makes every band put so far of this upload durable and readable after a crash, under the
  // current record of (tenant, key). Replaces the record of another upload atomically; that
  // upload's segments stay until DropBands(upload, 0).
  //   RESOURCE_EXHAUSTED  the disk is full: the old record stands
  //   FAILED_PRECONDITION not all of the manifest's bands are here
  virtual absl::Status Seal(const TenantId& tenant, const Manifest& manifest,
                            absl::Time sealed_at) = 0;
  // The same for an object that has given up its bands from `band_count` on: REQUIRES
  // band_count >= 1. FAILED_PRECONDITION unless exactly that many bands are here.
  virtual absl::Status SealPrefix(const TenantId& tenant, const Manifest& manifest,
                                  uint32_t band_count, absl::Time sealed_at) = 0;
  // The first half of DropBands: once it returns, a crash leaves at most `band_count` bands of the
  // upload (0: no record of it). Until DropBands they are still served, to readers that pin them.
  virtual absl::Status LowerResidency(const UploadId& upload, uint32_t band_count) = 0;
  // Bands that a crash now would leave, as the record says: fewer than BandCount while bands are
  // put and not sealed yet, or lowered and not dropped yet.
  virtual uint32_t SealedBands(const UploadId& upload) = 0;
  // Removes the record of (tenant, key) if it is of `upload`, then the upload's segments.
  virtual absl::Status Unseal(const TenantId& tenant, const Key& key, const UploadId& upload) = 0;
  // Makes `attributes` durable for an upload. They may come before its Seal, so that it is never
  // sealed without them; they go with its record, and with an upload that is never sealed at the
  // next start.
  //   RESOURCE_EXHAUSTED, UNAVAILABLE  the old ones stand
  //   FAILED_PRECONDITION              no band of the upload is here
  virtual absl::Status SetAttributes(const UploadId& upload,
                                     const ObjectAttributes& attributes) = 0;
  // Start-up: every sealed object whose record is intact, after deleting segments no record names
  // and bands above a residency record. Records that fail their checksum are counted and removed
  // (an object whose attributes fail theirs is there, with none).
  // When some records cannot be read at all, what was read is served and nothing is deleted: the
  // rest may be named by the records behind the damage.
  // REQUIRES: called once, before any other method.
  virtual absl::StatusOr<std::vector<SealedObject>> Recover() = 0;

  // Get into memory of the caller's, whose content after a failure is anything. Codes as Get.
  // REQUIRES: `out` is as long as the segment.
  virtual absl::Status Read(const Manifest& manifest, BandIndex band, LayerIndex layer,
                            MutableByteSpan out) = 0;

  // What PutBand of this band takes from the budget.
  virtual uint64_t ChargeOf(const BandEntry& band) const = 0;

  virtual DurableCounters counters() = 0;
};

}  // namespace kvtier

#endif  // KVTIER_STORE_DURABLE_TIER_H_
