// SPDX-License-Identifier: Apache-2.0
#include "cuda_runtime.h"

#include <sys/mman.h>
#include <ucontext.h>

#include <array>
#include <cstdio>
#include <cstdlib>
#include <memory>

dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace cuda_emulation {
namespace {

constexpr size_t kStackBytes = 256 * 1024;
// How large a context is told that its stack is: its upper end. It grows on into the rest, which nobody checks. At
// every switch AddressSanitizer clears its shadow of what a context was told of; for all of it that took most of the
// time.
constexpr size_t kSaidBytes = 4096;
constexpr unsigned kMaxThreads = 1024;
constexpr size_t kMaxShared = 48 * 1024;

enum class State { kReady, kAtBlock, kAtWarp, kDone };

struct Fiber {
  ucontext_t context;
  State state;
  bool exists;  // begun once, then used again for every block
};

struct Block {
  std::array<Fiber, kMaxThreads> fibers;
  std::array<std::array<uint64_t, 32>, kMaxThreads / 32> slots;
  unsigned char* shared;  // of just the size that the launch asked for, so that a sanitizer sees what lies beyond
  size_t shared_bytes;
  ucontext_t scheduler;
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

void pause(State state) {
  Fiber& fiber = block().fibers[block().running];
  fiber.state = state;
  swapcontext(&fiber.context, &block().scheduler);
}

void body() {
  for (;;) {
    (*block().kernel)();
    pause(State::kDone);
  }
}

void resume(unsigned thread) {
  block().running = thread;
  threadIdx = dim3(thread);
  swapcontext(&block().scheduler, &block().fibers[thread].context);
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
  getcontext(&fiber.context);
  fiber.context.uc_stack.ss_sp = stack_of(thread) + kStackBytes - kSaidBytes;
  fiber.context.uc_stack.ss_size = kSaidBytes;
  fiber.context.uc_link = nullptr;
  makecontext(&fiber.context, body, 0);
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
