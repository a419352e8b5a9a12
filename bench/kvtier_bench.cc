// kvtier-bench: how fast, beside what the machine allows. One file per suite.

#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <fstream>
#include <iostream>
#include <thread>  // NOLINT(build/c++11)

#include <nlohmann/json.hpp>

#include "absl/flags/flag.h"
#include "absl/flags/parse.h"
#include "absl/flags/usage.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "base/clock.h"
#include "base/status_macros.h"
#include "bench/suite.h"
#include "services/server.h"

ABSL_FLAG(std::string, model, "tests/fixtures/model", "compute: checkpoint folder");
ABSL_FLAG(std::string, shape, "",
          "compute: instead of --model a random one: qwen2.5-0.5b, two-layers or tiny");
ABSL_FLAG(int, tokens, 4500, "compute: context length");
ABSL_FLAG(int, long_tokens, 0,
          "compute: also a context of this length on a random model of two layers, its scores held "
          "against the reference backend's; 0: none");
ABSL_FLAG(int, megabytes, 256, "transfer: size of the object");
ABSL_FLAG(int, runs, 5, "timed runs of each figure; the median is shown");
ABSL_FLAG(bool, json, false, "print JSON");
ABSL_FLAG(std::string, trace, "", "retention: requests, in Mooncake's JSONL format");
ABSL_FLAG(std::string, curve, "bench/data/quality_curve.json", "retention: quality of each ratio");
ABSL_FLAG(std::vector<std::string>, capacities_gib, {},
          "retention: capacities, with commas; by default ten, up to where everything fits");
ABSL_FLAG(bool, check, false, "retention: exit with 1 if a row misses its target");

namespace kvtier::bench {

absl::StatusOr<double> MedianSeconds(int runs, const std::function<absl::Status()>& run) {
  KVTIER_RETURN_IF_ERROR(run());
  std::vector<double> seconds;
  for (int i = 0; i < std::max(1, runs); ++i) {
    const absl::Time begin = Clock::Real().Now();
    KVTIER_RETURN_IF_ERROR(run());
    seconds.push_back(absl::ToDoubleSeconds(Clock::Real().Now() - begin));
  }
  std::nth_element(seconds.begin(), seconds.begin() + seconds.size() / 2, seconds.end());
  return seconds[seconds.size() / 2];
}

namespace {

constexpr char kUsage[] =
    "Measures kvtier beside the limits of the machine, in the same run.\n\n"
    "  kvtier-bench compute   prefill, scoring, ranking and decode of a model, its peak memory; "
    "oneDNN's\n                         matrix products\n"
    "  kvtier-bench transfer  fetch of an object over gRPC; raw TCP\n"
    "  kvtier-bench retention --trace FILE   what caches of several sizes give back under a trace "
    "of\n"
    "                         requests: bands that degrade, fixed ratios, dense blocks\n";

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

void Print(const std::string& suite, const std::vector<Figure>& figures) {
  const unsigned cores = std::thread::hardware_concurrency();
  if (absl::GetFlag(FLAGS_json)) {
    nlohmann::json list = nlohmann::json::array();
    for (const Figure& figure : figures) {
      nlohmann::json json = {{"name", figure.name}, {"value", figure.value}, {"unit", figure.unit}};
      if (figure.ceiling > 0) {
        json["ceiling"] = figure.ceiling;
        json["ceiling_name"] = figure.ceiling_name;
      }
      list.push_back(std::move(json));
    }
    std::cout << nlohmann::json({{"suite", suite},
                                 {"processor", ProcessorName()},
                                 {"cores", cores},
                                 {"runs", absl::GetFlag(FLAGS_runs)},
                                 {"figures", std::move(list)}})
              << "\n";
    return;
  }
  std::printf("%s on %s, %u cores, median of %d runs after a warm-up\n", suite.c_str(),
              ProcessorName().c_str(), cores, absl::GetFlag(FLAGS_runs));
  for (const Figure& figure : figures) {
    std::printf("  %-42s %12.2f %-10s", figure.name.c_str(), figure.value, figure.unit.c_str());
    if (figure.ceiling > 0) {
      std::printf("  %5.2f of %s", figure.value / figure.ceiling, figure.ceiling_name.c_str());
    }
    std::printf("\n");
  }
}

// The exit code.
int Retention() {
  RetentionOptions options = {.trace = absl::GetFlag(FLAGS_trace),
                              .curve = absl::GetFlag(FLAGS_curve),
                              .json = absl::GetFlag(FLAGS_json)};
  for (const std::string& text : absl::GetFlag(FLAGS_capacities_gib)) {
    if (!absl::SimpleAtod(text, &options.capacities_gib.emplace_back())) {
      std::cerr << "kvtier-bench: --capacities_gib: " << text << " is not a number\n";
      return 2;
    }
  }
  const absl::StatusOr<bool> pass = RunRetentionSuite(options);
  if (!pass.ok()) {
    std::cerr << "kvtier-bench: " << pass.status() << "\n";
    return 1;
  }
  return *pass || !absl::GetFlag(FLAGS_check) ? 0 : 1;
}

int Main(int argc, char** argv) {
  TuneMalloc();
  absl::SetProgramUsageMessage(kUsage);
  const std::vector<char*> rest = absl::ParseCommandLine(argc, argv);
  const std::string suite = rest.size() == 2 ? rest[1] : "";
  if (suite == "retention") return Retention();
  absl::StatusOr<std::vector<Figure>> figures;
  if (suite == "compute") {
    figures = RunComputeSuite({.model_folder = absl::GetFlag(FLAGS_model),
                               .shape = absl::GetFlag(FLAGS_shape),
                               .context_tokens = absl::GetFlag(FLAGS_tokens),
                               .long_tokens = absl::GetFlag(FLAGS_long_tokens),
                               .runs = absl::GetFlag(FLAGS_runs)});
  } else if (suite == "transfer") {
    figures = RunTransferSuite(absl::GetFlag(FLAGS_megabytes), absl::GetFlag(FLAGS_runs));
  } else {
    std::cerr << kUsage;
    return 2;
  }
  if (!figures.ok()) {
    std::cerr << "kvtier-bench: " << figures.status() << "\n";
    return 1;
  }
  Print(suite, *figures);
  return 0;
}

}  // namespace
}  // namespace kvtier::bench

int main(int argc, char** argv) { return kvtier::bench::Main(argc, argv); }
