// Element types and their accumulators: what every kernel needs to read and write tensors.

#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

namespace gnfast::cuda {

__device__ __forceinline__ float to_acc(float value) {
  return value;
}
__device__ __forceinline__ double to_acc(double value) {
  return value;
}
__device__ __forceinline__ float to_acc(__half value) {
  return __half2float(value);
}
__device__ __forceinline__ float to_acc(__nv_bfloat16 value) {
  return __bfloat162float(value);
}

template <typename T>
__device__ __forceinline__ T from_acc(float value);
template <>
__device__ __forceinline__ float from_acc<float>(float value) {
  return value;
}
template <>
__device__ __forceinline__ __half from_acc<__half>(float value) {
  return __float2half_rn(value);
}
template <>
__device__ __forceinline__ __nv_bfloat16 from_acc<__nv_bfloat16>(float value) {
  return __float2bfloat16_rn(value);
}
template <typename T>
__device__ __forceinline__ T from_acc(double value) {
  return value;
}

template <typename T, int kSize>
struct alignas(sizeof(T) * kSize) Vector {
  T lane[kSize];
};

}  // namespace gnfast::cuda
