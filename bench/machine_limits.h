// What the machine does without kvtier: one TCP connection on loopback, memcpy, reads all over
// memory, files past the page cache. Buffers are faulted in before anything is timed.
#ifndef KVTIER_BENCH_MACHINE_LIMITS_H_
#define KVTIER_BENCH_MACHINE_LIMITS_H_

#include <cstdint>
#include <memory>
#include <string>
#include <thread>  // NOLINT(build/c++11)
#include <vector>

#include "absl/status/statusor.h"
#include "base/aligned_bytes.h"

namespace kvtier::bench {

// A pair of plain sockets on loopback. A thread sends the same 4 MiB, which stay in the cache, as
// often as asked for; the caller receives them into a buffer of the full size. Not thread-safe.
class RawTcp {
 public:
  // UNAVAILABLE: no loopback.
  static absl::StatusOr<std::unique_ptr<RawTcp>> Connect(uint64_t bytes);
  ~RawTcp();
  RawTcp(const RawTcp&) = delete;
  RawTcp& operator=(const RawTcp&) = delete;

  struct Sample {
    double seconds = 0;
    double sender_cpu_seconds = 0;
  };
  // Moves `bytes`.
  absl::StatusOr<Sample> Transfer();

 private:
  explicit RawTcp(uint64_t bytes);
  void Send();

  AlignedBytes source_;
  AlignedBytes destination_;
  int sender_ = -1;  // Sockets.
  int reader_ = -1;
  double sender_cpu_seconds_ = 0;  // The sender writes it before its closing byte.
  std::thread thread_;
};

// Seconds for one copy of `source` to `destination`, which are of one size.
double CopySeconds(const AlignedBytes& source, AlignedBytes& destination);

// Seconds for so many reads of one byte each, at random places that do not depend on each other.
// REQUIRES: not empty.
double RandomReadSeconds(const AlignedBytes& memory, uint64_t reads);

// Files in `folder` past the page cache (O_DIRECT), 4 MiB at a time and one at a time, as the store
// reads the segments of a fetch. The file goes with it.
class RawDisk {
 public:
  // FAILED_PRECONDITION: the folder is in memory (tmpfs), or its file system refuses O_DIRECT.
  static absl::StatusOr<std::unique_ptr<RawDisk>> Create(const std::string& folder, uint64_t bytes);
  ~RawDisk();
  RawDisk(const RawDisk&) = delete;
  RawDisk& operator=(const RawDisk&) = delete;

  uint64_t bytes() const { return bytes_; }  // A whole number of pieces.
  // Writes a file anew and syncs it.
  absl::StatusOr<double> WriteSeconds();
  // Reads all pieces of it once, in random order. REQUIRES: it has been written.
  absl::StatusOr<double> RandomReadSeconds();

 private:
  RawDisk(std::string path, uint64_t bytes);

  const std::string path_;
  const uint64_t bytes_;
  AlignedBytes buffer_;
  uint64_t order_seed_ = 0;
};

}  // namespace kvtier::bench

#endif  // KVTIER_BENCH_MACHINE_LIMITS_H_
