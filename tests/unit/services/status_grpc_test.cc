#include "services/status_grpc.h"

#include <string>

#include <grpcpp/support/status.h>

#include "absl/status/status.h"
#include "base/status_matchers.h"
#include "base/too_large.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kvtier/v1/rpc_status.pb.h"

namespace kvtier {
namespace {

TEST(StatusGrpcTest, EveryCodeKeepsItsNumberAndMessageBothWays) {
  for (int code = 1; code <= 16; ++code) {
    const absl::Status status(static_cast<absl::StatusCode>(code), "what happened");
    const grpc::Status wire = ToGrpcStatus(status);
    EXPECT_EQ(static_cast<int>(wire.error_code()), code);
    EXPECT_EQ(wire.error_message(), "what happened");
    EXPECT_EQ(wire.error_details(), "") << "nothing to say beyond the code";
    EXPECT_EQ(FromGrpcStatus(wire), status);
  }
}

TEST(StatusGrpcTest, OkIsOk) {
  EXPECT_TRUE(ToGrpcStatus(absl::OkStatus()).ok());
  KVTIER_EXPECT_OK(FromGrpcStatus(grpc::Status::OK));
}

TEST(StatusGrpcTest, RetryDelaySurvivesBothMappings) {
  const absl::Duration delay = absl::Seconds(3) + absl::Milliseconds(250);
  const absl::Status status = WithRetryAfter(absl::ResourceExhaustedError("queue is full"), delay);
  const absl::Status received = FromGrpcStatus(ToGrpcStatus(status));
  EXPECT_THAT(received, StatusIs(absl::StatusCode::kResourceExhausted, "queue is full"));
  EXPECT_EQ(RetryAfter(received), delay);
}

TEST(StatusGrpcTest, RetryDelayIsEncodedAsOrdinaryClientsExpect) {
  const grpc::Status wire =
      ToGrpcStatus(WithRetryAfter(absl::UnavailableError("starting"), absl::Milliseconds(1500)));
  v1::RpcStatus details;
  ASSERT_TRUE(details.ParseFromString(wire.error_details()));
  EXPECT_EQ(details.code(), static_cast<int>(grpc::StatusCode::UNAVAILABLE));
  EXPECT_EQ(details.message(), "starting");
  ASSERT_EQ(details.details_size(), 1);
  EXPECT_EQ(details.details(0).type_url(), "type.googleapis.com/google.rpc.RetryInfo");
  // google.rpc.RetryInfo: field 1 is a google.protobuf.Duration {1: seconds, 2: nanos}.
  EXPECT_EQ(details.details(0).value(),
            std::string("\x0a\x08\x08\x01\x10\x80\xca\xb5\xee\x01", 10));
}

TEST(StatusGrpcTest, WhatIsTooLargeIsNotToldToComeBack) {
  const absl::Status refused = TooLargeError("9 bytes, the budget is 8");
  EXPECT_THAT(refused, StatusIs(absl::StatusCode::kResourceExhausted, "9 bytes, the budget is 8"));
  EXPECT_TRUE(IsTooLarge(refused));
  EXPECT_FALSE(IsTooLarge(absl::ResourceExhaustedError("full")));
  EXPECT_FALSE(IsTooLarge(absl::OkStatus()));
  const absl::Status kept = WithRetryAfter(refused, absl::Seconds(1));
  EXPECT_EQ(RetryAfter(kept), std::nullopt);
  EXPECT_TRUE(ToGrpcStatus(kept).error_details().empty()) << "the mark stays in this process";
}

TEST(StatusGrpcTest, DelaysThatCannotBeSaidAreClamped) {
  const absl::Status busy = absl::ResourceExhaustedError("busy");
  EXPECT_EQ(RetryAfter(WithRetryAfter(busy, -absl::Seconds(1))), absl::ZeroDuration());
  EXPECT_EQ(RetryAfter(WithRetryAfter(busy, absl::InfiniteDuration())),
            absl::Seconds(315'576'000'000));
  EXPECT_EQ(RetryAfter(busy), std::nullopt);
}

TEST(StatusGrpcTest, HostileDetailsDoNotHideTheCode) {
  const grpc::Status garbage(grpc::StatusCode::NOT_FOUND, "", "\xff\xff\xff");
  EXPECT_THAT(FromGrpcStatus(garbage), StatusIs(absl::StatusCode::kNotFound, ""));

  v1::RpcRetryInfo info;
  info.mutable_retry_delay()->set_seconds(-5);
  absl::Status negative = absl::UnavailableError("");
  negative.SetPayload("type.googleapis.com/google.rpc.RetryInfo",
                      absl::Cord(info.SerializeAsString()));
  EXPECT_EQ(RetryAfter(negative), std::nullopt);
}

TEST(StatusGrpcTest, LongMessagesAreCutAtAWholeCharacter) {
  // Each "\u00e9" has two bytes, so that the limit of 1,024 falls inside one.
  std::string text = "x";
  for (int i = 0; i < 1000; ++i) text += "\u00e9";
  const grpc::Status wire = ToGrpcStatus(absl::InternalError(text));
  EXPECT_EQ(wire.error_message(), text.substr(0, 1023) + "...");
}

TEST(StatusGrpcTest, ADeadConnectionIsUnavailable) {
  EXPECT_THAT(FromGrpcStatus(grpc::Status(grpc::StatusCode::UNKNOWN, "Stream removed")),
              StatusIs(absl::StatusCode::kUnavailable));
}

TEST(StatusGrpcTest, ACallThatTheServerCancelsIsUnavailable) {
  EXPECT_THAT(FromGrpcStatus(grpc::Status(grpc::StatusCode::CANCELLED, "CANCELLED")),
              StatusIs(absl::StatusCode::kUnavailable, "the server ended the call"));
  // A service's own words stay what they are.
  EXPECT_THAT(FromGrpcStatus(ToGrpcStatus(absl::CancelledError("the last caller left"))),
              StatusIs(absl::StatusCode::kCancelled, "the last caller left"));
}

}  // namespace
}  // namespace kvtier
