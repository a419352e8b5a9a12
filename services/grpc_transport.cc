// MakeGrpcTransport and FetchRaggedCache of services/client.h.
#include <atomic>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include <grpcpp/channel.h>
#include <grpcpp/client_context.h>
#include <grpcpp/support/byte_buffer.h>
#include <grpcpp/support/sync_stream.h>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "base/aligned_bytes.h"
#include "base/bytes.h"
#include "base/limits.h"
#include "base/status_macros.h"
#include "kvcache/ragged_view.h"
#include "kvcache/segment_filler.h"
#include "kvcache/segment_ref.h"
#include "kvcache/transport.h"
#include "kvtier/v1/store.grpc.pb.h"
#include "services/client.h"
#include "services/fetch_plan.h"
#include "services/frames.h"
#include "services/proto_convert.h"
#include "services/status_grpc.h"
#include "services/tenant.h"

namespace kvtier {
namespace {

constexpr absl::string_view kStreamName = "fetch stream";

// A stream that does not follow the protocol. To the caller it is what damaged bytes are: discard
// the fetch, ask again.
absl::Status BadStream(absl::string_view what) {
  return absl::DataLossError(absl::StrCat(kStreamName, ": ", what));
}

// One fetch: reads header and frames in step with the plan.
class FetchStream {
 public:
  FetchStream(const FetchRequest& request, SegmentFiller::Check check, SegmentSink& sink)
      : request_(request), check_(check), sink_(sink) {}

  // Everything up to the last frame. If the stream ends early the reason is in the call's status,
  // and the one returned here (`ended()` is true then) counts only if that is OK.
  absl::Status Receive(grpc::ClientReader<grpc::ByteBuffer>& reader) {
    reader_ = &reader;
    KVTIER_ASSIGN_OR_RETURN(const grpc::ByteBuffer message, Next());
    v1::FetchResponse response;
    if (!ParseFromByteBuffer(message, response).ok() || !response.has_header()) {
      return BadStream("no header");
    }
    return Take(std::move(*response.mutable_header()));
  }

  // The same when nothing follows the header.
  absl::Status Take(v1::FetchHeader header) {
    header_ = std::move(header);
    KVTIER_RETURN_IF_ERROR(TakeHeader());
    for (uint32_t layer = plan_.layers.begin; layer < plan_.layers.end; ++layer) {
      for (uint32_t band = 0; band < plan_.band_count; ++band) {
        KVTIER_RETURN_IF_ERROR(ReceiveSegment(BandIndex(band), LayerIndex(layer)));
      }
    }
    grpc::ByteBuffer message;
    if (header_frames_used_ < header_.frames_size() || Read(message)) {
      return BadStream("more after the last frame");
    }
    return absl::OkStatus();
  }

  bool ended() const { return ended_; }

 private:
  bool Read(grpc::ByteBuffer& message) { return reader_ != nullptr && reader_->Read(&message); }

  absl::StatusOr<grpc::ByteBuffer> Next() {
    grpc::ByteBuffer message;
    if (Read(message)) return message;
    ended_ = true;
    return BadStream("it ended early");
  }

  // Those of the header come first.
  absl::StatusOr<SegmentFrameView> NextFrame() {
    if (header_frames_used_ < header_.frames_size()) {
      const v1::SegmentFrame& frame = header_.frames(header_frames_used_++);
      SegmentFrameView view{frame.band(), frame.layer(), frame.offset(), {}};
      view.payload.pieces = {AsBytes(frame.payload())};
      view.payload.bytes = frame.payload().size();
      return view;
    }
    KVTIER_ASSIGN_OR_RETURN(const grpc::ByteBuffer message, Next());
    absl::StatusOr<std::optional<SegmentFrameView>> frame = ReadFrame(message);
    if (!frame.ok() || !frame->has_value()) return BadStream("not a frame");
    return **std::move(frame);
  }

  absl::Status TakeHeader() {
    KVTIER_ASSIGN_OR_RETURN(
        std::shared_ptr<const Manifest> manifest,
        ReadAnnouncedManifest(AsBytes(header_.manifest()), request_, kStreamName));
    absl::StatusOr<FetchPlan> plan = PlanBands(manifest, header_.band_count(), request_);
    if (!plan.ok()) return BadStream(plan.status().message());
    plan_ = *std::move(plan);
    if (plan_.payload_bytes() != header_.payload_bytes()) {
      return BadStream(absl::StrCat("it announces ", header_.payload_bytes(), " bytes, not ",
                                    plan_.payload_bytes()));
    }
    return sink_.OnManifest(std::move(manifest), plan_.band_count);
  }

  absl::Status ReceiveSegment(BandIndex band, LayerIndex layer) {
    const SegmentEntry::ByteRange range = plan_.bytes_of(band, layer);
    KVTIER_ASSIGN_OR_RETURN(
        AlignedBytes bytes,
        AlignedBytes::TryAllocate(range.end - range.begin, AlignedBytes::Fill::kUninitialized));
    SegmentFiller filler(plan_.manifest->segment(band, layer), plan_.heads, bytes.span(), check_);
    const auto append = [&](ByteSpan piece) -> absl::Status {
      const absl::Status intact = filler.Append(piece);
      if (intact.ok()) return intact;
      return absl::DataLossError(absl::StrCat("band ", band.value(), ", layer ", layer.value(),
                                              ", on the way: ", intact.message()));
    };
    KVTIER_RETURN_IF_ERROR(append({}));  // Judges a segment without bytes.
    while (!filler.done()) {
      KVTIER_ASSIGN_OR_RETURN(const SegmentFrameView view, NextFrame());
      if (view.band != band.value() || view.layer != layer.value() ||
          view.offset != filler.filled() || view.payload.bytes == 0 ||
          view.payload.bytes > bytes.size() - filler.filled()) {
        return BadStream(absl::StrCat("band ", view.band, ", layer ", view.layer, ", offset ",
                                      view.offset, " with ", view.payload.bytes,
                                      " bytes where band ", band.value(), ", layer ", layer.value(),
                                      ", offset ", filler.filled(), " was due"));
      }
      for (const ByteSpan piece : view.payload.pieces) KVTIER_RETURN_IF_ERROR(append(piece));
    }
    return sink_.OnSegment(band, layer, SegmentRef::Own(std::move(bytes)));
  }

  grpc::ClientReader<grpc::ByteBuffer>* reader_ = nullptr;  // None: all is in the header.
  const FetchRequest& request_;
  const SegmentFiller::Check check_;
  SegmentSink& sink_;
  v1::FetchHeader header_;
  int header_frames_used_ = 0;
  FetchPlan plan_;
  bool ended_ = false;
};

class GrpcTransport final : public Transport {
 public:
  GrpcTransport(std::shared_ptr<grpc::Channel> channel, const GrpcTransportOptions& options)
      : channel_(std::move(channel)),
        stub_(v1::StoreService::NewStub(channel_)),
        check_(options.verify ? SegmentFiller::Check::kVerify : SegmentFiller::Check::kTrust) {}

  absl::Status Fetch(const FetchRequest& request, absl::Time deadline, SegmentSink& sink) override {
    if (!store_is_older_ && request.expected_bytes.has_value() &&
        *request.expected_bytes <= limits::kSmallFetchBytesMax) {
      std::optional<absl::Status> status = FetchSmall(request, deadline, sink);
      if (status.has_value()) return *std::move(status);
    }
    grpc::ClientContext context;
    Begin(request, deadline, context);
    const auto reader = StartRawFetch(*channel_, &context, FetchRequestToProto(request));
    FetchStream stream(request, check_, sink);
    const absl::Status received = stream.Receive(*reader);
    if (received.ok() || stream.ended()) {
      const absl::Status status = FromGrpcStatus(reader->Finish());
      return status.ok() ? received : status;
    }
    // Our own reason to stop counts; what is still under way is thrown away.
    context.TryCancel();
    grpc::ByteBuffer rest;
    while (reader->Read(&rest)) {
    }
    reader->Finish();
    return received;
  }

 private:
  static void Begin(const FetchRequest& request, absl::Time deadline,
                    grpc::ClientContext& context) {
    if (deadline != absl::InfiniteFuture()) context.set_deadline(absl::ToChronoTime(deadline));
    AddTenant(request.tenant, context);
  }

  // In one answer. Nothing: it is not small, or the store is older than this method; the sink has
  // heard nothing.
  std::optional<absl::Status> FetchSmall(const FetchRequest& request, absl::Time deadline,
                                         SegmentSink& sink) {
    grpc::ClientContext context;
    Begin(request, deadline, context);
    v1::FetchSmallRequest message;
    *message.mutable_fetch() = FetchRequestToProto(request);
    v1::FetchSmallResponse response;
    const absl::Status status = FromGrpcStatus(stub_->FetchSmall(&context, message, &response));
    if (absl::IsUnimplemented(status)) {
      store_is_older_ = true;
      return std::nullopt;
    }
    // A range that lies past the end is found so by Fetch, too.
    if (absl::IsOutOfRange(status)) return std::nullopt;
    KVTIER_RETURN_IF_ERROR(status);
    return FetchStream(request, check_, sink).Take(std::move(*response.mutable_header()));
  }

  const std::shared_ptr<grpc::Channel> channel_;
  const std::unique_ptr<v1::StoreService::Stub> stub_;
  const SegmentFiller::Check check_;
  // Does not know FetchSmall. Found once per transport: a store that is upgraded behind its channel
  // is asked with Fetch until the client connects anew, which is right, if slower.
  std::atomic<bool> store_is_older_{false};
};

// Puts segments, which come layer by layer, where a RaggedCache wants them.
class CollectingSink final : public SegmentSink {
 public:
  absl::Status OnManifest(std::shared_ptr<const Manifest> manifest, uint32_t band_count) override {
    manifest_ = std::move(manifest);
    band_count_ = band_count;
    segments_.resize(size_t{band_count} * manifest_->geometry.layer_count());
    return absl::OkStatus();
  }
  absl::Status OnSegment(BandIndex band, LayerIndex layer, SegmentRef bytes) override {
    segments_[size_t{band.value()} * manifest_->geometry.layer_count() + layer.value()] =
        std::move(bytes);
    return absl::OkStatus();
  }
  absl::StatusOr<std::shared_ptr<const RaggedCache>> Finish(
      const std::optional<HeadRange>& heads) && {
    const HeadRange range = heads.value_or(HeadRange{0, manifest_->geometry.kv_heads});
    return RaggedCache::Create(std::move(manifest_), band_count_, range, std::move(segments_));
  }

 private:
  std::shared_ptr<const Manifest> manifest_;
  uint32_t band_count_ = 0;
  std::vector<SegmentRef> segments_;
};

}  // namespace

std::unique_ptr<Transport> MakeGrpcTransport(std::shared_ptr<grpc::Channel> channel,
                                             const GrpcTransportOptions& options) {
  return std::make_unique<GrpcTransport>(std::move(channel), options);
}

absl::StatusOr<std::shared_ptr<const RaggedCache>> FetchRaggedCache(Transport& transport,
                                                                    const FetchRequest& request,
                                                                    absl::Time deadline) {
  if (request.layers.has_value()) {
    return absl::InvalidArgumentError("a cache needs every layer: leave the layer range out");
  }
  CollectingSink sink;
  KVTIER_RETURN_IF_ERROR(transport.Fetch(request, deadline, sink));
  return std::move(sink).Finish(request.heads);
}

}  // namespace kvtier
