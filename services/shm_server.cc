#include "services/shm_server.h"

#include <errno.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <map>
#include <thread>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/strings/str_cat.h"
#include "base/log.h"
#include "base/mutex.h"
#include "base/status_macros.h"
#include "kvtier/v1/shm.pb.h"
#include "services/blocking_pool.h"
#include "services/proto_convert.h"
#include "services/shm_socket.h"
#include "services/status_grpc.h"

namespace kvtier {
namespace {

constexpr uint32_t kVersion = 1;
constexpr uint64_t kRequestBytesMax = 64 * limits::kKiB;
// Until somebody lets go of a lease.
constexpr absl::Duration kRetryDelay = absl::Seconds(2);
constexpr int kSweepMs = 1000;

// A client. Of the watching thread until it has asked, then of the job that answers: epoll does not
// know of it meanwhile. Afterwards it is watched again, for one event, which ends the lease.
struct Connection {
  OwnedFd socket;
  absl::Time connected_at;
  bool is_asking = true;         // Of the watching thread.
  std::unique_ptr<Lease> lease;  // Set by the job that answers.
};

class ShmServerImpl final : public ShmServer {
 public:
  ShmServerImpl(const Options& options, LeaseTable& leases, Metrics& metrics)
      : options_(options),
        leases_(leases),
        metrics_(metrics),
        pool_(std::make_unique<BlockingPool>(options.pool_threads, options.connections_max)),
        releases_(std::make_unique<BlockingPool>(/*threads=*/1, options.connections_max)) {}

  ~ShmServerImpl() override {
    stopping_ = true;  // Before anything else: what waits for a thread is not executed any more.
    if (thread_.joinable()) {
      const uint64_t one = 1;
      KVTIER_CHECK_EQ(write(stop_.get(), &one, sizeof(one)), static_cast<ssize_t>(sizeof(one)));
      thread_.join();
      unlink(options_.path.c_str());
    }
    {
      // Jobs that wait for a client give up.
      MutexLock lock(&mutex_);
      for (const auto& [fd, connection] : connections_) shutdown(fd, SHUT_RDWR);
    }
    pool_.reset();
    releases_.reset();
    std::map<int, std::shared_ptr<Connection>> closed;  // Their leases end after the lock.
    MutexLock lock(&mutex_);
    closed.swap(connections_);
  }

  absl::Status Start() {
    KVTIER_ASSIGN_OR_RETURN(listener_, ListenUnix(options_.path, options_.mode));
    epoll_ = OwnedFd(epoll_create1(EPOLL_CLOEXEC));
    stop_ = OwnedFd(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
    if (!epoll_.valid() || !stop_.valid()) {
      return absl::UnavailableError(absl::StrCat("shared memory server: ", strerror(errno)));
    }
    KVTIER_RETURN_IF_ERROR(Watch(EPOLL_CTL_ADD, listener_.get(), EPOLLIN));
    KVTIER_RETURN_IF_ERROR(Watch(EPOLL_CTL_ADD, stop_.get(), EPOLLIN));
    thread_ = std::thread([this] { Run(); });
    return absl::OkStatus();
  }

  uint32_t connections() const override {
    MutexLock lock(&mutex_);
    return static_cast<uint32_t>(connections_.size());
  }

 private:
  absl::Status Watch(int operation, int fd, uint32_t events) {
    epoll_event event = {};
    event.events = events;
    event.data.fd = fd;
    if (epoll_ctl(epoll_.get(), operation, fd, &event) == 0) return absl::OkStatus();
    return absl::UnavailableError(absl::StrCat("epoll: ", strerror(errno)));
  }

  void Run() {
    std::array<epoll_event, 64> events;
    for (;;) {
      const int count = epoll_wait(epoll_.get(), events.data(), events.size(), kSweepMs);
      KVTIER_CHECK(count >= 0 || errno == EINTR) << strerror(errno);
      for (int i = 0; i < count; ++i) {
        const int fd = events[static_cast<size_t>(i)].data.fd;
        if (fd == stop_.get()) return;
        if (fd == listener_.get()) {
          Accept();
        } else {
          Handle(fd, events[static_cast<size_t>(i)].events);
        }
      }
      DropSilentOnes();
    }
  }

  void Accept() {
    OwnedFd socket(accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
    if (!socket.valid()) {
      // The backlog stays readable: without a pause this thread would spin.
      if (errno == EMFILE || errno == ENFILE) {
        KVTIER_LOG_EVERY_N_SEC(WARNING, 10) << "no descriptor for a shared memory client";
        absl::SleepFor(absl::Milliseconds(10));
      }
      return;
    }
    const int fd = socket.get();
    MutexLock lock(&mutex_);
    if (connections_.size() >= options_.connections_max) {
      metrics_.store_shm_refused.Increment();
      return;
    }
    auto connection = std::make_shared<Connection>();
    connection->socket = std::move(socket);
    connection->connected_at = absl::Now();
    connections_.emplace(fd, std::move(connection));
    // Edge-triggered: half a request does not wake us again and again.
    if (!Watch(EPOLL_CTL_ADD, fd, EPOLLIN | EPOLLRDHUP | EPOLLET).ok()) connections_.erase(fd);
  }

  // More of a request has come, or its client is gone, or a lease ends. At most one job of each
  // pool for a connection: their queues are never full.
  void Handle(int fd, uint32_t events) {
    std::shared_ptr<Connection> connection;
    {
      MutexLock lock(&mutex_);
      const auto found = connections_.find(fd);
      if (found == connections_.end()) return;
      connection = found->second;
    }
    if (!connection->is_asking) {
      releases_->Schedule([this, fd] { Close(fd); });
      return;
    }
    const bool is_gone = (events & (EPOLLRDHUP | EPOLLHUP | EPOLLERR)) != 0;
    switch (PeekShmMessage(fd, kRequestBytesMax)) {
      case ShmArrival::kPart:
        if (!is_gone) return;
        [[fallthrough]];
      case ShmArrival::kNone:
        if (is_gone) Close(fd);  // It has no lease yet.
        return;
      case ShmArrival::kWhole:
        break;
    }
    connection->is_asking = false;
    if (!Watch(EPOLL_CTL_DEL, fd, 0).ok()) {
      Close(fd);
      return;
    }
    pool_->Schedule([this, fd, connection = std::move(connection)]() mutable {
      // Whatever comes on the socket after the answer ends the lease.
      if (!Answer(*connection).ok() ||
          !Watch(EPOLL_CTL_ADD, fd, EPOLLIN | EPOLLRDHUP | EPOLLONESHOT).ok()) {
        Close(fd);
      }
      // Now: the pool keeps a job until its thread has the next one, and the client may be gone.
      connection.reset();
    });
  }

  void Close(int fd) {
    std::shared_ptr<Connection> closed;  // The lease ends after the lock.
    MutexLock lock(&mutex_);
    const auto found = connections_.find(fd);
    if (found == connections_.end()) return;
    closed = std::move(found->second);
    connections_.erase(found);
  }

  void DropSilentOnes() {
    const absl::Time oldest = absl::Now() - options_.handshake_timeout;
    std::vector<std::shared_ptr<Connection>> dropped;
    MutexLock lock(&mutex_);
    for (auto it = connections_.begin(); it != connections_.end();) {
      if (it->second->is_asking && it->second->connected_at < oldest) {
        dropped.push_back(std::move(it->second));
        it = connections_.erase(it);
      } else {
        ++it;
      }
    }
  }

  // OK: the client has its lease.
  absl::Status Answer(Connection& connection) {
    const absl::Time start = absl::Now();
    absl::StatusOr<std::unique_ptr<Lease>> lease = Acquire(connection);
    metrics_.CountRpc("ShmAcquire", lease.status(), absl::Now() - start);
    v1::ShmResponse response;
    std::vector<int> descriptors;
    uint64_t bytes = 0;
    absl::Status granted = lease.status();
    if (granted.ok()) granted = Describe(**lease, response, descriptors, bytes);
    if (!granted.ok()) {
      descriptors.clear();
      if (absl::IsResourceExhausted(granted)) {
        granted = WithRetryAfter(std::move(granted), kRetryDelay);
      }
      response.set_refused(RpcStatusBytes(granted));
    } else {
      connection.lease = *std::move(lease);
    }
    // The bands outlive the call: the lease holds them.
    KVTIER_RETURN_IF_ERROR(SendShmMessage(connection.socket.get(), response.SerializeAsString(),
                                          descriptors, absl::Now() + options_.answer_timeout));
    if (granted.ok()) {
      metrics_.store_shm_leases.Increment();
      metrics_.store_shm_bytes.Increment(static_cast<double>(bytes));
    } else {
      metrics_.store_shm_refused.Increment();
    }
    return granted;
  }

  absl::StatusOr<std::unique_ptr<Lease>> Acquire(Connection& connection) {
    // It may have waited for a thread for long.
    if (stopping_) return absl::UnavailableError("the store stops");
    const int socket = connection.socket.get();
    if (HasHungUp(socket)) return absl::CancelledError("the shared memory client is gone");
    // All of it is there: nothing is waited for.
    KVTIER_ASSIGN_OR_RETURN(const ShmMessage message,
                            ReceiveShmMessage(socket, kRequestBytesMax, 0, absl::Now()));
    v1::ShmAcquire request;
    if (!request.ParseFromString(message.bytes)) {
      return absl::InvalidArgumentError("not a ShmAcquire message");
    }
    if (request.version() != kVersion) {
      return absl::FailedPreconditionError(absl::StrCat(
          "shared memory protocol ", request.version(), ", this store speaks ", kVersion));
    }
    TenantId tenant;
    if (!request.tenant().empty()) {
      KVTIER_ASSIGN_OR_RETURN(tenant, TenantId::FromString(request.tenant()));
    }
    v1::FetchRequest fetch;
    *fetch.mutable_name() = request.acquire().name();
    *fetch.mutable_extent() = request.acquire().extent();
    KVTIER_ASSIGN_OR_RETURN(const FetchRequest wanted, FetchRequestFromProto(tenant, fetch));
    return leases_.Acquire(wanted, BandPlacement::kFile);
  }

  static absl::Status Describe(const Lease& lease, v1::ShmResponse& response,
                               std::vector<int>& descriptors, uint64_t& bytes) {
    const HeldObject& object = lease.object();
    const Manifest& manifest = *object.manifest();
    for (uint32_t band = 0; band < object.band_count(); ++band) {
      if (manifest.bands[band].encoded_bytes() == 0) continue;
      KVTIER_ASSIGN_OR_RETURN(const MemoryFileView file, object.band(BandIndex(band)).Export());
      descriptors.push_back(file.fd);
      bytes += file.bytes;
    }
    v1::ShmGranted& granted = *response.mutable_granted();
    granted.set_manifest(EncodeManifest(manifest));
    FillLeaseGranted(lease, *granted.mutable_lease());
    return absl::OkStatus();
  }

  const Options options_;
  LeaseTable& leases_;
  Metrics& metrics_;
  OwnedFd listener_;
  OwnedFd epoll_;
  OwnedFd stop_;
  mutable Mutex mutex_;
  std::map<int, std::shared_ptr<Connection>> connections_ ABSL_GUARDED_BY(mutex_);
  std::atomic<bool> stopping_{false};
  std::unique_ptr<BlockingPool> pool_;      // Answers.
  std::unique_ptr<BlockingPool> releases_;  // Ends leases.
  std::thread thread_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<ShmServer>> ShmServer::Start(const Options& options,
                                                            LeaseTable& leases, Metrics& metrics) {
  auto server = std::make_unique<ShmServerImpl>(options, leases, metrics);
  KVTIER_RETURN_IF_ERROR(server->Start());
  return std::unique_ptr<ShmServer>(std::move(server));
}

}  // namespace kvtier
