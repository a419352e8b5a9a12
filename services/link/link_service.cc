#include "services/link/link_service.h"

#include <algorithm>
#include <array>
#include <memory>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/bytes.h"
#include "base/status_macros.h"
#include "services/proto_convert.h"
#include "services/status_grpc.h"
#include "services/tenant.h"

namespace kvtier {
namespace {

using TransferStream = grpc::ServerReaderWriter<v1::TransferResponse, v1::TransferRequest>;

// What a refused worker is told to wait; it fetches from the store meanwhile.
constexpr absl::Duration kBusyDelay = absl::Milliseconds(200);

absl::StatusOr<LinkWish> ReadWish(const grpc::ServerContext& context, const v1::LinkJoin& join) {
  LinkWish wish;
  KVTIER_ASSIGN_OR_RETURN(const TenantId tenant, TenantOf(context));
  KVTIER_ASSIGN_OR_RETURN(wish.fetch, FetchRequestFromProto(tenant, join.fetch()));
  if (join.member_id().size() != LinkMemberId::kSize) {
    return absl::InvalidArgumentError(absl::StrCat("member_id has ", join.member_id().size(),
                                                   " bytes, not ", LinkMemberId::kSize));
  }
  std::array<std::byte, LinkMemberId::kSize> member_id;
  std::ranges::copy(AsBytes(join.member_id()), member_id.begin());
  wish.member_id = LinkMemberId(member_id);
  wish.group = join.group();
  wish.ranks = join.ranks();
  wish.rank = join.rank();
  return wish;
}

v1::TransferResponse MakeHeader(const LinkSender::Call& call) {
  v1::TransferResponse response;
  v1::LinkHeader& header = *response.mutable_header();
  header.set_manifest(EncodeManifest(*call.plan().manifest));
  header.set_band_count(call.plan().band_count);
  header.set_payload_bytes(call.plan().payload_bytes());
  header.set_mode(call.mode() == LinkMode::kBroadcast ? v1::LINK_MODE_BROADCAST
                                                      : v1::LINK_MODE_SEND);
  return response;
}

// The next message, which must be `expected`. A stream that ends here is a worker that is gone.
absl::Status ReadMessage(TransferStream& stream, v1::TransferRequest::MessageCase expected,
                         absl::string_view name, uint32_t rank) {
  v1::TransferRequest request;
  if (!stream.Read(&request)) {
    return absl::UnavailableError(absl::StrCat("rank ", rank, " went away before `", name, "`"));
  }
  if (request.message_case() == expected) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("rank ", rank, " sent another message than `", name, "`"));
}

}  // namespace

LinkService::LinkService(const Options& options, LinkSender& sender, Metrics& metrics, Clock& clock)
    : options_(options), sender_(sender), metrics_(metrics), clock_(clock) {}

grpc::Status LinkService::Transfer(grpc::ServerContext* context, TransferStream* stream) {
  const absl::Time begin = clock_.Now();
  absl::Status status;
  if (calls_.fetch_add(1) < options_.calls_max) {
    status = DoTransfer(*context, *stream);
  } else {
    status = absl::ResourceExhaustedError(
        absl::StrCat(options_.calls_max, " transfers are under way already"));
  }
  calls_.fetch_sub(1);
  if (absl::IsResourceExhausted(status)) status = WithRetryAfter(std::move(status), kBusyDelay);
  metrics_.CountRpc("Transfer", status, clock_.Now() - begin);
  return ToGrpcStatus(status);
}

absl::Status LinkService::DoTransfer(grpc::ServerContext& context, TransferStream& stream) {
  KVTIER_RETURN_IF_ERROR(CheckNotDraining(options_.drain));
  // The machine's clock, as gRPC measures deadlines; ours may be a simulated one.
  const absl::Duration left = absl::FromChrono(context.deadline()) - absl::Now();
  if (left > limits::kLinkCallMax) {
    return absl::InvalidArgumentError(absl::StrCat("a transfer needs a deadline, at most ",
                                                   absl::FormatDuration(limits::kLinkCallMax),
                                                   " away"));
  }
  v1::TransferRequest request;
  if (!stream.Read(&request) || !request.has_join()) {
    return absl::InvalidArgumentError("the first message is `join`");
  }
  KVTIER_ASSIGN_OR_RETURN(const LinkWish wish, ReadWish(context, request.join()));
  // Cancelling wakes the read of a rank whose transfer failed for another's sake.
  KVTIER_ASSIGN_OR_RETURN(
      const std::unique_ptr<LinkSender::Call> call,
      sender_.Enter(wish, clock_.Now() + left,
                    {.interrupt = [&context] { context.TryCancel(); },
                     .is_cancelled = [&context] { return context.IsCancelled(); }}));

  const auto steps = [&]() -> absl::Status {
    if (!stream.Write(MakeHeader(*call))) {
      return absl::UnavailableError(absl::StrCat("rank ", wish.rank, " went away"));
    }
    KVTIER_RETURN_IF_ERROR(ReadMessage(stream, v1::TransferRequest::kReady, "ready", wish.rank));
    KVTIER_ASSIGN_OR_RETURN(const LinkTurn turn, call->AwaitTurn());
    v1::TransferResponse go;
    go.mutable_go()->set_epoch(turn.epoch);
    go.mutable_go()->set_unique_id(turn.unique_id);
    if (!stream.Write(go)) {
      return absl::UnavailableError(absl::StrCat("rank ", wish.rank, " went away"));
    }
    KVTIER_RETURN_IF_ERROR(ReadMessage(stream, v1::TransferRequest::kDone, "done", wish.rank));
    return call->AwaitEnd();
  };
  const absl::Status status = steps();
  if (status.ok()) return status;
  call->Fail(status);
  return call->status();  // The first reason, which may be another rank's.
}

}  // namespace kvtier
