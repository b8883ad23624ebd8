// Serial loops over the entries of one sample, one set per instruction set, chosen at run time in cpu.cpp.

#pragma once

#include <ATen/OpMathType.h>

#include <cstdint>

namespace gnfast::cpu {

template <typename T>
struct HeadKernels {
  using Acc = at::opmath_type<T>;
  // sum over i of (g[i] - centre)²
  double (*squares)(const T* g, int64_t size, double centre);
  // start[i] = s * x[i] + along * (g[i] - centre) and grad_x[i] = s * g[i]: whichever are not null. x is for start.
  void (*pull)(const T* x, const T* g, T* start, T* grad_x, int64_t size, Acc s, Acc along, Acc centre);
};

template <typename T>
HeadKernels<T> portable_head_kernels();
// Callable only where the processor has AVX2, FMA and F16C.
template <typename T>
HeadKernels<T> avx2_head_kernels();

}  // namespace gnfast::cpu
