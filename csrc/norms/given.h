// What the norms' operators on the CPU share: what they are given, the coefficients that sums lead to, chunks of work
// and the gradients of weight and bias.
//
// Chunks of rows and samples depend on the shapes alone, and the chunks' sums are added in order, so results do not
// depend on the number of threads.

#pragma once

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <optional>
#include <tuple>

#include "../common/capability.h"
#include "../common/strides.h"
#include "cpu.h"

namespace gnfast::cpu {
namespace {

using Optional = std::optional<at::Tensor>;
using Gradients = std::tuple<at::Tensor, Optional, Optional>;

template <typename T>
NormKernels<T> kernels_here() {
#ifdef GNFAST_X86_KERNELS
  if (use_avx512()) return avx512_norm_kernels<T>();
  if (use_avx2()) return avx2_norm_kernels<T>();
#endif
  return portable_norm_kernels<T>();
}

// What is left of a group after its sums: the coefficients of its results, and those of the weight's gradient.
struct Settled {
  double coeffs[kNormCoeffs];
  double scale, shift, along;
};

// For sums of a group of `count` entries with δ and μ times the weight, r = 1/√(variance + ε).
//
// With x̂ = (h - m) r, P(u) = u - <u> - x̂ <x̂ u> and v = μ - r <x̂ t> δ, the gradient of h is
// r P(v) - r <x̂ δ> · r P(t) - r <δ · r P(t)> x̂; without means, <u> falls away.
Settled settle(const double* sums, double r, double count, bool centred) {
  double means[kNormSums];
  for (int k = 0; k < kNormSums; ++k) means[k] = k < 3 && !centred ? 0 : sums[k] / count;
  const auto [t, cotangent, adjoint, ht, hc, ha, both] = means;
  const double xt = r * ht, xc = r * hc, xa = r * ha;
  const double by_cotangent = -r * xt, by_moved = -r * xc, by_x_hat = -r * r * (both - t * cotangent - xt * xc);
  const double v = adjoint + by_cotangent * cotangent, xv = xa + by_cotangent * xc;
  const double by_h = by_x_hat - r * xv - by_moved * r * xt;
  return {{r, r * by_cotangent, r * by_moved, r * by_h, -r * v - r * by_moved * t}, r, -r * t, -r * r * xt};
}

// Chunks of so many entries at least, and so many chunks at most.
constexpr int64_t kChunkEntries = 32768;
constexpr int64_t kChunks = 64;

int64_t per_chunk(int64_t count, int64_t entries, int64_t least) {
  const int64_t wanted = kChunkEntries / std::max<int64_t>(1, entries);
  return std::max({least, wanted, (count + kChunks - 1) / kChunks});
}

// Calls chunk(index, begin, end).
template <typename Chunk>
void for_chunks(int64_t count, int64_t size, const Chunk& chunk) {
  at::parallel_for(0, (count + size - 1) / size, 1, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) chunk(i, i * size, std::min(count, (i + 1) * size));
  });
}

// The gradients of weight and bias, [chunk][2][size], and their sums.
struct Affine {
  bool wants_weight, wants_bias;
  int64_t size;
  at::Tensor partials;

  Affine(bool weight, bool bias, int64_t chunks, int64_t size)
      : wants_weight(weight),
        wants_bias(bias),
        size(size),
        partials(at::zeros({chunks, 2, size * wanted()}, at::kDouble)) {}
  bool wanted() const { return wants_weight || wants_bias; }
  double* weight(int64_t chunk) const {
    return wants_weight ? partials.mutable_data_ptr<double>() + chunk * 2 * size : nullptr;
  }
  double* bias(int64_t chunk) const {
    return wants_bias ? partials.mutable_data_ptr<double>() + (chunk * 2 + 1) * size : nullptr;
  }
  Optional sum(bool wants, int64_t which, at::IntArrayRef shape, at::ScalarType dtype) const {
    if (!wants) return std::nullopt;
    return partials.select(1, which).sum(0).to(dtype).view(shape);
  }
  Gradients with(const at::Tensor& by_h, at::IntArrayRef shape) const {
    const auto dtype = by_h.scalar_type();
    return {by_h, sum(wants_weight, 0, shape, dtype), sum(wants_bias, 1, shape, dtype)};
  }
};

// What both operators are given, in one order of memory.
struct Given {
  at::Tensor h, tangent, cotangent, adjoint, mean, rstd, weight;

  // `groups` and `weights`: how many entries the statistics and the weight have.
  Given(const at::Tensor& dense_h, const at::Tensor& t, const at::Tensor& delta, const Optional& mu, const Optional& m,
        const at::Tensor& r, const Optional& w, int64_t groups, int64_t weights, bool wants_bias)
      : h(dense_h),
        tangent(like_h("tangent", t)),
        cotangent(like_h("cotangent", delta)),
        adjoint(mu ? like_h("adjoint", *mu) : at::Tensor()),
        mean(m ? entries("mean", *m, groups) : at::Tensor()),
        rstd(entries("rstd", r, groups)),
        weight(w ? entries("weight", *w, weights) : at::Tensor()) {
    TORCH_CHECK_VALUE(mu || !wants_bias, "adjoint: got None, wanted a tensor, from which the bias's gradient comes");
  }

  template <typename T>
  NormInputs<T> inputs() const {
    return {h.const_data_ptr<T>(), tangent.const_data_ptr<T>(), cotangent.const_data_ptr<T>(), data<T>(adjoint)};
  }
  template <typename T>
  static const T* data(const at::Tensor& tensor) {
    return tensor.defined() ? tensor.const_data_ptr<T>() : nullptr;
  }

 private:
  void check_dtype(const char* name, const at::Tensor& tensor) const {
    TORCH_CHECK_TYPE(tensor.dtype() == h.dtype(), name, ": got ", tensor.dtype(), ", wanted h's ", h.dtype());
  }
  at::Tensor like_h(const char* name, const at::Tensor& tensor) const {
    check_dtype(name, tensor);
    TORCH_CHECK_VALUE(tensor.sizes() == h.sizes(), name, ": got sizes ", tensor.sizes(), ", wanted h's, ", h.sizes());
    return with_strides_of(tensor, h);
  }
  at::Tensor entries(const char* name, const at::Tensor& tensor, int64_t count) const {
    check_dtype(name, tensor);
    TORCH_CHECK_VALUE(tensor.numel() == count, name, ": got sizes ", tensor.sizes(), ", wanted ", count, " entries");
    return tensor.contiguous();
  }
};

}  // namespace
}  // namespace gnfast::cpu
