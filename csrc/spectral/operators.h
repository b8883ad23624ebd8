// spectral_norm_iterate, _scale and _backward as every device has them: argument checks, results, registration. Their
// schema is in ../schema.cpp.

#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include <cstdint>
#include <tuple>
#include <vector>

#include "../common/strides.h"
#include "layout.h"

namespace gnfast {

// float32 sums for half-width weights, the weights' own precision otherwise.
inline at::ScalarType accumulator_dtype(at::ScalarType dtype) {
  return dtype == at::kDouble ? at::kDouble : at::kFloat;
}

inline void check_count(size_t count, size_t wanted, const char* name) {
  TORCH_CHECK_VALUE(count == wanted, name, ": got ", count, " entries for ", wanted, " weights, wanted one for each");
}

// A weight as the kernels read it: the tensor itself, or a contiguous copy where its layout is none of theirs.
struct SpectralLayer {
  at::Tensor weight;
  SpectralLayout layout;
};

inline std::vector<SpectralLayer> spectral_layers(at::TensorList weights, at::IntArrayRef dims) {
  TORCH_CHECK_VALUE(!weights.empty(), "weights: got none, wanted one or more");
  check_count(dims.size(), weights.size(), "dims");
  const auto dtype = weights[0].scalar_type();
  TORCH_CHECK_TYPE(dtype == at::kFloat || dtype == at::kDouble || dtype == at::kHalf || dtype == at::kBFloat16,
                   "weights: got ", dtype, ", wanted float32, float64, float16 or bfloat16");
  std::vector<SpectralLayer> layers;
  for (size_t i = 0; i < weights.size(); ++i) {
    const at::Tensor& weight = weights[i];
    TORCH_CHECK_TYPE(weight.scalar_type() == dtype, "weights: got ", dtype, " and ", weight.scalar_type(),
                     ", wanted one dtype");
    TORCH_CHECK_VALUE(weight.device() == weights[0].device(), "weights: got some on ", weights[0].device(), " and on ",
                      weight.device(), ", wanted all on one device");
    TORCH_CHECK_VALUE(weight.dim() >= 2 && weight.numel() > 0, "weights: got sizes ", weight.sizes(),
                      ", wanted 2 dimensions or more, none of 0");
    TORCH_CHECK_VALUE(0 <= dims[i] && dims[i] < weight.dim(), "dims: got ", dims[i], ", wanted 0 to ",
                      weight.dim() - 1);
    auto layout = spectral_layout(weight.sizes(), weight.strides(), dims[i]);
    const at::Tensor dense = layout ? weight : weight.contiguous();
    if (!layout) layout = spectral_layout(dense.sizes(), dense.strides(), dims[i]);
    layers.push_back({dense, *layout});
  }
  return layers;
}

// u and v of every layer one after the other, as `spectral_norm_iterate` returns them.
inline int64_t spectral_vectors_size(const std::vector<SpectralLayer>& layers) {
  int64_t size = 0;
  for (const auto& layer : layers) size += layer.layout.rows + layer.layout.cols;
  return size;
}

// The checks that u, v, sigma and the vectors of all layers share.
inline void check_vector(const at::Tensor& vector, const char* name, at::ScalarType dtype, int64_t size,
                         const at::Tensor& weight) {
  TORCH_CHECK_TYPE(vector.scalar_type() == dtype, name, ": got ", vector.scalar_type(), ", wanted ", dtype,
                   " for weights of ", weight.scalar_type());
  TORCH_CHECK_VALUE(vector.device() == weight.device(), name, ": got a tensor on ", vector.device(),
                    ", wanted it on the weights' device ", weight.device());
  TORCH_CHECK_VALUE(vector.dim() == 1 && vector.size(0) == size && vector.is_contiguous(), name, ": got sizes ",
                    vector.sizes(), " with strides ", vector.strides(), ", wanted ", size, " contiguous elements");
}

inline void check_sigma(const at::Tensor& sigma, at::TensorList weights) {
  check_vector(sigma, "sigma", accumulator_dtype(weights[0].scalar_type()), weights.size(), weights[0]);
}

inline void check_iteration_arguments(const std::vector<SpectralLayer>& layers, at::TensorList u, at::TensorList v,
                                      at::IntArrayRef iterations, at::ArrayRef<double> eps) {
  check_count(u.size(), layers.size(), "u");
  check_count(v.size(), layers.size(), "v");
  check_count(iterations.size(), layers.size(), "iterations");
  check_count(eps.size(), layers.size(), "eps");
  for (size_t i = 0; i < layers.size(); ++i) {
    const auto& [weight, layout] = layers[i];
    check_vector(u[i], "u", weight.scalar_type(), layout.rows, weight);
    check_vector(v[i], "v", weight.scalar_type(), layout.cols, weight);
  }
}

inline void check_scale_arguments(at::TensorList weights, const at::Tensor& sigma, at::ArrayRef<double> coeffs) {
  TORCH_CHECK_VALUE(!weights.empty(), "weights: got none, wanted one or more");
  check_count(coeffs.size(), weights.size(), "coeffs");
  check_sigma(sigma, weights);
  for (const at::Tensor& weight : weights) {
    TORCH_CHECK_VALUE(weight.scalar_type() == weights[0].scalar_type() && weight.device() == weights[0].device(),
                      "weights: got ", weights[0].scalar_type(), " on ", weights[0].device(), " and ",
                      weight.scalar_type(), " on ", weight.device(), ", wanted one dtype and device");
  }
}

inline void check_backward_arguments(const std::vector<SpectralLayer>& layers, at::TensorList grads,
                                     at::TensorList weights, const at::Tensor& vectors, const at::Tensor& sigma,
                                     at::ArrayRef<double> coeffs) {
  check_count(grads.size(), weights.size(), "grads");
  check_count(coeffs.size(), weights.size(), "coeffs");
  check_sigma(sigma, weights);
  check_vector(vectors, "vectors", sigma.scalar_type(), spectral_vectors_size(layers), weights[0]);
  for (size_t i = 0; i < weights.size(); ++i) {
    TORCH_CHECK_VALUE(grads[i].sizes() == weights[i].sizes() && grads[i].scalar_type() == weights[i].scalar_type() &&
                          grads[i].device() == weights[i].device(),
                      "grads: got ", grads[i].scalar_type(), " of sizes ", grads[i].sizes(), " on ", grads[i].device(),
                      ", wanted the weight's ", weights[i].scalar_type(), ", ", weights[i].sizes(), " and ",
                      weights[i].device());
  }
}

// Registers the operators, given what computes their results into fresh memory:
// iterate(layers, u, v, iterations, eps, vectors, sigma), scale(from, to, sigma, coeffs), of one layout each, and
// backward(layers, grads, results, vectors, sigma, coeffs), of the layers' layouts.
template <auto iterate, auto scale, auto backward>
void register_spectral_norm(torch::Library& m) {
  m.impl("spectral_norm_iterate", [](at::TensorList weights, at::TensorList u, at::TensorList v, at::IntArrayRef dims,
                                     at::IntArrayRef iterations, at::ArrayRef<double> eps) {
    const auto layers = spectral_layers(weights, dims);
    check_iteration_arguments(layers, u, v, iterations, eps);
    const auto options = weights[0].options().dtype(accumulator_dtype(weights[0].scalar_type()));
    at::Tensor vectors = at::empty({spectral_vectors_size(layers)}, options);
    at::Tensor sigma = at::empty({static_cast<int64_t>(layers.size())}, options);
    iterate(layers, u, v, iterations, eps, vectors, sigma);
    return std::make_tuple(std::move(vectors), std::move(sigma));
  });
  m.impl("spectral_norm_scale", [](at::TensorList weights, const at::Tensor& sigma, at::ArrayRef<double> coeffs) {
    check_scale_arguments(weights, sigma, coeffs);
    std::vector<at::Tensor> from, to;
    for (const at::Tensor& weight : weights) {
      to.push_back(at::empty_like(weight));
      from.push_back(with_strides_of(weight, to.back()));
    }
    scale(from, to, sigma, coeffs);
    return to;
  });
  m.impl("spectral_norm_backward", [](at::TensorList grads, at::TensorList weights, const at::Tensor& vectors,
                                      const at::Tensor& sigma, at::IntArrayRef dims, at::ArrayRef<double> coeffs) {
    const auto layers = spectral_layers(weights, dims);
    check_backward_arguments(layers, grads, weights, vectors, sigma, coeffs);
    std::vector<at::Tensor> dense_grads, results;
    for (size_t i = 0; i < layers.size(); ++i) {
      dense_grads.push_back(with_strides_of(grads[i], layers[i].weight));
      results.push_back(at::empty_like(layers[i].weight));
    }
    backward(layers, dense_grads, results, vectors, sigma, coeffs);
    // Those of contiguous copies get the strides that `empty_like` of the weights has.
    for (size_t i = 0; i < layers.size(); ++i) {
      if (results[i].strides() != weights[i].strides())
        results[i] = with_strides_of(results[i], at::empty_like(weights[i]));
    }
    return results;
  });
}

}  // namespace gnfast
