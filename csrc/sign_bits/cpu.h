// Serial sign-bit kernels over a flat range, one set per instruction set, chosen at run time in cpu.cpp.

#pragma once

#include <cstdint>

namespace gnfast::cpu {

template <typename T>
struct SignBitKernels {
  // bits[i / 32] bit (i % 32) = x[i] > 0, unused high bits 0;  y[i] = x[i] > 0 ? x[i] : negative_slope * x[i].
  // y may be x.
  void (*pack)(const T* x, T* y, uint32_t* bits, int64_t numel, double negative_slope);
  // out[i] = bit i ? t[i] : negative_slope * t[i], and exactly 0 for slope 0, whatever t[i] is.  out may be t.
  void (*mask)(const T* t, const uint32_t* bits, T* out, int64_t numel, double negative_slope);
};

// Those for slope 0 with `relu`.
template <typename T>
SignBitKernels<T> portable_sign_bit_kernels(bool relu);
// Callable only where the processor has AVX2, FMA and F16C.
template <typename T>
SignBitKernels<T> avx2_sign_bit_kernels(bool relu);

}  // namespace gnfast::cpu
