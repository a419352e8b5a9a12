// Reads everything that a store keeps, slowly and again and again, so that bytes that have rotted
// are found while there is another copy to repair them from, and before a reader meets them.
//
// One pass goes through all objects of all tenants in key order, segment by segment, and checks
// each copy of a segment, in host memory and on disk (TieredStore::VerifyCopies says what happens
// to a damaged one). After the bytes of a segment were read the scrubber waits as long as its rate
// makes of them, so that it never reads more than `bytes_per_second` plus one segment, and holds
// nothing while it waits: no object is pinned, no room is kept from anybody. An object that comes
// while a pass is beyond its key is checked by the next one.
//
//   Scrubber scrubber({.bytes_per_second = 32 << 20}, *store, Clock::Real());
#ifndef KVTIER_STORE_SCRUBBER_H_
#define KVTIER_STORE_SCRUBBER_H_

#include <atomic>
#include <cstdint>
#include <optional>
#include <thread>

#include "absl/base/thread_annotations.h"
#include "absl/time/time.h"
#include "base/clock.h"
#include "base/mutex.h"
#include "store/tiered_store.h"

namespace kvtier {

struct ScrubberOptions {
  uint64_t bytes_per_second = uint64_t{32} << 20;  // 0: never read anything.
  // Before the first pass: a store that has just started has readers to serve.
  absl::Duration start_delay = absl::Minutes(1);
  // From the begin of a pass to the begin of the next one, at least. Rot takes months; a small
  // store need not be read without end.
  absl::Duration pass_interval = absl::Hours(1);
};

// Since the scrubber was made.
struct ScrubCounters {
  std::atomic<uint64_t> bytes{0};     // Read, of all copies.
  std::atomic<uint64_t> passes{0};    // Through all objects, finished.
  std::atomic<uint64_t> repaired{0};  // Segments of which a damaged copy was replaced by, or gave
                                      // way to, an intact one.
  std::atomic<uint64_t> lost{0};      // Segments without an intact copy: their bands were given up.
  std::atomic<uint64_t> errors{0};    // Objects that could not be read now; the next pass tries.
};

// Thread-safe.
class Scrubber {
 public:
  // `store` and `clock` must outlive it.
  Scrubber(const ScrubberOptions& options, TieredStore& store, Clock& clock);
  // Waits at most for the segment that is being read.
  ~Scrubber();
  Scrubber(const Scrubber&) = delete;
  Scrubber& operator=(const Scrubber&) = delete;

  const ScrubCounters& counters() const { return counters_; }

 private:
  void Run();
  // False: stopped meanwhile.
  bool Pass();
  bool ScrubObject(const ObjectName& name);
  bool Pay(uint64_t bytes);
  bool WaitUntil(absl::Time time) ABSL_LOCKS_EXCLUDED(mutex_);

  const ScrubberOptions options_;
  TieredStore& store_;
  Clock& clock_;
  ScrubCounters counters_;
  absl::Time next_read_ = absl::InfinitePast();  // The thread's own.

  Mutex mutex_;
  CondVar stopped_;
  bool is_stopped_ ABSL_GUARDED_BY(mutex_) = false;
  std::thread thread_;  // Last: it uses what is above.
};

}  // namespace kvtier

#endif  // KVTIER_STORE_SCRUBBER_H_
