// spectral_norm_iterate, _scale and _backward on CUDA: argument checks and launch. Their schema is in ../schema.cpp.

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include <tuple>
#include <vector>

#include "../common/cuda_kernel_dtype.h"
#include "checks.h"
#include "cuda.h"

namespace gnfast::cuda {
namespace {

MatrixLayout matrix_layout(const SpectralLayout& layout) {
  TORCH_CHECK_VALUE(layout.rows * layout.cols < int64_t{1} << 31, "a weight of ", layout.rows * layout.cols,
                    " elements is too large: the kernels count them in 31 bits");
  const auto narrow = [](int64_t size) { return static_cast<uint32_t>(size); };
  return {narrow(layout.rows),  narrow(layout.cols),  narrow(layout.outer),
          narrow(layout.inner), narrow(layout.major), narrow(layout.minor)};
}

// The i-th entry of a tensor of sums.
char* entry(const at::Tensor& sums, int64_t i) {
  return static_cast<char*>(sums.mutable_data_ptr()) + i * static_cast<int64_t>(sums.element_size());
}

const char* const_entry(const at::Tensor& sums, int64_t i) {
  return static_cast<const char*>(sums.const_data_ptr()) + i * static_cast<int64_t>(sums.element_size());
}

std::tuple<at::Tensor, at::Tensor> spectral_norm_iterate(at::TensorList weights, at::TensorList u, at::TensorList v,
                                                         at::IntArrayRef dims, at::IntArrayRef iterations,
                                                         at::ArrayRef<double> eps) {
  const auto layers = spectral_layers(weights, dims);
  check_iteration_arguments(layers, u, v, iterations, eps);
  const c10::cuda::CUDAGuard guard(weights[0].device());
  const auto options = weights[0].options().dtype(accumulator_dtype(weights[0].scalar_type()));
  at::Tensor vectors = at::empty({spectral_vectors_size(layers)}, options);
  at::Tensor sigma = at::empty({static_cast<int64_t>(layers.size())}, options);

  int64_t workspace_size = 0, squares_size = 0;
  for (const auto& [weight, layout] : layers) {
    workspace_size += layout.rows + row_blocks(layout.rows) * layout.cols;
    squares_size += column_blocks(layout.cols);
  }
  const at::Tensor workspace = at::empty({workspace_size}, options);
  const at::Tensor squares = at::empty({squares_size}, options.dtype(at::kDouble));
  std::vector<IterationLayer> table;
  int64_t vectors_used = 0, workspace_used = 0, squares_used = 0;
  for (size_t i = 0; i < layers.size(); ++i) {
    const auto& [weight, layout] = layers[i];
    table.push_back({weight.const_data_ptr(), u[i].mutable_data_ptr(), v[i].mutable_data_ptr(),
                     entry(vectors, vectors_used), entry(sigma, static_cast<int64_t>(i)),
                     entry(workspace, workspace_used), squares.mutable_data_ptr<double>() + squares_used, eps[i],
                     matrix_layout(layout), static_cast<int>(iterations[i])});
    vectors_used += layout.rows + layout.cols;
    workspace_used += layout.rows + row_blocks(layout.rows) * layout.cols;
    squares_used += column_blocks(layout.cols);
  }
  C10_CUDA_CHECK(launch_spectral_iterate(kernel_dtype(weights[0].scalar_type()), table.data(),
                                         static_cast<int>(table.size()), c10::cuda::getCurrentCUDAStream()));
  return {std::move(vectors), std::move(sigma)};
}

std::vector<at::Tensor> spectral_norm_scale(at::TensorList weights, const at::Tensor& sigma,
                                            at::ArrayRef<double> coeffs) {
  check_scale_arguments(weights, sigma, coeffs);
  const c10::cuda::CUDAGuard guard(weights[0].device());
  std::vector<at::Tensor> from, to;
  std::vector<ScaleLayer> table;
  for (size_t i = 0; i < weights.size(); ++i) {
    to.push_back(at::empty_like(weights[i]));
    from.push_back(with_strides_of(weights[i], to.back()));
    TORCH_CHECK_VALUE(weights[i].numel() < int64_t{1} << 31, "a weight of ", weights[i].numel(),
                      " elements is too large: the kernels count them in 31 bits");
    table.push_back({from.back().const_data_ptr(), to.back().mutable_data_ptr(),
                     const_entry(sigma, static_cast<int64_t>(i)), coeffs[i],
                     static_cast<uint32_t>(weights[i].numel())});
  }
  C10_CUDA_CHECK(launch_spectral_scale(kernel_dtype(weights[0].scalar_type()), table.data(),
                                       static_cast<int>(table.size()), c10::cuda::getCurrentCUDAStream()));
  return to;
}

std::vector<at::Tensor> spectral_norm_backward(at::TensorList grads, at::TensorList weights, const at::Tensor& vectors,
                                               const at::Tensor& sigma, at::IntArrayRef dims,
                                               at::ArrayRef<double> coeffs) {
  const auto layers = spectral_layers(weights, dims);
  check_backward_arguments(layers, grads, vectors, sigma, coeffs);
  const c10::cuda::CUDAGuard guard(weights[0].device());
  int64_t products_size = 0;
  for (const auto& [weight, layout] : layers) products_size += flat_blocks(matrix_layout(layout).rows * layout.cols);
  const at::Tensor products = at::empty({products_size}, vectors.options().dtype(at::kDouble));
  std::vector<at::Tensor> dense_grads, results;
  std::vector<BackwardLayer> table;
  int64_t vectors_used = 0, products_used = 0;
  for (size_t i = 0; i < layers.size(); ++i) {
    const auto& [weight, layout] = layers[i];
    dense_grads.push_back(with_strides_of(grads[i], weight));
    results.push_back(at::empty_like(weight));
    table.push_back({dense_grads.back().const_data_ptr(), weight.const_data_ptr(), results.back().mutable_data_ptr(),
                     const_entry(vectors, vectors_used), const_entry(sigma, static_cast<int64_t>(i)),
                     products.mutable_data_ptr<double>() + products_used, coeffs[i], matrix_layout(layout)});
    vectors_used += layout.rows + layout.cols;
    products_used += flat_blocks(layout.rows * layout.cols);
  }
  C10_CUDA_CHECK(launch_spectral_backward(kernel_dtype(weights[0].scalar_type()), table.data(),
                                          static_cast<int>(table.size()), c10::cuda::getCurrentCUDAStream()));
  restore_strides(results, weights);
  return results;
}

TORCH_LIBRARY_IMPL(gnfast, CUDA, m) {
  m.impl("spectral_norm_iterate", spectral_norm_iterate);
  m.impl("spectral_norm_scale", spectral_norm_scale);
  m.impl("spectral_norm_backward", spectral_norm_backward);
}

}  // namespace
}  // namespace gnfast::cuda
