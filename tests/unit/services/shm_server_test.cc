// The shared memory server and transport over a real store: whose memory goes to whom, how long a
// lease lasts, and what either end does with a hostile peer.
#include "services/shm_server.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "base/clock.h"
#include "base/log.h"
#include "base/status_matchers.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kvtier/v1/shm.pb.h"
#include "services/client.h"
#include "services/shm_socket.h"
#include "services/shm_transport.h"
#include "services/status_grpc.h"
#include "tests/testing/eventually.h"
#include "tests/testing/segment_sinks.h"
#include "tests/testing/store_checks.h"
#include "tests/testing/temp_dir.h"
#include "tests/testing/test_object.h"

namespace kvtier {
namespace {

using testing::HasSubstr;

absl::Time Soon() { return absl::Now() + absl::Seconds(50); }

class ShmServerTest : public testing::Test {
 protected:
  ShmServerTest() { Open(); }

  void Open(uint64_t host_bytes = uint64_t{64} << 20, const LeaseTable::Options& options = {}) {
    server_.reset();
    leases_.reset();
    store_.reset();
    absl::StatusOr<std::unique_ptr<TieredStore>> store =
        OpenTestStore(dir_.File("store"), host_bytes, Clock::Real());
    KVTIER_CHECK_OK(store);
    store_ = *std::move(store);
    leases_ = std::make_unique<LeaseTable>(options, *store_);
    Serve({.path = path_});
  }
  void Serve(const ShmServer::Options& options) {
    server_.reset();
    absl::StatusOr<std::unique_ptr<ShmServer>> server =
        ShmServer::Start(options, *leases_, metrics_);
    KVTIER_CHECK_OK(server);
    server_ = *std::move(server);
  }
  void Put(const CompressedObject& object, const TenantId& tenant = TenantId()) {
    KVTIER_ASSERT_OK(store_->Put(tenant, object, Durability::kDisk));
  }
  static FetchRequest RequestFor(const CompressedObject& object) {
    FetchRequest request;
    request.key = object.manifest->key;
    return request;
  }
  absl::Status Fetch(const FetchRequest& request, KeepingSink& sink) {
    return MakeShmTransport({.path = path_})->Fetch(request, Soon(), sink);
  }
  absl::StatusOr<ShmMessage> Exchange(const std::string& bytes) {
    absl::StatusOr<OwnedFd> socket = ConnectUnix(path_, Soon());
    if (!socket.ok()) return socket.status();
    const absl::Status sent = SendShmMessage(socket->get(), bytes, {}, Soon());
    if (!sent.ok()) return sent;
    return ReceiveShmMessage(socket->get(), 1 << 20, 16, Soon());
  }
  absl::Status Refusal(const std::string& bytes) {
    const absl::StatusOr<ShmMessage> answer = Exchange(bytes);
    if (!answer.ok()) return answer.status();
    EXPECT_TRUE(answer->descriptors.empty());
    v1::ShmResponse response;
    EXPECT_TRUE(response.ParseFromString(answer->bytes));
    return StatusFromRpcStatusBytes(response.refused());
  }
  v1::ShmAcquire AcquireFor(const CompressedObject& object) {
    v1::ShmAcquire acquire;
    acquire.set_version(1);
    acquire.mutable_acquire()->mutable_name()->set_key(
        std::string(object.manifest->key.AsStringView()));
    return acquire;
  }
  // A server that answers one client with these files, whatever it asks.
  absl::Status FetchFrom(const CompressedObject& object, std::vector<OwnedFd> files,
                         uint32_t band_count) {
    const std::string path = dir_.File("hostile");
    const OwnedFd listener = *ListenUnix(path, 0600);
    std::thread peer([&] {
      pollfd entry = {.fd = listener.get(), .events = POLLIN, .revents = 0};
      KVTIER_CHECK_EQ(poll(&entry, 1, -1), 1);
      const OwnedFd client(accept4(listener.get(), nullptr, nullptr, SOCK_NONBLOCK));
      ReceiveShmMessage(client.get(), 1 << 20, 0, Soon()).IgnoreError();
      v1::ShmResponse response;
      response.mutable_granted()->set_manifest(EncodeManifest(*object.manifest));
      response.mutable_granted()->mutable_lease()->set_band_count(band_count);
      std::vector<int> descriptors;
      for (const OwnedFd& file : files) descriptors.push_back(file.get());
      SendShmMessage(client.get(), response.SerializeAsString(), descriptors, Soon()).IgnoreError();
    });
    KeepingSink sink;
    const absl::Status status =
        MakeShmTransport({.path = path})->Fetch(RequestFor(object), Soon(), sink);
    EXPECT_TRUE(sink.segments.empty());
    peer.join();
    return status;
  }
  static OwnedFd FileOf(uint64_t bytes, int seals) {
    OwnedFd file(memfd_create("test", MFD_CLOEXEC | MFD_ALLOW_SEALING));
    KVTIER_CHECK_EQ(ftruncate(file.get(), static_cast<off_t>(bytes)), 0);
    if (seals != 0) KVTIER_CHECK_EQ(fcntl(file.get(), F_ADD_SEALS, seals), 0);
    return file;
  }

  const TempDir dir_;
  const std::string path_ = dir_.File("socket");
  const CompressedObject a_ = MakeTestObject({.seed = 1});
  Metrics metrics_;
  std::unique_ptr<TieredStore> store_;
  std::unique_ptr<LeaseTable> leases_;
  std::unique_ptr<ShmServer> server_;
};

TEST_F(ShmServerTest, TheLeaseLastsAsLongAsAnySegment) {
  Put(a_);
  KeepingSink sink;
  KVTIER_ASSERT_OK(Fetch(RequestFor(a_), sink));
  EXPECT_TRUE(sink.Equals(a_));
  EXPECT_EQ(leases_->usage().leases, 1u);
  SegmentRef last = sink.segments.back().bytes;
  sink.segments.clear();
  EXPECT_EQ(leases_->usage().leases, 1u);
  last = SegmentRef();
  EXPECT_TRUE(Eventually([&] { return leases_->usage().leases == 0; }));
  EXPECT_EQ(metrics_.store_shm_leases.Value(), 1);
}

TEST_F(ShmServerTest, AFileIsMappedOnceForAllWhoReadIt) {
  // Its bands lie in files from the beginning: smaller ones are copied into one for each lease.
  const CompressedObject object =
      MakeTestObject({.head_dim = 64, .context_tokens = 1000, .edges = "0.5,1", .seed = 3});
  Put(object);
  const auto transport = MakeShmTransport({.path = path_});
  const auto data_of = [](const KeepingSink& sink) {
    return sink.segments.back().bytes.bytes().data();
  };
  auto first = std::make_unique<KeepingSink>();
  KVTIER_ASSERT_OK(transport->Fetch(RequestFor(object), Soon(), *first));
  KeepingSink second;
  KVTIER_ASSERT_OK(transport->Fetch(RequestFor(object), Soon(), second));
  EXPECT_EQ(data_of(*first), data_of(second));
  EXPECT_EQ(leases_->usage().leases, 2u);
  first.reset();  // The second one's lease and mapping do not depend on it.
  EXPECT_TRUE(Eventually([&] { return leases_->usage().leases == 1; }));
  EXPECT_TRUE(second.Equals(object));
  second.segments.clear();
  EXPECT_TRUE(Eventually([&] { return leases_->usage().leases == 0; }));

  const CompressedObject other = MakeTestObject({.seed = 4});
  Put(other);
  KVTIER_ASSERT_OK(transport->Fetch(RequestFor(other), Soon(), second));
  EXPECT_TRUE(second.Equals(other));
}

TEST_F(ShmServerTest, ATenantIsHandedNothingOfAnother) {
  Put(a_, *TenantId::FromString("b"));
  v1::ShmAcquire acquire = AcquireFor(a_);
  acquire.set_tenant("a");
  EXPECT_THAT(Refusal(acquire.SerializeAsString()), StatusIs(absl::StatusCode::kNotFound));
  acquire.set_tenant("b");
  KVTIER_ASSERT_OK_AND_ASSIGN(const ShmMessage answer, Exchange(acquire.SerializeAsString()));
  EXPECT_EQ(answer.descriptors.size(), 6u);
  struct stat stat = {};
  ASSERT_EQ(::stat(path_.c_str(), &stat), 0);
  EXPECT_EQ(stat.st_mode & 0777, 0600u);
}

TEST_F(ShmServerTest, WhatIsNoRequestIsRefusedOrCutOff) {
  EXPECT_THAT(Refusal("\xff\xff\xff"), StatusIs(absl::StatusCode::kInvalidArgument));
  v1::ShmAcquire acquire = AcquireFor(a_);
  acquire.set_version(2);
  EXPECT_THAT(Refusal(acquire.SerializeAsString()),
              StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("speaks 1")));
  // Longer than a request may be: whatever comes back, no memory is taken for it.
  EXPECT_FALSE(Refusal(std::string(100 << 10, 'x')).ok());
  EXPECT_TRUE(Eventually([&] { return server_->connections() == 0; }));
  EXPECT_GE(metrics_.store_shm_refused.Value(), 2);
}

TEST_F(ShmServerTest, AClientThatSaysNothingIsCutOff) {
  Serve({.path = path_, .handshake_timeout = absl::Milliseconds(20)});
  KVTIER_ASSERT_OK_AND_ASSIGN(const OwnedFd silent, ConnectUnix(path_, Soon()));
  EXPECT_THAT(ReceiveShmMessage(silent.get(), 1 << 20, 0, Soon()),
              StatusIs(absl::StatusCode::kUnavailable));
}

// The wire: four bytes of length, then the message.
std::string Framed(const std::string& message) {
  std::string framed(4, '\0');
  for (size_t i = 0; i < 4; ++i) framed[i] = static_cast<char>(message.size() >> (8 * i) & 0xFF);
  return framed + message;
}

bool SendRaw(const OwnedFd& socket, const std::string& bytes) {
  return send(socket.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL) ==
         static_cast<ssize_t>(bytes.size());
}

TEST_F(ShmServerTest, ClientsThatAskSlowlyKeepNobodyWaiting) {
  Put(a_);
  Serve({.path = path_, .pool_threads = 1, .handshake_timeout = absl::Hours(1)});
  const std::string request = Framed(AcquireFor(a_).SerializeAsString());
  std::vector<OwnedFd> slow;
  for (const size_t bytes : {size_t{1}, size_t{4}, request.size() - 1}) {
    KVTIER_ASSERT_OK_AND_ASSIGN(OwnedFd socket, ConnectUnix(path_, Soon()));
    ASSERT_TRUE(SendRaw(socket, request.substr(0, bytes)));
    slow.push_back(std::move(socket));
  }
  {
    KeepingSink sink;
    KVTIER_ASSERT_OK(Fetch(RequestFor(a_), sink));
    EXPECT_TRUE(sink.Equals(a_));
  }
  EXPECT_TRUE(Eventually([&] { return leases_->usage().leases == 0; }));

  ASSERT_TRUE(SendRaw(slow[0], request.substr(1)));  // Late, and served.
  KVTIER_ASSERT_OK_AND_ASSIGN(const ShmMessage answer,
                              ReceiveShmMessage(slow[0].get(), 1 << 20, 16, Soon()));
  EXPECT_EQ(answer.descriptors.size(), 6u);
  EXPECT_EQ(leases_->usage().leases, 1u);
  slow.clear();  // Two of them in the middle of what they said.
  EXPECT_TRUE(
      Eventually([&] { return server_->connections() == 0 && leases_->usage().leases == 0; }));
}

TEST_F(ShmServerTest, TheSocketHasItsModeWhateverTheUmask) {
  const mode_t before = umask(022);
  Serve({.path = path_, .mode = 0660});
  umask(before);
  struct stat stat = {};
  ASSERT_EQ(::stat(path_.c_str(), &stat), 0);
  EXPECT_EQ(stat.st_mode & 0777, 0660u);
}

TEST_F(ShmServerTest, AReaderThatMayOpenNoMoreFilesIsToldSo) {
  int ends[2] = {-1, -1};
  ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, ends), 0);
  const OwnedFd sender(ends[0]), receiver(ends[1]);
  EXPECT_EQ(PeekShmMessage(receiver.get(), 100), ShmArrival::kNone);
  const std::vector<int> sent = {sender.get(), receiver.get()};
  KVTIER_ASSERT_OK(SendShmMessage(sender.get(), "x", sent, Soon()));
  EXPECT_EQ(PeekShmMessage(receiver.get(), 100), ShmArrival::kWhole);
  rlimit before = {};
  ASSERT_EQ(getrlimit(RLIMIT_NOFILE, &before), 0);
  rlimit none = before;
  none.rlim_cur = 0;  // What is open stays open.
  ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &none), 0);
  const absl::Status status = ReceiveShmMessage(receiver.get(), 100, 2, Soon()).status();
  ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &before), 0);
  EXPECT_THAT(status, StatusIs(absl::StatusCode::kResourceExhausted, HasSubstr("RLIMIT_NOFILE")));
}

TEST_F(ShmServerTest, LeasesThatHoldTheBudgetMakeTheStoreSayWhenToComeBack) {
  const CompressedObject b = MakeTestObject({.seed = 2});
  Put(a_);
  Put(b);
  Open(uint64_t{64} << 20, {.bytes_max = a_.manifest->total_bytes() * 3 / 2});
  KeepingSink first;
  KVTIER_ASSERT_OK(Fetch(RequestFor(a_), first));
  KeepingSink second;
  const absl::Status refused = Fetch(RequestFor(b), second);
  EXPECT_THAT(refused, StatusIs(absl::StatusCode::kResourceExhausted, HasSubstr("lease_bytes")));
  EXPECT_GT(RetryAfter(refused), absl::ZeroDuration());
}

// The reader is a process that is stopped, as a debugger or an overloaded machine does it, while
// the store is under pressure. For a minute, with a real store: shm_process_test.cc.
TEST_F(ShmServerTest, AStoppedReaderLosesNoByteAndADeadOneHoldsNothing) {
  Open(6 * a_.manifest->total_bytes());
  Put(a_);
  auto sink = std::make_unique<KeepingSink>();
  KVTIER_ASSERT_OK(Fetch(RequestFor(a_), *sink));
  int answers[2] = {-1, -1};
  ASSERT_EQ(pipe2(answers, O_CLOEXEC), 0);
  const OwnedFd answer(answers[0]);
  OwnedFd writer(answers[1]);
  const pid_t reader = fork();
  ASSERT_GE(reader, 0);
  if (reader == 0) {  // It inherits mapping and connection; nothing else of ours is touched.
    raise(SIGSTOP);
    const char verdict = sink->Equals(a_) ? 'y' : 'n';
    if (write(writer.get(), &verdict, 1) != 1) _exit(1);
    for (;;) pause();
  }
  writer = OwnedFd();
  int status = 0;
  ASSERT_EQ(waitpid(reader, &status, WUNTRACED), reader);
  ASSERT_TRUE(WIFSTOPPED(status));
  sink.reset();  // Only the reader holds the lease now.

  for (uint64_t seed = 10; seed < 40; ++seed) {
    Put(MakeTestObject({.seed = seed}));
    ASSERT_LE(store_->host_usage().bytes, store_->host_usage().budget_bytes);
  }
  KVTIER_ASSERT_OK(store_->Delete(TenantId(), a_.manifest->key));
  EXPECT_EQ(leases_->usage().leases, 1u);
  kill(reader, SIGCONT);
  char verdict = 0;
  ASSERT_EQ(read(answer.get(), &verdict, 1), 1);
  EXPECT_EQ(verdict, 'y') << "a byte was wrong";
  EXPECT_EQ(leases_->usage().leases, 1u);

  kill(reader, SIGKILL);
  ASSERT_EQ(waitpid(reader, &status, 0), reader);
  EXPECT_EQ(WTERMSIG(status), SIGKILL);
  EXPECT_TRUE(Eventually([&] { return leases_->usage().leases == 0; }));
}

TEST_F(ShmServerTest, AMappedReaderOutlivesTheStoreAndTheNextOneServes) {
  Put(a_);
  KeepingSink before;
  KVTIER_ASSERT_OK(Fetch(RequestFor(a_), before));
  Open();
  EXPECT_TRUE(before.Equals(a_));
  KeepingSink after;
  KVTIER_ASSERT_OK(Fetch(RequestFor(a_), after));
  EXPECT_TRUE(after.Equals(a_));
  EXPECT_EQ(leases_->usage().leases, 1u) << "the old lease is not one of this store";
}

TEST_F(ShmServerTest, TwoStoresDoNotShareASocketAndAStaleOneIsReplaced) {
  EXPECT_THAT(ShmServer::Start({.path = path_}, *leases_, metrics_),
              StatusIs(absl::StatusCode::kUnavailable, HasSubstr("somebody listens")));
  EXPECT_THAT(ShmServer::Start({.path = std::string(200, 'x')}, *leases_, metrics_),
              StatusIs(absl::StatusCode::kInvalidArgument));
  const std::string stale = dir_.File("stale");
  { const OwnedFd left = *ListenUnix(stale, 0600); }  // As kill -9 leaves it.
  KVTIER_EXPECT_OK(ShmServer::Start({.path = stale}, *leases_, metrics_));
}

TEST_F(ShmServerTest, FilesThatCouldHurtTheReaderAreNotMapped) {
  const CompressedObject object = MakeTestObject({.edges = "1"});
  const uint64_t bytes = object.manifest->total_bytes();
  constexpr int kGood = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE;
  const auto fetch = [&](uint64_t size, int seals) {
    std::vector<OwnedFd> files;
    files.push_back(FileOf(size, seals));
    return FetchFrom(object, std::move(files), 1);
  };
  EXPECT_THAT(fetch(bytes, 0), StatusIs(absl::StatusCode::kDataLoss, HasSubstr("not sealed")));
  EXPECT_THAT(fetch(bytes, F_SEAL_GROW | F_SEAL_WRITE),
              StatusIs(absl::StatusCode::kDataLoss, HasSubstr("not sealed")));
  EXPECT_THAT(fetch(bytes, F_SEAL_SHRINK | F_SEAL_GROW),
              StatusIs(absl::StatusCode::kDataLoss, HasSubstr("not sealed")));
  EXPECT_THAT(fetch(bytes - 64, kGood),
              StatusIs(absl::StatusCode::kDataLoss, HasSubstr("the manifest says")));
  EXPECT_THAT(fetch(bytes, kGood), StatusIs(absl::StatusCode::kDataLoss, HasSubstr("CRC32C")));
  EXPECT_THAT(FetchFrom(object, {}, 1),
              StatusIs(absl::StatusCode::kDataLoss, HasSubstr("fewer files")));
  EXPECT_FALSE(FetchFrom(object, {}, 0).ok());
}

TEST_F(ShmServerTest, WhatSharedMemoryRefusesComesThroughTheOtherTransport) {
  Put(a_);
  const auto fallback = [&](const std::string& path) {
    KeepingSink sink;
    const auto transport = MakeFallbackTransport(MakeShmTransport({.path = path}),
                                                 MakeShmTransport({.path = path_}), metrics_);
    KVTIER_EXPECT_OK(transport->Fetch(RequestFor(a_), Soon(), sink));
    EXPECT_TRUE(sink.Equals(a_));
  };
  fallback(path_);
  EXPECT_EQ(metrics_.worker_shm_fallbacks.Value(), 0);
  fallback(dir_.File("nobody"));
  EXPECT_EQ(metrics_.worker_shm_fallbacks.Value(), 1);

  // A store that stalls: the kernel lets clients connect, and nobody answers them.
  const OwnedFd stalled = *ListenUnix(dir_.File("stalled"), 0600);
  KeepingSink sink;
  const auto transport = MakeFallbackTransport(
      MakeShmTransport({.path = dir_.File("stalled"), .answer_timeout = absl::Milliseconds(20)}),
      MakeShmTransport({.path = path_}), metrics_);
  KVTIER_EXPECT_OK(transport->Fetch(RequestFor(a_), Soon(), sink));
  EXPECT_TRUE(sink.Equals(a_));
  EXPECT_EQ(metrics_.worker_shm_fallbacks.Value(), 2);
}

}  // namespace
}  // namespace kvtier
