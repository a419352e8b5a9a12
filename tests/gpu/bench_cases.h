// What kvtier-gpu-check --bench measures, over any Device and Backend, so that its rows are tested
// on the CPU: with the emulator, small shapes and a clock of the test's.
//
// Inputs are random from a seed. Times are medians of runs, each between two waits for the device.
// Rows that move bytes say what share of the device's own copy rate they reach, which the same run
// measures first.
#ifndef KVTIER_TESTS_GPU_BENCH_CASES_H_
#define KVTIER_TESTS_GPU_BENCH_CASES_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "compressor/backend.h"
#include "compressor/pipeline.h"
#include "cuda/device.h"
#include "tests/gpu/bench_run.h"

namespace kvtier {

// The sizes of a model.
struct BenchModel {
  std::string name;
  bool qwen2 = false;  // Its family; otherwise Llama's.
  uint32_t layers = 0;
  uint32_t kv_heads = 0;
  uint32_t group = 0;  // Query heads per KV head.
  uint32_t head_dim = 0;
  uint32_t hidden = 0;
  uint32_t mlp = 0;
  uint32_t vocabulary = 0;
};
BenchModel Llama31With8B();
BenchModel Qwen25With14B();

struct BenchTarget {
  std::shared_ptr<Device> device;
  Backend* backend = nullptr;     // Over that device; bf16 activations.
  std::function<double()> clock;  // Seconds that only grow.
  std::vector<BenchModel> models;
  std::vector<int64_t> contexts;              // Tokens.
  int64_t chunk = 2000;                       // Tokens that a repeat input scores.
  int64_t prefill_rows = kDevicePrefillRows;  // Of a piece of a prefill.
  int64_t copy_bytes = int64_t{1} << 30;
  // Layers that a decode goes through: more bytes than a cache of the device holds.
  int64_t rotate_bytes = int64_t{512} << 20;
  int runs = 5;
};

// In order of value. The target outlives the rows. Those of whole models keep the last model that
// they measured on the device, and write its checkpoint of random weights, which takes as much
// memory there and on the disk (30 GB), to the temporary folder ($TEST_TMPDIR) until it is loaded.
std::vector<BenchRow> MakeBenchRows(const BenchTarget& target);

}  // namespace kvtier

#endif  // KVTIER_TESTS_GPU_BENCH_CASES_H_
