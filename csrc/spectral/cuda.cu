#include <cooperative_groups.h>

#include <algorithm>

#include "../common/cuda_convert.h"
#include "cuda.h"

namespace gnfast::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr int kBlocksPerMultiprocessor = 4;  // leaves 64 registers to a thread
constexpr int kVectorsPerThread = 4;         // loads in flight per thread in the elementwise kernels
constexpr int kPairsPerThread = 2;           // as many, of two tensors
constexpr uint32_t kFlatElements = 16384;
constexpr unsigned kFullWarp = 0xffffffffu;

template <typename T>
constexpr int kVectorSize = 16 / sizeof(T);

// Layers of one launch; blocks [first[i], first[i + 1]) of the grid's work belong to layer i.
template <typename Layer>
struct Table {
  Layer layers[kMaxLayers];
  uint32_t first[kMaxLayers + 1];
  int count;
};

__device__ __forceinline__ int layer_of(const uint32_t* first, int count, uint32_t block) {
  int layer = 0;
  while (layer + 1 < count && block >= first[layer + 1]) ++layer;
  return layer;
}

__device__ __forceinline__ uint32_t column(const MatrixLayout& layout, uint32_t position) {
  return layout.minor == 1 ? position : position % layout.minor * layout.major + position / layout.minor;
}

// Offset of the entry in row 0 at a position along the columns; the rows below it follow at distance `inner`.
__device__ __forceinline__ uint32_t offset(const MatrixLayout& layout, uint32_t position) {
  if (layout.outer == 1) return position;
  return position / layout.inner * layout.rows * layout.inner + position % layout.inner;
}

// A NaN stays one: fmax would drop it.
__device__ __forceinline__ double at_least(double value, double bound) {
  return value < bound ? bound : value;
}

// The sum over the block's threads, in a fixed order, to all of them.
__device__ __forceinline__ double block_sum(double value) {
  __shared__ double warp_sums[kWarps];
#pragma unroll
  for (int step = 16; step > 0; step /= 2) value += __shfl_xor_sync(kFullWarp, value, step);
  __syncthreads();
  if (threadIdx.x % 32 == 0) warp_sums[threadIdx.x / 32] = value;
  __syncthreads();
  double total = 0;
#pragma unroll
  for (int warp = 0; warp < kWarps; ++warp) total += warp_sums[warp];
  return total;
}

// The loops over flat memory: each thread has kVectorsPerThread vectors in flight, kThreads vectors apart.
template <int kSize>
__device__ __forceinline__ uint32_t element(uint32_t start, int j) {
  return start + (j * kThreads + threadIdx.x) * kSize;
}

template <typename T, typename Acc>
struct IterationView {
  const IterationLayer& layer;
  __device__ explicit IterationView(const IterationLayer& layer) : layer(layer) {}
  __device__ const T* weight() const { return static_cast<const T*>(layer.weight); }
  __device__ T* u() const { return static_cast<T*>(layer.u); }
  __device__ T* v() const { return static_cast<T*>(layer.v); }
  __device__ Acc* used_u() const { return static_cast<Acc*>(layer.vectors); }
  __device__ Acc* used_v() const { return used_u() + layer.layout.rows; }
  __device__ Acc* wv() const { return static_cast<Acc*>(layer.workspace); }
  __device__ Acc* partials() const { return wv() + layer.layout.rows; }
};

// Wv for kBlockRows rows and, if iterating, their share of Wᵀ(Wv): the norm of Wv divides both once it is known. The
// second pass over the rows finds them in the cache. kSize > 1 takes rows that are contiguous and aligned.
template <typename T, typename Acc, int kSize>
__device__ __forceinline__ void products(const IterationLayer& layer, uint32_t block, bool first_round) {
  using Vec = Vector<T, kSize>;
  const IterationView<T, Acc> view(layer);
  const MatrixLayout& layout = layer.layout;
  const uint32_t begin = block * kBlockRows;
  const uint32_t count = min(layout.rows - begin, static_cast<uint32_t>(kBlockRows));
  const T* const rows = view.weight() + begin * layout.inner;

  __shared__ Acc warp_sums[kWarps][kBlockRows];
  __shared__ Acc block_wv[kBlockRows];
  Acc sums[kBlockRows] = {};
  for (uint32_t p = threadIdx.x * kSize; p < layout.cols; p += kThreads * kSize) {
    Acc v[kSize];
#pragma unroll
    for (int k = 0; k < kSize; ++k) {
      const uint32_t c = column(layout, p + k);
      v[k] = first_round ? to_acc(view.v()[c]) : view.used_v()[c];
    }
    const T* const entry = rows + offset(layout, p);
#pragma unroll
    for (uint32_t r = 0; r < kBlockRows; ++r) {
      if (r >= count) continue;
      const Vec w = *reinterpret_cast<const Vec*>(entry + r * layout.inner);
#pragma unroll
      for (int k = 0; k < kSize; ++k) sums[r] += to_acc(w.lane[k]) * v[k];
    }
  }
#pragma unroll
  for (int r = 0; r < kBlockRows; ++r) {
#pragma unroll
    for (int step = 16; step > 0; step /= 2) sums[r] += __shfl_xor_sync(kFullWarp, sums[r], step);
    if (threadIdx.x % 32 == 0) warp_sums[threadIdx.x / 32][r] = sums[r];
  }
  __syncthreads();
  if (threadIdx.x < kBlockRows) {
    Acc total = 0;
#pragma unroll
    for (int warp = 0; warp < kWarps; ++warp) total += warp_sums[warp][threadIdx.x];
    block_wv[threadIdx.x] = total;
    if (threadIdx.x < count) view.wv()[begin + threadIdx.x] = total;
  }
  __syncthreads();
  if (layer.iterations == 0) return;

  Acc* const partial = view.partials() + block * layout.cols;
  for (uint32_t p = threadIdx.x * kSize; p < layout.cols; p += kThreads * kSize) {
    const T* const entry = rows + offset(layout, p);
    Acc total[kSize] = {};
#pragma unroll
    for (uint32_t r = 0; r < kBlockRows; ++r) {
      if (r >= count) continue;
      const Vec w = *reinterpret_cast<const Vec*>(entry + r * layout.inner);
#pragma unroll
      for (int k = 0; k < kSize; ++k) total[k] += to_acc(w.lane[k]) * block_wv[r];
    }
#pragma unroll
    for (int k = 0; k < kSize; ++k) partial[p + k] = total[k];
  }
}

// For kBlockColumns columns, one per lane: Wᵀu from the blocks' shares, in a fixed order, into the first share, and its
// squares; the first block of a layer also writes u. Without iterations: sigma, and u and v as they are.
template <typename T, typename Acc>
__device__ __forceinline__ void add_shares(const IterationLayer& layer, uint32_t block, bool last_round) {
  static_assert(kBlockColumns == 32);
  const IterationView<T, Acc> view(layer);
  const MatrixLayout& layout = layer.layout;
  const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const uint32_t p = block * kBlockColumns + lane;
  const bool iterating = layer.iterations > 0;
  double sum = 0;
  if (iterating || block == 0) {
    for (uint32_t r = threadIdx.x; r < layout.rows; r += kThreads) {
      const double wv = view.wv()[r];
      sum += wv * (iterating ? wv : static_cast<double>(to_acc(view.u()[r])));
    }
    sum = block_sum(sum);
  }
  if (!iterating) {
    if (warp == 0 && p < layout.cols) view.used_v()[p] = to_acc(view.v()[p]);
    if (block > 0) return;
    for (uint32_t r = threadIdx.x; r < layout.rows; r += kThreads) view.used_u()[r] = to_acc(view.u()[r]);
    if (threadIdx.x == 0) *static_cast<Acc*>(layer.sigma) = static_cast<Acc>(sum);
    return;
  }
  const double norm = at_least(sqrt(sum), layer.eps);
  // Each warp adds every kWarps-th share, several loads at a time, and the first warp adds up the warps.
  __shared__ Acc warp_sums[kWarps][kBlockColumns];
  const uint32_t shares = (layout.rows + kBlockRows - 1) / kBlockRows;
  Acc wtu = 0;
  if (p < layout.cols) {
#pragma unroll 8
    for (uint32_t share = warp; share < shares; share += kWarps) wtu += view.partials()[share * layout.cols + p];
  }
  warp_sums[warp][lane] = wtu;
  __syncthreads();
  if (warp == 0) {
#pragma unroll
    for (int other = 1; other < kWarps; ++other) wtu += warp_sums[other][lane];
    wtu *= static_cast<Acc>(1 / norm);
    if (p < layout.cols) view.partials()[p] = wtu;
    double squares = static_cast<double>(wtu) * wtu;
#pragma unroll
    for (int step = 16; step > 0; step /= 2) squares += __shfl_xor_sync(kFullWarp, squares, step);
    if (lane == 0) layer.squares[block] = squares;
  }
  // The next block that these threads work on writes the sums again.
  __syncthreads();
  if (block > 0) return;
  for (uint32_t r = threadIdx.x; r < layout.rows; r += kThreads) {
    const Acc u = static_cast<Acc>(view.wv()[r] / norm);
    view.used_u()[r] = u;
    if (last_round) view.u()[r] = from_acc<T>(u);
  }
}

// For kBlockColumns columns: v = Wᵀu / |Wᵀu|; the first block of a layer also writes sigma = (Wᵀu)ᵀv.
template <typename T, typename Acc>
__device__ __forceinline__ void normalize_v(const IterationLayer& layer, uint32_t block, bool last_round) {
  const IterationView<T, Acc> view(layer);
  const MatrixLayout& layout = layer.layout;
  const uint32_t parts = (layout.cols + kBlockColumns - 1) / kBlockColumns;
  double squares = 0;
  for (uint32_t part = threadIdx.x; part < parts; part += kThreads) squares += layer.squares[part];
  squares = block_sum(squares);
  const double norm = at_least(sqrt(squares), layer.eps);
  const uint32_t p = block * kBlockColumns + threadIdx.x;
  if (threadIdx.x < kBlockColumns && p < layout.cols) {
    const Acc v = view.partials()[p] * static_cast<Acc>(1 / norm);
    const uint32_t c = column(layout, p);
    view.used_v()[c] = v;
    if (last_round) view.v()[c] = from_acc<T>(v);
  }
  if (block == 0 && threadIdx.x == 0) *static_cast<Acc*>(layer.sigma) = static_cast<Acc>(squares / norm);
}

struct IterationTable : Table<IterationLayer> {
  uint32_t first_columns[kMaxLayers + 1];
  uint32_t vectorized;  // one bit per layer
  int rounds;
};

// Cooperative: every block runs at the same time and waits for the others between the steps. The work of each step is
// cut by the shapes alone, so results do not depend on the size of the grid. Float64 is left to the compiler's own
// choice of registers, which is within 64; told to aim for that, it spills.
template <typename T, typename Acc>
__global__ void __launch_bounds__(kThreads, sizeof(Acc) == 8 ? 0 : kBlocksPerMultiprocessor)
    spectral_iterate_kernel(const __grid_constant__ IterationTable table) {
  const auto grid = cooperative_groups::this_grid();
  const uint32_t row_work = table.first[table.count], column_work = table.first_columns[table.count];
  for (int round = 0; round < table.rounds; ++round) {
    for (uint32_t work = blockIdx.x; work < row_work; work += gridDim.x) {
      const int i = layer_of(table.first, table.count, work);
      const IterationLayer& layer = table.layers[i];
      if (round > 0 && round >= layer.iterations) continue;
      if (table.vectorized >> i & 1) {
        products<T, Acc, kVectorSize<T>>(layer, work - table.first[i], round == 0);
      } else {
        products<T, Acc, 1>(layer, work - table.first[i], round == 0);
      }
    }
    grid.sync();
    for (uint32_t work = blockIdx.x; work < column_work; work += gridDim.x) {
      const int i = layer_of(table.first_columns, table.count, work);
      const IterationLayer& layer = table.layers[i];
      if (round > 0 && round >= layer.iterations) continue;
      add_shares<T, Acc>(layer, work - table.first_columns[i], round + 1 == layer.iterations);
    }
    grid.sync();
    for (uint32_t work = blockIdx.x; work < column_work; work += gridDim.x) {
      const int i = layer_of(table.first_columns, table.count, work);
      const IterationLayer& layer = table.layers[i];
      if (round >= layer.iterations) continue;
      normalize_v<T, Acc>(layer, work - table.first_columns[i], round + 1 == layer.iterations);
    }
    if (round + 1 < table.rounds) grid.sync();
  }
}

template <typename T, typename Acc>
__global__ void __launch_bounds__(kThreads, kBlocksPerMultiprocessor)
    spectral_scale_kernel(const __grid_constant__ Table<ScaleLayer> table) {
  constexpr int kSize = kVectorSize<T>;
  // From the end: the iteration went through the weights from the start, and the cache holds the last ones.
  const uint32_t work = gridDim.x - 1 - blockIdx.x;
  const int i = layer_of(table.first, table.count, work);
  const ScaleLayer& layer = table.layers[i];
  const T* const from = static_cast<const T*>(layer.from);
  T* const to = static_cast<T*>(layer.to);
  const Acc factor = static_cast<Acc>(layer.coeff) / *static_cast<const Acc*>(layer.sigma);
  const bool aligned = aligned_to_16_bytes(from, to);
  const uint32_t begin = (work - table.first[i]) * kFlatElements;
  const uint32_t end = min(begin + kFlatElements, layer.size);
  for (uint32_t start = begin; start < end; start += kThreads * kSize * kVectorsPerThread) {
    Vector<T, kSize> values[kVectorsPerThread];
#pragma unroll
    for (int j = 0; j < kVectorsPerThread; ++j) {
      values[j] = load<kSize>(from, element<kSize>(start, j), end, aligned);
    }
#pragma unroll
    for (int j = 0; j < kVectorsPerThread; ++j) {
#pragma unroll
      for (int k = 0; k < kSize; ++k) values[j].lane[k] = from_acc<T>(to_acc(values[j].lane[k]) * factor);
      store(to, element<kSize>(start, j), end, values[j], aligned);
    }
  }
}

// One block's share of <G, W>.
template <typename T, typename Acc>
__global__ void __launch_bounds__(kThreads, kBlocksPerMultiprocessor)
    spectral_product_kernel(const __grid_constant__ Table<BackwardLayer> table) {
  constexpr int kSize = kVectorSize<T>;
  const int i = layer_of(table.first, table.count, blockIdx.x);
  const BackwardLayer& layer = table.layers[i];
  const T* const grad = static_cast<const T*>(layer.grad);
  const T* const weight = static_cast<const T*>(layer.weight);
  const bool aligned = aligned_to_16_bytes(grad, weight);
  const uint32_t block = blockIdx.x - table.first[i];
  const uint32_t begin = block * kFlatElements;
  const uint32_t end = min(begin + kFlatElements, layer.layout.rows * layer.layout.cols);
  Acc sum = 0;
  for (uint32_t start = begin; start < end; start += kThreads * kSize * kPairsPerThread) {
    Vector<T, kSize> g[kPairsPerThread], w[kPairsPerThread];
#pragma unroll
    for (int j = 0; j < kPairsPerThread; ++j) {
      g[j] = load<kSize>(grad, element<kSize>(start, j), end, aligned);
      w[j] = load<kSize>(weight, element<kSize>(start, j), end, aligned);
    }
#pragma unroll
    for (int j = 0; j < kPairsPerThread; ++j) {
#pragma unroll
      for (int k = 0; k < kSize; ++k) sum += to_acc(g[j].lane[k]) * to_acc(w[j].lane[k]);
    }
  }
  const double total = block_sum(sum);
  if (threadIdx.x == 0) layer.products[block] = total;
}

// result = factor * grad - amount * u vᵀ for elements [begin, end), whose vectors of kSize lie within a row each.
template <typename T, typename Acc, int kSize>
__device__ __forceinline__ void project(const BackwardLayer& layer, uint32_t begin, uint32_t end, Acc factor,
                                        Acc amount) {
  const MatrixLayout& layout = layer.layout;
  const T* const grad = static_cast<const T*>(layer.grad);
  T* const result = static_cast<T*>(layer.result);
  const Acc* const u = static_cast<const Acc*>(layer.vectors);
  const Acc* const v = u + layout.rows;
  for (uint32_t start = begin; start < end; start += kThreads * kSize * kVectorsPerThread) {
    Vector<T, kSize> g[kVectorsPerThread];
#pragma unroll
    for (int j = 0; j < kVectorsPerThread; ++j) {
      g[j] = load<kSize>(grad, element<kSize>(start, j), end);
    }
#pragma unroll
    for (int j = 0; j < kVectorsPerThread; ++j) {
      const uint32_t e = element<kSize>(start, j);
      if (e >= end) continue;
      const uint32_t line = e / layout.inner;  // (outer, row)
      const uint32_t outer = line / layout.rows;
      const Acc row_amount = amount * u[line - outer * layout.rows];
      const uint32_t p = outer * layout.inner + e - line * layout.inner;
#pragma unroll
      for (int k = 0; k < kSize; ++k) {
        g[j].lane[k] = from_acc<T>(to_acc(g[j].lane[k]) * factor - row_amount * v[column(layout, p + k)]);
      }
      store(result, e, end, g[j]);
    }
  }
}

template <typename T, typename Acc>
__global__ void __launch_bounds__(kThreads, kBlocksPerMultiprocessor)
    spectral_project_kernel(const __grid_constant__ Table<BackwardLayer> table) {
  const uint32_t work = gridDim.x - 1 - blockIdx.x;
  const int i = layer_of(table.first, table.count, work);
  const BackwardLayer& layer = table.layers[i];
  double product = 0;
  const uint32_t blocks = table.first[i + 1] - table.first[i];
  for (uint32_t block = threadIdx.x; block < blocks; block += kThreads) product += layer.products[block];
  product = block_sum(product);
  const Acc inverse = Acc(1) / *static_cast<const Acc*>(layer.sigma);
  const Acc factor = static_cast<Acc>(layer.coeff) * inverse;
  const Acc amount = factor * (static_cast<Acc>(product) * inverse);

  const uint32_t begin = (work - table.first[i]) * kFlatElements;
  const uint32_t end = min(begin + kFlatElements, layer.layout.rows * layer.layout.cols);
  if (layer.layout.inner % kVectorSize<T> == 0 && aligned_to_16_bytes(layer.grad, layer.result)) {
    project<T, Acc, kVectorSize<T>>(layer, begin, end, factor, amount);
  } else {
    project<T, Acc, 1>(layer, begin, end, factor, amount);
  }
}

template <typename Layer, typename Blocks>
void append(Table<Layer>& table, const Layer& layer, const Blocks& blocks) {
  table.layers[table.count] = layer;
  table.first[table.count + 1] = table.first[table.count] + blocks;
  ++table.count;
}

template <typename T>
bool rows_are_aligned(const IterationLayer& layer) {
  return layer.layout.outer == 1 && layer.layout.cols % kVectorSize<T> == 0 &&
         reinterpret_cast<uintptr_t>(layer.weight) % 16 == 0;
}

template <typename T, typename Acc>
cudaError_t iterate(const IterationLayer* layers, int count, cudaStream_t stream) {
  const void* const kernel = reinterpret_cast<const void*>(spectral_iterate_kernel<T, Acc>);
  int device, multiprocessors, blocks_per_multiprocessor;
  if (cudaError_t error = cudaGetDevice(&device)) return error;
  if (cudaError_t error = cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device)) {
    return error;
  }
  if (cudaError_t error =
          cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks_per_multiprocessor, kernel, kThreads, 0)) {
    return error;
  }
  for (int start = 0; start < count; start += kMaxLayers) {
    IterationTable table = {};
    table.rounds = 1;
    for (int i = start; i < std::min(start + kMaxLayers, count); ++i) {
      const IterationLayer& layer = layers[i];
      if (rows_are_aligned<T>(layer)) table.vectorized |= 1u << table.count;
      table.first_columns[table.count + 1] = table.first_columns[table.count] + column_blocks(layer.layout.cols);
      table.rounds = std::max(table.rounds, layer.iterations);
      append(table, layer, row_blocks(layer.layout.rows));
    }
    const uint32_t work = std::max(table.first[table.count], table.first_columns[table.count]);
    const uint32_t resident = static_cast<uint32_t>(multiprocessors * blocks_per_multiprocessor);
    void* arguments[] = {&table};
    if (cudaError_t error =
            cudaLaunchCooperativeKernel(kernel, dim3(std::min(work, resident)), dim3(kThreads), arguments, 0, stream)) {
      return error;
    }
  }
  return cudaSuccess;
}

template <typename T, typename Acc>
cudaError_t scale(const ScaleLayer* layers, int count, cudaStream_t stream) {
  for (int start = 0; start < count; start += kMaxLayers) {
    Table<ScaleLayer> table = {};
    for (int i = start; i < std::min(start + kMaxLayers, count); ++i)
      append(table, layers[i], flat_blocks(layers[i].size));
    spectral_scale_kernel<T, Acc><<<table.first[table.count], kThreads, 0, stream>>>(table);
  }
  return cudaGetLastError();
}

template <typename T, typename Acc>
cudaError_t backward(const BackwardLayer* layers, int count, cudaStream_t stream) {
  for (int start = 0; start < count; start += kMaxLayers) {
    Table<BackwardLayer> table = {};
    for (int i = start; i < std::min(start + kMaxLayers, count); ++i) {
      append(table, layers[i], flat_blocks(layers[i].layout.rows * layers[i].layout.cols));
    }
    spectral_product_kernel<T, Acc><<<table.first[table.count], kThreads, 0, stream>>>(table);
    spectral_project_kernel<T, Acc><<<table.first[table.count], kThreads, 0, stream>>>(table);
  }
  return cudaGetLastError();
}

}  // namespace

uint32_t row_blocks(uint32_t rows) {
  return (rows + kBlockRows - 1) / kBlockRows;
}
uint32_t column_blocks(uint32_t cols) {
  return (cols + kBlockColumns - 1) / kBlockColumns;
}
uint32_t flat_blocks(uint32_t size) {
  return (size + kFlatElements - 1) / kFlatElements;
}

cudaError_t launch_spectral_iterate(DType dtype, const IterationLayer* layers, int count, cudaStream_t stream) {
  GNFAST_DISPATCH(dtype, iterate, layers, count, stream);
}

cudaError_t launch_spectral_scale(DType dtype, const ScaleLayer* layers, int count, cudaStream_t stream) {
  GNFAST_DISPATCH(dtype, scale, layers, count, stream);
}

cudaError_t launch_spectral_backward(DType dtype, const BackwardLayer* layers, int count, cudaStream_t stream) {
  GNFAST_DISPATCH(dtype, backward, layers, count, stream);
}

}  // namespace gnfast::cuda
