#include "base/status_matchers.h"

#include <memory>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest-spi.h"
#include "gtest/gtest.h"

namespace kvtier {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;
using ::testing::Pointee;
using ::testing::SizeIs;

TEST(StatusMatchersTest, IsOkTakesStatusAndStatusOr) {
  EXPECT_THAT(absl::OkStatus(), IsOk());
  EXPECT_THAT(absl::StatusOr<int>(1), IsOk());
  EXPECT_THAT(absl::NotFoundError(""), Not(IsOk()));
  EXPECT_THAT(absl::StatusOr<int>(absl::NotFoundError("")), Not(IsOk()));
}

TEST(StatusMatchersTest, IsOkAndHoldsMatchesTheValue) {
  EXPECT_THAT(absl::StatusOr<int>(1), IsOkAndHolds(1));
  EXPECT_THAT(absl::StatusOr<int>(1), Not(IsOkAndHolds(2)));
  EXPECT_THAT(absl::StatusOr<std::string>("abc"), IsOkAndHolds("abc"));
  EXPECT_THAT(absl::StatusOr<std::string>("abc"), IsOkAndHolds(SizeIs(3)));
  EXPECT_THAT(absl::StatusOr<std::unique_ptr<int>>(std::make_unique<int>(4)),
              IsOkAndHolds(Pointee(4)));
  EXPECT_THAT(absl::StatusOr<int>(absl::UnknownError("")), Not(IsOkAndHolds(1)));
}

TEST(StatusMatchersTest, StatusIsMatchesCodeAndMessage) {
  const absl::Status status = absl::InvalidArgumentError("truncated at 7");
  EXPECT_THAT(status, StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(status, StatusIs(absl::StatusCode::kInvalidArgument, "truncated at 7"));
  EXPECT_THAT(status, StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("truncated")));
  EXPECT_THAT(status, Not(StatusIs(absl::StatusCode::kDataLoss)));
  EXPECT_THAT(status, Not(StatusIs(absl::StatusCode::kInvalidArgument, "truncated")));
  EXPECT_THAT(absl::StatusOr<int>(status), StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(absl::StatusOr<int>(1), StatusIs(absl::StatusCode::kOk));
}

TEST(StatusMatchersTest, FailuresPrintTheStatusOnce) {
  EXPECT_NONFATAL_FAILURE(EXPECT_THAT(absl::NotFoundError("miss"), IsOk()), "NOT_FOUND: miss");
  EXPECT_NONFATAL_FAILURE(
      EXPECT_THAT(absl::StatusOr<int>(absl::AbortedError("epoch")), IsOkAndHolds(1)),
      "ABORTED: epoch");
  EXPECT_NONFATAL_FAILURE(EXPECT_THAT(absl::StatusOr<int>(3), StatusIs(absl::StatusCode::kAborted)),
                          "OK: 3");
}

TEST(StatusMatchersTest, AssertOkAndAssignEndsTheTestWithTheStatus) {
  EXPECT_FATAL_FAILURE(
      {
        KVTIER_ASSERT_OK_AND_ASSIGN(const int value,
                                    absl::StatusOr<int>(absl::UnavailableError("away")));
        FAIL() << "went on with " << value;
      },
      "UNAVAILABLE: away");
}

TEST(StatusMatchersTest, AssertOkAndAssignUnpacks) {
  KVTIER_ASSERT_OK_AND_ASSIGN((const auto [a, b]), absl::StatusOr<std::pair<int, int>>({1, 2}));
  EXPECT_EQ(a, 1);
  EXPECT_EQ(b, 2);
}

}  // namespace
}  // namespace kvtier
