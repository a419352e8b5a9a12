// A second stack to run a function on, and the way there and back: what the emulator makes a thread
// of. Tens of nanoseconds a switch on x86-64, where nothing but the registers that a call keeps is
// saved; elsewhere POSIX contexts, which also ask the kernel for the signal mask.
//
// Not thread-safe: a fibre is started and entered by one thread of the CPU.
#ifndef KVTIER_CUDA_EMULATED_FIBRE_H_
#define KVTIER_CUDA_EMULATED_FIBRE_H_

#include <memory>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace kvtier {

class Fibre {
 public:
  // `entry` runs at the first Resume() after Start(). It never returns: it ends with Suspend().
  using Entry = void (*)();

  // Forgets where the fibre was. Objects on its stack are not destroyed.
  void Start(Entry entry);
  // Runs the fibre until it suspends. REQUIRES: started, not running.
  void Resume();
  // Back to whoever resumed. REQUIRES: this fibre is running.
  void Suspend();

 private:
  std::unique_ptr<char[]> stack_;
#if defined(__x86_64__)
  void* inside_ = nullptr;  // Stack pointers, of whichever side is not running.
  void* outside_ = nullptr;
#else
  ucontext_t inside_;
  ucontext_t outside_;
#endif
};

}  // namespace kvtier

#endif  // KVTIER_CUDA_EMULATED_FIBRE_H_
