// kvtier-bench get: how long a fetch of one small object takes, from the request to verified bytes,
// one after the other on one connection; beside 4 KiB asked for over plain sockets, in turns.

#include <memory>
#include <string>
#include <vector>

#include "base/status_macros.h"
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
  FetchRequest request;
  request.key = object.manifest->key;
  KeepingSink sink;

  const int warm_up = options.is_quick ? 10 : 500;
  const int count = options.is_quick ? 100 : 10000;
  std::vector<double> gets, raw;
  for (int i = -warm_up; i < count; ++i) {
    sink.Clear();
    KVTIER_ASSIGN_OR_RETURN(const double seconds, Seconds([&] {
                              return transport->Fetch(request, absl::InfiniteFuture(), sink);
                            }));
    KVTIER_ASSIGN_OR_RETURN(const RawTcp::Sample sample, tcp->Transfer());
    if (i < 0) continue;
    gets.push_back(seconds);
    raw.push_back(sample.seconds);
  }
  SuiteResult result;
  result.facts = {{"bytes", static_cast<double>(object.manifest->total_bytes())}, {"gets", count}};
  result.rows = {{"4 KiB get, p50", 1e6 * Percentile(gets, 0.5), "us", 1e6 * Percentile(raw, 0.5),
                  "raw TCP", Target::AtMost(100)},
                 {"4 KiB get, p99", 1e6 * Percentile(gets, 0.99), "us", 1e6 * Percentile(raw, 0.99),
                  "raw TCP", Target::AtMost(250)}};
  return result;
}

}  // namespace kvtier::bench
