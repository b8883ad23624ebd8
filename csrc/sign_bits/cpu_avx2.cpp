// Compiled with AVX2 flags and CPU_CAPABILITY=AVX2 (see setup.py). Includes little on purpose: an inline function
// shared with another translation unit could be linked from here and run on a processor without AVX2.

#include <ATen/cpu/vec/functional.h>
#include <ATen/cpu/vec/vec.h>

#include <algorithm>

#include "cpu.h"

namespace gnfast::cpu {
namespace {

using at::vec::Vectorized;

uint32_t lane_bits(Vectorized<float> lane_mask) {
  return static_cast<uint32_t>(_mm256_movemask_ps(lane_mask));
}
uint32_t lane_bits(Vectorized<double> lane_mask) {
  return static_cast<uint32_t>(_mm256_movemask_pd(lane_mask));
}

// The lowest 8 (float) or 4 (double) bits as all-ones or all-zeros lanes.
template <typename Acc>
Vectorized<Acc> lane_mask(uint32_t bits);

template <>
Vectorized<float> lane_mask<float>(uint32_t bits) {
  const __m256i lanes = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
  const __m256i set = _mm256_and_si256(_mm256_set1_epi32(static_cast<int>(bits)), lanes);
  return _mm256_castsi256_ps(_mm256_cmpeq_epi32(set, lanes));
}

template <>
Vectorized<double> lane_mask<double>(uint32_t bits) {
  const __m256i lanes = _mm256_setr_epi64x(1, 2, 4, 8);
  const __m256i set = _mm256_and_si256(_mm256_set1_epi64x(bits), lanes);
  return _mm256_castsi256_pd(_mm256_cmpeq_epi64(set, lanes));
}

template <typename Acc, bool kRelu>
Vectorized<Acc> activate(Vectorized<Acc> value, Acc slope, uint32_t& bits) {
  const Vectorized<Acc> positive = value > Vectorized<Acc>(0);
  bits = lane_bits(positive);
  if constexpr (kRelu) {
    // torch.relu's own instruction: NaN passes, -0.0 stays -0.0.
    return at::vec::clamp_min(value, Vectorized<Acc>(0));
  } else {
    return value * Vectorized<Acc>::blendv(Vectorized<Acc>(slope), Vectorized<Acc>(1), positive);
  }
}

template <typename Acc, bool kRelu>
Vectorized<Acc> select(Vectorized<Acc> value, Acc slope, uint32_t bits) {
  const Vectorized<Acc> positive = lane_mask<Acc>(bits);
  if constexpr (kRelu) {
    return value & positive;
  } else {
    return value * Vectorized<Acc>::blendv(Vectorized<Acc>(slope), Vectorized<Acc>(1), positive);
  }
}

template <typename T>
constexpr bool kIsHalfWidth = sizeof(T) == 2;

// Half-width types compute in float, as PyTorch does.
template <typename T>
using Acc = std::conditional_t<kIsHalfWidth<T>, float, T>;

template <typename T, bool kRelu>
uint32_t pack_word(const T* x, T* y, Acc<T> slope) {
  constexpr int kLanes = Vectorized<T>::size();
  uint32_t word = 0;
#pragma GCC unroll 8
  for (int j = 0; j < 32; j += kLanes) {
    const auto value = Vectorized<T>::loadu(x + j);
    uint32_t bits;
    if constexpr (kIsHalfWidth<T>) {
      auto [low, high] = at::vec::convert_to_float<T>(value);
      uint32_t high_bits;
      low = activate<float, kRelu>(low, slope, bits);
      high = activate<float, kRelu>(high, slope, high_bits);
      bits |= high_bits << (kLanes / 2);
      at::vec::convert_from_float<T>(low, high).store(y + j);
    } else {
      activate<T, kRelu>(value, slope, bits).store(y + j);
    }
    word |= bits << j;
  }
  return word;
}

template <typename T, bool kRelu>
void mask_word(const T* t, uint32_t word, T* out, Acc<T> slope) {
  constexpr int kLanes = Vectorized<T>::size();
#pragma GCC unroll 8
  for (int j = 0; j < 32; j += kLanes) {
    const auto value = Vectorized<T>::loadu(t + j);
    const uint32_t bits = word >> j;
    if constexpr (kIsHalfWidth<T>) {
      auto [low, high] = at::vec::convert_to_float<T>(value);
      low = select<float, kRelu>(low, slope, bits);
      high = select<float, kRelu>(high, slope, bits >> (kLanes / 2));
      at::vec::convert_from_float<T>(low, high).store(out + j);
    } else {
      select<T, kRelu>(value, slope, bits).store(out + j);
    }
  }
}

template <typename T, bool kRelu>
void pack(const T* x, T* y, uint32_t* bits, int64_t numel, double negative_slope) {
  const auto slope = static_cast<Acc<T>>(negative_slope);
  const int64_t full_words = numel / 32;
  for (int64_t w = 0; w < full_words; ++w) {
    bits[w] = pack_word<T, kRelu>(x + 32 * w, y + 32 * w, slope);
  }
  if (const int64_t rest = numel % 32) {
    T padded[32] = {};
    std::copy_n(x + 32 * full_words, rest, padded);
    bits[full_words] = pack_word<T, kRelu>(padded, padded, slope);
    std::copy_n(padded, rest, y + 32 * full_words);
  }
}

template <typename T, bool kRelu>
void mask(const T* t, const uint32_t* bits, T* out, int64_t numel, double negative_slope) {
  const auto slope = static_cast<Acc<T>>(negative_slope);
  const int64_t full_words = numel / 32;
  for (int64_t w = 0; w < full_words; ++w) {
    mask_word<T, kRelu>(t + 32 * w, bits[w], out + 32 * w, slope);
  }
  if (const int64_t rest = numel % 32) {
    T padded[32] = {};
    std::copy_n(t + 32 * full_words, rest, padded);
    mask_word<T, kRelu>(padded, bits[full_words], padded, slope);
    std::copy_n(padded, rest, out + 32 * full_words);
  }
}

template <typename T>
void pack_any_slope(const T* x, T* y, uint32_t* bits, int64_t numel, double negative_slope) {
  (negative_slope == 0 ? pack<T, true> : pack<T, false>)(x, y, bits, numel, negative_slope);
}

template <typename T>
void mask_any_slope(const T* t, const uint32_t* bits, T* out, int64_t numel, double negative_slope) {
  (negative_slope == 0 ? mask<T, true> : mask<T, false>)(t, bits, out, numel, negative_slope);
}

}  // namespace

template <typename T>
SignBitKernels<T> avx2_sign_bit_kernels() {
  return {pack_any_slope<T>, mask_any_slope<T>};
}

template SignBitKernels<float> avx2_sign_bit_kernels();
template SignBitKernels<double> avx2_sign_bit_kernels();
template SignBitKernels<c10::Half> avx2_sign_bit_kernels();
template SignBitKernels<c10::BFloat16> avx2_sign_bit_kernels();

}  // namespace gnfast::cpu
