#include "store/prefix_index.h"

#include <algorithm>
#include <map>
#include <string>
#include <thread>
#include <tuple>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/testing/random.h"

namespace kvtier {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;

constexpr size_t kNoLimit = 1000;

TokenBlockHash Hash(uint32_t number) {
  std::string bytes(TokenBlockHash::kSize, '\0');
  bytes.replace(0, sizeof(number), reinterpret_cast<const char*>(&number), sizeof(number));
  return *TokenBlockHash::FromBytes(bytes);
}

UploadId Upload(uint8_t number) {
  std::string bytes(UploadId::kSize, '\0');
  bytes[0] = static_cast<char>(number);
  return *UploadId::FromBytes(bytes);
}

std::string Hashes(const std::vector<uint32_t>& numbers) {
  std::string bytes;
  for (const uint32_t number : numbers) bytes += std::string(Hash(number).AsStringView());
  return bytes;
}

PrefixMatch Object(uint32_t context_tokens, uint8_t upload) {
  return {.context_tokens = context_tokens, .upload = Upload(upload)};
}

class PrefixIndexTest : public testing::Test {
 protected:
  std::vector<PrefixMatch> Find(const std::vector<uint32_t>& blocks,
                                uint64_t context_tokens = UINT64_MAX,
                                size_t matches_max = kNoLimit) {
    const std::string hashes = Hashes(blocks);
    return index_.Find(tenant_, {.block_hashes = hashes, .context_tokens = context_tokens},
                       matches_max);
  }

  const TenantId tenant_;
  PrefixIndex index_;
};

TEST_F(PrefixIndexTest, FindsObjectsAtAnyBlockLongestFirst) {
  index_.Insert(tenant_, Hash(1), Object(70, 1));
  index_.Insert(tenant_, Hash(3), Object(200, 3));
  index_.Insert(tenant_, Hash(9), Object(999, 9));
  EXPECT_THAT(Find({1, 2, 3, 4}), ElementsAre(Object(200, 3), Object(70, 1)));
  EXPECT_THAT(Find({1, 2}), ElementsAre(Object(70, 1))) << "the longer one's blocks are not there";
  EXPECT_THAT(Find({2, 4}), IsEmpty());
  EXPECT_THAT(Find({}), IsEmpty());
}

TEST_F(PrefixIndexTest, FindsAllTailsBehindOneBlock) {
  index_.Insert(tenant_, Hash(1), Object(64, 4));
  index_.Insert(tenant_, Hash(1), Object(127, 2));
  index_.Insert(tenant_, Hash(1), Object(80, 3));
  index_.Insert(tenant_, Hash(1), Object(80, 1));
  EXPECT_THAT(Find({1}), ElementsAre(Object(127, 2), Object(80, 1), Object(80, 3), Object(64, 4)));
  EXPECT_THAT(Find({1}, /*context_tokens=*/80),
              ElementsAre(Object(80, 1), Object(80, 3), Object(64, 4)))
      << "longer than the prompt";
  EXPECT_THAT(Find({1}, 79, /*matches_max=*/1), ElementsAre(Object(64, 4)))
      << "what is too long takes no place";
  EXPECT_THAT(Find({1}, UINT64_MAX, /*matches_max=*/2), ElementsAre(Object(127, 2), Object(80, 1)));
}

TEST_F(PrefixIndexTest, TenantsDoNotSeeEachOther) {
  const TenantId other = *TenantId::FromString("other");
  index_.Insert(tenant_, Hash(1), Object(64, 1));
  index_.Insert(other, Hash(1), Object(64, 2));
  EXPECT_THAT(Find({1}), ElementsAre(Object(64, 1)));
  const std::string hashes = Hashes({1});
  EXPECT_THAT(index_.Find(other, {.block_hashes = hashes}, kNoLimit), ElementsAre(Object(64, 2)));
  index_.Remove(other, Hash(1), Object(64, 2));
  EXPECT_THAT(index_.Find(other, {.block_hashes = hashes}, kNoLimit), IsEmpty());
  EXPECT_THAT(Find({1}), ElementsAre(Object(64, 1)));
}

TEST_F(PrefixIndexTest, RemovesWhatItIsTold) {
  index_.Insert(tenant_, Hash(1), Object(64, 1));
  index_.Insert(tenant_, Hash(1), Object(64, 2));
  index_.Remove(tenant_, Hash(1), Object(65, 1));  // None of them is there.
  index_.Remove(tenant_, Hash(2), Object(64, 1));
  index_.Remove(*TenantId::FromString("other"), Hash(1), Object(64, 1));
  EXPECT_EQ(index_.size(), 2u);
  index_.Remove(tenant_, Hash(1), Object(64, 1));
  EXPECT_THAT(Find({1}), ElementsAre(Object(64, 2)));
  index_.Remove(tenant_, Hash(1), Object(64, 2));
  EXPECT_THAT(Find({1}), IsEmpty());
  EXPECT_EQ(index_.size(), 0u);
}

// Against a plain list: random objects, random prompts.
TEST_F(PrefixIndexTest, AgreesWithAPlainList) {
  const uint64_t seed = TestSeed();
  SCOPED_TRACE(SeedTrace(seed));
  std::mt19937_64 random(seed);
  struct Entry {
    uint32_t hash;
    PrefixMatch object;
  };
  std::vector<Entry> entries;
  for (int step = 0; step < 3000; ++step) {
    if (entries.size() < 200 && RandomUniform(random, 0, 2) > 0) {
      const Entry entry{static_cast<uint32_t>(RandomUniform(random, 1, 40)),
                        Object(static_cast<uint32_t>(RandomUniform(random, 64, 4000)),
                               static_cast<uint8_t>(RandomUniform(random, 0, 255)))};
      const bool is_new = std::ranges::none_of(entries, [&](const Entry& other) {
        return other.hash == entry.hash && other.object == entry.object;
      });
      if (!is_new) continue;
      index_.Insert(tenant_, Hash(entry.hash), entry.object);
      entries.push_back(entry);
    } else if (!entries.empty()) {
      const size_t at = RandomUniform(random, 0, entries.size() - 1);
      index_.Remove(tenant_, Hash(entries[at].hash), entries[at].object);
      entries.erase(entries.begin() + static_cast<ptrdiff_t>(at));
    }
    std::vector<uint32_t> blocks(RandomUniform(random, 0, 40));
    for (uint32_t i = 0; i < blocks.size(); ++i) blocks[i] = i + 1;
    std::ranges::shuffle(blocks, random);
    const uint64_t tokens = RandomUniform(random, 0, 5000);
    const size_t limit = RandomUniform(random, 1, 20);
    std::vector<PrefixMatch> expected;
    for (size_t i = blocks.size(); i-- > 0;) {
      std::vector<PrefixMatch> here;
      for (const Entry& entry : entries) {
        if (entry.hash == blocks[i] && entry.object.context_tokens <= tokens) {
          here.push_back(entry.object);
        }
      }
      std::ranges::sort(here, [](const PrefixMatch& a, const PrefixMatch& b) {
        return std::tuple(-int64_t{a.context_tokens}, a.upload) <
               std::tuple(-int64_t{b.context_tokens}, b.upload);
      });
      expected.insert(expected.end(), here.begin(), here.end());
    }
    expected.resize(std::min(expected.size(), limit));
    ASSERT_EQ(Find(blocks, tokens, limit), expected);
    ASSERT_EQ(index_.size(), entries.size());
  }
}

TEST_F(PrefixIndexTest, IsSearchedWhileItChanges) {
  index_.Insert(tenant_, Hash(7), Object(7000, 7));
  std::thread writer([&] {
    for (uint32_t i = 0; i < 2000; ++i) {
      index_.Insert(tenant_, Hash(100 + i), Object(64, 1));
      if (i >= 50) index_.Remove(tenant_, Hash(50 + i), Object(64, 1));
    }
  });
  for (int i = 0; i < 500; ++i) EXPECT_THAT(Find({5, 6, 7}), ElementsAre(Object(7000, 7)));
  writer.join();
  EXPECT_EQ(index_.size(), 51u);
}

}  // namespace
}  // namespace kvtier
