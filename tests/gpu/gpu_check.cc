// kvtier-gpu-check: does device code do on this GPU what the tests expect of it? Needs neither gRPC
// nor RocksDB.
//
//   kvtier-gpu-check [--device N] [--json FILE] [--filter PATTERN]
//   kvtier-gpu-check --bench [--device N] [--json FILE] [--resume]
//
// With --bench it measures instead (tests/gpu/bench_cases.h): a row per line of FILE, written as
// soon as it is there; --resume measures what FILE does not hold yet of this build and device.
//
// Exit status: 0 all passed or measured, 1 something failed or nothing ran, 2 wrong arguments, 77
// no device, or one that is too old. A device that is there and does not answer is a failure.
#include "tests/gpu/gpu_check.h"

#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "cuda/cuda_device.h"
#include "cuda/cuda_device_backend.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/gpu/bench_cases.h"
#include "tests/gpu/bench_run.h"

namespace kvtier {
namespace {

constexpr int kExitSkipped = 77;

int g_device = 0;

struct Result {
  std::string suite;
  std::string name;
  std::string outcome;  // "passed", "failed", "skipped"
  int64_t milliseconds = 0;
};

class Collector : public ::testing::EmptyTestEventListener {
 public:
  const std::vector<Result>& results() const { return results_; }

 private:
  void OnTestEnd(const ::testing::TestInfo& info) override {
    const ::testing::TestResult& result = *info.result();
    results_.push_back({.suite = info.test_suite_name(),
                        .name = info.name(),
                        .outcome = result.Failed()    ? "failed"
                                   : result.Skipped() ? "skipped"
                                                      : "passed",
                        .milliseconds = result.elapsed_time()});
  }
  std::vector<Result> results_;
};

// Names and figures of ours hold no character that JSON escapes but these.
std::string Quoted(const std::string& text) {
  std::string quoted = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') quoted += '\\';
    quoted += c;
  }
  return quoted + "\"";
}

bool WriteJson(const std::string& path, const CudaDeviceInfo& device,
               const std::vector<Result>& results) {
  std::ofstream file(path);
  file << "{\n  \"device\": {\"ordinal\": " << g_device << ", \"model\": " << Quoted(device.model)
       << ", \"compute_capability\": \"" << device.compute_major << "." << device.compute_minor
       << "\", \"multiprocessors\": " << device.multiprocessors
       << ", \"memory_bytes\": " << device.memory_bytes
       << ", \"driver_version\": " << device.driver_version
       << ", \"runtime_version\": " << device.runtime_version << "},\n  \"tests\": [";
  for (size_t i = 0; i < results.size(); ++i) {
    file << (i == 0 ? "\n" : ",\n") << "    {\"suite\": " << Quoted(results[i].suite)
         << ", \"name\": " << Quoted(results[i].name) << ", \"outcome\": \"" << results[i].outcome
         << "\", \"milliseconds\": " << results[i].milliseconds << "}";
  }
  file << "\n  ]\n}\n";
  file.close();
  return !file.fail();
}

void PrintTable(const std::vector<Result>& results) {
  struct Row {
    int passed = 0, failed = 0, skipped = 0;
    int64_t milliseconds = 0;
  };
  std::map<std::string, Row> rows;
  for (const Result& result : results) {
    Row& row = rows[result.suite];
    ++(result.outcome == "passed"   ? row.passed
       : result.outcome == "failed" ? row.failed
                                    : row.skipped);
    row.milliseconds += result.milliseconds;
  }
  std::printf("\n%-40s %8s %8s %8s %10s\n", "suite", "passed", "failed", "skipped", "ms");
  for (const auto& [suite, row] : rows) {
    std::printf("%-40s %8d %8d %8d %10lld\n", suite.c_str(), row.passed, row.failed, row.skipped,
                static_cast<long long>(row.milliseconds));
  }
}

struct Arguments {
  bool bench = false;
  bool resume = false;
  std::string json;
  std::string filter = "*";
};

int Usage() {
  std::fprintf(stderr,
               "usage: kvtier-gpu-check [--device N] [--json FILE] [--filter PATTERN]\n"
               "       kvtier-gpu-check --bench [--device N] [--json FILE] [--resume]\n");
  return 2;
}

// False: wrong. Sets g_device.
bool Parse(int argc, char** argv, Arguments& arguments) {
  bool filtered = false;
  for (int i = 1; i < argc; ++i) {
    const std::string name = argv[i];
    if (name == "--bench" || name == "--resume") {
      (name == "--bench" ? arguments.bench : arguments.resume) = true;
      continue;
    }
    if (++i >= argc) return false;
    const std::string value = argv[i];
    if (name == "--device") {
      if (!absl::SimpleAtoi(value, &g_device) || g_device < 0) return false;
    } else if (name == "--json") {
      arguments.json = value;
    } else if (name == "--filter") {
      arguments.filter = value;
      filtered = true;
    } else {
      return false;
    }
  }
  if (arguments.resume) return arguments.bench && !arguments.json.empty();
  return !(arguments.bench && filtered);
}

// Seconds since some moment.
double Now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

absl::StatusOr<BenchReport> Bench(const CudaDeviceInfo& info, const Arguments& arguments) {
  KVTIER_ASSIGN_OR_RETURN(std::shared_ptr<Device> device, MakeCudaDevice(g_device));
  KVTIER_ASSIGN_OR_RETURN(const std::unique_ptr<Backend> backend,
                          MakeCudaBackendOver(device, DType::kBf16));
  KVTIER_ASSIGN_OR_RETURN(const std::string build, BuildOf("/proc/self/exe"));
  BenchTarget target;
  target.device = device;
  target.backend = backend.get();
  target.clock = Now;
  target.models = {Llama31With8B(), Qwen25With14B()};
  target.contexts = {131072, 32768, 8192};
  return RunBench(
      MakeBenchRows(target),
      {.build = build, .device = info.model, .file = arguments.json, .resume = arguments.resume});
}

int RunBenchmarks(const CudaDeviceInfo& info, const Arguments& arguments) {
  const absl::StatusOr<BenchReport> report = Bench(info, arguments);
  if (!report.ok()) {
    std::fprintf(stderr, "%s\n", report.status().ToString().c_str());
    return 1;
  }
  std::printf("%d measured, %d measured before, %d failed\n", report->measured, report->skipped,
              report->failed);
  return report->failed == 0 ? 0 : 1;
}

int Main(int argc, char** argv) {
  Arguments arguments;
  if (!Parse(argc, argv, arguments)) return Usage();
  const std::string& json = arguments.json;
  const std::string& filter = arguments.filter;
  const absl::StatusOr<CudaDeviceInfo> device = DescribeCudaDevice(g_device);
  if (!device.ok()) {
    const bool skipped = absl::IsUnavailable(device.status()) ||       // None.
                         absl::IsFailedPrecondition(device.status());  // Too old.
    std::printf("%s: %s\n", skipped ? "skipped" : "failed",
                std::string(device.status().message()).c_str());
    return skipped ? kExitSkipped : 1;
  }
  std::printf("cuda:%d: %s, compute capability %d.%d, %d multiprocessors, %.1f GiB\n", g_device,
              device->model.c_str(), device->compute_major, device->compute_minor,
              device->multiprocessors, static_cast<double>(device->memory_bytes) / (1 << 30));
  if (arguments.bench) return RunBenchmarks(*device, arguments);
  int no_arguments = 1;
  ::testing::InitGoogleMock(&no_arguments, argv);
  ::testing::GTEST_FLAG(filter) = filter;
  auto* collector = new Collector;  // GoogleTest deletes it.
  ::testing::UnitTest::GetInstance()->listeners().Append(collector);
  const bool passed = RUN_ALL_TESTS() == 0;
  PrintTable(collector->results());
  if (!json.empty() && !WriteJson(json, *device, collector->results())) {
    std::fprintf(stderr, "cannot write %s\n", json.c_str());
    return 1;
  }
  if (collector->results().empty()) {
    std::fprintf(stderr, "no test fits the filter %s\n", filter.c_str());
    return 1;
  }
  return passed ? 0 : 1;
}

}  // namespace

int DeviceUnderTest() { return g_device; }

}  // namespace kvtier

int main(int argc, char** argv) { return kvtier::Main(argc, argv); }
