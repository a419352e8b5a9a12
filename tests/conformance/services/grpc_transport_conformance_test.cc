// The gRPC transport over a real store and real sockets, TCP and UNIX; and asked with the hint that
// little will come, right or wrong.
#include <atomic>
#include <memory>
#include <string>

#include "base/clock.h"
#include "base/mutex.h"
#include "kvtier/v1/store.grpc.pb.h"
#include "services/client.h"
#include "services/metrics.h"
#include "services/server.h"
#include "services/store_service.h"
#include "tests/conformance/transport_conformance.h"
#include "tests/testing/local_server.h"
#include "tests/testing/store_checks.h"
#include "tests/testing/temp_dir.h"

namespace kvtier {
namespace {

// A store in the middle, made of generated classes alone: it passes on what the real one sends,
// with damage or not at all. That it can shows that the stream is an ordinary one in both
// directions.
class MiddleService final : public v1::StoreService::Service {
 public:
  explicit MiddleService(const std::shared_ptr<grpc::Channel>& channel)
      : stub_(v1::StoreService::NewStub(channel)) {}

  grpc::Status Fetch(grpc::ServerContext* context, const v1::FetchRequest* request,
                     grpc::ServerWriter<v1::FetchResponse>* writer) override {
    if (stall.load()) return WaitForTheEnd(*context);
    grpc::ClientContext client_context;
    const auto stream = stub_->Fetch(&client_context, *request);
    v1::FetchResponse response;
    while (stream->Read(&response)) {
      if (response.has_frame()) Damage(*response.mutable_frame());
      if (response.has_header()) {
        for (v1::SegmentFrame& frame : *response.mutable_header()->mutable_frames()) Damage(frame);
      }
      // The reader has seen enough; what is under way must still be read before Finish.
      if (!writer->Write(response)) client_context.TryCancel();
    }
    return stream->Finish();
  }
  grpc::Status FetchSmall(grpc::ServerContext* context, const v1::FetchSmallRequest* request,
                          v1::FetchSmallResponse* response) override {
    if (stall.load()) return WaitForTheEnd(*context);
    grpc::ClientContext client_context;
    const grpc::Status status = stub_->FetchSmall(&client_context, *request, response);
    for (v1::SegmentFrame& frame : *response->mutable_header()->mutable_frames()) Damage(frame);
    return status;
  }

  std::atomic<bool> stall{false};

 private:
  grpc::Status WaitForTheEnd(const grpc::ServerContext& context) {
    MutexLock lock(&mutex_);
    while (!context.IsCancelled()) {  // Woken by nobody: looks a hundred times a second.
      never_.WaitWithTimeout(&mutex_, absl::Milliseconds(10));
    }
    return grpc::Status::CANCELLED;
  }
  static void Damage(v1::SegmentFrame& frame) {
    std::string& payload = *frame.mutable_payload();
    payload[payload.size() / 2] ^= 0x10;
  }

  const std::unique_ptr<v1::StoreService::Stub> stub_;
  Mutex mutex_;
  CondVar never_;
};

// Expects little of every fetch.
class HopefulTransport final : public Transport {
 public:
  explicit HopefulTransport(std::unique_ptr<Transport> transport)
      : transport_(std::move(transport)) {}
  absl::Status Fetch(const FetchRequest& request, absl::Time deadline, SegmentSink& sink) override {
    FetchRequest hinted = request;
    hinted.expected_bytes = 1;
    return transport_->Fetch(hinted, deadline, sink);
  }

 private:
  const std::unique_ptr<Transport> transport_;
};

class GrpcWorld final : public TransportWorld {
 public:
  enum class Socket { kTcp, kUnix };
  enum class Hint { kNone, kSmall };
  GrpcWorld(Socket socket, Hint hint)
      : socket_(socket),
        hint_(hint),
        store_(*OpenTestStore("", uint64_t{256} << 20, Clock::Real())),
        service_(MakeStoreService({}, *store_, metrics_, Clock::Real())),
        server_(
            StartLocalServer({service_.get()}, metrics_,
                             {.listen = AddressOf("store"), .drain_timeout = absl::Seconds(1)})),
        transport_(TransportTo("store", *server_)) {}

  TieredStore& store() override { return *store_; }
  Transport& transport() override { return *transport_; }
  void DamageOnTheWay() override { GoThroughTheMiddle(); }
  void Stall() override {
    GoThroughTheMiddle();
    middle_->stall = true;
  }
  void Disconnect() override { server_.reset(); }

 private:
  void GoThroughTheMiddle() {
    middle_ = std::make_unique<MiddleService>(Connect("store", *server_));
    middle_server_ =
        StartLocalServer({middle_.get()}, metrics_,
                         {.listen = AddressOf("middle"), .drain_timeout = absl::Seconds(1)});
    transport_ = TransportTo("middle", *middle_server_);
  }
  std::unique_ptr<Transport> TransportTo(const std::string& name, const Server& server) const {
    auto transport = MakeGrpcTransport(Connect(name, server));
    if (hint_ == Hint::kNone) return transport;
    return std::make_unique<HopefulTransport>(std::move(transport));
  }
  // Where the server of this name listens.
  std::string AddressOf(const std::string& name) const {
    return socket_ == Socket::kUnix ? "unix:" + dir_.File(name) : "127.0.0.1:0";
  }
  std::shared_ptr<grpc::Channel> Connect(const std::string& name, const Server& server) const {
    return MakeChannel(socket_ == Socket::kUnix ? AddressOf(name)
                                                : "127.0.0.1:" + std::to_string(server.port()));
  }

  const TempDir dir_;
  const Socket socket_;
  const Hint hint_;
  Metrics metrics_;
  const std::unique_ptr<TieredStore> store_;
  const std::unique_ptr<grpc::Service> service_;
  std::unique_ptr<Server> server_;
  std::unique_ptr<MiddleService> middle_;
  std::unique_ptr<Server> middle_server_;
  std::unique_ptr<Transport> transport_;
};

TransportCase CaseOf(const std::string& name, GrpcWorld::Socket socket,
                     GrpcWorld::Hint hint = GrpcWorld::Hint::kNone) {
  return {name, [=] { return std::make_unique<GrpcWorld>(socket, hint); }};
}

INSTANTIATE_TEST_SUITE_P(Grpc, TransportConformanceTest,
                         testing::Values(CaseOf("tcp", GrpcWorld::Socket::kTcp),
                                         CaseOf("unix", GrpcWorld::Socket::kUnix),
                                         CaseOf("tcp_hinted", GrpcWorld::Socket::kTcp,
                                                GrpcWorld::Hint::kSmall)),
                         [](const auto& test) { return test.param.name; });

}  // namespace
}  // namespace kvtier
