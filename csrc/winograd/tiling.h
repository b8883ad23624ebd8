// How convolutions are cut into tiles, and which of them a product needs.

#pragma once

#include <c10/util/ArrayRef.h>

#include "cpu.h"
#include "tile_cursor.h"

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

// What a point of the one-dimensional transforms reads of an input tile and gives to of an output tile: a bit for every
// pixel. See Input3 and Output3, Input2 and Output2.
struct Point {
  unsigned reads, gives;
};
constexpr Point kThreeTaps[] = {{0b0101, 0b01}, {0b0110, 0b11}, {0b0110, 0b11}, {0b1010, 0b10}};
constexpr Point kTwoTaps[] = {{0b011, 0b01}, {0b010, 0b11}, {0b110, 0b10}};

// How many tiles there are along an axis, for maps of such sizes.
struct Axis {
  int64_t tiles, inputs, outputs;
};

struct Span {
  int64_t first, end;
  bool has(int64_t x) const { return first <= x && x < end; }
};

// Of tiles in rows and columns.
struct Region {
  Span rows, cols;
};

inline bool touches(unsigned pixels, int64_t start, int64_t step, int64_t size) {
  for (; pixels; pixels >>= 1, start += step) {
    if ((pixels & 1) && start >= 0 && start < size) return true;
  }
  return false;
}

// One of the three convolutions, or the data gradient of one, as tiles of an input, products per plane, tiles of an
// output.
struct Tiling {
  int64_t batch;
  Axis rows, cols;
  TileGrid input, output;
  int64_t taps;
  int64_t planes;       // products
  int64_t input_parts;  // of the channels, side by side in one product
  // Whether a convolution takes its input parts one after the other instead and adds what they give: all four of
  // stride 1 would not stay in the L2 cache.
  bool in_turn;
  bool skips = false;  // whether some products leave tiles out

  int64_t tiles() const { return batch * rows.tiles * cols.tiles; }
  Tiling only(int64_t part) const {
    return Tiling{batch, rows, cols, part_of(input, part), output, taps, planes, 1, false}.checked();
  }

  // Where products leave tiles out, whole groups of tiles lie at one place of several images.
  TileRange range(int64_t first, int64_t count) const {
    return {first, count, rows.tiles, cols.tiles, batch, skips ? kTileGroup : 1};
  }

  // The rows and columns of tiles that a plane needs. Of the others it reads nothing but padding, or it gives to
  // nothing but pixels past the edge.
  Region needed(int64_t plane) const {
    const int64_t side = taps + 1, point = plane % (side * side), part = plane / (side * side);
    // Parts of the output have planes and a part of the input of their own, else all parts of the input are in each.
    const int64_t first = output.parts > 1 ? part : 0, parts = output.parts > 1 ? 1 : input.parts;
    const auto span = [&](const Axis& axis, const Point& uses, const int64_t* inputs, int64_t outputs) {
      const auto counts = [&](int64_t tile) {
        bool reads = false;
        for (int64_t p = 0; p < parts; ++p) {
          reads = reads || touches(uses.reads, input.advance * tile + inputs[p], input.step, axis.inputs);
        }
        return reads && touches(uses.gives, output.advance * tile + outputs, output.step, axis.outputs);
      };
      Span s{0, axis.tiles};
      while (s.first < s.end && !counts(s.first)) ++s.first;
      while (s.first < s.end && !counts(s.end - 1)) --s.end;
      return s;
    };
    const Point* const points = taps == 3 ? kThreeTaps : kTwoTaps;
    return {span(rows, points[point / side], input.rows + first / input.parts, output.rows[part / output.parts]),
            span(cols, points[point % side], input.cols + first % input.parts, output.cols[part % output.parts])};
  }

  bool is_all(const Region& region) const {
    return region.rows.end - region.rows.first == rows.tiles && region.cols.end - region.cols.first == cols.tiles;
  }

  // The groups of a range in which a plane needs a tile.
  TileGroups groups(int64_t plane, const TileRange& tiles) const {
    const Region region = skips ? needed(plane) : Region{{0, rows.tiles}, {0, cols.tiles}};
    TileGroups result{0, {}};
    if (is_all(region)) {
      for (; result.count < divide_up(tiles.count, kTileGroup); ++result.count) result.at[result.count] = result.count;
      return result;
    }
    TileCursor tile(tiles);
    for (int64_t t = 0; t < tiles.count; ++t, tile.next()) {
      if (!region.rows.has(tile.row) || !region.cols.has(tile.col)) continue;
      if (result.count == 0 || result.at[result.count - 1] < t / kTileGroup) result.at[result.count++] = t / kTileGroup;
    }
    return result;
  }

  // The same, knowing whether products leave tiles out.
  Tiling checked() const {
    Tiling result = *this;
    for (int64_t plane = 0; plane < planes; ++plane) result.skips = result.skips || !is_all(needed(plane));
    return result;
  }
};

struct Sizes {
  int64_t batch, channels, height, width;
  explicit Sizes(at::IntArrayRef s) : batch(s[0]), channels(s[1]), height(s[2]), width(s[3]) {}
};

inline Tiling tile_outputs(const Sizes& x, const Sizes& y, const Filter& filter) {
  const int64_t stride = filter.stride, parts = filter.size == 3 ? 1 : 2, from = -filter.padding;
  const int64_t next = from + (stride == 1 ? 2 : 1);
  const Axis rows{divide_up(y.height, 2), x.height, y.height}, cols{divide_up(y.width, 2), x.width, y.width};
  const TileGrid input{parts, 2 * stride, stride, {from, next}, {from, next}}, output{1, 2, 1, {0, 0}, {0, 0}};
  const int64_t taps = parts == 1 ? 3 : 2;
  return Tiling{
      y.batch, rows, cols, input, output, taps, (taps + 1) * (taps + 1), parts * parts, stride == 1 && parts > 1}
      .checked();
}

// Of cotangents `y`, for gradients of the sizes of `x`.
inline Tiling tile_input_grads(const Sizes& y, const Sizes& x, const Filter& filter) {
  const int64_t padding = filter.padding;
  if (filter.stride == 1) return tile_outputs(y, x, {filter.size, 1, filter.size - 1 - padding});
  // Rows of one parity are a 2×2 convolution of the cotangent with the taps of one parity.
  const Axis rows{divide_up(x.height, 4), y.height, x.height}, cols{divide_up(x.width, 4), y.width, x.width};
  const int64_t even = padding / 2 - 1, odd = (padding + 1) / 2 - 1;
  const TileGrid input{2, 2, 1, {even, odd}, {even, odd}}, output{2, 4, 2, {0, 1}, {0, 1}};
  return Tiling{x.batch, rows, cols, input, output, 2, 36, 1, false}.checked();
}

}  // namespace gnfast::cpu
