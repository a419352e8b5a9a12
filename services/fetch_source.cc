#include "services/fetch_source.h"

#include "absl/strings/str_cat.h"
#include "base/limits.h"
#include "base/status_macros.h"
#include "services/proto_convert.h"

namespace kvtier {
namespace {

void AddFrame(const FetchSource::Segment& segment, const SegmentRef& bytes,
              v1::FetchHeader& header) {
  v1::SegmentFrame& frame = *header.add_frames();
  frame.set_band(segment.band.value());
  frame.set_layer(segment.layer.value());
  frame.set_payload(bytes.bytes().data() + segment.range.begin,
                    segment.range.end - segment.range.begin);
}

}  // namespace

absl::Status FetchSource::Open(const TenantId& tenant, const v1::FetchRequest& message) {
  KVTIER_ASSIGN_OR_RETURN(const FetchRequest request, FetchRequestFromProto(tenant, message));
  if (message.has_lease()) {
    return OpenUnderLease(request, {.id = message.lease().id(), .epoch = message.lease().epoch()});
  }
  KVTIER_ASSIGN_OR_RETURN(pinned_,
                          environment_.store().Pin(tenant, request.key, request.upload_id));
  KVTIER_ASSIGN_OR_RETURN(plan_,
                          PlanFetch(pinned_->manifest(), pinned_->resident_bands(), request));
  pinned_->WillRead(plan_.band_count, plan_.layers);
  StartOver();
  return absl::OkStatus();
}

absl::Status FetchSource::OpenUnderLease(const FetchRequest& request, const LeaseId& lease) {
  LeaseTable* const leases = environment_.options().leases;
  if (leases == nullptr) return absl::UnimplementedError("this store gives no leases");
  KVTIER_ASSIGN_OR_RETURN(held_, leases->Find(request.tenant, lease));
  const Manifest& manifest = *held_->manifest();
  if (manifest.key != request.key ||
      (request.upload_id.has_value() && manifest.upload_id != *request.upload_id)) {
    return absl::InvalidArgumentError(absl::StrCat("lease ", lease.id, " holds upload ",
                                                   manifest.upload_id.ToHex(), " of another name"));
  }
  KVTIER_ASSIGN_OR_RETURN(plan_, PlanFetch(held_->manifest(), held_->band_count(), request));
  StartOver();
  return absl::OkStatus();
}

v1::FetchHeader FetchSource::Header() const {
  v1::FetchHeader header;
  header.set_manifest(EncodeManifest(*plan_.manifest));
  header.set_band_count(plan_.band_count);
  header.set_ratio_millionths(plan_.manifest->bands[plan_.band_count - 1].edge.millionths());
  header.set_payload_bytes(plan_.payload_bytes());
  return header;
}

bool FetchSource::fits_in_header() const {
  return plan_.payload_bytes() <= limits::kSmallFetchBytesMax;
}

std::optional<FetchSource::Segment> FetchSource::Next() {
  while (next_layer_ < plan_.layers.end) {
    Segment segment{BandIndex(next_band_), LayerIndex(next_layer_), {}};
    segment.range = plan_.bytes_of(segment.band, segment.layer);
    if (++next_band_ == plan_.band_count) {
      next_band_ = 0;
      ++next_layer_;
    }
    if (segment.range.begin < segment.range.end) return segment;
  }
  return std::nullopt;
}

std::optional<SegmentRef> FetchSource::ReadFromMemory(const Segment& segment) {
  if (held_ != nullptr) return held_->Segment(segment.band, segment.layer);
  return pinned_->ReadFromMemory(segment.band, segment.layer);
}

absl::StatusOr<SegmentRef> FetchSource::Read(const Segment& segment) {
  if (held_ != nullptr) return held_->Segment(segment.band, segment.layer);
  return pinned_->Read(segment.band, segment.layer);
}

bool FetchSource::AddFramesFromMemory(v1::FetchHeader& header) {
  for (;;) {
    const uint32_t layer = next_layer_, band = next_band_;
    const std::optional<Segment> segment = Next();
    if (!segment.has_value()) return true;
    const std::optional<SegmentRef> bytes = ReadFromMemory(*segment);
    if (!bytes.has_value()) {
      next_layer_ = layer, next_band_ = band;  // This one is next still.
      return false;
    }
    AddFrame(*segment, *bytes, header);
  }
}

absl::Status FetchSource::AddFrames(v1::FetchHeader& header) {
  while (const std::optional<Segment> segment = Next()) {
    KVTIER_ASSIGN_OR_RETURN(const SegmentRef bytes, Read(*segment));
    AddFrame(*segment, bytes, header);
  }
  return absl::OkStatus();
}

void FetchSource::LeaveUncounted() {
  if (pinned_ != nullptr) pinned_->LeaveUncounted();
}

bool FetchSource::TryRelease() {
  // What a lease held may be the last of a band.
  if (held_ != nullptr || (pinned_ != nullptr && !pinned_->TryRelease())) return false;
  pinned_.reset();
  return true;
}

void FetchSource::Release() {
  pinned_.reset();
  held_.reset();
}

}  // namespace kvtier
