// A disk in memory for RocksDB and the files beside it, which remembers every change in order: a
// test runs its operations once, and then looks at what a loss of power after each of the changes
// would have left. It also fails, tears a write, runs full or stops to answer when asked to.
//
//   SimulatedDisk disk{DiskState("/store")};
//   Run(disk.env());                                     // as on any disk
//   DiskState state("/store");
//   for (const DiskOp& op : disk.log()) {
//     state.Apply(op);
//     SimulatedDisk after{state.AfterPowerLoss(Survival::kNone, random)};
//     Check(after.env());
//   }
//
// Thread-safe. RocksDB's own log of what it does (files LOG*) is dropped.
#ifndef KVTIER_TESTS_FAULT_STORE_SIMULATED_DISK_H_
#define KVTIER_TESTS_FAULT_STORE_SIMULATED_DISK_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "rocksdb/env.h"
#include "tests/fault/store/disk_state.h"

namespace kvtier {

class SimulatedDisk {
 public:
  enum class Fault {
    kNoSpace,
    kIoError,
    kShortWrite,  // Half of a write arrives, then it fails. Otherwise as kIoError.
  };

  explicit SimulatedDisk(DiskState start);
  ~SimulatedDisk();

  rocksdb::Env* env() { return env_.get(); }

  // Every change since the start, in order.
  std::vector<DiskOp> log() const;
  // Its length.
  size_t op_count() const;
  // Blocks until a change of this kind of a path that ends so is in the log; false after `timeout`.
  bool AwaitChange(DiskOp::Kind kind, absl::string_view path_end, absl::Duration timeout);

  // The change number `ordinal`, counted from now and from 0, fails and does not happen.
  void FailOnce(size_t ordinal, Fault fault);
  // So do all from there on, until Heal.
  void FailFrom(size_t ordinal, Fault fault);
  void Heal();
  uint64_t fault_count() const;

  // From now on no change (no read) answers, until Release.
  void HoldChanges();
  void HoldReads();
  // Blocks until somebody waits for an answer; false after `timeout`.
  bool AwaitHeld(absl::Duration timeout);
  void Release();

  // Of all files whose path ends so.
  uint64_t BytesOf(absl::string_view path_end) const;
  DiskState state() const;

  class Shared;  // The file system's side.

 private:
  const std::shared_ptr<Shared> shared_;
  const std::unique_ptr<rocksdb::Env> env_;
};

}  // namespace kvtier

#endif  // KVTIER_TESTS_FAULT_STORE_SIMULATED_DISK_H_
