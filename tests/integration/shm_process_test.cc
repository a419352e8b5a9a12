// The real kvtier-store and a reader in a process of its own that has mapped the store's memory:
// stopped under eviction pressure, killed, and outliving the store.
//
// KVTIER_TEST_SIGSTOP_SECONDS: how long the reader is stopped (2 if it is not set; .ci/run asks for
// 60 of the release binary).
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <memory>
#include <string>
#include <vector>

#include <grpcpp/client_context.h>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "base/log.h"
#include "base/status_matchers.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kvtier/v1/store.grpc.pb.h"
#include "services/client.h"
#include "services/shm_socket.h"
#include "services/shm_transport.h"
#include "tests/testing/child_process.h"
#include "tests/testing/eventually.h"
#include "tests/testing/segment_sinks.h"
#include "tests/testing/temp_dir.h"
#include "tests/testing/test_object.h"

namespace kvtier {
namespace {

using ::testing::HasSubstr;

constexpr uint64_t kHostMib = 24;

absl::Time Soon() { return absl::Now() + absl::Seconds(60); }

absl::Duration StopAskedFor() {
  const char* const text = std::getenv("KVTIER_TEST_SIGSTOP_SECONDS");
  int seconds = 2;
  KVTIER_CHECK(text == nullptr || absl::SimpleAtoi(text, &seconds))
      << "KVTIER_TEST_SIGSTOP_SECONDS=" << text;
  return absl::Seconds(seconds);
}

// Of about 4 MB, in bands of which every one has a file.
CompressedObject ObjectOf(uint64_t seed) {
  return MakeTestObject(
      {.layers = 4, .kv_heads = 4, .head_dim = 64, .context_tokens = 1000, .seed = seed});
}

// A process that has mapped an object, and nothing else to do than to compare it when asked. It is
// stopped (SIGSTOP) from the beginning. Forked: it touches only what was there before.
class Reader {
 public:
  // `sink` is let go of here, so that the reader alone holds the lease.
  Reader(std::unique_ptr<KeepingSink> sink, const CompressedObject& object) {
    int ends[2] = {-1, -1};
    KVTIER_CHECK_EQ(pipe(ends), 0);
    answers_ = OwnedFd(ends[0]);
    OwnedFd writer(ends[1]);
    pid_ = fork();
    KVTIER_CHECK(pid_ >= 0);
    if (pid_ == 0) {
      raise(SIGSTOP);
      const char verdict = sink->Equals(object) ? 'y' : 'n';
      if (write(writer.get(), &verdict, 1) != 1) _exit(1);
      for (;;) pause();
    }
    int status = 0;
    KVTIER_CHECK_EQ(waitpid(pid_, &status, WUNTRACED), pid_);
    KVTIER_CHECK(WIFSTOPPED(status));
  }
  ~Reader() { Kill(); }
  Reader(const Reader&) = delete;
  Reader& operator=(const Reader&) = delete;

  // Lets it go on; 'y': every byte is right.
  char Verdict() {
    kill(pid_, SIGCONT);
    char verdict = 0;
    KVTIER_CHECK_EQ(read(answers_.get(), &verdict, 1), 1) << "the reader died";
    return verdict;
  }
  void Kill() {
    if (pid_ < 0) return;
    kill(pid_, SIGKILL);
    waitpid(std::exchange(pid_, -1), nullptr, 0);
  }

 private:
  OwnedFd answers_;
  pid_t pid_ = -1;
};

class ShmProcessTest : public testing::Test {
 protected:
  void Start() {
    store_.reset();
    auto store = ServerProcess::Start(
        "kvtier-store",
        {"--data_dir=" + dir_.File("data"), "--host_budget_mib=" + std::to_string(kHostMib),
         "--disk_budget_mib=64", "--shm_socket=" + socket_, "--drain_timeout=1h"});
    ASSERT_THAT(store, IsOk());
    store_ = *std::move(store);
    const auto channel = MakeChannel(store_->address());
    client_ = std::make_unique<StoreClient>(channel);
    stub_ = v1::StoreService::NewStub(channel);
  }
  absl::Status Put(const CompressedObject& object) {
    return client_->Put(object, v1::DURABILITY_DISK, nullptr, CancelToken(), Soon()).status();
  }
  absl::Status Fetch(const CompressedObject& object, KeepingSink& sink) {
    FetchRequest request;
    request.key = object.manifest->key;
    return MakeShmTransport({.path = socket_})->Fetch(request, Soon(), sink);
  }
  std::unique_ptr<KeepingSink> Map(const CompressedObject& object) {
    auto sink = std::make_unique<KeepingSink>();
    KVTIER_EXPECT_OK(Fetch(object, *sink));
    EXPECT_TRUE(sink->Equals(object));
    return sink;
  }
  uint64_t Leases() {
    const absl::StatusOr<v1::StatsResponse> stats = client_->Stats(Soon());
    EXPECT_THAT(stats, IsOk());
    return stats.ok() ? stats->leases().leases() : 0;
  }

  const TempDir dir_;
  const std::string socket_ = dir_.File("shm");
  std::unique_ptr<ServerProcess> store_;
  std::unique_ptr<StoreClient> client_;
  std::unique_ptr<v1::StoreService::Stub> stub_;
};

TEST_F(ShmProcessTest, AStoppedReaderLosesNoByteUnderPressureAndADeadOneHoldsNothing) {
  Start();
  const CompressedObject held = ObjectOf(1);
  KVTIER_ASSERT_OK(Put(held));
  Reader reader(Map(held), held);
  ASSERT_EQ(Leases(), 1u);

  // Many times what host memory and disk hold, so that everything else is evicted over and over.
  uint64_t seed = 2;
  for (const absl::Time end = absl::Now() + StopAskedFor(); seed < 40 || absl::Now() < end;
       ++seed) {
    KVTIER_ASSERT_OK(Put(ObjectOf(seed)));
    if (seed == 20) {
      KVTIER_ASSERT_OK(client_->Delete(held.manifest->key, /*keep_ratio=*/0, Soon()).status());
    }
  }
  KVTIER_ASSERT_OK_AND_ASSIGN(const v1::StatsResponse stats, client_->Stats(Soon()));
  EXPECT_EQ(stats.leases().leases(), 1u);
  EXPECT_GE(stats.leases().bytes(), held.manifest->total_bytes());
  EXPECT_LE(stats.host().bytes(), stats.host().budget_bytes());
  KVTIER_ASSERT_OK_AND_ASSIGN(const std::string metrics,
                              HttpGet(store_->metrics_port(), "/metrics"));
  EXPECT_TRUE(absl::StrContains(metrics, "kvtier_store_leases 1\n"));
  EXPECT_TRUE(absl::StrContains(metrics, "kvtier_store_shm_leases_total 1\n"));
  for (const char* const name :
       {"kvtier_store_bands_demoted_total", "kvtier_store_bands_dropped_total"}) {
    EXPECT_FALSE(absl::StrContains(metrics, absl::StrCat(name, " 0\n")))
        << name << ": no pressure, so the test shows nothing";
  }
  EXPECT_EQ(reader.Verdict(), 'y') << "a byte was wrong after " << seed << " puts";
  EXPECT_EQ(Leases(), 1u);

  reader.Kill();
  EXPECT_TRUE(Eventually([&] { return Leases() == 0; }));
  RecordProperty("puts", static_cast<int>(seed));
}

TEST_F(ShmProcessTest, AMappedReaderOutlivesTheStoreAndTheNextOneServesANewFile) {
  Start();
  const CompressedObject object = ObjectOf(1);
  KVTIER_ASSERT_OK(Put(object));
  Reader reader(Map(object), object);
  const std::unique_ptr<KeepingSink> ours = Map(object);
  store_->Kill();  // SIGKILL: it leaves its socket behind.
  EXPECT_TRUE(ours->Equals(object));
  KeepingSink nothing;
  EXPECT_THAT(Fetch(object, nothing), StatusIs(absl::StatusCode::kUnavailable));

  Start();
  EXPECT_EQ(Leases(), 0u);
  const std::unique_ptr<KeepingSink> again = Map(object);
  EXPECT_EQ(Leases(), 1u);
  for (uint64_t seed = 2; seed < 10; ++seed) KVTIER_ASSERT_OK(Put(ObjectOf(seed)));
  EXPECT_TRUE(ours->Equals(object));
  EXPECT_TRUE(again->Equals(object));
  EXPECT_EQ(reader.Verdict(), 'y');
}

// With a drain time-out of an hour, a store that waited for its leases would not end in this test.
TEST_F(ShmProcessTest, ASigtermDoesNotWaitForLeases) {
  Start();
  const CompressedObject object = ObjectOf(1);
  KVTIER_ASSERT_OK(Put(object));
  const std::unique_ptr<KeepingSink> mapped = Map(object);
  grpc::ClientContext context;
  const auto stream = stub_->Lease(&context);
  v1::LeaseRequest request;
  request.mutable_acquire()->mutable_name()->set_key(
      std::string(object.manifest->key.AsStringView()));
  v1::LeaseResponse response;
  ASSERT_TRUE(stream->Write(request));
  ASSERT_TRUE(stream->Read(&response));
  ASSERT_TRUE(response.has_granted());
  EXPECT_EQ(Leases(), 2u);

  KVTIER_ASSERT_OK_AND_ASSIGN(const ExitStatus exit, store_->Stop(absl::Seconds(100)));
  EXPECT_EQ(exit.exit_code, 0);
  EXPECT_FALSE(stream->Read(&response));
  EXPECT_EQ(stream->Finish().error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_TRUE(mapped->Equals(object));
}

TEST_F(ShmProcessTest, FlagsThatMakeNoSenseAreRefused) {
  const auto start = [&](const std::string& flag) {
    return ServerProcess::Start("kvtier-store", {flag}).status();
  };
  EXPECT_THAT(start("--lease_fraction=0"),
              StatusIs(absl::StatusCode::kUnavailable, HasSubstr("--lease_fraction")));
  EXPECT_THAT(start("--shm_socket=" + std::string(200, 'x')),
              StatusIs(absl::StatusCode::kUnavailable, HasSubstr("socket")));
  EXPECT_THAT(start("--shm_socket=/nonexistent/socket"),
              StatusIs(absl::StatusCode::kUnavailable, HasSubstr("/nonexistent/socket")));
}

}  // namespace
}  // namespace kvtier
