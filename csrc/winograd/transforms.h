// What lies around the products: tiles of maps and of kernels into planes of points, and back. In panels of kPanel
// channels, one vector.
//
// For the file that defines Vec, kPanel, load, store, zero, broadcast and transpose, and is compiled for one kind of
// processor. Everything here is in its anonymous namespace: of functions with one name in several files the linker
// keeps one, perhaps one that this processor cannot run.

#include <type_traits>

#include "cpu.h"
#include "products.h"
#include "tile_cursor.h"

namespace gnfast::cpu {
namespace {

inline Vec halved(Vec x) {
  return x * broadcast(0.5f);
}

// The one-dimensional transforms, each of kFrom vectors into kTo. Points 0, 1, -1 and infinity for three taps, 0, 1 and
// infinity for two.

struct Input3 {
  static constexpr int kFrom = 4, kTo = 4;
  static void run(const Vec* d, int from_step, Vec* to, int to_step) {
    const Vec d0 = d[0], d1 = d[from_step], d2 = d[2 * from_step], d3 = d[3 * from_step];
    to[0] = d0 - d2;
    to[to_step] = d1 + d2;
    to[2 * to_step] = d2 - d1;
    to[3 * to_step] = d1 - d3;
  }
};

struct Input2 {
  static constexpr int kFrom = 3, kTo = 3;
  static void run(const Vec* d, int from_step, Vec* to, int to_step) {
    const Vec d0 = d[0], d1 = d[from_step], d2 = d[2 * from_step];
    to[0] = d0 - d1;
    to[to_step] = d1;
    to[2 * to_step] = d2 - d1;
  }
};

struct Output3 {
  static constexpr int kFrom = 4, kTo = 2;
  static void run(const Vec* m, int from_step, Vec* to, int to_step) {
    const Vec m1 = m[from_step], m2 = m[2 * from_step];
    to[0] = m[0] + (m1 + m2);
    to[to_step] = (m1 - m2) - m[3 * from_step];
  }
};

struct Output2 {
  static constexpr int kFrom = 3, kTo = 2;
  static void run(const Vec* m, int from_step, Vec* to, int to_step) {
    const Vec m1 = m[from_step];
    to[0] = m[0] + m1;
    to[to_step] = m1 + m[2 * from_step];
  }
};

struct Cotangent3 {
  static constexpr int kFrom = 2, kTo = 4;
  static void run(const Vec* y, int from_step, Vec* to, int to_step) {
    const Vec y0 = y[0], y1 = y[from_step];
    to[0] = y0;
    to[to_step] = y0 + y1;
    to[2 * to_step] = y0 - y1;
    to[3 * to_step] = zero() - y1;
  }
};

struct Cotangent2 {
  static constexpr int kFrom = 2, kTo = 3;
  static void run(const Vec* y, int from_step, Vec* to, int to_step) {
    const Vec y0 = y[0], y1 = y[from_step];
    to[0] = y0;
    to[to_step] = y0 + y1;
    to[2 * to_step] = y1;
  }
};

struct Kernel3 {
  static constexpr int kFrom = 3, kTo = 4;
  static void run(const Vec* g, int from_step, Vec* to, int to_step) {
    const Vec g0 = g[0], g1 = g[from_step], g2 = g[2 * from_step];
    to[0] = g0;
    to[to_step] = halved((g0 + g2) + g1);
    to[2 * to_step] = halved((g0 + g2) - g1);
    to[3 * to_step] = g2;
  }
};

struct KernelGrad3 {
  static constexpr int kFrom = 4, kTo = 3;
  static void run(const Vec* u, int from_step, Vec* to, int to_step) {
    const Vec u1 = u[from_step], u2 = u[2 * from_step];
    const Vec sum = halved(u1 + u2);
    to[0] = u[0] + sum;
    to[to_step] = halved(u1 - u2);
    to[2 * to_step] = sum + u[3 * from_step];
  }
};

// For two taps G is A.
using Kernel2 = Cotangent2;
using KernelGrad2 = Output2;

template <typename T>
inline __attribute__((always_inline)) void transform(const Vec* from, Vec* to) {
  Vec half[T::kTo * T::kFrom];
#pragma GCC unroll 4
  for (int j = 0; j < T::kFrom; ++j) T::run(from + j, T::kFrom, half + j, T::kFrom);
#pragma GCC unroll 4
  for (int i = 0; i < T::kTo; ++i) T::run(half + i * T::kFrom, 1, to + i * T::kTo, 1);
}

// Panels that share a cache line of a feature map.
constexpr int64_t kLinePanels = 16 / kPanel;

template <typename T>
void tiles_in(const FeatureMap<const float*>& x, const TileGrid& grid, const TileRange& tiles, float* to,
              const PanelStrides& strides) {
  constexpr int kSize = T::kFrom;
  const int64_t row_stride = x.width * x.pixel, image_stride = x.height * row_stride;
  const int64_t padded = (tiles.count + kTileGroup - 1) / kTileGroup * kTileGroup;
  const int64_t last = grid.step * (kSize - 1);
  for (int64_t part = 0; part < grid.parts * grid.parts; ++part) {
    const int64_t row_offset = grid.rows[part / grid.parts], col_offset = grid.cols[part % grid.parts];
    for (int64_t c = 0; c < x.channels; c += kLinePanels * kPanel) {
      const int64_t panels = x.channels - c >= kLinePanels * kPanel ? kLinePanels : 1;
      float* const panel = to + part * strides.part + c / kPanel * strides.panel;
      TileCursor tile(tiles);
      for (int64_t t = 0; t < tiles.count; ++t, tile.next()) {
        const int64_t row = grid.advance * tile.row + row_offset, col = grid.advance * tile.col + col_offset;
        const bool inside = row >= 0 && col >= 0 && row + last < x.height && col + last < x.width;
        const float* const base = x.data + tile.image * image_stride + row * row_stride + col * x.pixel + c;
        for (int64_t p = 0; p < panels; ++p) {
          Vec pixels[kSize * kSize], points[T::kTo * T::kTo];
          const float* const from = base + p * kPanel;
          if (inside) {
#pragma GCC unroll 4
            for (int i = 0; i < kSize; ++i) {
#pragma GCC unroll 4
              for (int j = 0; j < kSize; ++j) {
                pixels[i * kSize + j] = load(from + grid.step * (i * row_stride + j * x.pixel));
              }
            }
          } else {
            for (int i = 0; i < kSize; ++i) {
              for (int j = 0; j < kSize; ++j) {
                const int64_t y_at = row + grid.step * i, x_at = col + grid.step * j;
                const bool exists = y_at >= 0 && y_at < x.height && x_at >= 0 && x_at < x.width;
                pixels[i * kSize + j] = exists ? load(from + grid.step * (i * row_stride + j * x.pixel)) : zero();
              }
            }
          }
          transform<T>(pixels, points);
          float* const out = panel + p * strides.panel + t * kPanel;
#pragma GCC unroll 16
          for (int point = 0; point < T::kTo * T::kTo; ++point) {
            store(out + point * strides.plane, points[point]);
          }
        }
      }
      for (int64_t t = tiles.count; t < padded; ++t) {
        for (int64_t p = 0; p < panels; ++p) {
          for (int point = 0; point < T::kTo * T::kTo; ++point) {
            store(panel + p * strides.panel + t * kPanel + point * strides.plane, zero());
          }
        }
      }
    }
  }
}

template <typename T>
void tiles_out(const float* from, const PanelStrides& strides, const TileGrid& grid, const TileRange& tiles,
               const float* bias, bool accumulate, const FeatureMap<float*>& y) {
  const int64_t row_stride = y.width * y.pixel, image_stride = y.height * row_stride;
  for (int64_t part = 0; part < grid.parts * grid.parts; ++part) {
    const int64_t row_offset = grid.rows[part / grid.parts], col_offset = grid.cols[part % grid.parts];
    for (int64_t c = 0; c < y.channels; c += kLinePanels * kPanel) {
      const int64_t panels = y.channels - c >= kLinePanels * kPanel ? kLinePanels : 1;
      const float* const panel = from + part * strides.part + c / kPanel * strides.panel;
      TileCursor tile(tiles);
      for (int64_t t = 0; t < tiles.count; ++t, tile.next()) {
        const int64_t row = grid.advance * tile.row + row_offset, col = grid.advance * tile.col + col_offset;
        float* const base = y.data + tile.image * image_stride + row * row_stride + col * y.pixel + c;
        for (int64_t p = 0; p < panels; ++p) {
          Vec points[T::kFrom * T::kFrom], pixels[T::kTo * T::kTo];
          const float* const in = panel + p * strides.panel + t * kPanel;
#pragma GCC unroll 16
          for (int point = 0; point < T::kFrom * T::kFrom; ++point) {
            points[point] = load(in + point * strides.plane);
          }
          transform<T>(points, pixels);
          const Vec shift = bias ? load(bias + c + p * kPanel) : zero();
          for (int i = 0; i < T::kTo && row + grid.step * i < y.height; ++i) {
            for (int j = 0; j < T::kTo && col + grid.step * j < y.width; ++j) {
              float* const out = base + p * kPanel + grid.step * (i * row_stride + j * y.pixel);
              const Vec pixel = pixels[i * T::kTo + j] + shift;
              store(out, accumulate ? load(out) + pixel : pixel);
            }
          }
        }
      }
    }
  }
}

// Along each axis kernels of kSize taps have parts of T's: with stride 1 one after the other, else as phases.
template <int kTaps, int kStride>
constexpr int tap_of(int part, int tap) {
  return kStride == 1 ? kTaps * part + tap : kStride * tap + part;
}

template <typename T, int kSize, int kStride>
void kernel_in(const float* weight, int64_t in_channels, int64_t part, float* to, int64_t plane) {
  constexpr int kTaps = T::kFrom, kParts = kSize / kTaps;
  const int64_t filter = kSize * kSize * in_channels;
  for (int64_t c = 0; c < in_channels; c += kPanel) {
    Vec taps[kTaps * kTaps][kPanel];
    for (int tap = 0; tap < kTaps * kTaps; ++tap) {
      const int row = tap_of<kTaps, kStride>(part / kParts, tap / kTaps);
      const int col = tap_of<kTaps, kStride>(part % kParts, tap % kTaps);
      const float* const from = weight + (row * kSize + col) * in_channels + c;
      for (int o = 0; o < kPanel; ++o) taps[tap][o] = load(from + o * filter);
      transpose(taps[tap]);
    }
    for (int lane = 0; lane < kPanel; ++lane) {
      Vec kernel[kTaps * kTaps], points[T::kTo * T::kTo];
      for (int tap = 0; tap < kTaps * kTaps; ++tap) kernel[tap] = taps[tap][lane];
      transform<T>(kernel, points);
      float* const out = to + (c + lane) * kPanel;
      for (int point = 0; point < T::kTo * T::kTo; ++point) store(out + point * plane, points[point]);
    }
  }
}

template <typename T, int kSize, int kStride>
void kernel_adjoint_in(const float* weight, int64_t out_channels, int64_t in_channels, int64_t padding, int64_t part,
                       float* to, int64_t plane) {
  constexpr int kTaps = T::kFrom, kParts = kSize / kTaps, kPoints = T::kTo * T::kTo;
  // The part of the kernel that makes part r of the result, or is part r of the turned kernel.
  const auto part_of = [padding](int64_t r) {
    return static_cast<int>(kStride == 1 ? kParts - 1 - r : (r + padding) % kStride);
  };
  const int row_part = part_of(part / kParts), col_part = part_of(part % kParts);
  for (int64_t o = 0; o < out_channels; ++o) {
    const float* const filter = weight + o * kSize * kSize * in_channels;
    Vec kernel[kTaps * kTaps], points[kPoints];
    for (int tap = 0; tap < kTaps * kTaps; ++tap) {
      const int row = tap_of<kTaps, kStride>(row_part, kTaps - 1 - tap / kTaps);
      const int col = tap_of<kTaps, kStride>(col_part, kTaps - 1 - tap % kTaps);
      kernel[tap] = load(filter + (row * kSize + col) * in_channels);
    }
    transform<T>(kernel, points);
    float* const out = to + o * kPanel;
    for (int point = 0; point < kPoints; ++point) store(out + point * plane, points[point]);
  }
}

template <typename T, int kSize, int kStride>
void kernel_out(const float* from, const PanelStrides& strides, int64_t in_channels, int64_t part, bool accumulate,
                float* weight_grad) {
  constexpr int kTaps = T::kTo, kParts = kSize / kTaps;
  for (int64_t c = 0; c < in_channels; c += kPanel) {
    Vec points[T::kFrom * T::kFrom], kernel[kTaps * kTaps];
    for (int point = 0; point < T::kFrom * T::kFrom; ++point) {
      points[point] = load(from + point * strides.plane + c / kPanel * strides.panel);
    }
    transform<T>(points, kernel);
    for (int tap = 0; tap < kTaps * kTaps; ++tap) {
      const int row = tap_of<kTaps, kStride>(part / kParts, tap / kTaps);
      const int col = tap_of<kTaps, kStride>(part % kParts, tap % kTaps);
      float* const to = weight_grad + (row * kSize + col) * in_channels + c;
      store(to, accumulate ? load(to) + kernel[tap] : kernel[tap]);
    }
  }
}

// Three taps as one part, four as two of two.
template <int kSize, int kStride>
WinogradKernels kernels_for() {
  constexpr bool kThree = kSize == 3;
  using Input = std::conditional_t<kThree, Input3, Input2>;
  using Output = std::conditional_t<kThree, Output3, Output2>;
  using Cotangent = std::conditional_t<kThree, Cotangent3, Cotangent2>;
  using Kernel = std::conditional_t<kThree, Kernel3, Kernel2>;
  using KernelGrad = std::conditional_t<kThree, KernelGrad3, KernelGrad2>;
  return {kPanel,
          Input::kTo * Input::kTo,
          tiles_in<Input>,
          tiles_in<Cotangent>,
          tiles_out<Output>,
          kernel_in<Kernel, kSize, kStride>,
          kernel_adjoint_in<Kernel, kSize, kStride>,
          kernel_out<KernelGrad, kSize, kStride>,
          tile_product,
          channel_product};
}

WinogradKernels winograd_kernels_of(const Filter& filter) {
  if (filter.size == 3) return kernels_for<3, 1>();
  return filter.stride == 1 ? kernels_for<4, 1>() : kernels_for<4, 2>();
}

}  // namespace
}  // namespace gnfast::cpu
