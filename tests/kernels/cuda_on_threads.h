// Runs CUDA kernels on the host: the kThreads threads of a block take turns between its barriers, and blocks run one
// after the other. For kernels whose only tools are threadIdx, blockIdx, gridDim, __shared__, __syncthreads,
// __shfl_xor_sync and grid.sync().

#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime_api.h>
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <vector>

#undef __global__
#undef __device__
#undef __forceinline__
#undef __launch_bounds__
#undef __grid_constant__
#undef __shared__
#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__
#define __shared__ static

using std::max;
using std::min;

namespace on_threads {

constexpr int kThreads = 256, kWarp = 32, kStackBytes = 1 << 16;

enum class Waits { for_its_warp, for_its_block, for_ever };

// A thread of the block: a stack of its own, and what its next barrier waits for.
struct Fiber {
  ucontext_t context;
  Waits waits;
  std::vector<char> stack = std::vector<char>(kStackBytes);
};

inline uint3 thread_index, block_index, grid_size;
inline std::vector<Fiber> fibers(kThreads);
inline ucontext_t scheduler;
inline std::function<void()> body;
inline double lanes[kThreads];
inline int launches = 0;

inline void wait(Waits what) {
  Fiber& fiber = fibers[thread_index.x];
  fiber.waits = what;
  swapcontext(&fiber.context, &scheduler);
}

inline void run_fiber() {
  body();
  wait(Waits::for_ever);
}

inline bool all_wait(int from, int to, Waits what) {
  return std::all_of(&fibers[from], &fibers[from] + (to - from), [=](const Fiber& f) { return f.waits == what; });
}

// The warp's threads, each as far as it can before the next begins, until they wait for other warps or have ended.
inline void run_warp(int first, bool forwards) {
  do {
    for (int turn = 0; turn < kWarp; ++turn) {
      thread_index.x = first + (forwards ? turn : kWarp - 1 - turn);
      swapcontext(&scheduler, &fibers[thread_index.x].context);
    }
  } while (all_wait(first, first + kWarp, Waits::for_its_warp));
}

template <typename Kernel, typename Table>
void launch(unsigned blocks, Kernel kernel, const Table& table) {
  ++launches;
  grid_size.x = blocks;
  body = [&] { kernel(table); };
  for (unsigned block = 0; block < blocks; ++block) {
    block_index.x = block;
    for (Fiber& fiber : fibers) {
      getcontext(&fiber.context);
      fiber.context.uc_stack.ss_sp = fiber.stack.data();
      fiber.context.uc_stack.ss_size = fiber.stack.size();
      makecontext(&fiber.context, run_fiber, 0);
    }
    // Each warp runs as far as it can before the next begins, in this order or the other one: what lacks a barrier
    // reads what is not there yet, or no longer. A barrier that some threads do not reach ends the process.
    bool forwards = true;
    do {
      for (int turn = 0; turn < kThreads; turn += kWarp) {
        run_warp(forwards ? turn : kThreads - kWarp - turn, forwards);
      }
      forwards = !forwards;
    } while (all_wait(0, kThreads, Waits::for_its_block));
    if (!all_wait(0, kThreads, Waits::for_ever)) {
      std::fputs("some threads wait at a barrier that others never reach\n", stderr);
      std::abort();
    }
  }
}

}  // namespace on_threads

#define threadIdx on_threads::thread_index
#define blockIdx on_threads::block_index
#define gridDim on_threads::grid_size

inline void __syncthreads() {
  on_threads::wait(on_threads::Waits::for_its_block);
}

template <typename T>
T __shfl_xor_sync(unsigned, T value, int mask) {
  on_threads::lanes[threadIdx.x] = value;
  on_threads::wait(on_threads::Waits::for_its_warp);
  const T other = static_cast<T>(on_threads::lanes[threadIdx.x ^ mask]);
  on_threads::wait(on_threads::Waits::for_its_warp);
  return other;
}

namespace cooperative_groups {

struct Grid {
  void sync() const { __syncthreads(); }
};
inline Grid this_grid() {
  return {};
}

}  // namespace cooperative_groups

// A device with one multiprocessor that holds one block: cooperative grids then have one block.
namespace on_threads {
inline cudaError_t answer(int* value, int with) {
  *value = with;
  return cudaSuccess;
}
}  // namespace on_threads
#define cudaGetDevice(device) on_threads::answer(device, 0)
#define cudaDeviceGetAttribute(value, ...) on_threads::answer(value, 1)
#define cudaOccupancyMaxActiveBlocksPerMultiprocessor(value, ...) on_threads::answer(value, 1)
#define cudaGetLastError() cudaSuccess
