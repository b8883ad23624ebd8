// leaky_relu_pack and leaky_relu_mask on CUDA: argument checks and launch. Their schema is in ../schema.cpp.

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include <tuple>

#include "../common/cuda_kernel_dtype.h"
#include "checks.h"
#include "cuda.h"

namespace gnfast::cuda {
namespace {

at::Tensor pack_into(const at::Tensor& x, const at::Tensor& y, double negative_slope) {
  at::Tensor bits = at::empty({num_sign_words(x.numel())}, x.options().dtype(at::kInt));
  C10_CUDA_CHECK(launch_leaky_relu_pack(kernel_dtype(x.scalar_type()), x.const_data_ptr(), y.mutable_data_ptr(),
                                        reinterpret_cast<uint32_t*>(bits.mutable_data_ptr<int32_t>()), x.numel(),
                                        negative_slope, c10::cuda::getCurrentCUDAStream()));
  return bits;
}

void mask_into(const at::Tensor& t, const at::Tensor& bits, const at::Tensor& out, double negative_slope) {
  C10_CUDA_CHECK(launch_leaky_relu_mask(kernel_dtype(t.scalar_type()), t.const_data_ptr(),
                                        reinterpret_cast<const uint32_t*>(bits.const_data_ptr<int32_t>()),
                                        out.mutable_data_ptr(), t.numel(), negative_slope,
                                        c10::cuda::getCurrentCUDAStream()));
}

std::tuple<at::Tensor, at::Tensor> leaky_relu_pack(const at::Tensor& x, double negative_slope) {
  check_dense_floating(x, "x");
  const c10::cuda::CUDAGuard guard(x.device());
  at::Tensor y = at::empty_like(x);
  at::Tensor bits = pack_into(x, y, negative_slope);
  return {std::move(y), std::move(bits)};
}

at::Tensor leaky_relu_pack_(at::Tensor& x, double negative_slope) {
  check_dense_floating(x, "x");
  const c10::cuda::CUDAGuard guard(x.device());
  return pack_into(x, x, negative_slope);
}

at::Tensor leaky_relu_mask(const at::Tensor& t, const at::Tensor& bits, double negative_slope) {
  check_dense_floating(t, "t");
  check_sign_words(bits, t);
  const c10::cuda::CUDAGuard guard(t.device());
  at::Tensor out = at::empty_like(t);
  mask_into(t, bits, out, negative_slope);
  return out;
}

void leaky_relu_mask_(at::Tensor& t, const at::Tensor& bits, double negative_slope) {
  check_dense_floating(t, "t");
  check_sign_words(bits, t);
  const c10::cuda::CUDAGuard guard(t.device());
  mask_into(t, bits, t, negative_slope);
}

TORCH_LIBRARY_IMPL(gnfast, CUDA, m) {
  m.impl("leaky_relu_pack", leaky_relu_pack);
  m.impl("leaky_relu_pack_", leaky_relu_pack_);
  m.impl("leaky_relu_mask", leaky_relu_mask);
  m.impl("leaky_relu_mask_", leaky_relu_mask_);
}

}  // namespace
}  // namespace gnfast::cuda
