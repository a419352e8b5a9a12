// The end of a server: no call begins any more, those that would go on for as long as their caller
// likes (Lease) end at once, and the others are waited for.
//
// gRPC has a way to drain of its own, which comes after this one: it closes a connection as soon as
// its last call is over, whether or not the client has read everything. If the client happens to
// say something in that moment, the kernel throws away what it had not sent yet, and a call that
// had succeeded fails. Connections without calls it asks first (a GOAWAY with a ping).
// Answers to calls that are refused meanwhile are not waited for.
#ifndef KVTIER_SERVICES_DRAIN_SIGNAL_H_
#define KVTIER_SERVICES_DRAIN_SIGNAL_H_

#include <cstdint>
#include <functional>
#include <map>
#include <memory>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/time/time.h"
#include "base/clock.h"
#include "base/mutex.h"

namespace kvtier {

// Thread-safe. Outlives its listeners.
class DrainSignal {
 public:
  // Forgets the callback when it is destroyed, which waits while the callback runs.
  class Listener {
   public:
    Listener(DrainSignal& signal, uint64_t id) : signal_(signal), id_(id) {}
    ~Listener() { signal_.Forget(id_); }
    Listener(const Listener&) = delete;
    Listener& operator=(const Listener&) = delete;

   private:
    DrainSignal& signal_;
    const uint64_t id_;
  };

  // `on_fire` is called at most once, by the thread that fires; it must not block or destroy its
  // listener. Null: it was fired before, and nothing will be called.
  std::unique_ptr<Listener> Listen(std::function<void()> on_fire) ABSL_LOCKS_EXCLUDED(mutex_);
  // For good: no call begins after it. Returns when every listener has been called.
  void Fire() ABSL_LOCKS_EXCLUDED(mutex_);

  // A call begins (services/call_slots.h or call_counter.h does this for it). False: it may not,
  // since Fire. True: Leave() once it is over.
  bool Enter() ABSL_LOCKS_EXCLUDED(mutex_);
  void Leave() ABSL_LOCKS_EXCLUDED(mutex_);
  // Blocks until the calls that had begun are over, or until `end`. True if they are.
  bool AwaitCalls(absl::Time end, Clock& clock) ABSL_LOCKS_EXCLUDED(mutex_);
  bool has_fired() const ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  void Forget(uint64_t id) ABSL_LOCKS_EXCLUDED(mutex_);

  mutable Mutex mutex_;
  CondVar called_;  // running_ has changed.
  CondVar idle_;    // calls_ is 0.
  bool has_fired_ ABSL_GUARDED_BY(mutex_) = false;
  uint64_t calls_ ABSL_GUARDED_BY(mutex_) = 0;
  uint64_t next_id_ ABSL_GUARDED_BY(mutex_) = 1;
  uint64_t running_ ABSL_GUARDED_BY(mutex_) = 0;  // Whose callback runs now; 0: nobody's.
  std::map<uint64_t, std::function<void()>> listeners_ ABSL_GUARDED_BY(mutex_);
};

// What a call hears that begins too late: UNAVAILABLE.
absl::Status DrainingError();
// DrainingError() if `drain` has fired; it may be null.
absl::Status CheckNotDraining(const DrainSignal* drain);

}  // namespace kvtier

#endif  // KVTIER_SERVICES_DRAIN_SIGNAL_H_
