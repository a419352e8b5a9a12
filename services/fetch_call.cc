#include "services/fetch_call.h"

#include <algorithm>
#include <memory>
#include <optional>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/strings/str_cat.h"
#include "base/limits.h"
#include "base/mutex.h"
#include "base/status_macros.h"
#include "kvtier/v1/store.pb.h"
#include "services/fetch_plan.h"
#include "services/frames.h"
#include "services/proto_convert.h"
#include "services/status_grpc.h"
#include "store/lease_table.h"

namespace kvtier {
namespace {

// One Fetch. What lies in host memory is read where the turn is; what does not is read on the pool,
// the next segment while one is being written, so that disk and wire work at the same time; two
// segments are in use at most. A small answer out of host memory is given at once, in one message.
// Deletes itself when the call is over.
//
//   1. At most one write and one job that reads are under way. The job touches `planned_` and
//      pinned_; what it has read goes through read_, under mutex_. All else is of whoever may start
//      the next write: gRPC's callback of the request or of the last write, or the job that it left
//      the turn to (is_awaited_).
//   2. gRPC's callbacks never wait for a disk. Letting go of a pin, or of what a lease held, may
//      remove bytes from there: then the fetch ends on the pool. It ends only when no job reads.
class FetchCall final : public grpc::ServerWriteReactor<grpc::ByteBuffer> {
 public:
  FetchCall(CallEnvironment& environment, const grpc::ServerContextBase& context,
            const grpc::ByteBuffer& request)
      : environment_(environment), start_(environment.clock().Now()) {
    absl::StatusOr<CallSlots::Slot> slot = environment_.slots().Admit(context);
    absl::Status status = slot.status();
    if (status.ok()) {
      slot_ = *std::move(slot);
      status = Parse(request);
    }
    if (!status.ok()) {
      End(status);
      return;
    }
    Open();
  }

  void OnWriteDone(bool ok) override {
    if (!ok) {
      Leave(absl::CancelledError("the reader is gone"));
    } else if (offset_ < current_.range.end) {
      SendFrame();
    } else {
      Advance();
    }
  }

  void OnDone() override { delete this; }

 private:
  absl::Status Parse(const grpc::ByteBuffer& bytes) {
    v1::FetchRequest message;
    KVTIER_RETURN_IF_ERROR(ParseFromByteBuffer(bytes, message));
    KVTIER_ASSIGN_OR_RETURN(request_, FetchRequestFromProto(slot_.tenant(), message));
    if (message.has_lease()) {
      lease_ = LeaseId{.id = message.lease().id(), .epoch = message.lease().epoch()};
    }
    return absl::OkStatus();
  }

  // A segment, or the part of it that was asked for.
  struct Segment {
    BandIndex band;
    LayerIndex layer;
    SegmentEntry::ByteRange range;
    SegmentRef bytes;
  };

  // Finds the object and sends the header, with all the rest if that is small and at hand.
  void Open() {
    const absl::Status status = [&]() -> absl::Status {
      if (lease_.has_value()) return OpenUnderLease();
      KVTIER_ASSIGN_OR_RETURN(
          pinned_, environment_.store().Pin(request_.tenant, request_.key, request_.upload_id));
      KVTIER_ASSIGN_OR_RETURN(plan_,
                              PlanFetch(pinned_->manifest(), pinned_->resident_bands(), request_));
      return absl::OkStatus();
    }();
    if (!status.ok()) {
      Leave(status);
      return;
    }
    v1::FetchResponse response;
    v1::FetchHeader& header = *response.mutable_header();
    header.set_manifest(EncodeManifest(*plan_.manifest));
    header.set_band_count(plan_.band_count);
    header.set_ratio_millionths(plan_.manifest->bands[plan_.band_count - 1].edge.millionths());
    header.set_payload_bytes(plan_.payload_bytes());
    if (header.payload_bytes() <= limits::kSmallFetchBytesMax && AddFrames(header)) {
      environment_.metrics().store_fetch_bytes.Increment(
          static_cast<double>(header.payload_bytes()));
      is_last_message_ = true;
      message_ = SerializeToByteBuffer(response);
      Leave(absl::OkStatus());
      return;
    }
    message_ = SerializeToByteBuffer(response);
    StartOver();
    ReadAhead();
    StartWrite(&message_);
  }

  absl::Status OpenUnderLease() {
    LeaseTable* const leases = environment_.options().leases;
    if (leases == nullptr) return absl::UnimplementedError("this store gives no leases");
    KVTIER_ASSIGN_OR_RETURN(held_, leases->Find(request_.tenant, *lease_));
    const Manifest& manifest = *held_->manifest();
    if (manifest.key != request_.key ||
        (request_.upload_id.has_value() && manifest.upload_id != *request_.upload_id)) {
      return absl::InvalidArgumentError(absl::StrCat(
          "lease ", lease_->id, " holds upload ", manifest.upload_id.ToHex(), " of another name"));
    }
    KVTIER_ASSIGN_OR_RETURN(plan_, PlanFetch(held_->manifest(), held_->band_count(), request_));
    return absl::OkStatus();
  }

  // Every segment of the plan. False: not all of them are in host memory; the header is as it was.
  bool AddFrames(v1::FetchHeader& header) {
    StartOver();
    while (const std::optional<Segment> segment = TakeFromPlan()) {
      const std::optional<SegmentRef> bytes = ReadFromMemory(*segment);
      if (!bytes.has_value()) {
        header.clear_frames();
        return false;
      }
      v1::SegmentFrame& frame = *header.add_frames();
      frame.set_band(segment->band.value());
      frame.set_layer(segment->layer.value());
      frame.set_payload(bytes->bytes().data() + segment->range.begin,
                        segment->range.end - segment->range.begin);
    }
    return true;
  }

  // Nothing if it is to be read on the pool.
  std::optional<SegmentRef> ReadFromMemory(const Segment& segment) {
    if (held_ != nullptr) return held_->Segment(segment.band, segment.layer);
    return pinned_->ReadFromMemory(segment.band, segment.layer);
  }

  void StartOver() {
    layer_ = plan_.layers.begin;
    band_ = 0;
  }

  // The next segment with bytes, which are not read yet; nothing at the end.
  std::optional<Segment> TakeFromPlan() {
    while (layer_ < plan_.layers.end) {
      Segment segment{BandIndex(band_), LayerIndex(layer_), {}, {}};
      segment.range = plan_.bytes_of(segment.band, segment.layer);
      if (++band_ == plan_.band_count) {
        band_ = 0;
        ++layer_;
      }
      if (segment.range.begin < segment.range.end) return segment;
    }
    return std::nullopt;
  }

  // Takes the next segment from the plan and has it read: at once, or while something is written.
  void ReadAhead() {
    planned_ = TakeFromPlan();
    if (!planned_.has_value()) return;
    if (std::optional<SegmentRef> bytes = ReadFromMemory(*planned_)) {
      MutexLock lock(&mutex_);
      read_ = *std::move(bytes);
      return;
    }
    source_ = LoadTimes::Source::kDisk;
    StartReading(/*is_awaited=*/false);
  }

  // Makes planned_ readable, on the pool. REQUIRES: it is there, and no job reads.
  void StartReading(bool is_awaited) {
    {
      MutexLock lock(&mutex_);
      is_reading_ = true;
      is_awaited_ = is_awaited;
    }
    environment_.Schedule([this] { Read(); });
  }

  // On the pool.
  void Read() {
    absl::StatusOr<SegmentRef> bytes = pinned_->Read(planned_->band, planned_->layer);
    absl::Status leave_with;
    {
      MutexLock lock(&mutex_);
      is_reading_ = false;
      if (!is_awaited_) {
        read_ = std::move(bytes);
        return;
      }
      leave_with = leave_with_;
    }
    if (leave_with.ok()) {
      Use(std::move(bytes));
    } else {
      End(leave_with);
    }
  }

  // The current segment has been sent.
  void Advance() {
    current_ = Segment();
    std::optional<absl::StatusOr<SegmentRef>> bytes;
    {
      MutexLock lock(&mutex_);
      if (is_reading_) {
        is_awaited_ = true;
        return;
      }
      bytes.swap(read_);
    }
    if (!planned_.has_value()) {
      Leave(absl::OkStatus());
    } else if (!bytes.has_value() || absl::IsResourceExhausted(bytes->status())) {
      // Nothing was read ahead, or there was no room for two.
      StartReading(/*is_awaited=*/true);
    } else {
      Use(*std::move(bytes));
    }
  }

  // Sends planned_ and has the one after it read.
  void Use(absl::StatusOr<SegmentRef> bytes) {
    if (!bytes.ok()) {
      Leave(bytes.status());
      return;
    }
    current_ = *std::move(planned_);
    current_.bytes = *std::move(bytes);
    offset_ = current_.range.begin;
    ReadAhead();
    SendFrame();
  }

  void SendFrame() {
    const uint64_t end = std::min(current_.range.end, offset_ + limits::kFrameBytesMax);
    message_ = MakeFrame(current_.band, current_.layer, offset_ - current_.range.begin,
                         current_.bytes, {offset_, end});
    environment_.metrics().store_fetch_bytes.Increment(static_cast<double>(end - offset_));
    offset_ = end;
    StartWrite(&message_);
  }

  // Ends the call once no job reads. REQUIRES: no write is under way.
  void Leave(const absl::Status& status) {
    {
      MutexLock lock(&mutex_);
      if (is_reading_) {
        is_awaited_ = true;
        leave_with_ = status;
        return;
      }
    }
    if (held_ == nullptr && (pinned_ == nullptr || pinned_->TryRelease())) {
      End(status);
    } else {
      environment_.Schedule([this, status] { End(status); });
    }
  }

  // Counts before the caller hears of the end, so that who asks next sees it counted.
  void End(absl::Status status) {
    if (absl::IsResourceExhausted(status) && !RetryAfter(status).has_value()) {
      status = WithRetryAfter(std::move(status), kFullRetryDelay);  // Others' segments will go.
    }
    current_ = Segment();
    {
      MutexLock lock(&mutex_);
      read_.reset();
    }
    pinned_.reset();
    held_.reset();
    if (status.ok()) {
      environment_.load_times().Record(source_, plan_.payload_bytes(),
                                       environment_.clock().Now() - start_);
    }
    environment_.Count("Fetch", status, start_);
    if (is_last_message_) {
      StartWriteAndFinish(&message_, grpc::WriteOptions(), ToGrpcStatus(status));
    } else {
      Finish(ToGrpcStatus(status));
    }
  }

  CallEnvironment& environment_;
  const absl::Time start_;
  CallSlots::Slot slot_;
  FetchRequest request_;
  std::optional<LeaseId> lease_;            // What the caller reads under, ...
  std::shared_ptr<const HeldObject> held_;  // ... and what that holds. Else:
  std::unique_ptr<PinnedObject> pinned_;
  FetchPlan plan_;
  LoadTimes::Source source_ = LoadTimes::Source::kHost;

  uint32_t layer_ = 0;  // Next segment to plan.
  uint32_t band_ = 0;
  std::optional<Segment> planned_;  // Next to send; its bytes are being read, or in read_.
  Segment current_;                 // The one being sent.
  uint64_t offset_ = 0;             // Inside it; next byte to send.

  Mutex mutex_;
  bool is_reading_ ABSL_GUARDED_BY(mutex_) = false;
  bool is_awaited_ ABSL_GUARDED_BY(mutex_) = false;  // The job goes on when it has read.
  absl::Status leave_with_ ABSL_GUARDED_BY(mutex_);  // Not OK: by ending the call.
  std::optional<absl::StatusOr<SegmentRef>> read_ ABSL_GUARDED_BY(mutex_);

  grpc::ByteBuffer message_;      // The one being written.
  bool is_last_message_ = false;  // It goes with the status.
};

}  // namespace

grpc::ServerWriteReactor<grpc::ByteBuffer>* StartFetchCall(CallEnvironment& environment,
                                                           const grpc::ServerContextBase& context,
                                                           const grpc::ByteBuffer& request) {
  return new FetchCall(environment, context, request);
}

}  // namespace kvtier
