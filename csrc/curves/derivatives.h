// Derivatives of functions φ, and sweeps over them, on vectors of kCurveLanes floats, which the file that includes this
// defines. All has internal linkage: nothing of one instruction set may be linked as another's.
//
// An entry's result does not depend on its place, since the last vector of a sweep is filled up: sweeps may be split
// among threads anywhere. NaN stays NaN.

#include <cstdint>
#include <iterator>

#include "cpu.h"

namespace gnfast::cpu {
namespace {

typedef float Floats __attribute__((vector_size(kCurveLanes * sizeof(float))));
typedef int32_t Ints __attribute__((vector_size(kCurveLanes * sizeof(int32_t))));

#define GNFAST_INLINE inline __attribute__((always_inline))

GNFAST_INLINE Floats all(float value) {
  return Floats{} + value;
}

GNFAST_INLINE Floats absolute(Floats x) {
  return reinterpret_cast<Floats>(reinterpret_cast<Ints>(x) & 0x7fffffff);
}

struct Exponential {
  Floats whole, less_one;
};

// eˣ for x <= 88, and eˣ - 1, to a unit of their last digits; 0 and -1 where eˣ is no normal number. A polynomial of
// r = x - n log 2, whose greatest error in r ± log √2 is the least for its degree, makes eʳ - 1.
GNFAST_INLINE Exponential exponential(Floats x) {
  // A number added to this one is rounded to an integer, which the last bits of the sum are.
  constexpr float kRounds = 3 << 22;
  const Floats sum = x * 1.44269504f + kRounds, n = sum - kRounds;
  const Floats r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  const Floats rest =
      r +
      r * r * (0.499999940f + r * (0.166665211f + r * (4.16683890e-2f + r * (8.36873613e-3f + r * 1.38145604e-3f))));
  const auto scale = reinterpret_cast<Floats>((reinterpret_cast<Ints>(sum) << 23) + (127 << 23));
  const auto vanishes = x < all(-87.3f);
  return {vanishes ? all(0) : scale + scale * rest, vanishes ? all(-1) : scale * rest + (scale - 1)};
}

// u = e⁻ˡˣˡ, 1 / (1 + u), and σ(x) and 1 - σ(x), both to the last digits.
struct Logistic {
  Floats u, large, sigmoid, rest;

  GNFAST_INLINE explicit Logistic(Floats x) : u(exponential(-absolute(x)).whole), large(1 / (1 + u)) {
    const Floats small = u * large;
    sigmoid = x < all(0) ? small : large;
    rest = x < all(0) ? large : small;
  }
  GNFAST_INLINE Floats slope() const { return u * large * large; }
};

struct Derivatives {
  Floats slope, bend;
};

struct Sigmoid {
  static GNFAST_INLINE Derivatives at(Floats x, const float*) {
    const Logistic of(x);
    return {of.slope(), of.slope() * (of.rest - of.sigmoid)};
  }
};

struct LogSigmoid {
  static GNFAST_INLINE Derivatives at(Floats x, const float*) {
    const Logistic of(x);
    return {of.rest, -of.slope()};
  }
};

struct Tanh {
  static GNFAST_INLINE Derivatives at(Floats x, const float*) {
    const Exponential of = exponential(-2 * absolute(x));
    const Floats inverse = 1 / (2 + of.less_one), y = -of.less_one * inverse;
    const Floats slope = 4 * of.whole * inverse * inverse;
    return {slope, (x < all(0) ? 2 * y : -2 * y) * slope};
  }
};

// With β and the threshold.
struct SoftPlus {
  static GNFAST_INLINE Derivatives at(Floats x, const float* constants) {
    const Floats product = x * constants[0], threshold = all(constants[1]);
    const Logistic of(product);
    return {product > threshold ? all(1) : of.sigmoid, product >= threshold ? all(0) : of.slope() * constants[0]};
  }
};

// With α, scale and rate.
struct ExponentialUnit {
  static GNFAST_INLINE Derivatives at(Floats x, const float* constants) {
    const auto above = x > all(0);
    const Floats exponent = (above ? all(0) : x) * constants[2];
    // With a negative rate it grows.
    const Floats power = exponent > all(88) ? all(__builtin_inff()) : exponential(exponent).whole;
    const Floats below = power * (constants[0] * constants[1] * constants[2]);
    return {above ? all(constants[1]) : below, x >= all(0) ? all(0) : below * constants[2]};
  }
};

struct SiLU {
  static GNFAST_INLINE Derivatives at(Floats x, const float*) {
    const Logistic of(x);
    return {of.sigmoid * (1 + x * of.rest), of.slope() * (2 + x * (of.rest - of.sigmoid))};
  }
};

// w = tanh softplus x, from u.
struct Mish {
  static GNFAST_INLINE Derivatives at(Floats x, const float*) {
    const Logistic of(x);
    const auto negative = x < all(0);
    const Floats above = negative ? of.u * (of.u + 2) : 1 + 2 * of.u, below = negative ? all(2) : 2 * of.u * of.u;
    const Floats inverse = 1 / (above + below), w = above * inverse;
    const Floats rising = below * inverse * (1 + w) * of.sigmoid;
    return {w + x * rising, rising * (2 + x * (of.rest - 2 * w * of.sigmoid))};
  }
};

constexpr float kDensity = 0.398942280f;  // 1/√(2π)

// With a = |x| and e = exp(-a²/2), φ'(-a) = e (r(a) - a/√(2π)) and φ'(a) = 1 - φ'(-a). Of r(a) = erfc(a/√2) / 2e a
// polynomial in 1 / (1 + 0.34 a) has no error beyond 5e-8 r up to a = 13.5, where e vanishes.
struct GELU {
  static GNFAST_INLINE Derivatives at(Floats x, const float*) {
    const Floats a = absolute(x), square = a * a, e = exponential(square * -0.5f).whole;
    const Floats s = 1 / (1 + 0.34f * a);
    const Floats high =
        0.116034811f +
        s * (-4.63946911e-2f + s * (0.204732091f + s * (-0.275461782f + s * (0.140671840f + s * -2.63702021e-2f))));
    const Floats r = s * (0.135619345f + s * (0.136133473f + s * (0.115035129f + s * high)));
    const Floats below = e * (r - a * kDensity);
    // Beyond, e is 0, and x² may be infinite.
    const Floats near = square > all(1600) ? all(1600) : square;
    return {x < all(0) ? below : 1 - below, e * kDensity * (2 - near)};
  }
};

struct GELUByTanh {
  static GNFAST_INLINE Derivatives at(Floats x, const float*) {
    constexpr float kRate = 0.797884561f, kCube = 0.044715f;
    const auto far = absolute(x) > all(40);
    const Floats near = far ? (x < all(0) ? all(-40) : all(40)) : x, square = near * near;
    const Logistic of(near * (1 + square * kCube) * (2 * kRate));
    const Floats inner = (1 + square * (3 * kCube)) * kRate, y = of.sigmoid - of.rest;
    return {of.sigmoid + near * (2 * of.slope()) * inner,
            4 * of.slope() * (inner + near * (near * (3 * kRate * kCube) - y * inner * inner))};
  }
};

struct SoftSign {
  static GNFAST_INLINE Derivatives at(Floats x, const float*) {
    const Floats inverse = 1 / (1 + absolute(x)), slope = inverse * inverse;
    const Floats twice = x < all(0) ? all(2) : x > all(0) ? all(-2) : 0 * x;
    return {slope, twice * slope * inverse};
  }
};

struct Exp {
  static GNFAST_INLINE Derivatives at(Floats x, const float*) {
    // Beyond, it is infinite.
    const Floats root = exponential((x > all(90) ? all(90) : x) * 0.5f).whole, y = root * root;
    return {y, y};
  }
};

struct Square {
  static GNFAST_INLINE Derivatives at(Floats x, const float*) { return {2 * x, all(2)}; }
};

enum class Sweep { kSloped, kOnto, kBent, kBoth };

GNFAST_INLINE Floats load(const float* from) {
  Floats entries;
  __builtin_memcpy(&entries, from, sizeof(entries));
  return entries;
}

GNFAST_INLINE void store(float* to, Floats entries) {
  __builtin_memcpy(to, &entries, sizeof(entries));
}

template <typename Curve, Sweep kSweep>
GNFAST_INLINE void step(const CurveEntries& entries, int64_t i, const float* constants) {
  const Derivatives of = Curve::at(load(entries.h + i), constants);
  const Floats tangent = load(entries.tangent + i);
  if constexpr (kSweep == Sweep::kBent || kSweep == Sweep::kBoth) {
    store(entries.bent + i, of.bend * tangent * load(entries.cotangent + i));
  }
  if constexpr (kSweep != Sweep::kBent) {
    Floats sloped = of.slope * tangent;
    if constexpr (kSweep == Sweep::kOnto) sloped += load(entries.sloped + i);
    store(entries.sloped + i, sloped);
  }
}

template <typename Curve, Sweep kSweep>
void sweep(const CurveEntries& entries, int64_t count, const float* constants) {
  int64_t i = 0;
  for (; i + kCurveLanes <= count; i += kCurveLanes) step<Curve, kSweep>(entries, i, constants);
  if (i == count) return;
  float filled[5][kCurveLanes] = {};
  const auto bytes = (count - i) * sizeof(float);
  const auto fill = [&](int which, const float* from) {
    if (from) __builtin_memcpy(filled[which], from + i, bytes);
    return filled[which];
  };
  sweep<Curve, kSweep>({fill(0, entries.h), fill(1, entries.tangent), fill(2, entries.cotangent),
                        fill(3, entries.sloped), fill(4, entries.bent)},
                       kCurveLanes, constants);
  if (entries.sloped) __builtin_memcpy(entries.sloped + i, filled[3], bytes);
  if (entries.bent) __builtin_memcpy(entries.bent + i, filled[4], bytes);
}

template <typename Curve>
constexpr CurveSweeps sweeps(const char* kind, int constants = 0) {
  return {kind,
          constants,
          sweep<Curve, Sweep::kSloped>,
          sweep<Curve, Sweep::kOnto>,
          sweep<Curve, Sweep::kBent>,
          sweep<Curve, Sweep::kBoth>};
}

// As gnfast/kernels/curves/plain.py calls them.
constexpr CurveSweeps kCurveSweeps[] = {
    sweeps<Sigmoid>("sigmoid"),
    sweeps<LogSigmoid>("logsigmoid"),
    sweeps<Tanh>("tanh"),
    sweeps<SoftPlus>("softplus", 2),
    sweeps<ExponentialUnit>("elu", 3),
    sweeps<SiLU>("silu"),
    sweeps<Mish>("mish"),
    sweeps<GELU>("gelu"),
    sweeps<GELUByTanh>("gelu by tanh"),
    sweeps<SoftSign>("softsign"),
    sweeps<Exp>("exp"),
    sweeps<Square>("square"),
};
static_assert(std::size(kCurveSweeps) == kCurves, "kCurves in cpu.h: got another number than there are rows here");

}  // namespace
}  // namespace gnfast::cpu
