#include "compressor/resident_cache.h"

#include <cstring>
#include <functional>
#include <memory>
#include <utility>
#include <vector>

#include "base/aligned_bytes.h"
#include "base/status_macros.h"
#include "base/status_matchers.h"
#include "compressor/decoder.h"
#include "compressor/fidelity.h"
#include "compressor/reference_backend.h"
#include "compressor/sampler.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/testing/fake_device_backend.h"
#include "tests/unit/compressor/compress_testing.h"

namespace kvtier {
namespace {

using ::absl::StatusCode;
using ::testing::AllOf;
using ::testing::HasSubstr;

// Brings an object as a store does, or not quite so.
class ObjectTransport final : public Transport {
 public:
  explicit ObjectTransport(const CompressedObject& object) : object_(object) {}

  absl::Status Fetch(const FetchRequest& /*request*/, absl::Time /*deadline*/,
                     SegmentSink& sink) override {
    const uint32_t layers = object_.manifest->geometry.layer_count();
    KVTIER_RETURN_IF_ERROR(sink.OnManifest(object_.manifest, bands));
    for (uint32_t layer = 0; layer < layers; ++layer) {
      for (uint32_t band = 0; band < bands; ++band) {
        if (cut_after-- == 0) return absl::UnavailableError("cut");
        // A buffer that is gone when the sink has returned.
        const std::span<const std::byte> from =
            object_.segment(BandIndex(band), LayerIndex(layer)).bytes();
        AlignedBytes bytes =
            *AlignedBytes::TryAllocate(from.size(), AlignedBytes::Fill::kUninitialized);
        std::memcpy(bytes.data(), from.data(), from.size());
        KVTIER_RETURN_IF_ERROR(
            sink.OnSegment(BandIndex(band), LayerIndex(layer), SegmentRef::Own(std::move(bytes))));
        uploaded_after.push_back(uploaded ? uploaded() : 0);
      }
    }
    return absl::OkStatus();
  }

  uint32_t bands = 3;
  int cut_after = -1;
  std::function<uint64_t()> uploaded;
  std::vector<uint64_t> uploaded_after;  // What that said after each segment.

 private:
  const CompressedObject& object_;
};

// A model on the reference backend, and the same on a played GPU of its own memory.
class ResidentCacheTest : public ::testing::Test {
 protected:
  ResidentCacheTest() : host_(MakeTestModel()), context_(RandomTokens(150, /*seed=*/11)) {
    auto device = std::make_unique<FakeDeviceBackend>("cuda:0");
    device_ = device.get();
    gpu_ = MakeTestModel({}, std::move(device));
    object_ = CompressForTest(*host_.model, context_);
  }

  std::vector<uint32_t> Query(uint64_t seed) const {
    return host_.model->profile().WrapQuery(RandomTokens(12, seed));
  }
  static std::vector<float> Logits(Decoder& decoder, const std::vector<uint32_t>& ids) {
    const auto logits = decoder.AppendAllLogits(ids);
    EXPECT_THAT(logits, IsOk());
    return logits.ok() ? *logits : std::vector<float>();
  }

  TestModel host_;
  TestModel gpu_;
  FakeDeviceBackend* device_ = nullptr;
  std::vector<uint32_t> context_;
  CompressedObject object_;
};

TEST_F(ResidentCacheTest, OnTheHostItIsTheCacheItself) {
  const std::shared_ptr<const RaggedCache> cache = PrefixOf(object_, 3);
  KVTIER_ASSERT_OK_AND_ASSIGN(const auto resident, ResidentCache::Create(*host_.backend, cache));
  EXPECT_EQ(resident->bytes(), cache->bytes());
  EXPECT_EQ(resident->device_bytes(), 0u);
  EXPECT_EQ(resident->band_count(), 3u);
  EXPECT_EQ(resident->ratio(), cache->ratio());
  for (uint32_t layer = 0; layer < cache->geometry().layer_count(); ++layer) {
    for (uint32_t head = 0; head < cache->geometry().kv_heads; ++head) {
      EXPECT_EQ(resident->spans(layer)[head].data(), cache->spans(LayerIndex(layer), head).data());
    }
  }
  EXPECT_TRUE(resident->IsReadableBy(*host_.backend));
  EXPECT_TRUE(resident->IsReadableBy(*MakeReferenceBackend()));
  EXPECT_FALSE(resident->IsReadableBy(*device_));
}

TEST_F(ResidentCacheTest, OnADeviceEachByteIsUploadedOnceAndTheHostKeepsNone) {
  auto cache = PrefixOf(object_, 3);
  const uint64_t bytes = cache->bytes();
  const uint64_t uploaded = device_->uploaded_bytes();
  const uint64_t live = device_->live_bytes();
  const std::weak_ptr<const RaggedCache> watch = cache;
  KVTIER_ASSERT_OK_AND_ASSIGN(auto resident, ResidentCache::Create(*device_, std::move(cache)));
  EXPECT_TRUE(watch.expired());
  EXPECT_EQ(resident->bytes(), bytes);
  EXPECT_EQ(resident->device_bytes(), bytes);
  EXPECT_EQ(device_->uploaded_bytes() - uploaded, bytes);
  EXPECT_EQ(device_->live_bytes() - live, bytes);
  EXPECT_TRUE(resident->IsReadableBy(*device_));
  EXPECT_FALSE(resident->IsReadableBy(*host_.backend));

  // All decoders share it: what each has of its own is its tail.
  const uint64_t tail = Decoder::EstimateBytes(*gpu_.model, 40, DType::kF32);
  KVTIER_ASSERT_OK_AND_ASSIGN(auto a, Decoder::Create(*gpu_.model, resident, 40));
  KVTIER_ASSERT_OK_AND_ASSIGN(auto b, Decoder::Create(*gpu_.model, resident, 40));
  EXPECT_EQ(device_->live_bytes() - live, bytes + 2 * tail);
  EXPECT_EQ(device_->uploaded_bytes() - uploaded, bytes);
  a.reset();
  b.reset();
  resident.reset();
  EXPECT_EQ(device_->live_bytes(), live);
}

TEST_F(ResidentCacheTest, EverySegmentIsOnItsWayWhenTheNextOneComes) {
  ObjectTransport transport(object_);
  const uint64_t before = device_->uploaded_bytes();
  transport.uploaded = [&] { return device_->uploaded_bytes() - before; };
  KVTIER_ASSERT_OK_AND_ASSIGN(const auto resident,
                              FetchResidentCache(transport, {}, absl::InfiniteFuture(), *device_));
  uint64_t sum = 0;
  size_t i = 0;
  for (uint32_t layer = 0; layer < object_.manifest->geometry.layer_count(); ++layer) {
    for (uint32_t band = 0; band < 3; ++band) {
      sum += object_.segment(BandIndex(band), LayerIndex(layer)).bytes().size();
      EXPECT_EQ(transport.uploaded_after[i++], sum);
    }
  }
  EXPECT_EQ(sum, resident->bytes());
}

TEST_F(ResidentCacheTest, DecodersOnADeviceAnswerAsOnTheHost) {
  for (const char* codec : {"raw", "int8", "int4"}) {
    CompressInput input;
    input.context = context_;
    input.codec = codec;
    KVTIER_ASSERT_OK_AND_ASSIGN(
        const CompressedObject object,
        Pipeline(*host_.model, {.kv_dtype = DType::kBf16}).Compress(input, nullptr, CancelToken()));
    for (const uint32_t bands : {1u, 3u, 6u}) {
      SCOPED_TRACE(testing::Message() << codec << ", " << bands << " bands");
      ObjectTransport transport(object);
      transport.bands = bands;
      KVTIER_ASSERT_OK_AND_ASSIGN(
          const auto fetched, FetchResidentCache(transport, {}, absl::InfiniteFuture(), *device_));
      KVTIER_ASSERT_OK_AND_ASSIGN(const auto over_fetched,
                                  Decoder::Create(*gpu_.model, fetched, 40));
      KVTIER_ASSERT_OK_AND_ASSIGN(const auto over_copied,
                                  Decoder::Create(*gpu_.model, PrefixOf(object, bands), 40));
      KVTIER_ASSERT_OK_AND_ASSIGN(const auto on_host,
                                  Decoder::Create(*host_.model, PrefixOf(object, bands), 40));
      const std::vector<float> expected = Logits(*on_host, Query(21));
      EXPECT_EQ(Logits(*over_fetched, Query(21)), expected);
      EXPECT_EQ(Logits(*over_copied, Query(21)), expected);
    }
  }
}

TEST_F(ResidentCacheTest, ADecoderRefusesAnObjectInMemoryThatItsBackendCannotRead) {
  KVTIER_ASSERT_OK_AND_ASSIGN(const auto on_host,
                              ResidentCache::Create(*host_.backend, PrefixOf(object_, 1)));
  EXPECT_THAT(Decoder::Create(*gpu_.model, on_host, 8),
              StatusIs(StatusCode::kFailedPrecondition, HasSubstr("cuda:0")));
  KVTIER_ASSERT_OK_AND_ASSIGN(const auto on_device,
                              ResidentCache::Create(*device_, PrefixOf(object_, 1)));
  EXPECT_THAT(Decoder::Create(*host_.model, on_device, 8),
              StatusIs(StatusCode::kFailedPrecondition, HasSubstr("other memory")));
}

TEST_F(ResidentCacheTest, SaysWhenTheDeviceHasNoRoomBeforeAnyByteTravels) {
  FakeDeviceBackend small("cuda:1", /*memory_bytes=*/1000);
  ObjectTransport transport(object_);
  EXPECT_THAT(FetchResidentCache(transport, {}, absl::InfiniteFuture(), small),
              StatusIs(StatusCode::kResourceExhausted, HasSubstr("cuda:1")));
  EXPECT_TRUE(transport.uploaded_after.empty());
  EXPECT_EQ(small.live_bytes(), 0u);
}

TEST_F(ResidentCacheTest, NothingIsKeptOfAFetchThatEnds) {
  const uint64_t live = device_->live_bytes();
  ObjectTransport transport(object_);
  transport.cut_after = 4;
  EXPECT_THAT(FetchResidentCache(transport, {}, absl::InfiniteFuture(), *device_),
              StatusIs(StatusCode::kUnavailable, HasSubstr("cut")));
  EXPECT_EQ(device_->live_bytes(), live);
  device_->Break();
  ObjectTransport whole(object_);
  EXPECT_THAT(FetchResidentCache(whole, {}, absl::InfiniteFuture(), *device_),
              StatusIs(StatusCode::kInternal, HasSubstr("lost")));
  EXPECT_EQ(device_->live_bytes(), live);
}

TEST_F(ResidentCacheTest, RefusesPartsOfObjects) {
  ObjectTransport transport(object_);
  FetchRequest request;
  request.heads = HeadRange{0, 1};
  EXPECT_THAT(FetchResidentCache(transport, request, absl::InfiniteFuture(), *device_),
              StatusIs(StatusCode::kInvalidArgument));
  request = {};
  request.layers = LayerRange{0, 1};
  EXPECT_THAT(FetchResidentCache(transport, request, absl::InfiniteFuture(), *host_.backend),
              StatusIs(StatusCode::kInvalidArgument));
}

TEST_F(ResidentCacheTest, TheLoaderRefusesSegmentsThatAreNotOfTheObject) {
  for (Backend* backend : {host_.backend.get(), static_cast<Backend*>(device_)}) {
    SCOPED_TRACE(std::string(backend->name()));
    const SegmentRef& segment = object_.segment(BandIndex(0), LayerIndex(0));
    EXPECT_THAT(ResidentCacheLoader(*backend).OnSegment(BandIndex(0), LayerIndex(0), segment),
                StatusIs(StatusCode::kInvalidArgument, HasSubstr("no manifest")));
    EXPECT_THAT(ResidentCacheLoader(*backend).OnManifest(object_.manifest, 0),
                StatusIs(StatusCode::kInvalidArgument));
    EXPECT_THAT(ResidentCacheLoader(*backend).OnManifest(object_.manifest, 7),
                StatusIs(StatusCode::kInvalidArgument));
    EXPECT_THAT(ResidentCacheLoader(*backend).Finish(), StatusIs(StatusCode::kInvalidArgument));

    ResidentCacheLoader loader(*backend);
    KVTIER_ASSERT_OK(loader.OnManifest(object_.manifest, 2));
    EXPECT_THAT(loader.OnSegment(BandIndex(2), LayerIndex(0), segment),
                StatusIs(StatusCode::kInvalidArgument, HasSubstr("band 2, layer 0: of 2 bands")));
    EXPECT_THAT(loader.OnSegment(BandIndex(0), LayerIndex(2), segment),
                StatusIs(StatusCode::kInvalidArgument, HasSubstr("2 layers")));
    const SegmentRef cut(segment.owner(), segment.bytes().first(segment.bytes().size() - 64));
    EXPECT_THAT(
        loader.OnSegment(BandIndex(0), LayerIndex(0), cut),
        StatusIs(StatusCode::kInvalidArgument, AllOf(HasSubstr("bytes, the manifest says"))));
    KVTIER_EXPECT_OK(loader.OnSegment(BandIndex(0), LayerIndex(0), segment));
    EXPECT_THAT(loader.OnSegment(BandIndex(0), LayerIndex(0), segment),
                StatusIs(StatusCode::kInvalidArgument, HasSubstr("came twice")));
    EXPECT_THAT(std::move(loader).Finish(),
                StatusIs(StatusCode::kInvalidArgument, HasSubstr("band 0, layer 1: has not come")));
  }
}

TEST_F(ResidentCacheTest, FidelityIsMeasuredOnADeviceAsOnTheHost) {
  KVTIER_ASSERT_OK_AND_ASSIGN(
      const Fidelity expected,
      MeasureFidelity(*host_.model, object_, context_, 2, nullptr, CancelToken()));
  const uint64_t live = device_->live_bytes();
  EXPECT_THAT(MeasureFidelity(*gpu_.model, object_, context_, 2, nullptr, CancelToken()),
              IsOkAndHolds(expected));
  EXPECT_EQ(device_->live_bytes(), live);

  // Admission knows that the object is there twice meanwhile.
  CompressInput input;
  input.context = context_;
  input.fidelity_chunks = 2;
  const PipelineOptions options{.kv_dtype = DType::kF32};
  EXPECT_GE(Pipeline(*gpu_.model, options).EstimateBytes(input),
            Pipeline(*host_.model, options).EstimateBytes(input));
}

}  // namespace
}  // namespace kvtier
