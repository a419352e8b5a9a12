#include "cuda/emulated/fibre.h"

#include <cstddef>
#include <cstdint>

namespace kvtier {
namespace {

constexpr size_t kStackBytes = 128 * 1024;

}  // namespace

#if defined(__x86_64__)

// Saves the registers that the System V calling convention keeps across calls, and the stack
// pointer to *save; then loads those of the other side.
extern "C" void kvtier_fibre_switch(void** save, void* load);
asm(R"(
.text
.type kvtier_fibre_switch, @function
kvtier_fibre_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size kvtier_fibre_switch, .-kvtier_fibre_switch
)");

void Fibre::Start(Entry entry) {
  if (stack_ == nullptr) stack_.reset(new char[kStackBytes]);
  // A function finds its stack pointer 8 past a multiple of 16, as if a call had pushed a return
  // address; below it the entry, to which the switch returns, and six registers.
  const auto end = reinterpret_cast<uintptr_t>(stack_.get() + kStackBytes) / 16 * 16;
  auto* top = reinterpret_cast<void**>(end);
  *--top = nullptr;
  *--top = reinterpret_cast<void*>(entry);
  for (int i = 0; i < 6; ++i) *--top = nullptr;
  inside_ = top;
}

void Fibre::Resume() { kvtier_fibre_switch(&outside_, inside_); }
void Fibre::Suspend() { kvtier_fibre_switch(&inside_, outside_); }

#else

void Fibre::Start(Entry entry) {
  if (stack_ == nullptr) stack_.reset(new char[kStackBytes]);
  getcontext(&inside_);
  inside_.uc_stack.ss_sp = stack_.get();
  inside_.uc_stack.ss_size = kStackBytes;
  inside_.uc_link = nullptr;
  makecontext(&inside_, entry, 0);
}

void Fibre::Resume() { swapcontext(&outside_, &inside_); }
void Fibre::Suspend() { swapcontext(&inside_, &outside_); }

#endif

}  // namespace kvtier
