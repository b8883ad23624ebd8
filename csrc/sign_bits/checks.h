// What the CPU and the CUDA binding of the sign-bit operators both demand of their arguments.

#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

namespace gnfast {

inline int64_t num_sign_words(int64_t numel) {
  return (numel + 31) / 32;
}

inline void check_dense_floating(const at::Tensor& tensor, const char* name) {
  const auto dtype = tensor.scalar_type();
  TORCH_CHECK_TYPE(dtype == at::kFloat || dtype == at::kDouble || dtype == at::kHalf || dtype == at::kBFloat16, name,
                   " must be float32, float64, float16 or bfloat16, got ", dtype);
  TORCH_CHECK_VALUE(tensor.is_non_overlapping_and_dense(), name,
                    " must be non-overlapping and dense (any order of dimensions, no gaps), got sizes ", tensor.sizes(),
                    " with strides ", tensor.strides(), "; call .contiguous() first");
}

inline void check_sign_words(const at::Tensor& bits, const at::Tensor& t) {
  TORCH_CHECK_TYPE(bits.scalar_type() == at::kInt, "bits must be int32, got ", bits.scalar_type());
  TORCH_CHECK_VALUE(bits.device() == t.device(), "bits must be on t's device ", t.device(), ", got ", bits.device());
  TORCH_CHECK_VALUE(
      bits.dim() == 1 && bits.size(0) == num_sign_words(t.numel()) && (bits.numel() <= 1 || bits.stride(0) == 1),
      "bits must be contiguous with ", num_sign_words(t.numel()), " words for t's ", t.numel(), " elements, got sizes ",
      bits.sizes(), " with strides ", bits.strides());
}

}  // namespace gnfast
