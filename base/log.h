// Upstream: absl/log/log.h, absl/log/check.h, once the packaged abseil carries them. Over spdlog,
// which this header does not show.
//
// Logs go to stderr, as text on a terminal or as one JSON object per line in a cluster. A miss is
// not logged; what happens per request is DEBUG or rate-limited. CHECK is for our own mistakes and
// stays active in release; bytes from disk or wire never reach one. Thread-safe.
// The logger is the one mutable global of the process: a message must get out from anywhere.
//
//   KVTIER_LOG(INFO) << "listening on " << address;
//   KVTIER_LOG_EVERY_N_SEC(WARNING, 10) << "disk is full, dropping band " << band;
//   KVTIER_CHECK_LT(layer, geometry.layers) << "in " << name;
//   KVTIER_CHECK_OK(status);
#ifndef KVTIER_BASE_LOG_H_
#define KVTIER_BASE_LOG_H_

#include <atomic>
#include <concepts>
#include <cstdint>
#include <memory>
#include <ostream>
#include <sstream>
#include <string>
#include <type_traits>
#include <utility>

#include "absl/base/optimization.h"
#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "base/status_macros.h"

namespace kvtier {

enum class LogSeverity { kDebug = 0, kInfo = 1, kWarning = 2, kError = 3, kFatal = 4 };
enum class LogFormat { kText, kJson };

struct LogOptions {
  LogFormat format = LogFormat::kText;
  LogSeverity min_level = LogSeverity::kInfo;  // Below it nothing is formatted or evaluated.
  std::string component = "";                  // Name of the program, in every line; may be empty.
};

// Sets the process's logging. Without it: LogOptions{}. Called from main, before threads start;
// again from tests.
void InitLogging(const LogOptions& options);

// "debug", "info", "warning", "error" for flags; INVALID_ARGUMENT otherwise.
absl::StatusOr<LogSeverity> ParseLogSeverity(absl::string_view name);
// "text", "json" for flags; INVALID_ARGUMENT otherwise.
absl::StatusOr<LogFormat> ParseLogFormat(absl::string_view name);

// True if a message of this severity would be written.
bool LogEnabled(LogSeverity severity);

}  // namespace kvtier

// Streams one message. `severity` is DEBUG, INFO, WARNING, ERROR or FATAL; FATAL aborts. The
// operands are evaluated only if the severity is enabled.
#define KVTIER_LOG(severity) KVTIER_INTERNAL_LOG_IF_##severity(true)

// As KVTIER_LOG, at most once per `seconds` of real time from this line of code.
#define KVTIER_LOG_EVERY_N_SEC(severity, seconds)                         \
  KVTIER_INTERNAL_LOG_IF_##severity(([] {                                 \
    static constinit ::kvtier::log_internal::RateLimit kvtier_rate_limit; \
    return kvtier_rate_limit.Allow(seconds);                              \
  }()))

// Abort with file, line, condition (and both values) unless it holds. Text may be streamed in.
#define KVTIER_CHECK(...)                                                                         \
  ABSL_PREDICT_TRUE(static_cast<bool>(__VA_ARGS__))                                               \
  ? (void)0                                                                                       \
  : ::kvtier::log_internal::Voidify() &                                                           \
          ::kvtier::log_internal::FatalMessage(__FILE__, __LINE__, "CHECK failed: " #__VA_ARGS__) \
              .stream()
#define KVTIER_CHECK_EQ(a, b) KVTIER_INTERNAL_CHECK_OP(Eq, ==, a, b)
#define KVTIER_CHECK_NE(a, b) KVTIER_INTERNAL_CHECK_OP(Ne, !=, a, b)
#define KVTIER_CHECK_LT(a, b) KVTIER_INTERNAL_CHECK_OP(Lt, <, a, b)
#define KVTIER_CHECK_LE(a, b) KVTIER_INTERNAL_CHECK_OP(Le, <=, a, b)
#define KVTIER_CHECK_GT(a, b) KVTIER_INTERNAL_CHECK_OP(Gt, >, a, b)
#define KVTIER_CHECK_GE(a, b) KVTIER_INTERNAL_CHECK_OP(Ge, >=, a, b)

// Aborts with the status unless a Status or StatusOr is OK.
#define KVTIER_CHECK_OK(...)                                                               \
  while (const std::unique_ptr<std::string> kvtier_check_failure =                         \
             ::kvtier::log_internal::CheckOk(                                              \
                 ::kvtier::status_macros_internal::AsStatus((__VA_ARGS__)), #__VA_ARGS__)) \
  ::kvtier::log_internal::FatalMessage(__FILE__, __LINE__, *kvtier_check_failure).stream()

// A CHECK too costly for release: compiled, not evaluated, when NDEBUG is defined.
#ifdef NDEBUG
#define KVTIER_DCHECK(...) \
  while (false) KVTIER_CHECK(__VA_ARGS__)
#else
#define KVTIER_DCHECK(...) KVTIER_CHECK(__VA_ARGS__)
#endif

#define KVTIER_INTERNAL_LOG_IF_DEBUG(condition) KVTIER_INTERNAL_LOG_IF(kDebug, condition)
#define KVTIER_INTERNAL_LOG_IF_INFO(condition) KVTIER_INTERNAL_LOG_IF(kInfo, condition)
#define KVTIER_INTERNAL_LOG_IF_WARNING(condition) KVTIER_INTERNAL_LOG_IF(kWarning, condition)
#define KVTIER_INTERNAL_LOG_IF_ERROR(condition) KVTIER_INTERNAL_LOG_IF(kError, condition)
#define KVTIER_INTERNAL_LOG_IF_FATAL(condition) \
  ::kvtier::log_internal::FatalMessage(__FILE__, __LINE__, "").stream()

#define KVTIER_INTERNAL_LOG_IF(severity, condition)                                              \
  !(::kvtier::LogEnabled(::kvtier::LogSeverity::severity) && (condition))                        \
      ? (void)0                                                                                  \
      : ::kvtier::log_internal::Voidify() &                                                      \
            ::kvtier::log_internal::Message(__FILE__, __LINE__, ::kvtier::LogSeverity::severity) \
                .stream()

#define KVTIER_INTERNAL_CHECK_OP(name, op, a, b)                               \
  while (const std::unique_ptr<std::string> kvtier_check_failure =             \
             ::kvtier::log_internal::Check##name((a), (b), #a " " #op " " #b)) \
  ::kvtier::log_internal::FatalMessage(__FILE__, __LINE__, *kvtier_check_failure).stream()

namespace kvtier::log_internal {

// Collects one message and writes it when it dies.
class Message {
 public:
  Message(const char* file, int line, LogSeverity severity)
      : file_(file), line_(line), severity_(severity) {}
  ~Message();
  Message(const Message&) = delete;
  Message& operator=(const Message&) = delete;

  std::ostream& stream() { return stream_; }

 private:
  const char* const file_;
  const int line_;
  const LogSeverity severity_;
  std::ostringstream stream_;
};

// The same, and then aborts.
class FatalMessage {
 public:
  // `failure` is the text of the CHECK, in front of what is streamed; empty for KVTIER_LOG(FATAL).
  FatalMessage(const char* file, int line, absl::string_view failure);
  [[noreturn]] ~FatalMessage();
  FatalMessage(const FatalMessage&) = delete;
  FatalMessage& operator=(const FatalMessage&) = delete;

  std::ostream& stream() { return stream_; }

 private:
  const char* const file_;
  const int line_;
  const bool has_failure_;
  std::ostringstream stream_;
};

// Binds weaker than << and stronger than ?:, and makes both branches void.
struct Voidify {
  void operator&(std::ostream& /*stream*/) const {}
};

// One message per period, whichever thread comes first.
class RateLimit {
 public:
  bool Allow(double seconds);

 private:
  std::atomic<int64_t> next_ns_{0};  // Monotonic.
};

template <typename T>
concept Streamable = requires(std::ostream& os, const T& value) {
  os << value;
};

template <typename T>
void PrintOperand(std::ostream& os, const T& value) {
  if constexpr (std::is_same_v<T, char> || std::is_same_v<T, signed char> ||
                std::is_same_v<T, unsigned char>) {
    os << static_cast<int>(value);
  } else if constexpr (Streamable<T>) {
    os << value;
  } else if constexpr (std::is_enum_v<T>) {
    PrintOperand(os, static_cast<std::underlying_type_t<T>>(value));
  } else {
    os << "(a value without operator<<)";
  }
}

template <typename A, typename B>
std::unique_ptr<std::string> DescribeFailure(const A& a, const B& b, const char* expression) {
  std::ostringstream os;
  os << "CHECK failed: " << expression << " (";
  PrintOperand(os, a);
  os << " vs. ";
  PrintOperand(os, b);
  os << ")";
  return std::make_unique<std::string>(os.str());
}

// Integers of different signedness compare by value, as std::cmp_equal and its kin do.
template <typename T>
concept PlainInteger = std::integral<T> && !std::is_same_v<T, bool> && !std::is_same_v<T, char> &&
                       !std::is_same_v<T, wchar_t> && !std::is_same_v<T, char8_t> &&
                       !std::is_same_v<T, char16_t> && !std::is_same_v<T, char32_t>;

// Null if the comparison holds, else the text of the failure.
#define KVTIER_INTERNAL_DEFINE_CHECK_OP(name, op, compare_integers)                          \
  template <typename A, typename B>                                                          \
  std::unique_ptr<std::string> Check##name(const A& a, const B& b, const char* expression) { \
    bool holds;                                                                              \
    if constexpr (PlainInteger<A> && PlainInteger<B>) {                                      \
      holds = compare_integers(a, b);                                                        \
    } else {                                                                                 \
      holds = static_cast<bool>(a op b);                                                     \
    }                                                                                        \
    if (ABSL_PREDICT_TRUE(holds)) return nullptr;                                            \
    return DescribeFailure(a, b, expression);                                                \
  }
KVTIER_INTERNAL_DEFINE_CHECK_OP(Eq, ==, std::cmp_equal)
KVTIER_INTERNAL_DEFINE_CHECK_OP(Ne, !=, std::cmp_not_equal)
KVTIER_INTERNAL_DEFINE_CHECK_OP(Lt, <, std::cmp_less)
KVTIER_INTERNAL_DEFINE_CHECK_OP(Le, <=, std::cmp_less_equal)
KVTIER_INTERNAL_DEFINE_CHECK_OP(Gt, >, std::cmp_greater)
KVTIER_INTERNAL_DEFINE_CHECK_OP(Ge, >=, std::cmp_greater_equal)
#undef KVTIER_INTERNAL_DEFINE_CHECK_OP

std::unique_ptr<std::string> CheckOk(const absl::Status& status, const char* expression);

}  // namespace kvtier::log_internal

#endif  // KVTIER_BASE_LOG_H_
