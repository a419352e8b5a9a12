// A Redis 7 of our own, for comparison: no persistence, one connection, memory that stays with the
// process once it has been touched.
#ifndef KVTIER_BENCH_REDIS_SERVER_H_
#define KVTIER_BENCH_REDIS_SERVER_H_

#include <cstddef>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "bench/store_process.h"

struct redisContext;

namespace kvtier::bench {

// Not thread-safe.
class RedisServer {
 public:
  // FAILED_PRECONDITION saying what is missing: redis-server (scripts/bench-deps.sh installs it),
  // or hiredis when kvtier-bench was built. UNAVAILABLE: it does not answer.
  static absl::StatusOr<std::unique_ptr<RedisServer>> Start();
  ~RedisServer();
  RedisServer(const RedisServer&) = delete;
  RedisServer& operator=(const RedisServer&) = delete;

  absl::Status Set(const std::string& name, std::span<const std::byte> value);
  // All in one MSET. REQUIRES: as many names as values.
  absl::Status SetMany(std::span<const std::string> names,
                       std::span<const std::span<const std::byte>> values);
  // All in one MGET, each copied to its place in `outs`, which has just its size.
  absl::Status GetMany(std::span<const std::string> names,
                       std::span<const std::span<std::byte>> outs);
  // Asks for a value without waiting; answers come in order.
  absl::Status SendGet(const std::string& name);
  // The next answer, copied to `out`, which has just its size.
  absl::Status ReceiveInto(std::span<std::byte> out);

 private:
  RedisServer() = default;
  std::unique_ptr<ScratchFolder> scratch_;
  std::unique_ptr<Process> process_;
  redisContext* context_ = nullptr;
};

}  // namespace kvtier::bench

#endif  // KVTIER_BENCH_REDIS_SERVER_H_
