// The words that device code is written in: thread and block indices, barriers, shuffles, shared
// memory, launches. Under nvcc they are CUDA's own. Under a host compiler they are those of
// cuda/emulated/host_simt.h, which runs a kernel on the CPU with every thread a fibre, so that the
// same sources are tested on machines without a GPU: indexing, barriers, and what lies past a
// buffer.
//
//   KVTIER_KERNEL void DoubleKernel(DoubleParams p) {
//     const int64_t i = int64_t{BlockX()} * ThreadCount() + ThreadIndex();
//     if (i < p.count) p.data[i] *= 2;
//   }
//   DeviceError error = LaunchKernel(DoubleKernel, {.x = blocks}, 256, 0, stream, params);
//
// Blocks are one-dimensional, a multiple of 32 threads.
#ifndef KVTIER_CUDA_SIMT_H_
#define KVTIER_CUDA_SIMT_H_

#include <cstddef>
#include <cstdint>

#if defined(__CUDACC__)
#include <cuda_runtime.h>

#include "cuda/cuda_shared_memory.h"
#define KVTIER_HOST_DEVICE __host__ __device__
#define KVTIER_DEVICE __device__ __forceinline__
#define KVTIER_KERNEL __global__
#define KVTIER_UNROLL _Pragma("unroll")
#else
#include "cuda/emulated/host_simt.h"
#define KVTIER_HOST_DEVICE
#define KVTIER_DEVICE inline
#define KVTIER_KERNEL
#define KVTIER_UNROLL
#endif

namespace kvtier {

using DeviceStream = void*;  // A cudaStream_t.
using DeviceError = int;     // A cudaError_t; 0 is none.

inline constexpr int kWarpThreads = 32;
// What every device gives a block without being asked.
inline constexpr size_t kDefaultSharedBytes = 48 * 1024;

// Blocks of a launch. A grid with no blocks launches nothing, which is no error.
struct Grid {
  int64_t x = 1;
  int64_t y = 1;
  int64_t z = 1;
  constexpr bool Fits() const {
    return x >= 0 && y >= 0 && z >= 0 && x <= 0x7FFF'FFFF && y <= 65535 && z <= 65535;
  }
  constexpr bool Empty() const { return x == 0 || y == 0 || z == 0; }
};

inline constexpr DeviceError kInvalidConfiguration = 9;  // cudaErrorInvalidConfiguration

#if defined(__CUDACC__)

KVTIER_DEVICE int ThreadIndex() { return static_cast<int>(threadIdx.x); }
KVTIER_DEVICE int ThreadCount() { return static_cast<int>(blockDim.x); }
KVTIER_DEVICE int BlockX() { return static_cast<int>(blockIdx.x); }
KVTIER_DEVICE int BlockY() { return static_cast<int>(blockIdx.y); }
KVTIER_DEVICE int BlockZ() { return static_cast<int>(blockIdx.z); }
KVTIER_DEVICE int GridX() { return static_cast<int>(gridDim.x); }
KVTIER_DEVICE int GridY() { return static_cast<int>(gridDim.y); }
KVTIER_DEVICE int GridZ() { return static_cast<int>(gridDim.z); }

// Every thread of the block waits for all others.
KVTIER_DEVICE void BlockSync() { __syncthreads(); }

// The value of the lane whose number differs in the bits of `mask`. All 32 lanes take part.
template <typename T>
KVTIER_DEVICE T ShuffleXor(T value, int mask) {
  return __shfl_xor_sync(0xFFFF'FFFFu, value, mask);
}

// Dynamic shared memory of the block, 16-byte aligned.
KVTIER_DEVICE void* SharedMemory() {
  extern __shared__ uint4 kvtier_shared_memory[];
  return kvtier_shared_memory;
}

// A maximum does not depend on its order, so results stay repeatable.
KVTIER_DEVICE void AtomicMax(uint32_t* to, uint32_t value) { atomicMax(to, value); }

// The error is this launch's own: one that an earlier call of this thread left behind is not read.
template <typename Params>
DeviceError LaunchKernel(void (*kernel)(Params), Grid grid, int threads, size_t shared_bytes,
                         DeviceStream stream, const Params& params) {
  if (!grid.Fits()) return kInvalidConfiguration;
  if (grid.Empty()) return 0;
  if (shared_bytes > kDefaultSharedBytes) {
    const DeviceError error = AllowLargestSharedMemory(reinterpret_cast<const void*>(kernel));
    if (error != 0) return error;
  }
  const dim3 blocks(static_cast<unsigned>(grid.x), static_cast<unsigned>(grid.y),
                    static_cast<unsigned>(grid.z));
  void* arguments[] = {const_cast<Params*>(&params)};
  const cudaError_t error =
      cudaLaunchKernel(kernel, blocks, dim3(static_cast<unsigned>(threads)), arguments,
                       shared_bytes, static_cast<cudaStream_t>(stream));
  if (error != cudaSuccess) cudaGetLastError();  // Read, so that no later call reports it.
  return error;
}

#else

inline int ThreadIndex() { return host_simt::Current().thread; }
inline int ThreadCount() { return host_simt::Current().threads; }
inline int BlockX() { return host_simt::Current().block[0]; }
inline int BlockY() { return host_simt::Current().block[1]; }
inline int BlockZ() { return host_simt::Current().block[2]; }
inline int GridX() { return host_simt::Current().grid[0]; }
inline int GridY() { return host_simt::Current().grid[1]; }
inline int GridZ() { return host_simt::Current().grid[2]; }
inline void BlockSync() { host_simt::BlockBarrier(); }
template <typename T>
T ShuffleXor(T value, int mask) {
  T lanes[kWarpThreads];
  host_simt::WarpExchange(&value, sizeof(T), lanes);
  return lanes[(host_simt::Current().thread ^ mask) % kWarpThreads];
}
inline void* SharedMemory() { return host_simt::Current().shared; }
inline void AtomicMax(uint32_t* to, uint32_t value) {
  if (value > *to) *to = value;  // Threads of a launch share one thread of the CPU.
}

template <typename Params>
DeviceError LaunchKernel(void (*kernel)(Params), Grid grid, int threads, size_t shared_bytes,
                         DeviceStream /*stream*/, const Params& params) {
  if (!grid.Fits()) return kInvalidConfiguration;
  const int blocks[3] = {static_cast<int>(grid.x), static_cast<int>(grid.y),
                         static_cast<int>(grid.z)};
  if (host_simt::Recording* const recording = host_simt::CurrentRecording()) {
    recording->push_back(
        [=] { return host_simt::Run(blocks, threads, shared_bytes, [&] { kernel(params); }); });
    return 0;
  }
  return host_simt::Run(blocks, threads, shared_bytes, [&] { kernel(params); });
}

#endif

}  // namespace kvtier

#endif  // KVTIER_CUDA_SIMT_H_
