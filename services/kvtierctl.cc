// kvtierctl: compress documents, ask questions, look after a store.

#include <cstdio>
#include <cstdlib>
#include <iostream>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "base/log.h"
#include "services/command_line.h"
#include "services/ctl/commands.h"
#include "services/server.h"

namespace kvtier::ctl {
namespace {

struct Command {
  const char* name;
  absl::Status (*run)(const Arguments&);
  const char* summary;
  const char* flags;  // Those that it reads, separated by spaces.
  const char* help;
};

constexpr Command kCommands[] = {
    {"compress", Compress, "compress a context and store it",
     "file token_ids model system_ids recipe codec durability ttl min_ratio fidelity compressor "
     "timeout json",
     "kvtierctl compress (--file DOC | --token_ids FILE) [--model M] [--system_ids FILE]\n"
     "                   [--recipe R] [--codec raw|int8|int4] [--durability host|disk]\n"
     "                   [--ttl DURATION] [--min_ratio R] [--fidelity N] [--json]\n\n"
     "Sends a context to the compressor, shows progress on stderr, prints the key and a table of\n"
     "ratios. --file takes text and needs a model whose vocabulary is bytes (see 'kvtierctl\n"
     "models'); any model takes --token_ids: a JSON array of ids, or raw u32 in a file *.u32.\n"
     "--fidelity measures on N chunks how well the model repeats the context from each ratio, for\n"
     "'kvtierctl stat' to show; an object that is stored already is not measured."},
    {"ask", Ask, "ask questions over a stored object",
     "key ratio min_ratio question token_ids questions parallel answer_tokens stop "
     "stop_token_ids temperature seed raw worker timeout json out",
     "kvtierctl ask --key HEX [--ratio R] [--min_ratio R]\n"
     "              (--question TEXT | --token_ids FILE | --questions FILE [--parallel N])\n"
     "              [--answer_tokens N] [--stop BYTE] [--stop_token_ids ID,ID..]\n"
     "              [--temperature T --seed S] [--raw] [--json] [--out FILE]\n\n"
     "Has the worker fetch the object at the ratio, answers, and lets go of it. --questions reads\n"
     "{\"questions\": [{\"question_ids\": [..], \"answer_ids\": [..]}]} and counts exact answers.\n"
     "What ends an answer is not part of it."},
    {"ls", List, "list stored objects", "store tenant timeout json",
     "kvtierctl ls [--json]\n\nOne line per object, in key order."},
    {"stat", Stat, "describe one object", "key heads_at plot store tenant timeout json",
     "kvtierctl stat KEY [--heads_at R] [--plot FILE.svg] [--json]\n\n"
     "Prints its bands: bytes, rows, threshold, score mass and (if it was measured) how well the\n"
     "model repeats the context from them, and where they are; then how many heads keep how much "
     "at\n"
     "a ratio. --plot draws the rows kept by layer and head, and score mass against ratio."},
    {"reband", Reband, "give an object other bands, without its model",
     "key edges drop_rest bytes rectangle of dry_run out store tenant timeout json",
     "kvtierctl reband KEY (--edges LIST [--drop_rest] | --bytes N |\n"
     "                      --rectangle R [--of layer|object] [--out FILE.safetensors])\n"
     "                     [--dry_run] [--json]\n\n"
     "Fetches what is resident, cuts it anew by the stored scores and puts it back: the new\n"
     "upload replaces the one it was made from. --edges must reach as far as what is resident;\n"
     "with --drop_rest they may end before, and what lies above is given up for good. --bytes\n"
     "makes the first band as large as the budget allows, of the largest ratio that fits.\n"
     "--rectangle keeps as many rows in every head of a layer (or of the object), which engines\n"
     "with plain tensors can load; --out writes it to a file instead of storing it. Its key is "
     "its\n"
     "own and the same at every ratio: a larger one replaces a smaller one, a smaller one does "
     "not\n"
     "replace a larger one, which is an error unless that has an edge there.\n"
     "Nothing crosses a stored edge (docs/adr/0009-re-banding.md)."},
    {"fetch", Fetch, "copy an object to a folder",
     "key out ratio min_ratio store tenant timeout json",
     "kvtierctl fetch KEY --out FOLDER [--ratio R] [--min_ratio R] [--json]\n\n"
     "Writes the manifest and one file per segment; 'kvtierctl verify --data_dir FOLDER' checks\n"
     "them."},
    {"rm", Remove, "remove objects, or an object's less important bands",
     "key keep_ratio model all dry_run store tenant timeout json",
     "kvtierctl rm KEY [--keep_ratio R] [--json]\n"
     "kvtierctl rm (--model NAME|DIGEST | --all) [--dry_run] [--json]\n\n"
     "With --keep_ratio, bands above that ratio are given up for good; the rest stays. --model\n"
     "removes every object that was computed with a model, --all every object; --dry_run only\n"
     "counts them."},
    {"pin", Pin, "keep an object whatever the pressure", "key store tenant timeout json",
     "kvtierctl pin KEY [--json]\n\n"
     "A pinned object is neither evicted nor degraded, also after a restart, and what needs its\n"
     "room is refused. It is not written to disk for that. What a tenant may pin is limited:\n"
     "'kvtierctl stats'."},
    {"unpin", Unpin, "let an object be evicted again", "key store tenant timeout json",
     "kvtierctl unpin KEY [--json]"},
    {"ttl", Ttl, "say how long an object is to live", "store tenant timeout json",
     "kvtierctl ttl KEY (never | DURATION) [--json]\n\n"
     "From now on: 90s, 36h. What has expired is a miss at once, pinned or not."},
    {"watch", Watch, "print what happens to objects",
     "events incarnation after store tenant timeout json",
     "kvtierctl watch [--events N] [--incarnation I --after N] [--json]\n\n"
     "First every object there is, then a line for each one that is sealed, loses bands or goes,\n"
     "and why. With --incarnation and --after an earlier watch goes on where it ended."},
    {"verify", Verify, "check every byte of stored objects",
     "key data_dir store tenant timeout json",
     "kvtierctl verify [KEY] [--json]               through the running store; without KEY all\n"
     "kvtierctl verify --data_dir FOLDER [--json]   offline: a stopped store's folder, or one\n"
     "                                              that fetch wrote\n\n"
     "Reads every segment and compares every checksum. Damage is named and gives exit status 1."},
    {"models", Models, "list the compressor's models", "compressor timeout json",
     "kvtierctl models [--json]"},
    {"stats", Stats, "show a store's use and limits", "store tenant timeout json",
     "kvtierctl stats [--json]\n\n"
     "Objects, bytes and budgets of the tiers and of leases, what the tenant has and may have, "
     "and\n"
     "the limits that a caller must stay within, by their names in proto/kvtier/v1/store.proto."},
};

std::string Usage() {
  std::string usage = "Compress documents, ask questions, look after a store.\n\n";
  for (const Command& command : kCommands) {
    std::string name = command.name;
    name.resize(10, ' ');
    absl::StrAppend(&usage, "  kvtierctl ", name, command.summary, "\n");
  }
  absl::StrAppend(&usage,
                  "\n'kvtierctl COMMAND --help' explains one. Servers are named by --store, "
                  "--compressor and --worker (host:port). --tenant says whose objects of a store "
                  "are\nmeant; the compressor and the worker act for the tenant 'default'.\n"
                  "Exit status: 0 done, 1 failed, 2 the command line or the input makes no sense, "
                  "3 not found.\n");
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
  const std::string first = argc > 1 ? argv[1] : "";
  const Command* command = Find(first);
  if (command == nullptr) {
    const bool help = first == "--help" || first == "-h" || first == "help";
    if (!help && !first.empty()) std::cerr << "kvtierctl: no command '" << first << "'\n\n";
    (help ? std::cout : std::cerr) << Usage();
    return help ? 0 : 2;
  }
  const std::vector<std::string> flags = absl::StrSplit(command->flags, ' ');
  const absl::StatusOr<CommandLine> line =
      ParseFlags(std::span(argv, static_cast<size_t>(argc)).subspan(2), flags);
  if (line.ok() && line->help) {
    std::cout << command->help << "\n\nFlags, with their defaults:\n" << FormatFlags(flags);
    return 0;
  }
  const absl::Status status = line.ok() ? command->run(line->arguments) : line.status();
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
