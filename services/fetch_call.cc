#include "services/fetch_call.h"

#include <algorithm>
#include <memory>
#include <optional>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "base/limits.h"
#include "base/mutex.h"
#include "base/status_macros.h"
#include "kvtier/v1/store.pb.h"
#include "services/fetch_source.h"
#include "services/frames.h"
#include "services/status_grpc.h"

namespace kvtier {
namespace {

// One Fetch. What lies in host memory is read where the turn is; what does not is read on the pool,
// the next segment while one is being written, so that disk and wire work at the same time; two
// segments are in use at most. A small answer out of host memory is given at once, in one message.
// Deletes itself when the call is over.
//
//   1. At most one write and one job that reads are under way. The job touches `planned_` and reads
//      from source_; what it has read goes through read_, under mutex_. All else is of whoever may
//      start the next write: gRPC's callback of the request or of the last write, or the job that
//      it left the turn to (is_awaited_).
//   2. gRPC's callbacks never wait for a disk. Letting go of a pin, or of what a lease held, may
//      remove bytes from there: then the fetch ends on the pool. It ends only when no job reads.
class FetchCall final : public grpc::ServerWriteReactor<grpc::ByteBuffer> {
 public:
  FetchCall(CallEnvironment& environment, const grpc::ServerContextBase& context,
            const grpc::ByteBuffer& request)
      : environment_(environment), start_(environment.clock().Now()), source_(environment) {
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
    } else if (offset_ < current_.range.end) {
      SendFrame();
    } else {
      Advance();
    }
  }

  void OnDone() override { delete this; }

 private:
  using Segment = FetchSource::Segment;

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
    ReadAhead();
    StartWrite(&message_);
  }

  // Takes the next segment from the plan and has it read: at once, or while something is written.
  void ReadAhead() {
    planned_ = source_.Next();
    if (!planned_.has_value()) return;
    if (std::optional<SegmentRef> bytes = source_.ReadFromMemory(*planned_)) {
      MutexLock lock(&mutex_);
      read_ = *std::move(bytes);
      return;
    }
    load_source_ = LoadTimes::Source::kDisk;
    StartReading(/*is_awaited=*/false);
  }

  // Makes planned_ readable, on the pool. REQUIRES: it is there, and no job reads.
  void StartReading(bool is_awaited) {
    {
      MutexLock lock(&mutex_);
      is_reading_ = true;
      is_awaited_ = is_awaited;
    }
    environment_.Schedule([this, is_ahead = !is_awaited] { Read(is_ahead); });
  }

  // On the pool. `is_ahead`: it began while another segment was being sent.
  void Read(bool is_ahead) {
    absl::StatusOr<SegmentRef> bytes = source_.Read(*planned_);
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
    if (!leave_with.ok()) {
      End(leave_with);
    } else if (is_ahead && absl::IsResourceExhausted(bytes.status())) {
      StartReading(/*is_awaited=*/true);  // There was no room for two; now there is but one.
    } else {
      Use(std::move(bytes));
    }
  }

  // The current segment has been sent: gRPC reports a write when it has let go of the bytes. Its
  // memory is free for the next one, also where there is only that, once we have let go of it too.
  void Advance() {
    bytes_ = SegmentRef();
    message_.Clear();
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
    bytes_ = *std::move(bytes);
    offset_ = current_.range.begin;
    ReadAhead();
    SendFrame();
  }

  void SendFrame() {
    const uint64_t end = std::min(current_.range.end, offset_ + limits::kFrameBytesMax);
    message_ = MakeFrame(current_.band, current_.layer, offset_ - current_.range.begin, bytes_,
                         {offset_, end});
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
    if (source_.TryRelease()) {
      End(status);
    } else {
      environment_.Schedule([this, status] { End(status); });
    }
  }

  // Counts before the caller hears of the end, so that who asks next sees it counted.
  void End(absl::Status status) {
    status = WithRetryIfFull(std::move(status));  // Others' segments will go.
    bytes_ = SegmentRef();
    {
      MutexLock lock(&mutex_);
      read_.reset();
    }
    source_.Release();
    if (status.ok()) {
      environment_.load_times().Record(load_source_, source_.plan().payload_bytes(),
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
  FetchSource source_;
  LoadTimes::Source load_source_ = LoadTimes::Source::kHost;

  std::optional<Segment> planned_;  // Next to send; its bytes are being read, or in read_.
  Segment current_;                 // The one being sent, ...
  SegmentRef bytes_;                // ... with its bytes.
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
