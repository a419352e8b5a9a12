#include "bench/machine_limits.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/vfs.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <numeric>
#include <random>
#include <utility>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_cat.h"
#include "base/clock.h"
#include "base/status_macros.h"
#include "bench/timing.h"

namespace kvtier::bench {
namespace {

constexpr uint64_t kPieceBytes = uint64_t{4} << 20;
// What was fastest of several sizes.
constexpr uint64_t kSendBytes = uint64_t{1} << 20;
constexpr uint64_t kReceiveBytes = uint64_t{256} << 10;
constexpr size_t kDirectAlignment = 4096;

double ThreadCpuSeconds() {
  timespec now = {};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

absl::Status Errno(const std::string& what) {
  return absl::UnavailableError(absl::StrCat(what, ": ", strerror(errno)));
}

// A buffer for O_DIRECT inside `bytes`, which is larger by one alignment.
std::byte* DirectAligned(AlignedBytes& bytes) {
  const auto address = reinterpret_cast<uintptr_t>(bytes.data());
  return bytes.data() + (kDirectAlignment - address % kDirectAlignment) % kDirectAlignment;
}

}  // namespace

RawTcp::RawTcp(uint64_t bytes)
    : source_(AlignedBytes::Allocate(kPieceBytes)), destination_(AlignedBytes::Allocate(bytes)) {
  std::memset(source_.data(), 'k', source_.size());
}

absl::StatusOr<std::unique_ptr<RawTcp>> RawTcp::Connect(uint64_t bytes) {
  std::unique_ptr<RawTcp> tcp(new RawTcp(bytes));
  const int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  const absl::Cleanup close_listener = [listener] { close(listener); };
  sockaddr_in address = {};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t length = sizeof(address);
  tcp->reader_ = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (bind(listener, reinterpret_cast<sockaddr*>(&address), sizeof(address)) != 0 ||
      listen(listener, 1) != 0 ||
      getsockname(listener, reinterpret_cast<sockaddr*>(&address), &length) != 0 ||
      connect(tcp->reader_, reinterpret_cast<sockaddr*>(&address), sizeof(address)) != 0 ||
      (tcp->sender_ = accept4(listener, nullptr, nullptr, SOCK_CLOEXEC)) < 0) {
    return Errno("a TCP connection on loopback");
  }
  // Otherwise the last bytes of a transfer wait for an acknowledgement that the reader may delay.
  const int on = 1;
  for (const int end : {tcp->reader_, tcp->sender_}) {
    if (setsockopt(end, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on)) != 0) {
      return Errno("TCP_NODELAY on loopback");
    }
  }
  tcp->thread_ = std::thread([raw = tcp.get()] { raw->Send(); });
  return tcp;
}

RawTcp::~RawTcp() {
  shutdown(reader_, SHUT_RDWR);
  if (thread_.joinable()) thread_.join();
  close(reader_);
  if (sender_ >= 0) close(sender_);
}

// Each byte that the reader sends asks for one transfer.
void RawTcp::Send() {
  char ask = 0;
  while (recv(sender_, &ask, 1, 0) == 1) {
    const double begin = ThreadCpuSeconds();
    for (uint64_t sent = 0; sent < destination_.size();) {
      const uint64_t at = sent % kPieceBytes;
      const ssize_t count =
          send(sender_, source_.data() + at,
               std::min({kSendBytes, kPieceBytes - at, destination_.size() - sent}), MSG_NOSIGNAL);
      if (count <= 0) return;
      sent += static_cast<uint64_t>(count);
    }
    sender_cpu_seconds_ = ThreadCpuSeconds() - begin;
    if (send(sender_, "e", 1, MSG_NOSIGNAL) != 1) return;
  }
}

absl::StatusOr<RawTcp::Sample> RawTcp::Transfer() {
  Sample sample;
  KVTIER_ASSIGN_OR_RETURN(sample.seconds, Seconds([&]() -> absl::Status {
                            if (send(reader_, "x", 1, MSG_NOSIGNAL) != 1)
                              return Errno("raw TCP: send");
                            for (uint64_t got = 0; got < destination_.size();) {
                              const ssize_t count =
                                  recv(reader_, destination_.data() + got,
                                       std::min(kReceiveBytes, destination_.size() - got), 0);
                              if (count <= 0) return Errno("raw TCP: recv");
                              got += static_cast<uint64_t>(count);
                            }
                            return absl::OkStatus();
                          }));
  char end = 0;
  if (recv(reader_, &end, 1, 0) != 1) return Errno("raw TCP: recv");
  sample.sender_cpu_seconds = sender_cpu_seconds_;
  return sample;
}

double CopySeconds(const AlignedBytes& source, AlignedBytes& destination) {
  const absl::Time begin = Clock::Real().Now();
  std::memcpy(destination.data(), source.data(), source.size());
  return absl::ToDoubleSeconds(Clock::Real().Now() - begin);
}

double RandomReadSeconds(const AlignedBytes& memory, uint64_t reads) {
  static std::atomic<uint64_t> sink{0};  // So that the reads are made.
  uint64_t state = 0x9E3779B97F4A7C15;
  uint64_t sum = 0;
  const absl::Time begin = Clock::Real().Now();
  for (uint64_t i = 0; i < reads; ++i) {
    state ^= state >> 12;  // xorshift64*
    state ^= state << 25;
    state ^= state >> 27;
    // The high half of a product: a place without a division.
    const auto at = static_cast<uint64_t>(
        (static_cast<unsigned __int128>(state * 0x2545F4914F6CDD1D) * memory.size()) >> 64);
    sum += static_cast<uint64_t>(memory.data()[at]);
  }
  const double seconds = absl::ToDoubleSeconds(Clock::Real().Now() - begin);
  sink += sum;
  return seconds;
}

RawDisk::RawDisk(std::string path, uint64_t bytes)
    : path_(std::move(path)),
      bytes_(std::max(kPieceBytes, bytes / kPieceBytes * kPieceBytes)),
      buffer_(AlignedBytes::Allocate(kPieceBytes + kDirectAlignment)) {
  std::mt19937_64 random(1);
  for (uint64_t& word : buffer_.As<uint64_t>()) word = random();
}

absl::StatusOr<std::unique_ptr<RawDisk>> RawDisk::Create(const std::string& folder,
                                                         uint64_t bytes) {
  struct statfs system = {};
  if (statfs(folder.c_str(), &system) != 0) return Errno(folder);
  if (system.f_type == TMPFS_MAGIC || system.f_type == RAMFS_MAGIC) {  // tmpfs may take O_DIRECT.
    return absl::FailedPreconditionError(
        absl::StrCat(folder, " is in memory: name a folder on a disk with --folder"));
  }
  std::unique_ptr<RawDisk> disk(new RawDisk(folder + "/raw-disk", bytes));
  const int fd = open(disk->path_.c_str(), O_RDWR | O_CREAT | O_DIRECT | O_CLOEXEC, 0600);
  if (fd < 0) {
    return absl::FailedPreconditionError(
        absl::StrCat(folder, ": no files past the page cache here (", strerror(errno),
                     "): name a folder on a disk with --folder"));
  }
  close(fd);
  return disk;
}

RawDisk::~RawDisk() { unlink(path_.c_str()); }

absl::StatusOr<double> RawDisk::WriteSeconds() {
  unlink(path_.c_str());
  return Seconds([&]() -> absl::Status {
    const int fd = open(path_.c_str(), O_WRONLY | O_CREAT | O_DIRECT | O_CLOEXEC, 0600);
    if (fd < 0) return Errno(path_);
    const absl::Cleanup close_file = [fd] { close(fd); };
    for (uint64_t at = 0; at < bytes_; at += kPieceBytes) {
      if (pwrite(fd, DirectAligned(buffer_), kPieceBytes, static_cast<off_t>(at)) !=
          static_cast<ssize_t>(kPieceBytes)) {
        return Errno(path_);
      }
    }
    if (fdatasync(fd) != 0) return Errno(path_);
    return absl::OkStatus();
  });
}

absl::StatusOr<double> RawDisk::RandomReadSeconds() {
  std::vector<uint64_t> order(bytes_ / kPieceBytes);
  std::iota(order.begin(), order.end(), 0);
  std::mt19937_64 random(++order_seed_);
  std::ranges::shuffle(order, random);
  return Seconds([&]() -> absl::Status {
    const int fd = open(path_.c_str(), O_RDONLY | O_DIRECT | O_CLOEXEC);
    if (fd < 0) return Errno(path_);
    const absl::Cleanup close_file = [fd] { close(fd); };
    for (const uint64_t piece : order) {
      if (pread(fd, DirectAligned(buffer_), kPieceBytes, static_cast<off_t>(piece * kPieceBytes)) !=
          static_cast<ssize_t>(kPieceBytes)) {
        return Errno(path_);
      }
    }
    return absl::OkStatus();
  });
}

}  // namespace kvtier::bench
