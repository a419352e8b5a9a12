#include "store/rocksdb_tier.h"

#include <algorithm>
#include <deque>
#include <filesystem>
#include <map>

#include <rocksdb/db.h>

#include "base/status_matchers.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "store/disk_format.h"
#include "tests/testing/files.h"
#include "tests/testing/store_checks.h"
#include "tests/testing/temp_dir.h"
#include "tests/testing/test_object.h"

namespace kvtier {
namespace {

const absl::Time kSealedAt = absl::FromUnixSeconds(1'767'225'600);

class RocksDbTierTest : public testing::Test {
 protected:
  // What Recover found.
  std::vector<SealedObject> Open() {
    tier_.reset();
    absl::StatusOr<std::unique_ptr<DurableTier>> tier = OpenRocksDbTier({.folder = folder_});
    EXPECT_THAT(tier, IsOk());
    tier_ = *std::move(tier);
    absl::StatusOr<std::vector<SealedObject>> sealed = tier_->Recover();
    EXPECT_THAT(sealed, IsOk());
    return *std::move(sealed);
  }
  void PutBands(const CompressedObject& object, uint32_t begin, uint32_t end) {
    const uint32_t layers = object.manifest->geometry.layer_count();
    for (uint32_t band = begin; band < end; ++band) {
      KVTIER_ASSERT_OK(tier_->PutBand(*object.manifest, BandIndex(band),
                                      std::span(object.segments).subspan(band * layers, layers)));
    }
  }
  absl::Status Seal(const CompressedObject& object) {
    return tier_->Seal(tenant_, *object.manifest, kSealedAt);
  }

  TempDir dir_;
  const std::string folder_ = dir_.File("store");
  const TenantId tenant_;
  std::unique_ptr<DurableTier> tier_;
  const CompressedObject object_ = MakeTestObject({.edges = "0.3,0.6,1"});
  const UploadId upload_ = object_.manifest->upload_id;
};

TEST_F(RocksDbTierTest, SealedObjectsComeBackAndOthersAreGone) {
  EXPECT_THAT(Open(), testing::IsEmpty());
  const CompressedObject unsealed = MakeTestObject({.edges = "0.3,0.6,1", .seed = 2});
  PutBands(object_, 0, 3);
  PutBands(unsealed, 0, 3);
  KVTIER_ASSERT_OK(Seal(object_));

  const std::vector<SealedObject> sealed = Open();
  ASSERT_EQ(sealed.size(), 1u);
  EXPECT_EQ(*sealed[0].manifest, *object_.manifest);
  EXPECT_EQ(sealed[0].tenant, tenant_);
  EXPECT_EQ(sealed[0].resident_bands, 3u);
  EXPECT_EQ(sealed[0].sealed_at, kSealedAt);
  EXPECT_EQ(tier_->BandCount(unsealed.manifest->upload_id), 0u);
  EXPECT_TRUE(std::filesystem::is_empty(folder_ + "/staging"));
}

TEST_F(RocksDbTierTest, ReadsIntoMemoryOfTheCallers) {
  Open();
  PutBands(object_, 0, 3);
  std::vector<std::byte> memory(1 << 16);
  const auto read = [&](uint32_t band, uint32_t layer) {
    const ByteSpan expected = object_.segment(BandIndex(band), LayerIndex(layer)).bytes();
    const MutableByteSpan out = std::span(memory).first(expected.size());
    std::ranges::fill(out, std::byte{0});
    const absl::Status status =
        tier_->Read(*object_.manifest, BandIndex(band), LayerIndex(layer), out);
    EXPECT_EQ(status.ok(), std::ranges::equal(out, expected));
    return status;
  };
  KVTIER_EXPECT_OK(read(2, 1)) << "on its way to the disk";
  KVTIER_ASSERT_OK(Seal(object_));
  for (uint32_t band = 0; band < 3; ++band) KVTIER_EXPECT_OK(read(band, 0));
  KVTIER_ASSERT_OK(tier_->DropBands(upload_, 2));
  EXPECT_THAT(read(2, 0), StatusIs(absl::StatusCode::kNotFound));
}

TEST_F(RocksDbTierTest, SealRefusesAnIncompleteUpload) {
  Open();
  PutBands(object_, 0, 2);
  EXPECT_THAT(Seal(object_), StatusIs(absl::StatusCode::kFailedPrecondition,
                                      testing::HasSubstr("2 bands are here")));
  KVTIER_EXPECT_OK(tier_->SealPrefix(tenant_, *object_.manifest, 2, kSealedAt));
  EXPECT_EQ(Open()[0].resident_bands, 2u);
}

TEST_F(RocksDbTierTest, BandsGivenUpStayGoneAndTheirSpaceComesBack) {
  Open();
  const CompressedObject large =
      MakeTestObject({.head_dim = 128, .context_tokens = 2000, .edges = "0.5,1", .seed = 9});
  PutBands(large, 0, 2);
  KVTIER_ASSERT_OK(Seal(large));
  const uint64_t before = FolderBytes(folder_);
  KVTIER_ASSERT_OK(tier_->DropBands(large.manifest->upload_id, 1));
  EXPECT_LE(FolderBytes(folder_), before - large.manifest->bands[1].encoded_bytes());
  const std::vector<SealedObject> sealed = Open();
  ASSERT_EQ(sealed.size(), 1u);
  EXPECT_EQ(sealed[0].resident_bands, 1u);
}

TEST_F(RocksDbTierTest, LoweredResidencySurvivesAndTheBytesAreStillServedUntilThen) {
  Open();
  PutBands(object_, 0, 3);
  KVTIER_ASSERT_OK(Seal(object_));
  KVTIER_ASSERT_OK(tier_->LowerResidency(upload_, 1));
  KVTIER_EXPECT_OK(tier_->Get(*object_.manifest, BandIndex(2), LayerIndex(0)));
  EXPECT_EQ(Open()[0].resident_bands, 1u);
  EXPECT_EQ(tier_->BandCount(upload_), 1u);
  KVTIER_ASSERT_OK(tier_->LowerResidency(upload_, 0));
  KVTIER_EXPECT_OK(tier_->Get(*object_.manifest, BandIndex(0), LayerIndex(0)));
  EXPECT_THAT(Open(), testing::IsEmpty());
}

TEST_F(RocksDbTierTest, UnsealRemovesTheCurrentUploadOnly) {
  Open();
  PutBands(object_, 0, 3);
  KVTIER_ASSERT_OK(Seal(object_));
  const CompressedObject recomputed = MakeTestObject({.edges = "0.3,0.6,1", .upload_seed = 1});
  PutBands(recomputed, 0, 3);
  KVTIER_ASSERT_OK(Seal(recomputed));
  EXPECT_EQ(tier_->BandCount(upload_), 3u);  // Until somebody drops it.
  KVTIER_ASSERT_OK(tier_->Unseal(tenant_, object_.manifest->key, upload_));
  EXPECT_EQ(tier_->BandCount(recomputed.manifest->upload_id), 3u);
  KVTIER_ASSERT_OK(tier_->Unseal(tenant_, object_.manifest->key, recomputed.manifest->upload_id));
  EXPECT_THAT(Open(), testing::IsEmpty());
}

TEST_F(RocksDbTierTest, AttributesLiveAsLongAsTheirUpload) {
  const ObjectAttributes pinned{.pinned = true, .expires_at = kSealedAt + absl::Hours(1)};
  Open();
  EXPECT_THAT(tier_->SetAttributes(upload_, pinned),
              StatusIs(absl::StatusCode::kFailedPrecondition, testing::HasSubstr("no band")));
  PutBands(object_, 0, 3);
  KVTIER_ASSERT_OK(tier_->SetAttributes(upload_, pinned));  // Before the object is sealed.
  EXPECT_THAT(Open(), testing::IsEmpty());
  PutBands(object_, 0, 3);
  KVTIER_ASSERT_OK(Seal(object_));
  EXPECT_EQ(Open()[0].attributes, ObjectAttributes());  // Not those of the attempt before.

  KVTIER_ASSERT_OK(tier_->SetAttributes(upload_, pinned));
  EXPECT_EQ(Open()[0].attributes, pinned);
  KVTIER_ASSERT_OK(tier_->DropBands(upload_, 1));
  EXPECT_EQ(Open()[0].attributes, pinned);
  KVTIER_ASSERT_OK(tier_->SetAttributes(upload_, ObjectAttributes()));
  EXPECT_EQ(Open()[0].attributes, ObjectAttributes());
  KVTIER_ASSERT_OK(tier_->SetAttributes(upload_, pinned));

  // They go with the object, and do not come back with a later one of the same upload id.
  KVTIER_ASSERT_OK(tier_->DropBands(upload_, 0));
  PutBands(object_, 0, 3);
  KVTIER_ASSERT_OK(Seal(object_));
  EXPECT_EQ(Open()[0].attributes, ObjectAttributes());
}

TEST_F(RocksDbTierTest, AStoreOfFormat1IsReadAndBecomesOneOfFormat2) {
  Open();
  PutBands(object_, 0, 3);
  KVTIER_ASSERT_OK(Seal(object_));
  tier_.reset();
  {  // What format 1 did not have.
    std::vector<rocksdb::ColumnFamilyDescriptor> families;
    for (const char* name : {"default", "segments", "objects", "residency", "attributes"}) {
      families.emplace_back(name, rocksdb::ColumnFamilyOptions());
    }
    std::vector<rocksdb::ColumnFamilyHandle*> handles;
    rocksdb::DB* opened = nullptr;
    ASSERT_TRUE(
        rocksdb::DB::Open(rocksdb::DBOptions(), folder_ + "/db", families, &handles, &opened).ok());
    const std::unique_ptr<rocksdb::DB> db(opened);
    ASSERT_TRUE(db->DropColumnFamily(handles.back()).ok());
    for (rocksdb::ColumnFamilyHandle* handle : handles) {
      ASSERT_TRUE(db->DestroyColumnFamilyHandle(handle).ok());
    }
  }
  WriteFile(folder_ + "/FORMAT", "kvtier store format 1\n");

  // Read as it is.
  KVTIER_ASSERT_OK_AND_ASSIGN(tier_, OpenRocksDbTier({.folder = folder_, .read_only = true}));
  KVTIER_ASSERT_OK_AND_ASSIGN(const std::vector<SealedObject> read, tier_->Recover());
  ASSERT_EQ(read.size(), 1u);
  EXPECT_EQ(*read[0].manifest, *object_.manifest);
  EXPECT_EQ(ReadFile(folder_ + "/FORMAT"), "kvtier store format 1\n");

  ASSERT_EQ(Open().size(), 1u);
  EXPECT_EQ(ReadFile(folder_ + "/FORMAT"), "kvtier store format 2\n");
  KVTIER_ASSERT_OK(tier_->SetAttributes(upload_, {.pinned = true}));
  EXPECT_TRUE(Open()[0].attributes.pinned);
}

TEST_F(RocksDbTierTest, AnotherFormatIsRefusedByNameAndUntouched) {
  Open();
  tier_.reset();
  WriteFile(folder_ + "/FORMAT", "kvtier store format 7\n");
  EXPECT_THAT(OpenRocksDbTier({.folder = folder_}),
              StatusIs(absl::StatusCode::kFailedPrecondition, testing::HasSubstr("format 7")));
  std::filesystem::remove(folder_ + "/FORMAT");
  EXPECT_THAT(OpenRocksDbTier({.folder = folder_}),
              StatusIs(absl::StatusCode::kFailedPrecondition, testing::HasSubstr("FORMAT")));
}

// Every file of a folder with its content.
std::map<std::string, std::string> Snapshot(const std::string& folder) {
  std::map<std::string, std::string> files;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(folder)) {
    files[entry.path()] = entry.is_regular_file() ? ReadFile(entry.path()) : "";
  }
  return files;
}

TEST_F(RocksDbTierTest, AFolderOfSomebodyElseIsRefusedByNameAndUntouched) {
  std::filesystem::create_directories(folder_ + "/staging");
  WriteFile(folder_ + "/staging/thesis.tex", "mine");
  const auto before = Snapshot(folder_);
  for (const bool must_exist : {false, true}) {
    for (const bool read_only : {false, true}) {
      EXPECT_THAT(
          OpenRocksDbTier({.folder = folder_, .must_exist = must_exist, .read_only = read_only}),
          StatusIs(absl::StatusCode::kFailedPrecondition, testing::HasSubstr(folder_)));
    }
  }
  EXPECT_EQ(Snapshot(folder_), before);
}

TEST_F(RocksDbTierTest, AFolderThatMustExistIsNotMade) {
  for (const std::string& folder : {folder_, dir_.File("empty")}) {
    if (folder != folder_) std::filesystem::create_directories(folder);
    EXPECT_THAT(OpenRocksDbTier({.folder = folder, .must_exist = true}),
                StatusIs(absl::StatusCode::kFailedPrecondition, testing::HasSubstr(folder)));
    EXPECT_THAT(OpenRocksDbTier({.folder = folder, .read_only = true}),
                StatusIs(absl::StatusCode::kFailedPrecondition, testing::HasSubstr(folder)));
  }
  EXPECT_FALSE(std::filesystem::exists(folder_));
  EXPECT_TRUE(std::filesystem::is_empty(dir_.File("empty")));
  // What a first start that was cut short leaves is no obstacle to the next.
  WriteFile(dir_.File("empty/FORMAT.new"), "kvtier st");
  KVTIER_EXPECT_OK(OpenRocksDbTier({.folder = dir_.File("empty")}));
  KVTIER_EXPECT_OK(OpenRocksDbTier({.folder = dir_.File("empty"), .must_exist = true}));
}

TEST_F(RocksDbTierTest, ReadOnlyServesAndReportsAndChangesNothing) {
  Open();
  const CompressedObject other = MakeTestObject({.edges = "0.3,0.6,1", .seed = 2});
  PutBands(object_, 0, 3);
  KVTIER_ASSERT_OK(Seal(object_));
  PutBands(other, 0, 3);
  KVTIER_ASSERT_OK(Seal(other));
  KVTIER_ASSERT_OK(tier_->LowerResidency(upload_, 2));  // Leaves a band that no record names.
  tier_.reset();
  WriteFile(folder_ + "/staging/left.sst", "bytes");
  const auto before = Snapshot(folder_);
  {
    KVTIER_ASSERT_OK_AND_ASSIGN(const auto tier,
                                OpenRocksDbTier({.folder = folder_, .read_only = true}));
    KVTIER_ASSERT_OK_AND_ASSIGN(const auto second,  // Readers do not keep each other out.
                                OpenRocksDbTier({.folder = folder_, .read_only = true}));
    EXPECT_THAT(OpenRocksDbTier({.folder = folder_}),
                StatusIs(absl::StatusCode::kFailedPrecondition, testing::HasSubstr("in use")));
    KVTIER_ASSERT_OK_AND_ASSIGN(const std::vector<SealedObject> sealed, tier->Recover());
    EXPECT_EQ(sealed.size(), 2u);
    EXPECT_EQ(tier->BandCount(upload_), 2u);
    KVTIER_EXPECT_OK(tier->Get(*object_.manifest, BandIndex(1), LayerIndex(0)));
    EXPECT_EQ(tier->counters().orphans_removed, 0u);
    EXPECT_EQ(tier->counters().records_lost, 0u);
    EXPECT_THAT(tier->DropBands(upload_, 1), StatusIs(absl::StatusCode::kFailedPrecondition));
    EXPECT_THAT(
        tier->PutBand(*object_.manifest, BandIndex(2),
                      std::span(object_.segments).last(object_.manifest->geometry.layer_count())),
        StatusIs(absl::StatusCode::kFailedPrecondition));
  }
  EXPECT_EQ(Snapshot(folder_), before);
}

TEST_F(RocksDbTierTest, AFolderHasOneOwner) {
  Open();
  EXPECT_THAT(OpenRocksDbTier({.folder = folder_}),
              StatusIs(absl::StatusCode::kFailedPrecondition, testing::HasSubstr("in use")));
}

TEST_F(RocksDbTierTest, AFolderThatCannotBeMadeIsUnavailable) {
  WriteFile(dir_.File("file"), "");
  EXPECT_THAT(OpenRocksDbTier({.folder = dir_.File("file/store")}),
              StatusIs(absl::StatusCode::kUnavailable));
}

// Objects of a segment each, so that records, logs and lists of files weigh as much as they can.
TEST_F(RocksDbTierTest, AllFilesStayWithinTheBudgetWhileItTurnsOver) {
  constexpr uint64_t kBudget = uint64_t{3} << 20;
  const uint64_t files_bytes = RocksDbFilesBytes(kBudget);
  const uint64_t list_bytes = RocksDbListBytes(kBudget);
  KVTIER_ASSERT_OK_AND_ASSIGN(tier_, OpenRocksDbTier({.folder = folder_,
                                                      .budget_bytes = kBudget,
                                                      .files_bytes = files_bytes,
                                                      .list_bytes = list_bytes}));
  KVTIER_ASSERT_OK(tier_->Recover());
  std::deque<CompressedObject> stored;
  uint64_t largest_bytes = 0;
  for (uint64_t seed = 1; seed <= 150; ++seed) {
    const CompressedObject object = MakeTestObject(
        {.layers = 1, .kv_heads = 64, .context_tokens = 24, .edges = "0.5,1", .seed = seed});
    const uint64_t charge =
        tier_->ChargeOf(object.manifest->bands[0]) + tier_->ChargeOf(object.manifest->bands[1]);
    while (!HasRoom(tier_->Usage(), charge)) {
      const Manifest& oldest = *stored.front().manifest;
      KVTIER_ASSERT_OK(tier_->DropBands(oldest.upload_id, 1));
      KVTIER_ASSERT_OK(tier_->DropBands(oldest.upload_id, 0));
      stored.pop_front();
    }
    PutBands(object, 0, 2);
    largest_bytes = std::max(largest_bytes, FolderBytes(folder_));
    KVTIER_ASSERT_OK(Seal(object));
    largest_bytes = std::max(largest_bytes, FolderBytes(folder_));
    stored.push_back(object);
  }
  EXPECT_LE(largest_bytes, kBudget + files_bytes + 2 * list_bytes);
  EXPECT_GT(largest_bytes, kBudget / 2) << "the test fills nothing";
  EXPECT_LT(stored.size(), 75u) << "the test turns nothing over";
  for (const CompressedObject& object : stored) {
    KVTIER_EXPECT_OK(tier_->Get(*object.manifest, BandIndex(1), LayerIndex(0)));
  }
}

TEST_F(RocksDbTierTest, ReadsPastThePageCacheAndThroughIt) {
  Open();
  const CompressedObject large =
      MakeTestObject({.head_dim = 128, .context_tokens = 4000, .edges = "0.2,1", .seed = 9});
  PutBands(large, 0, 2);
  KVTIER_ASSERT_OK(Seal(large));
  for (const bool direct_reads : {true, false}) {
    tier_.reset();
    KVTIER_ASSERT_OK_AND_ASSIGN(tier_,
                                OpenRocksDbTier({.folder = folder_, .direct_reads = direct_reads}));
    KVTIER_ASSERT_OK(tier_->Recover());
    for (uint32_t band = 0; band < 2; ++band) {
      KVTIER_ASSERT_OK_AND_ASSIGN(const SegmentRef read,
                                  tier_->Get(*large.manifest, BandIndex(band), LayerIndex(1)));
      EXPECT_TRUE(
          std::ranges::equal(read.bytes(), large.segment(BandIndex(band), LayerIndex(1)).bytes()));
    }
  }
}

TEST_F(RocksDbTierTest, ChargesAtLeastWhatItTakesOnDisk) {
  Open();
  const CompressedObject large =
      MakeTestObject({.head_dim = 128, .context_tokens = 4000, .edges = "0.2,1", .seed = 9});
  const uint64_t before = FolderBytes(folder_);
  PutBands(large, 0, 2);
  EXPECT_LE(FolderBytes(folder_) - before, tier_->Usage().bytes);
  EXPECT_LE(tier_->Usage().bytes, large.manifest->total_bytes() * 11 / 10);
}

}  // namespace
}  // namespace kvtier
