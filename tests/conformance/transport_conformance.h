// The contract of kvcache/transport.h, case by case, for every implementation. An instantiation
// names a function that makes a world: a store, and a transport that reads from it.
//
//   INSTANTIATE_TEST_SUITE_P(Grpc, TransportConformanceTest, testing::Values(TransportCase{...}));
#ifndef KVTIER_TESTS_CONFORMANCE_TRANSPORT_CONFORMANCE_H_
#define KVTIER_TESTS_CONFORMANCE_TRANSPORT_CONFORMANCE_H_

#include <algorithm>
#include <functional>
#include <memory>
#include <ostream>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "base/status_matchers.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kvcache/compressed_object.h"
#include "kvcache/transport.h"
#include "store/tiered_store.h"
#include "tests/testing/test_object.h"

namespace kvtier {

// A store and a way to read from it. Destroyed as a whole.
class TransportWorld {
 public:
  virtual ~TransportWorld() = default;
  virtual TieredStore& store() = 0;
  virtual Transport& transport() = 0;
  // From now on inverts one bit of the payload of every segment under way.
  virtual void DamageOnTheWay() = 0;
  // From now on the other end accepts requests and never answers.
  virtual void Stall() = 0;
  // The other end goes away for good.
  virtual void Disconnect() = 0;
};

struct TransportCase {
  std::string name;
  std::function<std::unique_ptr<TransportWorld>()> make;
};
inline void PrintTo(const TransportCase& transport_case, std::ostream* os) {
  *os << transport_case.name;
}

// Remembers what came, in order.
class RecordingSink : public SegmentSink {
 public:
  struct Received {
    BandIndex band;
    LayerIndex layer;
    SegmentRef bytes;
  };
  absl::Status OnManifest(std::shared_ptr<const Manifest> manifest, uint32_t band_count) override {
    EXPECT_EQ(manifest_, nullptr) << "OnManifest comes once";
    EXPECT_TRUE(received_.empty()) << "and first";
    manifest_ = std::move(manifest);
    band_count_ = band_count;
    return on_manifest_status;
  }
  absl::Status OnSegment(BandIndex band, LayerIndex layer, SegmentRef bytes) override {
    EXPECT_NE(manifest_, nullptr);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(bytes.bytes().data()) % 64, 0u);
    received_.push_back({band, layer, std::move(bytes)});
    return received_.size() == fail_at_segment ? absl::InternalError("the sink has enough")
                                               : absl::OkStatus();
  }

  const std::shared_ptr<const Manifest>& manifest() const { return manifest_; }
  uint32_t band_count() const { return band_count_; }
  const std::vector<Received>& received() const { return received_; }

  absl::Status on_manifest_status;
  size_t fail_at_segment = 0;  // Counted from 1; 0: never.

 private:
  std::shared_ptr<const Manifest> manifest_;
  uint32_t band_count_ = 0;
  std::vector<Received> received_;
};

class TransportConformanceTest : public testing::TestWithParam<TransportCase> {
 protected:
  TransportConformanceTest() : world_(GetParam().make()) {}

  static Ratio R(double ratio) { return *Ratio::FromDouble(ratio); }
  static absl::Time Soon() { return absl::Now() + absl::Seconds(50); }

  CompressedObject PutObject(const TestObjectOptions& options = {}) {
    CompressedObject object = MakeTestObject(options);
    KVTIER_EXPECT_OK(world_->store().Put(TenantId(), object, Durability::kHost));
    return object;
  }
  static FetchRequest Whole(const CompressedObject& object) {
    FetchRequest request;
    request.key = object.manifest->key;
    request.min_ratio = R(0.1);
    return request;
  }
  absl::Status Fetch(const FetchRequest& request, RecordingSink& sink) {
    return world_->transport().Fetch(request, Soon(), sink);
  }
  absl::Status FetchStatus(const FetchRequest& request) {
    RecordingSink sink;
    return Fetch(request, sink);
  }

  // `sink` got exactly these bands, layers and heads of `object`, in order, byte for byte.
  static void ExpectReceived(const RecordingSink& sink, const CompressedObject& object,
                             uint32_t bands, LayerRange layers, HeadRange heads) {
    ASSERT_NE(sink.manifest(), nullptr);
    EXPECT_EQ(*sink.manifest(), *object.manifest);
    EXPECT_EQ(sink.band_count(), bands);
    ASSERT_EQ(sink.received().size(), size_t{bands} * layers.size());
    size_t next = 0;
    for (uint32_t layer = layers.begin; layer < layers.end; ++layer) {
      for (uint32_t band = 0; band < bands; ++band, ++next) {
        SCOPED_TRACE(testing::Message() << "band " << band << " layer " << layer);
        const RecordingSink::Received& received = sink.received()[next];
        ASSERT_EQ(received.band, BandIndex(band));
        ASSERT_EQ(received.layer, LayerIndex(layer));
        const SegmentEntry::ByteRange range =
            object.manifest->segment(BandIndex(band), LayerIndex(layer)).HeadBytes(heads);
        EXPECT_TRUE(std::ranges::equal(received.bytes.bytes(),
                                       object.segment(BandIndex(band), LayerIndex(layer))
                                           .bytes()
                                           .subspan(range.begin, range.end - range.begin)));
      }
    }
  }

  std::unique_ptr<TransportWorld> world_;
};

TEST_P(TransportConformanceTest, BringsTheWholeObjectLayerByLayer) {
  const CompressedObject object = PutObject({.layers = 5, .kv_heads = 4});
  RecordingSink sink;
  KVTIER_ASSERT_OK(Fetch(Whole(object), sink));
  ExpectReceived(sink, object, 6, {0, 5}, {0, 4});
}

TEST_P(TransportConformanceTest, SegmentsLargerThanAFrameArriveWhole) {
  // Band 5 holds 0.4 of 4,000 tokens x 4 heads x 2 x 256 bytes per layer: about 3.3 MB.
  const CompressedObject object =
      PutObject({.layers = 2, .kv_heads = 4, .head_dim = 128, .context_tokens = 4000});
  RecordingSink sink;
  KVTIER_ASSERT_OK(Fetch(Whole(object), sink));
  ExpectReceived(sink, object, 6, {0, 2}, {0, 4});
}

TEST_P(TransportConformanceTest, TheRatioDecidesHowManyBandsCome) {
  const CompressedObject object = PutObject();
  const std::pair<double, uint32_t> cases[] = {{0.05, 1}, {0.1, 1}, {0.11, 2}, {0.3, 3},
                                               {0.4, 4},  {0.5, 5}, {0.61, 6}, {1, 6}};
  for (const auto& [ratio, bands] : cases) {
    SCOPED_TRACE(ratio);
    FetchRequest request = Whole(object);
    request.ratio = request.min_ratio = R(ratio);
    RecordingSink sink;
    KVTIER_ASSERT_OK(Fetch(request, sink));
    ExpectReceived(sink, object, bands, {0, 3}, {0, 2});
  }
}

TEST_P(TransportConformanceTest, AByteBudgetTakesTheLongestPrefixThatFits) {
  const CompressedObject object = PutObject();
  FetchRequest request = Whole(object);
  request.bytes_max = object.manifest->PrefixBytes(4) + 1;
  RecordingSink sink;
  KVTIER_ASSERT_OK(Fetch(request, sink));
  ExpectReceived(sink, object, 4, {0, 3}, {0, 2});

  request.bytes_max = object.manifest->PrefixBytes(1) - 1;
  EXPECT_THAT(FetchStatus(request), StatusIs(absl::StatusCode::kNotFound));
}

TEST_P(TransportConformanceTest, WhatWasGivenUpIsReplacedByTheLeastThatIsAccepted) {
  const CompressedObject object = PutObject();
  KVTIER_ASSERT_OK(world_->store().DropBands(TenantId(), object.manifest->key, 2));
  FetchRequest request = Whole(object);
  request.min_ratio = R(0.2);
  RecordingSink sink;
  KVTIER_ASSERT_OK(Fetch(request, sink));
  ExpectReceived(sink, object, 2, {0, 3}, {0, 2});
  request.min_ratio = R(0.25);
  EXPECT_THAT(FetchStatus(request), StatusIs(absl::StatusCode::kNotFound));
}

TEST_P(TransportConformanceTest, HeadRangesReassembleToTheWhole) {
  const CompressedObject object = PutObject({.layers = 2, .kv_heads = 4});
  for (const uint32_t ways : {1u, 2u, 4u}) {
    SCOPED_TRACE(ways);
    std::vector<RecordingSink> sinks(ways);
    for (uint32_t way = 0; way < ways; ++way) {
      FetchRequest request = Whole(object);
      request.heads = HeadRange{way * 4 / ways, (way + 1) * 4 / ways};
      KVTIER_ASSERT_OK(Fetch(request, sinks[way]));
      ExpectReceived(sinks[way], object, 6, {0, 2}, *request.heads);
    }
    for (size_t i = 0; i < sinks[0].received().size(); ++i) {
      std::vector<std::byte> joined;
      for (const RecordingSink& sink : sinks) {
        const auto bytes = sink.received()[i].bytes.bytes();
        joined.insert(joined.end(), bytes.begin(), bytes.end());
      }
      const RecordingSink::Received& first = sinks[0].received()[i];
      EXPECT_TRUE(std::ranges::equal(joined, object.segment(first.band, first.layer).bytes()));
    }
  }
}

TEST_P(TransportConformanceTest, LayerRangesBringTheirLayersAlone) {
  const CompressedObject object = PutObject({.layers = 5});
  for (const LayerRange layers : {LayerRange{0, 1}, LayerRange{1, 4}, LayerRange{4, 5}}) {
    FetchRequest request = Whole(object);
    request.layers = layers;
    request.heads = HeadRange{1, 2};
    RecordingSink sink;
    KVTIER_ASSERT_OK(Fetch(request, sink));
    ExpectReceived(sink, object, 6, layers, {1, 2});
  }
}

TEST_P(TransportConformanceTest, RangesPastTheEndAreOutOfRange) {
  const CompressedObject object = PutObject();
  FetchRequest request = Whole(object);
  request.layers = LayerRange{0, 4};
  EXPECT_THAT(FetchStatus(request), StatusIs(absl::StatusCode::kOutOfRange));
  request = Whole(object);
  request.heads = HeadRange{2, 3};
  EXPECT_THAT(FetchStatus(request), StatusIs(absl::StatusCode::kOutOfRange));
}

TEST_P(TransportConformanceTest, EmptyHeadsAndSegmentsKeepTheirPlace) {
  // So few tokens that many (band, layer, head) keep no row at all.
  const CompressedObject object =
      PutObject({.layers = 4, .kv_heads = 4, .system_tokens = 0, .context_tokens = 3});
  size_t empty = 0;
  for (const SegmentRef& segment : object.segments) empty += segment.bytes().empty() ? 1 : 0;
  ASSERT_GT(empty, 0u) << "the object does not show what this test is about";
  RecordingSink sink;
  KVTIER_ASSERT_OK(Fetch(Whole(object), sink));
  ExpectReceived(sink, object, 6, {0, 4}, {0, 4});
  FetchRequest request = Whole(object);
  request.heads = HeadRange{2, 3};
  RecordingSink one_head;
  KVTIER_ASSERT_OK(Fetch(request, one_head));
  ExpectReceived(one_head, object, 6, {0, 4}, {2, 3});
}

TEST_P(TransportConformanceTest, AMissIsNotFoundWithoutAMessage) {
  const CompressedObject object = MakeTestObject({.seed = 99});
  EXPECT_THAT(FetchStatus(Whole(object)),
              StatusIs(absl::StatusCode::kNotFound, testing::IsEmpty()));
}

TEST_P(TransportConformanceTest, AnotherTenantSeesNothing) {
  const CompressedObject object = PutObject();
  FetchRequest request = Whole(object);
  request.tenant = *TenantId::FromString("somebody-else");
  EXPECT_THAT(FetchStatus(request), StatusIs(absl::StatusCode::kNotFound));
}

TEST_P(TransportConformanceTest, APinnedUploadThatIsNotCurrentIsAborted) {
  const CompressedObject object = PutObject();
  FetchRequest request = Whole(object);
  request.upload_id = object.manifest->upload_id;
  KVTIER_EXPECT_OK(FetchStatus(request));
  request.upload_id = MakeTestObject({.upload_seed = 1}).manifest->upload_id;
  EXPECT_THAT(FetchStatus(request), StatusIs(absl::StatusCode::kAborted));
}

TEST_P(TransportConformanceTest, DamageOnTheWayIsDataLossAndNotDelivered) {
  const CompressedObject object = PutObject();
  world_->DamageOnTheWay();
  RecordingSink sink;
  EXPECT_THAT(Fetch(Whole(object), sink), StatusIs(absl::StatusCode::kDataLoss));
  EXPECT_TRUE(sink.received().empty()) << "the first segment was damaged already";
}

TEST_P(TransportConformanceTest, AnErrorOfTheSinkEndsTheFetchWithThatError) {
  const CompressedObject object = PutObject();
  RecordingSink sink;
  sink.fail_at_segment = 4;
  EXPECT_THAT(Fetch(Whole(object), sink),
              StatusIs(absl::StatusCode::kInternal, "the sink has enough"));
  EXPECT_EQ(sink.received().size(), 4u);

  RecordingSink early;
  early.on_manifest_status = absl::FailedPreconditionError("another model");
  EXPECT_THAT(Fetch(Whole(object), early), StatusIs(absl::StatusCode::kFailedPrecondition));
  EXPECT_TRUE(early.received().empty());
}

TEST_P(TransportConformanceTest, ADeadlineEndsAFetchThatHangs) {
  const CompressedObject object = PutObject();
  world_->Stall();
  RecordingSink sink;
  EXPECT_THAT(world_->transport().Fetch(Whole(object), absl::Now() + absl::Milliseconds(100), sink),
              StatusIs(absl::StatusCode::kDeadlineExceeded));
}

TEST_P(TransportConformanceTest, AVanishedPeerIsUnavailable) {
  const CompressedObject object = PutObject();
  KVTIER_ASSERT_OK(FetchStatus(Whole(object)));
  world_->Disconnect();
  EXPECT_THAT(FetchStatus(Whole(object)), StatusIs(absl::StatusCode::kUnavailable));
}

TEST_P(TransportConformanceTest, ReaderKeepsWhatItGotAfterTheObjectIsGone) {
  const CompressedObject object = PutObject();
  RecordingSink sink;
  KVTIER_ASSERT_OK(Fetch(Whole(object), sink));
  KVTIER_ASSERT_OK(world_->store().Delete(TenantId(), object.manifest->key));
  ExpectReceived(sink, object, 6, {0, 3}, {0, 2});
  EXPECT_THAT(FetchStatus(Whole(object)), StatusIs(absl::StatusCode::kNotFound));
}

TEST_P(TransportConformanceTest, ManyFetchesAtOnceDoNotMix) {
  std::vector<CompressedObject> objects;
  for (uint64_t seed = 1; seed <= 4; ++seed) objects.push_back(PutObject({.seed = seed}));
  std::vector<std::thread> threads;
  for (uint32_t i = 0; i < 8; ++i) {
    threads.emplace_back([&, i] {
      for (uint32_t round = 0; round < 5; ++round) {
        const CompressedObject& object = objects[(i + round) % objects.size()];
        RecordingSink sink;
        ASSERT_THAT(Fetch(Whole(object), sink), IsOk());
        ExpectReceived(sink, object, 6, {0, 3}, {0, 2});
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
}

}  // namespace kvtier

#endif  // KVTIER_TESTS_CONFORMANCE_TRANSPORT_CONFORMANCE_H_
