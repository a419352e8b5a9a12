// The shared memory transport over a real store and a real socket.
#include <fcntl.h>
#include <poll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cstring>
#include <memory>
#include <string>
#include <thread>

#include "base/clock.h"
#include "base/log.h"
#include "kvtier/v1/shm.pb.h"
#include "services/metrics.h"
#include "services/shm_server.h"
#include "services/shm_socket.h"
#include "services/shm_transport.h"
#include "store/lease_table.h"
#include "tests/conformance/transport_conformance.h"
#include "tests/testing/store_checks.h"
#include "tests/testing/temp_dir.h"

namespace kvtier {
namespace {

// A server in the middle: hands on what the real one grants, with a damaged copy of each file, or
// accepts and never answers. Serves one client at a time.
class MiddleServer {
 public:
  MiddleServer(const std::string& path, std::string behind, bool stall)
      : listener_(*ListenUnix(path, 0600)), behind_(std::move(behind)), stall_(stall) {
    thread_ = std::thread([this] { Run(); });
  }
  ~MiddleServer() {
    stop_ = true;
    thread_.join();
  }

 private:
  static absl::Time Soon() { return absl::Now() + absl::Seconds(30); }

  void Run() {
    std::vector<OwnedFd> clients;
    while (!stop_) {
      pollfd entry = {.fd = listener_.get(), .events = POLLIN, .revents = 0};
      if (poll(&entry, 1, 20) <= 0) continue;
      OwnedFd client(accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
      if (!stall_) KVTIER_CHECK_OK(HandOn(client.get()));
      clients.push_back(std::move(client));
    }
  }

  absl::Status HandOn(int client) {
    absl::StatusOr<ShmMessage> request = ReceiveShmMessage(client, 1 << 20, 0, Soon());
    if (!request.ok()) return request.status();
    absl::StatusOr<OwnedFd> store = ConnectUnix(behind_, Soon());
    if (!store.ok()) return store.status();
    absl::Status sent = SendShmMessage(store->get(), request->bytes, {}, Soon());
    if (!sent.ok()) return sent;
    absl::StatusOr<ShmMessage> answer = ReceiveShmMessage(store->get(), 1 << 26, 16, Soon());
    if (!answer.ok()) return answer.status();
    std::vector<OwnedFd> damaged;
    std::vector<int> descriptors;
    for (const OwnedFd& file : answer->descriptors) {
      damaged.push_back(Damage(file.get()));
      descriptors.push_back(damaged.back().get());
    }
    return SendShmMessage(client, answer->bytes, descriptors, Soon());
  }

  static OwnedFd Damage(int file) {
    struct stat stat = {};
    KVTIER_CHECK_EQ(fstat(file, &stat), 0);
    std::string bytes(static_cast<size_t>(stat.st_size), '\0');
    KVTIER_CHECK_EQ(pread(file, bytes.data(), bytes.size(), 0), stat.st_size);
    bytes[0] = static_cast<char>(bytes[0] ^ 0x10);
    OwnedFd copy(memfd_create("damaged", MFD_CLOEXEC | MFD_ALLOW_SEALING));
    KVTIER_CHECK_EQ(pwrite(copy.get(), bytes.data(), bytes.size(), 0), stat.st_size);
    KVTIER_CHECK_EQ(fcntl(copy.get(), F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE), 0);
    return copy;
  }

  const OwnedFd listener_;
  const std::string behind_;
  const bool stall_;
  std::atomic<bool> stop_{false};
  std::thread thread_;
};

class ShmWorld final : public TransportWorld {
 public:
  ShmWorld()
      : store_(*OpenTestStore("", uint64_t{256} << 20, Clock::Real())),
        leases_({}, *store_),
        server_(*ShmServer::Start({.path = dir_.File("socket")}, leases_, metrics_)),
        transport_(MakeShmTransport({.path = dir_.File("socket")})) {}

  TieredStore& store() override { return *store_; }
  Transport& transport() override { return *transport_; }
  void DamageOnTheWay() override { GoThroughTheMiddle(/*stall=*/false); }
  void Stall() override { GoThroughTheMiddle(/*stall=*/true); }
  void Disconnect() override { server_.reset(); }

 private:
  void GoThroughTheMiddle(bool stall) {
    middle_ = std::make_unique<MiddleServer>(dir_.File("middle"), dir_.File("socket"), stall);
    transport_ = MakeShmTransport({.path = dir_.File("middle")});
  }

  const TempDir dir_;
  Metrics metrics_;
  const std::unique_ptr<TieredStore> store_;
  LeaseTable leases_;
  std::unique_ptr<ShmServer> server_;
  std::unique_ptr<MiddleServer> middle_;
  std::unique_ptr<Transport> transport_;
};

INSTANTIATE_TEST_SUITE_P(Shm, TransportConformanceTest,
                         testing::Values(TransportCase{
                             "shm", [] { return std::make_unique<ShmWorld>(); }}),
                         [](const auto& test) { return test.param.name; });

}  // namespace
}  // namespace kvtier
