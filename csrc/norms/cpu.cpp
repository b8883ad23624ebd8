// norm_second_rows, norm_second_channels and norm_project_rows on the CPU; gnfast/kernels/norms says what these
// compute.
//
// Rows and samples are shared out in chunks that depend on the shapes alone, and the chunks' sums are added in order,
// so results do not depend on the number of threads.

#include "cpu.h"

#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <algorithm>
#include <optional>
#include <tuple>
#include <vector>

#include "../common/capability.h"
#include "../common/strides.h"

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

// The rows that the last `dims` axes make.
struct Rows {
  at::IntArrayRef shape;
  int64_t count, size, chunk;

  Rows(const at::Tensor& h, int64_t dims) {
    TORCH_CHECK_VALUE(0 < dims && dims <= h.dim(), "dims: got ", dims, ", wanted 1 to h's ", h.dim());
    shape = h.sizes().slice(h.dim() - dims);
    size = c10::multiply_integers(shape);
    count = c10::multiply_integers(h.sizes().slice(0, h.dim() - dims));
    // With 16 rows to a chunk, sums in double are small beside h.
    chunk = per_chunk(count, size, 16);
  }
};

template <typename T>
void rows_typed(const Given& given, const Rows& rows, const Affine& affine, T* to) {
  const int64_t size = rows.size;
  const auto kernels = kernels_here<T>();
  const auto inputs = given.inputs<T>();
  const T* const means = Given::data<T>(given.mean);
  const T* const rstds = given.rstd.const_data_ptr<T>();
  const T* const weight = Given::data<T>(given.weight);
  for_chunks(rows.count, rows.chunk, [&](int64_t chunk, int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const auto row = inputs.at(i * size);
      const double mean = means ? means[i] : 0;
      double sums[kNormSums] = {};
      kernels.row_sums(row, weight, size, mean, sums);
      const auto settled = settle(sums, rstds[i], size, means);
      kernels.row_results(row, weight, size, mean, settled.coeffs, to + i * size);
      if (!affine.wanted()) continue;
      kernels.row_weights(row, size, mean, settled.scale, settled.shift, settled.along, affine.weight(chunk),
                          affine.bias(chunk));
    }
  });
}

Gradients rows(const at::Tensor& h, const at::Tensor& tangent, const at::Tensor& cotangent, const Optional& adjoint,
               const Optional& mean, const at::Tensor& rstd, const Optional& weight, int64_t dims, bool wants_weight,
               bool wants_bias) {
  const Rows rows(h, dims);
  const Given given(h.contiguous(), tangent, cotangent, adjoint, mean, rstd, weight, rows.count, rows.size, wants_bias);
  const at::Tensor by_h = at::empty_like(given.h);
  const Affine affine(wants_weight, wants_bias, (rows.count + rows.chunk - 1) / rows.chunk, rows.size);
  AT_DISPATCH_FLOATING_TYPES(h.scalar_type(), "norm_second_rows",
                             [&] { rows_typed(given, rows, affine, by_h.mutable_data_ptr<scalar_t>()); });
  return affine.with(by_h, rows.shape);
}

// r P(u · weight) without means.
at::Tensor project_rows(const at::Tensor& u, const at::Tensor& h, const at::Tensor& rstd, const Optional& weight,
                        int64_t dims) {
  const Rows rows(h, dims);
  const Given given(h.contiguous(), u, u, std::nullopt, std::nullopt, rstd, weight, rows.count, rows.size, false);
  const at::Tensor result = at::empty_like(given.h);
  AT_DISPATCH_FLOATING_TYPES(h.scalar_type(), "norm_project_rows", [&] {
    const auto kernels = kernels_here<scalar_t>();
    const auto inputs = given.inputs<scalar_t>();
    const scalar_t* const rstds = given.rstd.const_data_ptr<scalar_t>();
    const scalar_t* const entries = Given::data<scalar_t>(given.weight);
    scalar_t* const to = result.mutable_data_ptr<scalar_t>();
    for_chunks(rows.count, rows.chunk, [&](int64_t, int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const auto row = inputs.at(i * rows.size);
        double sums[kNormSums] = {};
        kernels.row_sums(row, entries, rows.size, 0, sums);
        const double r = rstds[i], coeffs[kNormCoeffs] = {0, r, 0, -r * r * r * sums[4] / rows.size, 0};
        kernels.row_results(row, entries, rows.size, 0, coeffs, to + i * rows.size);
      }
    });
  });
  return result;
}

// (samples, channels, size) in memory, or (samples, size, channels) if `last`, with statistics for `groups` ranges of
// channels.
template <typename T>
struct Channels {
  NormKernels<T> kernels;
  NormInputs<T> inputs;
  int64_t channels, size, groups;
  bool last, centred;
  const T *means, *rstds, *weight;
  T* to;

  std::vector<T> channel_means(int64_t sample) const {
    std::vector<T> result(channels);
    for (int64_t c = 0; centred && c < channels; ++c) result[c] = means[sample * groups + c * groups / channels];
    return result;
  }

  // sums[k][c] += those of samples [begin, end)
  void add_sums(int64_t begin, int64_t end, const T* mean, double* sums) const {
    if (last) {
      kernels.column_sums(inputs.at(begin * channels * size), (end - begin) * size, channels, mean, sums);
      return;
    }
    for (int64_t row = begin * channels; row < end * channels; ++row) {
      const int64_t c = row % channels;
      double found[kNormSums] = {};
      kernels.row_sums(inputs.at(row * size), nullptr, size, mean[c], found);
      for (int k = 0; k < kNormSums; ++k) sums[k * channels + c] += found[k];
    }
  }

  // coeffs[k][c], and what is added to the gradients of weight and bias, which may be null.
  std::vector<double> coefficients(const double* sums, int64_t sample, double count, double* by_weight,
                                   double* by_bias) const {
    const int64_t per_group = channels / groups;
    std::vector<double> coeffs(kNormCoeffs * channels);
    for (int64_t first = 0; first < channels; first += per_group) {
      double total[kNormSums] = {};
      for (int k = 0; k < kNormSums; ++k) {
        const bool outside = k != 0 && k != 3;
        for (int64_t c = first; c < first + per_group; ++c) {
          total[k] += (weight && outside ? static_cast<double>(weight[c]) : 1.0) * sums[k * channels + c];
        }
      }
      const auto settled = settle(total, rstds[sample * groups + first / per_group], count, centred);
      for (int64_t c = first; c < first + per_group; ++c) {
        const auto sum = [&](int k) { return sums[k * channels + c]; };
        for (int k = 0; k < kNormCoeffs; ++k) {
          coeffs[k * channels + c] = settled.coeffs[k] * (weight && k < 2 ? static_cast<double>(weight[c]) : 1.0);
        }
        if (by_weight) {
          by_weight[c] += settled.scale * (sum(6) + sum(5)) + settled.shift * sum(1) + settled.along * sum(4);
        }
        if (by_bias) by_bias[c] += sum(2);
      }
    }
    return coeffs;
  }

  void write(int64_t begin, int64_t end, const T* mean, const std::vector<double>& coeffs) const {
    if (last) {
      const std::vector<T> narrow(coeffs.begin(), coeffs.end());
      const int64_t start = begin * channels * size;
      kernels.column_results(inputs.at(start), (end - begin) * size, channels, mean, narrow.data(), to + start);
      return;
    }
    for (int64_t row = begin * channels; row < end * channels; ++row) {
      const int64_t c = row % channels;
      double own[kNormCoeffs];
      for (int k = 0; k < kNormCoeffs; ++k) own[k] = coeffs[k * channels + c];
      kernels.row_results(inputs.at(row * size), nullptr, size, mean[c], own, to + row * size);
    }
  }

  void by_batch(int64_t samples, int64_t chunk_samples, const Affine& affine) const {
    const auto mean = channel_means(0);
    const int64_t chunks = (samples + chunk_samples - 1) / chunk_samples, width = kNormSums * channels;
    std::vector<double> sums(chunks * width);
    for_chunks(samples, chunk_samples, [&](int64_t chunk, int64_t begin, int64_t end) {
      add_sums(begin, end, mean.data(), &sums[chunk * width]);
    });
    for (int64_t i = width; i < chunks * width; ++i) sums[i % width] += sums[i];
    const auto coeffs = coefficients(sums.data(), 0, samples * size, affine.weight(0), affine.bias(0));
    for_chunks(samples, chunk_samples,
               [&](int64_t, int64_t begin, int64_t end) { write(begin, end, mean.data(), coeffs); });
  }

  void by_sample(int64_t samples, int64_t chunk_samples, const Affine& affine) const {
    for_chunks(samples, chunk_samples, [&](int64_t chunk, int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const auto mean = channel_means(i);
        std::vector<double> sums(kNormSums * channels);
        add_sums(i, i + 1, mean.data(), sums.data());
        const double count = channels / groups * size;
        write(i, i + 1, mean.data(), coefficients(sums.data(), i, count, affine.weight(chunk), affine.bias(chunk)));
      }
    });
  }
};

Gradients channels(const at::Tensor& h, const at::Tensor& tangent, const at::Tensor& cotangent, const Optional& adjoint,
                   const Optional& mean, const at::Tensor& rstd, const Optional& weight, bool wants_weight,
                   bool wants_bias) {
  TORCH_CHECK_VALUE(h.dim() > 1, "h: got sizes ", h.sizes(), ", wanted (N, C, ...)");
  const int64_t samples = h.size(0), count = h.size(1), size = c10::multiply_integers(h.sizes().slice(2));
  const bool whole_batch = rstd.dim() == 1;
  const int64_t groups = whole_batch ? count : rstd.size(-1);
  TORCH_CHECK_VALUE(rstd.dim() > 0 && rstd.dim() < 3 && groups > 0 && count % groups == 0, "rstd: got sizes ",
                    rstd.sizes(), ", wanted (C,) or (N, groups) for h's ", count, " channels");
  const bool last = h.dim() == 4 && !h.is_contiguous() && h.is_contiguous(at::MemoryFormat::ChannelsLast);
  const Given given(last ? h : h.contiguous(), tangent, cotangent, adjoint, mean, rstd, weight,
                    whole_batch ? count : samples * groups, count, wants_bias);
  const at::Tensor by_h = at::empty_like(given.h);
  const int64_t chunk = per_chunk(samples, count * size, 1);
  const Affine affine(wants_weight, wants_bias, whole_batch ? 1 : (samples + chunk - 1) / chunk, count);
  if (h.numel() > 0) {
    AT_DISPATCH_FLOATING_TYPES(h.scalar_type(), "norm_second_channels", [&] {
      const Channels<scalar_t> all{kernels_here<scalar_t>(),
                                   given.inputs<scalar_t>(),
                                   count,
                                   size,
                                   groups,
                                   last || size == 1,
                                   given.mean.defined(),
                                   Given::data<scalar_t>(given.mean),
                                   given.rstd.const_data_ptr<scalar_t>(),
                                   Given::data<scalar_t>(given.weight),
                                   by_h.mutable_data_ptr<scalar_t>()};
      whole_batch ? all.by_batch(samples, chunk, affine) : all.by_sample(samples, chunk, affine);
    });
  }
  return affine.with(by_h, {count});
}

TORCH_LIBRARY_IMPL(gnfast, CPU, m) {
  m.impl("norm_second_rows", rows);
  m.impl("norm_project_rows", project_rows);
  m.impl("norm_second_channels", channels);
}

}  // namespace
}  // namespace gnfast::cpu
