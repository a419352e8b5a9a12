// What one fetch reads: an object that it pins, or one that a lease holds, and the plan over it.
// The part that Fetch and FetchSmall share. Private to the service.
//
//   FetchSource source(environment);
//   KVTIER_RETURN_IF_ERROR(source.Open(tenant, request));
//   v1::FetchHeader header = source.Header();
//   if (source.fits_in_header() && source.AddFramesFromMemory(header)) ... everything is in it
#ifndef KVTIER_SERVICES_FETCH_SOURCE_H_
#define KVTIER_SERVICES_FETCH_SOURCE_H_

#include <cstdint>
#include <memory>
#include <optional>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kvcache/segment_ref.h"
#include "kvtier/v1/store.pb.h"
#include "services/call_environment.h"
#include "services/fetch_plan.h"
#include "store/lease_table.h"
#include "store/tiered_store.h"

namespace kvtier {

// One thread at a time, except that Read may run beside everything but Open and Release. Nothing
// but Read and Release waits for a disk; nor does the destructor after Release or TryRelease.
class FetchSource {
 public:
  // `environment` outlives it.
  explicit FetchSource(CallEnvironment& environment) : environment_(environment) {}

  // Finds the object and plans; once, first. Codes of StoreService.Fetch. After an error there may
  // still be something to release.
  absl::Status Open(const TenantId& tenant, const v1::FetchRequest& message);

  // REQUIRES, from here on: Open was OK.
  const FetchPlan& plan() const { return plan_; }
  // Without frames.
  v1::FetchHeader Header() const;
  // Whether one message may carry everything (limits::kSmallFetchBytesMax).
  bool fits_in_header() const;

  // A segment of the plan, or the part of it that was asked for.
  struct Segment {
    BandIndex band;
    LayerIndex layer;
    SegmentEntry::ByteRange range;
  };
  // The next segment with bytes in the order of the plan; nothing at the end.
  std::optional<Segment> Next();
  void StartOver() { next_layer_ = plan_.layers.begin, next_band_ = 0; }

  // Nothing if it is to be read with Read, on the pool.
  std::optional<SegmentRef> ReadFromMemory(const Segment& segment);
  // On the pool. DATA_LOSS, RESOURCE_EXHAUSTED, UNAVAILABLE as PinnedObject::Read.
  absl::StatusOr<SegmentRef> Read(const Segment& segment);

  // Copies segments into frames, from the next one to the last. False: the next one is not in host
  // memory; what comes before it is in frames.
  bool AddFramesFromMemory(v1::FetchHeader& header);
  // The same from wherever they are; on the pool. After an error some are in frames.
  absl::Status AddFrames(v1::FetchHeader& header);

  // Counts no request of the store's: the caller asks again with another method.
  void LeaveUncounted();

  // Lets go of everything if that cannot wait for a disk. False: Release, on the pool.
  bool TryRelease();
  void Release();

 private:
  absl::Status OpenUnderLease(const FetchRequest& request, const LeaseId& lease);

  CallEnvironment& environment_;
  std::shared_ptr<const HeldObject> held_;  // What the lease holds that the caller reads under. Or:
  std::unique_ptr<PinnedObject> pinned_;
  FetchPlan plan_;
  uint32_t next_layer_ = 0;
  uint32_t next_band_ = 0;
};

}  // namespace kvtier

#endif  // KVTIER_SERVICES_FETCH_SOURCE_H_
