// kvtier-bench pressure: 256 fetches at once, each of another object, from a store whose memory
// holds a tenth of them. Nobody may be left without an answer, whatever has to wait: a refused
// client backs off as it is told and asks again. Every byte is verified by its CRC32C, and the
// manifest is held against the one that was put.

#include <algorithm>
#include <atomic>
#include <memory>
#include <string>
#include <thread>  // NOLINT(build/c++11)
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "base/limits.h"
#include "base/mutex.h"
#include "base/status_macros.h"
#include "bench/store_process.h"
#include "bench/stored_object.h"
#include "bench/suite.h"
#include "services/client.h"
#include "services/status_grpc.h"

namespace kvtier::bench {
namespace {

constexpr int kFetches = 256;
constexpr uint64_t kSegmentBytes = uint64_t{4} << 20;
// A fetch that has no answer by then counts as stuck.
constexpr absl::Duration kPatience = absl::Minutes(4);

// Looks at every segment and lets go of it: 256 whole objects need not fit into the client.
class CheckingSink final : public SegmentSink {
 public:
  explicit CheckingSink(const Manifest& expected) : expected_(expected) {}
  absl::Status OnManifest(std::shared_ptr<const Manifest> manifest, uint32_t band_count) override {
    if (*manifest != expected_) return absl::DataLossError("another manifest than was put");
    if (band_count != expected_.bands.size()) return absl::DataLossError("not every band");
    return absl::OkStatus();
  }
  absl::Status OnSegment(BandIndex, LayerIndex, SegmentRef bytes) override {
    bytes_ += bytes.bytes().size();
    return absl::OkStatus();
  }
  uint64_t bytes() const { return bytes_; }

 private:
  const Manifest& expected_;
  uint64_t bytes_ = 0;
};

struct Outcome {
  std::atomic<int> failed{0};
  std::atomic<uint64_t> refused{0};      // RESOURCE_EXHAUSTED: asked again later.
  std::atomic<uint64_t> unavailable{0};  // UNAVAILABLE: repeated.
  std::atomic<uint64_t> bytes{0};
  Mutex mutex;
  absl::Status first_error ABSL_GUARDED_BY(mutex);
};

// One client: its own connection, back-off as the store says.
void FetchOne(const std::string& address, const Manifest& manifest, absl::Time deadline,
              Outcome& outcome) {
  const std::unique_ptr<Transport> transport = MakeGrpcTransport(MakeChannel(address));
  FetchRequest request;
  request.key = manifest.key;
  absl::Status status;
  absl::Duration backoff = absl::Milliseconds(50);
  do {
    CheckingSink sink(manifest);
    status = transport->Fetch(request, deadline, sink);
    if (status.ok()) {
      if (sink.bytes() == manifest.total_bytes()) {
        outcome.bytes += sink.bytes();
        return;
      }
      status = absl::DataLossError("a fetch of fewer bytes");
    }
    if (absl::IsResourceExhausted(status)) {
      ++outcome.refused;
    } else if (absl::IsUnavailable(status)) {
      ++outcome.unavailable;
    } else {
      break;
    }
    absl::SleepFor(RetryAfter(status).value_or(backoff));
    backoff = std::min(2 * backoff, limits::kRetryBackoffMax);
  } while (absl::Now() < deadline);
  ++outcome.failed;
  MutexLock lock(&outcome.mutex);
  if (outcome.first_error.ok()) outcome.first_error = status;
}

}  // namespace

absl::StatusOr<SuiteResult> RunPressureSuite(const StoreSuiteOptions& options) {
  const uint64_t object_bytes = options.is_quick ? 2 * kSegmentBytes : 8 * kSegmentBytes;
  KVTIER_ASSIGN_OR_RETURN(const std::unique_ptr<ScratchFolder> scratch,
                          ScratchFolder::Create(options.folder));
  const std::string data_dir = "--data_dir=" + scratch->path() + "/data";
  std::vector<std::shared_ptr<const Manifest>> manifests;
  uint64_t working_set = 0;
  {
    KVTIER_ASSIGN_OR_RETURN(
        const std::unique_ptr<StoreProcess> store,
        StoreProcess::Start(
            {data_dir, absl::StrCat("--host_budget_mib=", 64 + (object_bytes >> 18))}));
    StoreClient client(MakeChannel(store->address()));
    for (int i = 0; i < kFetches; ++i) {
      KVTIER_ASSIGN_OR_RETURN(
          const CompressedObject object,
          MakeStoredObject(FlatShape(object_bytes, kSegmentBytes), static_cast<uint64_t>(i) + 1));
      KVTIER_RETURN_IF_ERROR(
          client.Put(object, v1::DURABILITY_DISK, nullptr, CancelToken(), absl::InfiniteFuture())
              .status());
      working_set += object.manifest->total_bytes();
      manifests.push_back(object.manifest);
    }
  }
  const uint64_t budget_mib = working_set / 10 >> 20;
  // Started anew: its memory is that of the fetches alone.
  KVTIER_ASSIGN_OR_RETURN(
      const std::unique_ptr<StoreProcess> store,
      StoreProcess::Start({data_dir, absl::StrCat("--host_budget_mib=", budget_mib)}));
  KVTIER_ASSIGN_OR_RETURN(const uint64_t idle_bytes, store->process().ResidentBytes());

  Outcome outcome;
  const absl::Time begin = absl::Now();
  std::vector<std::thread> clients;
  for (const auto& manifest : manifests) {
    clients.emplace_back(
        [&, manifest] { FetchOne(store->address(), *manifest, begin + kPatience, outcome); });
  }
  for (std::thread& client : clients) client.join();
  const double seconds = absl::ToDoubleSeconds(absl::Now() - begin);

  const double budget_bytes = static_cast<double>(budget_mib << 20);
  KVTIER_ASSIGN_OR_RETURN(const uint64_t peak_bytes, store->process().PeakResidentBytes());
  SuiteResult result;
  result.facts = {{"fetches", kFetches},
                  {"working_set_bytes", static_cast<double>(working_set)},
                  {"budget_bytes", budget_bytes},
                  {"idle_resident_bytes", static_cast<double>(idle_bytes)}};
  {
    MutexLock lock(&outcome.mutex);
    if (!outcome.first_error.ok()) {
      result.note = absl::StrCat("first failure: ", outcome.first_error.ToString());
    }
  }
  result.rows = {
      {"256 fetches, budget a tenth: failed", static_cast<double>(outcome.failed), "fetches", 0, "",
       Target::AtMost(0)},
      {"256 fetches, budget a tenth: refused, then served", static_cast<double>(outcome.refused),
       "times"},
      {"256 fetches, budget a tenth: unavailable, then served",
       static_cast<double>(outcome.unavailable), "times"},
      {"256 fetches, budget a tenth: verified bytes / bytes asked for",
       static_cast<double>(outcome.bytes) / static_cast<double>(working_set), "x", 0, "",
       Target::AtLeast(1)},
      {"256 fetches, budget a tenth: peak resident / budget",
       static_cast<double>(peak_bytes) / budget_bytes, "x", 0, "", Target::AtMost(1.05)},
      {"256 fetches, budget a tenth: rate of all",
       1e-9 * static_cast<double>(outcome.bytes) / seconds, "GB/s"},
  };
  return result;
}

}  // namespace kvtier::bench
