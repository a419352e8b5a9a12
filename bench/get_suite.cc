// kvtier-bench get: how long a fetch of one small object takes, from the request to verified bytes,
// one after the other on one connection, as one answer and as a stream; beside 4 KiB asked for over
// plain sockets, and over gRPC without a store. All four in turns.

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/aligned_bytes.h"
#include "base/status_macros.h"
#include "bench/bare_grpc.h"
#include "bench/machine_limits.h"
#include "bench/store_process.h"
#include "bench/stored_object.h"
#include "bench/suite.h"
#include "bench/timing.h"
#include "services/client.h"

namespace kvtier::bench {
absl::StatusOr<SuiteResult> RunGetSuite(const StoreSuiteOptions& options) {
  // One segment of eight rows of one head: 4 KiB of keys and values.
  const ObjectShape shape = {.layers = 1, .kv_heads = 1, .head_dim = 128, .tokens = 8};
  KVTIER_ASSIGN_OR_RETURN(const CompressedObject object, MakeStoredObject(shape, /*seed=*/1));
  KVTIER_ASSIGN_OR_RETURN(const std::unique_ptr<StoreProcess> store, StoreProcess::Start({}));
  const auto channel = MakeChannel(store->address());
  KVTIER_RETURN_IF_ERROR(
      StoreClient(channel)
          .Put(object, v1::DURABILITY_HOST, nullptr, CancelToken(), absl::InfiniteFuture())
          .status());
  const std::unique_ptr<Transport> transport = MakeGrpcTransport(channel);
  KVTIER_ASSIGN_OR_RETURN(const std::unique_ptr<RawTcp> tcp,
                          RawTcp::Connect(object.manifest->total_bytes()));
  KVTIER_ASSIGN_OR_RETURN(const std::unique_ptr<BareGrpc> bare, BareGrpc::Start());
  AlignedBytes answer = AlignedBytes::Allocate(object.manifest->total_bytes());
  FetchRequest stream;
  stream.key = object.manifest->key;
  FetchRequest small = stream;
  small.expected_bytes = object.manifest->total_bytes();  // As a Lookup would have said.
  KeepingSink sink;

  const int warm_up = options.is_quick ? 10 : 500;
  const int count = options.is_quick ? 100 : 10000;
  std::vector<double> gets, streams, bare_calls, raw;
  const auto fetch = [&](const FetchRequest& request) {
    sink.Clear();
    return Seconds([&] { return transport->Fetch(request, absl::InfiniteFuture(), sink); });
  };
  for (int i = -warm_up; i < count; ++i) {
    KVTIER_ASSIGN_OR_RETURN(const double get_seconds, fetch(small));
    KVTIER_ASSIGN_OR_RETURN(const double stream_seconds, fetch(stream));
    KVTIER_ASSIGN_OR_RETURN(const double bare_seconds, bare->Receive(answer.size(), answer));
    KVTIER_ASSIGN_OR_RETURN(const RawTcp::Sample sample, tcp->Transfer());
    if (i < 0) continue;
    gets.push_back(get_seconds);
    streams.push_back(stream_seconds);
    bare_calls.push_back(bare_seconds);
    raw.push_back(sample.seconds);
  }
  SuiteResult result;
  result.facts = {{"bytes", static_cast<double>(object.manifest->total_bytes())}, {"gets", count}};
  const auto add = [&](const std::string& name, const std::vector<double>& seconds,
                       double percentile, std::optional<Target> target) {
    result.rows.push_back({name, 1e6 * Percentile(seconds, percentile), "us",
                           1e6 * Percentile(raw, percentile), "raw TCP", target});
  };
  add("4 KiB get, p50", gets, 0.5, Target::AtMost(100));
  add("4 KiB get, p99", gets, 0.99, Target::AtMost(250));
  add("4 KiB get as a stream, p50", streams, 0.5, std::nullopt);
  add("4 KiB get as a stream, p99", streams, 0.99, std::nullopt);
  add("4 KiB over gRPC alone, p50", bare_calls, 0.5, std::nullopt);
  add("4 KiB over gRPC alone, p99", bare_calls, 0.99, std::nullopt);
  return result;
}

}  // namespace kvtier::bench
