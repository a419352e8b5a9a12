#include "bench/quality/tasks.h"

#include <cstddef>
#include <filesystem>
#include <fstream>
#include <set>
#include <span>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "base/log.h"
#include "base/status_matchers.h"
#include "bench/quality/text_source.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kvcache/sha256.h"
#include "tests/testing/paths.h"
#include "tests/testing/temp_dir.h"

namespace kvtier {
namespace {

using ::testing::HasSubstr;

TextSource Fixtures() {
  const absl::StatusOr<TextSource> source =
      TextSource::Load({SourcePath("tests/fixtures/documents")}, /*held_out=*/false);
  KVTIER_CHECK_OK(source);
  return *source;
}

int Occurrences(const std::string& text, const std::string& part) {
  int count = 0;
  for (size_t at = text.find(part); at != std::string::npos; at = text.find(part, at + 1)) ++count;
  return count;
}

TEST(TasksTest, EveryAnswerStandsRightBehindItsQuestion) {
  const TextSource source = Fixtures();
  for (const Task& task : AllTasks()) {
    for (uint32_t index = 0; index < 3; ++index) {
      SCOPED_TRACE(absl::StrCat(task.name, " ", index));
      KVTIER_ASSERT_OK_AND_ASSIGN(const TaskDocument document,
                                  MakeTaskDocument(task, source, 800, /*seed=*/1, index));
      EXPECT_NEAR(static_cast<double>(document.text.size()), 800, 100);
      EXPECT_EQ(document.samples.size(), task.samples);
      for (const Sample& sample : document.samples) {
        EXPECT_GT(sample.depth, 0);
        EXPECT_LE(sample.depth, 1);
        for (const Hop& hop : sample.hops) {
          EXPECT_FALSE(hop.answer.empty());
          const int times = Occurrences(document.text, hop.question);
          EXPECT_EQ(times, Occurrences(document.text, hop.question + hop.answer)) << hop.question;
          if (task.redundant) {
            EXPECT_GE(times, 3);
          } else {
            EXPECT_EQ(times, 1) << hop.question;
          }
        }
      }
    }
  }
}

TEST(TasksTest, EachHopIsAskedFromTheAnswerBefore) {
  for (const Task& task : AllTasks()) {
    if (absl::string_view(task.name) != "multi_hop") continue;
    KVTIER_ASSERT_OK_AND_ASSIGN(const TaskDocument document,
                                MakeTaskDocument(task, Fixtures(), 800, 1, 0));
    for (const Sample& sample : document.samples) {
      ASSERT_EQ(sample.hops.size(), 3u);
      for (size_t hop = 1; hop < 3; ++hop) {
        EXPECT_EQ(sample.hops[hop].question, sample.hops[hop - 1].answer + " = ");
      }
    }
  }
}

TEST(TasksTest, SeedAndIndexDecideEverything) {
  const TextSource source = Fixtures();
  for (const Task& task : AllTasks()) {
    std::set<std::string> texts;
    for (uint64_t seed : {1, 2}) {
      for (uint32_t index : {0, 1}) {
        KVTIER_ASSERT_OK_AND_ASSIGN(const TaskDocument a,
                                    MakeTaskDocument(task, source, 700, seed, index));
        KVTIER_ASSERT_OK_AND_ASSIGN(const TaskDocument b,
                                    MakeTaskDocument(task, source, 700, seed, index));
        EXPECT_EQ(a.text, b.text);
        EXPECT_EQ(a.samples[0].hops[0].question, b.samples[0].hops[0].question);
        texts.insert(a.text);
      }
    }
    EXPECT_EQ(texts.size(), 4u) << task.name;
  }
}

TEST(TasksTest, RefusesDocumentsThatAreTooShort) {
  EXPECT_THAT(MakeTaskDocument(AllTasks()[0], Fixtures(), kTaskBytesMin - 1, 1, 0),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("599 bytes")));
}

class TextSourceTest : public ::testing::Test {
 protected:
  void Write(const std::string& name, const std::string& content) {
    std::ofstream(folder_.File(name), std::ios::binary) << content;
  }
  TempDir folder_;
};

TEST_F(TextSourceTest, TakesAsciiFilesOnceAndCutsExactly) {
  const std::string text(1000, 'a');
  Write("a", text);
  Write("same", text);
  Write("short", "abc");
  Write("binary", text + '\xff');
  KVTIER_ASSERT_OK_AND_ASSIGN(const TextSource source,
                              TextSource::Load({folder_.path().string()}, /*held_out=*/false));
  EXPECT_EQ(source.files(), 1u);
  std::mt19937_64 random(1);
  EXPECT_EQ(source.Cut(700, random).size(), 700u);
  EXPECT_EQ(source.Cut(5000, random).size(), 5000u);  // Joined.
}

// What is read if the command line names no text: the rule must stay that of
// scripts/fixture_model/documents.py, or the model has seen the texts.
TEST_F(TextSourceTest, HeldOutIsOneFileInFiveByItsPath) {
  TempDir only_held_out;
  constexpr int kFiles = 300;
  int held_out = 0;
  for (int i = 0; i < kFiles; ++i) {
    const std::string name = absl::StrFormat("%03d", i);
    const std::string text = absl::StrCat(name, std::string(700, 'a' + i % 26));
    Write(name, text);
    const std::string path = folder_.File(name);
    if (ComputeSha256(std::as_bytes(std::span(path))).ToHex().substr(0, 2) < "33") {
      std::ofstream(only_held_out.File(name), std::ios::binary) << text;
      ++held_out;
    }
  }
  KVTIER_ASSERT_OK_AND_ASSIGN(const TextSource source,
                              TextSource::Load({folder_.path().string()}, /*held_out=*/true));
  EXPECT_EQ(source.files(), held_out);
  EXPECT_GT(held_out, kFiles / 10);
  EXPECT_LT(held_out, kFiles * 3 / 10);
  // Just those, in order of path.
  KVTIER_ASSERT_OK_AND_ASSIGN(
      const TextSource expected,
      TextSource::Load({only_held_out.path().string()}, /*held_out=*/false));
  EXPECT_EQ(source.digest(), expected.digest());
}

TEST_F(TextSourceTest, PassesOverLinksThatLeadNowhere) {
  Write("a", std::string(1000, 'a'));
  std::filesystem::create_symlink("itself", folder_.File("itself"));
  std::filesystem::create_symlink("nothing", folder_.File("lost"));
  KVTIER_ASSERT_OK_AND_ASSIGN(const TextSource source,
                              TextSource::Load({folder_.path().string()}, /*held_out=*/false));
  EXPECT_EQ(source.files(), 1u);
}

TEST_F(TextSourceTest, SaysWhatIsMissing) {
  EXPECT_THAT(TextSource::Load({folder_.File("no")}, false),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("cannot read")));
  EXPECT_THAT(TextSource::Load({folder_.path().string()}, true),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("no held-out ASCII text")));
}

TEST_F(TextSourceTest, RefusesTextWithoutSnippetsOfItsOwn) {
  Write("lines", std::string(5000, '-'));
  KVTIER_ASSERT_OK_AND_ASSIGN(const TextSource source,
                              TextSource::Load({folder_.path().string()}, false));
  for (const Task& task : AllTasks()) {
    const absl::Status status = MakeTaskDocument(task, source, 800, 1, 0).status();
    const bool needs_snippets =
        absl::string_view(task.name) == "prefix_suffix" || absl::string_view(task.name) == "repeat";
    EXPECT_EQ(status.code(),
              needs_snippets ? absl::StatusCode::kInvalidArgument : absl::StatusCode::kOk)
        << task.name << ": " << status;
  }
}

}  // namespace
}  // namespace kvtier
