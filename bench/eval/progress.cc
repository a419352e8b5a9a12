#include "bench/eval/progress.h"

#include <unistd.h>

#include <cstdio>
#include <utility>

#include "absl/strings/str_format.h"

namespace kvtier {
namespace {

constexpr char kRedraw[] = "\r\033[K";  // Back to the start of the line, and clear it.

}  // namespace

Progress::Progress() : terminal_(isatty(STDERR_FILENO) != 0) {}

void Progress::Start(std::string stage, size_t total) {
  Finish();
  std::string line;
  {
    MutexLock lock(&mutex_);
    stage_ = std::move(stage);
    total_ = total;
    done_ = 0;
    open_ = true;
    started_ = std::chrono::steady_clock::now();
    line = Line();
  }
  std::fputs(line.c_str(), stderr);
}

void Progress::Step() {
  std::string line;
  {
    MutexLock lock(&mutex_);
    if (++done_ < total_) line = Line();
  }
  std::fputs(line.c_str(), stderr);
}

void Progress::Finish() {
  std::string line;
  {
    MutexLock lock(&mutex_);
    if (!open_) return;
    open_ = false;
    line =
        absl::StrFormat("%s%-36s %6.1f s\n", terminal_ ? kRedraw : "", stage_, SecondsSinceStart());
  }
  std::fputs(line.c_str(), stderr);
}

double Progress::SecondsSinceStart() const {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - started_).count();
}

std::string Progress::Line() const {
  if (!terminal_) return "";
  constexpr int kCells = 30;
  const int filled = total_ == 0 ? 0 : static_cast<int>(kCells * done_ / total_);
  std::string line =
      absl::StrFormat("%s%-36s [%s%s] %d/%d", kRedraw, stage_, std::string(filled, '#'),
                      std::string(kCells - filled, '.'), done_, total_);
  if (done_ > 0 && total_ > 0) {
    const double left =
        SecondsSinceStart() / static_cast<double>(done_) * static_cast<double>(total_ - done_);
    absl::StrAppendFormat(&line, ", %.0f s left", left);
  }
  return line;
}

}  // namespace kvtier
