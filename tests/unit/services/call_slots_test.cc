#include "services/call_slots.h"

#include <optional>
#include <utility>
#include <vector>

#include "base/status_matchers.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "services/status_grpc.h"

namespace kvtier {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

class CallSlotsTest : public testing::Test {
 protected:
  // Takes slots until one is refused, and says why.
  absl::Status TakeAll(const TenantId& tenant, std::vector<CallSlots::Slot>& slots) {
    for (;;) {
      absl::StatusOr<CallSlots::Slot> slot = slots_.Take(tenant);
      if (!slot.ok()) return slot.status();
      slots.push_back(*std::move(slot));
    }
  }

  const TenantId greedy_ = *TenantId::FromString("greedy");
  const TenantId modest_ = *TenantId::FromString("modest");
  Metrics metrics_;
  CallSlots slots_{8, absl::Milliseconds(20), metrics_};
};

TEST_F(CallSlotsTest, OneTenantGetsHalfAndIsToldWhatLimitsIt) {
  std::vector<CallSlots::Slot> greedy;
  const absl::Status refused = TakeAll(greedy_, greedy);
  EXPECT_EQ(greedy.size(), 4u);
  EXPECT_THAT(refused, StatusIs(absl::StatusCode::kResourceExhausted,
                                AllOf(HasSubstr("tenant greedy has 4 calls"), HasSubstr("of 8"))));
  EXPECT_EQ(RetryAfter(refused), absl::Milliseconds(20));
  EXPECT_EQ(metrics_.calls_refused_share.Value(), 1);
  EXPECT_EQ(metrics_.calls_refused_busy.Value(), 0);
  KVTIER_EXPECT_OK(slots_.Take(modest_));
}

TEST_F(CallSlotsTest, WhenAllAreTakenNoTenantIsNamed) {
  std::vector<CallSlots::Slot> held;
  for (const char* name : {"a", "b", "c", "d", "e", "f", "g", "h"}) {
    KVTIER_ASSERT_OK_AND_ASSIGN(CallSlots::Slot slot, slots_.Take(*TenantId::FromString(name)));
    held.push_back(std::move(slot));
  }
  EXPECT_EQ(slots_.running(), 8u);
  const absl::Status refused = slots_.Take(modest_).status();
  EXPECT_THAT(refused, StatusIs(absl::StatusCode::kResourceExhausted,
                                AllOf(HasSubstr("8 calls"), Not(HasSubstr("tenant")))));
  EXPECT_TRUE(RetryAfter(refused).has_value());
  EXPECT_EQ(metrics_.calls_refused_busy.Value(), 1);
  held.pop_back();
  KVTIER_EXPECT_OK(slots_.Take(modest_));
}

TEST_F(CallSlotsTest, ASlotIsFreeOnceItsHolderIsGone) {
  {
    KVTIER_ASSERT_OK_AND_ASSIGN(CallSlots::Slot slot, slots_.Take(greedy_));
    EXPECT_EQ(slot.tenant(), greedy_);
    CallSlots::Slot moved = std::move(slot);
    EXPECT_EQ(slots_.running(), 1u);
    moved = CallSlots::Slot();
    CallSlots::Slot none;
  }
  EXPECT_EQ(slots_.running(), 0u);
  std::vector<CallSlots::Slot> again;
  EXPECT_FALSE(TakeAll(greedy_, again).ok());
  EXPECT_EQ(again.size(), 4u);
}

TEST_F(CallSlotsTest, ADrainEndsWithTheCallsThatItRefusesAndWaitsForTheOthers) {
  DrainSignal drain;
  CallSlots slots(2, absl::Milliseconds(20), metrics_, {}, &drain);
  std::optional<CallSlots::Slot> one = *slots.Take(greedy_);
  // Refused for another reason: it is not waited for.
  EXPECT_THAT(slots.Take(greedy_).status(), StatusIs(absl::StatusCode::kResourceExhausted));
  drain.Fire();
  EXPECT_THAT(slots.Take(modest_).status(),
              StatusIs(absl::StatusCode::kUnavailable, HasSubstr("stopping")));
  EXPECT_EQ(slots.running(), 1u);
  EXPECT_FALSE(drain.AwaitCalls(absl::InfinitePast(), Clock::Real()));
  one.reset();
  EXPECT_TRUE(drain.AwaitCalls(absl::InfinitePast(), Clock::Real()));
}

}  // namespace
}  // namespace kvtier
