// SPDX-License-Identifier: Apache-2.0
#include "cuda_runtime.h"

#include <sys/mman.h>

#include <array>
#include <cstdio>
#include <cstdlib>
#include <memory>
#if !defined(__SANITIZE_ADDRESS__) && defined(__has_feature)
#if __has_feature(address_sanitizer)  // Clang's way to say it
#define __SANITIZE_ADDRESS__ 1
#endif
#endif
#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/common_interface_defs.h>
#endif

// A context is a stack that runs `body`, which never returns, from one switch to the next.
#ifdef __x86_64__
// What a function must leave as it was is pushed, and the other stack's is popped. ucontext also asks the system for
// the signal mask at every switch, and AddressSanitizer for more: tests/ops/test_kernel_paths.py took 1.6 times as
// long.
extern "C" void fastpose_switch_stack(void** from, void* to);
asm(R"(
.pushsection .text
.type fastpose_switch_stack, @function
fastpose_switch_stack:
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
.size fastpose_switch_stack, . - fastpose_switch_stack
.popsection
)");

struct Context {
  void* stack_pointer;
};

static void make_context(Context& context, char* end_of_stack, size_t, void (*body)()) {
  void** top = reinterpret_cast<void**>(end_of_stack);  // a multiple of 16, as it is where a function is called
  *--top = nullptr;                                     // where body would return to
  *--top = reinterpret_cast<void*>(body);
  for (int saved = 0; saved < 6; ++saved) *--top = nullptr;
  context.stack_pointer = top;
}

static void switch_stack(Context& from, Context& to) { fastpose_switch_stack(&from.stack_pointer, to.stack_pointer); }
#else
#include <ucontext.h>

using Context = ucontext_t;

static void make_context(Context& context, char* end_of_stack, size_t bytes, void (*body)()) {
  getcontext(&context);
  context.uc_stack.ss_sp = end_of_stack - bytes;
  context.uc_stack.ss_size = bytes;
  context.uc_link = nullptr;
  makecontext(&context, body, 0);
}

static void switch_stack(Context& from, Context& to) { swapcontext(&from, &to); }
#endif

dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace cuda_emulation {
namespace {

constexpr size_t kStackBytes = 256 * 1024;
// How large AddressSanitizer is told that a stack is: its upper end. It grows on into the rest, which nobody checks.
// With ucontext its shadow is cleared of what it was told of at every switch.
constexpr size_t kSaidBytes = 4096;
constexpr unsigned kMaxThreads = 1024;
constexpr size_t kMaxShared = 48 * 1024;

enum class State { kReady, kAtBlock, kAtWarp, kDone };

// As AddressSanitizer knows it, which must be told of every switch.
struct Stack {
  const void* begin;
  size_t bytes;
};

struct Fiber {
  Context context;
  State state;
  bool exists;  // begun once, then used again for every block
};

struct Block {
  std::array<Fiber, kMaxThreads> fibers;
  std::array<std::array<uint64_t, 32>, kMaxThreads / 32> slots;
  unsigned char* shared;  // of just the size that the launch asked for, so that a sanitizer sees what lies beyond
  size_t shared_bytes;
  Context scheduler;
  Stack scheduler_stack;
  unsigned running;
  const std::function<void()>* kernel;
};

Block& block() {
  static Block instance;
  return instance;
}

char* stack_of(unsigned thread) {
  static char* const stacks = static_cast<char*>(mmap(nullptr, kStackBytes * kMaxThreads, PROT_READ | PROT_WRITE,
                                                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
  return stacks + kStackBytes * thread;
}

[[noreturn]] void die(const char* what) {
  std::fprintf(stderr, "CUDA emulation: %s, block %u, thread %u\n", what, blockIdx.x, block().running);
  std::abort();
}

// Where a switch ends; returns the stack that it began on.
Stack arrive([[maybe_unused]] void* own) {
  Stack before{};
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_finish_switch_fiber(own, &before.begin, &before.bytes);
#endif
  return before;
}

// Returns, once something switches back, the stack that it did that from.
Stack switch_context(Context& from, Context& to, [[maybe_unused]] const Stack& stack) {
  void* own = nullptr;
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_start_switch_fiber(&own, stack.begin, stack.bytes);
#endif
  switch_stack(from, to);
  return arrive(own);
}

void pause(State state) {
  Fiber& fiber = block().fibers[block().running];
  fiber.state = state;
  block().scheduler_stack = switch_context(fiber.context, block().scheduler, block().scheduler_stack);
}

void body() {
  block().scheduler_stack = arrive(nullptr);
  for (;;) {
    (*block().kernel)();
    pause(State::kDone);
  }
}

void resume(unsigned thread) {
  block().running = thread;
  threadIdx = dim3(thread);
  const Stack stack{stack_of(thread) + kStackBytes - kSaidBytes, kSaidBytes};
  switch_context(block().scheduler, block().fibers[thread].context, stack);
}

bool all(unsigned begin, unsigned end, State state) {
  for (unsigned t = begin; t < end; ++t)
    if (block().fibers[t].state != state) return false;
  return true;
}

// Lets whoever has reached a common barrier go on. A lane that has ended never reaches its warp's: that hangs a GPU.
bool release(unsigned threads) {
  bool any = false;
  for (unsigned begin = 0; begin < threads; begin += 32) {
    if (!all(begin, begin + 32, State::kAtWarp)) continue;
    for (unsigned t = begin; t < begin + 32; ++t) block().fibers[t].state = State::kReady;
    any = true;
  }
  if (any) return true;
  for (unsigned t = 0; t < threads; ++t)
    if (block().fibers[t].state != State::kAtBlock && block().fibers[t].state != State::kDone) return false;
  for (unsigned t = 0; t < threads; ++t) {
    if (block().fibers[t].state != State::kAtBlock) continue;
    block().fibers[t].state = State::kReady;
    any = true;
  }
  return any;
}

void begin(unsigned thread) {
  Fiber& fiber = block().fibers[thread];
  fiber.state = State::kReady;
  if (fiber.exists) return;
  fiber.exists = true;
  make_context(fiber.context, stack_of(thread) + kStackBytes, kSaidBytes, body);
}

void run_block(unsigned threads) {
  for (unsigned t = 0; t < threads; ++t) begin(t);
  // What a block finds in shared memory is never what it hoped for, and every second block runs its threads backwards:
  // a missing barrier or an uninitialised read then shows as a wrong result.
  std::memset(block().shared, 0xa5, block().shared_bytes);
  const bool backwards = blockIdx.x % 2 == 1;
  do {
    for (unsigned i = 0; i < threads; ++i) {
      const unsigned t = backwards ? threads - 1 - i : i;
      if (block().fibers[t].state == State::kReady) resume(t);
    }
    if (all(0, threads, State::kDone)) return;
  } while (release(threads));
  die("threads wait at different barriers, or for a thread that has ended");
}

}  // namespace

cudaError_t run(const cudaLaunchConfig_t& config, const std::function<void()>& kernel) {
  static std::mutex one_launch_at_a_time;
  const std::lock_guard<std::mutex> lock(one_launch_at_a_time);
  const unsigned threads = config.blockDim.x;
  if (threads == 0 || threads > kMaxThreads || threads % 32 != 0 || config.gridDim.x == 0 ||
      config.gridDim.x > 0x7fffffffu || config.dynamicSmemBytes > kMaxShared) {
    return cudaErrorInvalidConfiguration;
  }
  const std::unique_ptr<unsigned char[]> shared(new unsigned char[config.dynamicSmemBytes]);
  block().shared = shared.get();
  block().shared_bytes = config.dynamicSmemBytes;
  block().kernel = &kernel;
  blockDim = config.blockDim;
  gridDim = config.gridDim;
  for (unsigned b = 0; b < config.gridDim.x; ++b) {
    blockIdx = dim3(b);
    run_block(threads);
  }
  return cudaSuccess;
}

void* dynamic_shared() { return block().shared; }
void wait_for_block() { pause(State::kAtBlock); }
void wait_for_warp() { pause(State::kAtWarp); }
uint64_t& shuffle_slot(unsigned lane) { return block().slots[block().running / 32][lane]; }

}  // namespace cuda_emulation
