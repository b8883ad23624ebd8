// norms_second_rows and norms_project_rows on the CPU; gnfast/kernels/norms says what these compute.

#include <ATen/Dispatch.h>
#include <torch/library.h>

#include "given.h"

namespace gnfast::cpu {
namespace {

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
  AT_DISPATCH_FLOATING_TYPES(h.scalar_type(), "norms_second_rows",
                             [&] { rows_typed(given, rows, affine, by_h.mutable_data_ptr<scalar_t>()); });
  return affine.with(by_h, rows.shape);
}

// r P(u · weight) without means.
at::Tensor project_rows(const at::Tensor& u, const at::Tensor& h, const at::Tensor& rstd, const Optional& weight,
                        int64_t dims) {
  const Rows rows(h, dims);
  const Given given(h.contiguous(), u, u, std::nullopt, std::nullopt, rstd, weight, rows.count, rows.size, false);
  const at::Tensor result = at::empty_like(given.h);
  AT_DISPATCH_FLOATING_TYPES(h.scalar_type(), "norms_project_rows", [&] {
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

TORCH_LIBRARY_IMPL(gnfast, CPU, m) {
  m.impl("norms_second_rows", rows);
  m.impl("norms_project_rows", project_rows);
}

}  // namespace
}  // namespace gnfast::cpu
