// Winograd's kernels with 8 floats in a vector, 16 vectors in registers. Compiled with flags of its own (see setup.py).

#include <immintrin.h>

#include "cpu.h"

namespace gnfast::cpu {
namespace {

using Vec = __m256;

constexpr int64_t kPanel = 8;
constexpr int kRows = 4;
// So many k that a strip of b stays in the L1 cache.
constexpr int64_t kDepth = 256;
constexpr int kStepsPerPrefetch = 8;

inline Vec zero() {
  return _mm256_setzero_ps();
}
inline Vec broadcast(float x) {
  return _mm256_set1_ps(x);
}
inline Vec load(const float* from) {
  return _mm256_loadu_ps(from);
}
inline void store(float* to, Vec x) {
  _mm256_storeu_ps(to, x);
}

// sum += x * y, in this very form: with a choice, GCC reloads factors from memory or moves sums between registers,
// which costs a tenth of the speed.
inline void multiply_add(Vec x, Vec y, Vec& sum) {
  __asm__("vfmadd231ps %2, %1, %0" : "+x"(sum) : "x"(x), "x"(y));
}

void transpose(Vec* rows) {
  Vec pairs[8], quads[8];
  for (int i = 0; i < 8; i += 2) {
    pairs[i] = _mm256_unpacklo_ps(rows[i], rows[i + 1]);
    pairs[i + 1] = _mm256_unpackhi_ps(rows[i], rows[i + 1]);
  }
  for (int i = 0; i < 8; i += 4) {
    quads[i] = _mm256_shuffle_ps(pairs[i], pairs[i + 2], 0x44);
    quads[i + 1] = _mm256_shuffle_ps(pairs[i], pairs[i + 2], 0xEE);
    quads[i + 2] = _mm256_shuffle_ps(pairs[i + 1], pairs[i + 3], 0x44);
    quads[i + 3] = _mm256_shuffle_ps(pairs[i + 1], pairs[i + 3], 0xEE);
  }
  for (int i = 0; i < 4; ++i) {
    rows[i] = _mm256_permute2f128_ps(quads[i], quads[i + 4], 0x20);
    rows[i + 4] = _mm256_permute2f128_ps(quads[i], quads[i + 4], 0x31);
  }
}

}  // namespace
}  // namespace gnfast::cpu

#include "transforms.h"

namespace gnfast::cpu {

WinogradKernels avx2_winograd_kernels(const Filter& filter) {
  return winograd_kernels_of(filter);
}

}  // namespace gnfast::cpu
