// What every kvtier server does the same way: listen, health, reflection, /metrics, drain on
// SIGTERM.
//
//   int main(int argc, char** argv) {
//     kvtier::TuneMalloc();
//     ...                                           // flags, store, services
//     auto server = kvtier::Server::Start(options, {&service}, metrics);
//     (*server)->WaitForSignalAndDrain([&] { service.CancelAll(); });
//   }
#ifndef KVTIER_SERVICES_SERVER_H_
#define KVTIER_SERVICES_SERVER_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include <grpcpp/grpcpp.h>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "base/limits.h"
#include "services/drain_signal.h"
#include "services/metrics.h"

namespace kvtier {

// What gRPC may hold of messages and connections: a batch of pages is 64 MiB.
inline constexpr uint64_t kServerBufferBytes = 1 * limits::kGiB;
// Room for the largest message (a manifest) and what else goes on meanwhile.
inline constexpr uint64_t kServerBufferBytesMin = 192 * limits::kMiB;

struct ServerOptions {
  std::string listen = "127.0.0.1:0";          // Port 0: any free one; see port().
  std::string metrics_listen = "127.0.0.1:0";  // Empty: no /metrics.
  std::string port_file = "";  // When set, "<grpc port> <metrics port>\n" is written
                               // there (atomically) once both accept connections.
  absl::Duration drain_timeout = absl::Seconds(20);  // Running calls get this long after SIGTERM.
  // A client is asked for a sign of life this often while it has calls, and after this long without
  // one it counts as gone: its calls end, and what they held is let go of.
  absl::Duration keepalive_time = absl::Seconds(20);
  absl::Duration keepalive_timeout = absl::Seconds(10);
  // What gRPC may take, of all connections together. Beyond it: RESOURCE_EXHAUSTED without a delay,
  // or UNAVAILABLE, from gRPC itself; our own limits (calls at once, uploads, batches) say why and
  // how long to wait, and are meant to be met before.
  uint64_t buffer_bytes_max = kServerBufferBytes;  // Messages, connections.
  uint32_t threads_max = limits::kFetchesMax;      // For calls that wait.
  // Fired when the server stops, which then waits for the calls that it counts. Not owned; null:
  // gRPC alone refuses new calls and waits, and may cut the end of an answer off (drain_signal.h).
  DrainSignal* drain = nullptr;
  // The services' methods block, so that the server counts their calls for `drain`
  // (call_counter.h). Those with callbacks do so themselves.
  bool has_blocking_methods = false;
};

// `options` of a server whose services have blocking methods, and which stops by `drain`.
inline ServerOptions Draining(ServerOptions options, DrainSignal& drain) {
  options.drain = &drain;
  options.has_blocking_methods = true;
  return options;
}

class Server {
 public:
  // Starts serving `services` (not owned; they must outlive the server, as must `metrics`).
  // From here on SIGTERM and SIGINT ask for a drain instead of ending the process; each does so
  // once, so that a second Ctrl-C ends a drain that takes too long. UNAVAILABLE naming the address
  // when it cannot be bound, or the port file that cannot be written.
  static absl::StatusOr<std::unique_ptr<Server>> Start(const ServerOptions& options,
                                                       const std::vector<grpc::Service*>& services,
                                                       Metrics& metrics);
  virtual ~Server() = default;
  virtual int port() const = 0;
  virtual int metrics_port() const = 0;  // 0: no /metrics.
  // Blocks until SIGTERM or SIGINT, then drains: health says NOT_SERVING, new calls are refused
  // with UNAVAILABLE, running ones finish or are cancelled after drain_timeout; `before_drain` is
  // called first (e.g. to fire cancel tokens).
  virtual void WaitForSignalAndDrain(const std::function<void()>& before_drain) = 0;
  // Drains at once, without a signal. Doing it twice is fine; the destructor does it too.
  virtual void Shutdown() = 0;
};

// Tunes malloc for large messages (docs/protocol.md, "Memory"). Call first in main.
void TuneMalloc();

}  // namespace kvtier

#endif  // KVTIER_SERVICES_SERVER_H_
