#include "services/status_grpc.h"

#include <cstdint>
#include <string>
#include <utility>

#include "absl/strings/cord.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "base/too_large.h"
#include "kvtier/v1/rpc_status.pb.h"

namespace kvtier {
namespace {

constexpr absl::string_view kRetryInfoUrl = "type.googleapis.com/google.rpc.RetryInfo";
// A status travels in HTTP/2 headers, of which a peer accepts 8 KiB by default.
constexpr size_t kMessageBytesMax = 1024;
// What a peer's trailer may make us remember.
constexpr int kDetailsMax = 16;
// The largest delay that google.protobuf.Duration can say: 10,000 years.
constexpr int64_t kDelaySecondsMax = 315'576'000'000;

std::string ShortMessage(absl::string_view message) {
  if (message.size() <= kMessageBytesMax) return std::string(message);
  size_t end = kMessageBytesMax;
  while (end > 0 && (static_cast<uint8_t>(message[end]) & 0xC0u) == 0x80u) --end;  // Whole UTF-8.
  return absl::StrCat(message.substr(0, end), "...");
}

absl::StatusCode CodeFromGrpc(const grpc::Status& status) {
  const int code = status.error_code();
  // gRPC core's own words, not a service's: "Stream removed" when a connection dies under a call,
  // "CANCELLED" when a server ends calls, or has just begun to stop when one comes. To the caller
  // the peer is away.
  if ((code == grpc::StatusCode::UNKNOWN && status.error_message() == "Stream removed") ||
      (code == grpc::StatusCode::CANCELLED && status.error_message() == "CANCELLED")) {
    return absl::StatusCode::kUnavailable;
  }
  if (code < 0 || code > 16) return absl::StatusCode::kUnknown;
  return static_cast<absl::StatusCode>(code);
}

v1::RpcStatus ToRpcStatus(const absl::Status& status) {
  v1::RpcStatus out;
  out.set_code(static_cast<int>(status.code()));
  out.set_message(ShortMessage(status.message()));
  status.ForEachPayload([&](absl::string_view url, const absl::Cord& payload) {
    if (!absl::StartsWith(url, "type.googleapis.com/") || out.details_size() >= kDetailsMax) {
      return;
    }
    google::protobuf::Any* any = out.add_details();
    any->set_type_url(std::string(url));
    any->set_value(std::string(payload));
  });
  return out;
}

void AddDetails(const v1::RpcStatus& from, absl::Status& to) {
  for (int i = 0; i < from.details_size() && i < kDetailsMax; ++i) {
    const google::protobuf::Any& any = from.details(i);
    to.SetPayload(any.type_url(), absl::Cord(any.value()));
  }
}

}  // namespace

grpc::Status ToGrpcStatus(const absl::Status& status) {
  if (status.ok()) return grpc::Status::OK;
  const auto code = static_cast<grpc::StatusCode>(status.code());
  const v1::RpcStatus details = ToRpcStatus(status);
  if (details.details_size() == 0) return grpc::Status(code, details.message());
  return grpc::Status(code, details.message(), details.SerializeAsString());
}

std::string RpcStatusBytes(const absl::Status& status) {
  return ToRpcStatus(status).SerializeAsString();
}

absl::Status StatusFromRpcStatusBytes(const std::string& bytes) {
  v1::RpcStatus message;
  if (!message.ParseFromString(bytes) || message.code() < 1 || message.code() > 16) {
    return absl::InternalError("an unreadable google.rpc.Status");
  }
  absl::Status status(static_cast<absl::StatusCode>(message.code()), message.message());
  AddDetails(message, status);
  return status;
}

absl::Status FromGrpcStatus(const grpc::Status& status) {
  if (status.ok()) return absl::OkStatus();
  const absl::StatusCode code = CodeFromGrpc(status);
  const bool was_cancelled = status.error_code() == grpc::StatusCode::CANCELLED;
  absl::Status result(code, was_cancelled && code == absl::StatusCode::kUnavailable
                                ? "the server ended the call"
                                : status.error_message());
  v1::RpcStatus details;
  // Details are an addition: a peer that sends unreadable ones still gets its code through.
  if (!status.error_details().empty() && details.ParseFromString(status.error_details())) {
    AddDetails(details, result);
  }
  return result;
}

absl::Status WithRetryAfter(absl::Status status, absl::Duration delay) {
  if (status.ok() || IsTooLarge(status)) return status;
  if (delay < absl::ZeroDuration()) delay = absl::ZeroDuration();
  if (delay > absl::Seconds(kDelaySecondsMax)) delay = absl::Seconds(kDelaySecondsMax);
  v1::RpcRetryInfo info;
  absl::Duration fraction;
  info.mutable_retry_delay()->set_seconds(absl::IDivDuration(delay, absl::Seconds(1), &fraction));
  info.mutable_retry_delay()->set_nanos(static_cast<int32_t>(absl::ToInt64Nanoseconds(fraction)));
  status.SetPayload(kRetryInfoUrl, absl::Cord(info.SerializeAsString()));
  return status;
}

std::optional<absl::Duration> RetryAfter(const absl::Status& status) {
  const auto payload = status.GetPayload(kRetryInfoUrl);
  if (!payload.has_value()) return std::nullopt;
  v1::RpcRetryInfo info;
  if (!info.ParseFromString(std::string(*payload))) return std::nullopt;
  const int64_t seconds = info.retry_delay().seconds();
  const int32_t nanos = info.retry_delay().nanos();
  if (seconds < 0 || seconds > kDelaySecondsMax || nanos < 0 || nanos > 999'999'999) {
    return std::nullopt;
  }
  return absl::Seconds(seconds) + absl::Nanoseconds(nanos);
}

}  // namespace kvtier
