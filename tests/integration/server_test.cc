// What every server of ours does the same way (services/server.h), on real sockets.
#include "services/server.h"

#include <signal.h>

#include <array>
#include <atomic>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include <grpc/grpc.h>
#include <grpcpp/impl/client_unary_call.h>
#include <grpcpp/impl/rpc_method.h>
#include <grpcpp/support/byte_buffer.h>
#include <grpcpp/support/sync_stream.h>

#include "base/clock.h"
#include "base/mutex.h"
#include "base/status_matchers.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kvtier/v1/worker.grpc.pb.h"
#include "services/client.h"
#include "services/drain_signal.h"
#include "services/page_client.h"
#include "services/page_service.h"
#include "services/status_grpc.h"
#include "services/store_service.h"
#include "store/page_store.h"
#include "tests/testing/child_process.h"
#include "tests/testing/eventually.h"
#include "tests/testing/files.h"
#include "tests/testing/store_checks.h"
#include "tests/testing/temp_dir.h"

namespace kvtier {
namespace {

using ::testing::HasSubstr;

class ServerTest : public testing::Test {
 protected:
  absl::StatusOr<std::unique_ptr<Server>> Start(const ServerOptions& options) {
    return Server::Start(options, {service_.get()}, metrics_);
  }

  Metrics metrics_;
  const std::unique_ptr<TieredStore> store_ = *OpenTestStore("", 1 << 20, Clock::Real());
  const std::unique_ptr<grpc::Service> service_ =
      MakeStoreService({}, *store_, metrics_, Clock::Real());
  TempDir dir_;
};

absl::Time Soon() { return absl::Now() + absl::Seconds(30); }

TEST_F(ServerTest, ThePortFileNamesPortsThatAnswer) {
  metrics_.ExportStore(*store_);
  KVTIER_ASSERT_OK_AND_ASSIGN(const auto server, Start({.port_file = dir_.File("ports")}));
  EXPECT_EQ(ReadFile(dir_.File("ports")),
            std::to_string(server->port()) + " " + std::to_string(server->metrics_port()) + "\n");
  StoreClient client(MakeChannel("127.0.0.1:" + std::to_string(server->port())));
  KVTIER_EXPECT_OK(client.Stats(Soon()));
  KVTIER_ASSERT_OK_AND_ASSIGN(const std::string page, HttpGet(server->metrics_port(), "/metrics"));
  EXPECT_THAT(page, HasSubstr("kvtier_store_objects 0"));
  EXPECT_THAT(page, HasSubstr("kvtier_rpc_requests_total{code=\"OK\",method=\"Stats\"} 1"));
}

// One unary call of a service that this build has no classes of. Empty: the call failed.
std::string CallRaw(grpc::Channel& channel, const char* method, const std::string& request) {
  grpc::ClientContext context;
  context.set_deadline(absl::ToChronoTime(Soon()));
  const grpc::Slice slice(request);
  const grpc::ByteBuffer request_bytes(&slice, 1);
  grpc::ByteBuffer response;
  const grpc::Status status = grpc::internal::BlockingUnaryCall<grpc::ByteBuffer, grpc::ByteBuffer>(
      &channel, grpc::internal::RpcMethod(method, grpc::internal::RpcMethod::NORMAL_RPC), &context,
      request_bytes, &response);
  if (!status.ok()) return "";
  std::vector<grpc::Slice> slices;
  EXPECT_TRUE(response.Dump(&slices).ok());
  std::string bytes;
  for (const grpc::Slice& part : slices) {
    bytes.append(reinterpret_cast<const char*>(part.begin()), part.size());
  }
  return bytes;
}

TEST_F(ServerTest, AnswersHealthChecks) {
  KVTIER_ASSERT_OK_AND_ASSIGN(const auto server, Start({.metrics_listen = ""}));
  const auto channel = MakeChannel("127.0.0.1:" + std::to_string(server->port()));
  // HealthCheckResponse { status = SERVING }.
  EXPECT_EQ(CallRaw(*channel, "/grpc.health.v1.Health/Check", ""), "\x08\x01");
}

TEST_F(ServerTest, ReflectionNamesTheService) {
  KVTIER_ASSERT_OK_AND_ASSIGN(const auto server, Start({.metrics_listen = ""}));
  const auto channel = MakeChannel("127.0.0.1:" + std::to_string(server->port()));
  grpc::ClientContext context;
  context.set_deadline(absl::ToChronoTime(Soon()));
  const std::unique_ptr<grpc::ClientReaderWriter<grpc::ByteBuffer, grpc::ByteBuffer>> stream(
      grpc::internal::ClientReaderWriterFactory<grpc::ByteBuffer, grpc::ByteBuffer>::Create(
          channel.get(),
          grpc::internal::RpcMethod(
              "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
              grpc::internal::RpcMethod::BIDI_STREAMING),
          &context));
  const grpc::Slice list_services("\x3a\x01*", 3);  // ServerReflectionRequest.list_services = "*"
  ASSERT_TRUE(stream->Write(grpc::ByteBuffer(&list_services, 1)));
  grpc::ByteBuffer response;
  ASSERT_TRUE(stream->Read(&response));
  grpc::Slice answer;
  ASSERT_TRUE(response.DumpToSingleSlice(&answer).ok());
  EXPECT_THAT(std::string(reinterpret_cast<const char*>(answer.begin()), answer.size()),
              HasSubstr("kvtier.v1.StoreService"));
  stream->WritesDone();
  EXPECT_TRUE(stream->Finish().ok());
}

TEST_F(ServerTest, AnAddressInUseIsUnavailableAndNamed) {
  KVTIER_ASSERT_OK_AND_ASSIGN(const auto server, Start({.metrics_listen = ""}));
  EXPECT_EQ(server->metrics_port(), 0);
  const std::string taken = "127.0.0.1:" + std::to_string(server->port());
  EXPECT_THAT(Start({.listen = taken, .metrics_listen = ""}),
              StatusIs(absl::StatusCode::kUnavailable, HasSubstr(taken)));
  EXPECT_THAT(Start({.metrics_listen = taken}),
              StatusIs(absl::StatusCode::kUnavailable, HasSubstr(taken)));
}

TEST_F(ServerTest, APortFileThatCannotBeWrittenIsNamed) {
  const std::string path = dir_.File("no/such/folder");
  EXPECT_THAT(Start({.metrics_listen = "", .port_file = path}),
              StatusIs(absl::StatusCode::kUnavailable, HasSubstr(path)));
}

TEST_F(ServerTest, ASignalDrains) {
  KVTIER_ASSERT_OK_AND_ASSIGN(const auto server, Start({.metrics_listen = ""}));
  StoreClient client(MakeChannel("127.0.0.1:" + std::to_string(server->port())));
  KVTIER_ASSERT_OK(client.Stats(Soon()));
  bool told = false;
  std::thread waiter([&] { server->WaitForSignalAndDrain([&] { told = true; }); });
  kill(getpid(), SIGTERM);
  waiter.join();
  EXPECT_TRUE(told);
  EXPECT_THAT(client.Stats(Soon()), StatusIs(absl::StatusCode::kUnavailable));
}

// Stopping gRPC waits for a poller of its own, up to ten seconds after a socket was full
// (services/grpc_runtime.h). Each in a process of its own: the first of them decides for both.
TEST_F(ServerTest, TheEndOfTheLastServerDoesNotStopGrpc) {
  KVTIER_ASSERT_OK_AND_ASSIGN(auto server, Start({.metrics_listen = ""}));
  server.reset();
  EXPECT_NE(grpc_is_initialized(), 0);
}

TEST(ChannelTest, TheEndOfTheLastChannelDoesNotStopGrpc) {
  MakeChannel("127.0.0.1:1").reset();
  EXPECT_NE(grpc_is_initialized(), 0);
}

// A service of blocking calls, as the compressor and the worker are: each call waits until Open.
class WaitingService final : public v1::WorkerService::Service {
 public:
  explicit WaitingService(DrainSignal* drain = nullptr) : drain_(drain) {}

  grpc::Status GetWorker(grpc::ServerContext*, const v1::GetWorkerRequest*,
                         v1::GetWorkerResponse*) override {
    if (const absl::Status status = CheckNotDraining(drain_); !status.ok()) {
      return ToGrpcStatus(status);
    }
    MutexLock lock(&mutex_);
    ++waiting_;
    changed_.SignalAll();
    while (!is_open_) changed_.Wait(&mutex_);
    return grpc::Status::OK;
  }
  void Open() {
    MutexLock lock(&mutex_);
    is_open_ = true;
    changed_.SignalAll();
  }
  void AwaitWaiting() {
    MutexLock lock(&mutex_);
    while (waiting_ == 0) changed_.Wait(&mutex_);
  }

 private:
  DrainSignal* const drain_;
  Mutex mutex_;
  CondVar changed_;
  int waiting_ ABSL_GUARDED_BY(mutex_) = 0;
  bool is_open_ ABSL_GUARDED_BY(mutex_) = false;
};

TEST_F(ServerTest, MoreWaitingCallsThanThreadsAreRefused) {
  WaitingService waiting;
  ServerOptions options;
  options.metrics_listen = "";
  options.threads_max = 16;
  KVTIER_ASSERT_OK_AND_ASSIGN(const auto server, Server::Start(options, {&waiting}, metrics_));
  const auto channel = MakeChannel("127.0.0.1:" + std::to_string(server->port()));
  std::vector<absl::Status> results(64);
  std::atomic<int> refused{0};
  std::vector<std::thread> callers;
  for (absl::Status& result : results) {
    callers.emplace_back([&] {
      result = WorkerClient(channel).GetWorker(Soon()).status();
      if (absl::IsResourceExhausted(result)) ++refused;
    });
  }
  // No more than 16 can wait.
  while (refused < static_cast<int>(results.size()) - 16) std::this_thread::yield();
  waiting.Open();
  for (std::thread& caller : callers) caller.join();
  for (const absl::Status& result : results) {
    EXPECT_TRUE(result.ok() || absl::IsResourceExhausted(result)) << result;
  }
  EXPECT_LT(refused, static_cast<int>(results.size())) << "those that had a thread are served";
  KVTIER_EXPECT_OK(WorkerClient(channel).GetWorker(Soon()).status());
}

// By our own signal, as a store: gRPC's drain would close the connection, and say nothing of why.
TEST_F(ServerTest, BlockingCallsThatRunAreWaitedForWhileOthersAreRefusedOneByOne) {
  DrainSignal drain;
  WaitingService waiting(&drain);
  ServerOptions options = Draining({.metrics_listen = ""}, drain);
  options.drain_timeout = absl::Minutes(5);
  KVTIER_ASSERT_OK_AND_ASSIGN(const auto server, Server::Start(options, {&waiting}, metrics_));
  const auto channel = MakeChannel("127.0.0.1:" + std::to_string(server->port()));
  absl::Status running;
  std::thread caller(
      [&] { running = WorkerClient(channel).GetWorker(absl::Now() + absl::Minutes(5)).status(); });
  waiting.AwaitWaiting();
  std::thread stopping([&] { server->Shutdown(); });
  EXPECT_TRUE(Eventually([&] { return drain.has_fired(); }));
  for (int i = 0; i < 3; ++i) {
    EXPECT_THAT(WorkerClient(channel).GetWorker(Soon()).status(),
                StatusIs(absl::StatusCode::kUnavailable, HasSubstr("the server is stopping")));
  }
  EXPECT_FALSE(drain.AwaitCalls(absl::InfinitePast(), Clock::Real())) << "one is running";
  waiting.Open();
  caller.join();
  stopping.join();
  KVTIER_EXPECT_OK(running);
  EXPECT_TRUE(drain.AwaitCalls(absl::InfinitePast(), Clock::Real()));
}

TEST_F(ServerTest, AStreamOfHealthKeepsNoServerFromStopping) {
  DrainSignal drain;
  WaitingService waiting(&drain);
  ServerOptions options = Draining({.metrics_listen = ""}, drain);
  options.drain_timeout = absl::Seconds(1);  // Of gRPC's own part, which cancels the stream.
  KVTIER_ASSERT_OK_AND_ASSIGN(const auto server, Server::Start(options, {&waiting}, metrics_));
  const auto channel = MakeChannel("127.0.0.1:" + std::to_string(server->port()));
  grpc::ClientContext context;
  const grpc::Slice whole_server("");  // HealthCheckRequest {}
  const grpc::ByteBuffer request(&whole_server, 1);
  const std::unique_ptr<grpc::ClientReader<grpc::ByteBuffer>> watch(
      grpc::internal::ClientReaderFactory<grpc::ByteBuffer>::Create(
          channel.get(),
          grpc::internal::RpcMethod("/grpc.health.v1.Health/Watch",
                                    grpc::internal::RpcMethod::SERVER_STREAMING),
          &context, request));
  grpc::ByteBuffer health;
  ASSERT_TRUE(watch->Read(&health));
  EXPECT_TRUE(drain.AwaitCalls(absl::InfinitePast(), Clock::Real())) << "it is not counted";
  server->Shutdown();
  while (watch->Read(&health)) {
  }
  watch->Finish();
}

TEST_F(ServerTest, MessagesBeyondTheBufferNeitherKillNorHangIt) {
  ServerOptions options;
  options.metrics_listen = "";
  options.buffer_bytes_max = 4 << 20;  // A message of theirs is larger.
  const std::unique_ptr<PageStore> pages =
      PageStore::Create({.host_budget_bytes = 64 << 20}, nullptr);
  const std::unique_ptr<grpc::Service> service =
      MakePageService(PageServiceOptions(), *pages, metrics_, Clock::Real());
  KVTIER_ASSERT_OK_AND_ASSIGN(const auto server, Server::Start(options, {service.get()}, metrics_));
  const std::string address = "127.0.0.1:" + std::to_string(server->port());
  std::vector<std::thread> callers;
  std::atomic<int> unexpected{0};
  for (int i = 0; i < 8; ++i) {
    callers.emplace_back([&, i] {
      PageClient client(MakeChannel(address));
      const std::vector<std::byte> bytes(8 << 20, std::byte{7});
      std::array<std::byte, PageKey::kSize> key{std::byte(i + 1)};
      const PageClient::PutItem put[] = {{PageKey(key), bytes}};
      const absl::Status status =
          client.Put(put, v1::DURABILITY_HOST, absl::Now() + absl::Seconds(20)).status();
      const bool is_expected = status.ok() || absl::IsResourceExhausted(status) ||
                               absl::IsUnavailable(status) || absl::IsDeadlineExceeded(status);
      if (!is_expected) {
        ADD_FAILURE() << status;
        ++unexpected;
      }
    });
  }
  for (std::thread& caller : callers) caller.join();
  EXPECT_EQ(unexpected, 0);
  absl::Status after;
  do {  // What the others left behind may have to go first.
    after = PageClient(MakeChannel(address)).Stats(Soon()).status();
  } while (absl::IsUnavailable(after) || absl::IsResourceExhausted(after));
  KVTIER_EXPECT_OK(after);
}

}  // namespace
}  // namespace kvtier
