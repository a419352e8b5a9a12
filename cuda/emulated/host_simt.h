// Runs kernels on the CPU, block after block, each thread of a block a fibre: what cuda/simt.h
// means under a host compiler. For tests, not for speed.
//
// It is stricter than a device: a barrier that some thread of the block never reaches (also because
// it returned) ends the launch with kBarrierError and a message, as a wide load or store that is
// not aligned does with kAlignmentError; shared memory starts as NaNs; and
// between barriers the threads of a warp run in changing orders, and warps keep step or get far
// ahead of each other, so that a missing barrier shows as a wrong result.
//
// Thread-safe: each thread of the CPU runs its own launches.
#ifndef KVTIER_CUDA_EMULATED_HOST_SIMT_H_
#define KVTIER_CUDA_EMULATED_HOST_SIMT_H_

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

namespace kvtier::host_simt {

struct ThreadState {
  int thread = 0;
  int threads = 0;
  int block[3] = {};
  int grid[3] = {};
  void* shared = nullptr;
};

inline constexpr int kBarrierError = 719;      // cudaErrorLaunchFailure
inline constexpr int kAlignmentError = 716;    // cudaErrorMisalignedAddress
inline constexpr int kConfigurationError = 9;  // cudaErrorInvalidConfiguration
inline constexpr int kThreadsMax = 1024;
inline constexpr size_t kSharedBytesMax = 163 * 1024;  // Of a block on sm_80; sm_90 has more.

// Of the fibre that runs. REQUIRES: inside a kernel.
ThreadState& Current();

void BlockBarrier();

// Ends the launch with kAlignmentError where `address` is no multiple of `bytes`; then it does not
// return. x86 would read and write there without a word.
void CheckAligned(const void* address, size_t bytes);

// Every lane of the warp gives `bytes` bytes and gets those of all 32, in order.
void WarpExchange(const void* mine, size_t bytes, void* all);

// Runs `body` as every thread of every block of grid[0] x grid[1] x grid[2] blocks.
// Returns 0, kConfigurationError (threads no multiple of 32, too many; too much shared memory),
// kBarrierError or kAlignmentError; LastError() says more. After an error, objects on the stacks of
// threads that had not returned are not destroyed.
int Run(const int (&grid)[3], int threads, size_t shared_bytes, const std::function<void()>& body);

// Work that was put off instead of being done, in order; each returns what Run() does.
using Recording = std::vector<std::function<int()>>;

// From now on this CPU thread's launches are appended to `to` instead of being run, and return 0.
// Null: they run again.
void Record(Recording* to);
Recording* CurrentRecording();

// What went wrong in this CPU thread's last failed launch.
const std::string& LastError();

}  // namespace kvtier::host_simt

#endif  // KVTIER_CUDA_EMULATED_HOST_SIMT_H_
