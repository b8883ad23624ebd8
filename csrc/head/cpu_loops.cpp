// The loops of HeadKernels. setup.py compiles them twice, with and without AVX2 flags, so all but the two tables has
// internal linkage: nothing of one copy may be linked as the other's.

#include <ATen/cpu/vec/functional.h>
#include <ATen/cpu/vec/vec.h>

#include <algorithm>

#include "cpu.h"

namespace gnfast::cpu {
namespace {

using at::vec::Vectorized;

template <typename T>
struct Loops {
  using Acc = at::opmath_type<T>;
  static constexpr bool kHalfWidth = sizeof(T) == 2;
  // Half-width entries are widened this many at a time. Loops over Acc are left to the compiler.
  static constexpr int64_t kChunk = kHalfWidth ? 512 : INT64_MAX;
  static constexpr int64_t kBuffer = kHalfWidth ? 512 : 1;
  static constexpr int kSums = 16;

  // `size` entries as Acc: where they are, or in the buffer.
  static const Acc* widened(const T* from, int64_t size, Acc* buffer) {
    if constexpr (kHalfWidth) {
      constexpr int kLanes = Vectorized<T>::size();
      int64_t i = 0;
      for (; i + kLanes <= size; i += kLanes) {
        const auto [low, high] = at::vec::convert_to_float<T>(Vectorized<T>::loadu(from + i));
        low.store(buffer + i);
        high.store(buffer + i + kLanes / 2);
      }
      for (; i < size; ++i) buffer[i] = static_cast<Acc>(from[i]);
      return buffer;
    } else {
      return from;
    }
  }

  // Calls write(to) with memory for `size` results, which end in `to`.
  template <typename Write>
  static void narrowed(T* to, int64_t size, const Write& write) {
    if constexpr (kHalfWidth) {
      Acc results[kBuffer];
      write(results);
      at::vec::convert(results, to, size);
    } else {
      write(to);
    }
  }

  static double squares(const T* g, int64_t size, double centre) {
    Acc buffer[kBuffer];
    double sums[kSums] = {};
    for (int64_t first = 0; first < size; first += kChunk) {
      const int64_t count = std::min(kChunk, size - first);
      const Acc* const from = widened(g + first, count, buffer);
      int64_t i = 0;
      for (; i + kSums <= count; i += kSums) {
        for (int j = 0; j < kSums; ++j) {
          const double entry = static_cast<double>(from[i + j]) - centre;
          sums[j] += entry * entry;
        }
      }
      for (; i < count; ++i) {
        const double entry = static_cast<double>(from[i]) - centre;
        sums[i % kSums] += entry * entry;
      }
    }
    // Pairwise, in an order of its own: the same for every caller.
    for (int width = kSums / 2; width > 0; width /= 2) {
      for (int j = 0; j < width; ++j) sums[j] += sums[j + width];
    }
    return sums[0];
  }

  static void pull(const T* x, const T* g, T* start, T* grad_x, int64_t size, Acc s, Acc along, Acc centre) {
    Acc x_buffer[kBuffer], g_buffer[kBuffer];
    for (int64_t first = 0; first < size; first += kChunk) {
      const int64_t count = std::min(kChunk, size - first);
      const Acc* const gradient = widened(g + first, count, g_buffer);
      if (start) {
        const Acc* const input = widened(x + first, count, x_buffer);
        narrowed(start + first, count, [=](Acc* __restrict to) {
          for (int64_t i = 0; i < count; ++i) to[i] = s * input[i] + along * (gradient[i] - centre);
        });
      }
      if (grad_x) {
        narrowed(grad_x + first, count, [=](Acc* __restrict to) {
          for (int64_t i = 0; i < count; ++i) to[i] = s * gradient[i];
        });
      }
    }
  }
};

}  // namespace

#ifdef CPU_CAPABILITY_AVX2
#define GNFAST_HEAD_KERNELS avx2_head_kernels
#else
#define GNFAST_HEAD_KERNELS portable_head_kernels
#endif

template <typename T>
HeadKernels<T> GNFAST_HEAD_KERNELS() {
  return {Loops<T>::squares, Loops<T>::pull};
}

template HeadKernels<float> GNFAST_HEAD_KERNELS();
template HeadKernels<double> GNFAST_HEAD_KERNELS();
template HeadKernels<c10::Half> GNFAST_HEAD_KERNELS();
template HeadKernels<c10::BFloat16> GNFAST_HEAD_KERNELS();

}  // namespace gnfast::cpu
