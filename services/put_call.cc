#include "services/put_call.h"

#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "base/bytes.h"
#include "base/limits.h"
#include "base/status_macros.h"
#include "kvtier/v1/store.pb.h"
#include "services/frames.h"
#include "services/proto_convert.h"
#include "services/status_grpc.h"

namespace kvtier {
namespace {

// One Put. At any time either a read or a pool job is under way, never both. Deletes itself.
class PutCall final : public grpc::ServerReadReactor<grpc::ByteBuffer> {
 public:
  PutCall(CallEnvironment& environment, const grpc::ServerContextBase& context,
          grpc::ByteBuffer* response)
      : environment_(environment),
        context_(context),
        response_(response),
        start_(environment.clock().Now()) {
    absl::StatusOr<CallSlots::Slot> slot = environment_.slots().Admit(context);
    if (!slot.ok()) {
      End(slot.status());
      return;
    }
    slot_ = *std::move(slot);
    StartRead(&message_);
  }

  void OnReadDone(bool ok) override {
    if (!ok) {  // The client has sent everything, or is gone.
      HandleLastMessage();
      return;
    }
    if (upload_ == nullptr) {
      environment_.Schedule([this] { Begin(); });  // May move other objects to the disk.
      return;
    }
    Continue(Append());
  }

  void OnDone() override { delete this; }

 private:
  void Begin() {
    Continue([&]() -> absl::Status {
      v1::PutRequest request;
      KVTIER_RETURN_IF_ERROR(ParseFromByteBuffer(message_, request));
      if (!request.has_header()) {
        return absl::InvalidArgumentError("the first message must carry the header");
      }
      const std::string& bytes = request.header().manifest();
      if (bytes.size() > limits::kManifestBytesMax) {
        return absl::InvalidArgumentError(absl::StrCat(
            "the manifest has ", bytes.size(), " bytes, more than ", limits::kManifestBytesMax));
      }
      absl::StatusOr<Manifest> manifest = DecodeManifest(AsBytes(bytes));
      if (absl::IsDataLoss(manifest.status())) {
        // What came over the wire was not stored: it is the sender who can mend it.
        return absl::InvalidArgumentError(absl::StrCat("manifest: ", manifest.status().message()));
      }
      KVTIER_RETURN_IF_ERROR(manifest.status());
      KVTIER_ASSIGN_OR_RETURN(const Durability durability,
                              DurabilityFromProto(request.header().durability(),
                                                  environment_.store().disk_usage().has_value()));
      std::optional<UploadId> replaces;
      if (const std::string& id = request.header().replaces_upload_id(); !id.empty()) {
        KVTIER_ASSIGN_OR_RETURN(replaces, UploadIdFromProto(id));
      }
      KVTIER_ASSIGN_OR_RETURN(const absl::Duration ttl, TtlFromProto(request.header().ttl_ms()));
      KVTIER_ASSIGN_OR_RETURN(
          upload_, environment_.store().StartUpload(
                       slot_.tenant(), std::make_shared<const Manifest>(*std::move(manifest)),
                       durability, replaces, ttl));
      return absl::OkStatus();
    }());
  }

  absl::Status Append() {
    KVTIER_ASSIGN_OR_RETURN(const std::optional<PutChunkView> chunk, ReadPutChunk(message_));
    if (!chunk.has_value()) {
      return absl::InvalidArgumentError("every message but the first must carry a chunk");
    }
    if (chunk->payload.bytes > limits::kFrameBytesMax) {
      return absl::InvalidArgumentError(absl::StrCat("chunk of ", chunk->payload.bytes,
                                                     " bytes, more than ", limits::kFrameBytesMax));
    }
    uint64_t offset = chunk->object_offset;
    for (const std::span<const std::byte> piece : chunk->payload.pieces) {
      KVTIER_RETURN_IF_ERROR(upload_->Append(offset, piece));
      offset += piece.size();
    }
    environment_.metrics().store_put_bytes.Increment(static_cast<double>(chunk->payload.bytes));
    return absl::OkStatus();
  }

  void Continue(const absl::Status& status) {
    if (!status.ok()) {
      End(status);
      return;
    }
    StartRead(&message_);
  }

  void HandleLastMessage() {
    if (upload_ == nullptr) {
      End(absl::InvalidArgumentError("the first message must carry the header"));
    } else if (context_.IsCancelled() && !upload_->complete()) {
      End(absl::CancelledError("the writer is gone"));  // It may resume.
    } else {
      // Also when bytes are missing: the upload may have been sealed by an earlier stream.
      environment_.Schedule([this] { Seal(); });
    }
  }

  void Seal() {
    const absl::StatusOr<ObjectStat> stat =
        environment_.store().FinishUpload(slot_.tenant(), upload_);
    if (stat.ok()) {
      v1::PutResponse response;
      *response.mutable_object() = SummaryToProto(*stat);
      *response_ = SerializeToByteBuffer(response);
    }
    End(stat.status());
  }

  void End(absl::Status status) {
    status = WithRetryIfFull(std::move(status));
    upload_.reset();
    environment_.Count("Put", status, start_);
    Finish(ToGrpcStatus(status));
  }

  CallEnvironment& environment_;
  const grpc::ServerContextBase& context_;
  grpc::ByteBuffer* const response_;
  const absl::Time start_;
  CallSlots::Slot slot_;
  std::shared_ptr<Upload> upload_;
  grpc::ByteBuffer message_;  // The one being read.
};

}  // namespace

grpc::ServerReadReactor<grpc::ByteBuffer>* StartPutCall(CallEnvironment& environment,
                                                        const grpc::ServerContextBase& context,
                                                        grpc::ByteBuffer* response) {
  return new PutCall(environment, context, response);
}

}  // namespace kvtier
