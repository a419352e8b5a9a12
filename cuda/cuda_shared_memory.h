// Lets a kernel use all the shared memory that the device gives a block on request.
#ifndef KVTIER_CUDA_CUDA_SHARED_MEMORY_H_
#define KVTIER_CUDA_CUDA_SHARED_MEMORY_H_

namespace kvtier {

// Raises the limit of `kernel` on this thread's device to the device's largest, once per kernel and
// device. The limit belongs to the function, not to a launch: one that followed the launches would
// let a small one lower it under a larger one of another thread. It is a permission only and costs
// no launch anything.
// Returns a cudaError_t; 0 is none. Thread-safe.
int AllowLargestSharedMemory(const void* kernel);

}  // namespace kvtier

#endif  // KVTIER_CUDA_CUDA_SHARED_MEMORY_H_
