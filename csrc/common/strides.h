// Tensors in the order of memory that a kernel reads.

#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty_like.h>

namespace gnfast {

// `tensor` with the strides of `like`, of the same sizes and without gaps: a copy, or itself where it has them on all
// dimensions with more than one entry.
inline at::Tensor with_strides_of(const at::Tensor& tensor, const at::Tensor& like) {
  for (int64_t dim = 0; dim < tensor.dim(); ++dim) {
    if (tensor.size(dim) != 1 && tensor.stride(dim) != like.stride(dim)) {
      return at::empty_like(like, tensor.options()).copy_(tensor);
    }
  }
  return tensor;
}

// `tensor` without gaps and with its samples one after the other: itself, or a copy.
inline at::Tensor batch_major(const at::Tensor& tensor) {
  const bool dense = tensor.is_non_overlapping_and_dense();
  const bool in_order = tensor.size(0) <= 1 || tensor.stride(0) * tensor.size(0) == tensor.numel();
  return dense && in_order ? tensor : tensor.contiguous();
}

}  // namespace gnfast
