// The loops of SpectralKernels on PyTorch's vector type. setup.py compiles them twice, with and without AVX2 flags, so
// all but the two tables has internal linkage: nothing of one copy may be linked as the other's.

#include <ATen/cpu/vec/functional.h>
#include <ATen/cpu/vec/vec.h>

#include <algorithm>
#include <utility>

#include "cpu.h"

namespace gnfast::cpu {
namespace {

using at::vec::Vectorized;

template <typename T>
struct Loops {
  using Acc = at::opmath_type<T>;
  using Vec = Vectorized<Acc>;
  static constexpr bool kHalfWidth = sizeof(T) == 2;
  static constexpr int kLanes = Vec::size();
  // Two vectors at a time: one of a half-width type widens to two.
  static constexpr int kChunk = 2 * kLanes;
  // Rows that share one pass over x or y.
  static constexpr int kPanel = 4;
  // Sums in Acc are no longer than this before they go on in double.
  static constexpr int64_t kShortSum = 4096;

  static std::pair<Vec, Vec> load(const T* from) {
    if constexpr (kHalfWidth) {
      auto [low, high] = at::vec::convert_to_float<T>(Vectorized<T>::loadu(from));
      return {low, high};
    } else {
      return {Vec::loadu(from), Vec::loadu(from + kLanes)};
    }
  }

  static void store(T* to, Vec low, Vec high) {
    if constexpr (kHalfWidth) {
      at::vec::convert_from_float<T>(low, high).store(to);
    } else {
      low.store(to);
      high.store(to + kLanes);
    }
  }

  static Acc sum(Vec vector) {
    Acc lanes[kLanes];
    vector.store(lanes);
    // Pairwise, in an order of its own: the same for every caller.
    for (int width = kLanes / 2; width > 0; width /= 2) {
      for (int i = 0; i < width; ++i) lanes[i] += lanes[i + width];
    }
    return lanes[0];
  }

  template <int kRows>
  static void rows_times_panel(const T* m, int64_t stride, int64_t cols, const Acc* x, Acc* y) {
    Vec low[kRows], high[kRows];
    for (int r = 0; r < kRows; ++r) low[r] = high[r] = Vec(0);
    int64_t c = 0;
    for (; c + kChunk <= cols; c += kChunk) {
      const Vec x_low = Vec::loadu(x + c), x_high = Vec::loadu(x + c + kLanes);
      for (int r = 0; r < kRows; ++r) {
        const auto [m_low, m_high] = load(m + r * stride + c);
        low[r] = at::vec::fmadd(m_low, x_low, low[r]);
        high[r] = at::vec::fmadd(m_high, x_high, high[r]);
      }
    }
    for (int r = 0; r < kRows; ++r) {
      Acc total = sum(low[r] + high[r]);
      for (int64_t rest = c; rest < cols; ++rest) total += static_cast<Acc>(m[r * stride + rest]) * x[rest];
      y[r] += total;
    }
  }

  static void rows_times(const T* m, int64_t stride, int64_t rows, int64_t cols, const Acc* x, Acc* y) {
    int64_t r = 0;
    for (; r + kPanel <= rows; r += kPanel) rows_times_panel<kPanel>(m + r * stride, stride, cols, x, y + r);
    for (; r < rows; ++r) rows_times_panel<1>(m + r * stride, stride, cols, x, y + r);
  }

  template <int kRows>
  static void columns_times_panel(const T* m, int64_t stride, int64_t cols, const Acc* x, Acc* y) {
    int64_t c = 0;
    for (; c + kChunk <= cols; c += kChunk) {
      Vec low = Vec::loadu(y + c), high = Vec::loadu(y + c + kLanes);
      for (int r = 0; r < kRows; ++r) {
        const auto [m_low, m_high] = load(m + r * stride + c);
        low = at::vec::fmadd(m_low, Vec(x[r]), low);
        high = at::vec::fmadd(m_high, Vec(x[r]), high);
      }
      low.store(y + c);
      high.store(y + c + kLanes);
    }
    for (; c < cols; ++c) {
      for (int r = 0; r < kRows; ++r) y[c] += static_cast<Acc>(m[r * stride + c]) * x[r];
    }
  }

  static void columns_times(const T* m, int64_t stride, int64_t rows, int64_t cols, const Acc* x, Acc* y) {
    int64_t r = 0;
    for (; r + kPanel <= rows; r += kPanel) columns_times_panel<kPanel>(m + r * stride, stride, cols, x + r, y);
    for (; r < rows; ++r) columns_times_panel<1>(m + r * stride, stride, cols, x + r, y);
  }

  static void scale(const T* x, T* y, int64_t size, Acc factor) {
    int64_t i = 0;
    for (; i + kChunk <= size; i += kChunk) {
      const auto [low, high] = load(x + i);
      store(y + i, low * Vec(factor), high * Vec(factor));
    }
    for (; i < size; ++i) y[i] = static_cast<T>(static_cast<Acc>(x[i]) * factor);
  }

  static double dot(const T* x, const T* y, int64_t size) {
    double total = 0;
    for (int64_t start = 0; start < size; start += kShortSum) {
      const int64_t end = std::min(start + kShortSum, size);
      Vec low(0), high(0);
      int64_t i = start;
      for (; i + kChunk <= end; i += kChunk) {
        const auto [x_low, x_high] = load(x + i);
        const auto [y_low, y_high] = load(y + i);
        low = at::vec::fmadd(x_low, y_low, low);
        high = at::vec::fmadd(x_high, y_high, high);
      }
      Acc part = sum(low + high);
      for (; i < end; ++i) part += static_cast<Acc>(x[i]) * static_cast<Acc>(y[i]);
      total += part;
    }
    return total;
  }

  static void project(const T* g, T* out, int64_t size, Acc factor, Acc amount, const Acc* direction) {
    int64_t i = 0;
    for (; i + kChunk <= size; i += kChunk) {
      const auto [low, high] = load(g + i);
      store(out + i, low * Vec(factor) - Vec(amount) * Vec::loadu(direction + i),
            high * Vec(factor) - Vec(amount) * Vec::loadu(direction + i + kLanes));
    }
    for (; i < size; ++i) out[i] = static_cast<T>(static_cast<Acc>(g[i]) * factor - amount * direction[i]);
  }
};

}  // namespace

#ifdef CPU_CAPABILITY_AVX2
#define GNFAST_SPECTRAL_KERNELS avx2_spectral_kernels
#else
#define GNFAST_SPECTRAL_KERNELS portable_spectral_kernels
#endif

template <typename T>
SpectralKernels<T> GNFAST_SPECTRAL_KERNELS() {
  using L = Loops<T>;
  return {L::rows_times, L::columns_times, L::scale, L::dot, L::project};
}

template SpectralKernels<float> GNFAST_SPECTRAL_KERNELS();
template SpectralKernels<double> GNFAST_SPECTRAL_KERNELS();
template SpectralKernels<c10::Half> GNFAST_SPECTRAL_KERNELS();
template SpectralKernels<c10::BFloat16> GNFAST_SPECTRAL_KERNELS();

}  // namespace gnfast::cpu
