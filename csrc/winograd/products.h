// The products of planes: all that Winograd's convolution multiplies.
//
// For the file that defines Vec, kPanel, load, store, zero, broadcast, multiply_add, kRows, kDepth and
// kStepsPerPrefetch; see transforms.h.

#include "cpu.h"

namespace gnfast::cpu {
namespace {

template <_mm_hint kHint>
inline void prefetch(const float* address) {
  _mm_prefetch(reinterpret_cast<const char*>(address), kHint);
}

constexpr int64_t kCacheLine = 16;

// kRows rows of a times kPanels panels of b, sums in registers, over kSteps k from kSteps * block(i) on for i in
// [0, blocks). Element (row, k) of a is at (k / kSteps) * a_outer + (k % kSteps) * kInner + row * kRow.
template <int kPanels, int kSteps, int kInner, int kRow, typename Block>
inline __attribute__((always_inline)) void multiply(int64_t blocks, const Block& block, const float* a, int64_t a_outer,
                                                    const float* b, int64_t b_panel, float* c, int64_t c_panel,
                                                    bool accumulate, const float* ahead) {
  Vec sums[kRows][kPanels];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 3
    for (int p = 0; p < kPanels; ++p) sums[r][p] = zero();
  }
#pragma GCC unroll 3
  for (int p = 0; p < kPanels; ++p) {
#pragma GCC unroll 8
    for (int64_t i = 0; i < kRows * kPanel; i += kCacheLine) prefetch<_MM_HINT_T0>(c + p * c_panel + i);
  }
  for (int64_t i = 0; i < blocks; ++i) {
    const float* const rows = a + block(i) * a_outer;
    const float* const panels = b + block(i) * kSteps * kPanel;
#pragma GCC unroll 8
    for (int step = 0; step < kSteps; step += kStepsPerPrefetch, ahead += kCacheLine) prefetch<_MM_HINT_T1>(ahead);
#pragma GCC unroll 16
    for (int inner = 0; inner < kSteps; ++inner) {
      Vec columns[kPanels];
#pragma GCC unroll 3
      for (int p = 0; p < kPanels; ++p) columns[p] = load(panels + p * b_panel + inner * kPanel);
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) {
        const Vec entry = broadcast(rows[inner * kInner + r * kRow]);
#pragma GCC unroll 3
        for (int p = 0; p < kPanels; ++p) multiply_add(entry, columns[p], sums[r][p]);
      }
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 3
    for (int p = 0; p < kPanels; ++p) {
      float* const to = c + r * kPanel + p * c_panel;
      store(to, accumulate ? sums[r][p] + load(to) : sums[r][p]);
    }
  }
}

// Calls strip(first panel, Count of how many) over all panels: threes, and twos or a one for the rest.
template <int kCount>
struct Count {
  static constexpr int value = kCount;
};

template <typename Strip>
inline void for_strips(int64_t panels, const Strip& strip) {
  int64_t p = 0;
  while (panels - p >= 3 && panels - p != 4) {
    strip(p, Count<3>());
    p += 3;
  }
  for (; panels - p >= 2; p += 2) strip(p, Count<2>());
  if (p < panels) strip(p, Count<1>());
}

void tile_product(const float* a, const float* b, float* c, int64_t panel, const TileGroups& groups, int64_t k,
                  int64_t n) {
  const auto in_order = [](int64_t i) { return i; };
  for (int64_t first = 0; first < k; first += kDepth) {
    const int64_t depth = k - first < kDepth ? k - first : kDepth;
    for_strips(n / kPanel, [&](int64_t p, auto count) {
      constexpr int kPanels = decltype(count)::value;
      const float* const strip = b + (p * k + first) * kPanel;
      const float* const next = strip + kPanels * k * kPanel;
      const int64_t per_call = depth / kStepsPerPrefetch * kCacheLine;
      for (int64_t call = 0; call < groups.count * kTileGroup / kRows; ++call) {
        const int64_t row = call * kRows, t = groups.at[row / kTileGroup] * kTileGroup + row % kTileGroup;
        multiply<kPanels, kPanel, 1, kPanel>(depth / kPanel, in_order, a + first / kPanel * panel + t * kPanel, panel,
                                             strip, k * kPanel, c + p * panel + t * kPanel, panel, first > 0,
                                             next + call % kPanels * k * kPanel + call / kPanels * per_call);
      }
    });
  }
}

void channel_product(const float* a, const float* b, float* c, int64_t panel, int64_t c_panel, const TileGroups& groups,
                     int64_t m, int64_t n, bool accumulate) {
  const auto of_groups = [&](int64_t i) { return groups.at[i]; };
  for_strips(n / kPanel, [&](int64_t p, auto count) {
    constexpr int kPanels = decltype(count)::value;
    const float* const next = b + (p + kPanels) * panel;
    const int64_t per_call = groups.count * kTileGroup / kStepsPerPrefetch * kCacheLine;
    for (int64_t row = 0; row < m; row += kRows) {
      multiply<kPanels, kTileGroup, kPanel, 1>(
          groups.count, of_groups, a + row / kPanel * panel + row % kPanel, kTileGroup * kPanel, b + p * panel, panel,
          c + row * kPanel + p * c_panel, c_panel, accumulate, next + row / kRows * per_call);
    }
  });
}

}  // namespace
}  // namespace gnfast::cpu
