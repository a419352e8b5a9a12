#include "tests/testing/stalling_relay.h"

#include <errno.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <span>
#include <utility>

#include "absl/status/statusor.h"
#include "absl/time/clock.h"
#include "base/log.h"

namespace kvtier {
namespace {

using Buffer = std::array<char, 16 << 10>;

OwnedFd Take(absl::StatusOr<OwnedFd> fd) {
  KVTIER_CHECK_OK(fd);
  return *std::move(fd);
}

// The sockets do not block by themselves.
void AwaitReady(int fd, short events) {
  pollfd waiting = {.fd = fd, .events = events, .revents = 0};
  while (poll(&waiting, 1, -1) < 0 && errno == EINTR) {
  }
}

// Some bytes; none at the end of the connection.
std::span<const char> ReadSome(int fd, Buffer& buffer) {
  for (;;) {
    AwaitReady(fd, POLLIN);
    const ssize_t count = read(fd, buffer.data(), buffer.size());
    if (count >= 0) return std::span(buffer).first(static_cast<size_t>(count));
    if (errno != EAGAIN && errno != EINTR) return {};
  }
}

// False: nobody takes them any more.
bool WriteAll(int fd, std::span<const char> bytes) {
  while (!bytes.empty()) {
    AwaitReady(fd, POLLOUT);
    const ssize_t count = send(fd, bytes.data(), bytes.size(), MSG_NOSIGNAL);
    if (count >= 0) {
      bytes = bytes.subspan(static_cast<size_t>(count));
    } else if (errno != EAGAIN && errno != EINTR) {
      return false;
    }
  }
  return true;
}

void PassOn(int from, int to) {
  Buffer buffer;
  for (;;) {
    const std::span<const char> bytes = ReadSome(from, buffer);
    if (bytes.empty() || !WriteAll(to, bytes)) break;
  }
  shutdown(to, SHUT_WR);
}

}  // namespace

StallingRelay::StallingRelay(const std::string& path, const std::string& server_path,
                             uint64_t stall_at_bytes)
    : stall_at_bytes_(stall_at_bytes),
      listener_(Take(ListenUnix(path, 0600))),
      server_(Take(ConnectUnix(server_path, absl::Now() + absl::Seconds(50)))),
      thread_([this] { Run(); }) {}

StallingRelay::~StallingRelay() {
  {
    MutexLock lock(&mutex_);
    is_stopped_ = true;
    may_go_on_ = true;
    changed_.SignalAll();
    for (const OwnedFd* socket : {&listener_, &server_, &std::as_const(client_)}) {
      if (socket->valid()) shutdown(socket->get(), SHUT_RDWR);  // Whoever waits for it wakes up.
    }
  }
  thread_.join();
}

void StallingRelay::AwaitStall() {
  MutexLock lock(&mutex_);
  while (!has_stalled_) changed_.Wait(&mutex_);
}

void StallingRelay::Resume() {
  MutexLock lock(&mutex_);
  may_go_on_ = true;
  changed_.SignalAll();
}

void StallingRelay::Run() {
  AwaitReady(listener_.get(), POLLIN);
  OwnedFd accepted(accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
  int client = -1;
  {
    MutexLock lock(&mutex_);
    if (is_stopped_ || !accepted.valid()) return;
    client_ = std::move(accepted);
    client = client_.get();
  }
  std::thread to_server([&] { PassOn(client, server_.get()); });
  PassOnFromServer(client);
  to_server.join();
}

void StallingRelay::PassOnFromServer(int client) {
  Buffer buffer;
  for (uint64_t passed_on = 0; passed_on < stall_at_bytes_;) {
    const std::span<const char> bytes = ReadSome(server_.get(), buffer);
    if (bytes.empty() || !WriteAll(client, bytes)) break;
    passed_on += bytes.size();
  }
  {
    MutexLock lock(&mutex_);
    has_stalled_ = true;
    changed_.SignalAll();
    while (!may_go_on_) changed_.Wait(&mutex_);
  }
  PassOn(server_.get(), client);
}

}  // namespace kvtier
