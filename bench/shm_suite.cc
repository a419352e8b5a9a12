// kvtier-bench shm: kvtier-store as a process of its own, whose memory the reader here maps and
// reads in place; beside a copy of as many bytes in memory, and the same object over TCP. All of
// them take turns.

#include <array>
#include <cstring>
#include <memory>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/aligned_bytes.h"
#include "base/status_macros.h"
#include "bench/machine_limits.h"
#include "bench/store_process.h"
#include "bench/stored_object.h"
#include "bench/suite.h"
#include "bench/timing.h"
#include "services/client.h"
#include "services/shm_transport.h"

namespace kvtier::bench {
namespace {

// The sum of all 64-bit words; what is left over counts as one more. Several sums, so that the
// additions do not wait for each other. REQUIRES: aligned, as every segment is.
uint64_t SumWords(ByteSpan bytes) {
  constexpr size_t kSums = 8;
  const auto* const words = reinterpret_cast<const uint64_t*>(bytes.data());
  const size_t count = bytes.size() / sizeof(uint64_t);
  std::array<uint64_t, kSums> sums{};
  size_t at = 0;
  for (; at + kSums <= count; at += kSums) {
    for (size_t i = 0; i < kSums; ++i) sums[i] += words[at + i];
  }
  uint64_t sum = std::accumulate(sums.begin(), sums.end(), uint64_t{0});
  for (; at < count; ++at) sum += words[at];
  const size_t rest = bytes.size() % sizeof(uint64_t);
  uint64_t last = 0;
  if (rest != 0) std::memcpy(&last, words + count, rest);
  return sum + last;
}

// Reads every 64-bit word of each segment where it lies, and keeps the segments, as a worker does.
class SummingSink final : public SegmentSink {
 public:
  absl::Status OnManifest(std::shared_ptr<const Manifest>, uint32_t) override {
    return absl::OkStatus();
  }
  absl::Status OnSegment(BandIndex, LayerIndex, SegmentRef bytes) override {
    sum_ += SumWords(bytes.bytes());
    segments_.push_back(std::move(bytes));
    return absl::OkStatus();
  }
  uint64_t sum() const { return sum_; }

 private:
  std::vector<SegmentRef> segments_;
  uint64_t sum_ = 0;
};

class SharedMemory {
 public:
  static absl::StatusOr<std::unique_ptr<SharedMemory>> Create(uint64_t object_bytes) {
    auto self = std::make_unique<SharedMemory>();
    constexpr uint64_t kSegmentBytes = uint64_t{16} << 20;
    KVTIER_ASSIGN_OR_RETURN(const CompressedObject object,
                            MakeStoredObject(FlatShape(object_bytes, kSegmentBytes), /*seed=*/1));
    self->bytes_ = object.manifest->total_bytes();
    self->request_.key = object.manifest->key;
    for (const SegmentRef& segment : object.segments) self->sum_ += SumWords(segment.bytes());
    self->source_ = AlignedBytes::Allocate(self->bytes_);
    self->destination_ = AlignedBytes::Allocate(self->bytes_);

    KVTIER_ASSIGN_OR_RETURN(self->folder_, ScratchFolder::Create(""));
    const std::string socket = self->folder_->path() + "/shm";
    // Room for the object and its upload; a lease may hold half.
    KVTIER_ASSIGN_OR_RETURN(
        self->store_,
        StoreProcess::Start({absl::StrCat("--host_budget_mib=", 4 * (self->bytes_ >> 20) + 64),
                             "--shm_socket=" + socket}));
    const auto channel = MakeChannel(self->store_->address());
    KVTIER_RETURN_IF_ERROR(
        StoreClient(channel)
            .Put(object, v1::DURABILITY_HOST, nullptr, CancelToken(), absl::InfiniteFuture())
            .status());
    self->over_tcp_ = MakeGrpcTransport(channel, {.verify = false});
    self->trusting_ = MakeShmTransport({.path = socket, .verify = false});
    self->verifying_ = MakeShmTransport({.path = socket});
    return self;
  }

  uint64_t bytes() const { return bytes_; }

  // Contenders: each gives its seconds. Letting go of what was fetched is not part of them.
  absl::StatusOr<std::vector<double>> RunCopy() {
    return std::vector<double>{CopySeconds(source_, destination_)};
  }
  // As a worker of another host: the client copies each segment to its place.
  absl::StatusOr<std::vector<double>> RunTcp() {
    copied_.Clear();
    KVTIER_ASSIGN_OR_RETURN(const double seconds, Seconds([&] {
                              return over_tcp_->Fetch(request_, absl::InfiniteFuture(), copied_);
                            }));
    if (copied_.bytes() != bytes_) return absl::InternalError("a fetch of fewer bytes");
    return std::vector<double>{seconds};
  }
  // The whole way: connect, lease, map, read.
  absl::StatusOr<std::vector<double>> RunMapped(bool is_verifying) {
    SummingSink sink;
    KVTIER_ASSIGN_OR_RETURN(const double seconds, Fetch(is_verifying, sink));
    return std::vector<double>{seconds};
  }
  // The same while somebody else in this process has the object mapped.
  absl::StatusOr<std::vector<double>> RunMappedBefore() {
    SummingSink holder;
    KVTIER_RETURN_IF_ERROR(Fetch(/*is_verifying=*/false, holder).status());
    return RunMapped(/*is_verifying=*/false);
  }

 private:
  absl::StatusOr<double> Fetch(bool is_verifying, SummingSink& sink) {
    KVTIER_ASSIGN_OR_RETURN(const double seconds, Seconds([&] {
                              return (is_verifying ? verifying_ : trusting_)
                                  ->Fetch(request_, absl::InfiniteFuture(), sink);
                            }));
    if (sink.sum() != sum_) return absl::InternalError("shared memory holds other bytes");
    return seconds;
  }

  FetchRequest request_;
  uint64_t bytes_ = 0;
  uint64_t sum_ = 0;
  AlignedBytes source_;
  AlignedBytes destination_;
  std::unique_ptr<ScratchFolder> folder_;  // Of the socket.
  std::unique_ptr<StoreProcess> store_;
  std::unique_ptr<Transport> over_tcp_;
  std::unique_ptr<Transport> trusting_;
  std::unique_ptr<Transport> verifying_;
  KeepingSink copied_;
};

}  // namespace

absl::StatusOr<SuiteResult> RunShmSuite(const StoreSuiteOptions& options) {
  KVTIER_ASSIGN_OR_RETURN(const std::unique_ptr<SharedMemory> memory,
                          SharedMemory::Create(options.object_bytes));
  KVTIER_ASSIGN_OR_RETURN(
      const auto medians,
      MediansInTurns(options.runs, {{[&] { return memory->RunCopy(); }},
                                    {[&] { return memory->RunTcp(); }},
                                    {[&] { return memory->RunMapped(/*is_verifying=*/false); }},
                                    {[&] { return memory->RunMapped(/*is_verifying=*/true); }},
                                    {[&] { return memory->RunMappedBefore(); }}}));
  const double gigabytes = 1e-9 * static_cast<double>(memory->bytes());
  const auto rate = [&](size_t contender) { return gigabytes / medians[contender][0]; };
  const std::string name = "fetch through shared memory, read in place";
  SuiteResult result;
  result.facts = {{"bytes", static_cast<double>(memory->bytes())}};
  result.rows = {
      {name, rate(2), "GB/s", rate(0), "memcpy", Target::ShareOfLimit(0.8)},
      {name + ", beside TCP", rate(2), "GB/s", rate(1), "fetch over TCP", Target::ShareOfLimit(2)},
      {name + ", every CRC verified", rate(3), "GB/s", rate(0), "memcpy"},
      {name + ", mapped here before", rate(4), "GB/s", rate(0), "memcpy"}};
  return result;
}

}  // namespace kvtier::bench
