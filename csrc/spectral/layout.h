// Where the entries of a weight's matrix lie in memory, for the spectral-norm kernels on both kinds of device.

#pragma once

#include <c10/util/ArrayRef.h>

#include <algorithm>
#include <cstdint>
#include <optional>
#include <vector>

namespace gnfast {

// The matrix of a weight has `rows` = size(dim) rows and `cols` columns, the other dimensions flattened in their order.
// In memory it is [outer, rows, inner] with outer * inner = cols, and position p = o * inner + i along the columns
// holds column (p % minor) * major + p / minor. minor is 1 for contiguous weights and the input channels for
// channels_last.
struct SpectralLayout {
  int64_t rows, cols, outer, inner, major, minor;

  int64_t column(int64_t position) const { return position % minor * major + position / minor; }
};

// Nothing for a weight with gaps, and where the order of the columns in memory is not a rotation of their own.
inline std::optional<SpectralLayout> spectral_layout(c10::IntArrayRef sizes, c10::IntArrayRef strides, int64_t dim) {
  std::vector<int64_t> columns, in_memory;  // dimensions: the columns in order; all, from the largest stride down
  for (int64_t d = 0; d < static_cast<int64_t>(sizes.size()); ++d) {
    if (sizes[d] == 1) continue;
    in_memory.push_back(d);
    if (d != dim) columns.push_back(d);
  }
  std::stable_sort(in_memory.begin(), in_memory.end(), [&](int64_t a, int64_t b) { return strides[a] > strides[b]; });

  SpectralLayout layout{sizes[dim], 1, 1, 1, 1, 1};
  int64_t dense_stride = 1;
  bool passed_rows = false;
  for (auto d = in_memory.rbegin(); d != in_memory.rend(); ++d) {
    if (strides[*d] != dense_stride) return std::nullopt;
    dense_stride *= sizes[*d];
    if (*d == dim) {
      passed_rows = true;
    } else {
      (passed_rows ? layout.outer : layout.inner) *= sizes[*d];
    }
  }
  layout.cols = layout.outer * layout.inner;

  in_memory.erase(std::remove(in_memory.begin(), in_memory.end(), dim), in_memory.end());
  if (!columns.empty()) {
    const auto slowest = std::find(columns.begin(), columns.end(), in_memory.front());
    for (auto d = columns.begin(); d != slowest; ++d) layout.minor *= sizes[*d];
    std::rotate(columns.begin(), slowest, columns.end());
  }
  layout.major = layout.cols / layout.minor;
  if (columns != in_memory) return std::nullopt;
  return layout;
}

}  // namespace gnfast
