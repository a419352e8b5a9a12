#include "services/fetch_call.h"

#include <algorithm>
#include <memory>
#include <optional>
#include <utility>

#include "base/limits.h"
#include "base/status_macros.h"
#include "kvtier/v1/store.pb.h"
#include "services/fetch_source.h"
#include "services/frames.h"
#include "services/read_window.h"
#include "services/status_grpc.h"

namespace kvtier {
namespace {

// One Fetch. What lies in host memory is sent as it is; what does not is read on the pool, the next
// two segments while one is being written (services/read_window.h). A small answer out of host
// memory is given at once, in one message. Deletes itself when the call is over.
//
//   1. At most one write is under way. Everything here is of whoever may start the next one: gRPC's
//      callback of the request or of the last write, or the job that the window left the turn to.
//   2. gRPC's callbacks never wait for a disk. Letting go of a pin, or of what a lease held, may
//      remove bytes from there: then the fetch ends on the pool. It ends only when no job reads.
class FetchCall final : public grpc::ServerWriteReactor<grpc::ByteBuffer> {
 public:
  FetchCall(CallEnvironment& environment, const grpc::ServerContextBase& context,
            const grpc::ByteBuffer& request)
      : environment_(environment),
        start_(environment.clock().Now()),
        source_(environment),
        window_(environment, source_, [this] { GoOn(); }) {
    absl::StatusOr<CallSlots::Slot> slot = environment_.slots().Admit(context);
    absl::Status status = slot.status();
    if (status.ok()) {
      slot_ = *std::move(slot);
      status = Open(request);
    }
    if (!status.ok()) {
      Leave(status);
      return;
    }
    SendHeader();
  }

  void OnWriteDone(bool ok) override {
    if (!ok) {
      Leave(absl::CancelledError("the reader is gone"));
    } else if (offset_ < current_.segment.range.end) {
      SendFrame();
    } else {
      // gRPC reports a write when it has let go of the bytes: their memory is free for the next
      // segment, also where there is only that, once we have let go of it too.
      current_.bytes = SegmentRef();
      message_.Clear();
      GoOn();
    }
  }

  void OnDone() override { delete this; }

 private:
  absl::Status Open(const grpc::ByteBuffer& request) {
    v1::FetchRequest message;
    KVTIER_RETURN_IF_ERROR(ParseFromByteBuffer(request, message));
    return source_.Open(slot_.tenant(), message);
  }

  // With all the rest if that is small and at hand.
  void SendHeader() {
    v1::FetchResponse response;
    v1::FetchHeader& header = *response.mutable_header();
    header = source_.Header();
    is_last_message_ = source_.fits_in_header() && source_.AddFramesFromMemory(header);
    if (!is_last_message_) {  // All of it comes in frames of their own.
      header.clear_frames();
      source_.StartOver();
    }
    message_ = SerializeToByteBuffer(response);
    if (is_last_message_) {
      environment_.metrics().store_fetch_bytes.Increment(
          static_cast<double>(header.payload_bytes()));
      Leave(absl::OkStatus());
      return;
    }
    window_.ReadAhead();
    StartWrite(&message_);
  }

  // Sends the next segment and has those after it read, or ends the call.
  void GoOn() {
    if (leave_with_.has_value()) {
      Leave(*leave_with_);
      return;
    }
    absl::StatusOr<ReadWindow::Item> item = absl::UnknownError("not taken");
    switch (window_.Take(item)) {
      case ReadWindow::Next::kLater:
        return;  // This may be gone already.
      case ReadWindow::Next::kEnd:
        Leave(absl::OkStatus());
        return;
      case ReadWindow::Next::kReady:
        break;
    }
    if (!item.ok()) {
      Leave(item.status());
      return;
    }
    current_ = *std::move(item);
    offset_ = current_.segment.range.begin;
    window_.ReadAhead();
    SendFrame();
  }

  void SendFrame() {
    const FetchSource::Segment& segment = current_.segment;
    const uint64_t end = std::min(segment.range.end, offset_ + limits::kFrameBytesMax);
    message_ = MakeFrame(segment.band, segment.layer, offset_ - segment.range.begin, current_.bytes,
                         {offset_, end});
    environment_.metrics().store_fetch_bytes.Increment(static_cast<double>(end - offset_));
    offset_ = end;
    StartWrite(&message_);
  }

  // Ends the call once no job reads. REQUIRES: no write is under way.
  void Leave(const absl::Status& status) {
    leave_with_ = status;
    if (!window_.Stop()) return;
    if (source_.TryRelease()) {
      End(status);
    } else {
      environment_.Schedule([this, status] { End(status); });
    }
  }

  // Counts before the caller hears of the end, so that who asks next sees it counted.
  void End(absl::Status status) {
    status = WithRetryIfFull(std::move(status));  // Others' segments will go.
    current_.bytes = SegmentRef();
    source_.Release();
    if (status.ok()) {
      environment_.load_times().Record(
          window_.has_read() ? LoadTimes::Source::kDisk : LoadTimes::Source::kHost,
          source_.plan().payload_bytes(), environment_.clock().Now() - start_);
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
  FetchSource source_;
  ReadWindow window_;
  std::optional<absl::Status> leave_with_;  // The call ends with it once no job reads.

  ReadWindow::Item current_;  // The segment that is being sent.
  uint64_t offset_ = 0;       // Inside it; next byte to send.

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
