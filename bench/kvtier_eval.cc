// kvtier-eval: what compression costs in quality. Everything runs in this process, except that
// `report` reads what a worker answered. The commands are in bench/eval/, one file each.

#include <algorithm>
#include <cstdio>
#include <string>
#include <vector>

#include "absl/flags/parse.h"
#include "absl/flags/usage.h"
#include "absl/flags/usage_config.h"
#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "bench/eval/command.h"

namespace kvtier {
namespace {

constexpr EvalCommand kCommands[] = {
    {"questions",
     "draw questions whose answers stand in a document\n"
     "--document F --model DIR [--count 200] [--seed S] [--out Q.json]\n",
     QuestionsCommand},
    {"baselines",
     "answer them from the full cache, after random eviction, and after SnapKV\n"
     "fitted to the first question\n"
     "--model DIR --document F --questions Q.json [--ratios 0.6,0.3,0.1]\n"
     "[--random_seeds 5] [--out B.json]\n",
     BaselinesCommand},
    {"kvzip",
     "answer them after KVzip, and print a table\n"
     "--model DIR --document F --questions Q.json [--ratios 1,0.6,0.3,0.1]\n",
     KvzipCommand},
    {"report",
     "print the table of a demo; its last line is `demo: ok {...}`\n"
     "--questions Q.json --answers A1.json,A2.json,... --baselines B.json\n",
     ReportCommand},
    {"quality",
     "tasks x eviction methods x ratios: a table, with intervals in --csv and --json\n"
     "--model DIR [--quick] [--samples 1000] [--document_bytes 800] [--seed S]\n"
     "[--tasks ...] [--methods ...] [--ratios ...] [--text DIR,...]\n"
     "[--csv F.csv] [--json F.json] [--out ANSWERS.json]\n",
     QualityCommand},
    {"quality-report",
     "the same from the answers of one or more runs over the same samples\n"
     "--answers A.json,B.json [--csv F.csv] [--json F.json]\n",
     QualityReportCommand},
    {"score",
     "score a context and write scores, kept pairs and last logits (docs/recipes.md)\n"
     "--model DIR --token_ids FILE [--system_ids FILE] [--recipe kvzip] [--ratio 0.3]\n"
     "[--head_scores H.safetensors] --out S.safetensors\n",
     ScoreCommand},
    {"head-scores",
     "make the scores that recipe head ranks by; several contexts: the maximum\n"
     "--model DIR --token_ids FILE,... [--system_ids FILE] --out H.safetensors\n",
     HeadScoresCommand},
};

std::string Usage() {
  std::string usage =
      "kvtier-eval COMMAND [flags]: measures what compression costs in quality.\n\n";
  for (const EvalCommand& command : kCommands) {
    bool first = true;
    const std::string help = command.help;
    for (size_t begin = 0; begin < help.size();) {
      const size_t end = std::min(help.find('\n', begin), help.size());
      absl::StrAppendFormat(&usage, "  %-16s%s\n", first ? command.name : "",
                            help.substr(begin, end - begin));
      begin = end + 1;
      first = false;
    }
  }
  absl::StrAppend(
      &usage,
      "\nA question counts as answered if greedy decoding gives the expected bytes, all "
      "of them. A ratio is the\nkept fraction of the context's KV pairs. Progress goes "
      "to standard error. Exit status: 0 done, 1 failed,\n2 the command line or an "
      "input makes no sense.");
  return usage;
}

absl::Status Run(const std::vector<std::string>& arguments) {
  std::string names;
  for (const EvalCommand& command : kCommands) {
    absl::StrAppend(&names, names.empty() ? "" : ", ", command.name);
  }
  if (arguments.size() != 1) {
    return absl::InvalidArgumentError(absl::StrCat("name one command: ", names));
  }
  for (const EvalCommand& command : kCommands) {
    if (arguments[0] == command.name) return command.run();
  }
  return absl::InvalidArgumentError(
      absl::StrCat("unknown command ", arguments[0], "; there are: ", names));
}

int Main(int argc, char** argv) {
  absl::SetProgramUsageMessage(Usage());
  absl::FlagsUsageConfig
      config;  // --help shows the flags of our commands and nothing of libraries'.
  config.contains_help_flags = [](absl::string_view file) {
    return absl::StrContains(file, "bench/eval/");
  };
  config.normalize_filename = [](absl::string_view file) {
    return std::string(file.substr(std::min(file.rfind("bench/"), file.size())));
  };
  absl::SetFlagsUsageConfig(config);
  // --random-seeds and --random_seeds are the same flag.
  std::vector<std::string> words(argv, argv + argc);
  std::vector<char*> pointers;
  for (std::string& word : words) {
    if (absl::StartsWith(word, "--")) {
      const size_t name_end = std::min(word.find('='), word.size());
      std::replace(word.begin() + 2, word.begin() + static_cast<ptrdiff_t>(name_end), '-', '_');
    }
    pointers.push_back(word.data());
  }
  const std::vector<char*> rest =
      absl::ParseCommandLine(static_cast<int>(pointers.size()), pointers.data());
  const absl::Status status = Run({rest.begin() + 1, rest.end()});
  if (status.ok()) return 0;
  absl::FPrintF(stderr, "kvtier-eval: %s\n", std::string(status.message()));
  return absl::IsInvalidArgument(status) ? 2 : 1;
}

}  // namespace
}  // namespace kvtier

int main(int argc, char** argv) { return kvtier::Main(argc, argv); }
