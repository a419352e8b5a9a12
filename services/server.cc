#include "services/server.h"

#include <errno.h>
#include <fcntl.h>
#include <malloc.h>
#include <signal.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <atomic>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <utility>

#include <grpcpp/ext/proto_server_reflection_plugin.h>
#include <grpcpp/health_check_service_interface.h>
#include <grpcpp/resource_quota.h>
#include <prometheus/exposer.h>

#include "absl/strings/str_cat.h"
#include "base/clock.h"
#include "base/limits.h"
#include "base/log.h"
#include "services/call_counter.h"
#include "services/grpc_runtime.h"

namespace kvtier {
namespace {

// Signals end up here. A handler can reach nothing but a global, and may do nothing but write; the
// descriptor is made once and stays open for the life of the process.
std::atomic<int> g_signal_eventfd{-1};

void OnShutdownSignal(int) {
  const int saved_errno = errno;
  const uint64_t one = 1;
  // A full counter means that the request is known already.
  [[maybe_unused]] const ssize_t written =
      write(g_signal_eventfd.load(std::memory_order_relaxed), &one, sizeof(one));
  errno = saved_errno;
}

absl::Status InstallSignalHandlers() {
  if (g_signal_eventfd.load() < 0) {
    const int fd = eventfd(0, EFD_CLOEXEC);
    if (fd < 0) return absl::InternalError(absl::StrCat("eventfd: ", strerror(errno)));
    int expected = -1;
    if (!g_signal_eventfd.compare_exchange_strong(expected, fd)) close(fd);
  }
  struct sigaction action = {};
  action.sa_handler = OnShutdownSignal;
  // One drain per signal: the second one meets the default action and ends the process.
  action.sa_flags = static_cast<int>(SA_RESTART | SA_RESETHAND);
  sigemptyset(&action.sa_mask);
  for (const int signal : {SIGTERM, SIGINT}) {
    if (sigaction(signal, &action, nullptr) != 0) {
      return absl::InternalError(absl::StrCat("sigaction: ", strerror(errno)));
    }
  }
  return absl::OkStatus();
}

void WaitForSignal() {
  uint64_t count = 0;
  while (read(g_signal_eventfd.load(), &count, sizeof(count)) < 0) {
    KVTIER_CHECK_EQ(errno, EINTR) << strerror(errno);
  }
}

// Whoever polls for the file sees all of it or nothing.
absl::Status WritePortFile(const std::string& path, int port, int metrics_port) {
  const std::string temporary = absl::StrCat(path, ".", getpid(), ".tmp");
  const std::string text = absl::StrCat(port, " ", metrics_port, "\n");
  const int fd = open(temporary.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  const bool written =
      fd >= 0 && write(fd, text.data(), text.size()) == static_cast<ssize_t>(text.size());
  const bool closed = fd >= 0 && close(fd) == 0;
  if (written && closed && rename(temporary.c_str(), path.c_str()) == 0) return absl::OkStatus();
  const int error = errno;
  unlink(temporary.c_str());
  return absl::UnavailableError(
      absl::StrCat("cannot write the port file ", path, ": ", strerror(error)));
}

int Milliseconds(absl::Duration duration) {
  return static_cast<int>(absl::ToInt64Milliseconds(duration));
}

class ServerImpl final : public Server {
 public:
  explicit ServerImpl(const ServerOptions& options) : options_(options) {}
  ~ServerImpl() override { Shutdown(); }

  absl::Status Start(const std::vector<grpc::Service*>& services, Metrics& metrics) {
    KeepGrpcRunning();
    grpc::EnableDefaultHealthCheckService(true);
    grpc::reflection::InitProtoReflectionServerBuilderPlugin();
    grpc::ServerBuilder builder;
    // Without this a second server would share the port of the first, and take half of its calls.
    builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
    // Frames and manifests; anything larger is refused before it is read.
    builder.SetMaxReceiveMessageSize(
        static_cast<int>(limits::kManifestBytesMax + limits::kControlMessageBytesMax));
    builder.SetMaxSendMessageSize(-1);
    // Clients ping every 20 s while a call runs (MakeChannel); do not take that for abuse.
    builder.AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS, 10'000);
    // A peer whose host vanished is noticed, its calls end, and what they pinned is let go of.
    builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIME_MS, Milliseconds(options_.keepalive_time));
    builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIMEOUT_MS,
                               Milliseconds(options_.keepalive_timeout));
    builder.AddChannelArgument(GRPC_ARG_MAX_CONCURRENT_STREAMS,
                               static_cast<int>(limits::kFetchesMax));
    // Bounds what strangers can make the process take before a service of ours sees their call.
    // Threads: gRPC makes one for each waiting call of a service with blocking methods (compressor,
    // worker), up to this; the store's methods are callbacks on a few threads and a pool of their
    // own. Memory: what was received and not yet parsed, and what connections cost; frames that
    // reference the store's memory are not in it. gRPC gives way in steps (it reads less at a time,
    // takes no new connections, ends idle ones, then calls), so this is a last resort.
    grpc::ResourceQuota quota("kvtier");
    quota.Resize(options_.buffer_bytes_max);
    quota.SetMaxThreads(static_cast<int>(options_.threads_max));
    builder.SetResourceQuota(quota);
    builder.AddListeningPort(options_.listen, grpc::InsecureServerCredentials(), &port_);
    for (grpc::Service* service : services) builder.RegisterService(service);
    if (options_.drain != nullptr && options_.has_blocking_methods) {
      std::vector<std::unique_ptr<grpc::experimental::ServerInterceptorFactoryInterface>> counters;
      counters.push_back(MakeCallCounter(*options_.drain));
      builder.experimental().SetInterceptorCreators(std::move(counters));
    }
    server_ = builder.BuildAndStart();
    if (server_ == nullptr || port_ == 0) {
      return absl::UnavailableError(absl::StrCat("cannot listen on ", options_.listen));
    }
    if (!options_.metrics_listen.empty()) {
      KVTIER_RETURN_IF_ERROR(StartMetrics(metrics));
    }
    KVTIER_RETURN_IF_ERROR(InstallSignalHandlers());
    if (!options_.port_file.empty()) {
      KVTIER_RETURN_IF_ERROR(WritePortFile(options_.port_file, port_, metrics_port_));
    }
    KVTIER_LOG(INFO) << "listening on " << options_.listen << " (port " << port_ << "), metrics "
                     << (metrics_port_ == 0 ? std::string("off")
                                            : absl::StrCat("on port ", metrics_port_));
    return absl::OkStatus();
  }

  int port() const override { return port_; }
  int metrics_port() const override { return metrics_port_; }

  void WaitForSignalAndDrain(const std::function<void()>& before_drain) override {
    WaitForSignal();
    KVTIER_LOG(INFO) << "asked to stop: draining for at most "
                     << absl::FormatDuration(options_.drain_timeout);
    if (before_drain) before_drain();
    Shutdown();
    KVTIER_LOG(INFO) << "stopped";
  }

  void Shutdown() override {
    if (server_ == nullptr) return;
    if (grpc::HealthCheckServiceInterface* health = server_->GetHealthCheckService()) {
      health->SetServingStatus(false);
    }
    const absl::Time end = absl::Now() + options_.drain_timeout;
    if (options_.drain != nullptr) {
      options_.drain->Fire();
      if (!options_.drain->AwaitCalls(end, Clock::Real())) {
        KVTIER_LOG(WARNING) << "calls still run after "
                            << absl::FormatDuration(options_.drain_timeout) << ": cancelled";
      }
    }
    server_->Shutdown(absl::ToChronoTime(end));
    server_->Wait();
    exposer_.reset();  // After the calls, so that a last scrape sees them.
    collectables_.clear();
    server_.reset();
  }

 private:
  absl::Status StartMetrics(Metrics& metrics) {
    try {
      exposer_ = std::make_unique<prometheus::Exposer>(options_.metrics_listen, /*num_threads=*/2);
      const std::vector<int> ports = exposer_->GetListeningPorts();
      if (!ports.empty()) metrics_port_ = ports.front();
    } catch (const std::exception& error) {  // The library has no other error channel.
      return absl::UnavailableError(
          absl::StrCat("cannot serve metrics on ", options_.metrics_listen, ": ", error.what()));
    }
    collectables_ = metrics.collectables();
    for (const auto& collectable : collectables_) exposer_->RegisterCollectable(collectable);
    return absl::OkStatus();
  }

  const ServerOptions options_;
  int port_ = 0;
  int metrics_port_ = 0;
  std::vector<std::shared_ptr<prometheus::Collectable>> collectables_;
  std::unique_ptr<grpc::Server> server_;
  std::unique_ptr<prometheus::Exposer> exposer_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Server>> Server::Start(const ServerOptions& options,
                                                      const std::vector<grpc::Service*>& services,
                                                      Metrics& metrics) {
  auto server = std::make_unique<ServerImpl>(options);
  KVTIER_RETURN_IF_ERROR(server->Start(services, metrics));
  return std::unique_ptr<Server>(std::move(server));
}

void TuneMalloc() {
  // Large messages come from the heap and stay in it; otherwise each costs fresh pages.
  mallopt(M_MMAP_THRESHOLD, 1 << 30);
  mallopt(M_TRIM_THRESHOLD, INT32_MAX);
  mallopt(M_TOP_PAD, 64 << 20);
  // Other arenas are made of pieces of 64 MiB that go back to the system whenever one is empty.
  mallopt(M_ARENA_MAX, 1);
}

}  // namespace kvtier
