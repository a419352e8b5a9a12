// FetchSmall through real gRPC: what is answered at once, what is refused and how the client goes
// on, and what it makes of answers that do not follow the protocol.
#include <algorithm>
#include <atomic>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <prometheus/collectable.h>
#include <prometheus/metric_family.h>

#include "base/clock.h"
#include "base/limits.h"
#include "base/status_matchers.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kvtier/v1/store.grpc.pb.h"
#include "services/client.h"
#include "services/metrics.h"
#include "services/server.h"
#include "services/status_grpc.h"
#include "services/store_service.h"
#include "store/lease_table.h"
#include "tests/testing/local_server.h"
#include "tests/testing/open_put.h"
#include "tests/testing/store_checks.h"
#include "tests/testing/temp_dir.h"
#include "tests/testing/test_object.h"

namespace kvtier {
namespace {

using ::testing::HasSubstr;

absl::Time Soon() { return absl::Now() + absl::Seconds(50); }

// Fetches all of `object` with this hint, and verifies it.
absl::Status FetchHinted(Transport& transport, const CompressedObject& object,
                         uint64_t expected_bytes) {
  FetchRequest request;
  request.key = object.manifest->key;
  request.expected_bytes = expected_bytes;
  absl::StatusOr<std::shared_ptr<const RaggedCache>> cache =
      FetchRaggedCache(transport, request, Soon());
  if (!cache.ok()) return cache.status();
  EXPECT_EQ((*cache)->bytes(), object.manifest->total_bytes());
  return absl::OkStatus();
}
absl::Status FetchHinted(const std::shared_ptr<grpc::Channel>& channel,
                         const CompressedObject& object, uint64_t expected_bytes) {
  return FetchHinted(*MakeGrpcTransport(channel), object, expected_bytes);
}

class FetchSmallTest : public testing::Test {
 protected:
  FetchSmallTest() { Open(); }

  // What was in host memory alone is gone then.
  void Open(uint64_t host_bytes = uint64_t{64} << 20) {
    server_.reset();
    service_.reset();
    leases_.reset();
    store_.reset();
    store_ = *OpenTestStore(dir_.path(), host_bytes, Clock::Real());
    leases_ = std::make_unique<LeaseTable>(
        LeaseTable::Options{.leases_max = 4, .bytes_max = uint64_t{32} << 20}, *store_);
    service_ = MakeStoreService({.leases = leases_.get()}, *store_, metrics_, Clock::Real());
    server_ = StartLocalServer({service_.get()}, metrics_);
    channel_ = ChannelTo(*server_);
    stub_ = v1::StoreService::NewStub(channel_);
  }

  static v1::FetchSmallRequest RequestOf(const CompressedObject& object) {
    v1::FetchSmallRequest request;
    request.mutable_fetch()->mutable_name()->set_key(
        std::string(object.manifest->key.AsStringView()));
    return request;
  }
  // The answer's payload.
  absl::StatusOr<std::string> Call(const v1::FetchSmallRequest& request) {
    grpc::ClientContext context;
    context.set_deadline(absl::ToChronoTime(Soon()));
    v1::FetchSmallResponse response;
    const grpc::Status status = stub_->FetchSmall(&context, request, &response);
    if (!status.ok()) return FromGrpcStatus(status);
    std::string payload;
    for (const v1::SegmentFrame& frame : response.header().frames()) payload += frame.payload();
    EXPECT_EQ(payload.size(), response.header().payload_bytes());
    return payload;
  }
  // Calls that ended so.
  double RpcCount(const std::string& method, const std::string& code) {
    double count = 0;
    for (const auto& collectable : metrics_.collectables()) {
      for (const prometheus::MetricFamily& family : collectable->Collect()) {
        if (family.name != "kvtier_rpc_requests_total") continue;
        for (const prometheus::ClientMetric& metric : family.metric) {
          const auto has = [&](const char* name, const std::string& value) {
            return std::ranges::any_of(metric.label, [&](const auto& label) {
              return label.name == name && label.value == value;
            });
          };
          if (has("method", method) && has("code", code)) count += metric.counter.value;
        }
      }
    }
    return count;
  }

  static CompressedObject Small(uint64_t seed) { return MakeTestObject({.seed = seed}); }
  // A little more than one answer may have.
  static CompressedObject Large(uint64_t seed) {
    return MakeTestObject({.layers = 1, .kv_heads = 2, .context_tokens = 1000, .seed = seed});
  }

  const TempDir dir_;
  Metrics metrics_;
  std::unique_ptr<TieredStore> store_;
  std::unique_ptr<LeaseTable> leases_;
  std::unique_ptr<grpc::Service> service_;
  std::unique_ptr<Server> server_;
  std::shared_ptr<grpc::Channel> channel_;
  std::unique_ptr<v1::StoreService::Stub> stub_;
};

TEST_F(FetchSmallTest, BringsWhatFetchBringsFromHostMemoryAndFromDisk) {
  const CompressedObject object = Small(1);
  ASSERT_LE(object.manifest->total_bytes(), limits::kSmallFetchBytesMax);
  KVTIER_ASSERT_OK(store_->Put(TenantId(), object, Durability::kDisk));
  KVTIER_EXPECT_OK(FetchHinted(channel_, object, object.manifest->total_bytes()));
  EXPECT_EQ(store_->counters().host_hits, 1u);
  EXPECT_EQ(RpcCount("FetchSmall", "OK"), 1);

  Open();
  KVTIER_EXPECT_OK(FetchHinted(channel_, object, object.manifest->total_bytes()));
  EXPECT_EQ(store_->counters().disk_hits, 1u);
  EXPECT_EQ(RpcCount("FetchSmall", "OK"), 2);
  EXPECT_EQ(RpcCount("Fetch", "OK"), 0);
  EXPECT_EQ(metrics_.store_fetch_bytes.Value(),
            2 * static_cast<double>(object.manifest->total_bytes()));
}

// The answer begins with what memory has, and goes on with the rest.
TEST_F(FetchSmallTest, BringsEachSegmentOnceWhenBandsAreInHostMemoryInPart) {
  const CompressedObject object = Small(1);
  KVTIER_ASSERT_OK(store_->Put(TenantId(), object, Durability::kDisk));
  Open();
  FetchRequest least;
  least.key = object.manifest->key;
  least.ratio = object.manifest->bands[1].edge;
  least.min_ratio = least.ratio;
  KVTIER_ASSERT_OK(leases_->Acquire(least, BandPlacement::kAny));  // Reads two bands into memory.
  ASSERT_EQ(store_->Stat(TenantId(), object.manifest->key)->host_bands, 2u);
  std::string expected;
  for (uint32_t layer = 0; layer < object.manifest->geometry.layer_count(); ++layer) {
    for (uint32_t band = 0; band < object.manifest->bands.size(); ++band) {
      const std::span<const std::byte> bytes =
          object.segment(BandIndex(band), LayerIndex(layer)).bytes();
      expected.append(reinterpret_cast<const char*>(bytes.data()), bytes.size());
    }
  }
  EXPECT_THAT(Call(RequestOf(object)), IsOkAndHolds(expected));
  EXPECT_EQ(store_->counters().failures, 0u);
}

TEST_F(FetchSmallTest, WhatIsLargerIsOutOfRangeByNameAndTheClientGoesOnWithFetch) {
  const CompressedObject object = Large(1);
  ASSERT_GT(object.manifest->total_bytes(), limits::kSmallFetchBytesMax);
  KVTIER_ASSERT_OK(store_->Put(TenantId(), object, Durability::kHost));
  EXPECT_THAT(Call(RequestOf(object)),
              StatusIs(absl::StatusCode::kOutOfRange, HasSubstr("small_fetch_bytes_max 32768")));
  EXPECT_EQ(store_->counters().requests, 0u);  // It is to be asked again, and counted then.
  // A part of it may be small.
  v1::FetchSmallRequest request = RequestOf(object);
  request.mutable_fetch()->mutable_extent()->set_bytes_max(object.manifest->PrefixBytes(1));
  ASSERT_LE(object.manifest->PrefixBytes(1), limits::kSmallFetchBytesMax);
  absl::StatusOr<std::string> part = Call(request);
  KVTIER_ASSERT_OK(part);
  EXPECT_EQ(part->size(), object.manifest->PrefixBytes(1));

  KVTIER_EXPECT_OK(FetchHinted(channel_, object, /*expected_bytes=*/1));
  EXPECT_EQ(RpcCount("FetchSmall", "OUT_OF_RANGE"), 2);
  EXPECT_EQ(RpcCount("Fetch", "OK"), 1);
  EXPECT_EQ(store_->counters().requests, 2u);  // The part, and this.
  EXPECT_EQ(store_->counters().host_hits, 2u);
  EXPECT_EQ(store_->counters().misses, 0u);
  // Who does not expect little asks once.
  KVTIER_EXPECT_OK(FetchHinted(channel_, object, object.manifest->total_bytes()));
  EXPECT_EQ(RpcCount("FetchSmall", "OUT_OF_RANGE"), 2);
}

TEST_F(FetchSmallTest, ErrorsAreThoseOfFetchAndAMissCostsOneCall) {
  const CompressedObject object = Small(1);
  EXPECT_THAT(FetchHinted(channel_, object, 1),
              StatusIs(absl::StatusCode::kNotFound, testing::IsEmpty()));
  EXPECT_EQ(RpcCount("Fetch", "NOT_FOUND"), 0);
  v1::FetchSmallRequest request = RequestOf(object);
  request.mutable_fetch()->mutable_name()->set_key("too short");
  EXPECT_THAT(Call(request), StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(Call({}), StatusIs(absl::StatusCode::kInvalidArgument));

  KVTIER_ASSERT_OK(store_->Put(TenantId(), object, Durability::kHost));
  request = RequestOf(object);
  request.mutable_fetch()->mutable_layers()->set_end(1000);
  EXPECT_THAT(Call(request), StatusIs(absl::StatusCode::kOutOfRange, HasSubstr("1000")));
}

TEST_F(FetchSmallTest, ReadsUnderALease) {
  const CompressedObject object = Small(1);
  KVTIER_ASSERT_OK(store_->Put(TenantId(), object, Durability::kHost));
  grpc::ClientContext context;
  const auto stream = stub_->Lease(&context);
  v1::LeaseRequest acquire;
  *acquire.mutable_acquire()->mutable_name() = RequestOf(object).fetch().name();
  v1::LeaseResponse response;
  ASSERT_TRUE(stream->Write(acquire));
  ASSERT_TRUE(stream->Read(&response));
  ASSERT_TRUE(response.has_granted());
  KVTIER_ASSERT_OK(store_->Delete(TenantId(), object.manifest->key));

  v1::FetchSmallRequest request = RequestOf(object);
  EXPECT_THAT(Call(request), StatusIs(absl::StatusCode::kNotFound));
  *request.mutable_fetch()->mutable_lease() = response.granted().lease();
  absl::StatusOr<std::string> held = Call(request);
  KVTIER_ASSERT_OK(held);
  EXPECT_EQ(held->size(), object.manifest->total_bytes());
  stream->WritesDone();
  EXPECT_TRUE(stream->Finish().ok());
}

TEST_F(FetchSmallTest, WhatFindsNoMemoryIsToldToComeAgain) {
  const CompressedObject object = Small(1);
  const CompressedObject held = Small(2);
  KVTIER_ASSERT_OK(store_->Put(TenantId(), object, Durability::kDisk));
  KVTIER_ASSERT_OK(store_->Put(TenantId(), held, Durability::kDisk));
  Open(held.manifest->total_bytes());
  {
    KVTIER_ASSERT_OK_AND_ASSIGN(const auto reader,
                                store_->Pin(TenantId(), held.manifest->key, std::nullopt));
    std::vector<std::shared_ptr<const BandMemory>> bands;
    for (uint32_t band = 0; band < reader->resident_bands(); ++band) {
      KVTIER_ASSERT_OK_AND_ASSIGN(bands.emplace_back(),
                                  reader->Hold(BandIndex(band), BandPlacement::kAny));
    }
    const absl::Status refused = Call(RequestOf(object)).status();
    EXPECT_THAT(refused, StatusIs(absl::StatusCode::kResourceExhausted));
    EXPECT_TRUE(RetryAfter(refused).has_value()) << "the holder will be done";
  }
  KVTIER_EXPECT_OK(Call(RequestOf(object)));
}

TEST_F(FetchSmallTest, TakesACallsPlace) {
  server_.reset();
  service_ = MakeStoreService({.calls_max = 1}, *store_, metrics_, Clock::Real());
  server_ = StartLocalServer({service_.get()}, metrics_);
  channel_ = ChannelTo(*server_);
  stub_ = v1::StoreService::NewStub(channel_);
  const CompressedObject object = Small(1);
  KVTIER_ASSERT_OK(store_->Put(TenantId(), object, Durability::kHost));
  const OpenPut put(*stub_, Small(2));  // It has the only place until it ends.
  ASSERT_TRUE(put.HasBegun(*store_));
  const absl::Status refused = Call(RequestOf(object)).status();
  EXPECT_THAT(refused, StatusIs(absl::StatusCode::kResourceExhausted));
  EXPECT_TRUE(RetryAfter(refused).has_value());
}

// A store that answers FetchSmall as a test says, or does not know it.
class ScriptedService final : public v1::StoreService::Service {
 public:
  grpc::Status FetchSmall(grpc::ServerContext*, const v1::FetchSmallRequest*,
                          v1::FetchSmallResponse* response) override {
    ++small_calls;
    if (is_older) return {grpc::StatusCode::UNIMPLEMENTED, ""};
    *response = answer;
    return grpc::Status::OK;
  }
  grpc::Status Fetch(grpc::ServerContext*, const v1::FetchRequest*,
                     grpc::ServerWriter<v1::FetchResponse>* writer) override {
    v1::FetchResponse message;
    *message.mutable_header() = answer.header();
    writer->Write(message);
    return grpc::Status::OK;
  }
  bool is_older = false;
  std::atomic<int> small_calls{0};
  v1::FetchSmallResponse answer;
};

class FetchSmallAnswerTest : public testing::Test {
 protected:
  FetchSmallAnswerTest() : server_(StartLocalServer({&service_}, metrics_)) { Fill(); }

  void Fill() {
    v1::FetchHeader& header = *service_.answer.mutable_header();
    header.Clear();
    header.set_manifest(EncodeManifest(*object_.manifest));
    header.set_band_count(2);
    header.set_payload_bytes(object_.manifest->total_bytes());
    for (uint32_t band = 0; band < 2; ++band) {
      const auto bytes = object_.segment(BandIndex(band), LayerIndex(0)).bytes();
      v1::SegmentFrame& frame = *header.add_frames();
      frame.set_band(band);
      frame.set_payload(bytes.data(), bytes.size());
    }
  }
  v1::FetchHeader& header() { return *service_.answer.mutable_header(); }
  std::unique_ptr<Transport> Connect() { return MakeGrpcTransport(ChannelTo(*server_)); }
  absl::Status Fetch() { return FetchHinted(*Connect(), object_, 1); }

  const CompressedObject object_ = MakeTestObject({.layers = 1, .edges = "0.5,1"});
  ScriptedService service_;

 private:
  Metrics metrics_;
  const std::unique_ptr<Server> server_;
};

TEST_F(FetchSmallAnswerTest, AnOlderStoreIsAskedOnceAndThenWithFetch) {
  const std::unique_ptr<Transport> transport = Connect();
  for (int i = 0; i < 2; ++i) KVTIER_EXPECT_OK(FetchHinted(*transport, object_, 1));
  EXPECT_EQ(service_.small_calls, 2);
  service_.is_older = true;
  for (int i = 0; i < 3; ++i) KVTIER_EXPECT_OK(FetchHinted(*transport, object_, 1));
  EXPECT_EQ(service_.small_calls, 3);
  // Another transport does not know yet.
  KVTIER_EXPECT_OK(Fetch());
  EXPECT_EQ(service_.small_calls, 4);
}

TEST_F(FetchSmallAnswerTest, WhatDoesNotFollowThePlanIsDataLoss) {
  service_.answer.Clear();
  EXPECT_THAT(Fetch(), StatusIs(absl::StatusCode::kDataLoss));
  Fill();
  header().mutable_frames()->RemoveLast();
  EXPECT_THAT(Fetch(), StatusIs(absl::StatusCode::kDataLoss, HasSubstr("ended early")));
  Fill();
  *header().add_frames() = header().frames(1);
  EXPECT_THAT(Fetch(), StatusIs(absl::StatusCode::kDataLoss, HasSubstr("more after the last")));
  Fill();
  header().mutable_frames()->SwapElements(0, 1);
  EXPECT_THAT(Fetch(), StatusIs(absl::StatusCode::kDataLoss, HasSubstr("was due")));
  Fill();
  header().mutable_frames(1)->mutable_payload()->back() ^= 1;
  EXPECT_THAT(Fetch(), StatusIs(absl::StatusCode::kDataLoss, HasSubstr("band 1, layer 0")));
}

}  // namespace
}  // namespace kvtier
