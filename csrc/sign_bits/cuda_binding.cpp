// leaky_relu_pack and leaky_relu_mask on CUDA: launches.

#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include "../common/cuda_kernel_dtype.h"
#include "cuda.h"
#include "operators.h"

namespace gnfast::cuda {
namespace {

void pack(const at::Tensor& x, const at::Tensor& y, const at::Tensor& bits, double negative_slope) {
  const c10::cuda::CUDAGuard guard(x.device());
  C10_CUDA_CHECK(launch_leaky_relu_pack(kernel_dtype(x.scalar_type()), x.const_data_ptr(), y.mutable_data_ptr(),
                                        reinterpret_cast<uint32_t*>(bits.mutable_data_ptr<int32_t>()), x.numel(),
                                        negative_slope, c10::cuda::getCurrentCUDAStream()));
}

void mask(const at::Tensor& t, const at::Tensor& bits, const at::Tensor& out, double negative_slope) {
  const c10::cuda::CUDAGuard guard(t.device());
  C10_CUDA_CHECK(launch_leaky_relu_mask(kernel_dtype(t.scalar_type()), t.const_data_ptr(),
                                        reinterpret_cast<const uint32_t*>(bits.const_data_ptr<int32_t>()),
                                        out.mutable_data_ptr(), t.numel(), negative_slope,
                                        c10::cuda::getCurrentCUDAStream()));
}

TORCH_LIBRARY_IMPL(gnfast, CUDA, m) {
  register_sign_bits<pack, mask>(m);
}

}  // namespace
}  // namespace gnfast::cuda
