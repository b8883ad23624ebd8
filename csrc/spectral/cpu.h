// Serial loops over a block of a weight's matrix, one set per instruction set, chosen at run time in cpu.cpp.

#pragma once

#include <ATen/OpMathType.h>

#include <cstdint>

namespace gnfast::cpu {

// Row r of a matrix m starts at m + r * stride and is contiguous. Sums are in Acc.
template <typename T>
struct SpectralKernels {
  using Acc = at::opmath_type<T>;
  // y[r] += sum over c of m[r][c] * x[c]
  void (*rows_times)(const T* m, int64_t stride, int64_t rows, int64_t cols, const Acc* x, Acc* y);
  // y[c] += sum over r of m[r][c] * x[r]
  void (*columns_times)(const T* m, int64_t stride, int64_t rows, int64_t cols, const Acc* x, Acc* y);
  // y[i] = factor * x[i]
  void (*scale)(const T* x, T* y, int64_t size, Acc factor);
  // sum over i of x[i] * y[i]
  double (*dot)(const T* x, const T* y, int64_t size);
  // out[i] = factor * g[i] - amount * direction[i]
  void (*project)(const T* g, T* out, int64_t size, Acc factor, Acc amount, const Acc* direction);
};

template <typename T>
SpectralKernels<T> portable_spectral_kernels();
// Callable only where the processor has AVX2, FMA and F16C.
template <typename T>
SpectralKernels<T> avx2_spectral_kernels();

}  // namespace gnfast::cpu
