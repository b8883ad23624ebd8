// How convolutions are cut into tiles.

#pragma once

#include <c10/util/ArrayRef.h>

#include "cpu.h"

namespace gnfast::cpu {

inline int64_t divide_up(int64_t x, int64_t by) {
  return (x + by - 1) / by;
}
inline int64_t round_up(int64_t x, int64_t to) {
  return divide_up(x, to) * to;
}

inline TileGrid part_of(const TileGrid& grid, int64_t part) {
  return {1, grid.advance, grid.step, {grid.rows[part / grid.parts]}, {grid.cols[part % grid.parts]}};
}

// One of the three convolutions, or the data gradient of one, as tiles of an input, products per plane, tiles of an
// output.
struct Tiling {
  int64_t tile_rows, tile_cols, tiles;
  TileGrid input, output;
  int64_t planes;       // products
  int64_t input_parts;  // of the channels, side by side in one product
  // Of a convolution's input parts, how many come one after the other instead, their products added: all four of
  // stride 1 would not stay in the L2 cache.
  int64_t turns;

  Tiling only(int64_t part) const { return {tile_rows, tile_cols, tiles, part_of(input, part), output, planes, 1, 1}; }
  TileRange range(int64_t first, int64_t count) const { return {first, count, tile_rows, tile_cols}; }
};

struct Sizes {
  int64_t batch, channels, height, width;
  explicit Sizes(at::IntArrayRef s) : batch(s[0]), channels(s[1]), height(s[2]), width(s[3]) {}
};

inline Tiling tile_outputs(const Sizes& y, const Filter& filter) {
  const int64_t rows = divide_up(y.height, 2), cols = divide_up(y.width, 2), stride = filter.stride;
  const int64_t parts = filter.size == 3 ? 1 : 2, from = -filter.padding;
  const int64_t next = from + (stride == 1 ? 2 : 1);
  const TileGrid input{parts, 2 * stride, stride, {from, next}, {from, next}}, output{1, 2, 1, {0, 0}, {0, 0}};
  const int64_t turns = stride == 1 ? parts * parts : 1;
  return {rows, cols, y.batch * rows * cols, input, output, parts == 1 ? 16 : 9, parts * parts, turns};
}

inline Tiling tile_input_grads(const Sizes& x, const Filter& filter) {
  const int64_t padding = filter.padding;
  if (filter.stride == 1) return tile_outputs(x, {filter.size, 1, filter.size - 1 - padding});
  // Rows of one parity are a 2×2 convolution of the cotangent with the taps of one parity.
  const int64_t rows = divide_up(x.height, 4), cols = divide_up(x.width, 4);
  const int64_t even = padding / 2 - 1, odd = (padding + 1) / 2 - 1;
  const TileGrid input{2, 2, 1, {even, odd}, {even, odd}}, output{2, 4, 2, {0, 1}, {0, 1}};
  return {rows, cols, x.batch * rows * cols, input, output, 36, 1, 1};
}

}  // namespace gnfast::cpu
