#include <ATen/OpMathType.h>
#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include <algorithm>

#include "cpu.h"

namespace gnfast::cpu {
namespace {

template <typename T, bool kRelu>
void pack(const T* x, T* y, uint32_t* bits, int64_t numel, double negative_slope) {
  using Acc = at::opmath_type<T>;
  const Acc slope = static_cast<Acc>(negative_slope);
  for (int64_t start = 0; start < numel; start += 32) {
    const int count = static_cast<int>(std::min<int64_t>(32, numel - start));
    uint32_t word = 0;
    for (int j = 0; j < count; ++j) {
      const Acc value = static_cast<Acc>(x[start + j]);
      const bool positive = value > 0;
      word |= static_cast<uint32_t>(positive) << j;
      // As torch.relu does: NaN passes, -0.0 stays -0.0.
      const Acc result = kRelu ? (value < 0 ? Acc(0) : value) : (positive ? value : value * slope);
      y[start + j] = static_cast<T>(result);
    }
    bits[start / 32] = word;
  }
}

template <typename T, bool kRelu>
void mask(const T* t, const uint32_t* bits, T* out, int64_t numel, double negative_slope) {
  using Acc = at::opmath_type<T>;
  const Acc slope = static_cast<Acc>(negative_slope);
  for (int64_t start = 0; start < numel; start += 32) {
    const int count = static_cast<int>(std::min<int64_t>(32, numel - start));
    const uint32_t word = bits[start / 32];
    for (int j = 0; j < count; ++j) {
      const Acc value = static_cast<Acc>(t[start + j]);
      const bool positive = (word >> j) & 1u;
      out[start + j] = static_cast<T>(positive ? value : (kRelu ? Acc(0) : value * slope));
    }
  }
}

}  // namespace

template <typename T>
SignBitKernels<T> portable_sign_bit_kernels(bool relu) {
  return relu ? SignBitKernels<T>{pack<T, true>, mask<T, true>} : SignBitKernels<T>{pack<T, false>, mask<T, false>};
}

template SignBitKernels<float> portable_sign_bit_kernels(bool);
template SignBitKernels<double> portable_sign_bit_kernels(bool);
template SignBitKernels<c10::Half> portable_sign_bit_kernels(bool);
template SignBitKernels<c10::BFloat16> portable_sign_bit_kernels(bool);

}  // namespace gnfast::cpu
