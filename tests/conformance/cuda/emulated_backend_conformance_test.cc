#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <memory>
#include <utility>
#include <vector>

#include "base/status_matchers.h"
#include "compressor/packer.h"
#include "cuda/device_backend.h"
#include "cuda/emulated/emulated_device.h"
#include "tests/conformance/backend_conformance.h"
#include "tests/conformance/backend_tensors.h"
#include "tests/conformance/bf16_conformance.h"
#include "tests/conformance/device_ranking_conformance.h"
#include "tests/conformance/plain_fused_attention.h"

namespace kvtier {
namespace {

std::unique_ptr<Backend> MakeEmulatedBackend(DType activations,
                                             std::unique_ptr<FusedAttention> fused = nullptr) {
  std::shared_ptr<Device> device = MakeEmulatedDevice();
  auto backend = MakeDeviceBackend(device, MakePlainGemm(device), activations, std::move(fused));
  KVTIER_EXPECT_OK(backend);
  if (!backend.ok()) return nullptr;
  // Without one everything would be ranked and packed on the host, and pass.
  EXPECT_NE((*backend)->packer(), nullptr);
  return *std::move(backend);
}

INSTANTIATE_TEST_SUITE_P(Emulated, BackendConformanceTest,
                         ::testing::Values(BackendCase{
                             "fp32", [] { return MakeEmulatedBackend(DType::kF32); }}),
                         BackendCaseName);
INSTANTIATE_TEST_SUITE_P(
    Emulated, Bf16ConformanceTest,
    ::testing::Values(BackendCase{"bf16", [] { return MakeEmulatedBackend(DType::kBf16); }},
                      // Every attention that a library could have goes to one.
                      BackendCase{"bf16_fused",
                                  [] {
                                    return MakeEmulatedBackend(
                                        DType::kBf16, MakePlainFusedAttention(
                                                          std::make_shared<FusedAttentionLog>()));
                                  }}),
    BackendCaseName);

TEST(DeviceBackendTest, RefusesHalfPrecisionActivations) {
  std::shared_ptr<Device> device = MakeEmulatedDevice();
  EXPECT_THAT(MakeDeviceBackend(device, MakePlainGemm(device), DType::kF16),
              StatusIs(absl::StatusCode::kInvalidArgument));
}

TEST(DeviceBackendTest, SaysWhenMemoryIsShort) {
  std::shared_ptr<Device> device = MakeEmulatedDevice(/*bytes_max=*/1 << 20);
  KVTIER_ASSERT_OK_AND_ASSIGN(const auto backend,
                              MakeDeviceBackend(device, MakePlainGemm(device), DType::kF32));
  EXPECT_THAT(backend->Allocate(DType::kF32, 1024, 1024),
              StatusIs(absl::StatusCode::kResourceExhausted));
  // What was given back is there again, also after the backend.
  for (int i = 0; i < 3; ++i) {
    KVTIER_ASSERT_OK_AND_ASSIGN(const Tensor tensor, backend->Allocate(DType::kF32, 1024, 200));
  }
}

TEST(DeviceBackendTest, TensorsOutliveTheirBackend) {
  Tensor tensor;
  {
    std::shared_ptr<Device> device = MakeEmulatedDevice();
    KVTIER_ASSERT_OK_AND_ASSIGN(const auto backend,
                                MakeDeviceBackend(device, MakePlainGemm(device), DType::kF32));
    KVTIER_ASSERT_OK_AND_ASSIGN(tensor, backend->Allocate(DType::kF32, 2, 2));
  }
  static_cast<float*>(tensor.data())[3] = 1;
}

// No promise of Backend's: without it a fault of one row would spread to all queries before it.
TEST(DeviceBackendTest, AnInfiniteValueReachesOnlyTheQueriesThatSeeItsRow) {
  std::shared_ptr<Device> device = MakeEmulatedDevice();
  KVTIER_ASSERT_OK_AND_ASSIGN(const auto backend,
                              MakeDeviceBackend(device, MakePlainGemm(device), DType::kF32));
  const int64_t dim = 64;
  const int64_t rows = 5;
  const Tensor q = MakeActivations(*backend, Floats(rows * dim, 0.5f), rows, dim);
  const Tensor out = MakeActivations(*backend, Floats(rows * dim), rows, dim);
  Floats values(rows * dim, 1);
  for (int64_t d = 0; d < dim; ++d) values[3 * dim + d] = std::numeric_limits<float>::infinity();
  const Layer tail =
      MakeLayer(*backend, Floats(rows * dim, 0.25f), values, DType::kF32, 1, rows, dim);
  const HeadSpans none(1);
  KVTIER_ASSERT_OK(backend->Attention({.q = q,
                                       .spans = &none,
                                       .span_dtype = DType::kF32,
                                       .tail = tail.view,
                                       .tail_rows = rows,
                                       .scale = 1,
                                       .out = out}));
  const Floats results = Read(*backend, out);
  for (int64_t i = 0; i < rows * dim; ++i) {
    if (i / dim < 3) {
      ASSERT_NEAR(results[i], 1, 1e-6) << "row " << i / dim;
    } else {
      ASSERT_FALSE(std::isfinite(results[i])) << "row " << i / dim;
    }
  }
}

// What a packer needs, and what it cannot have.
struct PackerOf {
  std::shared_ptr<Device> device;
  std::unique_ptr<Backend> backend;
  ScoreTable scores = ScoreTable::Create(2, 2, 500);
  BandEdges edges = BandEdges::Default();
  std::unique_ptr<BackendScores> placed;

  // `bytes` of memory beside the scores.
  explicit PackerOf(uint64_t bytes)
      : device(MakeEmulatedDevice(bytes + 2 * 2 * 500 * sizeof(float))) {
    backend = MakeDeviceBackend(device, MakePlainGemm(device), DType::kF32).value();
    for (uint64_t i = 0; i < scores.pairs(); ++i) {
      scores.log_scores[i] = -0.01f * static_cast<float>(i * 37 % 997);
    }
    placed = PlaceScores(*backend, scores).value();
  }
  RankRequest request() const { return {.scores = placed.get(), .edges = &edges}; }
  absl::StatusOr<std::unique_ptr<RankedRows>> Rank() { return backend->packer()->Rank(request()); }
};

TEST(DevicePackerTest, RankingSaysWhenMemoryIsShort) {
  PackerOf packer(/*bytes=*/30'000);  // 2,000 pairs of kRankingPairBytes.
  EXPECT_THAT(packer.Rank(), StatusIs(absl::StatusCode::kResourceExhausted));
  // Nothing of it is kept.
  KVTIER_EXPECT_OK(packer.backend->Allocate(DType::kF32, 1, 7'000));
}

TEST(DevicePackerTest, RankingTakesTheMemoryThatItStates) {
  const PackerOf sizes(/*bytes=*/0);
  const PairBytes stated = PairBytesOf(*sizes.backend);
  const uint64_t pairs = sizes.scores.pairs();
  PackerOf less(pairs * stated.ranking - 1);
  EXPECT_THAT(less.Rank(), StatusIs(absl::StatusCode::kResourceExhausted));
  const uint64_t little = 600;  // Bands, their thresholds and masses.
  PackerOf enough(pairs * stated.ranking + little);
  KVTIER_ASSERT_OK_AND_ASSIGN(const std::unique_ptr<RankedRows> ranked, enough.Rank());
  const auto left = static_cast<int64_t>(pairs * (stated.ranking - stated.ranked)) / 4;
  KVTIER_EXPECT_OK(enough.backend->Allocate(DType::kF32, 1, left));
  EXPECT_THAT(enough.backend->Allocate(DType::kF32, 1, left + little / 4 + 1),
              StatusIs(absl::StatusCode::kResourceExhausted));
}

TEST(DevicePackerTest, WhereMemoryIsShortTheHostRanks) {
  PackerOf wide(/*bytes=*/1 << 20);
  PackerOf tight(/*bytes=*/30'000);
  KVTIER_ASSERT_OK_AND_ASSIGN(const std::unique_ptr<RankedRows> expected, wide.Rank());
  KVTIER_ASSERT_OK_AND_ASSIGN(const std::unique_ptr<RankedRows> ranked,
                              RankRows(*tight.backend, tight.request()));
  EXPECT_EQ(ranked->counts().rows, expected->counts().rows);
  EXPECT_EQ(ranked->counts().thresholds, expected->counts().thresholds);
  // Other errors stay what they are.
  wide.scores.at(1, 0, 3) = std::numeric_limits<float>::quiet_NaN();
  KVTIER_ASSERT_OK(wide.placed->Write(wide.scores));
  EXPECT_THAT(RankRows(*wide.backend, wide.request()),
              StatusIs(absl::StatusCode::kInvalidArgument));
}

TEST(DeviceRankingTest, SortsAsTheStandardLibrary) {
  for (const int64_t count : {1, 4864, 4865}) {
    for (const int bits : kSortBits) ExpectSortsStably(MakeEmulatedDevice(), count, bits);
  }
}

// The last band has 9,600 ranks: more than one block sums up.
TEST(DeviceRankingTest, BandsThatSeveralBlocksSumUp) {
  ExpectRanksAsTheHost(MakeEmulatedDevice(), RandomScoreTable(1, 2, 12'000), SelectionRule::kExact);
}

TEST(EmulatedDeviceTest, ACopyThatIsBegunIsMadeByItsWait) {
  const std::shared_ptr<Device> device = MakeEmulatedDevice();
  const std::vector<uint32_t> from = {1, 2, 3};
  std::vector<uint32_t> to(3, 9);
  KVTIER_ASSERT_OK_AND_ASSIGN(DeviceMemory memory,
                              DeviceMemory::Of(device, std::span<const uint32_t>(from)));
  KVTIER_ASSERT_OK_AND_ASSIGN(const auto copy,
                              device->BeginCopyOut(memory.as<void>(), to.data(), 12));
  KVTIER_ASSERT_OK_AND_ASSIGN(const auto late,
                              device->BeginCopyOut(memory.as<void>(), to.data(), 12));
  KVTIER_ASSERT_OK_AND_ASSIGN(const auto nothing, device->BeginCopyOut(nullptr, nullptr, 0));
  EXPECT_EQ(to[0], 9u) << "a missing wait would not show";
  KVTIER_EXPECT_OK(copy->Wait());
  EXPECT_EQ(to, from);
  KVTIER_EXPECT_OK(nothing->Wait());
  memory = DeviceMemory();
  EXPECT_THAT(late->Wait(), StatusIs(absl::StatusCode::kInternal));
}

// Segments of each codec, of which two are under way at once: the bytes that one at a time has.
TEST(DevicePackerTest, SegmentsAreFilledSideBySide) {
  PackerOf packer(/*bytes_max=*/uint64_t{1} << 24);
  KVTIER_ASSERT_OK_AND_ASSIGN(const std::unique_ptr<RankedRows> ranked, packer.Rank());
  const Geometry geometry{.kv_heads = 2,
                          .head_dim = 8,
                          .dtype = DType::kF32,
                          .layers = {LayerKind::kGlobal, LayerKind::kGlobal}};
  Floats keys(2 * 500 * 8);
  for (size_t i = 0; i < keys.size(); ++i) keys[i] = static_cast<float>(i % 251);
  const Layer layer =
      MakeLayer(*packer.backend, keys, Floats(2 * 500 * 8, 2), DType::kF32, 2, 500, 8);
  for (const CodecId codec : {CodecId::kRaw, CodecId::kInt8, CodecId::kInt4}) {
    SCOPED_TRACE(std::string(CodecName(codec)));
    SegmentFill fills[2];
    std::vector<std::unique_ptr<SegmentBuilder>> alone, together;
    for (uint32_t i = 0; i < 2; ++i) {
      SegmentFill& fill = fills[i];
      fill.layer = layer.view;
      fill.geometry = &geometry;
      fill.model_layer = fill.scored_layer = i;  // Positions of two layers.
      fill.band = 2;
      fill.codec = codec;
      std::vector<uint32_t> rows;
      for (uint32_t head = 0; head < 2; ++head) rows.push_back(fill.RowsOf(ranked->counts(), head));
      for (auto* builders : {&alone, &together}) {
        KVTIER_ASSERT_OK_AND_ASSIGN(SegmentBuilder made,
                                    SegmentBuilder::Create(geometry, codec, rows));
        builders->push_back(std::make_unique<SegmentBuilder>(std::move(made)));
      }
      KVTIER_ASSERT_OK(ranked->FillSegment(fill, *alone[i]));
    }
    {
      KVTIER_ASSERT_OK_AND_ASSIGN(const auto first, ranked->BeginSegment(fills[0], *together[0]));
      KVTIER_ASSERT_OK_AND_ASSIGN(const auto second, ranked->BeginSegment(fills[1], *together[1]));
      ASSERT_NE(first, nullptr);
      KVTIER_EXPECT_OK(first->Wait());
      KVTIER_EXPECT_OK(second->Wait());
      // Given up: nothing is owed.
      KVTIER_ASSERT_OK_AND_ASSIGN(const auto dropped, ranked->BeginSegment(fills[1], *together[1]));
    }
    for (uint32_t i = 0; i < 2; ++i) {
      const SegmentBuilder::Sealed expected = std::move(*alone[i]).Seal();
      const SegmentBuilder::Sealed sealed = std::move(*together[i]).Seal();
      EXPECT_EQ(sealed.entry, expected.entry);
      EXPECT_TRUE(std::ranges::equal(sealed.bytes.span(), expected.bytes.span()));
    }
  }
}

TEST(DevicePackerTest, PackingSaysWhenMemoryIsShort) {
  PackerOf packer(/*bytes_max=*/200'000);
  KVTIER_ASSERT_OK_AND_ASSIGN(const std::unique_ptr<RankedRows> ranked, packer.Rank());
  const Geometry geometry{.kv_heads = 2,
                          .head_dim = 8,
                          .dtype = DType::kF32,
                          .layers = {LayerKind::kGlobal, LayerKind::kGlobal}};
  const Layer layer = MakeLayer(*packer.backend, Floats(2 * 500 * 8, 1), Floats(2 * 500 * 8, 2),
                                DType::kF32, 2, 500, 8);
  SegmentFill fill;
  fill.layer = layer.view;
  fill.geometry = &geometry;
  std::vector<uint32_t> rows;
  for (uint32_t head = 0; head < 2; ++head) rows.push_back(fill.RowsOf(ranked->counts(), head));
  KVTIER_ASSERT_OK_AND_ASSIGN(SegmentBuilder segment,
                              SegmentBuilder::Create(geometry, CodecId::kRaw, rows));
  KVTIER_EXPECT_OK(ranked->FillSegment(fill, segment));
  {
    // All but a little of what is left.
    std::vector<Tensor> taken;
    for (absl::StatusOr<Tensor> t = Tensor(); t.ok();) {
      t = packer.backend->Allocate(DType::kF32, 1, 1'000);
      if (t.ok()) taken.push_back(*std::move(t));
    }
    EXPECT_THAT(ranked->FillSegment(fill, segment), StatusIs(absl::StatusCode::kResourceExhausted));
  }
  KVTIER_EXPECT_OK(ranked->FillSegment(fill, segment));
}

// Threads of the emulator run in other orders each time.
TEST(DevicePackerTest, ScoreMassRepeatsBitByBit) {
  PackerOf packer(/*bytes_max=*/1 << 20);
  KVTIER_ASSERT_OK_AND_ASSIGN(const std::unique_ptr<RankedRows> first, packer.Rank());
  for (int run = 0; run < 3; ++run) {
    KVTIER_ASSERT_OK_AND_ASSIGN(const std::unique_ptr<RankedRows> again, packer.Rank());
    EXPECT_EQ(again->counts().score_mass, first->counts().score_mass);
    EXPECT_EQ(again->counts().rows, first->counts().rows);
  }
}

TEST(EmulatedDeviceTest, NoticesWritesBehindAnAllocation) {
  std::shared_ptr<Device> device = MakeEmulatedDevice();
  KVTIER_ASSERT_OK_AND_ASSIGN(const DeviceMemory memory, DeviceMemory::Allocate(device, 10));
  KVTIER_EXPECT_OK(device->Check(0, "test"));
  memory.as<char>()[10] = 1;
  EXPECT_THAT(device->Check(0, "test"), StatusIs(absl::StatusCode::kInternal));
}

TEST(EmulatedDeviceTest, CountsTheMemoryInUseAndItsPeak) {
  std::shared_ptr<Device> device = MakeEmulatedDevice();
  KVTIER_ASSERT_OK_AND_ASSIGN(const DeviceMemory kept, DeviceMemory::Allocate(device, 1000));
  { KVTIER_ASSERT_OK(DeviceMemory::Allocate(device, 500)); }
  KVTIER_ASSERT_OK_AND_ASSIGN(DeviceMemoryUse use, device->MemoryUse());
  EXPECT_EQ(use.bytes, 1000u);
  EXPECT_EQ(use.peak_bytes, 1500u);
  KVTIER_ASSERT_OK(device->ResetMemoryPeak());
  { KVTIER_ASSERT_OK(DeviceMemory::Allocate(device, 200)); }
  KVTIER_ASSERT_OK_AND_ASSIGN(use, device->MemoryUse());
  EXPECT_EQ(use.peak_bytes, 1200u);
}

TEST(EmulatedDeviceTest, AFailedLaunchIsInternalAndNamesItself) {
  std::shared_ptr<Device> device = MakeEmulatedDevice();
  EXPECT_THAT(device->Check(kInvalidConfiguration, "gather"),
              StatusIs(absl::StatusCode::kInternal, ::testing::HasSubstr("gather")));
}

}  // namespace
}  // namespace kvtier
