#include "base/whole_file.h"

#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/status_matchers.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/testing/files.h"
#include "tests/testing/temp_dir.h"

namespace kvtier {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr auto kUnavailable = absl::StatusCode::kUnavailable;

std::vector<std::string> NamesIn(const std::string& folder) {
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    names.push_back(entry.path().filename().string());
  }
  std::sort(names.begin(), names.end());
  return names;
}

TEST(WholeFileTest, AppearsWithCommitAndNotBefore) {
  TempDir dir;
  WriteFile(dir.File("x"), "old");
  {
    KVTIER_ASSERT_OK_AND_ASSIGN(WholeFile file, WholeFile::Create(dir.File("x")));
    KVTIER_ASSERT_OK(file.Append(AsBytes("new ")));
    KVTIER_ASSERT_OK(file.Append(AsBytes("content")));
    EXPECT_EQ(ReadFile(dir.File("x")), "old");
    KVTIER_ASSERT_OK(file.Commit());
  }
  EXPECT_EQ(ReadFile(dir.File("x")), "new content");
  EXPECT_THAT(NamesIn(dir.path()), ElementsAre("x"));
}

TEST(WholeFileTest, LeavesNothingWithoutCommit) {
  TempDir dir;
  {
    KVTIER_ASSERT_OK_AND_ASSIGN(WholeFile file, WholeFile::Create(dir.File("x")));
    KVTIER_ASSERT_OK(file.Append(AsBytes("half")));
    const WholeFile moved = std::move(file);
  }
  EXPECT_THAT(NamesIn(dir.path()), ElementsAre());
}

// Two writers of one path share nothing: a shared name would mix their bytes.
TEST(WholeFileTest, WritersOfOnePathDoNotMeet) {
  TempDir dir;
  KVTIER_ASSERT_OK_AND_ASSIGN(WholeFile first, WholeFile::Create(dir.File("x")));
  KVTIER_ASSERT_OK_AND_ASSIGN(WholeFile second, WholeFile::Create(dir.File("x")));
  KVTIER_ASSERT_OK(first.Append(AsBytes("first")));
  KVTIER_ASSERT_OK(second.Append(AsBytes("the second")));
  KVTIER_ASSERT_OK(second.Commit());
  EXPECT_EQ(ReadFile(dir.File("x")), "the second");
  KVTIER_ASSERT_OK(first.Commit());
  EXPECT_EQ(ReadFile(dir.File("x")), "first");
  EXPECT_THAT(NamesIn(dir.path()), ElementsAre("x"));
}

TEST(WholeFileTest, ManyWritersLeaveOneWholeFile) {
  TempDir dir;
  std::vector<std::thread> writers;
  for (int writer = 0; writer < 8; ++writer) {
    writers.emplace_back([&dir, writer] {
      const std::string bytes(1000, static_cast<char>('a' + writer));
      for (int round = 0; round < 20; ++round) {
        KVTIER_ASSERT_OK_AND_ASSIGN(WholeFile file, WholeFile::Create(dir.File("x")));
        for (int part = 0; part < 10; ++part) KVTIER_ASSERT_OK(file.Append(AsBytes(bytes)));
        KVTIER_ASSERT_OK(file.Commit());
      }
    });
  }
  for (std::thread& writer : writers) writer.join();
  const std::string content = ReadFile(dir.File("x"));
  EXPECT_EQ(content, std::string(10'000, content.at(0)));
  EXPECT_THAT(NamesIn(dir.path()), ElementsAre("x"));
}

TEST(WholeFileTest, AStaleNameIsPassedOver) {
  TempDir dir;
  // Whatever number comes next, there is a file of that name.
  for (int number = 0; number < 500; ++number) {
    WriteFile(dir.File(absl::StrCat("x.", getpid(), "-", number, ".part")), "stale");
  }
  KVTIER_ASSERT_OK_AND_ASSIGN(WholeFile file, WholeFile::Create(dir.File("x")));
  KVTIER_ASSERT_OK(file.Append(AsBytes("new")));
  KVTIER_ASSERT_OK(file.Commit());
  EXPECT_EQ(ReadFile(dir.File("x")), "new");
}

TEST(WholeFileTest, HasTheModeOfAnOrdinaryFile) {
  TempDir dir;
  WriteFile(dir.File("ordinary"), "");
  KVTIER_ASSERT_OK_AND_ASSIGN(WholeFile file, WholeFile::Create(dir.File("x")));
  KVTIER_ASSERT_OK(file.Commit());
  EXPECT_EQ(std::filesystem::status(dir.File("x")).permissions(),
            std::filesystem::status(dir.File("ordinary")).permissions());
}

TEST(WholeFileTest, NamesThePathThatCannotBeWritten) {
  TempDir dir;
  EXPECT_THAT(WholeFile::Create(dir.File("no/such")),
              StatusIs(kUnavailable, HasSubstr("no/such: cannot be written: No such file")));
  ASSERT_TRUE(std::filesystem::create_directory(dir.File("folder")));
  {
    KVTIER_ASSERT_OK_AND_ASSIGN(WholeFile file, WholeFile::Create(dir.File("folder")));
    EXPECT_THAT(file.Commit(), StatusIs(kUnavailable, HasSubstr("folder: cannot be written")));
  }
  EXPECT_THAT(NamesIn(dir.path()), ElementsAre("folder"));
}

// The disk is full after a part of the bytes: nothing of them is seen, nothing is left.
TEST(WholeFileDeathTest, AFullDiskLeavesTheOldFile) {
  TempDir dir;
  WriteFile(dir.File("x"), "old");
  const auto write_until_full = [&dir] {
    std::signal(SIGXFSZ, SIG_IGN);  // EFBIG instead.
    const rlimit limit = {.rlim_cur = 1000, .rlim_max = 1000};
    setrlimit(RLIMIT_FSIZE, &limit);
    absl::StatusOr<WholeFile> file = WholeFile::Create(dir.File("x"));
    if (!file.ok()) return false;
    const absl::Status status = file->Append(AsBytes(std::string(4000, 'n')));
    return status.code() == kUnavailable;
  };
  EXPECT_EXIT(std::_Exit(write_until_full() ? 7 : 1), ::testing::ExitedWithCode(7), "");
  EXPECT_EQ(ReadFile(dir.File("x")), "old");
  EXPECT_THAT(NamesIn(dir.path()), ElementsAre("x"));
}

}  // namespace
}  // namespace kvtier
