// Upstream: absl/status/status_matchers.h, once the packaged abseil carries it. For tests only.
//
// There is no matcher for "some error" on purpose: a test names the code it expects.
//
//   EXPECT_THAT(tier.Get(id), StatusIs(absl::StatusCode::kNotFound));
//   EXPECT_THAT(Parse(bytes), StatusIs(absl::StatusCode::kInvalidArgument,
//   HasSubstr("truncated"))); EXPECT_THAT(reader.ReadU8(), IsOkAndHolds(7));
//   KVTIER_ASSERT_OK_AND_ASSIGN(const Manifest manifest, Decode(bytes));
#ifndef KVTIER_BASE_STATUS_MATCHERS_H_
#define KVTIER_BASE_STATUS_MATCHERS_H_

#include <ostream>
#include <string>
#include <type_traits>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/status_macros.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

#define KVTIER_EXPECT_OK(...) EXPECT_THAT((__VA_ARGS__), ::kvtier::IsOk())
#define KVTIER_ASSERT_OK(...) ASSERT_THAT((__VA_ARGS__), ::kvtier::IsOk())

// Evaluates a StatusOr once; assigns its value to `lhs`, or ends the test with the status. `lhs`
// that contains a comma is written in parentheses.
#define KVTIER_ASSERT_OK_AND_ASSIGN(lhs, ...) \
  KVTIER_INTERNAL_ASSERT_OK_AND_ASSIGN(       \
      KVTIER_INTERNAL_CONCAT(kvtier_status_matchers_or_, __LINE__), lhs, __VA_ARGS__)

#define KVTIER_INTERNAL_ASSERT_OK_AND_ASSIGN(statusor, lhs, ...) \
  auto statusor = (__VA_ARGS__);                                 \
  ASSERT_THAT(statusor, ::kvtier::IsOk());                       \
  KVTIER_INTERNAL_UNPARENTHESIZE(lhs) = *std::move(statusor)

namespace kvtier {
namespace status_matchers_internal {

inline const absl::Status& StatusOf(const absl::Status& status) { return status; }
template <typename T>
const absl::Status& StatusOf(const absl::StatusOr<T>& status_or) {
  return status_or.status();
}

class IsOkMatcher {
 public:
  template <typename T>
  bool MatchAndExplain(const T& value, ::testing::MatchResultListener* listener) const {
    const absl::Status& status = StatusOf(value);
    if (!status.ok()) *listener << "whose status is " << status.ToString();
    return status.ok();
  }
  void DescribeTo(std::ostream* os) const { *os << "is OK"; }
  void DescribeNegationTo(std::ostream* os) const { *os << "is not OK"; }
};

class StatusIsMatcher {
 public:
  StatusIsMatcher(absl::StatusCode code, ::testing::Matcher<const std::string&> message_matcher)
      : code_(code), message_matcher_(std::move(message_matcher)) {}

  template <typename T>
  bool MatchAndExplain(const T& value, ::testing::MatchResultListener* listener) const {
    const absl::Status& status = StatusOf(value);
    *listener << "whose status is " << status.ToString();
    if (status.code() != code_) return false;
    return message_matcher_.MatchAndExplain(std::string(status.message()), listener);
  }
  void DescribeTo(std::ostream* os) const {
    *os << "has code " << absl::StatusCodeToString(code_) << " and a message that ";
    message_matcher_.DescribeTo(os);
  }
  void DescribeNegationTo(std::ostream* os) const {
    *os << "has a code other than " << absl::StatusCodeToString(code_) << " or a message that ";
    message_matcher_.DescribeNegationTo(os);
  }

 private:
  absl::StatusCode code_;
  ::testing::Matcher<const std::string&> message_matcher_;
};

// Monomorphic in the StatusOr, so that the inner matcher is cast to the type of its value.
template <typename StatusOrType>
class IsOkAndHoldsMatcherImpl : public ::testing::MatcherInterface<StatusOrType> {
 public:
  using Value = typename std::remove_reference_t<StatusOrType>::value_type;

  template <typename InnerMatcher>
  explicit IsOkAndHoldsMatcherImpl(InnerMatcher&& inner_matcher)
      : inner_matcher_(
            ::testing::SafeMatcherCast<const Value&>(std::forward<InnerMatcher>(inner_matcher))) {}

  bool MatchAndExplain(StatusOrType actual,
                       ::testing::MatchResultListener* listener) const override {
    if (!actual.ok()) {
      *listener << "whose status is " << actual.status().ToString();
      return false;
    }
    return inner_matcher_.MatchAndExplain(*actual, listener);
  }
  void DescribeTo(std::ostream* os) const override {
    *os << "is OK and holds a value that ";
    inner_matcher_.DescribeTo(os);
  }
  void DescribeNegationTo(std::ostream* os) const override {
    *os << "is not OK or holds a value that ";
    inner_matcher_.DescribeNegationTo(os);
  }

 private:
  const ::testing::Matcher<const Value&> inner_matcher_;
};

template <typename InnerMatcher>
class IsOkAndHoldsMatcher {
 public:
  explicit IsOkAndHoldsMatcher(InnerMatcher inner_matcher)
      : inner_matcher_(std::move(inner_matcher)) {}

  template <typename StatusOrType>
  operator ::testing::Matcher<StatusOrType>() const {  // NOLINT(google-explicit-constructor)
    return ::testing::Matcher<StatusOrType>(
        new IsOkAndHoldsMatcherImpl<const StatusOrType&>(inner_matcher_));
  }

 private:
  const InnerMatcher inner_matcher_;
};

}  // namespace status_matchers_internal

// Matches a Status or StatusOr that is OK.
inline auto IsOk() {
  return ::testing::MakePolymorphicMatcher(status_matchers_internal::IsOkMatcher());
}

// Matches a StatusOr that is OK and whose value matches `inner_matcher` (a matcher or a value).
template <typename InnerMatcher>
auto IsOkAndHolds(InnerMatcher&& inner_matcher) {
  return status_matchers_internal::IsOkAndHoldsMatcher<std::decay_t<InnerMatcher>>(
      std::forward<InnerMatcher>(inner_matcher));
}

// Matches a Status or StatusOr with exactly this code, and a message that matches if one is given.
inline auto StatusIs(absl::StatusCode code) {
  return ::testing::MakePolymorphicMatcher(
      status_matchers_internal::StatusIsMatcher(code, ::testing::_));
}
template <typename MessageMatcher>
auto StatusIs(absl::StatusCode code, MessageMatcher&& message_matcher) {
  return ::testing::MakePolymorphicMatcher(status_matchers_internal::StatusIsMatcher(
      code,
      ::testing::MatcherCast<const std::string&>(std::forward<MessageMatcher>(message_matcher))));
}

}  // namespace kvtier

namespace absl {

// gtest 1.12 finds these by argument-dependent lookup and prints "NOT_FOUND: text" instead of
// bytes.
inline void PrintTo(const Status& status, std::ostream* os) { *os << status.ToString(); }

template <typename T>
void PrintTo(const StatusOr<T>& status_or, std::ostream* os) {
  if (status_or.ok()) {
    *os << "OK: " << ::testing::PrintToString(*status_or);
  } else {
    *os << status_or.status().ToString();
  }
}

}  // namespace absl

#endif  // KVTIER_BASE_STATUS_MATCHERS_H_
