// leaky_relu_pack and leaky_relu_mask as every device has them: argument checks, results, registration. Their schema is
// in ../schema.cpp.

#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include <cstdint>
#include <tuple>

namespace gnfast {

inline void check_dense_floating(const at::Tensor& tensor, const char* name) {
  const auto dtype = tensor.scalar_type();
  TORCH_CHECK_TYPE(dtype == at::kFloat || dtype == at::kDouble || dtype == at::kHalf || dtype == at::kBFloat16, name,
                   ": got ", dtype, ", wanted float32, float64, float16 or bfloat16");
  TORCH_CHECK_VALUE(tensor.is_non_overlapping_and_dense(), name, ": got sizes ", tensor.sizes(), " with strides ",
                    tensor.strides(),
                    ", wanted a dense tensor (dimensions in any order, no gaps and no overlap); call "
                    ".contiguous() first");
}

inline int64_t num_sign_words(int64_t numel) {
  return (numel + 31) / 32;
}

inline at::Tensor new_sign_words(const at::Tensor& x) {
  return at::empty({num_sign_words(x.numel())}, x.options().dtype(at::kInt));
}

inline void check_mask_arguments(const at::Tensor& t, const at::Tensor& bits) {
  check_dense_floating(t, "t");
  TORCH_CHECK_TYPE(bits.scalar_type() == at::kInt, "bits: got ", bits.scalar_type(), ", wanted int32");
  TORCH_CHECK_VALUE(bits.device() == t.device(), "bits: got a tensor on ", bits.device(), ", wanted it on t's device ",
                    t.device());
  TORCH_CHECK_VALUE(
      bits.dim() == 1 && bits.size(0) == num_sign_words(t.numel()) && (bits.numel() <= 1 || bits.stride(0) == 1),
      "bits: got sizes ", bits.sizes(), " with strides ", bits.strides(), ", wanted ", num_sign_words(t.numel()),
      " contiguous words for t's ", t.numel(), " elements");
}

// Registers the operators, given pack(x, y, bits, negative_slope), where y may be x, and
// mask(t, bits, out, negative_slope), where out may be t.
template <auto pack, auto mask>
void register_sign_bits(torch::Library& m) {
  m.impl("leaky_relu_pack", [](const at::Tensor& x, double negative_slope) {
    check_dense_floating(x, "x");
    at::Tensor y = at::empty_like(x);
    at::Tensor bits = new_sign_words(x);
    pack(x, y, bits, negative_slope);
    return std::make_tuple(std::move(y), std::move(bits));
  });
  m.impl("leaky_relu_pack_", [](at::Tensor& x, double negative_slope) {
    check_dense_floating(x, "x");
    at::Tensor bits = new_sign_words(x);
    pack(x, x, bits, negative_slope);
    return bits;
  });
  m.impl("leaky_relu_mask", [](const at::Tensor& t, const at::Tensor& bits, double negative_slope) {
    check_mask_arguments(t, bits);
    at::Tensor out = at::empty_like(t);
    mask(t, bits, out, negative_slope);
    return out;
  });
  m.impl("leaky_relu_mask_", [](at::Tensor& t, const at::Tensor& bits, double negative_slope) {
    check_mask_arguments(t, bits);
    mask(t, bits, t, negative_slope);
  });
}

}  // namespace gnfast
