// What cuDNN is asked for, and which calls share a plan.
#include "cuda/cudnn_shape.h"

#include <set>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace kvtier {
namespace {

FusedAttentionParams Piece(int64_t rows, int64_t key_rows) {
  return {.q = reinterpret_cast<const void*>(0x1000),
          .keys = reinterpret_cast<const void*>(0x2000),
          .values = reinterpret_cast<const void*>(0x3000),
          .rows = rows,
          .key_rows = key_rows,
          .head_rows = 131'072,
          .readable_rows = 131'072,
          .kv_heads = 8,
          .group = 4,
          .head_dim = 128,
          .causal = true,
          .scale = 0.1f};
}

TEST(CudnnShapeTest, ThePiecesOfAPrefillShareAPlan) {
  std::set<CudnnShape> shapes;
  for (int64_t key_rows = 2048; key_rows <= 131'072; key_rows += 2048) {
    shapes.insert(CudnnShapeOf(Piece(2048, key_rows)));
  }
  // The first, those that grow, and the last, which fills the cache.
  EXPECT_EQ(shapes.size(), 3u);
  EXPECT_EQ(CudnnShapeOf(Piece(2048, 4096)).key_rows, 131'072);
  EXPECT_TRUE(CudnnShapeOf(Piece(2048, 4096)).lengths);
  EXPECT_FALSE(CudnnShapeOf(Piece(2048, 2048)).lengths);
  EXPECT_FALSE(CudnnShapeOf(Piece(2048, 131'072)).lengths);
}

TEST(CudnnShapeTest, WhatEveryRowSeesIsPlannedForAllThatMayBeRead) {
  FusedAttentionParams context = Piece(2030, 34'001);
  context.causal = false;
  EXPECT_EQ(CudnnShapeOf(context).key_rows, 131'072);
  EXPECT_TRUE(CudnnShapeOf(context).lengths);
  context.readable_rows = 34'001;
  EXPECT_EQ(CudnnShapeOf(context).key_rows, 34'001);
  EXPECT_FALSE(CudnnShapeOf(context).lengths);
  // Queries among themselves need no length, whatever lies behind them.
  EXPECT_EQ(CudnnShapeOf(Piece(2030, 2030)).key_rows, 2030);
}

TEST(CudnnShapeTest, CachesOfAboutOneLengthHaveOneCapacity) {
  EXPECT_EQ(CudnnCacheRows(0), 0);
  EXPECT_EQ(CudnnCacheRows(1), 64);
  EXPECT_EQ(CudnnCacheRows(64), 64);
  EXPECT_EQ(CudnnCacheRows(65), 128);
  EXPECT_EQ(CudnnCacheRows(1024), 1024);
  EXPECT_EQ(CudnnCacheRows(1025), 1152);
  EXPECT_EQ(CudnnCacheRows(34'000), 36'864);
  EXPECT_EQ(CudnnCacheRows(131'072), 131'072);
  EXPECT_EQ(CudnnCacheRows(131'073), 147'456);
  for (int64_t octave = 1024; octave < 1 << 20; octave *= 2) {
    std::set<int64_t> capacities;
    for (int64_t rows = octave; rows < 2 * octave; rows += 7) {
      const int64_t capacity = CudnnCacheRows(rows);
      ASSERT_GE(capacity, rows);
      ASSERT_LE(capacity, rows + octave / 8);
      ASSERT_EQ(CudnnCacheRows(capacity), capacity);
      capacities.insert(capacity);
    }
    EXPECT_EQ(capacities.size(), 9u) << octave;
  }
}

TEST(CudnnShapeTest, EverythingThatAPlanDependsOnIsInItsKey) {
  float lse = 0;
  const FusedAttentionParams base = Piece(2048, 2048);
  std::set<CudnnShape> shapes = {CudnnShapeOf(base)};
  const auto add = [&](auto change) {
    FusedAttentionParams params = base;
    change(params);
    shapes.insert(CudnnShapeOf(params));
  };
  add([](FusedAttentionParams& p) { p.rows = 2047; });
  add([](FusedAttentionParams& p) { p.head_rows = 131'071; });
  add([](FusedAttentionParams& p) { p.kv_heads = 4; });
  add([](FusedAttentionParams& p) { p.group = 5; });
  add([](FusedAttentionParams& p) { p.head_dim = 64; });
  add([](FusedAttentionParams& p) { p.window = 512; });
  add([](FusedAttentionParams& p) { p.scale = 0.2f; });
  add([](FusedAttentionParams& p) { p.causal = false; });
  add([&lse](FusedAttentionParams& p) { p.lse = &lse; });
  EXPECT_EQ(shapes.size(), 10u);
}

TEST(CudnnShapeTest, TakesManyRowsOfWholeVectors) {
  EXPECT_TRUE(CudnnTakes(Piece(kCudnnQueryRowsMin, 2048)));
  EXPECT_FALSE(CudnnTakes(Piece(kCudnnQueryRowsMin - 1, 2048)));
  FusedAttentionParams params = Piece(2048, 2048);
  for (const int64_t dim : {64, 72, 96, 128, 256}) {
    params.head_dim = dim;
    EXPECT_TRUE(CudnnTakes(params)) << dim;
  }
  for (const int64_t dim : {68, 100, 264}) {
    params.head_dim = dim;
    EXPECT_FALSE(CudnnTakes(params)) << dim;
  }
}

TEST(CudnnShapeTest, LeavesWhatItsKernelsCannotReach) {
  FusedAttentionParams params = Piece(2048, 2048);
  params.head_rows = (int64_t{1} << 31) / (8 * 128) - 1;  // Fewer than 2^31 elements,
  EXPECT_TRUE(CudnnTakes(params));
  params.head_rows += 1;  // and as many.
  EXPECT_FALSE(CudnnTakes(params));
  for (const int64_t by : {8, 2}) {
    params = Piece(2048, 2048);
    params.values = reinterpret_cast<const void*>(0x3000 + by);
    EXPECT_FALSE(CudnnTakes(params)) << by;
  }
}

}  // namespace
}  // namespace kvtier
