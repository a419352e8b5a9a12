// Writes that fail, one after the other: a refused operation leaves nothing behind, what was
// acknowledged stays whole, and the store goes on when there is room again.
#include <filesystem>
#include <string>

#include "absl/strings/str_cat.h"
#include "base/simulated_clock.h"
#include "base/status_matchers.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "store/tiered_store.h"
#include "tests/fault/store/fault_env.h"
#include "tests/testing/files.h"
#include "tests/testing/store_checks.h"
#include "tests/testing/temp_dir.h"
#include "tests/testing/test_object.h"

namespace kvtier {
namespace {

constexpr uint64_t kHostBudgetBytes = 64 << 20;
// Far more than the writes of one operation; the loops end when an operation meets no fault.
constexpr int kOrdinalMax = 500;

struct DiskFault {
  std::string name;
  FaultEnv::Fault fault;
  bool is_lasting;  // Until healed; else one write fails.
  absl::StatusCode code;
};

class DiskFaultTest : public testing::TestWithParam<DiskFault> {
 protected:
  DiskFaultTest() {
    KVTIER_CHECK_OK(Reopen());
    KVTIER_CHECK_OK(store_->Put(TenantId(), first_, Durability::kDisk));
    PinFirst();
  }

  // Reads the first object all the time: what is read is not given up for room.
  absl::Status Reopen() {
    reader_.reset();
    store_.reset();
    absl::StatusOr<std::unique_ptr<TieredStore>> store =
        OpenTestStore(dir_.File("store"), kHostBudgetBytes, clock_, env_.env());
    if (!store.ok()) return store.status();
    store_ = *std::move(store);
    PinFirst();
    return absl::OkStatus();
  }

  void PinFirst() {
    absl::StatusOr<std::unique_ptr<PinnedObject>> reader =
        store_->Pin(TenantId(), first_.manifest->key, std::nullopt);
    if (reader.ok()) reader_ = *std::move(reader);
  }

  void Fail(int ordinal) {
    if (GetParam().is_lasting) {
      env_.FailFrom(ordinal, GetParam().fault);
    } else {
      env_.FailOnce(ordinal, GetParam().fault);
    }
  }

  absl::Status Check(const CompressedObject& object, uint32_t bands) {
    return CheckStored(*store_, TenantId(), object, bands);
  }

  TempDir dir_;
  FaultEnv env_;
  SimulatedClock clock_;
  std::unique_ptr<TieredStore> store_;
  std::unique_ptr<PinnedObject> reader_;
  const CompressedObject first_ = MakeTestObject({.edges = "0.3,0.6,1", .seed = 1});
};

TEST_P(DiskFaultTest, ARefusedPutLeavesNothingAndCanBeRepeated) {
  int refused = 0;
  for (int ordinal = 0; ordinal < kOrdinalMax; ++ordinal) {
    SCOPED_TRACE(absl::StrCat("write ", ordinal, " fails"));
    const uint64_t seed = 100 + ordinal;
    const CompressedObject object = MakeTestObject({.edges = "0.3,0.6,1", .seed = seed});
    const uint64_t used_bytes = store_->disk_usage()->bytes;
    const int64_t faults = env_.fault_count();
    Fail(ordinal);
    const absl::StatusOr<ObjectStat> put = store_->Put(TenantId(), object, Durability::kDisk);
    const bool had_fault = env_.fault_count() > faults;
    KVTIER_EXPECT_OK(Check(first_, 3));  // Serving goes on while the disk is full.
    if (!put.ok()) {
      // At once: on a full disk there may be no room for anything until these bytes are gone.
      EXPECT_TRUE(std::filesystem::is_empty(dir_.File("store/staging")));
    }
    env_.Heal();
    if (!put.ok()) {
      ++refused;
      EXPECT_THAT(put, StatusIs(GetParam().code));
      KVTIER_EXPECT_OK(Check(object, 0));
      if (ordinal % 3 == 0) {
        KVTIER_ASSERT_OK(Reopen());
        KVTIER_EXPECT_OK(Check(object, 0));
        EXPECT_EQ(store_->disk_usage()->bytes, used_bytes);
      }
      KVTIER_ASSERT_OK(store_->Put(TenantId(), object, Durability::kDisk));
    }
    KVTIER_EXPECT_OK(Check(object, 3));
    if (ordinal % 3 == 0 || !had_fault) {
      KVTIER_ASSERT_OK(Reopen());
      KVTIER_EXPECT_OK(Check(object, 3));
      KVTIER_EXPECT_OK(Check(first_, 3));
    }
    KVTIER_ASSERT_OK(store_->Delete(TenantId(), object.manifest->key));
    if (!had_fault) {
      EXPECT_GT(refused, 5);
      return;
    }
  }
  FAIL() << "the put never ran without a fault";
}

// A put that fails on a disk that will not even remove what was written: the bytes go when it does
// again, without a restart and without the upload being sent again.
TEST_P(DiskFaultTest, WhatAFailedPutCouldNotRemoveGoesLater) {
  uint64_t owed = 0;
  for (int ordinal = 0; ordinal < kOrdinalMax; ++ordinal) {
    SCOPED_TRACE(absl::StrCat("write ", ordinal, " fails"));
    const uint64_t seed = 1000 + ordinal;
    const CompressedObject object = MakeTestObject({.edges = "0.3,0.6,1", .seed = seed});
    const uint64_t used_bytes = store_->disk_usage()->bytes;
    const int64_t faults = env_.fault_count();
    Fail(ordinal);
    const absl::Status put = store_->Put(TenantId(), object, Durability::kDisk).status();
    const bool had_fault = env_.fault_count() > faults;
    const StoreCounters& counters = store_->counters();
    owed = counters.disk_cleanups_failed;
    store_->RemoveExpired();  // As the sweeper does; the disk may not have recovered.
    env_.Heal();
    if (!put.ok()) {
      store_->RemoveExpired();
      EXPECT_EQ(store_->disk_usage()->bytes, used_bytes);
      EXPECT_EQ(counters.disk_cleanups_repeated, owed);
      KVTIER_EXPECT_OK(Check(object, 0));
      KVTIER_ASSERT_OK(store_->Put(TenantId(), object, Durability::kDisk));
    }
    store_->RemoveExpired();
    KVTIER_EXPECT_OK(Check(object, 3)) << "what is stored is not what was left";
    KVTIER_EXPECT_OK(store_->CheckInvariants());
    KVTIER_ASSERT_OK(store_->Delete(TenantId(), object.manifest->key));
    if (!had_fault) {
      // Where the disk fails once only, removing what was written succeeds.
      EXPECT_EQ(owed > 0, GetParam().is_lasting);
      return;
    }
  }
  FAIL() << "the put never ran without a fault";
}

TEST_P(DiskFaultTest, AStartGivesTheRoomOfUnfinishedUploadsBackBeforeItNeedsAny) {
  const std::string staged = dir_.File("store/staging/left.sst");
  absl::Status started;
  for (int ordinal = 0; started.ok(); ++ordinal) {
    SCOPED_TRACE(absl::StrCat("write ", ordinal, " fails"));
    ASSERT_LT(ordinal, kOrdinalMax) << "no write of a start failed it";
    reader_.reset();
    store_.reset();
    WriteFile(staged, "bytes");
    Fail(ordinal);
    // The first write only tries whether files can be read past the page cache: a start survives
    // it.
    started = Reopen();
    env_.Heal();
    EXPECT_FALSE(std::filesystem::exists(staged));
  }
  EXPECT_THAT(started, StatusIs(GetParam().code));
  KVTIER_ASSERT_OK(Reopen());
  KVTIER_EXPECT_OK(Check(first_, 3));
}

TEST_P(DiskFaultTest, ARefusedReplacementLeavesTheOldUpload) {
  for (int ordinal = 0; ordinal < kOrdinalMax; ++ordinal) {
    SCOPED_TRACE(absl::StrCat("write ", ordinal, " fails"));
    const CompressedObject old = MakeTestObject({.edges = "0.3,0.6,1", .seed = 50});
    const CompressedObject recomputed =
        MakeTestObject({.edges = "0.3,0.6,1", .seed = 50, .upload_seed = 1});
    KVTIER_ASSERT_OK(store_->Put(TenantId(), old, Durability::kDisk));
    KVTIER_ASSERT_OK(store_->DropBands(TenantId(), old.manifest->key, 2));
    const int64_t faults = env_.fault_count();
    Fail(ordinal);
    const absl::StatusOr<ObjectStat> put = store_->Put(TenantId(), recomputed, Durability::kDisk);
    const bool had_fault = env_.fault_count() > faults;
    env_.Heal();
    if (put.ok()) {
      KVTIER_EXPECT_OK(Check(recomputed, 3));
    } else {
      EXPECT_THAT(put, StatusIs(GetParam().code));
      KVTIER_EXPECT_OK(Check(old, 2));
    }
    if (ordinal % 3 == 0) {
      KVTIER_ASSERT_OK(Reopen());
      KVTIER_EXPECT_OK(put.ok() ? Check(recomputed, 3) : Check(old, 2));
    }
    KVTIER_ASSERT_OK(store_->Delete(TenantId(), old.manifest->key));
    if (!had_fault) return;
  }
  FAIL() << "the put never ran without a fault";
}

TEST_P(DiskFaultTest, AFailedDropOrDeleteShowsTheOldStateOrTheNew) {
  for (int ordinal = 0; ordinal < kOrdinalMax; ++ordinal) {
    SCOPED_TRACE(absl::StrCat("write ", ordinal, " fails"));
    const CompressedObject object = MakeTestObject({.edges = "0.3,0.6,1", .seed = 60});
    KVTIER_ASSERT_OK(store_->Put(TenantId(), object, Durability::kDisk));
    const int64_t faults = env_.fault_count();
    Fail(ordinal);
    const absl::Status dropped = store_->DropBands(TenantId(), object.manifest->key, 1);
    env_.Heal();
    KVTIER_EXPECT_OK(Check(object, dropped.ok() ? 1 : 3));
    const uint32_t bands = dropped.ok() ? 1 : 3;
    Fail(ordinal);
    const absl::Status deleted = store_->Delete(TenantId(), object.manifest->key);
    const bool had_fault = env_.fault_count() > faults;
    env_.Heal();
    KVTIER_EXPECT_OK(Check(object, deleted.ok() ? 0 : bands));
    KVTIER_ASSERT_OK(Reopen());
    // A write that failed may have reached the log all the same.
    const absl::Status after = Check(object, 0);
    if (deleted.ok()) {
      KVTIER_EXPECT_OK(after);
    } else {
      EXPECT_TRUE(after.ok() || Check(object, bands).ok() || Check(object, 1).ok()) << after;
    }
    KVTIER_EXPECT_OK(Check(first_, 3));
    if (!after.ok()) {
      KVTIER_ASSERT_OK(store_->Delete(TenantId(), object.manifest->key));
    }
    if (!had_fault) return;
  }
  FAIL() << "the operations never ran without a fault";
}

TEST_P(DiskFaultTest, AFullDiskTakesAPutInPlaceOfBandsThatNobodyReads) {
  reader_.reset();
  int made_room = 0;
  for (int ordinal = 0; ordinal < kOrdinalMax; ++ordinal) {
    SCOPED_TRACE(absl::StrCat("write ", ordinal, " fails"));
    const CompressedObject object = MakeTestObject({.edges = "0.3,0.6,1", .seed = 200});
    const uint64_t dropped = store_->counters().bands_dropped;
    const uint64_t evicted = store_->counters().objects_evicted;
    const int64_t faults = env_.fault_count();
    Fail(ordinal);
    const absl::Status put = store_->Put(TenantId(), object, Durability::kDisk).status();
    const bool had_fault = env_.fault_count() > faults;
    env_.Heal();
    const uint64_t gone = store_->counters().bands_dropped - dropped;
    const bool is_evicted = store_->counters().objects_evicted > evicted;
    KVTIER_EXPECT_OK(store_->CheckInvariants());
    KVTIER_EXPECT_OK(Check(object, put.ok() ? 3 : 0));
    KVTIER_EXPECT_OK(Check(first_, is_evicted ? 0 : 3 - static_cast<uint32_t>(gone)));
    if (put.ok() && had_fault && (gone > 0 || is_evicted)) ++made_room;
    if (put.ok()) {
      KVTIER_ASSERT_OK(store_->Delete(TenantId(), object.manifest->key));
    }
    if (Check(first_, 3).ok()) {
      if (had_fault) continue;
      break;
    }
    store_->Delete(TenantId(), first_.manifest->key).IgnoreError();
    KVTIER_ASSERT_OK(store_->Put(TenantId(), first_, Durability::kDisk));
  }
  const bool is_full_once =
      !GetParam().is_lasting && GetParam().code == absl::StatusCode::kResourceExhausted;
  EXPECT_EQ(made_room > 5, is_full_once) << made_room;
}

INSTANTIATE_TEST_SUITE_P(Faults, DiskFaultTest,
                         testing::Values(DiskFault{"DiskStaysFull", FaultEnv::Fault::kNoSpace, true,
                                                   absl::StatusCode::kResourceExhausted},
                                         DiskFault{"DiskIsFullOnce", FaultEnv::Fault::kNoSpace,
                                                   false, absl::StatusCode::kResourceExhausted},
                                         DiskFault{"WriteFailsOnce", FaultEnv::Fault::kIoError,
                                                   false, absl::StatusCode::kUnavailable}),
                         [](const testing::TestParamInfo<DiskFault>& fault) {
                           return fault.param.name;
                         });

}  // namespace
}  // namespace kvtier
