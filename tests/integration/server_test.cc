// What every server of ours does the same way (services/server.h), on real sockets.
#include "services/server.h"

#include <signal.h>

#include <string>
#include <thread>
#include <vector>

#include <grpcpp/impl/client_unary_call.h>
#include <grpcpp/impl/rpc_method.h>
#include <grpcpp/support/byte_buffer.h>
#include <grpcpp/support/sync_stream.h>

#include "base/clock.h"
#include "base/status_matchers.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "services/client.h"
#include "services/store_service.h"
#include "tests/testing/child_process.h"
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

}  // namespace
}  // namespace kvtier
