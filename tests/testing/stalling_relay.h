// Between one client and a server, both on UNIX sockets: passes bytes on in both directions and,
// once the server has sent a given number of them, takes no more from it until told to. So the
// server meets a connection that is full, whatever its client and gRPC's windows would take.
//
//   StallingRelay relay(dir.File("relay"), dir.File("server"), 100'000);
//   ...a call through "unix:" + dir.File("relay")...
//   relay.AwaitStall();
//   relay.Resume();
//
// Thread-safe. The destructor closes both connections.
#ifndef KVTIER_TESTS_TESTING_STALLING_RELAY_H_
#define KVTIER_TESTS_TESTING_STALLING_RELAY_H_

#include <cstdint>
#include <string>
#include <thread>

#include "absl/base/thread_annotations.h"
#include "base/mutex.h"
#include "services/shm_socket.h"

namespace kvtier {

class StallingRelay {
 public:
  // Listens at `path`, for one connection. Dies if it cannot, or if nobody listens at
  // `server_path`.
  StallingRelay(const std::string& path, const std::string& server_path, uint64_t stall_at_bytes);
  ~StallingRelay();
  StallingRelay(const StallingRelay&) = delete;
  StallingRelay& operator=(const StallingRelay&) = delete;

  // Waits until the server has sent so many bytes.
  void AwaitStall() ABSL_LOCKS_EXCLUDED(mutex_);
  // For good.
  void Resume() ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  // One connection, from its beginning to its end.
  void Run() ABSL_LOCKS_EXCLUDED(mutex_);
  void PassOnFromServer(int client) ABSL_LOCKS_EXCLUDED(mutex_);

  const uint64_t stall_at_bytes_;
  const OwnedFd listener_;
  const OwnedFd server_;

  Mutex mutex_;
  CondVar changed_;
  OwnedFd client_ ABSL_GUARDED_BY(mutex_);  // Set once.
  bool is_stopped_ ABSL_GUARDED_BY(mutex_) = false;
  bool has_stalled_ ABSL_GUARDED_BY(mutex_) = false;
  bool may_go_on_ ABSL_GUARDED_BY(mutex_) = false;
  std::thread thread_;  // Last: it uses the others.
};

}  // namespace kvtier

#endif  // KVTIER_TESTS_TESTING_STALLING_RELAY_H_
