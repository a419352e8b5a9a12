#include "base/fair_share.h"

#include <cstdint>
#include <map>

#include "gtest/gtest.h"

namespace kvtier {
namespace {

// Holders 1 to `holders` take slots in turns until none of them gets another; how many each has.
std::map<int, uint64_t> TakeAll(int holders, uint64_t slots_max) {
  std::map<int, uint64_t> own;
  uint64_t taken = 0;
  for (bool is_any = true; is_any;) {
    is_any = false;
    for (int holder = 1; holder <= holders; ++holder) {
      if (MayTakeSlot(own[holder], taken, slots_max) != SlotAnswer::kYes) continue;
      ++own[holder];
      ++taken;
      is_any = true;
    }
  }
  return own;
}

TEST(FairShareTest, OneHolderAloneGetsHalf) {
  for (const uint64_t slots_max : {1u, 2u, 3u, 64u, 1024u}) {
    EXPECT_EQ(TakeAll(1, slots_max)[1], ShareOfOne(slots_max)) << slots_max;
  }
  EXPECT_EQ(ShareOfOne(64), 32u);
  EXPECT_EQ(ShareOfOne(1), 1u);
}

TEST(FairShareTest, SeveralGetTheSameAndLeaveRoomForAnother) {
  for (const int holders : {2, 3, 7}) {
    SCOPED_TRACE(holders);
    uint64_t taken = 0;
    for (const auto& [holder, own] : TakeAll(holders, 1024)) {
      EXPECT_NEAR(static_cast<double>(own), 1024.0 / (holders + 1), 1) << holder;
      taken += own;
    }
    EXPECT_EQ(MayTakeSlot(0, taken, 1024), SlotAnswer::kYes);
  }
}

TEST(FairShareTest, SaysWhetherOthersOrTheHolderAreTheReason) {
  EXPECT_EQ(MayTakeSlot(32, 32, 64), SlotAnswer::kShareIsUsedUp);
  EXPECT_EQ(MayTakeSlot(31, 32, 64), SlotAnswer::kYes);
  EXPECT_EQ(MayTakeSlot(0, 64, 64), SlotAnswer::kAllAreTaken);
  EXPECT_EQ(MayTakeSlot(32, 65, 64), SlotAnswer::kAllAreTaken) << "the limit was lowered";
}

TEST(FairShareTest, SharesBytesAsItDoesSlots) {
  EXPECT_EQ(MayTake(0, 64, 0, 64), SlotAnswer::kYes) << "who holds nothing gets what is free";
  EXPECT_EQ(MayTake(0, 65, 0, 64), SlotAnswer::kAllAreTaken);
  EXPECT_EQ(MayTake(16, 24, 16, 64), SlotAnswer::kYes);
  EXPECT_EQ(MayTake(16, 33, 16, 64), SlotAnswer::kShareIsUsedUp);
  EXPECT_EQ(MayTake(0, 8, 56, 64), SlotAnswer::kYes) << "of another holder";
  EXPECT_EQ(MayTake(8, 1, 65, 64), SlotAnswer::kAllAreTaken) << "the limit was lowered";
}

}  // namespace
}  // namespace kvtier
