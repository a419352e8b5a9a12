// TieredStore::FindPrefixes: the prefix index follows what the store has.
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/bytes.h"
#include "base/log.h"
#include "base/simulated_clock.h"
#include "base/status_matchers.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kvcache/sha256.h"
#include "store/tiered_store.h"
#include "tests/testing/files.h"
#include "tests/testing/store_checks.h"
#include "tests/testing/temp_dir.h"
#include "tests/testing/test_object.h"

namespace kvtier {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;

constexpr uint64_t kPlenty = 64 << 20;

TokenBlockHash Hash(int number) {
  return *TokenBlockHash::FromBytes(ComputeSha256(AsBytes(absl::StrCat(number))).AsStringView());
}

class FindPrefixesTest : public testing::Test {
 protected:
  FindPrefixesTest() { Open(); }

  void Open() {
    store_.reset();
    absl::StatusOr<std::unique_ptr<TieredStore>> store =
        OpenTestStore(dir_.File("store"), kPlenty, clock_);
    KVTIER_CHECK_OK(store);
    store_ = *std::move(store);
  }
  static CompressedObject Object(uint64_t seed, int last_block, uint32_t context_tokens,
                                 uint64_t upload_seed = 0) {
    return MakeTestObject({.context_tokens = context_tokens,
                           .seed = seed,
                           .upload_seed = upload_seed,
                           .last_block_hash = Hash(last_block)});
  }
  void Put(const CompressedObject& object, Durability durability = Durability::kDisk) {
    ASSERT_THAT(store_->Put(tenant_, object, durability), IsOk());
  }
  std::vector<ObjectStat> Find(const std::vector<int>& blocks, double min_ratio = 0.000001,
                               size_t candidates_max = 10) {
    std::string hashes;
    for (const int block : blocks) hashes += std::string(Hash(block).AsStringView());
    return store_->FindPrefixes(tenant_, {.block_hashes = hashes}, *Ratio::FromDouble(min_ratio),
                                candidates_max);
  }
  std::vector<Key> FindKeys(const std::vector<int>& blocks, double min_ratio = 0.000001,
                            size_t candidates_max = 10) {
    std::vector<Key> keys;
    for (const ObjectStat& stat : Find(blocks, min_ratio, candidates_max)) {
      keys.push_back(stat.manifest->key);
    }
    return keys;
  }

  void FlipFirstByteOnDisk(const CompressedObject& object) {
    const ByteSpan segment = object.segment(BandIndex(0), LayerIndex(0)).bytes();
    for (const auto& entry : std::filesystem::recursive_directory_iterator(dir_.File("store"))) {
      if (entry.path().extension() != ".sst") continue;
      const size_t at = ReadFile(entry.path()).find(ToString(segment));
      if (at != std::string::npos) return FlipBit(entry.path(), at, 0);
    }
    FAIL() << "the segment is on no disk";
  }

  TempDir dir_;
  SimulatedClock clock_;
  TenantId tenant_;
  std::unique_ptr<TieredStore> store_;
};

TEST_F(FindPrefixesTest, FindsWhatIsStoredLongestFirst) {
  const CompressedObject one = Object(1, 1, 65);
  const CompressedObject three = Object(3, 3, 192);
  Put(one);
  Put(three, Durability::kHost);
  const std::vector<ObjectStat> found = Find({1, 2, 3, 4});
  ASSERT_EQ(found.size(), 2u);
  EXPECT_EQ(found[0].manifest->key, three.manifest->key);
  EXPECT_EQ(found[0].manifest->upload_id, three.manifest->upload_id);
  EXPECT_EQ(found[0].resident_bands, 6u);
  EXPECT_EQ(found[1].manifest->key, one.manifest->key);
  EXPECT_THAT(FindKeys({1, 2, 3, 4}, 0.1, 1), ElementsAre(three.manifest->key));
  EXPECT_EQ(store_->counters().requests, 0u);
}

TEST_F(FindPrefixesTest, ObjectsWithoutAHashAreNotFound) {
  Put(MakeTestObject({.context_tokens = 70}));
  const std::string zero(TokenBlockHash::kSize, '\0');
  EXPECT_THAT(store_->FindPrefixes(tenant_, {.block_hashes = zero}, Ratio(), 10), IsEmpty());
}

TEST_F(FindPrefixesTest, DeletedOnesAreGone) {
  const CompressedObject one = Object(1, 1, 65);
  Put(one);
  ASSERT_THAT(store_->Delete(tenant_, one.manifest->key), IsOk());
  EXPECT_THAT(FindKeys({1}), IsEmpty());
}

TEST_F(FindPrefixesTest, AReplacedUploadIsFoundOnceAsTheNewOne) {
  const CompressedObject old_upload = Object(1, 1, 65, 1);
  Put(old_upload);
  ASSERT_THAT(store_->DropBands(tenant_, old_upload.manifest->key, 1), IsOk());
  const CompressedObject new_upload = Object(1, 1, 65, 2);
  Put(new_upload);
  const std::vector<ObjectStat> found = Find({1});
  ASSERT_EQ(found.size(), 1u);
  EXPECT_EQ(found[0].manifest->upload_id, new_upload.manifest->upload_id);
}

TEST_F(FindPrefixesTest, DegradingShowsAndFilters) {
  const CompressedObject longer = Object(2, 2, 130);
  const CompressedObject shorter = Object(1, 1, 65);
  Put(longer);
  Put(shorter);
  ASSERT_THAT(store_->DropBands(tenant_, longer.manifest->key, 2), IsOk());  // To ratio 0.2.
  EXPECT_EQ(Find({1, 2})[0].resident_bands, 2u);
  EXPECT_THAT(FindKeys({1, 2}, 0.2), ElementsAre(longer.manifest->key, shorter.manifest->key));
  EXPECT_THAT(FindKeys({1, 2}, 0.200001), ElementsAre(shorter.manifest->key));
  EXPECT_THAT(FindKeys({1, 2}, 0.3, /*candidates_max=*/1), ElementsAre(shorter.manifest->key))
      << "what is left out takes no place";
}

TEST_F(FindPrefixesTest, SurvivesARestart) {
  const CompressedObject one = Object(1, 1, 65);
  const CompressedObject in_host = Object(2, 2, 130);
  Put(one);
  Put(in_host, Durability::kHost);
  Open();
  EXPECT_THAT(FindKeys({1, 2}), ElementsAre(one.manifest->key));
}

// What policy or damage takes is not found any more, whichever way it goes.
TEST_F(FindPrefixesTest, WhatIsLostIsGone) {
  const CompressedObject one = Object(1, 1, 65);
  Put(one);
  Open();  // Nothing is in host memory yet: reads come from the disk.
  FlipFirstByteOnDisk(one);
  EXPECT_THAT(store_->Verify(tenant_, one.manifest->key), StatusIs(absl::StatusCode::kDataLoss));
  EXPECT_THAT(FindKeys({1}), IsEmpty());
}

// The next turn of a conversation: looked up, then put.
TEST_F(FindPrefixesTest, AnObjectWhoseLookupFoundAPrefixExtendsIt) {
  Put(Object(1, /*last_block=*/1, 70));
  EXPECT_EQ(store_->counters().extensions_seen, 0u);
  ASSERT_EQ(Find({1, 2}).size(), 1u);
  Put(Object(2, /*last_block=*/2, 130));
  EXPECT_EQ(store_->counters().extensions_seen, 1u);
  ASSERT_EQ(Find({3, 4}).size(), 0u);
  Put(Object(4, /*last_block=*/4, 130));
  EXPECT_EQ(store_->counters().extensions_seen, 1u) << "a lookup that found nothing";
  ASSERT_EQ(Find({4}).size(), 1u);
  Put(Object(5, /*last_block=*/4, 131));
  EXPECT_EQ(store_->counters().extensions_seen, 1u) << "the same blocks, another tail";
  ASSERT_EQ(Find({1, 2, 5}).size(), 2u);
  Put(Object(6, /*last_block=*/5, 200));
  EXPECT_EQ(store_->counters().extensions_seen, 2u);
}

TEST_F(FindPrefixesTest, TenantsDoNotSeeEachOther) {
  Put(Object(1, 1, 65));
  tenant_ = *TenantId::FromString("other");
  EXPECT_THAT(FindKeys({1}), IsEmpty());
}

}  // namespace
}  // namespace kvtier
