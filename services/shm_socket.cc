#include "services/shm_socket.h"

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <limits>

#include "absl/strings/str_cat.h"
#include "base/limits.h"
#include "base/status_macros.h"

namespace kvtier {
namespace {

constexpr size_t kPrefixBytes = 4;
// More than one descriptor a band never travels.
constexpr size_t kDescriptorsMax = limits::kBandsMax;
// A client that cannot be served at once waits in the kernel.
constexpr int kBacklog = 128;

absl::StatusOr<sockaddr_un> AddressOf(const std::string& path) {
  sockaddr_un address = {};
  address.sun_family = AF_UNIX;
  if (path.empty() || path.size() >= sizeof(address.sun_path)) {
    return absl::InvalidArgumentError(absl::StrCat("the path of a socket must have 1 to ",
                                                   sizeof(address.sun_path) - 1, " bytes: '", path,
                                                   "'"));
  }
  std::ranges::copy(path, address.sun_path);
  return address;
}

absl::StatusOr<OwnedFd> NewSocket() {
  OwnedFd socket(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!socket.valid()) {
    return absl::UnavailableError(absl::StrCat("no socket: ", strerror(errno)));
  }
  return socket;
}

int ConnectTo(int socket, const sockaddr_un& address) {
  return connect(socket, reinterpret_cast<const sockaddr*>(&address), sizeof(address));
}

// Until the socket is ready for `events`, or its peer is gone.
absl::Status WaitFor(int socket, short events, absl::Time deadline) {
  for (;;) {
    int timeout_ms = -1;
    if (deadline != absl::InfiniteFuture()) {
      const int64_t left = absl::ToInt64Milliseconds(deadline - absl::Now());
      timeout_ms = static_cast<int>(std::clamp<int64_t>(left + 1, 0, 60'000));
    }
    pollfd entry = {.fd = socket, .events = events, .revents = 0};
    const int ready = poll(&entry, 1, timeout_ms);
    if (ready > 0) return absl::OkStatus();
    if (ready < 0 && errno != EINTR) {
      return absl::UnavailableError(absl::StrCat("poll: ", strerror(errno)));
    }
    if (ready == 0 && absl::Now() >= deadline) {
      return absl::DeadlineExceededError("the peer on the UNIX socket is too slow");
    }
  }
}

bool WouldBlock() { return errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR; }

// Takes the descriptors out of `header`; all that do not fit are closed.
absl::Status TakeDescriptors(msghdr& header, size_t descriptors_max, std::vector<OwnedFd>& out) {
  bool too_many = false;
  size_t installed = 0;
  for (cmsghdr* control = CMSG_FIRSTHDR(&header); control != nullptr;
       control = CMSG_NXTHDR(&header, control)) {
    if (control->cmsg_level != SOL_SOCKET || control->cmsg_type != SCM_RIGHTS) continue;
    const size_t count = (control->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    for (size_t i = 0; i < count; ++i) {
      int fd = -1;
      memcpy(&fd, CMSG_DATA(control) + i * sizeof(int), sizeof(int));
      OwnedFd owned(fd);
      if (out.size() < descriptors_max) {
        out.push_back(std::move(owned));
      } else {
        too_many = true;
      }
      ++installed;
    }
  }
  const bool is_cut = (header.msg_flags & MSG_CTRUNC) != 0;
  if (too_many || (is_cut && (descriptors_max == 0 || installed >= kDescriptorsMax))) {
    return absl::DataLossError("more descriptors on the UNIX socket than were due");
  }
  // There was room for more: it is the kernel that could not give us one.
  if (is_cut) {
    return absl::ResourceExhaustedError(
        "this process may not open the descriptors that came on the UNIX socket (RLIMIT_NOFILE)");
  }
  return absl::OkStatus();
}

// Reads `bytes` bytes to `to`, and whatever descriptors come with them.
absl::Status ReceiveExactly(int socket, char* to, size_t bytes, size_t descriptors_max,
                            absl::Time deadline, std::vector<OwnedFd>& descriptors) {
  size_t received = 0;
  while (received < bytes) {
    iovec piece = {.iov_base = to + received, .iov_len = bytes - received};
    alignas(cmsghdr) std::array<char, CMSG_SPACE(sizeof(int) * kDescriptorsMax)> control;
    msghdr header = {};
    header.msg_iov = &piece;
    header.msg_iovlen = 1;
    header.msg_control = control.data();
    header.msg_controllen = control.size();
    const ssize_t count = recvmsg(socket, &header, MSG_CMSG_CLOEXEC);
    if (count < 0) {
      if (WouldBlock()) {
        KVTIER_RETURN_IF_ERROR(WaitFor(socket, POLLIN, deadline));
        continue;
      }
      return absl::UnavailableError(absl::StrCat("UNIX socket: ", strerror(errno)));
    }
    KVTIER_RETURN_IF_ERROR(TakeDescriptors(header, descriptors_max, descriptors));
    if (count == 0) return absl::UnavailableError("the peer on the UNIX socket is gone");
    received += static_cast<size_t>(count);
  }
  return absl::OkStatus();
}

uint64_t DecodePrefix(const std::array<char, kPrefixBytes>& prefix) {
  uint64_t length = 0;
  for (size_t i = 0; i < kPrefixBytes; ++i) {
    length |= uint64_t{static_cast<uint8_t>(prefix[i])} << (8 * i);
  }
  return length;
}

}  // namespace

OwnedFd::~OwnedFd() {
  if (fd_ >= 0) close(fd_);
}

absl::StatusOr<OwnedFd> ListenUnix(const std::string& path, uint32_t mode) {
  KVTIER_ASSIGN_OR_RETURN(const sockaddr_un address, AddressOf(path));
  const auto failed = [&](absl::string_view what) {
    return absl::UnavailableError(
        absl::StrCat("cannot listen on ", path, ": ", what, ": ", strerror(errno)));
  };
  struct stat found = {};
  if (lstat(path.c_str(), &found) == 0) {
    if (!S_ISSOCK(found.st_mode)) {
      return absl::UnavailableError(absl::StrCat("cannot listen on ", path, ": it is no socket"));
    }
    KVTIER_ASSIGN_OR_RETURN(const OwnedFd probe, NewSocket());
    if (ConnectTo(probe.get(), address) == 0 || errno != ECONNREFUSED) {
      return absl::UnavailableError(absl::StrCat("somebody listens on ", path, " already"));
    }
    unlink(path.c_str());
  }
  KVTIER_ASSIGN_OR_RETURN(OwnedFd socket, NewSocket());
  // Before bind the owner's part of it: the file never has a wider mode, not for a moment. The rest
  // after bind, which applies the umask, and before anybody can connect.
  if (fchmod(socket.get(), mode & S_IRWXU) != 0) return failed("fchmod");
  if (bind(socket.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)) != 0) {
    return failed("bind");
  }
  if (chmod(path.c_str(), mode) != 0) return failed("chmod");
  if (listen(socket.get(), kBacklog) != 0) return failed("listen");
  return socket;
}

absl::StatusOr<OwnedFd> ConnectUnix(const std::string& path, absl::Time deadline) {
  KVTIER_ASSIGN_OR_RETURN(const sockaddr_un address, AddressOf(path));
  KVTIER_ASSIGN_OR_RETURN(OwnedFd socket, NewSocket());
  // A full backlog says EAGAIN at once: there is nothing to poll for.
  while (ConnectTo(socket.get(), address) != 0) {
    if (!WouldBlock()) {
      return absl::UnavailableError(
          absl::StrCat("cannot connect to ", path, ": ", strerror(errno)));
    }
    if (absl::Now() >= deadline) {
      return absl::DeadlineExceededError(absl::StrCat("nobody accepts on ", path));
    }
    absl::SleepFor(absl::Milliseconds(2));
  }
  return socket;
}

absl::Status SendShmMessage(int socket, absl::string_view message, std::span<const int> descriptors,
                            absl::Time deadline) {
  if (message.size() > std::numeric_limits<uint32_t>::max() ||
      descriptors.size() > kDescriptorsMax) {
    return absl::InvalidArgumentError("a message too large for the UNIX socket");
  }
  const auto length = static_cast<uint32_t>(message.size());
  std::array<char, kPrefixBytes> prefix;
  for (size_t i = 0; i < kPrefixBytes; ++i) prefix[i] = static_cast<char>(length >> (8 * i) & 0xFF);

  alignas(cmsghdr) std::array<char, CMSG_SPACE(sizeof(int) * kDescriptorsMax)> control{};
  size_t sent = 0;
  const size_t all = kPrefixBytes + message.size();
  while (sent < all) {
    std::array<iovec, 2> pieces;
    size_t piece_count = 0;
    if (sent < kPrefixBytes) {
      pieces[piece_count++] = {.iov_base = prefix.data() + sent, .iov_len = kPrefixBytes - sent};
    }
    const size_t skip = sent < kPrefixBytes ? 0 : sent - kPrefixBytes;
    pieces[piece_count++] = {.iov_base = const_cast<char*>(message.data()) + skip,
                             .iov_len = message.size() - skip};
    msghdr header = {};
    header.msg_iov = pieces.data();
    header.msg_iovlen = piece_count;
    if (sent == 0 && !descriptors.empty()) {
      header.msg_control = control.data();
      header.msg_controllen = CMSG_SPACE(descriptors.size_bytes());
      cmsghdr* const rights = CMSG_FIRSTHDR(&header);
      rights->cmsg_level = SOL_SOCKET;
      rights->cmsg_type = SCM_RIGHTS;
      rights->cmsg_len = CMSG_LEN(descriptors.size_bytes());
      memcpy(CMSG_DATA(rights), descriptors.data(), descriptors.size_bytes());
    }
    const ssize_t count = sendmsg(socket, &header, MSG_NOSIGNAL);
    if (count < 0) {
      if (WouldBlock()) {
        KVTIER_RETURN_IF_ERROR(WaitFor(socket, POLLOUT, deadline));
        continue;
      }
      return absl::UnavailableError(absl::StrCat("UNIX socket: ", strerror(errno)));
    }
    sent += static_cast<size_t>(count);
  }
  return absl::OkStatus();
}

absl::StatusOr<ShmMessage> ReceiveShmMessage(int socket, uint64_t bytes_max, size_t descriptors_max,
                                             absl::Time deadline) {
  ShmMessage message;
  std::array<char, kPrefixBytes> prefix;
  KVTIER_RETURN_IF_ERROR(ReceiveExactly(socket, prefix.data(), prefix.size(), descriptors_max,
                                        deadline, message.descriptors));
  const uint64_t length = DecodePrefix(prefix);
  if (length > bytes_max) {
    return absl::DataLossError(
        absl::StrCat("a message of ", length, " bytes on the UNIX socket, more than ", bytes_max));
  }
  // As it comes: a length alone takes no memory.
  constexpr size_t kStepBytes = 1 << 20;
  while (message.bytes.size() < length) {
    const size_t begin = message.bytes.size();
    message.bytes.resize(std::min<uint64_t>(length, begin + kStepBytes));
    KVTIER_RETURN_IF_ERROR(ReceiveExactly(socket, message.bytes.data() + begin,
                                          message.bytes.size() - begin, descriptors_max, deadline,
                                          message.descriptors));
  }
  return message;
}

ShmArrival PeekShmMessage(int socket, uint64_t bytes_max) {
  std::array<char, kPrefixBytes> prefix;
  const ssize_t seen = recv(socket, prefix.data(), prefix.size(), MSG_PEEK | MSG_DONTWAIT);
  if (seen <= 0) return ShmArrival::kNone;
  if (static_cast<size_t>(seen) < kPrefixBytes) return ShmArrival::kPart;
  const uint64_t length = DecodePrefix(prefix);
  if (length > bytes_max) return ShmArrival::kWhole;
  int waiting = 0;
  if (ioctl(socket, FIONREAD, &waiting) != 0) return ShmArrival::kPart;
  return static_cast<uint64_t>(waiting) >= kPrefixBytes + length ? ShmArrival::kWhole
                                                                 : ShmArrival::kPart;
}

bool HasHungUp(int socket) {
  pollfd entry = {.fd = socket, .events = POLLRDHUP, .revents = 0};
  return poll(&entry, 1, 0) > 0;
}

}  // namespace kvtier
