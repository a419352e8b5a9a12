// How long loading bytes from this store takes, learnt from the fetches that it served: what Lookup
// tells beside the time that computing them would take.
#ifndef KVTIER_SERVICES_LOAD_TIMES_H_
#define KVTIER_SERVICES_LOAD_TIMES_H_

#include <array>
#include <cstdint>
#include <optional>

#include "absl/base/thread_annotations.h"
#include "absl/time/time.h"
#include "base/mutex.h"

namespace kvtier {

// A rate for each source: bytes over seconds of all fetches, of which a fetch counts half after 16
// later ones. Large fetches weigh more, as they say more about a rate. Thread-safe.
class LoadTimes {
 public:
  enum class Source { kHost, kDisk };  // All of it lay in host memory; some was read from disk.

  void Record(Source source, uint64_t bytes, absl::Duration elapsed) ABSL_LOCKS_EXCLUDED(mutex_);
  // Nothing before the first fetch from this source.
  std::optional<absl::Duration> Estimate(Source source, uint64_t bytes) const
      ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  struct Sum {
    double bytes = 0;
    double seconds = 0;
  };
  mutable Mutex mutex_;
  std::array<Sum, 2> sums_ ABSL_GUARDED_BY(mutex_);  // [Source]
};

}  // namespace kvtier

#endif  // KVTIER_SERVICES_LOAD_TIMES_H_
