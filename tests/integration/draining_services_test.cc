// Every call of a compressor and of a worker that comes once the server stops is refused, whatever
// it asks for. That those that run are waited for: server_test.cc.
#include <memory>
#include <string>

#include <grpcpp/grpcpp.h>

#include "base/clock.h"
#include "base/status_matchers.h"
#include "compressor/device_tier.h"
#include "compressor/model.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kvtier/v1/compressor.grpc.pb.h"
#include "kvtier/v1/link.grpc.pb.h"
#include "kvtier/v1/worker.grpc.pb.h"
#include "services/client.h"
#include "services/compressor_service.h"
#include "services/drain_signal.h"
#include "services/link/link_sender.h"
#include "services/link/link_service.h"
#include "services/metrics.h"
#include "services/server.h"
#include "services/status_grpc.h"
#include "services/worker_service.h"
#include "tests/testing/fake_communicator.h"
#include "tests/testing/fake_device_backend.h"
#include "tests/testing/local_server.h"
#include "tests/testing/temp_dir.h"
#include "tests/testing/tiny_model.h"

namespace kvtier {
namespace {

using ::testing::HasSubstr;

TEST(DrainingServicesTest, EveryCallThatComesTooLateIsRefused) {
  TempDir dir;
  Metrics metrics;
  DrainSignal drain;
  FakeDeviceBackend device("cuda:0");
  KVTIER_ASSERT_OK_AND_ASSIGN(const std::string folder, WriteTinyModel({}, dir.File("tiny")));
  KVTIER_ASSERT_OK_AND_ASSIGN(const std::unique_ptr<Model> model, Model::Load(folder, device));
  const auto no_store = MakeChannel("127.0.0.1:1");
  StoreClient store(no_store);
  const std::unique_ptr<Transport> transport = MakeGrpcTransport(no_store);
  WorkerService::Options worker_options;
  worker_options.drain = &drain;
  WorkerService worker(worker_options, *model, *transport, store, metrics, Clock::Real());
  CompressorService::Options compressor_options;
  compressor_options.drain = &drain;
  CompressorService compressor(compressor_options, {model.get()}, store, metrics, Clock::Real());
  FakeLinks links(Clock::Real());
  FakeCommunicatorFactory communicators(links);
  LinkCounters counters;
  DeviceTier tier({.bytes_max = uint64_t{1} << 20}, device);
  LinkSender sender({}, tier, communicators, counters, Clock::Real());
  LinkService link({.drain = &drain}, sender, metrics, Clock::Real());
  const auto server = StartLocalServer({&worker, &compressor, &link}, metrics);
  const auto channel = ChannelTo(*server);
  const absl::Time soon = absl::Now() + absl::Minutes(2);
  KVTIER_ASSERT_OK(WorkerClient(channel).GetWorker(soon));
  KVTIER_ASSERT_OK(CompressorClient(channel).ListModels(soon));

  drain.Fire();
  const auto is_refused =
      StatusIs(absl::StatusCode::kUnavailable, HasSubstr("the server is stopping"));
  EXPECT_THAT(WorkerClient(channel).GetWorker(soon).status(), is_refused);
  EXPECT_THAT(WorkerClient(channel).Attach({}, soon).status(), is_refused);
  EXPECT_THAT(WorkerClient(channel).Ask({}, nullptr, soon).status(), is_refused);
  EXPECT_THAT(WorkerClient(channel).Detach(1, soon), is_refused);
  EXPECT_THAT(CompressorClient(channel).ListModels(soon).status(), is_refused);
  EXPECT_THAT(CompressorClient(channel).Compress({}, nullptr, soon).status(), is_refused);
  grpc::ClientContext context;
  context.set_deadline(absl::ToChronoTime(soon));
  const auto transfer = v1::LinkService::NewStub(channel)->Transfer(&context);
  EXPECT_THAT(FromGrpcStatus(transfer->Finish()), is_refused);
}

}  // namespace
}  // namespace kvtier
