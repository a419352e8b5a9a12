#include "store/tenant_ledger.h"

#include "base/status_matchers.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "store/expiry_queue.h"

namespace kvtier {
namespace {

using testing::HasSubstr;

const TenantId kA = *TenantId::FromString("a");
const TenantId kB = *TenantId::FromString("b");

TEST(TenantQuotasTest, ParsesNamesAndADefault) {
  KVTIER_ASSERT_OK_AND_ASSIGN(const TenantQuotas quotas, ParseTenantQuotas("a:1000,*:50,b:7"));
  EXPECT_EQ(quotas.Of(kA), 1000u);
  EXPECT_EQ(quotas.Of(kB), 7u);
  EXPECT_EQ(quotas.Of(TenantId()), 50u);
  KVTIER_ASSERT_OK_AND_ASSIGN(const TenantQuotas none, ParseTenantQuotas(""));
  EXPECT_EQ(none.Of(kA), 0u);
}

TEST(TenantQuotasTest, RefusesWhatMakesNoSense) {
  for (const char* text : {"a", "a:", "a:x", "a:0", "a:-1", "a:1,", "a:1:2", ":1", "a b:1",
                           "a:99999999999999999999999"}) {
    EXPECT_THAT(ParseTenantQuotas(text), StatusIs(absl::StatusCode::kInvalidArgument)) << text;
  }
  EXPECT_THAT(ParseTenantQuotas("a:1,a:2"),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("two quotas")));
  EXPECT_THAT(ParseTenantQuotas("*:1,*:2"),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("two quotas")));
}

TEST(TenantLedgerTest, AddsUpByTenantAndForgetsWhoHasNothing) {
  TenantLedger ledger({}, 0);
  ledger.Add(kA, {.objects = 1, .resident_bytes = 100});
  ledger.Add(kA, {.upload_bytes = 30});
  ledger.Add(kB, {.objects = 2, .resident_bytes = 5, .pinned_bytes = 5});
  EXPECT_EQ(ledger.UseOf(kA).bytes(), 130u);
  EXPECT_EQ(ledger.pinned_bytes(), 5u);
  EXPECT_EQ(ledger.tenant_count(), 2u);
  ledger.Subtract(kA, {.upload_bytes = 30});
  ledger.Subtract(kA, {.objects = 1, .resident_bytes = 100});
  EXPECT_EQ(ledger.UseOf(kA), TenantUse());
  EXPECT_EQ(ledger.tenant_count(), 1u);
}

TEST(TenantLedgerTest, SaysHowMuchHasToGo) {
  TenantLedger ledger({.of = {{kA, 100}}}, 0);
  EXPECT_THAT(ledger.ExcessBytes(kA, 100, 0), IsOkAndHolds(0u));
  EXPECT_THAT(ledger.ExcessBytes(kA, 101, 0),
              StatusIs(absl::StatusCode::kResourceExhausted,
                       HasSubstr("tenant a uses 0 bytes of its quota of 100, 101 more")));
  ledger.Add(kA, {.objects = 1, .resident_bytes = 60});
  ledger.Add(kA, {.upload_bytes = 20});
  EXPECT_THAT(ledger.ExcessBytes(kA, 20, 0), IsOkAndHolds(0u));
  EXPECT_THAT(ledger.ExcessBytes(kA, 50, 0), IsOkAndHolds(30u));
  EXPECT_THAT(ledger.ExcessBytes(kA, 50, 25), IsOkAndHolds(5u));
  EXPECT_THAT(ledger.ExcessBytes(kA, 100, 1000), IsOkAndHolds(0u));
  EXPECT_THAT(ledger.ExcessBytes(kB, uint64_t{1} << 60, 0), IsOkAndHolds(0u));  // Has no quota.
}

TEST(TenantLedgerTest, ATenantPinsAtMostHalfOfItsQuotaAndAllTogetherTheirLimit) {
  TenantLedger ledger({.of = {{kA, 100}}}, 80);
  EXPECT_EQ(ledger.pinned_bytes_max(kA), 50u);
  EXPECT_EQ(ledger.pinned_bytes_max(kB), 80u);
  KVTIER_EXPECT_OK(ledger.CheckPin(kA, 50));
  EXPECT_THAT(ledger.CheckPin(kA, 51), StatusIs(absl::StatusCode::kResourceExhausted,
                                                HasSubstr("0 of at most 50 bytes, 51 more")));
  ledger.Add(kB, {.objects = 1, .resident_bytes = 60, .pinned_bytes = 60});
  EXPECT_THAT(ledger.CheckPin(kA, 30), StatusIs(absl::StatusCode::kResourceExhausted,
                                                HasSubstr("together may pin 80 bytes")));
  KVTIER_EXPECT_OK(ledger.CheckPin(kA, 20));
  EXPECT_THAT(ledger.CheckPin(kB, 21), StatusIs(absl::StatusCode::kResourceExhausted));
}

TEST(ExpiryQueueTest, SaysWhatIsDueSoonestFirst) {
  const absl::Time start = absl::FromUnixSeconds(1'767'225'600);
  const UploadId one = *UploadId::FromHex("00112233445566778899aabbccddeeff");
  const UploadId two = *UploadId::FromHex("ff112233445566778899aabbccddeeff");
  ExpiryQueue queue;
  queue.Set(one, start + absl::Seconds(2));
  queue.Set(two, start + absl::Seconds(1));
  EXPECT_EQ(queue.Due(start, std::nullopt), std::nullopt);
  const auto first = queue.Due(start + absl::Seconds(2), std::nullopt);
  ASSERT_TRUE(first.has_value());
  EXPECT_EQ(first->second, two);
  const auto second = queue.Due(start + absl::Seconds(2), first);
  ASSERT_TRUE(second.has_value());
  EXPECT_EQ(second->second, one);
  EXPECT_EQ(queue.Due(start + absl::Seconds(2), second), std::nullopt);
  queue.Set(two, absl::InfiniteFuture());
  queue.Set(one, start + absl::Seconds(9));
  EXPECT_EQ(queue.size(), 1u);
  EXPECT_EQ(queue.Due(start + absl::Seconds(8), std::nullopt), std::nullopt);
  queue.Remove(one);
  queue.Remove(one);
  EXPECT_EQ(queue.size(), 0u);
}

}  // namespace
}  // namespace kvtier
