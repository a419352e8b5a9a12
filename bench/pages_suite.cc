// kvtier-bench pages: batches of 32 pages of 4 KiB, as an engine's plug-in puts and gets them, one
// batch after the other over one connection to a kvtier-store process; every page's CRC32C is
// computed by the client, both ways. Beside them Redis, with the same values in one MSET or MGET,
// gRPC without a store, with a batch's bytes in one answer, and for DISK one write of as many bytes
// to a file, synced, in the same folder.

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "base/aligned_bytes.h"
#include "base/status_macros.h"
#include "bench/bare_grpc.h"
#include "bench/machine_limits.h"
#include "bench/redis_server.h"
#include "bench/store_process.h"
#include "bench/suite.h"
#include "bench/timing.h"
#include "services/client.h"
#include "services/page_client.h"

namespace kvtier::bench {
namespace {

constexpr size_t kPageBytes = 4096;
constexpr size_t kBatch = 32;
constexpr char kPut[] = "put of pages HOST, 4 KiB, batches of 32";
constexpr char kGet[] = "get of pages, 4 KiB, batches of 32";
constexpr char kBareGet[] = "as many bytes over gRPC alone";
constexpr char kPutOnDisk[] = "put of pages DISK, 4 KiB, batches of 32";

// One batch: keys (of both stores), bytes, and room for what comes back.
struct Batch {
  std::vector<PageClient::PutItem> puts;
  std::vector<PageClient::GetItem> gets;
  std::vector<std::string> names;
  std::vector<ByteSpan> values;
  std::vector<MutableByteSpan> rooms;
};

// Batches over one memory of random bytes; each round's pages are new ones.
class Batches {
 public:
  // Its keys count on from `first`.
  Batches(size_t count, uint64_t first)
      : bytes_(AlignedBytes::Allocate(count * kBatch * kPageBytes)),
        room_(AlignedBytes::Allocate(kBatch * kPageBytes)),
        batches_(count),
        next_(first) {
    std::mt19937_64 random(1);
    for (uint64_t& word : bytes_.As<uint64_t>()) word = random();
    NextRound();
  }

  void NextRound() {
    size_t at = 0;
    for (Batch& batch : batches_) {
      batch = Batch();
      for (size_t i = 0; i < kBatch; ++i, at += kPageBytes) {
        std::array<std::byte, PageKey::kSize> key{};
        const uint64_t number = next_++;
        std::memcpy(key.data(), &number, sizeof(number));
        const MutableByteSpan bytes = bytes_.span().subspan(at, kPageBytes);
        std::memcpy(bytes.data(), &number, sizeof(number));  // No two pages are alike.
        const MutableByteSpan room = room_.span().subspan(i * kPageBytes, kPageBytes);
        batch.puts.push_back({PageKey(key), bytes});
        batch.gets.push_back({PageKey(key), room});
        batch.names.emplace_back(PageKey(key).AsStringView());
        batch.values.push_back(bytes);
        batch.rooms.push_back(room);
      }
    }
  }
  const std::vector<Batch>& all() const { return batches_; }
  double pages() const { return static_cast<double>(batches_.size() * kBatch); }

 private:
  AlignedBytes bytes_;
  AlignedBytes room_;
  std::vector<Batch> batches_;
  uint64_t next_;
};

// A page's status is a code without a message.
absl::Status OfPage(absl::string_view done, const absl::Status& status) {
  if (status.ok()) return status;
  return absl::Status(status.code(), absl::StrCat("a page that is ", done, ": ",
                                                  absl::StatusCodeToString(status.code())));
}

absl::Status PutBatch(PageClient& client, const Batch& batch, v1::Durability durability) {
  KVTIER_ASSIGN_OR_RETURN(const std::vector<absl::Status> statuses,
                          client.Put(batch.puts, durability, absl::InfiniteFuture()));
  for (const absl::Status& status : statuses) KVTIER_RETURN_IF_ERROR(OfPage("put", status));
  return absl::OkStatus();
}

absl::Status GetBatch(PageClient& client, const Batch& batch) {
  KVTIER_ASSIGN_OR_RETURN(const std::vector<PageClient::Got> got,
                          client.Get(batch.gets, absl::InfiniteFuture()));
  for (const PageClient::Got& page : got) {
    KVTIER_RETURN_IF_ERROR(OfPage("got", page.status));
    if (page.bytes != kPageBytes) return absl::DataLossError("a page of another size");
  }
  return absl::OkStatus();
}

// A file that is appended to and synced.
class SyncedFile {
 public:
  static absl::StatusOr<std::unique_ptr<SyncedFile>> Create(const std::string& folder) {
    std::string path = folder + "/synced";
    const int fd = open(path.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
    if (fd < 0) return absl::UnavailableError(absl::StrCat(path, ": ", strerror(errno)));
    return std::unique_ptr<SyncedFile>(new SyncedFile(std::move(path), fd));
  }
  ~SyncedFile() {
    close(fd_);
    unlink(path_.c_str());
  }
  SyncedFile(const SyncedFile&) = delete;
  SyncedFile& operator=(const SyncedFile&) = delete;

  absl::Status Append(ByteSpan bytes) {
    if (write(fd_, bytes.data(), bytes.size()) != static_cast<ssize_t>(bytes.size()) ||
        fdatasync(fd_) != 0) {
      return absl::UnavailableError(absl::StrCat(path_, ": ", strerror(errno)));
    }
    return absl::OkStatus();
  }

 private:
  SyncedFile(std::string path, int fd) : path_(std::move(path)), fd_(fd) {}
  const std::string path_;
  const int fd_;
};

// Seconds of `run` over all batches.
template <typename Run>
absl::StatusOr<std::vector<double>> SecondsOfAll(const Batches& batches, const Run& run) {
  KVTIER_ASSIGN_OR_RETURN(const double seconds, Seconds([&]() -> absl::Status {
                            for (const Batch& batch : batches.all()) {
                              KVTIER_RETURN_IF_ERROR(run(batch));
                            }
                            return absl::OkStatus();
                          }));
  return std::vector<double>{seconds};
}

}  // namespace

absl::StatusOr<SuiteResult> RunPagesSuite(const StoreSuiteOptions& options) {
  const size_t batch_count = options.is_quick ? 8 : 512;
  const size_t disk_batch_count = options.is_quick ? 4 : 128;
  const uint64_t rounds = static_cast<uint64_t>(options.runs) + 1;
  // Nothing is evicted: twice the bytes of all rounds.
  const uint64_t host_mib = 64 + rounds * (batch_count + disk_batch_count) * kBatch / 128;
  KVTIER_ASSIGN_OR_RETURN(const std::unique_ptr<ScratchFolder> scratch,
                          ScratchFolder::Create(options.folder));
  KVTIER_ASSIGN_OR_RETURN(
      const std::unique_ptr<StoreProcess> store,
      StoreProcess::Start({absl::StrCat("--data_dir=", scratch->path(), "/data"),
                           absl::StrCat("--page_host_mib=", host_mib),
                           absl::StrCat("--page_disk_mib=", host_mib)}));
  PageClient client(MakeChannel(store->address()));

  // Redis where it is there; else the bytes of a batch over plain sockets.
  absl::StatusOr<std::unique_ptr<RedisServer>> redis = RedisServer::Start();
  if (!redis.ok() && !absl::IsFailedPrecondition(redis.status())) return redis.status();
  std::unique_ptr<RawTcp> tcp;
  if (!redis.ok()) {
    KVTIER_ASSIGN_OR_RETURN(tcp, RawTcp::Connect(kBatch * kPageBytes));
  }
  const std::string put_limit = redis.ok() ? "Redis MSET" : "raw TCP";
  const std::string get_limit = redis.ok() ? "Redis MGET" : "raw TCP";

  KVTIER_ASSIGN_OR_RETURN(const std::unique_ptr<BareGrpc> bare, BareGrpc::Start());
  AlignedBytes answer = AlignedBytes::Allocate(kBatch * kPageBytes);

  Batches batches(batch_count, /*first=*/0);
  using Figures = absl::StatusOr<std::vector<double>>;
  KVTIER_ASSIGN_OR_RETURN(
      const auto medians,
      MediansInTurns(options.runs, {{[&]() -> Figures {
                                      batches.NextRound();
                                      return SecondsOfAll(batches, [&](const Batch& batch) {
                                        return PutBatch(client, batch, v1::DURABILITY_HOST);
                                      });
                                    }},
                                    {[&]() -> Figures {
                                      return SecondsOfAll(batches, [&](const Batch& batch) {
                                        return redis.ok()
                                                   ? (*redis)->SetMany(batch.names, batch.values)
                                                   : tcp->Transfer().status();
                                      });
                                    }},
                                    {[&]() -> Figures {
                                      return SecondsOfAll(batches, [&](const Batch& batch) {
                                        return GetBatch(client, batch);
                                      });
                                    }},
                                    {[&]() -> Figures {
                                      return SecondsOfAll(batches, [&](const Batch& batch) {
                                        return redis.ok()
                                                   ? (*redis)->GetMany(batch.names, batch.rooms)
                                                   : tcp->Transfer().status();
                                      });
                                    }},
                                    {[&]() -> Figures {
                                      return SecondsOfAll(batches, [&](const Batch&) {
                                        return bare->Receive(answer.size(), answer).status();
                                      });
                                    }}}));

  // None of them is in host memory yet.
  Batches on_disk(disk_batch_count, /*first=*/uint64_t{1} << 32);
  KVTIER_ASSIGN_OR_RETURN(const std::unique_ptr<SyncedFile> file,
                          SyncedFile::Create(scratch->path()));
  const AlignedBytes source = AlignedBytes::Allocate(kBatch * kPageBytes);
  KVTIER_ASSIGN_OR_RETURN(
      const auto disk_medians,
      MediansInTurns(options.runs, {{[&]() -> Figures {
                                      on_disk.NextRound();
                                      return SecondsOfAll(on_disk, [&](const Batch& batch) {
                                        return PutBatch(client, batch, v1::DURABILITY_DISK);
                                      });
                                    }},
                                    {[&]() -> Figures {
                                      return SecondsOfAll(on_disk, [&](const Batch&) {
                                        return file->Append(source.span());
                                      });
                                    }}}));

  SuiteResult result;
  result.facts = {{"pages", batches.pages()}, {"pages_on_disk", on_disk.pages()}};
  if (!redis.ok()) {
    result.note = absl::StrCat("Not beside Redis: ", redis.status().message());
  }
  result.rows = {
      {kPut, batches.pages() / medians[0][0], "pages/s", batches.pages() / medians[1][0], put_limit,
       Target::AtLeast(30'000)},
      {kGet, batches.pages() / medians[2][0], "pages/s", batches.pages() / medians[3][0], get_limit,
       Target::AtLeast(100'000)},
      {kBareGet, batches.pages() / medians[4][0], "pages/s", batches.pages() / medians[3][0],
       get_limit},
      {kPutOnDisk, on_disk.pages() / disk_medians[0][0], "pages/s",
       on_disk.pages() / disk_medians[1][0], "synced writes of a batch"},
  };
  return result;
}

}  // namespace kvtier::bench
