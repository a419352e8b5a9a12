// StoreService.Lease and Fetch under a lease, through real gRPC, in one process.
#include <arpa/inet.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
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
#include "kvtier/v1/store.grpc.pb.h"
#include "services/client.h"
#include "services/drain_signal.h"
#include "services/metrics.h"
#include "services/server.h"
#include "services/status_grpc.h"
#include "services/store_service.h"
#include "store/lease_table.h"
#include "tests/testing/eventually.h"
#include "tests/testing/local_server.h"
#include "tests/testing/open_put.h"
#include "tests/testing/store_checks.h"
#include "tests/testing/test_object.h"

namespace kvtier {
namespace {

using testing::HasSubstr;

absl::Time Soon() { return absl::Now() + absl::Seconds(50); }

// A wire between a client and a server on TCP, which can be cut without either end being told: as
// when a host loses its power. One connection.
class Wire {
 public:
  explicit Wire(int server_port) : listener_(NewSocket()) {
    sockaddr_in address = Loopback(0);
    KVTIER_CHECK_EQ(bind(listener_, Cast(&address), sizeof(address)), 0);
    socklen_t length = sizeof(address);
    KVTIER_CHECK_EQ(getsockname(listener_, Cast(&address), &length), 0);
    port_ = ntohs(address.sin_port);
    KVTIER_CHECK_EQ(listen(listener_, 1), 0);
    thread_ = std::thread([this, server_port] { Run(server_port); });
  }
  ~Wire() {
    stop_ = true;
    thread_.join();
    close(listener_);
  }
  int port() const { return port_; }
  // From now on nothing passes, in neither direction; nothing is closed.
  void Cut() { is_cut_ = true; }
  // How often the client has sent something.
  int sent_by_client() const { return sent_by_client_; }

 private:
  static int NewSocket() {
    const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    KVTIER_CHECK(fd >= 0);
    return fd;
  }
  static sockaddr_in Loopback(int port) {
    sockaddr_in address = {};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    address.sin_port = htons(static_cast<uint16_t>(port));
    return address;
  }
  static sockaddr* Cast(sockaddr_in* address) { return reinterpret_cast<sockaddr*>(address); }
  bool IsReadable(int fd) const {
    pollfd entry = {.fd = fd, .events = POLLIN, .revents = 0};
    return poll(&entry, 1, 2) > 0;
  }

  void Run(int server_port) {
    while (!stop_ && !IsReadable(listener_)) {
    }
    if (stop_) return;
    const int ends[2] = {accept(listener_, nullptr, nullptr), NewSocket()};
    sockaddr_in address = Loopback(server_port);
    KVTIER_CHECK_EQ(connect(ends[1], Cast(&address), sizeof(address)), 0);
    std::vector<char> bytes(64 << 10);
    for (bool is_open = true; is_open && !stop_;) {
      for (int from = 0; from < 2 && is_open; ++from) {
        if (!IsReadable(ends[from]) || is_cut_) continue;
        const ssize_t count = read(ends[from], bytes.data(), bytes.size());
        if (from == 0 && count > 0) ++sent_by_client_;
        is_open = count > 0 && send(ends[1 - from], bytes.data(), static_cast<size_t>(count),
                                    MSG_NOSIGNAL) == count;
      }
    }
    for (const int end : ends) close(end);
  }

  const int listener_;
  int port_ = 0;
  std::atomic<bool> is_cut_{false};
  std::atomic<int> sent_by_client_{0};
  std::atomic<bool> stop_{false};
  std::thread thread_;
};

class LeaseServiceTest : public testing::Test {
 protected:
  LeaseServiceTest() {
    store_ = *OpenTestStore("", uint64_t{64} << 20, Clock::Real());
    leases_ = std::make_unique<LeaseTable>(
        LeaseTable::Options{.leases_max = 4, .bytes_max = object_.manifest->total_bytes() * 3 / 2},
        *store_);
    service_ = MakeStoreService({.leases = leases_.get(), .drain = &drain_}, *store_, metrics_,
                                Clock::Real());
    Serve({.drain_timeout = absl::Seconds(1)});
    KVTIER_EXPECT_OK(store_->Put(TenantId(), object_, Durability::kHost));
  }

  void Serve(ServerOptions options) {
    server_.reset();
    server_ = StartLocalServer({service_.get()}, metrics_, std::move(options));
    stub_ = StubOf(server_->port());
  }
  static std::unique_ptr<v1::StoreService::Stub> StubOf(int port) {
    return v1::StoreService::NewStub(MakeChannel("127.0.0.1:" + std::to_string(port)));
  }
  static v1::LeaseRequest AcquireOf(const CompressedObject& object, double ratio = 0) {
    v1::LeaseRequest request;
    request.mutable_acquire()->mutable_name()->set_key(
        std::string(object.manifest->key.AsStringView()));
    request.mutable_acquire()->mutable_extent()->set_ratio(ratio);
    return request;
  }
  // What the store answers to one message.
  using Stream = grpc::ClientReaderWriterInterface<v1::LeaseRequest, v1::LeaseResponse>;
  static v1::LeaseResponse Exchange(Stream& stream, const v1::LeaseRequest& request) {
    v1::LeaseResponse response;
    EXPECT_TRUE(stream.Write(request));
    EXPECT_TRUE(stream.Read(&response));
    return response;
  }
  // Bytes that a Fetch under `lease` brings.
  absl::StatusOr<uint64_t> FetchUnder(const v1::LeaseName& lease,
                                      const std::string& tenant = "default") {
    grpc::ClientContext context;
    context.AddMetadata("kvtier-tenant", tenant);
    v1::FetchRequest request;
    request.mutable_name()->set_key(std::string(object_.manifest->key.AsStringView()));
    request.mutable_extent()->set_min_ratio(0.1);
    *request.mutable_lease() = lease;
    const auto stream = stub_->Fetch(&context, request);
    v1::FetchResponse response;
    uint64_t bytes = 0;
    while (stream->Read(&response)) {
      bytes += response.frame().payload().size();
      for (const v1::SegmentFrame& frame : response.header().frames()) {
        bytes += frame.payload().size();
      }
    }
    const grpc::Status status = stream->Finish();
    if (!status.ok()) return FromGrpcStatus(status);
    return bytes;
  }
  bool NoLeaseIsLeft() {
    return Eventually([&] { return leases_->usage().leases == 0; });
  }

  const CompressedObject object_ = MakeTestObject({.seed = 1});
  Metrics metrics_;
  std::unique_ptr<TieredStore> store_;
  std::unique_ptr<LeaseTable> leases_;
  DrainSignal drain_;
  std::unique_ptr<grpc::Service> service_;
  std::unique_ptr<Server> server_;
  std::unique_ptr<v1::StoreService::Stub> stub_;
};

TEST_F(LeaseServiceTest, WhatIsHeldCanBeFetchedUnderItsNameUntilItIsReleased) {
  grpc::ClientContext context;
  const auto stream = stub_->Lease(&context);
  v1::LeaseResponse response = Exchange(*stream, AcquireOf(object_, 0.3));
  ASSERT_TRUE(response.has_granted());
  EXPECT_EQ(response.granted().band_count(), 3u);
  EXPECT_EQ(response.granted().ratio_millionths(), 300'000u);
  const v1::LeaseName name = response.granted().lease();
  EXPECT_EQ(name.epoch(), store_->incarnation());

  // Even after the object is gone for everybody else.
  KVTIER_ASSERT_OK(store_->Delete(TenantId(), object_.manifest->key));
  EXPECT_THAT(FetchUnder(name), IsOkAndHolds(object_.manifest->PrefixBytes(3)));

  v1::LeaseName older = name;
  older.set_epoch(name.epoch() + 1);
  EXPECT_THAT(FetchUnder(older), StatusIs(absl::StatusCode::kAborted));

  v1::LeaseRequest release;
  *release.mutable_release() = name;
  response = Exchange(*stream, release);
  EXPECT_EQ(response.released().id(), name.id());
  EXPECT_THAT(FetchUnder(name), StatusIs(absl::StatusCode::kAborted));
  EXPECT_EQ(leases_->usage().bytes, 0u);
  stream->WritesDone();
  EXPECT_TRUE(stream->Finish().ok());
}

TEST_F(LeaseServiceTest, TheEndOfTheStreamEndsItsLeases) {
  {
    grpc::ClientContext context;
    const auto stream = stub_->Lease(&context);
    EXPECT_TRUE(Exchange(*stream, AcquireOf(object_)).has_granted());
    EXPECT_EQ(leases_->usage().leases, 1u);
    context.TryCancel();  // As when the client's process dies.
    EXPECT_FALSE(stream->Finish().ok());
  }
  EXPECT_TRUE(NoLeaseIsLeft());
}

TEST_F(LeaseServiceTest, ARefusalIsAMessageAndTheStreamGoesOn) {
  const CompressedObject other = MakeTestObject({.seed = 2});
  KVTIER_ASSERT_OK(store_->Put(TenantId(), other, Durability::kHost));
  grpc::ClientContext context;
  const auto stream = stub_->Lease(&context);
  v1::LeaseResponse response = Exchange(*stream, AcquireOf(object_));
  ASSERT_TRUE(response.has_granted());
  response = Exchange(*stream, AcquireOf(other));
  const absl::Status refused = StatusFromRpcStatusBytes(response.refused());
  EXPECT_THAT(refused, StatusIs(absl::StatusCode::kResourceExhausted, HasSubstr("lease_bytes")));
  EXPECT_GT(RetryAfter(refused), absl::ZeroDuration());
  response = Exchange(*stream, AcquireOf(MakeTestObject({.seed = 3})));
  EXPECT_THAT(StatusFromRpcStatusBytes(response.refused()), StatusIs(absl::StatusCode::kNotFound));
  EXPECT_EQ(leases_->usage().leases, 1u);
  ASSERT_TRUE(stream->Write(v1::LeaseRequest()));
  EXPECT_FALSE(stream->Read(&response));
  EXPECT_EQ(stream->Finish().error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_TRUE(NoLeaseIsLeft());
}

TEST_F(LeaseServiceTest, AnotherTenantsLeaseIsNoneToOthers) {
  grpc::ClientContext context;
  const auto stream = stub_->Lease(&context);
  v1::LeaseResponse response = Exchange(*stream, AcquireOf(object_));
  const v1::LeaseName name = response.granted().lease();
  EXPECT_THAT(FetchUnder(name, "somebody-else"), StatusIs(absl::StatusCode::kAborted));

  grpc::ClientContext others_context;
  others_context.AddMetadata("kvtier-tenant", "somebody-else");
  const auto others = stub_->Lease(&others_context);
  response = Exchange(*others, AcquireOf(object_));
  EXPECT_THAT(StatusFromRpcStatusBytes(response.refused()), StatusIs(absl::StatusCode::kNotFound));
  v1::LeaseRequest release;
  *release.mutable_release() = name;
  ASSERT_TRUE(others->Write(release));
  EXPECT_FALSE(others->Read(&response));
  EXPECT_EQ(others->Finish().error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_EQ(leases_->usage().leases, 1u);
}

TEST_F(LeaseServiceTest, StreamsThatSayNothingTakeNoPlaceOfOtherCallsOrTenants) {
  server_.reset();
  service_ = MakeStoreService({.calls_max = 1, .lease_streams_max = 2, .leases = leases_.get()},
                              *store_, metrics_, Clock::Real());
  Serve({.drain_timeout = absl::Seconds(1)});
  grpc::ClientContext context;
  const auto stream = stub_->Lease(&context);
  v1::LeaseResponse response = Exchange(*stream, AcquireOf(object_));
  ASSERT_TRUE(response.has_granted());
  EXPECT_THAT(FetchUnder(response.granted().lease()),
              IsOkAndHolds(object_.manifest->total_bytes()));

  grpc::ClientContext second_context;
  const auto second = stub_->Lease(&second_context);
  EXPECT_FALSE(second->Read(&response));
  const absl::Status refused = FromGrpcStatus(second->Finish());
  EXPECT_THAT(refused, StatusIs(absl::StatusCode::kResourceExhausted,
                                HasSubstr("(lease_streams_max) of 2")));
  EXPECT_GT(RetryAfter(refused), absl::ZeroDuration());

  grpc::ClientContext others_context;
  others_context.AddMetadata("kvtier-tenant", "somebody-else");
  const auto others = stub_->Lease(&others_context);
  response = Exchange(*others, AcquireOf(object_));
  EXPECT_THAT(StatusFromRpcStatusBytes(response.refused()), StatusIs(absl::StatusCode::kNotFound));
  context.TryCancel();
  stream->Finish();
  others_context.TryCancel();
  others->Finish();
  EXPECT_TRUE(NoLeaseIsLeft());
}

TEST_F(LeaseServiceTest, LeasesThatPinTheBudgetMakeNewWorkBackOff) {
  // Memory for this object and half of another; no disk.
  server_.reset();
  service_.reset();
  leases_.reset();
  store_ = *OpenTestStore("", object_.manifest->total_bytes() * 3 / 2, Clock::Real());
  leases_ = std::make_unique<LeaseTable>(LeaseTable::Options(), *store_);
  service_ = MakeStoreService({.leases = leases_.get()}, *store_, metrics_, Clock::Real());
  Serve({.drain_timeout = absl::Seconds(1)});
  StoreClient client(ChannelTo(*server_));
  const auto put = [&](const CompressedObject& object) {
    return client.Put(object, v1::DURABILITY_HOST, nullptr, CancelToken(), Soon()).status();
  };
  KVTIER_ASSERT_OK(put(object_));
  grpc::ClientContext context;
  const auto stream = stub_->Lease(&context);
  v1::LeaseResponse response = Exchange(*stream, AcquireOf(object_));
  ASSERT_TRUE(response.has_granted());

  const CompressedObject other = MakeTestObject({.seed = 2});
  const absl::Status refused = put(other);
  EXPECT_THAT(refused, StatusIs(absl::StatusCode::kResourceExhausted));
  EXPECT_GT(RetryAfter(refused), absl::ZeroDuration());
  EXPECT_THAT(FetchUnder(response.granted().lease()),
              IsOkAndHolds(object_.manifest->total_bytes()));

  context.TryCancel();
  stream->Finish();
  EXPECT_TRUE(NoLeaseIsLeft());
  KVTIER_EXPECT_OK(put(other));
}

TEST_F(LeaseServiceTest, ADrainEndsLeasesInsteadOfWaitingForThem) {
  // Far beyond this test's time.
  Serve({.drain_timeout = absl::Hours(1), .drain = &drain_});
  grpc::ClientContext context;
  const auto stream = stub_->Lease(&context);
  v1::LeaseResponse response = Exchange(*stream, AcquireOf(object_));
  KVTIER_ASSERT_OK_AND_ASSIGN(
      const std::shared_ptr<const HeldObject> reading,
      leases_->Find(TenantId(), {response.granted().lease().id(), store_->incarnation()}));

  server_->Shutdown();
  EXPECT_FALSE(stream->Read(&response));
  EXPECT_EQ(stream->Finish().error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_TRUE(NoLeaseIsLeft());
  // What somebody is reading stays.
  EXPECT_TRUE(std::ranges::equal(reading->Segment(BandIndex(0), LayerIndex(0)).bytes(),
                                 object_.segment(BandIndex(0), LayerIndex(0)).bytes()));
  EXPECT_EQ(drain_.Listen([] {}), nullptr);
}

// A call that never ends has the drain's time-out, and no more.
TEST_F(LeaseServiceTest, ADrainCancelsWhatOutlastsIt) {
  Serve({.drain_timeout = absl::Milliseconds(50), .drain = &drain_});
  OpenPut put(*stub_, MakeTestObject({.seed = 7}));
  ASSERT_TRUE(put.HasBegun(*store_));
  server_->Shutdown();
  EXPECT_THAT(FromGrpcStatus(put.Finish()), StatusIs(absl::StatusCode::kUnavailable));
}

// The host of a client is gone without a word: no one closes its connection.
TEST_F(LeaseServiceTest, AClientWhoseHostVanishedIsLetGoOfAfterKeepalive) {
  Serve({.drain_timeout = absl::Seconds(1),
         .keepalive_time = absl::Milliseconds(200),
         .keepalive_timeout = absl::Seconds(10)});  // For a slow machine to answer in.
  Wire wire(server_->port());
  const auto stub = StubOf(wire.port());
  grpc::ClientContext context;
  const auto stream = stub->Lease(&context);
  EXPECT_TRUE(Exchange(*stream, AcquireOf(object_)).has_granted());
  // A live client that says nothing keeps its lease, however often it is asked for a sign of life:
  // all that it sends now is the answers.
  const int sent = wire.sent_by_client();
  EXPECT_TRUE(Eventually([&] { return wire.sent_by_client() >= sent + 5; }));
  EXPECT_EQ(leases_->usage().leases, 1u);
  wire.Cut();
  EXPECT_TRUE(NoLeaseIsLeft());
  context.TryCancel();
  EXPECT_FALSE(stream->Finish().ok());
}

}  // namespace
}  // namespace kvtier
