// Winograd's kernels with 16 floats in a vector, 32 vectors in registers. Compiled with flags of its own (see
// setup.py).

#include <immintrin.h>

#include "cpu.h"

namespace gnfast::cpu {
namespace {

using Vec = __m512;

constexpr int64_t kPanel = 16;
constexpr int kRows = 8;
// So many k that a strip of b stays in the L1 cache.
constexpr int64_t kDepth = 128;
constexpr int kStepsPerPrefetch = 4;

inline Vec zero() {
  return _mm512_setzero_ps();
}
inline Vec broadcast(float x) {
  return _mm512_set1_ps(x);
}
inline Vec load(const float* from) {
  return _mm512_loadu_ps(from);
}
inline void store(float* to, Vec x) {
  _mm512_storeu_ps(to, x);
}

// sum += x * y, in this very form: see cpu_avx2.cpp.
inline void multiply_add(Vec x, Vec y, Vec& sum) {
  __asm__("vfmadd231ps %2, %1, %0" : "+v"(sum) : "v"(x), "v"(y));
}

void transpose(Vec* rows) {
  Vec pairs[16], quads[16];
  for (int i = 0; i < 16; i += 2) {
    pairs[i] = _mm512_unpacklo_ps(rows[i], rows[i + 1]);
    pairs[i + 1] = _mm512_unpackhi_ps(rows[i], rows[i + 1]);
  }
  for (int i = 0; i < 16; i += 4) {
    quads[i] = _mm512_shuffle_ps(pairs[i], pairs[i + 2], 0x44);
    quads[i + 1] = _mm512_shuffle_ps(pairs[i], pairs[i + 2], 0xEE);
    quads[i + 2] = _mm512_shuffle_ps(pairs[i + 1], pairs[i + 3], 0x44);
    quads[i + 3] = _mm512_shuffle_ps(pairs[i + 1], pairs[i + 3], 0xEE);
  }
  // Quad 4 i + j has columns j, 4 + j, 8 + j and 12 + j of rows 4 i to 4 i + 3.
  for (int j = 0; j < 4; ++j) {
    const Vec low_1 = _mm512_shuffle_f32x4(quads[j], quads[4 + j], 0x44);
    const Vec low_2 = _mm512_shuffle_f32x4(quads[8 + j], quads[12 + j], 0x44);
    const Vec high_1 = _mm512_shuffle_f32x4(quads[j], quads[4 + j], 0xEE);
    const Vec high_2 = _mm512_shuffle_f32x4(quads[8 + j], quads[12 + j], 0xEE);
    rows[j] = _mm512_shuffle_f32x4(low_1, low_2, 0x88);
    rows[4 + j] = _mm512_shuffle_f32x4(low_1, low_2, 0xDD);
    rows[8 + j] = _mm512_shuffle_f32x4(high_1, high_2, 0x88);
    rows[12 + j] = _mm512_shuffle_f32x4(high_1, high_2, 0xDD);
  }
}

}  // namespace
}  // namespace gnfast::cpu

#include "transforms.h"

namespace gnfast::cpu {

WinogradKernels avx512_winograd_kernels(const Filter& filter) {
  return winograd_kernels_of(filter);
}

}  // namespace gnfast::cpu
