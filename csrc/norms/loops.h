// The loops of NormKernels on vectors of kNormLanes doubles, which the file that includes this defines. All has
// internal linkage: nothing of one instruction set may be linked as another's.
//
// Sums are in double, in which products of floats are exact: sums of thousands of entries, and differences of such
// sums, keep all digits.

#include <cstdint>

#include "cpu.h"

namespace gnfast::cpu {
namespace {

template <typename T>
struct Vector {
  typedef T type __attribute__((vector_size(kNormLanes * sizeof(T))));
};
using Doubles = Vector<double>::type;

// One entry as a double, or one for each lane.
template <typename Acc, typename T>
inline __attribute__((always_inline)) Acc load(const T* from) {
  if constexpr (sizeof(Acc) == sizeof(double)) {
    return *from;
  } else {
    typename Vector<T>::type entries;
    __builtin_memcpy(&entries, from, sizeof(entries));
    return __builtin_convertvector(entries, Acc);
  }
}

template <typename Acc, typename T>
inline __attribute__((always_inline)) void add(const NormInputs<T>& from, int64_t i, const T* weight, Acc mean,
                                               Acc* sums) {
  const Acc deviation = load<Acc>(from.h + i) - mean, tangent = load<Acc>(from.tangent + i);
  Acc cotangent = load<Acc>(from.cotangent + i);
  if (weight) cotangent *= load<Acc>(weight + i);
  sums[0] += tangent;
  sums[1] += cotangent;
  sums[3] += deviation * tangent;
  sums[4] += deviation * cotangent;
  sums[6] += cotangent * tangent;
  if (from.adjoint) {
    Acc adjoint = load<Acc>(from.adjoint + i);
    if (weight) adjoint *= load<Acc>(weight + i);
    sums[2] += adjoint;
    sums[5] += deviation * adjoint;
  }
}

template <typename T>
void row_sums(const NormInputs<T>& from, const T* weight, int64_t size, double mean, double* sums) {
  Doubles lanes[kNormSums] = {};
  int64_t i = 0;
  for (; i + kNormLanes <= size; i += kNormLanes) add<Doubles>(from, i, weight, Doubles{} + mean, lanes);
  for (; i < size; ++i) add<double>(from, i, weight, mean, sums);
  for (int k = 0; k < kNormSums; ++k) {
    for (int lane = 0; lane < kNormLanes; ++lane) sums[k] += lanes[k][lane];
  }
}

// So many rows share one access to the sums.
constexpr int64_t kPanelRows = 8;

template <typename Acc, typename T>
inline __attribute__((always_inline)) void add_panel(const NormInputs<T>& from, int64_t rows, int64_t columns,
                                                     int64_t c, const T* mean, double* sums) {
  const Acc column_mean = load<Acc>(mean + c);
  Acc panel[kNormSums];
  for (int k = 0; k < kNormSums; ++k) panel[k] = load<Acc>(sums + k * columns + c);
  for (int64_t r = 0; r < rows; ++r)
    add<Acc>(from, r * columns + c, static_cast<const T*>(nullptr), column_mean, panel);
  for (int k = 0; k < kNormSums; ++k) __builtin_memcpy(sums + k * columns + c, &panel[k], sizeof(Acc));
}

template <typename T>
void column_sums(const NormInputs<T>& from, int64_t rows, int64_t columns, const T* mean, double* sums) {
  for (int64_t r = 0; r < rows; r += kPanelRows) {
    const auto panel = from.at(r * columns);
    const int64_t count = rows - r < kPanelRows ? rows - r : kPanelRows;
    int64_t c = 0;
    for (; c + kNormLanes <= columns; c += kNormLanes) add_panel<Doubles>(panel, count, columns, c, mean, sums);
    for (; c < columns; ++c) add_panel<double>(panel, count, columns, c, mean, sums);
  }
}

template <bool kWeight, bool kAdjoint, typename T>
void results(const NormInputs<T>& from, const T* __restrict weight, int64_t size, double mean, const double* coeffs,
             T* __restrict to) {
  const T m = mean, by_adjoint = coeffs[0], by_cotangent = coeffs[1], by_tangent = coeffs[2], by_h = coeffs[3],
          constant = coeffs[4];
  for (int64_t i = 0; i < size; ++i) {
    T outside = by_cotangent * from.cotangent[i];
    if constexpr (kAdjoint) outside += by_adjoint * from.adjoint[i];
    if constexpr (kWeight) outside *= weight[i];
    to[i] = outside + by_tangent * from.tangent[i] + by_h * (from.h[i] - m) + constant;
  }
}

template <typename T>
void row_results(const NormInputs<T>& from, const T* weight, int64_t size, double mean, const double* coeffs, T* to) {
  const auto variant = weight ? (from.adjoint ? results<true, true, T> : results<true, false, T>)
                              : (from.adjoint ? results<false, true, T> : results<false, false, T>);
  variant(from, weight, size, mean, coeffs, to);
}

template <bool kAdjoint, typename T>
void weights(const NormInputs<T>& from, int64_t size, double mean, double scale, double shift, double along,
             double* __restrict by_weight) {
  const T m = mean, by_tangent = scale, constant = shift, by_h = along;
  for (int64_t i = 0; i < size; ++i) {
    const T deviation = from.h[i] - m;
    T entry = from.cotangent[i] * (by_tangent * from.tangent[i] + constant + by_h * deviation);
    if constexpr (kAdjoint) entry += from.adjoint[i] * (by_tangent * deviation);
    by_weight[i] += entry;
  }
}

template <typename T>
void row_weights(const NormInputs<T>& from, int64_t size, double mean, double scale, double shift, double along,
                 double* by_weight, double* __restrict by_bias) {
  const auto variant = from.adjoint ? weights<true, T> : weights<false, T>;
  if (by_weight) variant(from, size, mean, scale, shift, along, by_weight);
  for (int64_t i = 0; by_bias && i < size; ++i) by_bias[i] += from.adjoint[i];
}

template <bool kAdjoint, typename T>
void columns_typed(const NormInputs<T>& from, int64_t rows, int64_t columns, const T* __restrict mean,
                   const T* __restrict coeffs, T* __restrict to) {
  for (int64_t r = 0; r < rows; ++r) {
    const auto row = from.at(r * columns);
    T* __restrict const result = to + r * columns;
    for (int64_t c = 0; c < columns; ++c) {
      T entry = coeffs[columns + c] * row.cotangent[c] + coeffs[2 * columns + c] * row.tangent[c] +
                coeffs[3 * columns + c] * (row.h[c] - mean[c]) + coeffs[4 * columns + c];
      if constexpr (kAdjoint) entry += coeffs[c] * row.adjoint[c];
      result[c] = entry;
    }
  }
}

template <typename T>
void column_results(const NormInputs<T>& from, int64_t rows, int64_t columns, const T* mean, const T* coeffs, T* to) {
  const auto variant = from.adjoint ? columns_typed<true, T> : columns_typed<false, T>;
  variant(from, rows, columns, mean, coeffs, to);
}

template <typename T>
NormKernels<T> norm_kernels() {
  return {row_sums<T>, row_results<T>, row_weights<T>, column_sums<T>, column_results<T>};
}

}  // namespace
}  // namespace gnfast::cpu
