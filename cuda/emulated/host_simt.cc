#include "cuda/emulated/host_simt.h"

#include <algorithm>
#include <cstring>
#include <memory>
#include <vector>

#include "absl/strings/str_cat.h"
#include "cuda/emulated/fibre.h"

namespace kvtier::host_simt {
namespace {

constexpr int kWarp = 32;
constexpr size_t kExchangeBytesMax = 64;

enum class State { kReady, kAtBlockBarrier, kAtWarpBarrier, kDone };

// One per thread of a block, kept from launch to launch for its stack.
struct Thread {
  Fibre fibre;
  ThreadState state;
  State at = State::kDone;
};

struct Scheduler {
  std::vector<std::unique_ptr<Thread>> block;
  Thread* running = nullptr;
  const std::function<void()>* body = nullptr;
  std::vector<std::byte> shared;
  // What lanes give each other, twice: a lane that is already at the next exchange must not write
  // over what a slower one still reads. It cannot be two ahead.
  std::vector<std::byte> exchange[2];
  std::vector<uint32_t> exchanges;  // [threads] done so far.
  uint32_t order = 12345;           // State of NextRandom().
  int failure = 0;                  // What a thread of this launch ended it with.
  std::string error;
};

Scheduler& Scheduling() {
  static thread_local Scheduler scheduler;
  return scheduler;
}

void Enter() {
  Scheduler& s = Scheduling();
  (*s.body)();
  s.running->at = State::kDone;
  s.running->fibre.Suspend();
}

void Wait(State at) {
  Scheduler& s = Scheduling();
  s.running->at = at;
  s.running->fibre.Suspend();
}

void Prepare(Scheduler& s, int threads) {
  for (int t = 0; t < threads; ++t) {
    s.block[t]->fibre.Start(Enter);
    s.block[t]->at = State::kReady;
  }
}

int Count(const Scheduler& s, int begin, int end, State at) {
  int n = 0;
  for (int t = begin; t < end; ++t) n += s.block[t]->at == at ? 1 : 0;
  return n;
}

void Release(Scheduler& s, int begin, int end) {
  for (int t = begin; t < end; ++t) s.block[t]->at = State::kReady;
}

uint32_t NextRandom(Scheduler& s) {
  s.order = s.order * 1664525u + 1013904223u;
  return s.order >> 8;
}

// Runs what is ready of a warp: to its next shuffle, or as far as it gets without the others.
// False: nothing was ready.
bool RunWarp(Scheduler& s, int warp, bool ahead) {
  bool ran = false;
  do {
    const uint32_t order = NextRandom(s);
    for (uint32_t i = 0; i < kWarp; ++i) {
      const uint32_t lane = (order % 2 == 0 ? order / 2 + i : order / 2 - i) % kWarp;
      Thread& thread = *s.block[warp + lane];
      if (thread.at != State::kReady) continue;
      s.running = &thread;
      thread.fibre.Resume();
      ran = true;
    }
    if (Count(s, warp, warp + kWarp, State::kAtWarpBarrier) < kWarp) return ran;
    Release(s, warp, warp + kWarp);
  } while (ahead);
  return ran;
}

int RunBlock(Scheduler& s, int threads) {
  Prepare(s, threads);
  const uint32_t warps = threads / kWarp;
  for (;;) {
    // Now all warps keep step with each other, now one gets far ahead of the others.
    const bool ahead = NextRandom(s) % 2 == 0;
    const uint32_t first = NextRandom(s) % warps;
    bool ran = false;
    for (uint32_t i = 0; i < warps; ++i) {
      ran = RunWarp(s, static_cast<int>((first + i) % warps) * kWarp, ahead) || ran;
      if (s.failure != 0) return s.failure;
    }
    if (Count(s, 0, threads, State::kDone) == threads) return 0;
    if (Count(s, 0, threads, State::kAtBlockBarrier) == threads) {
      Release(s, 0, threads);
      continue;
    }
    if (ran) continue;
    const ThreadState& at = s.block[0]->state;
    s.error = absl::StrCat(
        "block (", at.block[0], ", ", at.block[1], ", ", at.block[2], ") is stuck: of ", threads,
        " threads ", Count(s, 0, threads, State::kAtBlockBarrier), " wait at a block barrier, ",
        Count(s, 0, threads, State::kAtWarpBarrier), " at a shuffle, ",
        Count(s, 0, threads, State::kDone), " have returned");
    return kBarrierError;
  }
}

}  // namespace

ThreadState& Current() { return Scheduling().running->state; }

void BlockBarrier() { Wait(State::kAtBlockBarrier); }

void CheckAligned(const void* address, size_t bytes) {
  if (reinterpret_cast<uintptr_t>(address) % bytes == 0) return;
  Scheduler& s = Scheduling();
  const ThreadState& at = Current();
  if (s.failure == 0) {
    s.failure = kAlignmentError;
    s.error =
        absl::StrCat("block (", at.block[0], ", ", at.block[1], ", ", at.block[2], "), thread ",
                     at.thread, ": an address of ", reinterpret_cast<uintptr_t>(address) % bytes,
                     " past a multiple of ", bytes);
  }
  Wait(State::kDone);
}

void WarpExchange(const void* mine, size_t bytes, void* all) {
  Scheduler& s = Scheduling();
  const int thread = Current().thread;
  std::vector<std::byte>& slots = s.exchange[s.exchanges[thread]++ % 2];
  std::memcpy(slots.data() + thread * kExchangeBytesMax, mine, bytes);
  Wait(State::kAtWarpBarrier);
  const int first = thread - thread % kWarp;
  for (int lane = 0; lane < kWarp; ++lane) {
    std::memcpy(static_cast<std::byte*>(all) + lane * bytes,
                slots.data() + (first + lane) * kExchangeBytesMax, bytes);
  }
}

int Run(const int (&grid)[3], int threads, size_t shared_bytes, const std::function<void()>& body) {
  Scheduler& s = Scheduling();
  if (threads <= 0 || threads > kThreadsMax || threads % kWarp != 0 ||
      shared_bytes > kSharedBytesMax) {
    s.error = absl::StrCat(threads, " threads and ", shared_bytes, " bytes of shared memory");
    return kConfigurationError;
  }
  s.body = &body;
  s.failure = 0;
  s.shared.resize(shared_bytes + 16);
  while (static_cast<int>(s.block.size()) < threads) s.block.push_back(std::make_unique<Thread>());
  for (auto& slots : s.exchange) slots.resize(threads * kExchangeBytesMax);
  s.exchanges.assign(threads, 0);
  void* aligned = s.shared.data();
  size_t space = s.shared.size();
  std::align(16, shared_bytes, aligned, space);
  for (int z = 0; z < grid[2]; ++z) {
    for (int y = 0; y < grid[1]; ++y) {
      for (int x = 0; x < grid[0]; ++x) {
        std::fill(s.shared.begin(), s.shared.end(), std::byte{0xFF});
        for (int t = 0; t < threads; ++t) {
          s.block[t]->state = {.thread = t,
                               .threads = threads,
                               .block = {x, y, z},
                               .grid = {grid[0], grid[1], grid[2]},
                               .shared = aligned};
        }
        if (const int error = RunBlock(s, threads); error != 0) return error;
      }
    }
  }
  return 0;
}

namespace {

Recording*& RecordingOfThread() {
  thread_local Recording* recording = nullptr;
  return recording;
}

}  // namespace

void Record(Recording* to) { RecordingOfThread() = to; }
Recording* CurrentRecording() { return RecordingOfThread(); }

const std::string& LastError() { return Scheduling().error; }

}  // namespace kvtier::host_simt
