// StoreService through real gRPC, in one process: what store.proto promises about each call.
#include "services/store_service.h"

#include <algorithm>
#include <memory>
#include <string>
#include <vector>

#include "base/bytes.h"
#include "base/clock.h"
#include "base/limits.h"
#include "base/status_matchers.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kvcache/manifest.h"
#include "kvtier/v1/store.grpc.pb.h"
#include "services/client.h"
#include "services/metrics.h"
#include "services/server.h"
#include "services/status_grpc.h"
#include "tests/testing/eventually.h"
#include "tests/testing/local_server.h"
#include "tests/testing/open_put.h"
#include "tests/testing/store_checks.h"
#include "tests/testing/temp_dir.h"
#include "tests/testing/test_object.h"

namespace kvtier {
namespace {

using ::testing::HasSubstr;

absl::Time Soon() { return absl::Now() + absl::Seconds(50); }

class StoreServiceTest : public testing::Test {
 protected:
  // `folder` empty: host memory only.
  void Open(const std::string& folder, uint64_t host_budget_bytes,
            const StoreServiceOptions& options = {}) {
    store_ = *OpenTestStore(folder, host_budget_bytes, Clock::Real());
    metrics_ = std::make_unique<Metrics>();
    service_ = MakeStoreService(options, *store_, *metrics_, Clock::Real());
    server_ = StartLocalServer({service_.get()}, *metrics_);
    channel_ = ChannelTo(*server_);
    client_ = std::make_unique<StoreClient>(channel_);
    stub_ = v1::StoreService::NewStub(channel_);
  }

  absl::Status Put(const CompressedObject& object, v1::Durability durability) {
    return client_->Put(object, durability, nullptr, CancelToken(), Soon()).status();
  }

  static v1::PutRequest Header(const CompressedObject& object) {
    v1::PutRequest request;
    request.mutable_header()->set_manifest(EncodeManifest(*object.manifest));
    request.mutable_header()->set_durability(v1::DURABILITY_HOST);
    return request;
  }
  static v1::PutRequest Chunk(uint64_t offset, absl::string_view payload) {
    v1::PutRequest request;
    request.mutable_chunk()->set_object_offset(offset);
    request.mutable_chunk()->set_payload(std::string(payload));
    return request;
  }
  // Sends messages with the generated classes.
  absl::StatusOr<v1::ObjectSummary> SendPut(const std::vector<v1::PutRequest>& messages) {
    grpc::ClientContext context;
    context.set_deadline(absl::ToChronoTime(Soon()));
    v1::PutResponse response;
    const auto stream = stub_->Put(&context, &response);
    for (const v1::PutRequest& message : messages) {
      if (!stream->Write(message)) break;
    }
    stream->WritesDone();
    const grpc::Status status = stream->Finish();
    if (!status.ok()) return FromGrpcStatus(status);
    return response.object();
  }
  absl::StatusOr<uint64_t> UploadedBytes(const CompressedObject& object) {
    grpc::ClientContext context;
    v1::QueryUploadRequest request;
    request.set_upload_id(std::string(object.manifest->upload_id.AsStringView()));
    v1::QueryUploadResponse response;
    const grpc::Status status = stub_->QueryUpload(&context, request, &response);
    if (!status.ok()) return FromGrpcStatus(status);
    return response.uploaded_bytes();
  }
  absl::StatusOr<std::shared_ptr<const RaggedCache>> FetchCache(const CompressedObject& object,
                                                                double ratio) {
    const auto transport = MakeGrpcTransport(channel_);
    FetchRequest request;
    request.key = object.manifest->key;
    request.ratio = *Ratio::FromDouble(ratio);
    request.min_ratio = *Ratio::FromDouble(0.1);
    return FetchRaggedCache(*transport, request, Soon());
  }

  TempDir dir_;
  std::unique_ptr<TieredStore> store_;
  std::unique_ptr<Metrics> metrics_;
  std::unique_ptr<grpc::Service> service_;
  std::unique_ptr<Server> server_;
  std::shared_ptr<grpc::Channel> channel_;
  std::unique_ptr<StoreClient> client_;
  std::unique_ptr<v1::StoreService::Stub> stub_;
};

TEST_F(StoreServiceTest, WhatIsPutIsThere) {
  Open(dir_.path(), 64 << 20);
  const CompressedObject object = MakeTestObject({});
  uint64_t reached = 0;
  KVTIER_ASSERT_OK_AND_ASSIGN(const v1::ObjectSummary summary,
                              client_->Put(
                                  object, v1::DURABILITY_UNSPECIFIED,
                                  [&](uint64_t bytes) { reached = bytes; }, CancelToken(), Soon()));
  EXPECT_EQ(reached, object.manifest->total_bytes());
  EXPECT_EQ(summary.name().key(), object.manifest->key.AsStringView());
  EXPECT_EQ(summary.name().upload_id(), object.manifest->upload_id.AsStringView());
  EXPECT_EQ(summary.durability(), v1::DURABILITY_DISK) << "the store has one";
  EXPECT_EQ(summary.resident_bands(), 6u);
  EXPECT_EQ(summary.disk_bands(), 6u);
  EXPECT_EQ(summary.context_tokens(), 60u);
  EXPECT_EQ(summary.bands_size(), 6);
  KVTIER_EXPECT_OK(CheckStored(*store_, TenantId(), object, 6));

  KVTIER_ASSERT_OK_AND_ASSIGN(const v1::GetObjectResponse got,
                              client_->GetObject(object.manifest->key, Soon()));
  EXPECT_EQ(got.manifest(), EncodeManifest(*object.manifest));
  EXPECT_EQ(got.object().SerializeAsString(), summary.SerializeAsString());

  KVTIER_ASSERT_OK_AND_ASSIGN(const auto cache, FetchCache(object, 0.3));
  EXPECT_EQ(cache->band_count(), 3u);
  EXPECT_EQ(cache->bytes(), object.manifest->PrefixBytes(3));

  KVTIER_ASSERT_OK_AND_ASSIGN(const v1::VerifyResponse verified,
                              client_->Verify(object.manifest->key, Soon()));
  EXPECT_EQ(verified.segments(), 18u);
  EXPECT_EQ(verified.bytes(), object.manifest->total_bytes());
}

TEST_F(StoreServiceTest, AnOrdinaryClientCanPutInAnyPieces) {
  Open("", 64 << 20);
  const CompressedObject object = MakeTestObject({});
  const std::string bytes = ToString(ConcatenateSegments(object));
  std::vector<v1::PutRequest> messages = {Header(object)};
  for (size_t offset = 0; offset < bytes.size(); offset += 1000) {
    messages.push_back(Chunk(offset, absl::string_view(bytes).substr(offset, 1000)));
  }
  KVTIER_ASSERT_OK(SendPut(messages));
  KVTIER_EXPECT_OK(CheckStored(*store_, TenantId(), object, 6));
  // Finishing twice is fine, with the bytes again or, as QueryUpload tells, without them.
  KVTIER_EXPECT_OK(SendPut(messages));
  EXPECT_THAT(UploadedBytes(object), IsOkAndHolds(bytes.size()));
  KVTIER_ASSERT_OK_AND_ASSIGN(const v1::ObjectSummary again, SendPut({Header(object)}));
  EXPECT_EQ(again.name().upload_id(), object.manifest->upload_id.AsStringView());
}

TEST_F(StoreServiceTest, ACutPutIsResumedWhereItGotTo) {
  Open("", 64 << 20);
  const CompressedObject object = MakeTestObject({});
  const std::string bytes = ToString(ConcatenateSegments(object));
  EXPECT_THAT(UploadedBytes(object), StatusIs(absl::StatusCode::kNotFound));

  const size_t half = bytes.size() / 2;
  EXPECT_THAT(SendPut({Header(object), Chunk(0, absl::string_view(bytes).substr(0, half))}),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("bytes have arrived")));
  EXPECT_THAT(store_->Stat(TenantId(), object.manifest->key),
              StatusIs(absl::StatusCode::kNotFound));
  KVTIER_ASSERT_OK_AND_ASSIGN(const uint64_t uploaded, UploadedBytes(object));
  EXPECT_GT(uploaded, 0u);
  EXPECT_LE(uploaded, half);

  // Once more from somewhat before that point: repeated bytes are skipped.
  const size_t again = uploaded / 2;
  KVTIER_ASSERT_OK(SendPut({Header(object), Chunk(again, absl::string_view(bytes).substr(again))}));
  KVTIER_EXPECT_OK(CheckStored(*store_, TenantId(), object, 6));
}

TEST_F(StoreServiceTest, ADamagedUploadIsRefusedAndCanBeMended) {
  Open("", 64 << 20);
  const CompressedObject object = MakeTestObject({});
  const std::string good = ToString(ConcatenateSegments(object));
  std::string bad = good;
  bad[bad.size() - 100] ^= 1;
  EXPECT_THAT(SendPut({Header(object), Chunk(0, bad)}),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("band 5, layer 2")));
  KVTIER_ASSERT_OK_AND_ASSIGN(const uint64_t uploaded, UploadedBytes(object));
  EXPECT_EQ(uploaded, good.size() - object.segments.back().bytes().size());
  KVTIER_EXPECT_OK(
      SendPut({Header(object), Chunk(uploaded, absl::string_view(good).substr(uploaded))}));
  KVTIER_EXPECT_OK(CheckStored(*store_, TenantId(), object, 6));
}

TEST_F(StoreServiceTest, BadPutsAreRefused) {
  Open("", 64 << 20);
  const CompressedObject object = MakeTestObject({});
  const std::string bytes = ToString(ConcatenateSegments(object));
  v1::PutRequest garbage;
  garbage.mutable_header()->set_manifest("not a manifest");
  v1::PutRequest wants_disk = Header(object);
  wants_disk.mutable_header()->set_durability(v1::DURABILITY_DISK);
  v1::PutRequest odd_durability = Header(object);
  odd_durability.mutable_header()->set_durability(static_cast<v1::Durability>(77));

  const struct {
    const char* name;
    std::vector<v1::PutRequest> messages;
    absl::StatusCode code;
    const char* text;
  } cases[] = {
      {"nothing", {}, absl::StatusCode::kInvalidArgument, "header"},
      {"chunk_first", {Chunk(0, "x")}, absl::StatusCode::kInvalidArgument, "header"},
      {"garbage_manifest", {garbage}, absl::StatusCode::kInvalidArgument, "manifest"},
      {"two_headers",
       {Header(object), Header(object)},
       absl::StatusCode::kInvalidArgument,
       "chunk"},
      {"gap", {Header(object), Chunk(64, "x")}, absl::StatusCode::kInvalidArgument, "gap"},
      {"past_the_end",
       {Header(object), Chunk(0, bytes), Chunk(bytes.size(), "x")},
       absl::StatusCode::kInvalidArgument,
       "end"},
      {"frame_too_large",
       {Header(object), Chunk(0, std::string(limits::kFrameBytesMax + 1, 'x'))},
       absl::StatusCode::kInvalidArgument,
       "1048576"},
      {"no_disk", {wants_disk}, absl::StatusCode::kFailedPrecondition, "disk"},
      {"odd_durability", {odd_durability}, absl::StatusCode::kInvalidArgument, "77"},
  };
  for (const auto& c : cases) {
    SCOPED_TRACE(c.name);
    EXPECT_THAT(SendPut(c.messages), StatusIs(c.code, HasSubstr(c.text)));
  }
  EXPECT_EQ(store_->object_count(), 0u) << "nothing half-stored";
}

TEST_F(StoreServiceTest, AFullStoreSaysWhenToTryAgainUnlessNothingCanMakeRoom) {
  const CompressedObject first = MakeTestObject({.seed = 1});
  Open("", first.manifest->total_bytes() * 3 / 2);
  KVTIER_ASSERT_OK(Put(first, v1::DURABILITY_HOST));
  {
    KVTIER_ASSERT_OK_AND_ASSIGN(const auto reader,
                                store_->Pin(TenantId(), first.manifest->key, std::nullopt));
    const absl::Status full = Put(MakeTestObject({.seed = 2}), v1::DURABILITY_HOST);
    EXPECT_THAT(full, StatusIs(absl::StatusCode::kResourceExhausted));
    EXPECT_GT(RetryAfter(full), absl::ZeroDuration());
  }
  const absl::Status too_large =
      Put(MakeTestObject({.context_tokens = 2000, .seed = 3}), v1::DURABILITY_HOST);
  EXPECT_THAT(too_large, StatusIs(absl::StatusCode::kResourceExhausted));
  EXPECT_EQ(RetryAfter(too_large), std::nullopt);
  EXPECT_EQ(store_->Stat(TenantId(), first.manifest->key)->resident_bands, 6u) << "nor costs it";
}

// Pressure costs quality, and who fetches is told how much.
TEST_F(StoreServiceTest, AFetchUnderPressureIsToldTheRatioItGot) {
  const CompressedObject first = MakeTestObject({.seed = 1});
  Open("", first.manifest->total_bytes() * 3 / 2);
  KVTIER_ASSERT_OK(Put(first, v1::DURABILITY_HOST));
  KVTIER_ASSERT_OK_AND_ASSIGN(const auto whole, FetchCache(first, 1));
  EXPECT_EQ(whole->ratio(), Ratio());
  KVTIER_ASSERT_OK(Put(MakeTestObject({.seed = 2}), v1::DURABILITY_HOST));
  const uint32_t left = store_->Stat(TenantId(), first.manifest->key)->resident_bands;
  ASSERT_LT(left, 6u);
  ASSERT_GE(left, 2u);
  KVTIER_ASSERT_OK_AND_ASSIGN(const auto degraded, FetchCache(first, 1));
  EXPECT_EQ(degraded->ratio(), first.manifest->bands[left - 1].edge);
  EXPECT_EQ(degraded->bytes(), first.manifest->PrefixBytes(left));
  // Below what is accepted it is a miss.
  FetchRequest request;
  request.key = first.manifest->key;
  request.min_ratio = first.manifest->bands[left].edge;
  EXPECT_THAT(FetchRaggedCache(*MakeGrpcTransport(channel_), request, Soon()),
              StatusIs(absl::StatusCode::kNotFound));
}

TEST_F(StoreServiceTest, TooManyCallsAtOnceAreRefused) {
  Open("", 1 << 20, {.calls_max = 1});
  absl::Status refused;
  {
    const OpenPut put(*stub_, MakeTestObject({}));  // It has the only place until it ends.
    ASSERT_TRUE(put.HasBegun(*store_));
    refused = client_->Stats(Soon()).status();
    EXPECT_THAT(refused, StatusIs(absl::StatusCode::kResourceExhausted, HasSubstr("1 calls")));
    EXPECT_TRUE(RetryAfter(refused).has_value());
  }
  do {
    refused = client_->Stats(Soon()).status();
  } while (absl::IsResourceExhausted(refused));
  KVTIER_EXPECT_OK(refused);
}

TEST_F(StoreServiceTest, ListsInPagesInKeyOrder) {
  Open("", 64 << 20);
  std::vector<std::string> keys;
  for (uint64_t seed = 1; seed <= 5; ++seed) {
    const CompressedObject object = MakeTestObject({.seed = seed});
    KVTIER_ASSERT_OK(Put(object, v1::DURABILITY_HOST));
    keys.emplace_back(object.manifest->key.AsStringView());
  }
  std::sort(keys.begin(), keys.end());
  std::vector<std::string> listed;
  std::string after;
  int pages = 0;
  do {
    KVTIER_ASSERT_OK_AND_ASSIGN(const v1::ListResponse page, client_->List(after, 2, Soon()));
    for (const v1::ObjectSummary& object : page.objects()) listed.push_back(object.name().key());
    after = page.next_after_key();
    ++pages;
  } while (!after.empty());
  EXPECT_EQ(listed, keys);
  EXPECT_EQ(pages, 3);
  EXPECT_THAT(client_->List("", limits::kListPageMax + 1, Soon()),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("1000")));
  EXPECT_THAT(client_->List("short", 1, Soon()), StatusIs(absl::StatusCode::kInvalidArgument));

  StoreClient somebody_else(channel_, *TenantId::FromString("somebody-else"));
  KVTIER_ASSERT_OK_AND_ASSIGN(const v1::ListResponse nothing, somebody_else.List("", 0, Soon()));
  EXPECT_EQ(nothing.objects_size(), 0);
}

TEST_F(StoreServiceTest, DeleteRemovesOrGivesUpBands) {
  Open("", 64 << 20);
  const CompressedObject object = MakeTestObject({});
  const Key key = object.manifest->key;
  KVTIER_ASSERT_OK(Put(object, v1::DURABILITY_HOST));
  for (const double bad : {-0.5, 1.0, 1.5}) {
    EXPECT_THAT(client_->Delete(key, bad, Soon()), StatusIs(absl::StatusCode::kInvalidArgument));
  }
  KVTIER_ASSERT_OK_AND_ASSIGN(v1::DeleteResponse left, client_->Delete(key, 0.35, Soon()));
  EXPECT_EQ(left.object().resident_bands(), 3u);
  KVTIER_EXPECT_OK(CheckStored(*store_, TenantId(), object, 3));
  KVTIER_ASSERT_OK_AND_ASSIGN(left, client_->Delete(key, 0.01, Soon()));
  EXPECT_EQ(left.object().resident_bands(), 1u) << "at least band 0";

  KVTIER_ASSERT_OK_AND_ASSIGN(left, client_->Delete(key, 0, Soon()));
  EXPECT_FALSE(left.has_object());
  EXPECT_THAT(client_->Delete(key, 0, Soon()), StatusIs(absl::StatusCode::kNotFound));
  EXPECT_THAT(client_->GetObject(key, Soon()), StatusIs(absl::StatusCode::kNotFound));
  EXPECT_THAT(client_->Verify(key, Soon()), StatusIs(absl::StatusCode::kNotFound));
}

TEST_F(StoreServiceTest, BadFetchesAreRefused) {
  Open("", 64 << 20);
  const CompressedObject object = MakeTestObject({});
  KVTIER_ASSERT_OK(Put(object, v1::DURABILITY_HOST));
  const auto fetch = [&](const std::function<void(v1::FetchRequest&)>& change) {
    v1::FetchRequest request;
    request.mutable_name()->set_key(std::string(object.manifest->key.AsStringView()));
    change(request);
    grpc::ClientContext context;
    const auto stream = stub_->Fetch(&context, request);
    v1::FetchResponse response;
    while (stream->Read(&response)) {
    }
    return FromGrpcStatus(stream->Finish());
  };
  KVTIER_EXPECT_OK(fetch([](v1::FetchRequest&) {}));
  const auto invalid = StatusIs(absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(fetch([](v1::FetchRequest& r) { r.mutable_name()->set_key("short"); }), invalid);
  EXPECT_THAT(fetch([](v1::FetchRequest& r) { r.mutable_name()->set_upload_id("short"); }),
              invalid);
  EXPECT_THAT(fetch([](v1::FetchRequest& r) { r.mutable_extent()->set_ratio(1.5); }), invalid);
  EXPECT_THAT(fetch([](v1::FetchRequest& r) { r.mutable_extent()->set_ratio(-1); }), invalid);
  EXPECT_THAT(fetch([](v1::FetchRequest& r) { r.mutable_layers(); }), invalid);
  EXPECT_THAT(fetch([](v1::FetchRequest& r) {
                r.mutable_heads()->set_begin(1);
                r.mutable_heads()->set_end(9);
              }),
              StatusIs(absl::StatusCode::kOutOfRange));
}

TEST_F(StoreServiceTest, ATenantNameThatCannotBeIsRefused) {
  Open("", 1 << 20);
  grpc::ClientContext context;
  context.AddMetadata("kvtier-tenant", "no spaces allowed");
  v1::StatsResponse response;
  EXPECT_THAT(FromGrpcStatus(stub_->Stats(&context, v1::StatsRequest(), &response)),
              StatusIs(absl::StatusCode::kInvalidArgument));
}

TEST_F(StoreServiceTest, StatsSayWhatThereIsAndWhatIsAllowed) {
  Open(dir_.path(), 64 << 20);
  const CompressedObject object = MakeTestObject({});
  KVTIER_ASSERT_OK(Put(object, v1::DURABILITY_DISK));
  KVTIER_ASSERT_OK_AND_ASSIGN(const v1::StatsResponse stats, client_->Stats(Soon()));
  EXPECT_EQ(stats.objects(), 1u);
  EXPECT_EQ(stats.host().budget_bytes(), uint64_t{64} << 20);
  EXPECT_GE(stats.host().bytes(), object.manifest->total_bytes());
  EXPECT_TRUE(stats.has_disk());
  EXPECT_EQ(stats.limits().frame_bytes_max(), limits::kFrameBytesMax);
  EXPECT_EQ(stats.limits().list_page_max(), limits::kListPageMax);
  EXPECT_EQ(stats.incarnation(), store_->incarnation());
  EXPECT_FALSE(stats.version().empty());
}

TEST_F(StoreServiceTest, AReaderThatLeavesLetsGoOfEverything) {
  Open("", uint64_t{256} << 20);
  // About 40 MB: far more than fits into the buffers of a connection.
  const CompressedObject object =
      MakeTestObject({.layers = 4, .kv_heads = 4, .head_dim = 128, .context_tokens = 5000});
  KVTIER_ASSERT_OK(Put(object, v1::DURABILITY_HOST));
  const TierUsage before = store_->host_usage();
  {
    v1::FetchRequest request;
    request.mutable_name()->set_key(std::string(object.manifest->key.AsStringView()));
    grpc::ClientContext context;
    const auto stream = stub_->Fetch(&context, request);
    v1::FetchResponse response;
    ASSERT_TRUE(stream->Read(&response));
    // The object goes while it is read: its memory stays charged until the reader has gone.
    KVTIER_ASSERT_OK(client_->Delete(object.manifest->key, 0, Soon()));
    EXPECT_EQ(store_->host_usage().bytes, before.bytes);
    context.TryCancel();
    EXPECT_EQ(stream->Finish().error_code(), grpc::StatusCode::CANCELLED);
  }
  const absl::Time deadline = Soon();
  while (store_->host_usage().bytes > 0 && absl::Now() < deadline) {
    KVTIER_ASSERT_OK(client_->Stats(Soon()));
  }
  EXPECT_EQ(store_->host_usage().bytes, 0u);
}

TEST_F(StoreServiceTest, ACancelledPutCanBeResumed) {
  Open("", 64 << 20);
  const CompressedObject object =
      MakeTestObject({.layers = 2, .kv_heads = 4, .head_dim = 128, .context_tokens = 1000});
  CancelToken cancel;
  EXPECT_THAT(client_->Put(
                  object, v1::DURABILITY_HOST, [&](uint64_t) { cancel.Cancel(); }, cancel, Soon()),
              StatusIs(absl::StatusCode::kCancelled));
  KVTIER_EXPECT_OK(Put(object, v1::DURABILITY_HOST));
  KVTIER_EXPECT_OK(CheckStored(*store_, TenantId(), object, 6));
}

TEST_F(StoreServiceTest, RequestsAreHitsMissesAndFailures) {
  Open(dir_.path(), 64 << 20);
  const CompressedObject object = MakeTestObject({});
  KVTIER_ASSERT_OK(Put(object, v1::DURABILITY_DISK));
  KVTIER_ASSERT_OK(FetchCache(object, 1));
  KVTIER_ASSERT_OK(FetchCache(object, 0.1));
  EXPECT_THAT(FetchCache(MakeTestObject({.seed = 2}), 1), StatusIs(absl::StatusCode::kNotFound));
  const StoreCounters& counters = store_->counters();
  EXPECT_EQ(counters.requests, 3u);
  EXPECT_EQ(counters.host_hits, 2u);
  EXPECT_EQ(counters.misses, 1u);
  EXPECT_EQ(counters.disk_hits + counters.failures, 0u);
}

}  // namespace
}  // namespace kvtier
