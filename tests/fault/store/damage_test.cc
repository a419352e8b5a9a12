// Bytes that rot on disk. The survivors are exact: the bands below the damage are served, those
// from it on are given up and counted, every other object is untouched, and no wrong byte is ever
// served.
#include <algorithm>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/log.h"
#include "base/simulated_clock.h"
#include "base/status_matchers.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kvcache/manifest.h"
#include "store/disk_format.h"
#include "store/scrubber.h"
#include "store/tiered_store.h"
#include "tests/fault/store/fault_env.h"
#include "tests/testing/files.h"
#include "tests/testing/store_checks.h"
#include "tests/testing/temp_dir.h"
#include "tests/testing/test_object.h"

namespace kvtier {
namespace {

constexpr uint64_t kHostBytes = 64 << 20;

class DamageTest : public testing::Test {
 protected:
  void Open(uint64_t host_bytes) {
    store_.reset();
    absl::StatusOr<std::unique_ptr<TieredStore>> store =
        OpenTestStore(dir_.File("store"), host_bytes, clock_, env_.env());
    KVTIER_CHECK_OK(store);
    store_ = *std::move(store);
    host_bytes_ = host_bytes;
  }
  // An upload needs host memory, whatever is read from where afterwards.
  void Put(const CompressedObject& object) {
    const uint64_t host_bytes = host_bytes_;
    if (host_bytes < kHostBytes) Open(kHostBytes);
    KVTIER_CHECK_OK(store_->Put(TenantId(), object, Durability::kDisk));
    if (host_bytes < kHostBytes) Open(host_bytes);
  }
  absl::Status Check(const CompressedObject& object, uint32_t bands) {
    return CheckStored(*store_, TenantId(), object, bands);
  }

  struct Place {
    std::string file;
    uint64_t offset = 0;
    uint64_t file_bytes = 0;
  };
  static uint64_t SegmentBytesMax(const CompressedObject& object) {
    uint64_t bytes = 0;
    for (const SegmentRef& segment : object.segments) {
      bytes = std::max<uint64_t>(bytes, segment.bytes().size());
    }
    return bytes;
  }
  // Where the first bytes of a segment lie on disk.
  Place Find(const CompressedObject& object, uint32_t band, uint32_t layer) {
    const absl::string_view bytes =
        AsStringView(object.segment(BandIndex(band), LayerIndex(layer)).bytes());
    for (const auto& entry : std::filesystem::recursive_directory_iterator(dir_.File("store"))) {
      if (entry.path().extension() != ".sst") continue;
      // RocksDB may be removing another file at this moment.
      std::ifstream stream(entry.path(), std::ios::binary);
      const std::string content{std::istreambuf_iterator<char>(stream), {}};
      const size_t at = content.find(std::string(bytes.substr(0, 4096)));
      if (at != std::string::npos) return {entry.path(), at, content.size()};
    }
    KVTIER_LOG(FATAL) << "band " << band << " is not on disk";
    return {};
  }

  // Where `bytes` lie in a file of RocksDB.
  Place FindBytes(absl::string_view bytes) {
    for (const auto& entry : std::filesystem::recursive_directory_iterator(dir_.File("store"))) {
      if (entry.path().extension() != ".sst") continue;
      const std::string content = ReadFile(entry.path());
      const size_t at = content.find(std::string(bytes));
      if (at != std::string::npos) return {entry.path(), at, content.size()};
    }
    KVTIER_LOG(FATAL) << "not on disk";
    return {};
  }

  TempDir dir_;
  FaultEnv env_;
  SimulatedClock clock_;
  uint64_t host_bytes_ = 0;
  std::unique_ptr<TieredStore> store_;
  const CompressedObject object_ = MakeTestObject({.context_tokens = 300, .seed = 1});
  const CompressedObject other_ = MakeTestObject({.context_tokens = 300, .seed = 2});
  static constexpr uint32_t kBands = 6;
  // For one segment that is being read and no band besides: everything is read from disk.
  const uint64_t no_host_bytes_ = std::max(SegmentBytesMax(object_), SegmentBytesMax(other_));
};

TEST_F(DamageTest, AFlippedByteCostsItsBandAndThoseAboveAndNothingElse) {
  for (uint32_t band = 0; band < kBands; ++band) {
    for (const uint32_t layer : {0u, 2u}) {
      SCOPED_TRACE(absl::StrCat("band ", band, " layer ", layer));
      Open(no_host_bytes_);
      Put(object_);
      Put(other_);
      const Place place = Find(object_, band, layer);
      store_.reset();
      const uint64_t bytes = object_.segment(BandIndex(band), LayerIndex(layer)).bytes().size();
      FlipBit(place.file, place.offset + bytes / 2, 3);

      Open(no_host_bytes_);
      {
        KVTIER_ASSERT_OK_AND_ASSIGN(const auto pinned,
                                    store_->Pin(TenantId(), object_.manifest->key, std::nullopt));
        EXPECT_EQ(pinned->resident_bands(), kBands);
        EXPECT_THAT(pinned->Read(BandIndex(band), LayerIndex(layer)),
                    StatusIs(absl::StatusCode::kDataLoss, testing::HasSubstr("head")));
      }
      const StoreCounters& counters = store_->counters();
      EXPECT_EQ(counters.checksum_failures, 1u);
      EXPECT_EQ(counters.bands_lost, kBands - band);
      EXPECT_EQ(counters.failures, 1u);
      KVTIER_EXPECT_OK(Check(object_, band));  // 0: a miss.
      KVTIER_EXPECT_OK(Check(other_, kBands));

      Open(no_host_bytes_);
      KVTIER_EXPECT_OK(Check(object_, band));
      KVTIER_EXPECT_OK(Check(other_, kBands));
      EXPECT_EQ(store_->counters().checksum_failures, 0u);
      if (band > 0) {
        KVTIER_EXPECT_OK(store_->Verify(TenantId(), object_.manifest->key));
      }
      KVTIER_EXPECT_OK(store_->Delete(TenantId(), other_.manifest->key));
      store_->Delete(TenantId(), object_.manifest->key).IgnoreError();  // NOT_FOUND for band 0.
    }
  }
}

// Index, properties and footer too, and the keys between the values: whatever the byte means, the
// bands below it and the other object stay, and what is served is right.
TEST_F(DamageTest, AFlippedByteAnywhereInABandFileNeverServesWrongBytes) {
  constexpr uint32_t kBand = 2;
  constexpr int kFlips = 40;
  int losses = 0;
  for (int flip = 0; flip < kFlips; ++flip) {
    Open(no_host_bytes_);
    Put(object_);
    Put(other_);
    const Place place = Find(object_, kBand, 0);
    store_.reset();
    // Half of them spread over the file, half over the last 2 KiB, where RocksDB's own blocks are.
    const uint64_t at = flip < kFlips / 2
                            ? place.file_bytes * flip / (kFlips / 2)
                            : place.file_bytes - 2048 + (flip - kFlips / 2) * 2048 / (kFlips / 2);
    SCOPED_TRACE(absl::StrCat("offset ", at, " of ", place.file_bytes));
    FlipBit(place.file, at, 5);

    Open(no_host_bytes_);
    KVTIER_EXPECT_OK(Check(other_, kBands));
    const absl::Status first = Check(object_, kBands);
    if (!first.ok()) {
      ++losses;
      EXPECT_THAT(first, StatusIs(absl::StatusCode::kDataLoss));
      KVTIER_EXPECT_OK(Check(object_, kBand));
      EXPECT_EQ(store_->counters().bands_lost, kBands - kBand);
    }
    KVTIER_EXPECT_OK(Check(other_, kBands));
    KVTIER_ASSERT_OK(store_->Delete(TenantId(), object_.manifest->key));
    KVTIER_ASSERT_OK(store_->Delete(TenantId(), other_.manifest->key));
  }
  EXPECT_GE(losses, kFlips / 2 - 1);
}

TEST_F(DamageTest, ATruncatedOrMissingFileCostsItsBandAndThoseAbove) {
  for (const bool is_missing : {false, true}) {
    SCOPED_TRACE(is_missing ? "missing" : "truncated");
    Open(no_host_bytes_);
    Put(object_);
    Put(other_);
    const Place place = Find(object_, 3, 0);
    store_.reset();
    if (is_missing) {
      std::filesystem::remove(place.file);
    } else {
      TruncateFile(place.file, place.file_bytes / 2);
    }
    Open(no_host_bytes_);
    EXPECT_THAT(Check(object_, kBands), StatusIs(absl::StatusCode::kDataLoss));
    KVTIER_EXPECT_OK(Check(object_, 3));
    KVTIER_EXPECT_OK(Check(other_, kBands));
    EXPECT_EQ(store_->counters().bands_lost, 3u);
    KVTIER_ASSERT_OK(store_->Delete(TenantId(), object_.manifest->key));
    KVTIER_ASSERT_OK(store_->Delete(TenantId(), other_.manifest->key));
  }
}

// What is behind the damage cannot be read now, but nothing says that it is gone.
TEST_F(DamageTest, ADamagedBlockOfRecordsDeletesNothingBehindIt) {
  constexpr uint64_t kObjects = 12;
  std::vector<CompressedObject> objects;
  Open(kHostBytes);
  for (uint64_t seed = 1; seed <= kObjects; ++seed) {
    objects.push_back(MakeTestObject({.seed = seed}));
    Put(objects.back());
  }
  std::ranges::sort(objects, {}, [](const CompressedObject& object) {
    return object.manifest->key;  // As the records are.
  });
  Open(no_host_bytes_);  // RocksDB has put the records from its log into files.
  store_.reset();
  const Manifest& middle = *objects[kObjects / 2].manifest;
  const std::string residency =
      disk_format::EncodeResidencyRecord(middle.upload_id, static_cast<uint32_t>(kBands));
  const auto count_served = [&] {
    uint64_t served = 0;
    for (const CompressedObject& object : objects) served += Check(object, kBands).ok() ? 1 : 0;
    return served;
  };
  for (const std::string& record : {EncodeManifest(middle), residency}) {
    SCOPED_TRACE(record.size() == residency.size() ? "residency" : "objects");
    const Place place = FindBytes(record);
    FlipBit(place.file, place.offset + record.size() / 2, 3);
    for (int start = 0; start < 2; ++start) {
      Open(no_host_bytes_);
      EXPECT_GE(store_->counters().checksum_failures, 1u);
      EXPECT_LE(count_served(), kObjects / 2);
      if (record != residency) {
        KVTIER_EXPECT_OK(Check(objects[0], kBands));  // Ahead of the damage.
      }
      store_.reset();
    }
    FlipBit(place.file, place.offset + record.size() / 2, 3);
    Open(no_host_bytes_);
    EXPECT_EQ(count_served(), kObjects);
    EXPECT_EQ(store_->counters().checksum_failures, 0u);
    store_.reset();
  }
}

TEST_F(DamageTest, AnIntactCopyInHostMemoryServesAndVerifyRepairsTheDisk) {
  Open(kHostBytes);
  Put(object_);
  FlipBit(Find(object_, 2, 1).file, Find(object_, 2, 1).offset, 0);
  KVTIER_EXPECT_OK(Check(object_, kBands));
  EXPECT_EQ(store_->counters().checksum_failures, 0u);
  KVTIER_EXPECT_OK(store_->Verify(TenantId(), object_.manifest->key));
  EXPECT_EQ(store_->counters().checksum_failures, 1u);
  EXPECT_EQ(store_->counters().bands_lost, 0u);
  KVTIER_EXPECT_OK(Check(object_, kBands));
  Open(no_host_bytes_);
  KVTIER_EXPECT_OK(Check(object_, kBands));
}

// Before any reader has met the damage.
TEST_F(DamageTest, TheScrubRepairsWhatHasAnotherCopyAndGivesUpWhatHasNone) {
  for (const bool has_other_copy : {true, false}) {
    SCOPED_TRACE(has_other_copy ? "in host memory too" : "on disk only");
    Open(kHostBytes);
    Put(object_);
    Put(other_);
    if (!has_other_copy) Open(kHostBytes);
    FlipBit(Find(object_, 2, 1).file, Find(object_, 2, 1).offset, 0);
    {
      Scrubber scrubber({.bytes_per_second = UINT64_MAX, .start_delay = absl::ZeroDuration()},
                        *store_, clock_);
      while (scrubber.counters().passes == 0) {
        clock_.AwaitWaiters(1);
        if (scrubber.counters().passes == 0) clock_.AdvanceTime(absl::Microseconds(1));
      }
      EXPECT_EQ(scrubber.counters().repaired, has_other_copy ? 1u : 0u);
      EXPECT_EQ(scrubber.counters().lost, has_other_copy ? 0u : 1u);
      EXPECT_EQ(scrubber.counters().errors, 0u);
    }
    EXPECT_EQ(store_->counters().checksum_failures, 1u);
    EXPECT_EQ(store_->counters().bands_lost, has_other_copy ? 0u : kBands - 2);
    Open(no_host_bytes_);
    KVTIER_EXPECT_OK(Check(object_, has_other_copy ? kBands : 2));
    KVTIER_EXPECT_OK(Check(other_, kBands));
    EXPECT_EQ(store_->counters().checksum_failures, 0u);
    KVTIER_ASSERT_OK(store_->Delete(TenantId(), object_.manifest->key));
    KVTIER_ASSERT_OK(store_->Delete(TenantId(), other_.manifest->key));
  }
}

TEST_F(DamageTest, AnotherReaderOfLostBandsHearsOfTheLossAndCompressingAgainRestoresThem) {
  Put(object_);
  Open(kHostBytes);  // Nothing is in host memory yet.
  const Place place = Find(object_, 1, 0);
  FlipBit(place.file, place.offset, 0);
  KVTIER_ASSERT_OK_AND_ASSIGN(const auto reader,
                              store_->Pin(TenantId(), object_.manifest->key, std::nullopt));
  EXPECT_THAT(Check(object_, kBands), StatusIs(absl::StatusCode::kDataLoss));
  EXPECT_THAT(reader->Read(BandIndex(4), LayerIndex(0)), StatusIs(absl::StatusCode::kDataLoss));
  KVTIER_EXPECT_OK(reader->Read(BandIndex(0), LayerIndex(2)));
  const CompressedObject recomputed =
      MakeTestObject({.context_tokens = 300, .seed = 1, .upload_seed = 1});
  Put(recomputed);
  KVTIER_EXPECT_OK(Check(recomputed, kBands));
  KVTIER_EXPECT_OK(reader->Read(BandIndex(0), LayerIndex(1)));
}

}  // namespace
}  // namespace kvtier
