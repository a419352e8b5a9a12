// The commands of kvtier-eval, one file each: bench/eval/<name>_command.cc defines the function and
// the flags that it alone has. To add a command: declare its function here, add a row to the table
// of bench/kvtier_eval.cc and the file to bench/CMakeLists.txt.
//
// A command reads its flags, prints its result to standard output (or --out) and its progress to
// standard error. INVALID_ARGUMENT: the command line or an input makes no sense (exit status 2);
// any other error is exit status 1. Called once, from main's thread.
#ifndef KVTIER_BENCH_EVAL_COMMAND_H_
#define KVTIER_BENCH_EVAL_COMMAND_H_

#include "absl/status/status.h"

namespace kvtier {

absl::Status QuestionsCommand();
absl::Status BaselinesCommand();
absl::Status KvzipCommand();
absl::Status ReportCommand();
absl::Status QualityCommand();
absl::Status QualityReportCommand();
absl::Status ScoreCommand();
absl::Status HeadScoresCommand();

struct EvalCommand {
  const char* name;
  const char* help;  // For --help: what it does, then a line of its flags; lines end in "\n".
  absl::Status (*run)();
};

}  // namespace kvtier

#endif  // KVTIER_BENCH_EVAL_COMMAND_H_
