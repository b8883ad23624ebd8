// Element types and their accumulators: what every kernel needs to read and write tensors.

#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#include "cuda_dtype.h"

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

// Elements [i, i + kSize), zeros from `end` on; with `aligned`, from + i is at a multiple of the vector's size.
template <int kSize, typename T, typename Index>
__device__ __forceinline__ Vector<T, kSize> load(const T* from, Index i, Index end, bool aligned = true) {
  if (aligned && i + kSize <= end) return *reinterpret_cast<const Vector<T, kSize>*>(from + i);
  Vector<T, kSize> values;
#pragma unroll
  for (int k = 0; k < kSize; ++k) values.lane[k] = i + k < end ? from[i + k] : T();
  return values;
}

template <int kSize, typename T, typename Index>
__device__ __forceinline__ void store(T* to, Index i, Index end, const Vector<T, kSize>& values, bool aligned = true) {
  if (aligned && i + kSize <= end) {
    *reinterpret_cast<Vector<T, kSize>*>(to + i) = values;
    return;
  }
#pragma unroll
  for (int k = 0; k < kSize; ++k) {
    if (i + k < end) to[i + k] = values.lane[k];
  }
}

__host__ __device__ inline bool aligned_to_16_bytes(const void* first, const void* second) {
  return (reinterpret_cast<uintptr_t>(first) | reinterpret_cast<uintptr_t>(second)) % 16 == 0;
}

// Returns function<T, Acc>(...) for the elements' type and that of their sums.
#define GNFAST_DISPATCH(dtype, function, ...)             \
  switch (dtype) {                                        \
    case DType::kFloat32:                                 \
      return function<float, float>(__VA_ARGS__);         \
    case DType::kFloat64:                                 \
      return function<double, double>(__VA_ARGS__);       \
    case DType::kFloat16:                                 \
      return function<__half, float>(__VA_ARGS__);        \
    case DType::kBFloat16:                                \
      return function<__nv_bfloat16, float>(__VA_ARGS__); \
  }                                                       \
  return cudaErrorInvalidValue

}  // namespace gnfast::cuda
