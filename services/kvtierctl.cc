// kvtierctl: compress documents, ask questions, look after a store.

#include <cstdio>
#include <cstdlib>
#include <iostream>
#include <string>
#include <vector>

#include "absl/flags/parse.h"
#include "absl/flags/usage.h"
#include "absl/flags/usage_config.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "base/log.h"
#include "services/ctl/commands.h"
#include "services/server.h"

namespace kvtier::ctl {
namespace {

struct Command {
  const char* name;
  absl::Status (*run)(const Arguments&);
  const char* summary;
  const char* help;
};

constexpr Command kCommands[] = {
    {"compress", Compress, "compress a context and store it",
     "kvtierctl compress (--file DOC | --token_ids FILE) [--model M] [--system_ids FILE]\n"
     "                   [--durability host|disk] [--min_ratio R] [--json]\n\n"
     "Sends a context to the compressor, shows progress on stderr, prints the key and a table of\n"
     "ratios. --file takes text and needs a model whose vocabulary is bytes (see kvtierctl "
     "models);\n"
     "any model takes --token_ids: a JSON array of ids, or raw u32 in a file named *.u32."},
    {"ask", Ask, "ask questions over a stored object",
     "kvtierctl ask --key HEX [--ratio R] [--min_ratio R]\n"
     "              (--question TEXT | --token_ids FILE | --questions FILE [--parallel N])\n"
     "              [--answer_tokens N] [--stop BYTE] [--temperature T --seed S] [--raw]\n"
     "              [--json] [--out FILE]\n\n"
     "Has the worker fetch the object at the ratio, answers, and lets go of it. --questions reads\n"
     "{\"questions\":[{\"question_ids\":[..],\"answer_ids\":[..]}]} and counts exact answers."},
    {"ls", List, "list stored objects",
     "kvtierctl ls [--json]\n\nOne line per object, in key order."},
    {"stat", Stat, "describe one object",
     "kvtierctl stat KEY [--json]\n\nPrints its bands: bytes and threshold per ratio, and where "
     "they "
     "are."},
    {"fetch", Fetch, "copy an object to a folder",
     "kvtierctl fetch KEY --out FOLDER [--ratio R] [--min_ratio R] [--json]\n\n"
     "Writes the manifest and one file per segment; 'kvtierctl verify --data_dir FOLDER' checks "
     "them."},
    {"rm", Remove, "remove an object, or its less important bands",
     "kvtierctl rm KEY [--keep_ratio R] [--json]\n\n"
     "With --keep_ratio, bands above that ratio are given up for good; the rest stays."},
    {"verify", Verify, "check every byte of stored objects",
     "kvtierctl verify [KEY] [--json]             through the running store; all objects without "
     "KEY\n"
     "kvtierctl verify --data_dir FOLDER [--json]  offline: a stopped store's folder, or one "
     "written\n"
     "                                            by fetch"},
    {"models", Models, "list the compressor's models", "kvtierctl models [--json]"},
    {"stats", Stats, "show a store's use and limits", "kvtierctl stats [--json]"},
};

std::string Usage() {
  std::string usage = "Compress documents, ask questions, look after a store.\n\n";
  for (const Command& command : kCommands) {
    std::string name = command.name;
    name.resize(10, ' ');
    absl::StrAppend(&usage, "  kvtierctl ", name, command.summary, "\n");
  }
  absl::StrAppend(
      &usage,
      "\n'kvtierctl COMMAND --help' explains one. Servers are named by --store, "
      "--compressor and --worker (host:port).\n"
      "Exit status: 0 done, 1 failed, 2 the command line makes no sense, 3 not found.\n");
  return usage;
}

const Command* Find(absl::string_view name) {
  for (const Command& command : kCommands) {
    if (name == command.name) return &command;
  }
  return nullptr;
}

int ExitCode(const absl::Status& status) {
  if (status.ok()) return 0;
  if (absl::IsNotFound(status)) return 3;
  return absl::IsInvalidArgument(status) ? 2 : 1;
}

int Main(int argc, char** argv) {
  TuneMalloc();
  InitLogging({.min_level = LogSeverity::kWarning, .component = "kvtierctl"});
  const Command* command = argc > 1 ? Find(argv[1]) : nullptr;
  absl::SetProgramUsageMessage(command == nullptr ? Usage() : command->help);
  absl::FlagsUsageConfig config;
  const auto ours = [](absl::string_view file) { return absl::StrContains(file, "services/ctl/"); };
  config.contains_help_flags = ours;
  config.contains_helpshort_flags = ours;
  absl::SetFlagsUsageConfig(config);
  const std::vector<char*> rest = absl::ParseCommandLine(argc, argv);
  if (command == nullptr) {
    if (rest.size() > 1) std::cerr << "kvtierctl: no command '" << rest[1] << "'\n\n";
    std::cerr << Usage();
    return 2;
  }
  const absl::Status status = command->run(Arguments(rest.begin() + 2, rest.end()));
  if (!status.ok()) {
    const bool silent_miss = absl::IsNotFound(status) && status.message().empty();
    std::cerr << "kvtierctl " << command->name << ": "
              << (silent_miss ? "not found" : status.ToString()) << "\n";
  }
  return ExitCode(status);
}

}  // namespace
}  // namespace kvtier::ctl

int main(int argc, char** argv) { return kvtier::ctl::Main(argc, argv); }
