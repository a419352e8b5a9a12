// What somebody sees who watches a tenant's objects: first, if it is needed, all of them at one
// moment, in parts; then each change after that moment. Whoever applies the events to the snapshot
// has what List says.
//
// Used by one thread at a time; dies before the store.
#ifndef KVTIER_STORE_OBJECT_WATCH_H_
#define KVTIER_STORE_OBJECT_WATCH_H_

#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

#include "store/event_log.h"
#include "store/object_stat.h"

namespace kvtier {

class ObjectWatch {
 public:
  virtual ~ObjectWatch() = default;

  struct Part {
    std::vector<ObjectStat> objects;  // In key order.
    bool is_last = false;
  };
  // The next `objects_max` objects of the snapshot. Nothing when it has been given whole, or was
  // not needed. Their resident bands are those of that moment; in which tier they are, and what is
  // decided about them, is as of now.
  virtual std::optional<Part> NextPart(size_t objects_max) = 0;
  // The event after which the snapshot was taken; events() begin behind it.
  virtual uint64_t snapshot_sequence() const = 0;
  virtual EventWatcher& events() = 0;
};

}  // namespace kvtier

#endif  // KVTIER_STORE_OBJECT_WATCH_H_
