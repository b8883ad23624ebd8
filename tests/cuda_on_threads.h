// Runs CUDA kernels on the host: a block is kThreads threads with barriers, and blocks run one after the other. For
// kernels whose only tools are threadIdx, blockIdx, gridDim, __shared__, __syncthreads, __shfl_xor_sync and
// grid.sync().

#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime_api.h>

#include <algorithm>
#include <barrier>
#include <cmath>
#include <memory>
#include <thread>
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

constexpr int kThreads = 256;

inline thread_local uint3 thread_index, block_index;
inline uint3 grid_size;
inline std::barrier<> block_barrier(kThreads);
inline std::vector<std::unique_ptr<std::barrier<>>> warp_barriers = [] {
  std::vector<std::unique_ptr<std::barrier<>>> barriers;
  for (int warp = 0; warp < kThreads / 32; ++warp) barriers.push_back(std::make_unique<std::barrier<>>(32));
  return barriers;
}();
inline double lanes[kThreads];
inline int launches = 0;

template <typename Kernel, typename Table>
void launch(unsigned blocks, Kernel kernel, const Table& table) {
  ++launches;
  grid_size.x = blocks;
  std::vector<std::thread> threads;
  for (int thread = 0; thread < kThreads; ++thread) {
    threads.emplace_back([&, thread] {
      thread_index.x = thread;
      for (unsigned block = 0; block < blocks; ++block) {
        block_index.x = block;
        kernel(table);
        block_barrier.arrive_and_wait();
      }
    });
  }
  for (auto& thread : threads) thread.join();
}

}  // namespace on_threads

#define threadIdx on_threads::thread_index
#define blockIdx on_threads::block_index
#define gridDim on_threads::grid_size

inline void __syncthreads() {
  on_threads::block_barrier.arrive_and_wait();
}

template <typename T>
T __shfl_xor_sync(unsigned, T value, int mask) {
  auto& warp = *on_threads::warp_barriers[threadIdx.x / 32];
  on_threads::lanes[threadIdx.x] = value;
  warp.arrive_and_wait();
  const T other = static_cast<T>(on_threads::lanes[threadIdx.x ^ mask]);
  warp.arrive_and_wait();
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
