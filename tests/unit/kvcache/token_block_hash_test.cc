#include "kvcache/token_block_hash.h"

#include <numeric>

#include "base/bytes.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kvcache/sha256.h"

namespace kvtier {
namespace {

using ::testing::IsEmpty;
using ::testing::SizeIs;

std::vector<uint32_t> Tokens(uint32_t count) {
  std::vector<uint32_t> ids(count);
  std::iota(ids.begin(), ids.end(), 100u);
  return ids;
}

Digest Head() { return ComputeSha256(AsBytes("head")); }

TEST(TokenBlockHashTest, OneHashPerFullBlock) {
  EXPECT_THAT(ComputeTokenBlockHashes(Head(), {}), IsEmpty());
  EXPECT_THAT(ComputeTokenBlockHashes(Head(), Tokens(kTokenBlockTokens - 1)), IsEmpty());
  EXPECT_THAT(ComputeTokenBlockHashes(Head(), Tokens(kTokenBlockTokens)), SizeIs(1));
  EXPECT_THAT(ComputeTokenBlockHashes(Head(), Tokens(3 * kTokenBlockTokens + 5)), SizeIs(3));
}

TEST(TokenBlockHashTest, HashesOfAPrefixAreAPrefixOfTheHashes) {
  const auto longer = ComputeTokenBlockHashes(Head(), Tokens(5 * kTokenBlockTokens));
  const auto shorter = ComputeTokenBlockHashes(Head(), Tokens(2 * kTokenBlockTokens + 1));
  ASSERT_THAT(shorter, SizeIs(2));
  EXPECT_EQ(shorter[0], longer[0]);
  EXPECT_EQ(shorter[1], longer[1]);
}

TEST(TokenBlockHashTest, OneTokenChangesItsBlockAndAllAfter) {
  std::vector<uint32_t> ids = Tokens(3 * kTokenBlockTokens);
  const auto before = ComputeTokenBlockHashes(Head(), ids);
  ids[kTokenBlockTokens] ^= 0x80000000u;
  const auto after = ComputeTokenBlockHashes(Head(), ids);
  EXPECT_EQ(after[0], before[0]);
  EXPECT_NE(after[1], before[1]);
  EXPECT_NE(after[2], before[2]);
}

TEST(TokenBlockHashTest, TheHeadDigestChangesEveryHash) {
  const auto a = ComputeTokenBlockHashes(Head(), Tokens(kTokenBlockTokens));
  const auto b =
      ComputeTokenBlockHashes(ComputeSha256(AsBytes("other")), Tokens(kTokenBlockTokens));
  EXPECT_NE(a[0], b[0]);
}

}  // namespace
}  // namespace kvtier
