// spectral_norm_iterate, _scale and _backward on CUDA: tables of layers, and launches.

#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include "../common/cuda_kernel_dtype.h"
#include "cuda.h"
#include "operators.h"

namespace gnfast::cuda {
namespace {

uint32_t narrow(int64_t elements) {
  TORCH_CHECK_VALUE(elements < int64_t{1} << 31, "weights: got one of ", elements,
                    " elements, wanted fewer than 2^31 in each");
  return static_cast<uint32_t>(elements);
}

MatrixLayout matrix_layout(const SpectralLayout& layout) {
  narrow(layout.rows * layout.cols);
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

void iterate(const std::vector<SpectralLayer>& layers, at::TensorList u, at::TensorList v, at::IntArrayRef iterations,
             at::ArrayRef<double> eps, const at::Tensor& vectors, const at::Tensor& sigma) {
  int64_t workspace_size = 0, squares_size = 0;
  for (const auto& [weight, layout] : layers) {
    workspace_size += layout.rows + row_blocks(layout.rows) * layout.cols;
    squares_size += column_blocks(layout.cols);
  }
  const at::Tensor workspace = at::empty({workspace_size}, vectors.options());
  const at::Tensor squares = at::empty({squares_size}, vectors.options().dtype(at::kDouble));
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
  const c10::cuda::CUDAGuard guard(vectors.device());
  C10_CUDA_CHECK(launch_spectral_iterate(kernel_dtype(u[0].scalar_type()), table.data(), static_cast<int>(table.size()),
                                         c10::cuda::getCurrentCUDAStream()));
}

void scale(const std::vector<at::Tensor>& from, const std::vector<at::Tensor>& to, const at::Tensor& sigma,
           at::ArrayRef<double> coeffs) {
  std::vector<ScaleLayer> table;
  for (size_t i = 0; i < from.size(); ++i) {
    table.push_back({from[i].const_data_ptr(), to[i].mutable_data_ptr(), const_entry(sigma, static_cast<int64_t>(i)),
                     coeffs[i], narrow(from[i].numel())});
  }
  const c10::cuda::CUDAGuard guard(sigma.device());
  C10_CUDA_CHECK(launch_spectral_scale(kernel_dtype(from[0].scalar_type()), table.data(),
                                       static_cast<int>(table.size()), c10::cuda::getCurrentCUDAStream()));
}

void backward(const std::vector<SpectralLayer>& layers, const std::vector<at::Tensor>& grads,
              const std::vector<at::Tensor>& results, const at::Tensor& vectors, const at::Tensor& sigma,
              at::ArrayRef<double> coeffs) {
  int64_t products_size = 0;
  for (const auto& [weight, layout] : layers) products_size += flat_blocks(narrow(layout.rows * layout.cols));
  const at::Tensor products = at::empty({products_size}, vectors.options().dtype(at::kDouble));
  std::vector<BackwardLayer> table;
  int64_t vectors_used = 0, products_used = 0;
  for (size_t i = 0; i < layers.size(); ++i) {
    const auto& [weight, layout] = layers[i];
    table.push_back({grads[i].const_data_ptr(), weight.const_data_ptr(), results[i].mutable_data_ptr(),
                     const_entry(vectors, vectors_used), const_entry(sigma, static_cast<int64_t>(i)),
                     products.mutable_data_ptr<double>() + products_used, coeffs[i], matrix_layout(layout)});
    vectors_used += layout.rows + layout.cols;
    products_used += flat_blocks(layout.rows * layout.cols);
  }
  const c10::cuda::CUDAGuard guard(vectors.device());
  C10_CUDA_CHECK(launch_spectral_backward(kernel_dtype(grads[0].scalar_type()), table.data(),
                                          static_cast<int>(table.size()), c10::cuda::getCurrentCUDAStream()));
}

TORCH_LIBRARY_IMPL(gnfast, CUDA, m) {
  register_spectral_norm<iterate, scale, backward>(m);
}

}  // namespace
}  // namespace gnfast::cuda
