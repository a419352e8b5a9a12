// A disk that fails or is full while pages are written. Survivors: every acknowledged page, with
// its bytes; one that was refused is there with its bytes, or not at all.
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/bytes.h"
#include "base/crc32c.h"
#include "base/log.h"
#include "base/status_matchers.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kvcache/sha256.h"
#include "store/rocksdb_page_tier.h"
#include "tests/fault/store/fault_env.h"
#include "tests/testing/random.h"
#include "tests/testing/temp_dir.h"

namespace kvtier {
namespace {

using testing::AnyOf;
using testing::Each;

using Code = absl::StatusCode;

PageName Name(int number) {
  return {TenantId(),
          *PageKey::FromBytes(ComputeSha256(AsBytes(absl::StrCat("page", number))).AsStringView())};
}

std::string Bytes(int number) {
  std::mt19937_64 random(static_cast<uint64_t>(number));
  return ToString(RandomBytes(random, 3000));
}

class PageFaultTest : public testing::TestWithParam<FaultEnv::Fault> {
 protected:
  void Open() {
    tier_.reset();
    absl::StatusOr<std::unique_ptr<PageTier>> opened = OpenRocksDbPageTier(
        {.folder = folder_, .budget_bytes = kPageDiskBudgetMin, .env = env_.env()});
    KVTIER_CHECK_OK(opened);
    tier_ = *std::move(opened);
  }
  std::vector<absl::Status> Put(int begin, int end) {
    std::vector<std::string> bytes;
    for (int i = begin; i < end; ++i) bytes.push_back(Bytes(i));
    std::vector<PageTier::Write> writes;
    for (int i = begin; i < end; ++i) {
      const std::string& page = bytes[static_cast<size_t>(i - begin)];
      writes.push_back({Name(i), page, ComputeCrc32c(AsBytes(page))});
    }
    return tier_->Put(writes);
  }
  void ExpectThere(int begin, int end) {
    for (int i = begin; i < end; ++i) {
      const absl::StatusOr<std::string> page = tier_->Get(Name(i));
      ASSERT_THAT(page, IsOk()) << i;
      EXPECT_EQ(*page, Bytes(i));
    }
  }

  TempDir dir_;
  std::string folder_;
  FaultEnv env_;
  std::unique_ptr<PageTier> tier_;
};

TEST_P(PageFaultTest, AcknowledgedPagesSurviveAndServingGoesOn) {
  int refused_rounds = 0;
  for (int write = 0; write < 12; ++write) {
    SCOPED_TRACE(write);
    folder_ = dir_.File(absl::StrCat("pages", write));
    Open();
    ASSERT_THAT(Put(0, 8), Each(IsOk()));
    env_.FailFrom(write, GetParam());
    // Large enough to fill the memtable: its flush may fail too.
    std::vector<bool> acknowledged;
    for (int begin = 100; begin < 260; begin += 16) {
      for (const absl::Status& put : Put(begin, begin + 16)) {
        acknowledged.push_back(put.ok());
        if (!put.ok()) {
          EXPECT_THAT(put, AnyOf(StatusIs(Code::kResourceExhausted), StatusIs(Code::kUnavailable)));
        }
      }
    }
    refused_rounds += acknowledged.back() ? 0 : 1;
    ExpectThere(0, 8);
    env_.Heal();
    // A write may be the first to see that a flush has failed; the next one is fine.
    std::vector<absl::Status> put = Put(300, 308);
    if (!put[0].ok()) put = Put(300, 308);
    EXPECT_THAT(put, Each(IsOk()));
    for (const bool reopened : {false, true}) {
      if (reopened) Open();
      ExpectThere(0, 8);
      ExpectThere(300, 308);
      for (size_t i = 0; i < acknowledged.size(); ++i) {
        const int number = 100 + static_cast<int>(i);
        const absl::StatusOr<std::string> page = tier_->Get(Name(number));
        if (page.ok()) {
          EXPECT_EQ(*page, Bytes(number));
        } else {
          EXPECT_THAT(page, StatusIs(Code::kNotFound));
          EXPECT_FALSE(acknowledged[i]) << number;
        }
      }
    }
  }
  EXPECT_GT(refused_rounds, 0) << "no fault was met";
}

// What a write that failed left in RocksDB's log is undone by the next one that does not.
TEST_P(PageFaultTest, WhatWasRefusedDoesNotComeBackOnceAWriteSucceeds) {
  int refused = 0;
  for (int write = 0; write < 6; ++write) {
    SCOPED_TRACE(write);
    folder_ = dir_.File(absl::StrCat("pages", write));
    Open();
    ASSERT_THAT(Put(0, 8), Each(IsOk()));
    env_.FailFrom(write, GetParam());
    const bool is_refused = !Put(100, 108)[0].ok();
    env_.Heal();
    std::vector<absl::Status> put = Put(300, 308);
    if (!put[0].ok()) put = Put(300, 308);
    ASSERT_THAT(put, Each(IsOk()));
    if (!is_refused) continue;
    ++refused;
    for (const bool reopened : {false, true}) {
      if (reopened) Open();
      ExpectThere(0, 8);
      ExpectThere(300, 308);
      for (int i = 100; i < 108; ++i) {
        EXPECT_THAT(tier_->Get(Name(i)), StatusIs(Code::kNotFound)) << i;
      }
    }
    ASSERT_THAT(Put(100, 108), Each(IsOk()));  // Asked for again.
    Open();
    ExpectThere(100, 108);
  }
  EXPECT_GT(refused, 0) << "no fault was met";
}

INSTANTIATE_TEST_SUITE_P(Faults, PageFaultTest,
                         testing::Values(FaultEnv::Fault::kNoSpace, FaultEnv::Fault::kIoError),
                         [](const auto& test) {
                           return test.param == FaultEnv::Fault::kNoSpace ? "NoSpace" : "IoError";
                         });

}  // namespace
}  // namespace kvtier
