#include "kvcache/sha256.h"

#include <utility>

#include "base/bytes.h"
#include "gtest/gtest.h"

namespace kvtier {
namespace {

// FIPS 180-2, appendix B.
constexpr absl::string_view kAbc =
    "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

TEST(Sha256Test, KnownAnswers) {
  EXPECT_EQ(ComputeSha256({}).ToHex(),
            "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
  EXPECT_EQ(ComputeSha256(AsBytes("abc")).ToHex(), kAbc);
}

TEST(Sha256Test, PiecesHashLikeTheWhole) {
  Sha256 hash;
  hash.Update("a");
  hash.Update(ByteSpan());
  Sha256 moved = std::move(hash);
  moved.Update(AsBytes("bc"));
  EXPECT_EQ(Digest(moved.Finish()).ToHex(), kAbc);
}

}  // namespace
}  // namespace kvtier
