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
  PrefixHints hints;
  const TenantId a, b = *TenantId::FromString("b");
  hints.Remember(a, Block('x'), KeyOf('1'));
  hints.Remember(a, Block('y'), KeyOf('2'));
  hints.Remember(a, Block('x'), KeyOf('3'));
  EXPECT_EQ(hints.size(), 2u);
  EXPECT_EQ(hints.Take(a, Block('z')), std::nullopt);
  EXPECT_EQ(hints.Take(b, Block('x')), std::nullopt);
  EXPECT_EQ(hints.Take(a, Block('x')), KeyOf('3'));
  EXPECT_EQ(hints.Take(a, Block('y')), KeyOf('2'));
}

TEST(PrefixHintsTest, ForgetsWhatWasTaken) {
  PrefixHints hints({.hints_max = 2, .tenant_hints_max = 2});
  const TenantId tenant;
  hints.Remember(tenant, Block('x'), KeyOf('1'));
  EXPECT_EQ(hints.Take(tenant, Block('x')), KeyOf('1'));
  EXPECT_EQ(hints.Take(tenant, Block('x')), std::nullopt);
  EXPECT_EQ(hints.size(), 0u);
  // It takes no room either.
  hints.Remember(tenant, Block('y'), KeyOf('2'));
  hints.Remember(tenant, Block('x'), KeyOf('3'));
  EXPECT_EQ(hints.Take(tenant, Block('y')), KeyOf('2'));
  EXPECT_EQ(hints.Take(tenant, Block('x')), KeyOf('3'));
}

TEST(PrefixHintsTest, ForgetsTheOldestBeyondItsLimit) {
  PrefixHints hints({.hints_max = 2, .tenant_hints_max = 10});
  const TenantId a, b = *TenantId::FromString("b");
  hints.Remember(a, Block('x'), KeyOf('1'));
  hints.Remember(b, Block('y'), KeyOf('2'));
  hints.Remember(b, Block('z'), KeyOf('3'));
  EXPECT_EQ(hints.size(), 2u);
  EXPECT_EQ(hints.Take(a, Block('x')), std::nullopt);
  EXPECT_EQ(hints.Take(b, Block('y')), KeyOf('2'));
  EXPECT_EQ(hints.Take(b, Block('z')), KeyOf('3'));
}

TEST(PrefixHintsTest, WhatIsLookedUpAgainIsTheLatest) {
  PrefixHints hints({.hints_max = 2, .tenant_hints_max = 2});
  const TenantId tenant;
  hints.Remember(tenant, Block('x'), KeyOf('1'));
  hints.Remember(tenant, Block('y'), KeyOf('2'));
  hints.Remember(tenant, Block('x'), KeyOf('1'));
  hints.Remember(tenant, Block('z'), KeyOf('3'));
  EXPECT_EQ(hints.Take(tenant, Block('y')), std::nullopt);
  EXPECT_EQ(hints.Take(tenant, Block('x')), KeyOf('1'));
  EXPECT_EQ(hints.Take(tenant, Block('z')), KeyOf('3'));
}

TEST(PrefixHintsTest, ATenantBeyondItsShareForgetsItsOwn) {
  PrefixHints hints({.hints_max = 4, .tenant_hints_max = 2});
  const TenantId quiet, busy = *TenantId::FromString("busy");
  hints.Remember(quiet, Block('q'), KeyOf('q'));
  for (char name = 'a'; name <= 'p'; ++name) hints.Remember(busy, Block(name), KeyOf(name));
  EXPECT_EQ(hints.size(), 3u);
  EXPECT_EQ(hints.Take(quiet, Block('q')), KeyOf('q'));
  EXPECT_EQ(hints.Take(busy, Block('n')), std::nullopt);
  EXPECT_EQ(hints.Take(busy, Block('o')), KeyOf('o'));
  EXPECT_EQ(hints.Take(busy, Block('p')), KeyOf('p'));
}

}  // namespace
}  // namespace kvtier
