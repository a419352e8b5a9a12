#include "services/shm_transport.h"

#include <algorithm>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "base/bytes.h"
#include "base/limits.h"
#include "base/log.h"
#include "base/status_macros.h"
#include "kvcache/segment.h"
#include "kvtier/v1/shm.pb.h"
#include "services/fetch_plan.h"
#include "services/mapped_files.h"
#include "services/proto_convert.h"
#include "services/shm_socket.h"
#include "services/status_grpc.h"

namespace kvtier {
namespace {

constexpr uint32_t kVersion = 1;

constexpr absl::string_view kName = "shared memory";

// A store that does not follow the protocol. To the caller it is what damaged bytes are.
absl::Status BadStore(absl::string_view what) {
  return absl::DataLossError(absl::StrCat(kName, ": ", what));
}

// The bands of one lease, mapped, and the connection that is the lease. Shared by the segments.
class MappedLease {
 public:
  MappedLease(OwnedFd connection, uint32_t bands)
      : connection_(std::move(connection)), bands_(bands) {}

  absl::Status Map(MappedFiles& files, uint32_t band, int fd, uint64_t bytes) {
    absl::StatusOr<std::shared_ptr<const MappedFile>> file = files.Map(fd, bytes);
    if (!file.ok()) {
      return absl::Status(file.status().code(), absl::StrCat("shared memory, band ", band, ": ",
                                                             file.status().message()));
    }
    bands_[band] = *std::move(file);
    return absl::OkStatus();
  }

  // Bytes [begin, end) of a band, with the pages that they are in at hand.
  ByteSpan Read(uint32_t band, uint64_t begin, uint64_t end) const {
    return begin == end ? ByteSpan() : bands_[band]->Prepared(begin, end);
  }

 private:
  const OwnedFd connection_;  // Closes last: nothing is let go of that could still be read.
  std::vector<std::shared_ptr<const MappedFile>> bands_;  // Null: no bytes.
};

struct Granted {
  FetchPlan plan;
  std::shared_ptr<MappedLease> lease;
};

absl::Status RefusalOf(const v1::ShmResponse& response) {
  const absl::Status refused = StatusFromRpcStatusBytes(response.refused());
  return refused.ok() ? BadStore("a refusal without a reason") : refused;
}

class ShmTransport final : public Transport {
 public:
  explicit ShmTransport(const ShmTransportOptions& options) : options_(options) {}

  absl::Status Fetch(const FetchRequest& request, absl::Time deadline, SegmentSink& sink) override {
    KVTIER_ASSIGN_OR_RETURN(const Granted granted, Acquire(request, deadline));
    const FetchPlan& plan = granted.plan;
    KVTIER_RETURN_IF_ERROR(sink.OnManifest(plan.manifest, plan.band_count));
    std::vector<uint64_t> offsets(plan.band_count);  // Of the layer, inside each band.
    for (uint32_t layer = 0; layer < plan.layers.end; ++layer) {
      for (uint32_t band = 0; band < plan.band_count; ++band) {
        const SegmentEntry& entry = plan.manifest->segment(BandIndex(band), LayerIndex(layer));
        const uint64_t offset = offsets[band];
        offsets[band] += entry.encoded_bytes();
        if (layer < plan.layers.begin) continue;
        const SegmentEntry::ByteRange range = entry.HeadBytes(plan.heads);
        const ByteSpan bytes = granted.lease->Read(band, offset + range.begin, offset + range.end);
        if (absl::Now() > deadline) {
          return absl::DeadlineExceededError("reading shared memory takes too long");
        }
        if (options_.verify) {
          const absl::Status intact = VerifySegment(entry, plan.heads, bytes);
          if (!intact.ok()) {
            return absl::DataLossError(absl::StrCat("band ", band, ", layer ", layer,
                                                    ", in shared memory: ", intact.message()));
          }
        }
        KVTIER_RETURN_IF_ERROR(
            sink.OnSegment(BandIndex(band), LayerIndex(layer), SegmentRef(granted.lease, bytes)));
      }
    }
    return absl::OkStatus();
  }

 private:
  absl::StatusOr<Granted> Acquire(const FetchRequest& request, absl::Time deadline) {
    const absl::Time latest = std::min(deadline, absl::Now() + options_.answer_timeout);
    absl::StatusOr<Granted> granted = AcquireUntil(request, latest);
    if (absl::IsDeadlineExceeded(granted.status()) && latest < deadline) {
      return absl::UnavailableError(absl::StrCat("no answer on ", options_.path, " within ",
                                                 absl::FormatDuration(options_.answer_timeout),
                                                 ": ", granted.status().message()));
    }
    return granted;
  }

  absl::StatusOr<Granted> AcquireUntil(const FetchRequest& request, absl::Time deadline) {
    KVTIER_ASSIGN_OR_RETURN(OwnedFd socket, ConnectUnix(options_.path, deadline));
    v1::ShmAcquire message;
    message.set_version(kVersion);
    message.set_tenant(std::string(request.tenant.name()));
    const v1::FetchRequest fetch = FetchRequestToProto(request);
    *message.mutable_acquire()->mutable_name() = fetch.name();
    *message.mutable_acquire()->mutable_extent() = fetch.extent();
    KVTIER_RETURN_IF_ERROR(SendShmMessage(socket.get(), message.SerializeAsString(), {}, deadline));
    KVTIER_ASSIGN_OR_RETURN(
        const ShmMessage answer,
        ReceiveShmMessage(socket.get(), limits::kManifestBytesMax + limits::kControlMessageBytesMax,
                          limits::kBandsMax, deadline));
    v1::ShmResponse response;
    if (!response.ParseFromString(answer.bytes)) return BadStore("not a ShmResponse message");
    if (!response.has_granted()) return RefusalOf(response);
    Granted granted;
    KVTIER_ASSIGN_OR_RETURN(granted.plan, PlanOf(response.granted(), request));
    KVTIER_ASSIGN_OR_RETURN(granted.lease,
                            Map(std::move(socket), granted.plan, answer.descriptors));
    return granted;
  }

  static absl::StatusOr<FetchPlan> PlanOf(const v1::ShmGranted& granted,
                                          const FetchRequest& request) {
    KVTIER_ASSIGN_OR_RETURN(std::shared_ptr<const Manifest> manifest,
                            ReadAnnouncedManifest(AsBytes(granted.manifest()), request, kName));
    absl::StatusOr<FetchPlan> plan =
        PlanBands(std::move(manifest), granted.lease().band_count(), request);
    // Ranges are the caller's affair, the number of bands the store's.
    if (!plan.ok() && granted.lease().band_count() == 0) return BadStore("no bands");
    return plan;
  }

  absl::StatusOr<std::shared_ptr<MappedLease>> Map(OwnedFd socket, const FetchPlan& plan,
                                                   const std::vector<OwnedFd>& files) {
    auto lease = std::make_shared<MappedLease>(std::move(socket), plan.band_count);
    size_t next = 0;
    for (uint32_t band = 0; band < plan.band_count; ++band) {
      const uint64_t bytes = plan.manifest->bands[band].encoded_bytes();
      if (bytes == 0) continue;
      if (next == files.size()) return BadStore("fewer files than bands");
      KVTIER_RETURN_IF_ERROR(lease->Map(files_, band, files[next++].get(), bytes));
    }
    if (next != files.size()) return BadStore("more files than bands");
    return lease;
  }

  const ShmTransportOptions options_;
  MappedFiles files_;
};

class FallbackTransport final : public Transport {
 public:
  FallbackTransport(std::unique_ptr<Transport> first, std::unique_ptr<Transport> second,
                    Metrics& metrics)
      : first_(std::move(first)), second_(std::move(second)), metrics_(metrics) {}

  absl::Status Fetch(const FetchRequest& request, absl::Time deadline, SegmentSink& sink) override {
    // Tells whether anything was delivered: the caller's sink takes one object.
    class Watching final : public SegmentSink {
     public:
      explicit Watching(SegmentSink& to) : to_(to) {}
      absl::Status OnManifest(std::shared_ptr<const Manifest> manifest,
                              uint32_t band_count) override {
        has_begun_ = true;
        return to_.OnManifest(std::move(manifest), band_count);
      }
      absl::Status OnSegment(BandIndex band, LayerIndex layer, SegmentRef bytes) override {
        return to_.OnSegment(band, layer, std::move(bytes));
      }
      bool has_begun() const { return has_begun_; }

     private:
      SegmentSink& to_;
      bool has_begun_ = false;
    };
    Watching watching(sink);
    const absl::Status status = first_->Fetch(request, deadline, watching);
    if (watching.has_begun() ||
        !(absl::IsUnavailable(status) || absl::IsResourceExhausted(status) ||
          absl::IsFailedPrecondition(status))) {
      return status;
    }
    metrics_.worker_shm_fallbacks.Increment();
    KVTIER_LOG_EVERY_N_SEC(WARNING, 10)
        << "fetching through gRPC, shared memory refuses: " << status.message();
    return second_->Fetch(request, deadline, sink);
  }

 private:
  const std::unique_ptr<Transport> first_;
  const std::unique_ptr<Transport> second_;
  Metrics& metrics_;
};

}  // namespace

std::unique_ptr<Transport> MakeShmTransport(const ShmTransportOptions& options) {
  return std::make_unique<ShmTransport>(options);
}

std::unique_ptr<Transport> MakeFallbackTransport(std::unique_ptr<Transport> first,
                                                 std::unique_ptr<Transport> second,
                                                 Metrics& metrics) {
  return std::make_unique<FallbackTransport>(std::move(first), std::move(second), metrics);
}

}  // namespace kvtier
