#include "base/aligned_bytes.h"

#include <cstdint>
#include <limits>
#include <type_traits>
#include <utility>

#include "base/status_matchers.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace kvtier {
namespace {

using ::testing::Each;
using ::testing::HasSubstr;

static_assert(!std::is_copy_constructible_v<AlignedBytes>);
static_assert(!std::is_copy_assignable_v<AlignedBytes>);
static_assert(std::is_nothrow_move_constructible_v<AlignedBytes>);

TEST(AlignedBytesTest, IsAlignedAndZero) {
  for (const size_t bytes : {1u, 63u, 64u, 65u, 100'000u}) {
    AlignedBytes buffer = AlignedBytes::Allocate(bytes);
    EXPECT_EQ(buffer.size(), bytes);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(buffer.data()) % 64, 0u);
    EXPECT_THAT(std::as_const(buffer).span(), Each(std::byte{0}));
  }
}

TEST(AlignedBytesTest, NothingIsEmpty) {
  for (const AlignedBytes& buffer : {AlignedBytes(), AlignedBytes::Allocate(0)}) {
    EXPECT_TRUE(buffer.empty());
    EXPECT_EQ(buffer.data(), nullptr);
    EXPECT_TRUE(buffer.As<float>().empty());
  }
}

TEST(AlignedBytesTest, MoveLeavesTheSourceEmpty) {
  AlignedBytes a = AlignedBytes::Allocate(8);
  const std::byte* const data = a.data();
  AlignedBytes b = std::move(a);
  EXPECT_TRUE(a.empty());  // NOLINT(bugprone-use-after-move)
  EXPECT_EQ(a.data(), nullptr);
  EXPECT_EQ(b.data(), data);
  AlignedBytes c = AlignedBytes::Allocate(4);
  c = std::move(b);
  EXPECT_TRUE(b.empty());  // NOLINT(bugprone-use-after-move)
  EXPECT_EQ(c.data(), data);
  EXPECT_EQ(c.size(), 8u);
}

TEST(AlignedBytesTest, IsSeenAsAnArray) {
  AlignedBytes buffer = AlignedBytes::Allocate(3 * sizeof(uint32_t));
  buffer.As<uint32_t>()[2] = 0x01020304;
  EXPECT_EQ(std::as_const(buffer).As<uint32_t>().size(), 3u);
  EXPECT_EQ(buffer.span()[8], std::byte{4});
}

TEST(AlignedBytesTest, CopyIsIndependent) {
  AlignedBytes a = AlignedBytes::Copy(AsBytes("abc"));
  AlignedBytes b = AlignedBytes::Copy(a.span());
  a.span()[0] = std::byte{'x'};
  EXPECT_EQ(AsStringView(b.span()), "abc");
  EXPECT_TRUE(AlignedBytes::Copy({}).empty());
}

TEST(AlignedBytesTest, TryAllocateRefusesWhatThereIsNoMemoryFor) {
  EXPECT_THAT(AlignedBytes::TryAllocate(std::numeric_limits<size_t>::max()),
              StatusIs(absl::StatusCode::kResourceExhausted, HasSubstr("no memory for")));
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)  // They abort instead.
  EXPECT_THAT(AlignedBytes::TryAllocate(size_t{1} << 47, AlignedBytes::Fill::kUninitialized),
              StatusIs(absl::StatusCode::kResourceExhausted));
#endif
}

TEST(AlignedBytesDeathTest, DiesOfMisuse) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_DEATH(AlignedBytes::Allocate(std::numeric_limits<size_t>::max()), "no memory for");
  const AlignedBytes buffer = AlignedBytes::Allocate(6);
  EXPECT_DEATH(static_cast<void>(buffer.As<float>()), "buffer of 6 bytes");
}

}  // namespace
}  // namespace kvtier
