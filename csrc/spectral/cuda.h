// Launchers of the spectral-norm kernels; no torch headers, so that nvcc takes seconds.
//
// All layers of a call go in one launch, as a table in the kernel's arguments: nothing is copied to the device, and a
// CUDA graph keeps it. More than kMaxLayers layers take several launches.

#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "../common/cuda_dtype.h"

namespace gnfast::cuda {

constexpr int kMaxLayers = 32;
// Rows of a block's share of a matrix, and columns of one in the sums over blocks.
constexpr int kBlockRows = 8;
constexpr int kBlockColumns = 32;

// Where the entries of a matrix lie: see layout.h. Products of these fit in 31 bits.
struct MatrixLayout {
  uint32_t rows, cols, outer, inner, major, minor;
};

// T is the weights' dtype and Acc that of sums, double for double and float otherwise.
struct IterationLayer {
  const void* weight;  // T
  void* u;             // T (rows), overwritten if iterations > 0
  void* v;             // T (cols), in the columns' own order; overwritten if iterations > 0
  void* vectors;       // Acc (rows + cols): u and v as used
  void* sigma;         // Acc
  void* workspace;     // Acc (rows + row_blocks(rows) * cols)
  double* squares;     // (column_blocks(cols))
  double eps;
  MatrixLayout layout;
  int iterations;
};

struct ScaleLayer {
  const void* from;   // T
  void* to;           // T
  const void* sigma;  // Acc
  double coeff;
  uint32_t size;
};

struct BackwardLayer {
  const void* grad;     // T, with the strides of weight
  const void* weight;   // T
  void* result;         // T
  const void* vectors;  // Acc (rows + cols)
  const void* sigma;    // Acc
  double* products;     // (flat_blocks(rows * cols))
  double coeff;
  MatrixLayout layout;
};

uint32_t row_blocks(uint32_t rows);
uint32_t column_blocks(uint32_t cols);
uint32_t flat_blocks(uint32_t size);

// u = Wv / max(|Wv|, eps), v = Wᵀu / max(|Wᵀu|, eps), `iterations` times, then sigma = uᵀWv. One cooperative launch.
cudaError_t launch_spectral_iterate(DType dtype, const IterationLayer* layers, int count, cudaStream_t stream);
// to = coeff / sigma * from. One launch.
cudaError_t launch_spectral_scale(DType dtype, const ScaleLayer* layers, int count, cudaStream_t stream);
// result = coeff / sigma * (grad - <grad, weight> / sigma * u vᵀ). Two launches.
cudaError_t launch_spectral_backward(DType dtype, const BackwardLayer* layers, int count, cudaStream_t stream);

}  // namespace gnfast::cuda
