// The real kvtier-store, killed and restarted: which objects survive, to the byte. Kills under
// load: store_kill_test.cc.
#include <signal.h>

#include <functional>
#include <map>
#include <memory>
#include <ostream>
#include <string>
#include <thread>
#include <vector>

#include <grpcpp/client_context.h>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_split.h"
#include "base/status_matchers.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kvtier/v1/store.grpc.pb.h"
#include "services/client.h"
#include "services/status_grpc.h"
#include "tests/testing/child_process.h"
#include "tests/testing/segment_sinks.h"
#include "tests/testing/temp_dir.h"
#include "tests/testing/test_object.h"

namespace kvtier {
namespace {

using ::testing::HasSubstr;

absl::Time Soon() { return absl::Now() + absl::Seconds(60); }

class StoreProcessTest : public testing::Test {
 protected:
  void Start(const std::vector<std::string>& flags = {}, const std::string& crash_at = "") {
    transport_.reset();
    client_.reset();
    store_.reset();
    std::vector<std::string> all = {"--data_dir=" + dir_.File("data")};
    all.insert(all.end(), flags.begin(), flags.end());
    std::vector<std::pair<std::string, std::string>> environment;
    if (!crash_at.empty()) environment.emplace_back("KVTIER_CRASH_AT", crash_at);
    auto store = ServerProcess::Start("kvtier-store", all, environment);
    ASSERT_THAT(store, IsOk());
    store_ = *std::move(store);
    const auto channel = MakeChannel(store_->address());
    client_ = std::make_unique<StoreClient>(channel);
    transport_ = MakeGrpcTransport(channel);
    stub_ = v1::StoreService::NewStub(channel);
  }

  // `gone` keeps the client from trying again and again once the store is known to be dead.
  absl::Status Put(const CompressedObject& object,
                   const std::function<void(uint64_t)>& on_bytes = nullptr,
                   const CancelToken& gone = CancelToken()) {
    return client_->Put(object, v1::DURABILITY_DISK, on_bytes, gone, Soon()).status();
  }

  static FetchRequest Whole(const CompressedObject& object) {
    FetchRequest request;  // Everything, or nothing.
    request.key = object.manifest->key;
    return request;
  }

  // OK: the store serves exactly this upload, whole. NOT_FOUND: it knows nothing of the key.
  absl::Status Check(const CompressedObject& object) {
    ComparingSink sink(object);
    const absl::Status fetched = transport_->Fetch(Whole(object), Soon(), sink);
    if (!fetched.ok()) return fetched;
    return client_->Verify(object.manifest->key, Soon()).status();
  }

  std::vector<std::string> StoredKeys() {
    const absl::StatusOr<v1::ListResponse> page = client_->List("", 0, Soon());
    EXPECT_THAT(page, IsOk());
    std::vector<std::string> keys;
    for (const v1::ObjectSummary& object : page->objects()) keys.push_back(object.name().key());
    return keys;
  }

  absl::StatusOr<v1::QueryUploadResponse> QueryUpload(const CompressedObject& object) {
    grpc::ClientContext context;
    v1::QueryUploadRequest request;
    request.set_upload_id(std::string(object.manifest->upload_id.AsStringView()));
    v1::QueryUploadResponse response;
    const grpc::Status status = stub_->QueryUpload(&context, request, &response);
    if (!status.ok()) return FromGrpcStatus(status);
    return response;
  }

  TempDir dir_;
  std::unique_ptr<ServerProcess> store_;
  std::unique_ptr<StoreClient> client_;
  std::unique_ptr<Transport> transport_;
  std::unique_ptr<v1::StoreService::Stub> stub_;
};

TEST_F(StoreProcessTest, AcknowledgedObjectsSurviveSigkill) {
  Start();
  std::vector<CompressedObject> objects;
  for (uint64_t seed = 1; seed <= 4; ++seed) {
    objects.push_back(MakeTestObject({.layers = 2 + static_cast<uint32_t>(seed), .seed = seed}));
    KVTIER_ASSERT_OK(Put(objects.back()));
  }
  EXPECT_EQ(store_->Kill().signal, SIGKILL);
  Start();
  for (const CompressedObject& object : objects) KVTIER_EXPECT_OK(Check(object));
  EXPECT_EQ(StoredKeys().size(), objects.size());
}

TEST_F(StoreProcessTest, HostObjectsEndWithTheProcess) {
  Start();
  const CompressedObject object = MakeTestObject({});
  KVTIER_ASSERT_OK(
      client_->Put(object, v1::DURABILITY_HOST, nullptr, CancelToken(), Soon()).status());
  KVTIER_EXPECT_OK(Check(object));
  store_->Kill();
  Start();
  EXPECT_THAT(Check(object), StatusIs(absl::StatusCode::kNotFound));
}

// Killed at one point of a Put: afterwards the object is there whole, or not at all.
struct CrashPoint {
  const char* name;
  bool survives;
};
void PrintTo(const CrashPoint& point, std::ostream* os) { *os << point.name; }

class StoreCrashTest : public StoreProcessTest, public testing::WithParamInterface<CrashPoint> {};

TEST_P(StoreCrashTest, LeavesAWholeObjectOrNone) {
#ifndef KVTIER_SYNC_POINTS
  GTEST_SKIP() << "this build has no sync points";
#endif
  const CompressedObject before = MakeTestObject({.seed = 1});
  const CompressedObject object = MakeTestObject({.layers = 4, .seed = 2});
  Start();
  KVTIER_ASSERT_OK(Put(before));
  store_->Kill();

  Start({}, GetParam().name);
  CancelToken gone;
  absl::StatusOr<ExitStatus> exit;
  std::thread watcher([&] {
    exit = store_->process().Wait(absl::Seconds(60));
    gone.Cancel();
  });
  EXPECT_THAT(Put(object, nullptr, gone), testing::AnyOf(StatusIs(absl::StatusCode::kUnavailable),
                                                         StatusIs(absl::StatusCode::kCancelled)));
  watcher.join();
  KVTIER_ASSERT_OK(exit);
  EXPECT_EQ(exit->signal, SIGKILL);

  Start();
  KVTIER_EXPECT_OK(Check(before));
  if (GetParam().survives) {
    KVTIER_EXPECT_OK(Check(object));
  } else {
    EXPECT_THAT(Check(object), StatusIs(absl::StatusCode::kNotFound));
    EXPECT_EQ(StoredKeys().size(), 1u);
    EXPECT_THAT(QueryUpload(object), StatusIs(absl::StatusCode::kNotFound));
  }
  // Either way the next attempt works.
  KVTIER_EXPECT_OK(Put(object));
  KVTIER_EXPECT_OK(Check(object));
}

INSTANTIATE_TEST_SUITE_P(Put, StoreCrashTest,
                         testing::Values(CrashPoint{"store.put.before_disk", false},
                                         CrashPoint{"store.put_band.before_file:2", false},
                                         CrashPoint{"store.put_band.after_file:6", false},
                                         CrashPoint{"store.seal.before_segments", false},
                                         CrashPoint{"store.seal.before_manifest", false},
                                         CrashPoint{"store.seal.after_manifest", true},
                                         CrashPoint{"store.put.after_disk", true},
                                         CrashPoint{"store.put.after_publish", true}),
                         [](const auto& test) {
                           std::string name = test.param.name;
                           std::replace_if(
                               name.begin(), name.end(),
                               [](char c) { return c == '.' || c == ':'; }, '_');
                           return name;
                         });

TEST_F(StoreProcessTest, ACutPutResumesAtThePersistedSize) {
  Start();
  const CompressedObject object =
      MakeTestObject({.layers = 4, .kv_heads = 4, .head_dim = 128, .context_tokens = 4000});
  CancelToken cut;
  const uint64_t half = object.manifest->total_bytes() / 2;
  EXPECT_THAT(client_
                  ->Put(
                      object, v1::DURABILITY_DISK,
                      [&](uint64_t offset) {
                        if (offset >= half) cut.Cancel();
                      },
                      cut, Soon())
                  .status(),
              StatusIs(absl::StatusCode::kCancelled));
  KVTIER_ASSERT_OK_AND_ASSIGN(const v1::QueryUploadResponse uploaded, QueryUpload(object));
  // What had been read from the socket when the stream was cut.
  EXPECT_GT(uploaded.uploaded_bytes(), 0u);
  EXPECT_LE(uploaded.uploaded_bytes(), object.manifest->total_bytes());
  EXPECT_THAT(Check(object), StatusIs(absl::StatusCode::kNotFound)) << "not sealed yet";

  uint64_t first = 0;
  KVTIER_ASSERT_OK(Put(object, [&](uint64_t offset) {
    if (first == 0) first = offset;
  }));
  EXPECT_GT(first, uploaded.uploaded_bytes()) << "sent again what was there";
  KVTIER_EXPECT_OK(Check(object));
}

TEST_F(StoreProcessTest, AnUnsealedUploadDoesNotOutliveTheProcess) {
  Start();
  const CompressedObject object =
      MakeTestObject({.layers = 4, .kv_heads = 4, .head_dim = 128, .context_tokens = 2000});
  CancelToken cut;
  EXPECT_THAT(client_
                  ->Put(
                      object, v1::DURABILITY_DISK, [&](uint64_t) { cut.Cancel(); }, cut, Soon())
                  .status(),
              StatusIs(absl::StatusCode::kCancelled));
  KVTIER_ASSERT_OK_AND_ASSIGN(const v1::StatsResponse before, client_->Stats(Soon()));
  store_->Kill();
  Start();
  EXPECT_THAT(QueryUpload(object), StatusIs(absl::StatusCode::kNotFound));
  KVTIER_ASSERT_OK_AND_ASSIGN(const v1::StatsResponse after, client_->Stats(Soon()));
  EXPECT_NE(before.incarnation(), after.incarnation());
  KVTIER_ASSERT_OK(Put(object));
  KVTIER_EXPECT_OK(Check(object));
}

TEST_F(StoreProcessTest, AnObjectThatDoesNotFitIsRefusedWhole) {
  Start({"--disk_budget_mib=8"});
  const CompressedObject small = MakeTestObject({.seed = 1});
  KVTIER_ASSERT_OK(Put(small));
  const CompressedObject large = MakeTestObject(
      {.layers = 4, .kv_heads = 4, .head_dim = 128, .context_tokens = 1000, .seed = 2});
  ASSERT_GT(large.manifest->total_bytes(), 7u << 20);
  const absl::Status status = Put(large);
  EXPECT_THAT(status, StatusIs(absl::StatusCode::kResourceExhausted, HasSubstr("disk budget")));
  EXPECT_FALSE(RetryAfter(status).has_value()) << "waiting cannot help";
  EXPECT_THAT(Check(large), StatusIs(absl::StatusCode::kNotFound));
  store_->Kill();
  Start({"--disk_budget_mib=8"});
  EXPECT_THAT(Check(large), StatusIs(absl::StatusCode::kNotFound));
  EXPECT_THAT(StoredKeys(), testing::SizeIs(testing::Le(1)));
}

TEST_F(StoreProcessTest, SigtermFinishesWhatRunsAndRefusesWhatIsNew) {
  Start();
  // About 40 MB: far more than the buffers of a connection hold.
  const CompressedObject object =
      MakeTestObject({.layers = 4, .kv_heads = 4, .head_dim = 128, .context_tokens = 5000});
  KVTIER_ASSERT_OK(Put(object));
  v1::FetchRequest request;
  request.mutable_name()->set_key(std::string(object.manifest->key.AsStringView()));
  grpc::ClientContext context;
  const auto stream = stub_->Fetch(&context, request);
  v1::FetchResponse response;
  ASSERT_TRUE(stream->Read(&response));
  ASSERT_TRUE(response.has_header());
  const uint64_t announced = response.header().payload_bytes();

  store_->process().Signal(SIGTERM);
  absl::Status refused;
  do {
    StoreClient newcomer(MakeChannel(store_->address()));
    refused = newcomer.Stats(Soon()).status();
  } while (refused.ok());
  EXPECT_THAT(refused, StatusIs(absl::StatusCode::kUnavailable));
  EXPECT_TRUE(store_->process().running()) << "a call still runs";

  uint64_t received = 0;
  while (stream->Read(&response)) received += response.frame().payload().size();
  KVTIER_EXPECT_OK(FromGrpcStatus(stream->Finish()));
  EXPECT_EQ(received, announced);
  KVTIER_ASSERT_OK_AND_ASSIGN(const ExitStatus exit, store_->process().Wait(absl::Seconds(30)));
  EXPECT_EQ(exit.exit_code, 0) << store_->output();
}

TEST_F(StoreProcessTest, CountersAddUp) {
  Start();
  const CompressedObject object = MakeTestObject({});
  KVTIER_ASSERT_OK(Put(object));
  store_->Kill();
  Start();
  ComparingSink sink(object);
  KVTIER_ASSERT_OK(transport_->Fetch(Whole(object), Soon(), sink));  // Disk.
  KVTIER_ASSERT_OK(transport_->Fetch(Whole(object), Soon(), sink));  // Host.
  EXPECT_THAT(transport_->Fetch(Whole(MakeTestObject({.seed = 5})), Soon(), sink),
              StatusIs(absl::StatusCode::kNotFound));
  FetchRequest pinned = Whole(object);
  pinned.upload_id = UploadId();
  EXPECT_THAT(transport_->Fetch(pinned, Soon(), sink), StatusIs(absl::StatusCode::kAborted));

  KVTIER_ASSERT_OK_AND_ASSIGN(const std::string page, HttpGet(store_->metrics_port(), "/metrics"));
  std::map<std::string, double> values;
  for (const absl::string_view line : absl::StrSplit(page, '\n')) {
    const std::vector<std::string> words = absl::StrSplit(line, ' ');
    double value = 0;
    if (words.size() == 2 && absl::SimpleAtod(words[1], &value)) values[words[0]] = value;
  }
  EXPECT_EQ(values["kvtier_store_requests_total"], 4);
  EXPECT_EQ(values["kvtier_store_disk_hits_total"], 1);
  EXPECT_EQ(values["kvtier_store_host_hits_total"], 1);
  EXPECT_EQ(values["kvtier_store_misses_total"], 1);
  EXPECT_EQ(values["kvtier_store_failures_total"], 1);
  EXPECT_EQ(values["kvtier_store_fetch_bytes_total"], 2.0 * object.manifest->total_bytes());
  EXPECT_EQ(values["kvtier_rpc_requests_total{code=\"OK\",method=\"Fetch\"}"], 2);
  EXPECT_EQ(values["kvtier_rpc_requests_total{code=\"NOT_FOUND\",method=\"Fetch\"}"], 1);
  EXPECT_EQ(values["kvtier_rpc_requests_total{code=\"ABORTED\",method=\"Fetch\"}"], 1);
}

TEST_F(StoreProcessTest, AFolderBelongsToOneProcess) {
  Start();
  const auto second = ServerProcess::Start("kvtier-store", {"--data_dir=" + dir_.File("data")});
  EXPECT_THAT(second, StatusIs(absl::StatusCode::kUnavailable, HasSubstr("FAILED_PRECONDITION")));
}

TEST_F(StoreProcessTest, CommandLinesThatMakeNoSenseAreRefused) {
  const auto output_of = [&](const std::vector<std::string>& flags) {
    const auto server = ServerProcess::Start("kvtier-store", flags);
    EXPECT_THAT(server, StatusIs(absl::StatusCode::kUnavailable, HasSubstr("ended")));
    return std::string(server.status().message());
  };
  EXPECT_THAT(output_of({"--no_such_flag=1"}), HasSubstr("no_such_flag"));
  EXPECT_THAT(output_of({"stray"}), HasSubstr("stray"));
  EXPECT_THAT(output_of({"--log_format=xml"}), HasSubstr("xml"));
  EXPECT_THAT(output_of({"--host_budget_mib=0"}), HasSubstr("host_budget_mib"));
  EXPECT_THAT(output_of({"--disk_budget_mib=5"}), HasSubstr("--data_dir"));
}

}  // namespace
}  // namespace kvtier
