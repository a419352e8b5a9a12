// kvtierctl as a script sees it: runs it beside the servers of the pipeline, and keeps what it
// prints on stdout and stderr apart.
#ifndef KVTIER_TESTS_INTEGRATION_CTL_FIXTURE_H_
#define KVTIER_TESTS_INTEGRATION_CTL_FIXTURE_H_

#include <filesystem>
#include <memory>
#include <string>
#include <system_error>
#include <vector>

#include <nlohmann/json.hpp>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/string_view.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "tests/integration/pipeline_fixture.h"
#include "tests/testing/files.h"
#include "tests/testing/paths.h"

namespace kvtier {

class CtlTest : public PipelineTest {
 protected:
  // 113 tokens, a byte each.
  static constexpr char kText[] =
      "The keeper of the lighthouse counts the ships: nine from the north, two from the south.\n"
      "lamp = brass\noil = whale\n";

  struct Outcome {
    int exit_code = -1;
    std::string out;
    std::string err;
    nlohmann::json json() const {
      return nlohmann::json::parse(out, nullptr, /*allow_exceptions=*/false);
    }
  };

  // Runs kvtierctl; servers that were started are named by flags if the subcommand takes them.
  Outcome Run(const std::string& command, std::vector<std::string> flags = {}) {
    const auto takes = [&command](absl::string_view commands) {
      return absl::StrContains(commands, absl::StrCat(" ", command, " "));
    };
    if (store_ != nullptr && takes(" ls stat reband fetch rm verify stats pin unpin ttl watch ")) {
      flags.push_back("--store=" + store_->address());
    }
    if (compressor_ != nullptr && takes(" compress models ")) {
      flags.push_back("--compressor=" + compressor_->address());
    }
    if (worker_ != nullptr && takes(" ask ")) flags.push_back("--worker=" + worker_->address());
    flags.insert(flags.begin(), command);
    return RunExactly(flags);
  }
  Outcome RunExactly(const std::vector<std::string>& words) { return Finish(*Begin("", words)); }

  // Starts kvtierctl. What it prints is in files whose names begin with `name`.
  std::unique_ptr<ChildProcess> Begin(const std::string& name,
                                      const std::vector<std::string>& words) {
    // The shell parts stdout from stderr.
    std::vector<std::string> args = {"-c",
                                     absl::StrCat("exec \"$0\" \"$@\" > ", dir_.File(name + "out"),
                                                  " 2> ", dir_.File(name + "err")),
                                     ProgramPath("kvtierctl")};
    args.insert(args.end(), words.begin(), words.end());
    auto process = ChildProcess::Start("/bin/sh", args);
    KVTIER_CHECK_OK(process);
    return *std::move(process);
  }
  Outcome Finish(ChildProcess& process, const std::string& name = "") {
    const absl::StatusOr<ExitStatus> exit = process.Wait(absl::Seconds(100));
    KVTIER_CHECK_OK(exit);
    return {exit->exit_code, ReadFile(dir_.File(name + "out")), ReadFile(dir_.File(name + "err"))};
  }
  // The first `count` lines that a running one has printed, as soon as they are there; fewer if it
  // ends before or takes more than 100 s.
  std::vector<std::string> AwaitLines(ChildProcess& process, const std::string& name,
                                      size_t count) {
    const absl::Time late = absl::Now() + absl::Seconds(100);
    while (true) {
      // Before the file: what it printed last is seen.
      const bool running = !process.Wait(absl::Milliseconds(20)).ok();
      std::error_code missing;
      const std::string file = dir_.File(name + "out");
      std::vector<std::string> lines;
      if (std::filesystem::exists(file, missing)) lines = absl::StrSplit(ReadFile(file), '\n');
      if (!lines.empty()) lines.pop_back();  // After the last end of a line: cut off, or empty.
      if (lines.size() >= count || !running || absl::Now() >= late) return lines;
    }
  }

  std::string Write(const std::string& name, absl::string_view bytes) {
    WriteFile(dir_.File(name), bytes);
    return dir_.File(name);
  }

  // Compresses kText; its key.
  std::string CompressText() {
    const Outcome outcome = Run("compress", {"--json", "--file", Write("text", kText)});
    EXPECT_EQ(outcome.exit_code, 0) << outcome.err;
    return outcome.json().value("key", "");
  }
};

}  // namespace kvtier

#endif  // KVTIER_TESTS_INTEGRATION_CTL_FIXTURE_H_
