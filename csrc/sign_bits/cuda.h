// Launchers of the sign-bit kernels; no torch headers, so that nvcc takes seconds.

#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "../common/cuda_dtype.h"

namespace gnfast::cuda {

// bits[i / 32] bit (i % 32) = x[i] > 0, unused high bits 0;  y[i] = x[i] > 0 ? x[i] : negative_slope * x[i].
// y may be x.  The words need no alignment beyond 4 bytes, x and y none beyond their element.
cudaError_t launch_leaky_relu_pack(DType dtype, const void* x, void* y, uint32_t* bits, int64_t numel,
                                   double negative_slope, cudaStream_t stream);

// out[i] = bit i ? t[i] : negative_slope * t[i], and exactly 0 for slope 0, whatever t[i] is.  out may be t.
cudaError_t launch_leaky_relu_mask(DType dtype, const void* t, const uint32_t* bits, void* out, int64_t numel,
                                   double negative_slope, cudaStream_t stream);

// The architectures compiled in, as nvcc lists them ("800,900").
const char* compiled_architectures();

}  // namespace gnfast::cuda
