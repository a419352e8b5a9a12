#include "store/turns.h"

namespace kvtier {

Turns::Turn Turns::Take(std::string name) {
  MutexLock lock(&mutex_);
  while (!held_.insert(name).second) ended_.Wait(&mutex_);
  return Turn(this, std::move(name));
}

std::optional<Turns::Turn> Turns::TryTake(std::string name) {
  MutexLock lock(&mutex_);
  if (!held_.insert(name).second) return std::nullopt;
  return Turn(this, std::move(name));
}

void Turns::End(const std::string& name) {
  MutexLock lock(&mutex_);
  held_.erase(name);
  ended_.SignalAll();
}

}  // namespace kvtier
