#include "store/host_memory.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <deque>
#include <random>
#include <vector>

#include "base/status_matchers.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/testing/random.h"

namespace kvtier {
namespace {

using testing::HasSubstr;

constexpr uint64_t kKiB = limits::kKiB;

// Two layers of `bytes` together, the first of 64 bytes. Only sizes matter here.
BandEntry BandOf(uint64_t bytes) {
  BandEntry band;
  for (const uint64_t layer_bytes : {uint64_t{64}, bytes - 64}) {
    SegmentEntry& layer = band.layers.emplace_back();
    layer.heads.push_back({.rows = 1, .encoded_bytes = layer_bytes, .crc32c = {}});
  }
  return band;
}

void Fill(BandMemory& band, uint8_t value) {
  for (uint32_t layer = 0; layer < band.layer_count(); ++layer) {
    const MutableByteSpan bytes = band.Writable(LayerIndex(layer));
    std::memset(bytes.data(), value, bytes.size());
  }
}

bool IsFilled(const BandMemory& band, uint8_t value) {
  for (uint32_t layer = 0; layer < band.layer_count(); ++layer) {
    const SegmentRef segment = band.Segment(LayerIndex(layer));
    if (!std::ranges::all_of(segment.bytes(), [&](std::byte b) { return b == std::byte{value}; })) {
      return false;
    }
  }
  return true;
}

class HostMemoryTest : public testing::Test {
 protected:
  void Open(uint64_t budget_bytes, const HostMemory::Options& options = {}) {
    budget_ = std::make_shared<MemoryBudget>(budget_bytes);
    memory_ = HostMemory::Create(options, budget_);
  }
  std::shared_ptr<BandMemory> Allocate(uint64_t bytes, uint8_t value = 0) {
    absl::StatusOr<std::shared_ptr<BandMemory>> band = memory_->Allocate(BandOf(bytes));
    KVTIER_EXPECT_OK(band);
    Fill(**band, value);
    (*band)->Seal();
    return *band;
  }
  uint64_t used() { return budget_->usage().used_bytes; }
  uint64_t kept() { return budget_->usage().kept_bytes; }

  std::shared_ptr<MemoryBudget> budget_;
  std::shared_ptr<HostMemory> memory_;
};

TEST_F(HostMemoryTest, SegmentsLieEndToEndAtMultiplesOf64) {
  Open(0);
  const auto band = Allocate(256 * kKiB);
  EXPECT_EQ(band->layer_count(), 2u);
  EXPECT_EQ(band->Offset(LayerIndex(1)), 64u);
  const SegmentRef first = band->Segment(LayerIndex(0));
  const SegmentRef second = band->Segment(LayerIndex(1));
  EXPECT_EQ(reinterpret_cast<uintptr_t>(first.bytes().data()) % 64, 0u);
  EXPECT_EQ(second.bytes().data(), first.bytes().data() + 64);
  EXPECT_EQ(second.bytes().size(), 256 * kKiB - 64);
  EXPECT_EQ(memory_->Find(std::vector{first, second}), band);
  EXPECT_EQ(memory_->Find(std::vector{second, first}), nullptr);
  EXPECT_EQ(memory_->Find(std::vector{first}), nullptr) << "not the whole band";
}

TEST_F(HostMemoryTest, ChargesWhatTheKernelTakes) {
  Open(0);
  const auto band = Allocate(100 * kKiB + 64);
  KVTIER_ASSERT_OK_AND_ASSIGN(const MemoryFileView file, band->Export());
  struct stat stat = {};
  ASSERT_EQ(fstat(file.fd, &stat), 0);
  EXPECT_EQ(static_cast<uint64_t>(stat.st_size), 100 * kKiB + 64);
  EXPECT_EQ(file.bytes, 100 * kKiB + 64);
  EXPECT_EQ(band->charged_bytes(), static_cast<uint64_t>(stat.st_blocks) * 512);
  EXPECT_EQ(used(), band->charged_bytes());
  EXPECT_EQ(memory_->ChargeOf(BandOf(100 * kKiB + 64)), band->charged_bytes());
}

TEST_F(HostMemoryTest, SmallBandsLieOnTheHeapAndCannotBeMapped) {
  Open(0);
  const auto band = Allocate(64 * kKiB - 64, 7);
  EXPECT_EQ(band->charged_bytes(), 64 * kKiB - 64);
  EXPECT_EQ(memory_->counters().files, 0u);
  EXPECT_THAT(band->Export(), StatusIs(absl::StatusCode::kFailedPrecondition));
  EXPECT_TRUE(IsFilled(*band, 7));
}

TEST_F(HostMemoryTest, APieceIsOneSegmentThatMayBeWrittenAgain) {
  Open(256 * kKiB);
  for (const uint64_t bytes : {kKiB, 100 * kKiB}) {
    KVTIER_ASSERT_OK_AND_ASSIGN(const std::shared_ptr<BandMemory> piece,
                                memory_->AllocatePiece(bytes));
    EXPECT_EQ(piece->layer_count(), 1u);
    EXPECT_EQ(piece->Writable(LayerIndex(0)).size(), bytes);
    for (const uint8_t value : {1, 2}) {
      std::ranges::fill(piece->Writable(LayerIndex(0)), std::byte{value});
      EXPECT_EQ(piece->Segment(LayerIndex(0)).bytes().back(), std::byte{value});
    }
    EXPECT_EQ(used(), memory_->ChargeOfPiece(bytes));
  }
  EXPECT_EQ(used(), 0u);
  EXPECT_THAT(memory_->AllocatePiece(257 * kKiB),
              StatusIs(absl::StatusCode::kResourceExhausted, HasSubstr("host_budget_bytes")));
}

TEST_F(HostMemoryTest, WhatIsRefusedNamesTheBudgetAndChargesNothing) {
  Open(256 * kKiB);
  const auto band = Allocate(192 * kKiB);
  EXPECT_THAT(memory_->Allocate(BandOf(128 * kKiB)),
              StatusIs(absl::StatusCode::kResourceExhausted,
                       HasSubstr("host_budget_bytes) of 262144 bytes: 196608 in use, 131072")));
  EXPECT_EQ(used(), 192 * kKiB);
  EXPECT_EQ(memory_->counters().files, 1u);
}

TEST_F(HostMemoryTest, WhoeverHasTheFileCanOnlyRead) {
  Open(0);
  const uint64_t bytes = 128 * kKiB;
  const auto band = Allocate(bytes, 42);
  KVTIER_ASSERT_OK_AND_ASSIGN(const MemoryFileView file, band->Export());
  const int fd = dup(file.fd);  // As the other process has it.
  ASSERT_GE(fd, 0);
  EXPECT_EQ(ftruncate(fd, 0), -1) << "it would raise SIGBUS in every reader";
  EXPECT_EQ(ftruncate(fd, 2 * static_cast<off_t>(bytes)), -1);
  EXPECT_EQ(pwrite(fd, "x", 1, 0), -1);
  EXPECT_EQ(fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, 4096), -1);
  EXPECT_EQ(fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE), -1) << "nobody adds seals";
  EXPECT_EQ(mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0), MAP_FAILED);
  void* const map = mmap(nullptr, bytes, PROT_READ, MAP_SHARED, fd, 0);
  ASSERT_NE(map, MAP_FAILED);
  EXPECT_EQ(mprotect(map, bytes, PROT_READ | PROT_WRITE), -1);
  EXPECT_EQ(std::memcmp(map, band->Segment(LayerIndex(0)).bytes().data(), 64), 0);
  munmap(map, bytes);
  close(fd);
}

TEST_F(HostMemoryTest, MemoryThatWasHandedOutIsNeverUsedAgain) {
  Open(limits::kGiB);
  auto band = Allocate(limits::kMiB, 1);
  KVTIER_ASSERT_OK_AND_ASSIGN(const MemoryFileView file, band->Export());
  void* const map = mmap(nullptr, limits::kMiB, PROT_READ, MAP_SHARED, file.fd, 0);
  ASSERT_NE(map, MAP_FAILED);
  band.reset();
  EXPECT_EQ(used(), 0u);
  EXPECT_EQ(kept(), 0u);
  for (int i = 0; i < 4; ++i) Allocate(limits::kMiB, 2);
  const std::span<const std::byte> seen(static_cast<const std::byte*>(map), limits::kMiB);
  EXPECT_TRUE(std::ranges::all_of(seen, [](std::byte b) { return b == std::byte{1}; }));
  munmap(map, limits::kMiB);
}

TEST_F(HostMemoryTest, OtherMemoryIsUsedAgainInAnySize) {
  Open(limits::kGiB);
  Allocate(limits::kMiB, 1);
  EXPECT_EQ(used(), 0u);
  EXPECT_EQ(kept(), limits::kMiB);
  for (const uint64_t bytes : {limits::kMiB, limits::kMiB / 2, 3 * limits::kMiB}) {
    SCOPED_TRACE(bytes);
    const auto band = Allocate(bytes, 9);
    EXPECT_TRUE(IsFilled(*band, 9));
    EXPECT_EQ(used(), bytes);
    EXPECT_EQ(kept(), 0u);
    EXPECT_EQ(memory_->counters().files, 1u);
  }
  EXPECT_EQ(memory_->counters().files_recycled, 3u);
}

TEST_F(HostMemoryTest, AFileUsedAgainShowsNothingOfItsFormerLife) {
  Open(limits::kGiB);
  Allocate(limits::kMiB, 0xEE);
  const uint64_t bytes = 600 * kKiB + 64;  // Ends inside a page.
  const auto band = Allocate(bytes, 1);
  KVTIER_ASSERT_OK_AND_ASSIGN(const MemoryFileView file, band->Export());
  EXPECT_EQ(memory_->counters().files_recycled, 1u);
  const size_t mapped = 604 * kKiB;
  void* const map = mmap(nullptr, mapped, PROT_READ, MAP_SHARED, file.fd, 0);
  ASSERT_NE(map, MAP_FAILED);
  const std::span<const std::byte> all(static_cast<const std::byte*>(map), mapped);
  EXPECT_TRUE(std::ranges::all_of(all.first(bytes), [](std::byte b) { return b == std::byte{1}; }));
  EXPECT_TRUE(
      std::ranges::all_of(all.subspan(bytes), [](std::byte b) { return b == std::byte{0}; }));
  munmap(map, mapped);
}

TEST_F(HostMemoryTest, ALargeFileIsNotCutDownToASmallBand) {
  Open(limits::kGiB, {.files_max = 2});
  Allocate(8 * limits::kMiB);
  {
    const auto small = Allocate(limits::kMiB);
    EXPECT_EQ(kept(), 8 * limits::kMiB) << "left for a band of its size";
    EXPECT_EQ(memory_->counters().files_recycled, 0u);
    const auto other = Allocate(limits::kMiB);
    EXPECT_TRUE(other->is_file()) << "rather than on the heap";
    EXPECT_EQ(kept(), 0u);
    EXPECT_EQ(used(), 2 * limits::kMiB);
  }
  EXPECT_EQ(kept(), 2 * limits::kMiB);
}

TEST_F(HostMemoryTest, WhatIsFreedServesThePutThatItWasFreedFor) {
  Open(16 * limits::kMiB);
  auto first = Allocate(12 * limits::kMiB);
  EXPECT_THAT(memory_->Allocate(BandOf(12 * limits::kMiB)),
              StatusIs(absl::StatusCode::kResourceExhausted));
  first.reset();
  const auto second = Allocate(12 * limits::kMiB);
  EXPECT_EQ(memory_->counters().files_recycled, 1u) << "all of it, with the pages that it has";
}

TEST_F(HostMemoryTest, KeptMemoryGivesWayToAnyCharge) {
  Open(limits::kMiB, {.kept_fraction = 1});
  Allocate(limits::kMiB / 2);
  Allocate(limits::kMiB / 2);
  EXPECT_EQ(kept(), limits::kMiB / 2);
  {
    KVTIER_ASSERT_OK_AND_ASSIGN(const MemoryCharge charge,
                                MemoryCharge::Take(budget_, limits::kMiB));
    EXPECT_EQ(used(), limits::kMiB);
    EXPECT_EQ(kept(), 0u);
    EXPECT_EQ(memory_->counters().files, 0u);
  }
  EXPECT_EQ(used(), 0u);
}

TEST_F(HostMemoryTest, ABoundedPartOfTheBudgetIsKept) {
  Open(8 * limits::kMiB, {.kept_fraction = 0.25});
  std::vector<std::shared_ptr<BandMemory>> bands;
  for (int i = 0; i < 4; ++i) bands.push_back(Allocate(limits::kMiB));
  bands.clear();
  EXPECT_EQ(kept(), 2 * limits::kMiB);
  EXPECT_EQ(memory_->counters().files, 2u);
}

TEST_F(HostMemoryTest, BandsBeyondTheNumberOfFilesLieOnTheHeap) {
  Open(0, {.files_max = 1});
  const auto first = Allocate(limits::kMiB);
  const auto second = Allocate(limits::kMiB, 3);
  KVTIER_EXPECT_OK(first->Export());
  EXPECT_THAT(second->Export(), StatusIs(absl::StatusCode::kFailedPrecondition));
  EXPECT_TRUE(IsFilled(*second, 3));
  EXPECT_EQ(memory_->counters().files, 1u);
  EXPECT_EQ(memory_->counters().files_refused, 1u);
}

TEST_F(HostMemoryTest, ABandOutlivesItsMemoryObject) {
  Open(0);
  const auto band = Allocate(limits::kMiB, 5);
  memory_.reset();
  EXPECT_TRUE(IsFilled(*band, 5));
  KVTIER_EXPECT_OK(band->Export());
}

// Ten turnovers of ragged sizes as bands of a 16K-token context have them, a tenth of the bands
// held by readers beyond their eviction and every fifth handed out: at each refusal the live bytes
// are at least 0.95 of the budget.
TEST_F(HostMemoryTest, TheBudgetIsFullOfLiveBytesWhenItRefuses) {
  const uint64_t seed = TestSeed();
  SCOPED_TRACE(SeedTrace(seed));
  std::mt19937_64 random(seed);
  constexpr uint64_t kBudget = 192 * limits::kMiB;
  Open(kBudget);
  std::deque<std::pair<std::shared_ptr<BandMemory>, uint64_t>> cached;
  std::deque<std::pair<std::shared_ptr<BandMemory>, uint64_t>> leased;
  uint64_t live = 0;
  uint64_t allocated = 0;
  double worst = 1;
  while (allocated < 10 * kBudget) {
    const uint64_t bytes = 64 * RandomUniform(random, kKiB, 48 * kKiB);  // 64 KiB to 3 MiB.
    absl::StatusOr<std::shared_ptr<BandMemory>> band = memory_->Allocate(BandOf(bytes));
    if (band.ok()) {
      (*band)->Seal();
      if (random() % 5 == 0) {
        KVTIER_ASSERT_OK((*band)->Export());
      }
      cached.emplace_back(*std::move(band), bytes);
      live += bytes;
      allocated += bytes;
      continue;
    }
    ASSERT_THAT(band, StatusIs(absl::StatusCode::kResourceExhausted));
    ASSERT_LE(used() + kept(), kBudget);
    worst = std::min(worst, static_cast<double>(live) / static_cast<double>(kBudget));
    if (random() % 10 == 0) {
      leased.push_back(cached.front());  // Evicted, but somebody reads it.
    } else {
      live -= cached.front().second;
    }
    cached.pop_front();
    if (leased.size() > 16) {
      live -= leased.front().second;
      leased.pop_front();
    }
  }
  EXPECT_GE(worst, 0.95);
  cached.clear();
  leased.clear();
  EXPECT_EQ(used(), 0u);
}

TEST(ReserveMemoryFilesTest, LeavesRoomForOtherFiles) {
  const uint32_t files = ReserveMemoryFiles();
  EXPECT_GT(files, 0u);
  EXPECT_LE(files, limits::kMemoryFilesMax);
}

}  // namespace
}  // namespace kvtier
