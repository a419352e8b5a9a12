// Turns: at most one operation at a time per name, and waiting for one's turn blocks only those who
// want the same name. A turn is held across disk work, which a mutex must not be: readers never
// take one.
//
// Whoever holds a turn takes others with TryTake only, so that two holders never wait for each
// other. Thread-safe.
#ifndef KVTIER_STORE_TURNS_H_
#define KVTIER_STORE_TURNS_H_

#include <optional>
#include <string>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_set.h"
#include "base/mutex.h"

namespace kvtier {

class Turns {
 public:
  // Ends with its destruction. Movable.
  class Turn {
   public:
    Turn(Turn&& other) noexcept
        : turns_(std::exchange(other.turns_, nullptr)), name_(std::move(other.name_)) {}
    Turn& operator=(Turn&&) = delete;
    ~Turn() {
      if (turns_ != nullptr) turns_->End(name_);
    }

   private:
    friend class Turns;
    Turn(Turns* turns, std::string name) : turns_(turns), name_(std::move(name)) {}
    Turns* turns_;
    std::string name_;
  };

  // Waits until nobody holds `name`. REQUIRES: this thread holds no turn; the turn dies before us.
  Turn Take(std::string name) ABSL_LOCKS_EXCLUDED(mutex_);
  // Nothing if somebody holds `name`.
  std::optional<Turn> TryTake(std::string name) ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  void End(const std::string& name) ABSL_LOCKS_EXCLUDED(mutex_);

  Mutex mutex_;
  CondVar ended_;
  absl::flat_hash_set<std::string> held_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace kvtier

#endif  // KVTIER_STORE_TURNS_H_
