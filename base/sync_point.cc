#include "base/sync_point.h"

#include <csignal>
#include <cstdlib>
#include <map>
#include <memory>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/strings/numbers.h"
#include "base/log.h"
#include "base/mutex.h"

namespace kvtier {
namespace {

struct Point {
  std::shared_ptr<const std::function<void()>> callback;
  int64_t pass_count = 0;
};

struct Registry {
  Mutex mutex;
  std::map<std::string, Point> points ABSL_GUARDED_BY(mutex);

  // From KVTIER_CRASH_AT; empty if it is not set. Counts on its own, whatever tests clear.
  std::string crash_name;
  int64_t crash_countdown ABSL_GUARDED_BY(mutex) = 0;

  Registry() {
    const char* const variable = std::getenv("KVTIER_CRASH_AT");
    if (variable == nullptr || *variable == '\0') return;
    const absl::string_view text(variable);
    const size_t colon = text.rfind(':');
    crash_name = std::string(text.substr(0, colon));
    crash_countdown = 1;
    if (colon != absl::string_view::npos) {
      KVTIER_CHECK(absl::SimpleAtoi(text.substr(colon + 1), &crash_countdown) &&
                   crash_countdown > 0)
          << "KVTIER_CRASH_AT=" << text << ", expected <name>[:<n>] with n > 0";
    }
  }
};

// Mutable and global, as the points themselves are; never destroyed.
Registry& TheRegistry() {
  static Registry* const registry = new Registry;
  return *registry;
}

}  // namespace

void SyncPoints::SetCallback(absl::string_view name, std::function<void()> callback) {
  Registry& registry = TheRegistry();
  auto shared = std::make_shared<const std::function<void()>>(std::move(callback));
  MutexLock lock(&registry.mutex);
  registry.points[std::string(name)].callback.swap(shared);
}

void SyncPoints::ClearCallback(absl::string_view name) {
  Registry& registry = TheRegistry();
  std::shared_ptr<const std::function<void()>> dropped;  // Dies after the lock.
  MutexLock lock(&registry.mutex);
  const auto found = registry.points.find(std::string(name));
  if (found != registry.points.end()) found->second.callback.swap(dropped);
}

void SyncPoints::ClearAll() {
  Registry& registry = TheRegistry();
  std::map<std::string, Point> dropped;  // Dies after the lock.
  MutexLock lock(&registry.mutex);
  registry.points.swap(dropped);
}

int64_t SyncPoints::PassCount(absl::string_view name) {
  Registry& registry = TheRegistry();
  MutexLock lock(&registry.mutex);
  const auto found = registry.points.find(std::string(name));
  return found == registry.points.end() ? 0 : found->second.pass_count;
}

std::vector<std::string> SyncPoints::PassedNames() {
  Registry& registry = TheRegistry();
  std::vector<std::string> names;
  MutexLock lock(&registry.mutex);
  for (const auto& [name, point] : registry.points) {
    if (point.pass_count > 0) names.push_back(name);
  }
  return names;
}

void SyncPoints::Pass(absl::string_view name) {
  Registry& registry = TheRegistry();
  std::shared_ptr<const std::function<void()>> callback;
  {
    MutexLock lock(&registry.mutex);
    if (registry.crash_name == name && registry.crash_countdown > 0 &&
        --registry.crash_countdown == 0) {
      // No clean-up of any kind runs, as when the machine's power goes or the kernel kills us.
      std::raise(SIGKILL);
    }
    Point& point = registry.points[std::string(name)];
    ++point.pass_count;
    callback = point.callback;
  }
  if (callback != nullptr && *callback) (*callback)();
}

}  // namespace kvtier
