// kvtier-bench transfer: kvtier-store as a process of its own, the client here, loopback between
// them, one raw TCP connection for the limit, and gRPC without a store for what of the distance is
// its own. All of them take turns.

#include <algorithm>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/aligned_bytes.h"
#include "base/limits.h"
#include "base/status_macros.h"
#include "bench/bare_grpc.h"
#include "bench/machine_limits.h"
#include "bench/store_process.h"
#include "bench/stored_object.h"
#include "bench/suite.h"
#include "bench/timing.h"
#include "services/client.h"

namespace kvtier::bench {
namespace {

// One object on a store, and both ends of a raw connection for as many bytes.
class Transfer {
 public:
  static absl::StatusOr<std::unique_ptr<Transfer>> Create(uint64_t object_bytes,
                                                          uint64_t segment_bytes) {
    auto transfer = std::make_unique<Transfer>();
    KVTIER_ASSIGN_OR_RETURN(transfer->object_,
                            MakeStoredObject(FlatShape(object_bytes, segment_bytes), /*seed=*/1));
    const uint64_t bytes = transfer->object_.manifest->total_bytes();
    transfer->bytes_ = bytes;
    KVTIER_ASSIGN_OR_RETURN(transfer->tcp_, RawTcp::Connect(bytes));
    KVTIER_ASSIGN_OR_RETURN(transfer->bare_, BareGrpc::Start());
    transfer->bytes_alone_ = AlignedBytes::Allocate(bytes);
    // Room for the object that is fetched, the one that is put and its upload.
    KVTIER_ASSIGN_OR_RETURN(
        transfer->store_,
        StoreProcess::Start({absl::StrCat("--host_budget_mib=", 4 * (bytes >> 20) + 64)}));
    const auto channel = MakeChannel(transfer->store_->address());
    transfer->client_ = std::make_unique<StoreClient>(channel);
    transfer->trusting_ = MakeGrpcTransport(channel, {.verify = false});
    transfer->verifying_ = MakeGrpcTransport(channel);
    KVTIER_RETURN_IF_ERROR(transfer->Put(transfer->object_));
    return transfer;
  }

  uint64_t bytes() const { return bytes_; }

  // Contenders; each gives its seconds first. Raw TCP: the sender's CPU seconds.
  absl::StatusOr<std::vector<double>> RunTcp() {
    KVTIER_ASSIGN_OR_RETURN(const RawTcp::Sample sample, tcp_->Transfer());
    return std::vector<double>{sample.seconds, sample.sender_cpu_seconds};
  }
  // gRPC alone, in messages as large as frames: received and copied; sent.
  absl::StatusOr<std::vector<double>> RunBareFetch() {
    KVTIER_ASSIGN_OR_RETURN(const double seconds,
                            bare_->Receive(limits::kFrameBytesMax, bytes_alone_));
    return std::vector<double>{seconds};
  }
  absl::StatusOr<std::vector<double>> RunBarePut() {
    KVTIER_ASSIGN_OR_RETURN(const double seconds,
                            bare_->Send(limits::kFrameBytesMax, bytes_alone_));
    return std::vector<double>{seconds};
  }
  // The server's CPU seconds.
  absl::StatusOr<std::vector<double>> RunFetch(bool is_verifying) {
    sink_.Clear();
    FetchRequest request;
    request.key = object_.manifest->key;
    KVTIER_ASSIGN_OR_RETURN(const double cpu, store_->process().CpuSeconds());
    KVTIER_ASSIGN_OR_RETURN(const double seconds, Seconds([&] {
                              return (is_verifying ? verifying_ : trusting_)
                                  ->Fetch(request, absl::InfiniteFuture(), sink_);
                            }));
    if (sink_.bytes() != bytes_) return absl::InternalError("a fetch of fewer bytes");
    KVTIER_ASSIGN_OR_RETURN(const double cpu_after, store_->process().CpuSeconds());
    return std::vector<double>{seconds, cpu_after - cpu};
  }
  // The server's CPU seconds. Another object each time, which goes afterwards: its memory is used
  // again, as that of a store that has been running for a while.
  absl::StatusOr<std::vector<double>> RunPut() {
    const CompressedObject object = Renamed(object_, ++put_seed_);
    KVTIER_ASSIGN_OR_RETURN(const double cpu, store_->process().CpuSeconds());
    KVTIER_ASSIGN_OR_RETURN(const double seconds, Seconds([&] { return Put(object); }));
    KVTIER_ASSIGN_OR_RETURN(const double cpu_after, store_->process().CpuSeconds());
    KVTIER_RETURN_IF_ERROR(
        client_->Delete(object.manifest->key, /*keep_ratio=*/0, absl::InfiniteFuture()).status());
    return std::vector<double>{seconds, cpu_after - cpu};
  }

 private:
  absl::Status Put(const CompressedObject& object) {
    return client_->Put(object, v1::DURABILITY_HOST, nullptr, CancelToken(), absl::InfiniteFuture())
        .status();
  }

  CompressedObject object_;
  uint64_t bytes_ = 0;
  std::unique_ptr<RawTcp> tcp_;
  std::unique_ptr<BareGrpc> bare_;
  AlignedBytes bytes_alone_;
  std::unique_ptr<StoreProcess> store_;
  std::unique_ptr<StoreClient> client_;
  std::unique_ptr<Transport> trusting_;
  std::unique_ptr<Transport> verifying_;
  KeepingSink sink_;
  uint64_t put_seed_ = 1;
};

}  // namespace

absl::StatusOr<SuiteResult> RunTransferSuite(const StoreSuiteOptions& options) {
  SuiteResult result;
  std::vector<uint64_t> sizes_mib = {4, 16, 32};
  if (options.is_quick) sizes_mib = {4};
  for (const uint64_t size_mib : sizes_mib) {
    KVTIER_ASSIGN_OR_RETURN(const std::unique_ptr<Transfer> transfer,
                            Transfer::Create(options.object_bytes, size_mib << 20));
    KVTIER_ASSIGN_OR_RETURN(
        const auto medians,
        MediansInTurns(options.runs, {{[&] { return transfer->RunTcp(); }},
                                      {[&] { return transfer->RunFetch(false); }},
                                      {[&] { return transfer->RunFetch(true); }},
                                      {[&] { return transfer->RunPut(); }},
                                      {[&] { return transfer->RunBareFetch(); }},
                                      {[&] { return transfer->RunBarePut(); }}}));
    const double gigabytes = 1e-9 * static_cast<double>(transfer->bytes());
    const double tcp = gigabytes / medians[0][0];
    const double tcp_cpu = medians[0][1] / gigabytes;
    const std::string of = absl::StrCat(" of ", size_mib, " MiB segments");
    const auto add = [&](const std::string& name, double value, const std::string& unit,
                         double limit, const std::string& limit_name,
                         std::optional<Target> target) {
      result.rows.push_back({name, value, unit, limit, limit_name, target});
    };
    add("fetch" + of + ", copied", gigabytes / medians[1][0], "GB/s", tcp, "raw TCP",
        Target::ShareOfLimit(0.75));
    add("fetch" + of + ", server CPU", medians[1][1] / gigabytes, "s/GB", tcp_cpu,
        "raw TCP's sender", Target::AtMost(0.25));
    add("fetch" + of + ", copied, every CRC verified", gigabytes / medians[2][0], "GB/s", tcp,
        "raw TCP", Target::ShareOfLimit(0.62));
    add("put HOST" + of, gigabytes / medians[3][0], "GB/s", tcp, "raw TCP",
        Target::ShareOfLimit(0.65));
    add("put HOST" + of + ", server CPU", medians[3][1] / gigabytes, "s/GB", tcp_cpu,
        "raw TCP's sender", std::nullopt);
    if (size_mib != sizes_mib.front()) continue;  // Its messages are the same for all sizes.
    add("received over gRPC alone, copied", gigabytes / medians[4][0], "GB/s", tcp, "raw TCP",
        std::nullopt);
    add("sent over gRPC alone", gigabytes / medians[5][0], "GB/s", tcp, "raw TCP", std::nullopt);
  }
  return result;
}

}  // namespace kvtier::bench
