// kvtier-bench: how fast, beside what the machine allows. One file per suite; this one reads the
// command line, runs the suites in order and reports.

#include <algorithm>
#include <cstdio>
#include <fstream>
#include <functional>
#include <iostream>
#include <set>
#include <span>
#include <string>
#include <thread>  // NOLINT(build/c++11)
#include <utility>
#include <vector>

#include "absl/flags/flag.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "base/status_macros.h"
#include "bench/rows.h"
#include "bench/suite.h"
#include "services/command_line.h"
#include "services/server.h"

ABSL_FLAG(std::string, json, "", "also write every row as JSON to this file; '-': stdout");
ABSL_FLAG(bool, check, false, "exit with 1 if a row misses its target or was not measured");
ABSL_FLAG(bool, quick, false, "little data, one run: shows that a suite works, not how fast");
ABSL_FLAG(int, runs, 5,
          "timed runs of each figure, after one that is not counted; the median is "
          "shown");
ABSL_FLAG(std::string, folder, "",
          "pages, disk, pressure: make data folders in here; empty: the system's temporary folder");
ABSL_FLAG(int, megabytes, 256, "transfer, shm, disk: size of the object");
ABSL_FLAG(std::string, model, "tests/fixtures/model", "compute: checkpoint folder");
ABSL_FLAG(std::string, shape, "",
          "compute: instead of --model a random one: qwen2.5-0.5b, two-layers or tiny");
ABSL_FLAG(int, tokens, 4500, "compute: context length");
ABSL_FLAG(int, long_tokens, 0,
          "compute: also a context of this length on a random model of two layers, its scores held "
          "against the reference backend's; 0: none");
ABSL_FLAG(std::string, trace, "tests/fixtures/traces/chat.jsonl",
          "retention: requests, in Mooncake's JSONL format");
ABSL_FLAG(std::string, curve, "bench/data/quality_curve.json", "retention: quality of each ratio");
ABSL_FLAG(std::string, capacities_gib, "",
          "retention: capacities, with commas; by default ten, up to where everything fits");

namespace kvtier::bench {
namespace {

constexpr char kUsage[] =
    "Measures kvtier beside the limits of the machine, in the same run.\n\n"
    "  kvtier-bench SUITE... | all [--json FILE] [--check] [--quick]\n\n";

struct Suite {
  const char* name;
  const char* about;
  // Whether its figures are medians of --runs; else each is measured once.
  bool in_medians;
  std::function<absl::StatusOr<SuiteResult>()> run;
};

int Runs() { return absl::GetFlag(FLAGS_quick) ? 1 : absl::GetFlag(FLAGS_runs); }

StoreSuiteOptions StoreOptions() {
  const bool quick = absl::GetFlag(FLAGS_quick);
  return {.folder = absl::GetFlag(FLAGS_folder),
          .object_bytes = static_cast<uint64_t>(quick ? 32 : absl::GetFlag(FLAGS_megabytes)) << 20,
          .runs = Runs(),
          .is_quick = quick};
}

absl::StatusOr<SuiteResult> Compute() {
  const bool quick = absl::GetFlag(FLAGS_quick);
  return RunComputeSuite({.model_folder = absl::GetFlag(FLAGS_model),
                          .shape = absl::GetFlag(FLAGS_shape),
                          .context_tokens = quick ? std::min(300, absl::GetFlag(FLAGS_tokens))
                                                  : absl::GetFlag(FLAGS_tokens),
                          .long_tokens = absl::GetFlag(FLAGS_long_tokens),
                          .runs = Runs()});
}

absl::StatusOr<SuiteResult> Retention() {
  RetentionOptions options = {.trace = absl::GetFlag(FLAGS_trace),
                              .curve = absl::GetFlag(FLAGS_curve)};
  const std::string capacities = absl::GetFlag(FLAGS_capacities_gib);
  if (!capacities.empty()) {
    for (const absl::string_view text : absl::StrSplit(capacities, ',')) {
      if (!absl::SimpleAtod(text, &options.capacities_gib.emplace_back())) {
        return absl::InvalidArgumentError(
            absl::StrCat("--capacities_gib: ", text, " is not a number"));
      }
    }
  }
  return RunRetentionSuite(options);
}

// In the order of `all`.
const std::vector<Suite>& Suites() {
  static const auto* suites = new std::vector<Suite>{
      {"transfer", "fetch and put over gRPC and TCP, host memory; raw TCP", true,
       [] { return RunTransferSuite(StoreOptions()); }},
      {"shm", "fetch through shared memory, read in place; memcpy, fetch over TCP", true,
       [] { return RunShmSuite(StoreOptions()); }},
      {"get", "fetches of 4 KiB, one after the other; raw TCP", false,
       [] { return RunGetSuite(StoreOptions()); }},
      {"lookup", "64 prompts of 64 blocks at once, a million objects; raw TCP", false,
       [] { return RunLookupSuite(StoreOptions()); }},
      {"pages", "batches of 32 pages of 4 KiB, put and got; Redis", true,
       [] { return RunPagesSuite(StoreOptions()); }},
      {"disk", "put DISK filling and after turnovers, fetch from disk; O_DIRECT files", true,
       [] { return RunDiskSuite(StoreOptions()); }},
      {"redis", "one context at ratio 0.3; the dense one through Redis", true,
       [] { return RunRedisSuite(StoreOptions()); }},
      {"pressure", "256 fetches at once, memory for a tenth of them", false,
       [] { return RunPressureSuite(StoreOptions()); }},
      {"retention", "what caches of several sizes give back under a trace of requests", false,
       Retention},
      {"compute", "prefill, scoring, ranking, decode, peak memory; oneDNN's matrix products", true,
       Compute},
  };
  return *suites;
}

std::string ProcessorName() {
  std::ifstream file("/proc/cpuinfo");
  std::string line;
  while (std::getline(file, line)) {
    absl::string_view rest = line;
    if (absl::ConsumePrefix(&rest, "model name")) {
      return std::string(rest.substr(std::min(rest.size(), rest.find(':') + 2)));
    }
  }
  return "unknown processor";
}

// The suites that the words name, in their order, each once.
absl::StatusOr<std::vector<const Suite*>> Choose(const std::vector<std::string>& words) {
  if (words.empty()) return absl::InvalidArgumentError("no suite");
  std::vector<const Suite*> chosen;
  std::set<std::string> seen;
  for (const std::string& word : words) {
    bool is_known = word == "all";
    for (const Suite& suite : Suites()) {
      if (word != "all" && word != suite.name) continue;
      is_known = true;
      if (seen.insert(suite.name).second) chosen.push_back(&suite);
    }
    if (!is_known) return absl::InvalidArgumentError(absl::StrCat("no suite '", word, "'"));
  }
  return chosen;
}

std::string Help(const std::vector<std::string>& flags) {
  std::string text = kUsage;
  for (const Suite& suite : Suites()) {
    absl::StrAppend(&text, "  ", suite.name, std::string(12 - std::string(suite.name).size(), ' '),
                    suite.about, "\n");
  }
  return absl::StrCat(text, "\nFlags, with their defaults:\n", FormatFlags(flags));
}

absl::Status WriteFile(const std::string& path, const std::string& text) {
  std::ofstream file(path, std::ios::binary);
  file << text;
  file.close();
  if (!file) return absl::UnavailableError(absl::StrCat("cannot write ", path));
  return absl::OkStatus();
}

int Main(std::span<const char* const> words) {
  TuneMalloc();
  const std::vector<std::string> flags = FlagsDefinedIn("bench/", "absl/");
  const absl::StatusOr<CommandLine> line = ParseFlags(words, flags);
  if (line.ok() && line->help) {
    std::cout << Help(flags);
    return 0;
  }
  const absl::StatusOr<std::vector<const Suite*>> chosen =
      line.ok() ? Choose(line->arguments) : line.status();
  if (!chosen.ok()) {
    std::cerr << "kvtier-bench: " << chosen.status().message() << "\nTry --help.\n";
    return 2;
  }

  const Machine machine = {ProcessorName(), std::thread::hardware_concurrency()};
  const std::string json = absl::GetFlag(FLAGS_json);
  std::ostream& tables = json == "-" ? std::cerr : std::cout;
  std::vector<NamedResult> results;
  std::vector<std::string> misses;
  bool has_failed = false;
  for (const Suite* suite : *chosen) {
    absl::StatusOr<SuiteResult> result = suite->run();
    if (!result.ok()) {  // The others may well run.
      std::cerr << "kvtier-bench: " << suite->name << ": " << result.status().message() << "\n";
      has_failed = true;
      continue;
    }
    for (Row& row : result->rows) row.suite = suite->name;
    tables << suite->name << " on " << machine.processor << ", " << machine.cores << " cores, "
           << (suite->in_medians ? absl::StrCat("medians of ", Runs(), " after a warm-up")
                                 : "each measured once")
           << (absl::GetFlag(FLAGS_quick) ? ", --quick: not for comparison" : "") << "\n"
           << (result->table.empty() ? FormatTable(result->rows) : result->table);
    if (!result->note.empty()) tables << "  " << result->note << "\n";
    tables << "\n" << std::flush;
    for (std::string& miss : Misses(result->rows)) misses.push_back(std::move(miss));
    results.push_back({suite->name, *std::move(result)});
  }

  if (!json.empty()) {
    const std::string text = FormatJson(machine, Runs(), absl::GetFlag(FLAGS_quick), results);
    const absl::Status written = json == "-" ? absl::OkStatus() : WriteFile(json, text);
    if (json == "-") std::cout << text;
    if (!written.ok()) {
      std::cerr << "kvtier-bench: " << written.message() << "\n";
      has_failed = true;
    }
  }
  for (const std::string& miss : misses) std::cerr << "kvtier-bench: missed: " << miss << "\n";
  return has_failed || (absl::GetFlag(FLAGS_check) && !misses.empty()) ? 1 : 0;
}

}  // namespace
}  // namespace kvtier::bench

int main(int argc, char** argv) {
  return kvtier::bench::Main(
      std::span<const char* const>(argv, static_cast<size_t>(argc)).subspan(1));
}
