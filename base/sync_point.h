// Named places in the code where a test can act: block a thread to force an order, or kill the
// process. Compiled in only where KVTIER_SYNC_POINTS is defined (all presets but release, and for
// the whole build or not at all); elsewhere the macro is nothing.
//
// Names read `part.operation.moment` ("store.put.after_segments") and are constants of the file
// that has the point. The environment variable KVTIER_CRASH_AT=<name>[:<n>] raises SIGKILL at the
// n-th pass (default 1) of that point, for kill tests of real processes. Thread-safe.
//
//   KVTIER_SYNC_POINT("store.put.after_segments");                       // in the store
//   ScopedSyncPoint at("store.put.after_segments", [&] { gate.Wait(); });  // in the test
#ifndef KVTIER_BASE_SYNC_POINT_H_
#define KVTIER_BASE_SYNC_POINT_H_

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"

#ifdef KVTIER_SYNC_POINTS
#define KVTIER_SYNC_POINT(name) ::kvtier::SyncPoints::Pass(name)
#else
#define KVTIER_SYNC_POINT(name) static_cast<void>(0)
#endif

namespace kvtier {

class SyncPoints {
 public:
  SyncPoints() = delete;

  // Calls `callback` at each pass of the point, in the thread that passes and outside our lock: it
  // may block, and may itself pass points. Replaces an earlier callback of that name.
  static void SetCallback(absl::string_view name, std::function<void()> callback);

  // Forgets the callback; a call of it that runs now still finishes.
  static void ClearCallback(absl::string_view name);

  // Forgets all callbacks and counts.
  static void ClearAll();

  // Passes of this point since the start or the last ClearAll.
  static int64_t PassCount(absl::string_view name);

  // Points passed since the start or the last ClearAll, sorted: what a kill test goes through.
  static std::vector<std::string> PassedNames();

  // What KVTIER_SYNC_POINT calls.
  static void Pass(absl::string_view name);
};

// A callback for the life of this object. It does not wait for a call that runs while it dies.
class ScopedSyncPoint {
 public:
  ScopedSyncPoint(absl::string_view name, std::function<void()> callback) : name_(name) {
    SyncPoints::SetCallback(name_, std::move(callback));
  }
  ~ScopedSyncPoint() { SyncPoints::ClearCallback(name_); }
  ScopedSyncPoint(const ScopedSyncPoint&) = delete;
  ScopedSyncPoint& operator=(const ScopedSyncPoint&) = delete;

 private:
  const std::string name_;
};

}  // namespace kvtier

#endif  // KVTIER_BASE_SYNC_POINT_H_
