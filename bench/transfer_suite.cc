// kvtier-bench transfer. Server and client run in one process on loopback, like the raw TCP pair
// they are compared with.

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstring>
#include <thread>  // NOLINT(build/c++11)

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_cat.h"
#include "base/clock.h"
#include "base/status_macros.h"
#include "bench/suite.h"
#include "kvcache/segment.h"
#include "services/client.h"
#include "services/server.h"
#include "services/store_service.h"
#include "store/tiered_store.h"

namespace kvtier::bench {
namespace {

// One layer per 4 MiB, one band: the segment size of the figures in docs/performance.md.
constexpr uint64_t kSegmentBytes = uint64_t{4} << 20;

absl::StatusOr<CompressedObject> MakeObject(uint32_t layers) {
  constexpr uint32_t kHeads = 8, kHeadDim = 128;
  auto manifest = std::make_shared<Manifest>();
  manifest->key = Key(std::array<std::byte, 32>{std::byte{1}});
  manifest->upload_id = MakeUploadId();
  manifest->model_name = "bench";
  manifest->recipe = "kvzip/1";
  manifest->geometry = {.kv_heads = kHeads,
                        .head_dim = kHeadDim,
                        .dtype = DType::kBf16,
                        .layers = std::vector<LayerKind>(layers, LayerKind::kGlobal)};
  const uint32_t rows = static_cast<uint32_t>(kSegmentBytes / (kHeads * (2 * kHeadDim * 2 + 6)));
  manifest->context_tokens = rows;
  BandEntry band;
  band.edge = Ratio();
  CompressedObject object;
  const std::vector<uint32_t> counts(kHeads, rows);
  for (uint32_t layer = 0; layer < layers; ++layer) {
    KVTIER_ASSIGN_OR_RETURN(SegmentBuilder builder,
                            SegmentBuilder::Create(manifest->geometry, counts));
    for (uint32_t head = 0; head < kHeads; ++head) {
      HeadRowsMut out = builder.head(head);
      for (uint32_t row = 0; row < rows; ++row) out.positions[row] = row;
      std::memset(out.keys, static_cast<int>(layer + head), rows * kHeadDim * 2);
      std::memset(out.values, static_cast<int>(layer ^ head), rows * kHeadDim * 2);
    }
    SegmentBuilder::Sealed sealed = std::move(builder).Seal();
    band.layers.push_back(std::move(sealed.entry));
    object.segments.push_back(SegmentRef::Own(std::move(sealed.bytes)));
  }
  manifest->bands.push_back(std::move(band));
  object.manifest = std::move(manifest);
  return object;
}

// Seconds to move `bytes` through one TCP connection on loopback into a prefaulted buffer.
absl::StatusOr<double> TcpSeconds(uint64_t bytes, int runs) {
  const int listener = socket(AF_INET, SOCK_STREAM, 0);
  const auto close_listener = absl::MakeCleanup([listener] { close(listener); });
  sockaddr_in address = {};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t length = sizeof(address);
  if (bind(listener, reinterpret_cast<sockaddr*>(&address), sizeof(address)) != 0 ||
      listen(listener, 1) != 0 ||
      getsockname(listener, reinterpret_cast<sockaddr*>(&address), &length) != 0) {
    return absl::UnavailableError("cannot listen on loopback");
  }
  // Each byte the reader sends asks for one transfer.
  std::thread sender([listener, bytes] {
    const int peer = accept(listener, nullptr, nullptr);
    const std::vector<char> data(kSegmentBytes, 'k');
    char ask;
    while (recv(peer, &ask, 1, 0) == 1) {
      for (uint64_t sent = 0; sent < bytes;) {
        const ssize_t n =
            send(peer, data.data(), std::min<uint64_t>(data.size(), bytes - sent), MSG_NOSIGNAL);
        if (n <= 0) break;
        sent += static_cast<uint64_t>(n);
      }
    }
    close(peer);
  });
  const int reader = socket(AF_INET, SOCK_STREAM, 0);
  absl::StatusOr<double> seconds = absl::UnavailableError("cannot connect on loopback");
  if (connect(reader, reinterpret_cast<sockaddr*>(&address), sizeof(address)) == 0) {
    std::vector<char> into(bytes, 0);
    seconds = MedianSeconds(runs, [&]() -> absl::Status {
      if (send(reader, "x", 1, MSG_NOSIGNAL) != 1) return absl::UnavailableError("send");
      for (uint64_t got = 0; got < bytes;) {
        const ssize_t n = recv(reader, into.data() + got, bytes - got, 0);
        if (n <= 0) return absl::UnavailableError("recv");
        got += static_cast<uint64_t>(n);
      }
      return absl::OkStatus();
    });
  }
  close(reader);
  sender.join();
  return seconds;
}

// Counts what arrives and lets go of it at once.
class CountingSink final : public SegmentSink {
 public:
  absl::Status OnManifest(std::shared_ptr<const Manifest>, uint32_t) override {
    return absl::OkStatus();
  }
  absl::Status OnSegment(BandIndex, LayerIndex, SegmentRef bytes) override {
    bytes_ += bytes.bytes().size();
    return absl::OkStatus();
  }
  uint64_t bytes() const { return bytes_; }

 private:
  uint64_t bytes_ = 0;
};

}  // namespace

absl::StatusOr<std::vector<Figure>> RunTransferSuite(int megabytes, int runs) {
  const uint32_t layers =
      static_cast<uint32_t>(std::max<uint64_t>(1, (uint64_t(megabytes) << 20) / kSegmentBytes));
  KVTIER_ASSIGN_OR_RETURN(const CompressedObject object, MakeObject(layers));
  const uint64_t bytes = object.manifest->total_bytes();

  Metrics metrics;
  KVTIER_ASSIGN_OR_RETURN(
      const std::unique_ptr<TieredStore> store,
      TieredStore::Create({.host_budget_bytes = 4 * bytes}, nullptr, Clock::Real()));
  const std::unique_ptr<grpc::Service> service =
      MakeStoreService({}, *store, metrics, Clock::Real());
  ServerOptions server_options;
  server_options.metrics_listen = "";
  KVTIER_ASSIGN_OR_RETURN(const std::unique_ptr<Server> server,
                          Server::Start(server_options, {service.get()}, metrics));
  const auto channel = MakeChannel(absl::StrCat("127.0.0.1:", server->port()));

  StoreClient client(channel);
  const absl::Time put_begin = Clock::Real().Now();
  const CancelToken cancel;
  KVTIER_RETURN_IF_ERROR(
      client
          .Put(
              object, v1::DURABILITY_HOST, [](uint64_t) {}, cancel, absl::InfiniteFuture())
          .status());
  const double put_seconds = absl::ToDoubleSeconds(Clock::Real().Now() - put_begin);

  const std::unique_ptr<Transport> transport = MakeGrpcTransport(channel);
  FetchRequest request;
  request.key = object.manifest->key;
  KVTIER_ASSIGN_OR_RETURN(
      const double fetch_seconds, MedianSeconds(runs, [&]() -> absl::Status {
        CountingSink sink;
        KVTIER_RETURN_IF_ERROR(transport->Fetch(request, absl::InfiniteFuture(), sink));
        if (sink.bytes() != bytes) return absl::InternalError("short fetch");
        return absl::OkStatus();
      }));
  KVTIER_ASSIGN_OR_RETURN(const double tcp_seconds, TcpSeconds(bytes, runs));
  const double gigabytes = 1e-9 * static_cast<double>(bytes);
  const double tcp = gigabytes / tcp_seconds;
  return std::vector<Figure>{
      {"raw TCP, one connection", tcp, "GB/s"},
      {"fetch, CRCs verified", gigabytes / fetch_seconds, "GB/s", tcp, "raw TCP"},
      {"put to host memory, once", gigabytes / put_seconds, "GB/s", tcp, "raw TCP"},
  };
}

}  // namespace kvtier::bench
