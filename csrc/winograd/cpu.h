// Serial pieces of Winograd's convolution F(2×2, 3×3), and F(2×2, 2×2) on the four 2×2 parts of a 4×4 one: with stride
// 2 its phases, with stride 1 its quarters, of which each sees the map at an offset.
//
// Feature maps are (batch, height, width, channels). Between transforms and products everything is in panels of P
// channels, of which the channels are a multiple: [plane][channels / P][tiles][P], a plane being one of the points of
// the transformed tile. P is as many floats as a vector has.

#pragma once

#include <cstdint>

namespace gnfast::cpu {

// Tiles come in multiples of this, those beyond the last filled with zeros.
constexpr int64_t kTileGroup = 8;
// Of a range.
constexpr int64_t kMaxTiles = 128;

// Which pixels belong to tile (i, j): row `advance * i + rows[r] + step * k` for part r = 0, ... of `parts` and
// k = 0, 1, ...; columns alike.
struct TileGrid {
  int64_t parts, advance, step;
  int64_t rows[2], cols[2];
};

// Tiles [first, first + count) of all the images', row by row; those at one place of `together` images follow each
// other.
struct TileRange {
  int64_t first, count, tile_rows, tile_cols, batch, together;
};

// The groups of a range's tiles that a product takes in, the i-th one from tile kTileGroup * at[i] on.
struct TileGroups {
  int64_t count;
  int64_t at[kMaxTiles / kTileGroup];
};

// `channels` of the channels of (batch, height, width, pixel) maps.
template <typename Pointer>
struct FeatureMap {
  Pointer data;
  int64_t height, width, channels, pixel;
};

// Where a plane, a part and a panel start, in floats.
struct PanelStrides {
  int64_t plane, part, panel;
};

// Of a kernel, square: 3×3 with stride 1, or 4×4 with stride 1 or 2.
struct Filter {
  int64_t size, stride, padding;
};

// For filters of one size and stride.
struct WinogradKernels {
  int64_t panel;   // P
  int64_t points;  // of a transformed tile
  // B^T d B
  void (*input)(const FeatureMap<const float*>& x, const TileGrid& grid, const TileRange& tiles, float* to,
                const PanelStrides& strides);
  // A y A^T
  void (*cotangent)(const FeatureMap<const float*>& y, const TileGrid& grid, const TileRange& tiles, float* to,
                    const PanelStrides& strides);
  // A^T m A, plus the bias (channels) unless it is null; added to what is there if `accumulate`
  void (*output)(const float* from, const PanelStrides& strides, const TileGrid& grid, const TileRange& tiles,
                 const float* bias, bool accumulate, const FeatureMap<float*>& y);
  // G g G^T of one part of P output channels from `weight` (.., kernel, kernel, in_channels) on, for x -> y:
  // to[plane][c][P].
  void (*weight)(const float* weight, int64_t in_channels, int64_t part, float* to, int64_t plane);
  // The same for the data gradient of output channels [0, out_channels) and P input channels.
  void (*weight_adjoint)(const float* weight, int64_t out_channels, int64_t in_channels, int64_t padding, int64_t part,
                         float* to, int64_t plane);
  // G^T u G: what a part has of one output channel's gradient, (kernel, kernel, in_channels), added to what is there if
  // `accumulate`
  void (*weight_grad)(const float* from, const PanelStrides& strides, int64_t in_channels, int64_t part,
                      bool accumulate, float* to);
  // c[n][tile] = sum over k of a[k][tile] * b[n][k] for one plane and these tiles: a and c in panels of tiles with
  // `panel` floats from one to the next, b [n / P][k][P].
  void (*tile_product)(const float* a, const float* b, float* c, int64_t panel, const TileGroups& groups, int64_t k,
                       int64_t n);
  // c[n / P][m][P] = sum over these tiles of a[m][tile] * b[n][tile], added to what is there if `accumulate`: a and b
  // in panels with `panel` floats from one to the next, c with `c_panel`.
  void (*channel_product)(const float* a, const float* b, float* c, int64_t panel, int64_t c_panel,
                          const TileGroups& groups, int64_t m, int64_t n, bool accumulate);
};

#ifdef GNFAST_X86_KERNELS
// P = 8. Callable only where the processor has AVX2 and FMA.
WinogradKernels avx2_winograd_kernels(const Filter& filter);
// P = 16. Callable only where the processor has AVX-512 (F, DQ, BW and VL).
WinogradKernels avx512_winograd_kernels(const Filter& filter);
#endif

}  // namespace gnfast::cpu
