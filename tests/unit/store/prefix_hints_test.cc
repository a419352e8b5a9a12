#include "store/prefix_hints.h"

#include "base/bytes.h"
#include "gtest/gtest.h"
#include "kvcache/sha256.h"

namespace kvtier {
namespace {

TokenBlockHash Block(char name) {
  return *TokenBlockHash::FromBytes(ComputeSha256(AsBytes(std::string(1, name))).AsStringView());
}
Key KeyOf(char name) {
  return *Key::FromBytes(ComputeSha256(AsBytes(std::string(2, name))).AsStringView());
}

TEST(PrefixHintsTest, RemembersTheLatestOfEachPromptOfEachTenant) {
  PrefixHints hints(10);
  const TenantId a, b = *TenantId::FromString("b");
  hints.Remember(a, Block('x'), KeyOf('1'));
  hints.Remember(a, Block('y'), KeyOf('2'));
  EXPECT_EQ(hints.Find(a, Block('x')), KeyOf('1'));
  EXPECT_EQ(hints.Find(a, Block('y')), KeyOf('2'));
  EXPECT_EQ(hints.Find(a, Block('z')), std::nullopt);
  EXPECT_EQ(hints.Find(b, Block('x')), std::nullopt);
  hints.Remember(a, Block('x'), KeyOf('3'));
  EXPECT_EQ(hints.Find(a, Block('x')), KeyOf('3'));
  EXPECT_EQ(hints.size(), 2u);
}

TEST(PrefixHintsTest, ForgetsTheOldestBeyondItsLimit) {
  PrefixHints hints(2);
  const TenantId tenant;
  hints.Remember(tenant, Block('x'), KeyOf('1'));
  hints.Remember(tenant, Block('y'), KeyOf('2'));
  hints.Remember(tenant, Block('y'), KeyOf('3'));
  EXPECT_EQ(hints.Find(tenant, Block('x')), KeyOf('1'));
  hints.Remember(tenant, Block('z'), KeyOf('4'));
  EXPECT_EQ(hints.Find(tenant, Block('x')), std::nullopt);
  EXPECT_EQ(hints.Find(tenant, Block('y')), KeyOf('3'));
  EXPECT_EQ(hints.Find(tenant, Block('z')), KeyOf('4'));
  EXPECT_EQ(hints.size(), 2u);
}

}  // namespace
}  // namespace kvtier
