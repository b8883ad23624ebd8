// Serial pieces of a norm's second derivative, one set per instruction set, chosen at run time in given.h.

#pragma once

#include <cstdint>

namespace gnfast::cpu {

// The input h of a norm, its tangent t and its output's cotangents δ and μ. μ may be null.
template <typename T>
struct NormInputs {
  const T *h, *tangent, *cotangent, *adjoint;

  NormInputs at(int64_t place) const {
    return {h + place, tangent + place, cotangent + place, adjoint ? adjoint + place : nullptr};
  }
};

// Sums from which all else follows, of t, δ, μ, (h - m) t, (h - m) δ, (h - m) μ and δ t.
constexpr int kNormSums = 7;
// A result is c[0] μ + c[1] δ + c[2] t + c[3] (h - m) + c[4].
constexpr int kNormCoeffs = 5;

// Where rows have a `weight`, it multiplies δ and μ; it may be null. Columns are contiguous, rows follow each other.
template <typename T>
struct NormKernels {
  // sums[k] += the sum over a row
  void (*row_sums)(const NormInputs<T>& from, const T* weight, int64_t size, double mean, double* sums);
  void (*row_results)(const NormInputs<T>& from, const T* weight, int64_t size, double mean, const double* coeffs,
                      T* to);
  // by_weight[i] += δ (scale t + shift + along (h - m)) + μ scale (h - m), by_bias[i] += μ; either may be null
  void (*row_weights)(const NormInputs<T>& from, int64_t size, double mean, double scale, double shift, double along,
                      double* by_weight, double* by_bias);
  // sums[k][c] += the sum over a column
  void (*column_sums)(const NormInputs<T>& from, int64_t rows, int64_t columns, const T* mean, double* sums);
  // coeffs[k][c]
  void (*column_results)(const NormInputs<T>& from, int64_t rows, int64_t columns, const T* mean, const T* coeffs,
                         T* to);
};

template <typename T>
NormKernels<T> portable_norm_kernels();
// Callable only where the processor has AVX2 and FMA.
template <typename T>
NormKernels<T> avx2_norm_kernels();
// Callable only where the processor has AVX-512 (F, DQ, BW and VL).
template <typename T>
NormKernels<T> avx512_norm_kernels();

}  // namespace gnfast::cpu
