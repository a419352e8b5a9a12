#include "base/status_macros.h"

#include <map>
#include <memory>
#include <string>
#include <utility>

#include "base/status_matchers.h"
#include "gtest/gtest.h"

namespace kvtier {
namespace {

absl::Status ReturnStatus(absl::Status status, bool* went_on) {
  KVTIER_RETURN_IF_ERROR(status);
  *went_on = true;
  return absl::OkStatus();
}

TEST(StatusMacrosTest, ReturnIfErrorReturnsTheStatus) {
  bool went_on = false;
  EXPECT_THAT(ReturnStatus(absl::NotFoundError("miss"), &went_on),
              StatusIs(absl::StatusCode::kNotFound, "miss"));
  EXPECT_FALSE(went_on);
}

TEST(StatusMacrosTest, ReturnIfErrorGoesOnAfterOk) {
  bool went_on = false;
  KVTIER_EXPECT_OK(ReturnStatus(absl::OkStatus(), &went_on));
  EXPECT_TRUE(went_on);
}

TEST(StatusMacrosTest, ReturnIfErrorTakesStatusOrOfAnotherType) {
  const auto call = [](const absl::StatusOr<std::string>& in) -> absl::StatusOr<int> {
    KVTIER_RETURN_IF_ERROR(in);
    return 7;
  };
  EXPECT_THAT(call("text"), IsOkAndHolds(7));
  EXPECT_THAT(call(absl::AbortedError("epoch")), StatusIs(absl::StatusCode::kAborted, "epoch"));
}

TEST(StatusMacrosTest, ReturnIfErrorIsOneStatement) {
  const auto call = [](bool check) -> absl::Status {
    if (check)
      KVTIER_RETURN_IF_ERROR(absl::InternalError("checked"));
    else
      return absl::OkStatus();
    return absl::OkStatus();
  };
  KVTIER_EXPECT_OK(call(false));
  EXPECT_THAT(call(true), StatusIs(absl::StatusCode::kInternal));
}

TEST(StatusMacrosTest, EvaluatesTheExpressionOnce) {
  int calls = 0;
  const auto count = [&]() -> absl::StatusOr<int> { return ++calls; };
  const auto call = [&]() -> absl::Status {
    KVTIER_RETURN_IF_ERROR(count());
    KVTIER_ASSIGN_OR_RETURN(const int value, count());
    EXPECT_EQ(value, 2);
    return absl::OkStatus();
  };
  KVTIER_EXPECT_OK(call());
  EXPECT_EQ(calls, 2);
}

template <typename A, typename B>
absl::StatusOr<std::pair<A, B>> MakePair(A a, B b) {
  return std::pair<A, B>(a, b);
}

TEST(StatusMacrosTest, AssignOrReturnDeclaresAssignsAndUnpacks) {
  const auto call = []() -> absl::Status {
    KVTIER_ASSIGN_OR_RETURN(auto declared, MakePair<int, int>(1, 2));
    EXPECT_EQ(declared, std::pair(1, 2));

    std::pair<int, int> assigned;
    KVTIER_ASSIGN_OR_RETURN(assigned, MakePair(3, 4));
    EXPECT_EQ(assigned, std::pair(3, 4));

    std::pair<int, int>* const through = &assigned;
    KVTIER_ASSIGN_OR_RETURN(*through, MakePair(5, 6));
    EXPECT_EQ(assigned, std::pair(5, 6));

    KVTIER_ASSIGN_OR_RETURN((const auto [a, b]), MakePair(7, 8));
    EXPECT_EQ(a, 7);
    EXPECT_EQ(b, 8);

    KVTIER_ASSIGN_OR_RETURN((const std::pair<int, int> typed), MakePair(9, 10));
    EXPECT_EQ(typed, std::pair(9, 10));
    return absl::OkStatus();
  };
  KVTIER_EXPECT_OK(call());
}

TEST(StatusMacrosTest, AssignOrReturnMovesTheValue) {
  const auto call = []() -> absl::StatusOr<std::unique_ptr<int>> {
    const auto make = []() -> absl::StatusOr<std::unique_ptr<int>> {
      return std::make_unique<int>(7);
    };
    KVTIER_ASSIGN_OR_RETURN(std::unique_ptr<int> value, make());
    return value;
  };
  EXPECT_THAT(call(), IsOkAndHolds(::testing::Pointee(7)));
}

TEST(StatusMacrosTest, AssignOrReturnReturnsTheStatusAndAssignsNothing) {
  int value = 1;
  const auto call = [&](const absl::StatusOr<int>& in) -> absl::Status {
    KVTIER_ASSIGN_OR_RETURN(value, in);
    return absl::OkStatus();
  };
  EXPECT_THAT(call(absl::DataLossError("crc")), StatusIs(absl::StatusCode::kDataLoss, "crc"));
  EXPECT_EQ(value, 1);
}

}  // namespace
}  // namespace kvtier
