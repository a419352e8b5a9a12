#include "services/link/link_transport.h"

#include <algorithm>
#include <optional>
#include <thread>
#include <utility>

#include <grpcpp/client_context.h>

#include "absl/strings/str_cat.h"
#include "base/aligned_bytes.h"
#include "base/bytes.h"
#include "base/limits.h"
#include "base/log.h"
#include "base/mutex.h"
#include "base/status_macros.h"
#include "kvcache/segment.h"
#include "kvtier/v1/link.grpc.pb.h"
#include "services/fetch_plan.h"
#include "services/link/communicator_cache.h"
#include "services/link/link_layers.h"
#include "services/proto_convert.h"
#include "services/status_grpc.h"
#include "services/tenant.h"

namespace kvtier {
namespace {

using TransferStream = grpc::ClientReaderWriter<v1::TransferRequest, v1::TransferResponse>;

constexpr absl::string_view kStreamName = "link stream";

absl::Status BadStream(absl::string_view what) {
  return absl::DataLossError(absl::StrCat(kStreamName, ": ", what));
}

// What all fetches of a transport share.
struct LinkEnd {
  std::shared_ptr<grpc::Channel> channel;
  Backend& backend;
  LinkCounters& counters;
  Clock& clock;
  LinkTransportOptions options;
  CommunicatorCache cache;
};

// One fetch over the link, up to its first failure.
class LinkFetch {
 public:
  LinkFetch(LinkEnd& end, const FetchRequest& request, absl::Time deadline, SegmentSink& sink)
      : end_(end),
        request_(request),
        deadline_(std::min(deadline, end.clock.Now() + end.options.timeout)),
        sink_(sink) {}

  absl::Status Run() {
    grpc::ClientContext context;
    context.set_deadline(absl::ToChronoTime(absl::Now() + (deadline_ - end_.clock.Now())));
    AddTenant(request_.tenant, context);
    stream_ = v1::LinkService::NewStub(end_.channel)->Transfer(&context);
    absl::Status status = RunSteps();
    // A stream that has ended by itself has a status, which cancelling would replace.
    const bool has_ended = HasEnded();
    if (!status.ok() && !has_ended) context.TryCancel();
    if (watcher_.joinable()) watcher_.join();
    const grpc::Status end = stream_->Finish();
    if (status.ok() || said_by_sink_ || !has_ended) return status;
    // The stream ended before we did: its status is the reason, ours a consequence.
    if (end.error_code() == grpc::StatusCode::CANCELLED) {
      return absl::UnavailableError("the sender gave the transfer up: another rank of it failed");
    }
    const absl::Status said = FromGrpcStatus(end);
    return said.ok() ? absl::UnavailableError("the sender ended the transfer") : said;
  }

  // The error is the sink's.
  bool said_by_sink() const { return said_by_sink_; }
  // Null until the sink has accepted the manifest.
  const std::shared_ptr<const Manifest>& manifest() const { return plan_.manifest; }
  const FetchPlan& plan() const { return plan_; }
  // Segments that the sink has got, in the order of the plan.
  uint64_t delivered() const { return delivered_; }
  bool IsComplete() const {
    return manifest() != nullptr && delivered_ == uint64_t{plan_.layers.size()} * plan_.band_count;
  }

 private:
  absl::Status RunSteps() {
    v1::TransferRequest request;
    v1::LinkJoin& join = *request.mutable_join();
    join.set_group(end_.options.group);
    join.set_ranks(end_.options.ranks);
    join.set_rank(end_.options.rank);
    join.set_member_id(std::string(end_.cache.member_id().AsStringView()));
    *join.mutable_fetch() = FetchRequestToProto(request_);
    KVTIER_RETURN_IF_ERROR(Write(request));
    KVTIER_RETURN_IF_ERROR(ReadHeader());
    request.mutable_ready();
    KVTIER_RETURN_IF_ERROR(Write(request));
    KVTIER_ASSIGN_OR_RETURN(const LinkTurn turn, ReadTurn());

    // From here on the stream is watched: when it ends, the sender or another rank has failed.
    watcher_ = std::thread([this] { Watch(); });
    KVTIER_ASSIGN_OR_RETURN(std::unique_ptr<Communicator> communicator,
                            end_.cache.Take(turn, deadline_, cancel_));
    absl::Status status = BeginAbortable(*communicator);
    if (status.ok()) {
      status = ReceiveLayers(*communicator, plan_, mode_, end_.backend, deadline_,
                             [this](LayerIndex layer, ReceivedLayer segments) {
                               return Deliver(layer, std::move(segments));
                             });
    }
    if (!EndAbortable() && status.ok())
      status = absl::UnavailableError("the transfer was given up");
    if (status.ok()) {
      request.mutable_done();
      status = Write(request);
    }
    if (!status.ok()) {
      end_.cache.Drop(std::move(communicator));
      return status;
    }
    end_.cache.GiveBack(std::move(communicator), turn.epoch);
    stream_->WritesDone();
    return absl::OkStatus();
  }

  absl::Status Write(const v1::TransferRequest& request) {
    if (stream_->Write(request)) return absl::OkStatus();
    return MarkEnded();
  }
  absl::StatusOr<v1::TransferResponse> Read() {
    v1::TransferResponse response;
    if (stream_->Read(&response)) return response;
    return MarkEnded();
  }
  absl::Status MarkEnded() {
    MutexLock lock(&mutex_);
    has_ended_ = true;
    return absl::UnavailableError("the stream ended");
  }

  absl::Status ReadHeader() {
    KVTIER_ASSIGN_OR_RETURN(const v1::TransferResponse response, Read());
    if (!response.has_header()) return BadStream("no header");
    const v1::LinkHeader& header = response.header();
    KVTIER_ASSIGN_OR_RETURN(
        std::shared_ptr<const Manifest> manifest,
        ReadAnnouncedManifest(AsBytes(header.manifest()), request_, kStreamName));
    if (header.mode() != v1::LINK_MODE_SEND && header.mode() != v1::LINK_MODE_BROADCAST) {
      return BadStream("an unknown mode");
    }
    mode_ = header.mode() == v1::LINK_MODE_BROADCAST ? LinkMode::kBroadcast : LinkMode::kSend;
    absl::StatusOr<FetchPlan> plan = PlanBands(manifest, header.band_count(), request_);
    if (!plan.ok()) return BadStream(plan.status().message());
    if (plan->payload_bytes() != header.payload_bytes()) {
      return BadStream(absl::StrCat("it announces ", header.payload_bytes(), " bytes, not ",
                                    plan->payload_bytes()));
    }
    KVTIER_RETURN_IF_ERROR(FromSink(sink_.OnManifest(std::move(manifest), plan->band_count)));
    plan_ = *std::move(plan);
    return absl::OkStatus();
  }

  absl::StatusOr<LinkTurn> ReadTurn() {
    KVTIER_ASSIGN_OR_RETURN(v1::TransferResponse response, Read());
    if (!response.has_go()) return BadStream("no go");
    if (response.go().unique_id().size() > limits::kCommunicatorIdBytesMax) {
      return BadStream("a unique id that is too long");
    }
    return LinkTurn{.epoch = response.go().epoch(),
                    .unique_id = std::move(*response.mutable_go()->mutable_unique_id())};
  }

  absl::Status Deliver(LayerIndex layer, ReceivedLayer segments) {
    for (uint32_t band = 0; band < plan_.band_count; ++band) {
      KVTIER_ASSIGN_OR_RETURN(SegmentRef bytes, ToHost(std::move(segments[band])));
      if (end_.options.verify) {
        const SegmentEntry& entry = plan_.manifest->segment(BandIndex(band), layer);
        const absl::Status intact = VerifySegment(entry, plan_.heads, bytes.bytes());
        if (!intact.ok()) {
          return absl::DataLossError(absl::StrCat("band ", band, ", layer ", layer.value(),
                                                  ", over the link: ", intact.message()));
        }
      }
      KVTIER_RETURN_IF_ERROR(FromSink(sink_.OnSegment(BandIndex(band), layer, std::move(bytes))));
      ++delivered_;
    }
    return absl::OkStatus();
  }

  absl::StatusOr<SegmentRef> ToHost(Tensor segment) {
    if (segment.bytes() == 0) return SegmentRef::Own(AlignedBytes());
    if (end_.backend.host_addressable()) {
      auto owner = std::make_shared<const Tensor>(std::move(segment));
      const std::span<const std::byte> bytes(static_cast<const std::byte*>(owner->data()),
                                             owner->bytes());
      return SegmentRef(std::move(owner), bytes);
    }
    KVTIER_ASSIGN_OR_RETURN(
        AlignedBytes bytes,
        AlignedBytes::TryAllocate(segment.bytes(), AlignedBytes::Fill::kUninitialized));
    KVTIER_RETURN_IF_ERROR(end_.backend.Download(segment, bytes.span()));
    return SegmentRef::Own(std::move(bytes));
  }

  absl::Status FromSink(absl::Status status) {
    if (!status.ok()) said_by_sink_ = true;
    return status;
  }

  // The watcher's thread. The sender writes nothing after `go`.
  void Watch() {
    v1::TransferResponse response;
    const bool unexpected = stream_->Read(&response);
    MutexLock lock(&mutex_);
    if (!unexpected) has_ended_ = true;
    cancel_.Cancel();
    if (abortable_ != nullptr) abortable_->Abort();
    is_given_up_ = true;
  }

  // Between these two the watcher may abort the communicator, which is not destroyed there.
  absl::Status BeginAbortable(Communicator& communicator) {
    MutexLock lock(&mutex_);
    abortable_ = &communicator;
    return is_given_up_ ? absl::UnavailableError("the transfer was given up") : absl::OkStatus();
  }
  // False if it has been aborted.
  bool EndAbortable() {
    MutexLock lock(&mutex_);
    abortable_ = nullptr;
    return !is_given_up_;
  }

  bool HasEnded() {
    MutexLock lock(&mutex_);
    return has_ended_;
  }

  LinkEnd& end_;
  const FetchRequest& request_;
  const absl::Time deadline_;
  SegmentSink& sink_;
  std::unique_ptr<TransferStream> stream_;
  std::thread watcher_;
  CancelToken cancel_;
  FetchPlan plan_;
  LinkMode mode_ = LinkMode::kSend;
  uint64_t delivered_ = 0;
  bool said_by_sink_ = false;

  Mutex mutex_;
  bool has_ended_ ABSL_GUARDED_BY(mutex_) = false;
  bool is_given_up_ ABSL_GUARDED_BY(mutex_) = false;
  Communicator* abortable_ ABSL_GUARDED_BY(mutex_) = nullptr;
};

// Hands on what a sink has not got yet.
class RestSink final : public SegmentSink {
 public:
  RestSink(const LinkFetch& begun, uint64_t skip, SegmentSink& sink)
      : begun_(begun), skip_(skip), sink_(sink) {}

  absl::Status OnManifest(std::shared_ptr<const Manifest> manifest, uint32_t band_count) override {
    if (*manifest == *begun_.manifest() && band_count == begun_.plan().band_count) {
      return absl::OkStatus();
    }
    return absl::AbortedError(
        "the store has another upload, or fewer bands, than the link had begun to bring");
  }
  absl::Status OnSegment(BandIndex band, LayerIndex layer, SegmentRef bytes) override {
    if (skip_ > 0) {
      --skip_;
      return absl::OkStatus();
    }
    return sink_.OnSegment(band, layer, std::move(bytes));
  }

 private:
  const LinkFetch& begun_;
  uint64_t skip_;
  SegmentSink& sink_;
};

// Learns from a manifest which upload a transport has, and ends the fetch with it.
class UploadSink final : public SegmentSink {
 public:
  absl::Status OnManifest(std::shared_ptr<const Manifest> manifest, uint32_t) override {
    upload_ = manifest->upload_id;
    return absl::CancelledError("only the manifest was wanted");
  }
  absl::Status OnSegment(BandIndex, LayerIndex, SegmentRef) override {
    return absl::InternalError("a segment before the manifest");
  }
  const std::optional<UploadId>& upload() const { return upload_; }

 private:
  std::optional<UploadId> upload_;
};

class LinkTransport final : public Transport {
 public:
  LinkTransport(std::shared_ptr<grpc::Channel> channel, Backend& backend,
                CommunicatorFactory& factory, Transport* fallback, LinkCounters& counters,
                Clock& clock, const LinkTransportOptions& options)
      : end_{.channel = std::move(channel),
             .backend = backend,
             .counters = counters,
             .clock = clock,
             .options = options,
             .cache = CommunicatorCache(factory, options.ranks, options.rank, counters, clock)},
        fallback_(fallback) {
    end_.options.timeout = std::min(options.timeout, limits::kLinkCallMax);
    if (options.group.empty()) end_.options.group = MakeUploadId().ToHex();
  }

  absl::Status Fetch(const FetchRequest& request, absl::Time deadline, SegmentSink& sink) override {
    FetchRequest pinned = request;
    if (fallback_ != nullptr && !request.upload_id.has_value()) {
      absl::StatusOr<UploadId> current = FindUpload(request, deadline);
      if (!current.ok()) {
        if (absl::IsNotFound(current.status())) {
          ++end_.counters.fallback_misses;
        } else {
          ++end_.counters.failures;
        }
        return current.status();
      }
      pinned.upload_id = *current;
    }
    LinkFetch fetch(end_, pinned, deadline, sink);
    absl::Status status = fetch.Run();
    if (fetch.IsComplete() && !fetch.said_by_sink()) {
      ++end_.counters.received;  // Also where only the farewell failed.
      end_.counters.received_bytes += fetch.plan().payload_bytes();
      return absl::OkStatus();
    }
    const bool is_late = end_.clock.Now() >= deadline;
    if (is_late && !fetch.said_by_sink()) {
      // Whichever end noticed first, and whatever it said then.
      status = absl::DeadlineExceededError("the link had not brought everything in time");
    }
    if (fallback_ == nullptr || fetch.said_by_sink() || is_late) {
      ++end_.counters.failures;
      return status;
    }
    if (fetch.manifest() == nullptr && (absl::IsNotFound(status) || absl::IsAborted(status))) {
      ++end_.counters.fallback_misses;
    } else {
      ++end_.counters.fallback_failures;
      KVTIER_LOG_EVERY_N_SEC(WARNING, 10) << "link: fetching from the store instead: " << status;
    }
    return FetchRest(fetch, request, deadline, sink);
  }

 private:
  // The upload that the store has now. What the sender has may have been deleted there, replaced or
  // expired since. Asked for as little as there is, so that a store with fewer bands than wanted,
  // which the link may bring, still says it.
  absl::StatusOr<UploadId> FindUpload(const FetchRequest& request, absl::Time deadline) {
    FetchRequest least;
    least.tenant = request.tenant;
    least.key = request.key;
    KVTIER_ASSIGN_OR_RETURN(least.ratio, Ratio::FromMillionths(1));
    least.min_ratio = least.ratio;
    least.layers = LayerRange{0, 1};
    least.heads = HeadRange{0, 1};
    UploadSink sink;
    absl::Status status = fallback_->Fetch(least, deadline, sink);
    if (sink.upload().has_value()) return *sink.upload();
    if (status.ok()) status = absl::InternalError("the store's transport brought no manifest");
    return status;
  }

  absl::Status FetchRest(const LinkFetch& begun, const FetchRequest& request, absl::Time deadline,
                         SegmentSink& sink) {
    if (begun.manifest() == nullptr) return fallback_->Fetch(request, deadline, sink);
    const FetchPlan& plan = begun.plan();
    FetchRequest rest = request;
    rest.upload_id = plan.manifest->upload_id;
    rest.ratio = rest.min_ratio = plan.manifest->bands[plan.band_count - 1].edge;
    rest.bytes_max = std::nullopt;
    const uint32_t layers_done = static_cast<uint32_t>(begun.delivered() / plan.band_count);
    rest.layers = LayerRange{plan.layers.begin + layers_done, plan.layers.end};
    RestSink rest_sink(begun, begun.delivered() % plan.band_count, sink);
    return fallback_->Fetch(rest, deadline, rest_sink);
  }

  LinkEnd end_;
  Transport* const fallback_;
};

}  // namespace

std::unique_ptr<Transport> MakeLinkTransport(std::shared_ptr<grpc::Channel> channel,
                                             Backend& backend, CommunicatorFactory& factory,
                                             Transport* fallback, LinkCounters& counters,
                                             Clock& clock, const LinkTransportOptions& options) {
  return std::make_unique<LinkTransport>(std::move(channel), backend, factory, fallback, counters,
                                         clock, options);
}

}  // namespace kvtier
