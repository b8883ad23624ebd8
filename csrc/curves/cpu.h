// Serial sweeps over the derivatives of functions φ, one set per instruction set, chosen at run time in cpu.cpp.

#pragma once

#include <cstdint>

namespace gnfast::cpu {

// Entries of the input h, its tangent t and its output's cotangent δ, and of the results φ'(h) t and φ''(h) t δ. What a
// sweep does not use is null.
struct CurveEntries {
  const float *h, *tangent, *cotangent;
  float *sloped, *bent;
};

using CurveSweep = void (*)(const CurveEntries& entries, int64_t count, const float* constants);

// The sweeps for one φ, with so many constants.
struct CurveSweeps {
  const char* kind;
  int constants;
  CurveSweep sloped;  // sloped = φ'(h) t
  CurveSweep onto;    // sloped += φ'(h) t
  CurveSweep bent;    // bent = φ''(h) t δ
  CurveSweep both;    // sloped and bent
};

constexpr int kCurveConstants = 3;
constexpr int kCurves = 12;

// Each returns kCurves of them.
const CurveSweeps* portable_curve_sweeps();
// Callable only where the processor has AVX2 and FMA.
const CurveSweeps* avx2_curve_sweeps();
// Callable only where the processor has AVX-512 (F, DQ, BW and VL).
const CurveSweeps* avx512_curve_sweeps();

}  // namespace gnfast::cpu
