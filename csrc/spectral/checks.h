// What the CPU and the CUDA binding of the spectral-norm operators both demand of their arguments and make of them.

#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty_like.h>

#include <cstdint>
#include <vector>

#include "layout.h"

namespace gnfast {

// float32 sums for half-width weights, the weights' own precision otherwise.
inline at::ScalarType accumulator_dtype(at::ScalarType dtype) {
  return dtype == at::kDouble ? at::kDouble : at::kFloat;
}

// A weight as the kernels read it: the tensor itself, or a contiguous copy where its layout is none of theirs.
struct SpectralLayer {
  at::Tensor weight;
  SpectralLayout layout;
};

inline std::vector<SpectralLayer> spectral_layers(at::TensorList weights, at::IntArrayRef dims) {
  TORCH_CHECK_VALUE(!weights.empty(), "weights must not be empty");
  TORCH_CHECK_VALUE(dims.size() == weights.size(), "dims must have one entry per weight, got ", dims.size(), " for ",
                    weights.size());
  const auto dtype = weights[0].scalar_type();
  TORCH_CHECK_TYPE(dtype == at::kFloat || dtype == at::kDouble || dtype == at::kHalf || dtype == at::kBFloat16,
                   "weights must be float32, float64, float16 or bfloat16, got ", dtype);
  std::vector<SpectralLayer> layers;
  for (size_t i = 0; i < weights.size(); ++i) {
    const at::Tensor& weight = weights[i];
    TORCH_CHECK_TYPE(weight.scalar_type() == dtype, "weights must have one dtype, got ", dtype, " and ",
                     weight.scalar_type());
    TORCH_CHECK_VALUE(weight.device() == weights[0].device(), "weights must be on one device, got ",
                      weights[0].device(), " and ", weight.device());
    TORCH_CHECK_VALUE(weight.dim() >= 2 && weight.numel() > 0, "weights must be non-empty and have 2 dimensions or ",
                      "more, got sizes ", weight.sizes());
    TORCH_CHECK_VALUE(0 <= dims[i] && dims[i] < weight.dim(), "dim must be in [0, ", weight.dim(), "), got ", dims[i]);
    auto layout = spectral_layout(weight.sizes(), weight.strides(), dims[i]);
    const at::Tensor dense = layout ? weight : weight.contiguous();
    if (!layout) layout = spectral_layout(dense.sizes(), dense.strides(), dims[i]);
    layers.push_back({dense, *layout});
  }
  return layers;
}

// `tensor` with the strides of `like`: itself, or a copy.
inline at::Tensor with_strides_of(const at::Tensor& tensor, const at::Tensor& like) {
  if (tensor.strides() == like.strides()) return tensor;
  return at::empty_like(like, tensor.options()).copy_(tensor);
}

// Gives results that were computed for contiguous copies the strides that `empty_like` of the weights has.
inline void restore_strides(std::vector<at::Tensor>& results, at::TensorList weights) {
  for (size_t i = 0; i < results.size(); ++i) {
    if (results[i].strides() != weights[i].strides())
      results[i] = with_strides_of(results[i], at::empty_like(weights[i]));
  }
}

inline void check_spectral_vector(const at::Tensor& vector, const char* name, int64_t size, const at::Tensor& weight) {
  TORCH_CHECK_TYPE(vector.scalar_type() == weight.scalar_type(), name, " must have the weight's dtype ",
                   weight.scalar_type(), ", got ", vector.scalar_type());
  TORCH_CHECK_VALUE(vector.device() == weight.device(), name, " must be on the weight's device ", weight.device(),
                    ", got ", vector.device());
  TORCH_CHECK_VALUE(vector.dim() == 1 && vector.size(0) == size && vector.is_contiguous(), name,
                    " must be contiguous with ", size, " elements, got sizes ", vector.sizes());
}

// u and v of every layer one after the other, as `spectral_norm_iterate` returns them.
inline int64_t spectral_vectors_size(const std::vector<SpectralLayer>& layers) {
  int64_t size = 0;
  for (const auto& layer : layers) size += layer.layout.rows + layer.layout.cols;
  return size;
}

inline void check_sigma(const at::Tensor& sigma, const at::Tensor& weight, size_t num_layers) {
  TORCH_CHECK_TYPE(sigma.scalar_type() == accumulator_dtype(weight.scalar_type()), "sigma must be ",
                   accumulator_dtype(weight.scalar_type()), ", got ", sigma.scalar_type());
  TORCH_CHECK_VALUE(sigma.device() == weight.device(), "sigma must be on the weights' device ", weight.device(),
                    ", got ", sigma.device());
  TORCH_CHECK_VALUE(sigma.dim() == 1 && sigma.size(0) == static_cast<int64_t>(num_layers) && sigma.is_contiguous(),
                    "sigma must be contiguous with ", num_layers, " elements, got sizes ", sigma.sizes());
}

inline void check_vectors(const at::Tensor& vectors, const std::vector<SpectralLayer>& layers) {
  const auto dtype = accumulator_dtype(layers[0].weight.scalar_type());
  TORCH_CHECK_TYPE(vectors.scalar_type() == dtype, "vectors must be ", dtype, ", got ", vectors.scalar_type());
  TORCH_CHECK_VALUE(vectors.device() == layers[0].weight.device(), "vectors must be on the weights' device ",
                    layers[0].weight.device(), ", got ", vectors.device());
  TORCH_CHECK_VALUE(vectors.dim() == 1 && vectors.size(0) == spectral_vectors_size(layers) && vectors.is_contiguous(),
                    "vectors must be contiguous with ", spectral_vectors_size(layers), " elements, got sizes ",
                    vectors.sizes());
}

inline void check_count(size_t count, size_t wanted, const char* name) {
  TORCH_CHECK_VALUE(count == wanted, name, " must have one entry per weight, got ", count, " for ", wanted);
}

inline void check_iteration_arguments(const std::vector<SpectralLayer>& layers, at::TensorList u, at::TensorList v,
                                      at::IntArrayRef iterations, at::ArrayRef<double> eps) {
  check_count(u.size(), layers.size(), "u");
  check_count(v.size(), layers.size(), "v");
  check_count(iterations.size(), layers.size(), "iterations");
  check_count(eps.size(), layers.size(), "eps");
  for (size_t i = 0; i < layers.size(); ++i) {
    check_spectral_vector(u[i], "u", layers[i].layout.rows, layers[i].weight);
    check_spectral_vector(v[i], "v", layers[i].layout.cols, layers[i].weight);
  }
}

inline void check_scale_arguments(at::TensorList weights, const at::Tensor& sigma, at::ArrayRef<double> coeffs) {
  TORCH_CHECK_VALUE(!weights.empty(), "weights must not be empty");
  check_count(coeffs.size(), weights.size(), "coeffs");
  check_sigma(sigma, weights[0], weights.size());
  for (const at::Tensor& weight : weights) {
    TORCH_CHECK_VALUE(weight.scalar_type() == weights[0].scalar_type() && weight.device() == weights[0].device(),
                      "weights must have one dtype and device");
  }
}

inline void check_backward_arguments(const std::vector<SpectralLayer>& layers, at::TensorList grads,
                                     const at::Tensor& vectors, const at::Tensor& sigma, at::ArrayRef<double> coeffs) {
  check_count(grads.size(), layers.size(), "grads");
  check_count(coeffs.size(), layers.size(), "coeffs");
  check_vectors(vectors, layers);
  check_sigma(sigma, layers[0].weight, layers.size());
  for (size_t i = 0; i < layers.size(); ++i) {
    const at::Tensor& weight = layers[i].weight;
    TORCH_CHECK_VALUE(grads[i].sizes() == weight.sizes() && grads[i].scalar_type() == weight.scalar_type() &&
                          grads[i].device() == weight.device(),
                      "grads must have the shapes, dtype and device of the weights");
  }
}

}  // namespace gnfast
