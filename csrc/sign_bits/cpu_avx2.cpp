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

// Half-width types compute in float, as PyTorch does.
template <typename T>
using Acc = std::conditional_t<sizeof(T) == 2, float, T>;

// to = function(from, place of the first lane) for 32 elements. As a call it would leave the bits in memory, which
// costs a fifth of the speed in bfloat16.
template <typename T, typename Function>
inline __attribute__((always_inline)) void map_word(const T* from, T* to, const Function& function) {
  constexpr int kLanes = Vectorized<T>::size();
#pragma GCC unroll 8
  for (int j = 0; j < 32; j += kLanes) {
    const auto value = Vectorized<T>::loadu(from + j);
    if constexpr (sizeof(T) == 2) {
      const auto [low, high] = at::vec::convert_to_float<T>(value);
      const auto first = function(low, j), second = function(high, j + kLanes / 2);
      at::vec::convert_from_float<T>(first, second).store(to + j);
    } else {
      function(value, j).store(to + j);
    }
  }
}

// Calls map(from, to, word) for every 32 elements and their word, the last ones padded with zeros.
template <typename T, typename Word, typename Map>
void for_words(const T* from, T* to, Word* words, int64_t numel, const Map& map) {
  const int64_t full_words = numel / 32;
  for (int64_t w = 0; w < full_words; ++w) map(from + 32 * w, to + 32 * w, words[w]);
  if (const int64_t rest = numel % 32) {
    T padded[32] = {};
    std::copy_n(from + 32 * full_words, rest, padded);
    map(padded, padded, words[full_words]);
    std::copy_n(padded, rest, to + 32 * full_words);
  }
}

template <typename T, bool kRelu>
void pack(const T* x, T* y, uint32_t* bits, int64_t numel, double negative_slope) {
  using Vec = Vectorized<Acc<T>>;
  const Vec slope(static_cast<Acc<T>>(negative_slope));
  for_words(x, y, bits, numel, [&](const T* from, T* to, uint32_t& word) {
    uint32_t positives = 0;
    map_word(from, to, [&](Vec value, int lane) {
      const Vec positive = value > Vec(0);
      positives |= lane_bits(positive) << lane;
      if constexpr (kRelu) {
        // torch.relu's own instruction: NaN passes, -0.0 stays -0.0.
        return at::vec::clamp_min(value, Vec(0));
      } else {
        return value * Vec::blendv(slope, Vec(1), positive);
      }
    });
    word = positives;
  });
}

template <typename T, bool kRelu>
void mask(const T* t, const uint32_t* bits, T* out, int64_t numel, double negative_slope) {
  using Vec = Vectorized<Acc<T>>;
  const Vec slope(static_cast<Acc<T>>(negative_slope));
  for_words(t, out, bits, numel, [&](const T* from, T* to, uint32_t word) {
    map_word(from, to, [&](Vec value, int lane) {
      const Vec positive = lane_mask<Acc<T>>(word >> lane);
      if constexpr (kRelu) {
        return value & positive;
      } else {
        return value * Vec::blendv(slope, Vec(1), positive);
      }
    });
  });
}

}  // namespace

template <typename T>
SignBitKernels<T> avx2_sign_bit_kernels(bool relu) {
  return relu ? SignBitKernels<T>{pack<T, true>, mask<T, true>} : SignBitKernels<T>{pack<T, false>, mask<T, false>};
}

template SignBitKernels<float> avx2_sign_bit_kernels(bool);
template SignBitKernels<double> avx2_sign_bit_kernels(bool);
template SignBitKernels<c10::Half> avx2_sign_bit_kernels(bool);
template SignBitKernels<c10::BFloat16> avx2_sign_bit_kernels(bool);

}  // namespace gnfast::cpu
