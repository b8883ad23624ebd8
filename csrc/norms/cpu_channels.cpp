// norms_second_channels on the CPU; gnfast/kernels/norms says what it computes.

#include <ATen/Dispatch.h>
#include <torch/library.h>

#include <vector>

#include "given.h"

namespace gnfast::cpu {
namespace {

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
    AT_DISPATCH_FLOATING_TYPES(h.scalar_type(), "norms_second_channels", [&] {
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
  m.impl("norms_second_channels", channels);
}

}  // namespace
}  // namespace gnfast::cpu
