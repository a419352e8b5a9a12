#include "services/fetch_call.h"

#include <algorithm>
#include <memory>
#include <utility>

#include "base/limits.h"
#include "base/status_macros.h"
#include "kvtier/v1/store.pb.h"
#include "services/fetch_plan.h"
#include "services/frames.h"
#include "services/proto_convert.h"
#include "services/tenant.h"

namespace kvtier {
namespace {

// One Fetch. gRPC calls OnWriteDone and OnDone; at any time either a write or a pool job is under
// way, never both, so the members need no lock. Letting go of a pin may remove bytes from the disk,
// so a fetch that has one ends on the pool. Deletes itself when the call is over.
class FetchCall final : public grpc::ServerWriteReactor<grpc::ByteBuffer> {
 public:
  FetchCall(CallEnvironment& environment, const grpc::ServerContextBase& context,
            const grpc::ByteBuffer& request)
      : environment_(environment), start_(environment.clock().Now()) {
    absl::Status status = environment_.Admit();
    admitted_ = status.ok();
    if (status.ok()) status = Parse(context, request);
    if (!status.ok()) {
      End(status);
      return;
    }
    environment_.Schedule([this] { Open(); });
  }

  void OnWriteDone(bool ok) override {
    if (!ok) {
      environment_.Schedule([this] { End(absl::CancelledError("the reader is gone")); });
    } else if (offset_ < range_.end) {
      SendFrame();
    } else {
      environment_.Schedule([this] { ReadSegment(); });
    }
  }

  void OnDone() override {
    if (admitted_) environment_.Release();
    delete this;
  }

 private:
  absl::Status Parse(const grpc::ServerContextBase& context, const grpc::ByteBuffer& bytes) {
    v1::FetchRequest message;
    KVTIER_RETURN_IF_ERROR(ParseFromByteBuffer(bytes, message));
    KVTIER_ASSIGN_OR_RETURN(const TenantId tenant, TenantOf(context));
    KVTIER_ASSIGN_OR_RETURN(request_, FetchRequestFromProto(tenant, message));
    return absl::OkStatus();
  }

  // On the pool: finds the object and sends the header.
  void Open() {
    const absl::Status status = [&]() -> absl::Status {
      KVTIER_ASSIGN_OR_RETURN(
          pinned_, environment_.store().Pin(request_.tenant, request_.key, request_.upload_id));
      KVTIER_ASSIGN_OR_RETURN(plan_,
                              PlanFetch(pinned_->manifest(), pinned_->resident_bands(), request_));
      return absl::OkStatus();
    }();
    if (!status.ok()) {
      End(status);
      return;
    }
    layer_ = plan_.layers.begin;
    // A guess by the time of reading: it feeds an estimate only.
    const absl::StatusOr<ObjectStat> stat =
        environment_.store().Stat(request_.tenant, request_.key);
    if (stat.ok() && stat->host_bands < plan_.band_count) source_ = LoadTimes::Source::kDisk;
    v1::FetchResponse response;
    v1::FetchHeader& header = *response.mutable_header();
    header.set_manifest(EncodeManifest(*plan_.manifest));
    header.set_band_count(plan_.band_count);
    header.set_ratio_millionths(plan_.manifest->bands[plan_.band_count - 1].edge.millionths());
    header.set_payload_bytes(plan_.payload_bytes());
    message_ = SerializeToByteBuffer(response);
    StartWrite(&message_);
  }

  // On the pool: makes the next segment with bytes readable.
  void ReadSegment() {
    for (; layer_ < plan_.layers.end; AdvanceSegment()) {
      range_ = plan_.bytes_of(BandIndex(band_), LayerIndex(layer_));
      if (range_.begin == range_.end) continue;
      absl::StatusOr<SegmentRef> segment = pinned_->Read(BandIndex(band_), LayerIndex(layer_));
      if (!segment.ok()) {
        End(segment.status());
        return;
      }
      segment_ = *std::move(segment);
      frame_band_ = BandIndex(band_);
      frame_layer_ = LayerIndex(layer_);
      offset_ = range_.begin;
      AdvanceSegment();
      SendFrame();
      return;
    }
    End(absl::OkStatus());
  }

  void AdvanceSegment() {
    if (++band_ < plan_.band_count) return;
    band_ = 0;
    ++layer_;
  }

  void SendFrame() {
    const uint64_t end = std::min(range_.end, offset_ + limits::kFrameBytesMax);
    message_ =
        MakeFrame(frame_band_, frame_layer_, offset_ - range_.begin, segment_, {offset_, end});
    environment_.metrics().store_fetch_bytes.Increment(static_cast<double>(end - offset_));
    offset_ = end;
    StartWrite(&message_);
  }

  // Counts before the caller hears of the end, so that who asks next sees it counted.
  void End(absl::Status status) {
    if (absl::IsResourceExhausted(status) && !RetryAfter(status).has_value()) {
      status = WithRetryAfter(std::move(status), kFullRetryDelay);  // Others' segments will go.
    }
    segment_ = SegmentRef();
    pinned_.reset();
    if (status.ok()) {
      environment_.load_times().Record(source_, plan_.payload_bytes(),
                                       environment_.clock().Now() - start_);
    }
    environment_.Count("Fetch", status, start_);
    Finish(ToGrpcStatus(status));
  }

  CallEnvironment& environment_;
  const absl::Time start_;
  bool admitted_ = false;
  FetchRequest request_;
  std::unique_ptr<PinnedObject> pinned_;
  FetchPlan plan_;
  LoadTimes::Source source_ = LoadTimes::Source::kHost;

  uint32_t layer_ = 0;  // Next segment to read.
  uint32_t band_ = 0;

  SegmentRef segment_;  // The one being sent, and what of it.
  BandIndex frame_band_;
  LayerIndex frame_layer_;
  SegmentEntry::ByteRange range_;
  uint64_t offset_ = 0;  // Inside the segment; next byte to send.

  grpc::ByteBuffer message_;  // The one being written.
};

}  // namespace

grpc::ServerWriteReactor<grpc::ByteBuffer>* StartFetchCall(CallEnvironment& environment,
                                                           const grpc::ServerContextBase& context,
                                                           const grpc::ByteBuffer& request) {
  return new FetchCall(environment, context, request);
}

}  // namespace kvtier
