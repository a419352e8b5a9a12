#include "tests/conformance/backend_threads.h"

#include <cstdint>
#include <latch>
#include <memory>
#include <random>
#include <string>
#include <thread>  // NOLINT(build/c++11)
#include <utility>
#include <vector>

#include "base/bytes.h"
#include "base/status_matchers.h"
#include "gtest/gtest.h"
#include "tests/conformance/backend_tensors.h"
#include "tests/testing/random.h"

namespace kvtier {
namespace {

constexpr int64_t kThreadDims[] = {64, 96, 128, 256};  // Of each thread's heads.
constexpr int kRounds = 3;
constexpr int64_t kHeads = 2;
constexpr int64_t kGroup = 2;
constexpr int64_t kQueryRows = 3;
constexpr int64_t kTailRows = 70;
constexpr int64_t kProductRows = 2;
constexpr int64_t kIn = 8192;
constexpr int64_t kOut = 32;

// What one thread works on.
class Work {
 public:
  Work(Backend& backend, int64_t dim, std::mt19937_64& random) : backend_(backend) {
    const DType dtype = backend.activation_dtype();
    const std::string weights = Encode(RandomFloats(random, kOut * kIn), dtype);
    auto prepared = backend.PrepareLinear(AsBytes(weights), dtype, kOut, kIn);
    KVTIER_EXPECT_OK(prepared);
    if (prepared.ok()) weights_ = *std::move(prepared);
    x_ = MakeActivations(backend, RandomFloats(random, kProductRows * kIn), kProductRows, kIn);
    y_ = MakeActivations(backend, Floats(kProductRows * kOut), kProductRows, kOut);
    const int64_t width = kHeads * kGroup * dim;
    q_ = MakeActivations(backend, RandomFloats(random, kQueryRows * width), kQueryRows, width);
    out_ = MakeActivations(backend, Floats(kQueryRows * width), kQueryRows, width);
    tail_ =
        MakeLayer(backend, RandomFloats(random, kHeads * kTailRows * dim),
                  RandomFloats(random, kHeads * kTailRows * dim), dtype, kHeads, kTailRows, dim);
  }

  // Both outputs, one after the other.
  Floats Run() {
    const HeadSpans none(kHeads);
    KVTIER_EXPECT_OK(backend_.Linear(x_, *weights_, y_));
    KVTIER_EXPECT_OK(backend_.Attention({.q = q_,
                                         .spans = &none,
                                         .span_dtype = backend_.activation_dtype(),
                                         .tail = tail_.view,
                                         .tail_rows = kTailRows,
                                         .scale = 0.2f,
                                         .out = out_}));
    Floats results = Read(backend_, y_);
    const Floats attended = Read(backend_, out_);
    results.insert(results.end(), attended.begin(), attended.end());
    return results;
  }

 private:
  Backend& backend_;
  std::unique_ptr<LinearWeights> weights_;
  Tensor x_, y_, q_, out_;
  Layer tail_;
};

}  // namespace

void ExpectThreadsDoNotMeet(Backend& backend) {
  std::mt19937_64 random(TestSeed());
  std::vector<Work> work;
  for (const int64_t dim : kThreadDims) work.emplace_back(backend, dim, random);
  if (::testing::Test::HasFailure()) return;
  std::vector<Floats> expected;
  for (Work& one : work) expected.push_back(one.Run());
  if (::testing::Test::HasFailure()) return;

  std::vector<std::vector<Floats>> results(work.size());
  std::latch start(static_cast<std::ptrdiff_t>(work.size()));
  std::vector<std::thread> threads;
  for (size_t i = 0; i < work.size(); ++i) {
    threads.emplace_back([&, i] {
      start.arrive_and_wait();
      for (int round = 0; round < kRounds; ++round) results[i].push_back(work[i].Run());
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (size_t i = 0; i < work.size(); ++i) {
    for (const Floats& result : results[i]) {
      EXPECT_EQ(result, expected[i]) << "heads of " << kThreadDims[i];
    }
  }
}

}  // namespace kvtier
