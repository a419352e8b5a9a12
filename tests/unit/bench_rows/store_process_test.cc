#include "bench/store_process.h"

#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>

#include "base/status_matchers.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/testing/files.h"
#include "tests/testing/temp_dir.h"

namespace kvtier::bench {
namespace {

using testing::HasSubstr;

TEST(ScratchFolderTest, GoesWithEverythingInIt) {
  const TempDir dir;
  std::string path;
  {
    KVTIER_ASSERT_OK_AND_ASSIGN(const auto folder, ScratchFolder::Create(dir.path()));
    path = folder->path();
    WriteFile(path + "/file", "bytes");
    // One that is in use stays where others are made.
    KVTIER_ASSERT_OK(ScratchFolder::Create(dir.path()));
    EXPECT_TRUE(std::filesystem::exists(path + "/file"));
  }
  EXPECT_FALSE(std::filesystem::exists(path));
  EXPECT_THAT(ScratchFolder::Create(dir.File("missing")),
              StatusIs(absl::StatusCode::kUnavailable, HasSubstr("missing")));
}

TEST(ScratchFolderTest, OfAProcessThatWasKilledGoesWithTheNext) {
  const TempDir dir;
  const pid_t child = fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    const auto folder = ScratchFolder::Create(dir.path());
    if (!folder.ok()) _exit(1);
    WriteFile((*folder)->path() + "/file", "bytes");
    raise(SIGKILL);
  }
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  ASSERT_TRUE(WIFSIGNALED(status));
  WriteFile(dir.File("kvtier-bench-of-somebody"), "not a folder");
  std::filesystem::create_directories(dir.File("other"));
  ASSERT_EQ(std::distance(std::filesystem::directory_iterator(dir.path()), {}), 3);
  KVTIER_ASSERT_OK_AND_ASSIGN(const auto folder, ScratchFolder::Create(dir.path()));
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(dir.path()), {}), 3)
      << "the file, the other folder, and ours";
  EXPECT_TRUE(std::filesystem::exists(dir.File("other")));
}

TEST(ProcessTest, FiguresOfOneThatIsGoneAreNoZeros) {
  const TempDir dir;
  KVTIER_ASSERT_OK_AND_ASSIGN(const auto process,
                              Process::Start({"sleep", "60"}, dir.File("output")));
  KVTIER_EXPECT_OK(process->CpuSeconds());
  KVTIER_ASSERT_OK_AND_ASSIGN(const uint64_t resident, process->ResidentBytes());
  EXPECT_GT(resident, 0u);
  process->Kill();
  EXPECT_TRUE(process->has_ended());
  const auto gone = StatusIs(absl::StatusCode::kUnavailable);
  EXPECT_THAT(process->CpuSeconds(), gone);
  EXPECT_THAT(process->ReadBytes(), gone);
  EXPECT_THAT(process->WrittenBytes(), gone);
  EXPECT_THAT(process->ResidentBytes(), gone);
  EXPECT_THAT(process->PeakResidentBytes(), gone);
}

}  // namespace
}  // namespace kvtier::bench
