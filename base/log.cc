#include "base/log.h"

#include <chrono>  // NOLINT(build/c++11)
#include <cstdlib>
#include <memory>

#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "spdlog/formatter.h"
#include "spdlog/logger.h"
#include "spdlog/sinks/stdout_sinks.h"

namespace kvtier {
namespace {

// Length of the well-formed UTF-8 sequence that `text` begins with, or 0.
size_t Utf8SequenceLength(absl::string_view text) {
  const auto byte = [&](size_t i) { return static_cast<unsigned char>(text[i]); };
  const unsigned char lead = byte(0);
  size_t length = 0;
  unsigned char second_min = 0x80;
  unsigned char second_max = 0xBF;
  if (lead < 0x80) {
    return 1;
  } else if (lead >= 0xC2 && lead <= 0xDF) {
    length = 2;
  } else if (lead >= 0xE0 && lead <= 0xEF) {
    length = 3;
    if (lead == 0xE0) second_min = 0xA0;  // Overlong.
    if (lead == 0xED) second_max = 0x9F;  // Surrogates.
  } else if (lead >= 0xF0 && lead <= 0xF4) {
    length = 4;
    if (lead == 0xF0) second_min = 0x90;  // Overlong.
    if (lead == 0xF4) second_max = 0x8F;  // Past U+10FFFF.
  } else {
    return 0;
  }
  if (text.size() < length || byte(1) < second_min || byte(1) > second_max) return 0;
  for (size_t i = 2; i < length; ++i) {
    if (byte(i) < 0x80 || byte(i) > 0xBF) return 0;
  }
  return length;
}

// Messages quote what came from files and peers: any bytes become a valid JSON string.
void AppendJsonString(std::string* out, absl::string_view text) {
  constexpr char kDigits[] = "0123456789abcdef";
  out->push_back('"');
  while (!text.empty()) {
    const size_t length = Utf8SequenceLength(text);
    if (length == 0) {
      out->append("\\ufffd");
      text.remove_prefix(1);
      continue;
    }
    const char c = text[0];
    if (c == '"' || c == '\\') {
      out->push_back('\\');
      out->push_back(c);
    } else if (c == '\n') {
      out->append("\\n");
    } else if (static_cast<unsigned char>(c) < 0x20 || c == '\x7F') {
      out->append("\\u00");
      out->push_back(kDigits[static_cast<unsigned char>(c) >> 4]);
      out->push_back(kDigits[static_cast<unsigned char>(c) & 0xF]);
    } else {
      out->append(text.data(), length);
    }
    text.remove_prefix(length);
  }
  out->push_back('"');
}

absl::string_view SeverityName(spdlog::level::level_enum level) {
  switch (level) {
    case spdlog::level::debug:
      return "debug";
    case spdlog::level::info:
      return "info";
    case spdlog::level::warn:
      return "warning";
    case spdlog::level::err:
      return "error";
    default:
      return "fatal";
  }
}

spdlog::level::level_enum ToSpdlog(LogSeverity severity) {
  switch (severity) {
    case LogSeverity::kDebug:
      return spdlog::level::debug;
    case LogSeverity::kInfo:
      return spdlog::level::info;
    case LogSeverity::kWarning:
      return spdlog::level::warn;
    case LogSeverity::kError:
      return spdlog::level::err;
    case LogSeverity::kFatal:
      return spdlog::level::critical;
  }
  return spdlog::level::critical;
}

absl::string_view Basename(absl::string_view path) {
  return path.substr(path.rfind('/') + 1);  // npos + 1 is 0.
}

// 2026-11-21T05:30:00.123456Z INFO  store tiered_store.cc:123] message
std::string TextLine(absl::string_view component, const spdlog::details::log_msg& message,
                     absl::string_view time) {
  absl::string_view name = SeverityName(message.level);
  std::string line = absl::StrCat(time, " ");
  for (const char c : name) line.push_back(static_cast<char>(c - 'a' + 'A'));
  line.append(8 - name.size(), ' ');
  if (!component.empty()) absl::StrAppend(&line, component, " ");
  absl::StrAppend(&line, Basename(message.source.filename), ":", message.source.line, "] ",
                  absl::string_view(message.payload.data(), message.payload.size()), "\n");
  return line;
}

// {"time":...,"severity":"info","component":"store","thread":7,"file":...,"line":1,"message":...}
std::string JsonLine(absl::string_view component, const spdlog::details::log_msg& message,
                     absl::string_view time) {
  std::string line =
      absl::StrCat("{\"time\":\"", time, "\",\"severity\":\"", SeverityName(message.level), "\"");
  if (!component.empty()) {
    line.append(",\"component\":");
    AppendJsonString(&line, component);
  }
  absl::StrAppend(&line, ",\"thread\":", message.thread_id, ",\"file\":");
  AppendJsonString(&line, Basename(message.source.filename));
  absl::StrAppend(&line, ",\"line\":", message.source.line, ",\"message\":");
  AppendJsonString(&line, absl::string_view(message.payload.data(), message.payload.size()));
  line.append("}\n");
  return line;
}

class LineFormatter final : public spdlog::formatter {
 public:
  LineFormatter(LogFormat format, std::string component)
      : format_(format), component_(std::move(component)) {}

  void format(const spdlog::details::log_msg& message, spdlog::memory_buf_t& out) override {
    const std::string time = absl::FormatTime("%Y-%m-%dT%H:%M:%E6SZ",
                                              absl::FromChrono(message.time), absl::UTCTimeZone());
    const std::string line = format_ == LogFormat::kJson ? JsonLine(component_, message, time)
                                                         : TextLine(component_, message, time);
    out.append(line.data(), line.data() + line.size());
  }

  std::unique_ptr<spdlog::formatter> clone() const override {
    return std::make_unique<LineFormatter>(format_, component_);
  }

 private:
  const LogFormat format_;
  const std::string component_;
};

// Never destroyed: threads may log until the process is gone. The sink takes its own lock for each
// line, and a change of the formatter takes the same one.
struct Logging {
  spdlog::logger logger{"kvtier", std::make_shared<spdlog::sinks::stderr_sink_mt>()};
  Logging() { Set(LogOptions{}); }
  void Set(const LogOptions& options) {
    logger.set_formatter(std::make_unique<LineFormatter>(options.format, options.component));
    logger.set_level(ToSpdlog(options.min_level));
    logger.flush_on(spdlog::level::trace);
  }
};

Logging& TheLogging() {
  static Logging* const logging = new Logging;
  return *logging;
}

void Write(const char* file, int line, LogSeverity severity, absl::string_view text) {
  TheLogging().logger.log(spdlog::source_loc{file, line, ""}, ToSpdlog(severity),
                          spdlog::string_view_t(text.data(), text.size()));
}

}  // namespace

void InitLogging(const LogOptions& options) { TheLogging().Set(options); }

absl::StatusOr<LogSeverity> ParseLogSeverity(absl::string_view name) {
  if (name == "debug") return LogSeverity::kDebug;
  if (name == "info") return LogSeverity::kInfo;
  if (name == "warning") return LogSeverity::kWarning;
  if (name == "error") return LogSeverity::kError;
  return absl::InvalidArgumentError(
      absl::StrCat("log level \"", name, "\" is not debug, info, warning or error"));
}

absl::StatusOr<LogFormat> ParseLogFormat(absl::string_view name) {
  if (name == "text") return LogFormat::kText;
  if (name == "json") return LogFormat::kJson;
  return absl::InvalidArgumentError(absl::StrCat("log format \"", name, "\" is not text or json"));
}

bool LogEnabled(LogSeverity severity) { return TheLogging().logger.should_log(ToSpdlog(severity)); }

namespace log_internal {

Message::~Message() { Write(file_, line_, severity_, stream_.str()); }

FatalMessage::FatalMessage(const char* file, int line, absl::string_view failure)
    : file_(file), line_(line), has_failure_(!failure.empty()) {
  stream_ << failure;
  if (has_failure_) stream_ << ' ';
}

FatalMessage::~FatalMessage() {
  std::string text = stream_.str();
  if (has_failure_ && text.back() == ' ') text.pop_back();
  Write(file_, line_, LogSeverity::kFatal, text);
  std::abort();
}

bool RateLimit::Allow(double seconds) {
  const int64_t now_ns = std::chrono::duration_cast<std::chrono::nanoseconds>(
                             std::chrono::steady_clock::now().time_since_epoch())
                             .count();
  int64_t next_ns = next_ns_.load(std::memory_order_relaxed);
  if (now_ns < next_ns) return false;
  return next_ns_.compare_exchange_strong(next_ns, now_ns + static_cast<int64_t>(seconds * 1e9),
                                          std::memory_order_relaxed);
}

std::unique_ptr<std::string> CheckOk(const absl::Status& status, const char* expression) {
  if (ABSL_PREDICT_TRUE(status.ok())) return nullptr;
  return std::make_unique<std::string>(
      absl::StrCat("CHECK failed: ", expression, " is OK (", status.ToString(), ")"));
}

}  // namespace log_internal
}  // namespace kvtier
