// UNIX sockets that carry messages and descriptors between processes of one host: what the
// shared-memory server and transport have in common (proto/kvtier/v1/shm.proto).
//
// On the wire: four bytes, little endian, with the length of a message, then the message.
// Descriptors travel with the first of these bytes. A peer may be hostile: lengths and numbers of
// descriptors are bounded before anything is allocated, and descriptors that were not asked for are
// closed.
//
// Functions are thread-safe; one socket is used by one thread at a time.
#ifndef KVTIER_SERVICES_SHM_SOCKET_H_
#define KVTIER_SERVICES_SHM_SOCKET_H_

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"

namespace kvtier {

// A descriptor that is closed when this is destroyed. Movable.
class OwnedFd {
 public:
  OwnedFd() = default;
  explicit OwnedFd(int fd) : fd_(fd) {}
  OwnedFd(OwnedFd&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  OwnedFd& operator=(OwnedFd&& other) noexcept {
    std::swap(fd_, other.fd_);
    return *this;
  }
  ~OwnedFd();
  int get() const { return fd_; }
  bool valid() const { return fd_ >= 0; }

 private:
  int fd_ = -1;
};

// A socket that listens at `path` with this mode, whatever the process's umask. A file left by a
// server that is gone is replaced.
//   INVALID_ARGUMENT  the path is empty or longer than a socket's name can be
//   UNAVAILABLE       somebody listens there, or it cannot be bound (named)
absl::StatusOr<OwnedFd> ListenUnix(const std::string& path, uint32_t mode);

// UNAVAILABLE when nobody listens at `path`; DEADLINE_EXCEEDED.
absl::StatusOr<OwnedFd> ConnectUnix(const std::string& path, absl::Time deadline);

// UNAVAILABLE when the peer is gone; DEADLINE_EXCEEDED when it does not read.
absl::Status SendShmMessage(int socket, absl::string_view message, std::span<const int> descriptors,
                            absl::Time deadline);

struct ShmMessage {
  std::string bytes;
  std::vector<OwnedFd> descriptors;
};
//   UNAVAILABLE        the peer is gone
//   DEADLINE_EXCEEDED  it does not send
//   DATA_LOSS          a message of more than bytes_max bytes, or too many descriptors
//   RESOURCE_EXHAUSTED this process may not open as many descriptors as came
absl::StatusOr<ShmMessage> ReceiveShmMessage(int socket, uint64_t bytes_max, size_t descriptors_max,
                                             absl::Time deadline);

enum class ShmArrival {
  kNone,
  kPart,
  kWhole,  // ReceiveShmMessage will not wait: a message, or a length beyond bytes_max.
};
// How much of the next message is there. Takes nothing of it, and never waits.
ShmArrival PeekShmMessage(int socket, uint64_t bytes_max);

// Whether the peer has closed the connection, or its end of it. Never waits.
bool HasHungUp(int socket);

}  // namespace kvtier

#endif  // KVTIER_SERVICES_SHM_SOCKET_H_
