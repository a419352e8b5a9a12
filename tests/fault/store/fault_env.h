// RocksDB's file system with faults that a test asks for: a disk that is full, or fails, from the
// n-th write on, until it is healed. Also a disk that never waits for its platters: a process that
// is killed loses nothing that it wrote, so kill tests need no real sync, and run ten times faster.
// Thread-safe.
#ifndef KVTIER_TESTS_FAULT_STORE_FAULT_ENV_H_
#define KVTIER_TESTS_FAULT_STORE_FAULT_ENV_H_

#include <atomic>
#include <cstdint>
#include <memory>

#include "rocksdb/env.h"

namespace kvtier {

class FaultEnv {
 public:
  enum class Fault { kNoSpace, kIoError };

  FaultEnv();
  ~FaultEnv();

  rocksdb::Env* env() { return env_.get(); }

  // Writes (appends, syncs, creations of data files; not RocksDB's own log) since the start.
  int64_t write_count() const;
  // Every write from the `ordinal`-th on fails, counted from now and from 0, until Heal.
  void FailFrom(int64_t ordinal, Fault fault);
  // Only that one fails.
  void FailOnce(int64_t ordinal, Fault fault);
  void Heal();
  // Writes that have failed since the start.
  int64_t fault_count() const;

  struct State;

 private:
  const std::shared_ptr<State> state_;
  const std::unique_ptr<rocksdb::Env> env_;
};

}  // namespace kvtier

#endif  // KVTIER_TESTS_FAULT_STORE_FAULT_ENV_H_
