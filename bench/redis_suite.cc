// kvtier-bench redis: what a worker waits for. One context of a Llama-3.1-8B, fetched at ratio 0.3
// with every CRC verified, beside the dense cache of the same context out of Redis, in values of 4
// MiB, several asked for ahead. Both end in memory of the client that has been touched before.

#include <algorithm>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/aligned_bytes.h"
#include "base/status_macros.h"
#include "bench/machine_limits.h"
#include "bench/redis_server.h"
#include "bench/store_process.h"
#include "bench/stored_object.h"
#include "bench/suite.h"
#include "bench/timing.h"
#include "services/client.h"

namespace kvtier::bench {
namespace {

constexpr uint64_t kValueBytes = uint64_t{4} << 20;
// Answers under way: enough that the server never waits for a question.
constexpr size_t kAhead = 4;
constexpr char kName[] = "one context at ratio 0.3, beside the dense one through Redis";

std::string NameOf(size_t value) { return absl::StrCat("dense:", value); }

absl::Status FetchDense(RedisServer& redis, AlignedBytes& into) {
  const size_t count = into.size() / kValueBytes;
  for (size_t i = 0; i < std::min(kAhead, count); ++i) {
    KVTIER_RETURN_IF_ERROR(redis.SendGet(NameOf(i)));
  }
  for (size_t i = 0; i < count; ++i) {
    KVTIER_RETURN_IF_ERROR(redis.ReceiveInto(into.span().subspan(i * kValueBytes, kValueBytes)));
    if (i + kAhead < count) KVTIER_RETURN_IF_ERROR(redis.SendGet(NameOf(i + kAhead)));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<SuiteResult> RunRedisSuite(const StoreSuiteOptions& options) {
  // Llama-3.1-8B: 32 layers of 8 KV heads of 128, 131,072 bytes per token.
  const ObjectShape shape = {.layers = 32,
                             .kv_heads = 8,
                             .head_dim = 128,
                             .tokens = options.is_quick ? 1024u : 16384u,
                             .edges = {0.1, 0.2, 0.3}};
  const Target target = Target::AtLeast(3);
  SuiteResult result;
  const absl::StatusOr<std::unique_ptr<RedisServer>> redis = RedisServer::Start();
  if (absl::IsFailedPrecondition(redis.status())) {
    result.rows.push_back(NotMeasured(kName, "x", target, std::string(redis.status().message())));
    return result;
  }
  KVTIER_RETURN_IF_ERROR(redis.status());

  KVTIER_ASSIGN_OR_RETURN(CompressedObject object, MakeStoredObject(shape, /*seed=*/1));
  const uint64_t bytes = object.manifest->total_bytes();
  const uint64_t dense_bytes = object.manifest->dense_bytes();
  AlignedBytes dense = AlignedBytes::Allocate(dense_bytes);
  for (size_t i = 0; i < dense_bytes / kValueBytes; ++i) {
    KVTIER_RETURN_IF_ERROR(
        (*redis)->Set(NameOf(i), dense.span().subspan(i * kValueBytes, kValueBytes)));
  }
  KVTIER_ASSIGN_OR_RETURN(
      const std::unique_ptr<StoreProcess> store,
      StoreProcess::Start({absl::StrCat("--host_budget_mib=", 2 * (bytes >> 20) + 64)}));
  const auto channel = MakeChannel(store->address());
  KVTIER_RETURN_IF_ERROR(
      StoreClient(channel)
          .Put(object, v1::DURABILITY_HOST, nullptr, CancelToken(), absl::InfiniteFuture())
          .status());
  object.segments.clear();
  const std::unique_ptr<Transport> transport = MakeGrpcTransport(channel);
  KVTIER_ASSIGN_OR_RETURN(const std::unique_ptr<RawTcp> tcp, RawTcp::Connect(bytes));

  KeepingSink sink;
  FetchRequest request;
  request.key = object.manifest->key;
  KVTIER_ASSIGN_OR_RETURN(request.ratio, Ratio::FromDouble(0.3));
  request.min_ratio = request.ratio;
  using Figures = absl::StatusOr<std::vector<double>>;
  KVTIER_ASSIGN_OR_RETURN(
      const auto medians,
      MediansInTurns(
          options.runs,
          {{[&]() -> Figures {
             KVTIER_ASSIGN_OR_RETURN(const double seconds,
                                     Seconds([&] { return FetchDense(**redis, dense); }));
             return std::vector<double>{seconds};
           }},
           {[&]() -> Figures {
             sink.Clear();
             KVTIER_ASSIGN_OR_RETURN(
                 const double seconds,
                 Seconds([&] { return transport->Fetch(request, absl::InfiniteFuture(), sink); }));
             if (sink.bytes() != bytes) return absl::InternalError("a fetch of fewer bytes");
             return std::vector<double>{seconds};
           }},
           {[&]() -> Figures {
             KVTIER_ASSIGN_OR_RETURN(const RawTcp::Sample sample, tcp->Transfer());
             return std::vector<double>{sample.seconds};
           }}}));
  const double tcp_rate = 1e-9 * static_cast<double>(bytes) / medians[2][0];
  result.facts = {{"tokens", shape.tokens},
                  {"bytes", static_cast<double>(bytes)},
                  {"dense_bytes", static_cast<double>(dense_bytes)}};
  result.rows = {
      {kName, medians[0][0] / medians[1][0], "x faster", 0, "", target},
      {"one context at ratio 0.3", 1e3 * medians[1][0], "ms"},
      {"one context, dense, through Redis", 1e3 * medians[0][0], "ms"},
      {"rate of the fetch", 1e-9 * static_cast<double>(bytes) / medians[1][0], "GB/s", tcp_rate,
       "raw TCP"},
      {"rate of Redis", 1e-9 * static_cast<double>(dense_bytes) / medians[0][0], "GB/s", tcp_rate,
       "raw TCP"},
  };
  return result;
}

}  // namespace kvtier::bench
