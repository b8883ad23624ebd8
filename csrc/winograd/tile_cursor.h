// Visits tiles one after the other without dividing.
//
// In an anonymous namespace, as files for different processors include it: see transforms.h.

#pragma once

#include "cpu.h"

namespace gnfast::cpu {
namespace {

struct TileCursor {
  const TileRange& tiles;
  int64_t first_image, images, image, row, col;

  explicit TileCursor(const TileRange& range) : tiles(range) {
    const int64_t per_image = range.tile_rows * range.tile_cols, per_block = range.together * per_image;
    start_block(range.first / per_block * range.together);
    const int64_t place = range.first % per_block, tile = place / images;
    image = first_image + place % images;
    row = tile / range.tile_cols;
    col = tile % range.tile_cols;
  }

  void next() {
    if (++image < first_image + images) return;
    image = first_image;
    if (++col < tiles.tile_cols) return;
    col = 0;
    if (++row < tiles.tile_rows) return;
    start_block(first_image + images);
  }

 private:
  void start_block(int64_t from) {
    first_image = image = from;
    images = tiles.batch - from < tiles.together ? tiles.batch - from : tiles.together;
    row = col = 0;
  }
};

}  // namespace
}  // namespace gnfast::cpu
