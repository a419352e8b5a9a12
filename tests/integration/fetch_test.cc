// Fetch through real gRPC, over a disk tier that a test can hold up and make refuse: what is read
// ahead, what a refusal costs, what a reader that goes away leaves behind, and what never waits.
#include <algorithm>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "base/clock.h"
#include "base/mutex.h"
#include "base/status_macros.h"
#include "base/status_matchers.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kvtier/v1/store.grpc.pb.h"
#include "services/client.h"
#include "services/fetch_call.h"
#include "services/metrics.h"
#include "services/server.h"
#include "services/status_grpc.h"
#include "services/store_service.h"
#include "store/rocksdb_tier.h"
#include "tests/testing/local_server.h"
#include "tests/testing/stalling_relay.h"
#include "tests/testing/store_checks.h"
#include "tests/testing/temp_dir.h"
#include "tests/testing/test_object.h"

namespace kvtier {
namespace {

absl::Time Soon() { return absl::Now() + absl::Seconds(50); }

// What happens to reads from disk. Shared by a test and the tier.
class ReadControl {
 public:
  // The read with this number, counted from 1, waits until Release().
  void HoldUp(int read) {
    MutexLock lock(&mutex_);
    held_up_ = read;
  }
  void Release() {
    MutexLock lock(&mutex_);
    held_up_ = 0;
    changed_.SignalAll();
  }
  // The read with this number fails.
  void Fail(int read, absl::Status status) {
    MutexLock lock(&mutex_);
    failures_[read] = std::move(status);
  }
  // Waits until so many reads have begun.
  void AwaitReads(int count) {
    MutexLock lock(&mutex_);
    while (reads_ < count) changed_.Wait(&mutex_);
  }
  int reads() const {
    MutexLock lock(&mutex_);
    return reads_;
  }

  absl::Status Begin() {
    MutexLock lock(&mutex_);
    const int read = ++reads_;
    changed_.SignalAll();
    while (held_up_ == read) changed_.Wait(&mutex_);
    const auto failure = failures_.find(read);
    return failure == failures_.end() ? absl::OkStatus() : failure->second;
  }

 private:
  mutable Mutex mutex_;
  CondVar changed_;
  int reads_ ABSL_GUARDED_BY(mutex_) = 0;
  int held_up_ ABSL_GUARDED_BY(mutex_) = 0;
  std::map<int, absl::Status> failures_ ABSL_GUARDED_BY(mutex_);
};

class ControlledTier final : public DurableTier {
 public:
  ControlledTier(std::unique_ptr<DurableTier> tier, std::shared_ptr<ReadControl> control)
      : tier_(std::move(tier)), control_(std::move(control)) {}

  absl::StatusOr<SegmentRef> Get(const Manifest& manifest, BandIndex band,
                                 LayerIndex layer) override {
    if (absl::Status status = control_->Begin(); !status.ok()) return status;
    return tier_->Get(manifest, band, layer);
  }
  absl::Status Read(const Manifest& manifest, BandIndex band, LayerIndex layer,
                    MutableByteSpan out) override {
    KVTIER_RETURN_IF_ERROR(control_->Begin());
    return tier_->Read(manifest, band, layer, out);
  }

  absl::Status PutBand(const Manifest& manifest, BandIndex band,
                       std::span<const SegmentRef> layers) override {
    return tier_->PutBand(manifest, band, layers);
  }
  absl::Status DropBands(const UploadId& upload, uint32_t band_count) override {
    return tier_->DropBands(upload, band_count);
  }
  uint32_t BandCount(const UploadId& upload) override { return tier_->BandCount(upload); }
  TierUsage Usage() override { return tier_->Usage(); }
  absl::Status Seal(const TenantId& tenant, const Manifest& manifest,
                    absl::Time sealed_at) override {
    return tier_->Seal(tenant, manifest, sealed_at);
  }
  absl::Status SealPrefix(const TenantId& tenant, const Manifest& manifest, uint32_t band_count,
                          absl::Time sealed_at) override {
    return tier_->SealPrefix(tenant, manifest, band_count, sealed_at);
  }
  absl::Status LowerResidency(const UploadId& upload, uint32_t band_count) override {
    return tier_->LowerResidency(upload, band_count);
  }
  uint32_t SealedBands(const UploadId& upload) override { return tier_->SealedBands(upload); }
  absl::Status Unseal(const TenantId& tenant, const Key& key, const UploadId& upload) override {
    return tier_->Unseal(tenant, key, upload);
  }
  absl::Status SetAttributes(const UploadId& upload, const ObjectAttributes& attributes) override {
    return tier_->SetAttributes(upload, attributes);
  }
  absl::StatusOr<std::vector<SealedObject>> Recover() override { return tier_->Recover(); }
  uint64_t ChargeOf(const BandEntry& band) const override { return tier_->ChargeOf(band); }
  DurableCounters counters() override { return tier_->counters(); }

 private:
  const std::unique_ptr<DurableTier> tier_;
  const std::shared_ptr<ReadControl> control_;
};

// Raw stream of a Fetch, as generated classes see it.
class Reader {
 public:
  Reader(v1::StoreService::Stub& stub, const CompressedObject& object,
         const std::optional<LayerRange>& layers = std::nullopt) {
    context_.set_deadline(absl::ToChronoTime(Soon()));
    v1::FetchRequest request;
    request.mutable_name()->set_key(std::string(object.manifest->key.AsStringView()));
    if (layers.has_value()) {
      request.mutable_layers()->set_begin(layers->begin);
      request.mutable_layers()->set_end(layers->end);
    }
    stream_ = stub.Fetch(&context_, request);
  }
  bool Read(v1::FetchResponse* response) { return stream_->Read(response); }
  absl::Status Finish() { return FromGrpcStatus(stream_->Finish()); }
  grpc::StatusCode Cancel() {
    context_.TryCancel();
    v1::FetchResponse response;
    while (Read(&response)) {
    }
    return stream_->Finish().error_code();
  }

 private:
  grpc::ClientContext context_;
  std::unique_ptr<grpc::ClientReader<v1::FetchResponse>> stream_;
};

class FetchTest : public testing::Test {
 protected:
  // A store that has `objects` on disk, and nothing in host memory.
  void Open(const std::vector<CompressedObject>& objects, const StoreServiceOptions& options = {},
            uint64_t host_bytes = 1 << 30) {
    {
      KVTIER_ASSERT_OK_AND_ASSIGN(const auto filling,
                                  OpenTestStore(dir_.path(), 1 << 30, Clock::Real()));
      for (const CompressedObject& object : objects) {
        KVTIER_ASSERT_OK(filling->Put(TenantId(), object, Durability::kDisk));
      }
    }
    KVTIER_ASSERT_OK_AND_ASSIGN(std::unique_ptr<DurableTier> disk,
                                OpenRocksDbTier({.folder = dir_.path()}));
    KVTIER_ASSERT_OK_AND_ASSIGN(
        store_, TieredStore::Create({.host_budget_bytes = host_bytes},
                                    std::make_unique<ControlledTier>(std::move(disk), control_),
                                    Clock::Real()));
    service_ = MakeStoreService(options, *store_, metrics_, Clock::Real());
    ServerOptions server_options = {.drain_timeout = absl::Seconds(20)};
    if (!socket_.empty()) server_options.listen = "unix:" + socket_;
    server_ = StartLocalServer({service_.get()}, metrics_, server_options);
    channel_ = socket_.empty() ? ChannelTo(*server_) : MakeChannel(server_options.listen);
    stub_ = v1::StoreService::NewStub(channel_);
  }

  // Fetches all of it and holds it against the object.
  absl::Status FetchAndCheck(const CompressedObject& object) {
    const auto transport = MakeGrpcTransport(channel_);
    FetchRequest request;
    request.key = object.manifest->key;
    absl::StatusOr<std::shared_ptr<const RaggedCache>> cache =
        FetchRaggedCache(*transport, request, Soon());
    if (!cache.ok()) return cache.status();
    EXPECT_EQ((*cache)->bytes(), object.manifest->total_bytes());
    return absl::OkStatus();
  }

  // Four segments of 2 MB, which is more than a connection takes unread.
  static CompressedObject Large(uint64_t seed) {
    return MakeTestObject({.layers = 4,
                           .kv_heads = 4,
                           .head_dim = 128,
                           .context_tokens = 1000,
                           .edges = "1",
                           .seed = seed});
  }
  static uint64_t SegmentBytesMax(const CompressedObject& object) {
    uint64_t bytes = 0;
    for (const SegmentRef& segment : object.segments) {
      bytes = std::max<uint64_t>(bytes, segment.bytes().size());
    }
    return bytes;
  }
  static CompressedObject Small(uint64_t seed) { return MakeTestObject({.seed = seed}); }

  TempDir dir_;
  std::string socket_;  // If set before Open(), the server listens there, and nowhere else.
  const std::shared_ptr<ReadControl> control_ = std::make_shared<ReadControl>();
  Metrics metrics_;
  std::unique_ptr<TieredStore> store_;
  std::unique_ptr<grpc::Service> service_;
  std::unique_ptr<Server> server_;
  std::shared_ptr<grpc::Channel> channel_;
  std::unique_ptr<v1::StoreService::Stub> stub_;
};

TEST_F(FetchTest, ASmallAnswerOutOfHostMemoryIsOneMessage) {
  Open({});
  const CompressedObject object = Small(1);
  ASSERT_LE(object.manifest->total_bytes(), limits::kSmallFetchBytesMax);
  KVTIER_ASSERT_OK(store_->Put(TenantId(), object, Durability::kHost));
  Reader reader(*stub_, object);
  v1::FetchResponse response;
  ASSERT_TRUE(reader.Read(&response));
  std::string received;
  for (const v1::SegmentFrame& frame : response.header().frames()) received += frame.payload();
  EXPECT_EQ(received.size(), object.manifest->total_bytes());
  EXPECT_FALSE(reader.Read(&response));
  KVTIER_EXPECT_OK(reader.Finish());
  EXPECT_EQ(store_->counters().host_hits, 1u);
  KVTIER_EXPECT_OK(FetchAndCheck(object));
  EXPECT_EQ(store_->counters().host_hits, 2u);
}

TEST_F(FetchTest, WhatIsLargeOrOnDiskComesInMessagesOfItsOwn) {
  const CompressedObject small = Small(1);
  const CompressedObject large = Large(2);
  Open({small});
  KVTIER_ASSERT_OK(store_->Put(TenantId(), large, Durability::kHost));
  for (const CompressedObject* object : {&small, &large}) {
    Reader reader(*stub_, *object);
    v1::FetchResponse response;
    ASSERT_TRUE(reader.Read(&response));
    EXPECT_EQ(response.header().frames_size(), 0);
    EXPECT_EQ(response.header().payload_bytes(), object->manifest->total_bytes());
    uint64_t bytes = 0;
    while (reader.Read(&response)) bytes += response.frame().payload().size();
    EXPECT_EQ(bytes, object->manifest->total_bytes());
    KVTIER_EXPECT_OK(reader.Finish());
  }
  EXPECT_EQ(store_->counters().disk_hits, 1u);
  EXPECT_EQ(store_->counters().host_hits, 1u);
}

TEST_F(FetchTest, HostMemoryIsServedWhileThePoolWaitsForTheDisk) {
  const CompressedObject on_disk = Large(1);
  Open({on_disk}, {.pool_threads = 1});
  const CompressedObject large = Large(2);
  const CompressedObject small = Small(3);
  KVTIER_ASSERT_OK(store_->Put(TenantId(), large, Durability::kHost));
  KVTIER_ASSERT_OK(store_->Put(TenantId(), small, Durability::kHost));
  control_->HoldUp(1);
  absl::Status fetched;
  std::thread held_up([&] { fetched = FetchAndCheck(on_disk); });
  control_->AwaitReads(1);
  KVTIER_EXPECT_OK(FetchAndCheck(large));
  KVTIER_EXPECT_OK(FetchAndCheck(small));
  EXPECT_THAT(FetchAndCheck(Small(4)), StatusIs(absl::StatusCode::kNotFound));
  EXPECT_EQ(control_->reads(), 1);
  control_->Release();
  held_up.join();
  KVTIER_EXPECT_OK(fetched);
}

TEST_F(FetchTest, ReadsTheNextSegmentWhileOneIsBeingWritten) {
  const CompressedObject object = Large(1);
  Open({object});
  Reader reader(*stub_, object);
  // Nothing is taken from the stream, so the first segment is not written whole.
  control_->AwaitReads(2);
  v1::FetchResponse response;
  ASSERT_TRUE(reader.Read(&response));
  EXPECT_TRUE(response.has_header());
  uint64_t bytes = 0;
  while (reader.Read(&response)) bytes += response.frame().payload().size();
  EXPECT_EQ(bytes, object.manifest->total_bytes());
  KVTIER_EXPECT_OK(reader.Finish());
  EXPECT_EQ(control_->reads(), 4) << "each segment once";
}

TEST_F(FetchTest, ReadsTwoAtATimeWhenOneHasFoundRoomBesideAnother) {
  const CompressedObject object = Large(1);
  Open({object});
  control_->HoldUp(3);
  Reader reader(*stub_, object);
  absl::Status fetched;
  uint64_t bytes = 0;
  std::thread thread([&] {
    v1::FetchResponse response;
    while (reader.Read(&response)) bytes += response.frame().payload().size();
    fetched = reader.Finish();
  });
  control_->AwaitReads(4);
  control_->Release();
  thread.join();
  KVTIER_EXPECT_OK(fetched);
  EXPECT_EQ(bytes, object.manifest->total_bytes());
  EXPECT_EQ(control_->reads(), 4) << "each segment once";
}

TEST_F(FetchTest, ARefusedReadAheadIsAskedForAgainAndNoFailure) {
  const CompressedObject object = Large(1);
  Open({object});
  control_->Fail(2, absl::ResourceExhaustedError("no room for two"));
  control_->Fail(4, absl::ResourceExhaustedError("no room for two"));
  KVTIER_EXPECT_OK(FetchAndCheck(object));
  EXPECT_EQ(control_->reads(), 6);
  EXPECT_EQ(store_->counters().requests, 1u);
  EXPECT_EQ(store_->counters().failures, 0u);
  EXPECT_EQ(store_->counters().disk_hits, 1u);
}

// The segment behind a refused one has been read meanwhile, and may have its memory.
TEST_F(FetchTest, WhatWasReadBehindARefusedSegmentGivesWayToIt) {
  const CompressedObject object = Large(1);
  // No room for the band to come back: what is read again would be there.
  Open({object}, {.pool_threads = 1}, SegmentBytesMax(object) * 7 / 2);
  control_->Fail(3, absl::ResourceExhaustedError("no room for two"));
  control_->HoldUp(4);
  absl::Status fetched;
  std::thread thread([&] { fetched = FetchAndCheck(object); });
  control_->AwaitReads(4);
  control_->Release();
  thread.join();
  KVTIER_EXPECT_OK(fetched);
  EXPECT_EQ(control_->reads(), 6) << "the refused one again, and the one behind it";
}

TEST_F(FetchTest, TheFirstSegmentFromDiskIsReadAloneAlsoBehindSegmentsOutOfMemory) {
  const CompressedObject object =
      MakeTestObject({.layers = 3, .edges = "0.2,0.5,0.7,1", .seed = 1});
  Open({object});
  {
    KVTIER_ASSERT_OK_AND_ASSIGN(const auto pinned,
                                store_->Pin(TenantId(), object.manifest->key, std::nullopt));
    for (uint32_t band = 0; band < 2; ++band) {
      KVTIER_ASSERT_OK(pinned->Hold(BandIndex(band), BandPlacement::kAny));
    }
  }
  const int before = control_->reads();
  control_->HoldUp(before + 1);
  absl::Status fetched;
  std::thread thread([&] { fetched = FetchAndCheck(object); });
  control_->AwaitReads(before + 1);
  // Time to do it wrong.
  const absl::Time until = absl::Now() + absl::Milliseconds(200);
  while (control_->reads() == before + 1 && absl::Now() < until) std::this_thread::yield();
  EXPECT_EQ(control_->reads(), before + 1);
  control_->Release();
  thread.join();
  KVTIER_EXPECT_OK(fetched);
  KVTIER_ASSERT_OK_AND_ASSIGN(const ObjectStat stat,
                              store_->Stat(TenantId(), object.manifest->key));
  EXPECT_EQ(stat.host_bands, 4u);
}

TEST_F(FetchTest, WhatIsRefusedTwiceEndsTheFetchAndSaysWhenToTryAgain) {
  const CompressedObject object = Large(1);
  Open({object});
  control_->Fail(2, absl::ResourceExhaustedError("no room for two"));
  control_->Fail(3, absl::ResourceExhaustedError("no room for one"));
  const absl::Status status = FetchAndCheck(object);
  EXPECT_THAT(status, StatusIs(absl::StatusCode::kResourceExhausted, "no room for one"));
  EXPECT_TRUE(RetryAfter(status).has_value());
  EXPECT_EQ(store_->counters().failures, 1u);
  KVTIER_EXPECT_OK(FetchAndCheck(object));
}

TEST_F(FetchTest, MemoryForOneSegmentIsEnoughForAFetch) {
  const CompressedObject object = Large(1);
  Open({object}, {}, SegmentBytesMax(object) * 3 / 2);
  for (int i = 0; i < 5; ++i) KVTIER_EXPECT_OK(FetchAndCheck(object));
  EXPECT_EQ(store_->counters().failures, 0u);
  EXPECT_EQ(store_->counters().disk_hits, 5u);
  EXPECT_EQ(store_->host_usage().bytes, 0u);
}

// A connection takes less unread than is left to send after the first message, so the segment that
// is being sent keeps the memory all through the pause.
TEST_F(FetchTest, AReaderThatPausesIsNotRefusedInTheMiddle) {
  const CompressedObject object = Large(1), second = Large(2);
  Open({object, second}, {}, SegmentBytesMax(object) * 3 / 2);
  Reader reader(*stub_, object);
  v1::FetchResponse response;
  uint64_t bytes = 0;
  int pauses = 0;
  while (reader.Read(&response)) {
    if (!response.has_frame()) continue;
    bytes += response.frame().payload().size();
    const absl::Status other = FetchAndCheck(second);  // Meanwhile, on a stream of its own.
    if (++pauses == 1) {
      EXPECT_THAT(other, StatusIs(absl::StatusCode::kResourceExhausted));
    }
  }
  KVTIER_EXPECT_OK(reader.Finish());
  EXPECT_EQ(bytes, object.manifest->total_bytes());
  KVTIER_EXPECT_OK(FetchAndCheck(second));
  EXPECT_EQ(store_->host_usage().bytes, 0u);
}

// A segment keeps its memory until the connection has taken it, not until gRPC has: what is next
// would find none, and the fetch would end in the middle.
TEST_F(FetchTest, AConnectionThatIsFullForAWhileEndsNoFetch) {
  // Each segment is one frame, and more than a UNIX socket holds.
  const CompressedObject object = MakeTestObject({.layers = 4,
                                                  .kv_heads = 4,
                                                  .head_dim = 128,
                                                  .context_tokens = 400,
                                                  .edges = "1",
                                                  .seed = 1});
  const uint64_t segment = SegmentBytesMax(object);
  ASSERT_LT(segment, limits::kFrameBytesMax);
  socket_ = dir_.File("server");
  Open({object}, {}, segment * 3 / 2);
  StallingRelay relay(dir_.File("relay"), socket_, segment / 2);
  grpc::ChannelArguments arguments;
  arguments.SetInt(GRPC_ARG_HTTP2_STREAM_LOOKAHEAD_BYTES, 16 << 20);  // Windows that take it all.
  const auto stub = v1::StoreService::NewStub(grpc::CreateCustomChannel(
      "unix:" + dir_.File("relay"), grpc::InsecureChannelCredentials(), arguments));
  Reader reader(*stub, object);
  absl::Status fetched;
  uint64_t bytes = 0;
  std::thread thread([&] {
    v1::FetchResponse response;
    while (reader.Read(&response)) bytes += response.frame().payload().size();
    fetched = reader.Finish();
  });
  relay.AwaitStall();
  // Time to do it wrong: the read ahead is refused, and nothing else may happen.
  const absl::Time until = absl::Now() + absl::Milliseconds(300);
  while (store_->counters().reads_refused < 2 && absl::Now() < until) std::this_thread::yield();
  EXPECT_LT(store_->counters().reads_refused, 2u);
  relay.Resume();
  thread.join();
  KVTIER_EXPECT_OK(fetched);
  EXPECT_EQ(bytes, object.manifest->total_bytes());
  EXPECT_EQ(store_->counters().failures, 0u);
}

TEST_F(FetchTest, WhatIsFetchedComesBackIntoMemoryAlsoWithLayersThatHaveOnlyTheirWindow) {
  const CompressedObject object =
      MakeTestObject({.layers = 4, .sliding_layers = 2, .edges = "0.2,0.5,1", .seed = 1});
  Open({object});
  KVTIER_EXPECT_OK(FetchAndCheck(object));
  KVTIER_ASSERT_OK_AND_ASSIGN(const ObjectStat stat,
                              store_->Stat(TenantId(), object.manifest->key));
  EXPECT_EQ(stat.host_bands, 3u);
  EXPECT_EQ(store_->host_usage().bytes, object.manifest->total_bytes());
  KVTIER_EXPECT_OK(FetchAndCheck(object));
  EXPECT_EQ(store_->counters().host_hits, 1u);
}

TEST_F(FetchTest, AFetchOfSomeLayersTakesMemoryForThoseAlone) {
  const CompressedObject object = MakeTestObject({.layers = 4, .edges = "1", .seed = 1});
  const uint64_t segment = object.segment(BandIndex(0), LayerIndex(1)).bytes().size();
  Open({object}, {}, segment);
  Reader reader(*stub_, object, LayerRange{1, 2});
  v1::FetchResponse response;
  uint64_t bytes = 0;
  while (reader.Read(&response)) bytes += response.frame().payload().size();
  KVTIER_EXPECT_OK(reader.Finish());
  EXPECT_EQ(bytes, segment);
  EXPECT_EQ(store_->counters().disk_hits, 1u);
  EXPECT_EQ(store_->counters().bands_filled, 0u);
}

TEST_F(FetchTest, AFetchThatFindsNoMemoryIsToldToComeAgainAndThoseThatHaveSomeGoOn) {
  const CompressedObject first = Large(1);
  const CompressedObject second = Large(2);
  Open({first, second}, {}, SegmentBytesMax(first) * 5 / 2);
  control_->HoldUp(1);
  absl::Status fetched;
  std::thread reader([&] { fetched = FetchAndCheck(first); });
  control_->AwaitReads(1);
  const absl::Status refused = FetchAndCheck(second);
  EXPECT_THAT(refused, StatusIs(absl::StatusCode::kResourceExhausted,
                                testing::HasSubstr("host_budget_bytes")));
  EXPECT_TRUE(RetryAfter(refused).has_value());
  EXPECT_GT(store_->counters().reads_refused, 0u);
  control_->Release();
  reader.join();
  KVTIER_EXPECT_OK(fetched);
  KVTIER_EXPECT_OK(FetchAndCheck(second));
  EXPECT_EQ(store_->host_usage().bytes, 0u);
}

TEST_F(FetchTest, AFailedReadAheadEndsTheFetchBehindTheSegmentsBeforeIt) {
  const CompressedObject object = Large(1);
  Open({object});
  control_->Fail(2, absl::UnavailableError("the disk is away"));
  Reader reader(*stub_, object);
  v1::FetchResponse response;
  ASSERT_TRUE(reader.Read(&response));
  uint64_t bytes = 0;
  while (reader.Read(&response)) bytes += response.frame().payload().size();
  EXPECT_THAT(reader.Finish(), StatusIs(absl::StatusCode::kUnavailable, "the disk is away"));
  EXPECT_EQ(bytes, object.segments[0].bytes().size());
  EXPECT_EQ(control_->reads(), 2) << "what failed is not read again";
}

TEST_F(FetchTest, AReaderThatGoesDuringAReadAheadKeepsItsPinUntilTheReadIsOver) {
  const CompressedObject object = MakeTestObject({.layers = 8,
                                                  .kv_heads = 4,
                                                  .head_dim = 128,
                                                  .context_tokens = 1000,
                                                  .edges = "1",
                                                  .seed = 1});
  Open({object});
  control_->HoldUp(2);
  {
    Reader reader(*stub_, object);
    v1::FetchResponse response;
    ASSERT_TRUE(reader.Read(&response));
    control_->AwaitReads(2);
    EXPECT_EQ(reader.Cancel(), grpc::StatusCode::CANCELLED);
  }
  // Gone for its reader; the object may go now, its bytes only after the read.
  KVTIER_EXPECT_OK(store_->Delete(TenantId(), object.manifest->key, std::nullopt));
  EXPECT_EQ(store_->counters().requests, 0u);
  EXPECT_GT(store_->disk_usage()->bytes, 0u);
  control_->Release();
  server_->Shutdown();  // Waits for the call's end.
  // Two more at most: the read may be over before the next write finds that nobody is there.
  EXPECT_LE(control_->reads(), 4);
  EXPECT_EQ(store_->counters().requests, 1u);
  EXPECT_EQ(store_->counters().disk_hits, 1u);
  EXPECT_EQ(store_->counters().failures, 0u);
  EXPECT_EQ(store_->disk_usage()->bytes, 0u);
}

// A store that sends what a test says.
class ScriptedService final : public v1::StoreService::Service {
 public:
  grpc::Status Fetch(grpc::ServerContext*, const v1::FetchRequest*,
                     grpc::ServerWriter<v1::FetchResponse>* writer) override {
    for (const v1::FetchResponse& message : messages) writer->Write(message);
    return grpc::Status::OK;
  }
  std::vector<v1::FetchResponse> messages;
};

class FetchStreamTest : public testing::Test {
 protected:
  FetchStreamTest() : server_(Serve()) {
    object_ = MakeTestObject({.layers = 2, .edges = "0.5,1"});
    v1::FetchHeader& header = *messages().emplace_back().mutable_header();
    header.set_manifest(EncodeManifest(*object_.manifest));
    header.set_band_count(2);
    header.set_payload_bytes(object_.manifest->total_bytes());
  }

  std::vector<v1::FetchResponse>& messages() { return service_.messages; }
  v1::FetchHeader& header() { return *messages()[0].mutable_header(); }
  // All frames, in order.
  std::vector<v1::SegmentFrame> Frames() const {
    std::vector<v1::SegmentFrame> frames;
    for (uint32_t layer = 0; layer < 2; ++layer) {
      for (uint32_t band = 0; band < 2; ++band) {
        const std::span<const std::byte> bytes =
            object_.segment(BandIndex(band), LayerIndex(layer)).bytes();
        v1::SegmentFrame& frame = frames.emplace_back();
        frame.set_band(band);
        frame.set_layer(layer);
        frame.set_payload(bytes.data(), bytes.size());
      }
    }
    return frames;
  }
  absl::Status Fetch() {
    const auto transport = MakeGrpcTransport(ChannelTo(*server_));
    FetchRequest request;
    request.key = object_.manifest->key;
    return FetchRaggedCache(*transport, request, Soon()).status();
  }

 private:
  std::unique_ptr<Server> Serve() { return StartLocalServer({&service_}, metrics_); }

 protected:
  CompressedObject object_;

 private:
  ScriptedService service_;
  Metrics metrics_;
  const std::unique_ptr<Server> server_;
};

TEST_F(FetchStreamTest, TakesAnyNumberOfFramesWithTheHeader) {
  const std::vector<v1::SegmentFrame> frames = Frames();
  for (size_t with_header = 0; with_header <= frames.size(); ++with_header) {
    SCOPED_TRACE(with_header);
    messages().resize(1);
    header().clear_frames();
    for (size_t i = 0; i < frames.size(); ++i) {
      *(i < with_header ? header().add_frames() : messages().emplace_back().mutable_frame()) =
          frames[i];
    }
    KVTIER_EXPECT_OK(Fetch());
  }
}

TEST_F(FetchStreamTest, RefusesFramesOfTheHeaderThatDoNotFollowThePlan) {
  const std::vector<v1::SegmentFrame> frames = Frames();
  const auto fill = [&] {
    header().clear_frames();
    for (const v1::SegmentFrame& frame : frames) *header().add_frames() = frame;
  };
  fill();
  *header().add_frames() = frames.back();
  EXPECT_THAT(Fetch(), StatusIs(absl::StatusCode::kDataLoss,
                                testing::HasSubstr("more after the last frame")));
  fill();
  header().mutable_frames()->SwapElements(0, 1);
  EXPECT_THAT(Fetch(), StatusIs(absl::StatusCode::kDataLoss, testing::HasSubstr("was due")));
  fill();
  header().mutable_frames(1)->clear_payload();
  EXPECT_THAT(Fetch(), StatusIs(absl::StatusCode::kDataLoss, testing::HasSubstr("was due")));
  fill();
  header().mutable_frames(2)->mutable_payload()->push_back('x');
  EXPECT_THAT(Fetch(), StatusIs(absl::StatusCode::kDataLoss, testing::HasSubstr("was due")));
  fill();
  header().mutable_frames(3)->mutable_payload()->back() ^= 1;
  EXPECT_THAT(Fetch(),
              StatusIs(absl::StatusCode::kDataLoss, testing::HasSubstr("band 1, layer 1")));
  fill();
  header().mutable_frames()->RemoveLast();
  EXPECT_THAT(Fetch(), StatusIs(absl::StatusCode::kDataLoss, testing::HasSubstr("ended early")));
}

}  // namespace
}  // namespace kvtier
