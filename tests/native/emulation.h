// An emulation of what csrc/cuda/kernels.cu needs of CUDA, on the CPU: for tests without a GPU, and with sanitizers.
//
// Blocks run one after the other. The threads of a block are fibers. Each of them runs up to the next barrier before
// the next one runs. So if a barrier is missing, a thread reads what another one has not written yet. A schedule is an
// order of blocks and threads and a size of the grid; a kernel must give the same bits under all schedules.
#pragma once

#include <ucontext.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <stdexcept>
#include <utility>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

#define __global__
#define __device__
#define __forceinline__ inline
#define __grid_constant__
#define __launch_bounds__(...)

struct dim3 {
  unsigned x = 1;
  explicit dim3(unsigned x = 1) : x(x) {}
};
inline dim3 blockIdx, blockDim, gridDim, threadIdx;

namespace emulation {

struct Schedule {
  bool blocks_reversed = false, threads_reversed = false;
  unsigned largest_grid = ~0u;
};
inline Schedule schedule;
inline int devices = 2, current_device = 0;
inline bool launches_fail = false;

struct Fiber {
  static constexpr size_t stack_bytes = 512 * 1024;
  ucontext_t context;
  std::unique_ptr<char[]> stack{new char[stack_bytes]};
  unsigned thread = 0;
  size_t votes_given = 0;
  bool done = false;
};

// The block that is running. Its fibers return to the scheduler at each barrier.
struct Block {
  std::vector<Fiber> fibers;
  ucontext_t scheduler;
  Fiber* running = nullptr;
  unsigned char* shared = nullptr;
  void (*body)(void*) = nullptr;
  void* argument = nullptr;
  const void* scheduler_stack = nullptr;
  size_t scheduler_stack_bytes = 0;
  std::vector<int> votes;  // one for each barrier with a vote that a thread has reached
};
inline Block block;

// The address sanitizer must be informed of a change of stacks.
inline void enter(void** own, const void* stack, size_t bytes) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(own, stack, bytes);
#else
  static_cast<void>(own), static_cast<void>(stack), static_cast<void>(bytes);
#endif
}
inline void entered(void* own, const void** from, size_t* bytes) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(own, from, bytes);
#else
  static_cast<void>(own), static_cast<void>(from), static_cast<void>(bytes);
#endif
}

inline void leave(Fiber& fiber, bool for_good) {
  void* own = nullptr;
  enter(for_good ? nullptr : &own, block.scheduler_stack, block.scheduler_stack_bytes);
  swapcontext(&fiber.context, &block.scheduler);
  entered(own, &block.scheduler_stack, &block.scheduler_stack_bytes);
}

inline void run_fiber() {
  entered(nullptr, &block.scheduler_stack, &block.scheduler_stack_bytes);
  Fiber& fiber = *block.running;
  block.body(block.argument);
  fiber.done = true;
  leave(fiber, true);
}

inline void run_block(unsigned threads) {
  while (block.fibers.size() < threads) block.fibers.emplace_back();
  block.votes.clear();
  for (unsigned i = 0; i < threads; ++i) {
    Fiber& fiber = block.fibers[i];
    fiber.thread = i;
    fiber.done = false;
    fiber.votes_given = 0;
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.get();
    fiber.context.uc_stack.ss_size = Fiber::stack_bytes;
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, run_fiber, 0);
  }
  for (size_t left = threads; left > 0;) {
    size_t ended = 0;
    for (unsigned i = 0; i < threads; ++i) {
      Fiber& fiber = block.fibers[schedule.threads_reversed ? threads - 1 - i : i];
      block.running = &fiber;
      threadIdx.x = fiber.thread;
      void* own = nullptr;
      enter(&own, fiber.stack.get(), Fiber::stack_bytes);
      swapcontext(&block.scheduler, &fiber.context);
      entered(own, nullptr, nullptr);
      ended += fiber.done;
    }
    // Either all threads have reached the same barrier, or all have ended.
    if (ended != 0 && ended != left) throw std::logic_error("some threads wait at a barrier that others never reach");
    left -= ended;
  }
}

}  // namespace emulation

inline void __syncthreads() {
  unsigned own = threadIdx.x;
  emulation::leave(*emulation::block.running, false);
  threadIdx.x = own;
}

inline int __syncthreads_and(int vote) {
  emulation::Block& block = emulation::block;
  size_t own = block.running->votes_given++;
  if (own == block.votes.size()) block.votes.push_back(1);
  block.votes[own] = block.votes[own] && vote;
  __syncthreads();
  return block.votes[own];
}

inline unsigned char* shared_memory() {
  return emulation::block.shared;
}

using cudaStream_t = void*;
enum cudaError_t { cudaSuccess, cudaErrorInvalidConfiguration = 9, cudaErrorInvalidDevice = 101 };
inline cudaError_t cudaGetLastError() {
  return cudaSuccess;
}
inline const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaErrorInvalidDevice ? "invalid device ordinal" : "invalid configuration argument";
}
inline cudaError_t cudaGetDevice(int* device) {
  *device = emulation::current_device;
  return cudaSuccess;
}
inline cudaError_t cudaSetDevice(int device) {
  if (device < 0 || device >= emulation::devices) return cudaErrorInvalidDevice;
  emulation::current_device = device;
  return cudaSuccess;
}

// The shared memory that a block may have, without and with cudaFuncSetAttribute: the least of all supported GPUs.
namespace emulation {
constexpr size_t shared_bytes = 48 * 1024, most_shared_bytes = 99 * 1024;
inline std::map<void (*)(), size_t> asked;
}  // namespace emulation

enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize = 8 };
template <class... Parameters>
cudaError_t cudaFuncSetAttribute(void (*kernel)(Parameters...), cudaFuncAttribute, int bytes) {
  using namespace emulation;
  if (bytes < 0 || static_cast<size_t>(bytes) > most_shared_bytes) return cudaErrorInvalidConfiguration;
  asked[reinterpret_cast<void (*)()>(kernel)] = static_cast<size_t>(bytes);
  return cudaSuccess;
}

template <class... Parameters, size_t... indices>
void emulate_thread(void (*kernel)(Parameters...), void** arguments, std::index_sequence<indices...>) {
  kernel(*static_cast<Parameters*>(arguments[indices])...);
}

template <class... Parameters>
cudaError_t cudaLaunchKernel(void (*kernel)(Parameters...), dim3 grid, dim3 threads, void** arguments, size_t bytes,
                             cudaStream_t) {
  using namespace emulation;
  auto own = asked.find(reinterpret_cast<void (*)()>(kernel));
  size_t allowed = own == asked.end() ? shared_bytes : own->second;
  if (launches_fail || grid.x == 0 || threads.x == 0 || threads.x > 1024 || bytes > allowed)
    return cudaErrorInvalidConfiguration;
  gridDim.x = std::min(grid.x, schedule.largest_grid);
  blockDim = threads;
  auto body = [&] { emulate_thread(kernel, arguments, std::index_sequence_for<Parameters...>()); };
  block.argument = &body;
  block.body = [](void* argument) { (*static_cast<decltype(body)*>(argument))(); };
  for (unsigned i = 0; i < gridDim.x; ++i) {
    blockIdx.x = schedule.blocks_reversed ? gridDim.x - 1 - i : i;
    // Of the exact size, and without what the last block left in it: bytes of 0xff make NaN.
    std::unique_ptr<unsigned char, decltype(&std::free)> shared(static_cast<unsigned char*>(std::malloc(bytes)),
                                                                std::free);
    std::memset(shared.get(), 0xff, bytes);
    block.shared = shared.get();
    run_block(threads.x);
  }
  return cudaSuccess;
}
