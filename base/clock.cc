#include "base/clock.h"

#include <algorithm>
#include <chrono>  // NOLINT(build/c++11)
#include <thread>  // NOLINT(build/c++11)

#include "absl/time/clock.h"

namespace kvtier {
namespace {

// Longer waits are cut into pieces: a duration near the maximum overflows the sum that the standard
// library makes of it. Callers loop anyway.
constexpr absl::Duration kPieceMax = absl::Hours(1);

class RealClock final : public Clock {
 public:
  absl::Time Now() override { return absl::Now(); }

  void SleepFor(absl::Duration duration) override {
    while (duration > absl::ZeroDuration()) {
      const absl::Duration piece = std::min(duration, kPieceMax);
      // Rounded up: the conversion truncates, and this sleeps at least as long as was asked.
      std::this_thread::sleep_for(
          absl::ToChronoNanoseconds(absl::Ceil(piece, absl::Nanoseconds(1))));
      duration -= piece;
    }
  }

  bool WaitWithDeadline(Mutex* mutex, CondVar* cond, absl::Time deadline) override
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex) {
    if (deadline == absl::InfiniteFuture()) {
      cond->Wait(mutex);
      return false;
    }
    // The wait itself is monotonic: a step of the wall clock during it changes nothing until the
    // next look at the time.
    const absl::Duration left = deadline - absl::Now();
    if (left <= absl::ZeroDuration()) return true;
    cond->WaitWithTimeout(mutex, std::min(left, kPieceMax));
    return absl::Now() >= deadline;
  }
};

}  // namespace

Clock& Clock::Real() {
  static RealClock* const clock = new RealClock;  // Never destroyed: threads may outlive main.
  return *clock;
}

}  // namespace kvtier
