#include "../common/cuda_convert.h"
#include "cuda.h"

namespace gnfast::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kVectorsPerThread = 4;  // loads in flight per thread
constexpr unsigned kFullWarp = 0xffffffffu;

__device__ __forceinline__ float max_with_zero(float value) {
  return fmaxf(value, 0.0f);
}
__device__ __forceinline__ double max_with_zero(double value) {
  return fmax(value, 0.0);
}

template <bool kRelu, typename T, typename Acc>
__device__ __forceinline__ T activate(T x, Acc slope, bool& positive) {
  const Acc value = to_acc(x);
  positive = value > 0;
  if (kRelu) {
    // The maximum alone would turn NaN into 0; torch.relu passes it on.
    return value != value ? x : from_acc<T>(max_with_zero(value));
  }
  return positive ? x : from_acc<T>(value * slope);
}

template <bool kRelu, typename T, typename Acc>
__device__ __forceinline__ T select(T t, Acc slope, bool positive) {
  if (positive) return t;
  return kRelu ? from_acc<T>(Acc(0)) : from_acc<T>(to_acc(t) * slope);
}

// Each thread of a warp holds kSize bits of consecutive elements; 32 / kSize threads share a word. Returns that word to
// the first of them. All threads of the warp must call it.
template <int kSize>
__device__ __forceinline__ uint32_t gather_word(uint32_t bits, int lane) {
  if (kSize == 1) return __ballot_sync(kFullWarp, bits);
  constexpr int kGroup = 32 / kSize;
  uint32_t word = bits << (kSize * (lane % kGroup));
#pragma unroll
  for (int step = kGroup / 2; step > 0; step /= 2) word |= __shfl_xor_sync(kFullWarp, word, step);
  return word;
}

template <typename T, typename Acc, int kSize, bool kRelu>
__global__ void __launch_bounds__(kThreads)
    leaky_relu_pack_kernel(const T* x, T* y, uint32_t* bits, int64_t numel, Acc slope) {
  using Vec = Vector<T, kSize>;
  const int lane = threadIdx.x % 32;
  const int64_t block_start = static_cast<int64_t>(blockIdx.x) * kThreads * kVectorsPerThread * kSize;
  const int64_t thread_start = block_start + threadIdx.x * kSize;

  Vec values[kVectorsPerThread];
#pragma unroll
  for (int v = 0; v < kVectorsPerThread; ++v) {
    const int64_t i = thread_start + v * (kThreads * kSize);
    if (i + kSize <= numel) {
      values[v] = *reinterpret_cast<const Vec*>(x + i);
    } else {
#pragma unroll
      for (int k = 0; k < kSize; ++k) values[v].lane[k] = i + k < numel ? x[i + k] : from_acc<T>(Acc(0));
    }
  }
#pragma unroll
  for (int v = 0; v < kVectorsPerThread; ++v) {
    const int64_t i = thread_start + v * (kThreads * kSize);
    uint32_t thread_bits = 0;
#pragma unroll
    for (int k = 0; k < kSize; ++k) {
      bool positive;
      values[v].lane[k] = activate<kRelu>(values[v].lane[k], slope, positive);
      thread_bits |= static_cast<uint32_t>(positive) << k;
    }
    const uint32_t word = gather_word<kSize>(thread_bits, lane);
    if (i < numel && lane % (32 / kSize) == 0) bits[i / 32] = word;
    if (i + kSize <= numel) {
      *reinterpret_cast<Vec*>(y + i) = values[v];
    } else {
#pragma unroll
      for (int k = 0; k < kSize; ++k) {
        if (i + k < numel) y[i + k] = values[v].lane[k];
      }
    }
  }
}

template <typename T, typename Acc, int kSize, bool kRelu>
__global__ void __launch_bounds__(kThreads)
    leaky_relu_mask_kernel(const T* t, const uint32_t* bits, T* out, int64_t numel, Acc slope) {
  using Vec = Vector<T, kSize>;
  const int64_t block_start = static_cast<int64_t>(blockIdx.x) * kThreads * kVectorsPerThread * kSize;
  const int64_t thread_start = block_start + threadIdx.x * kSize;

  Vec values[kVectorsPerThread];
  uint32_t thread_bits[kVectorsPerThread];
#pragma unroll
  for (int v = 0; v < kVectorsPerThread; ++v) {
    const int64_t i = thread_start + v * (kThreads * kSize);
    thread_bits[v] = i < numel ? bits[i / 32] >> (i % 32) : 0;
    if (i + kSize <= numel) {
      values[v] = *reinterpret_cast<const Vec*>(t + i);
    } else {
#pragma unroll
      for (int k = 0; k < kSize; ++k) values[v].lane[k] = i + k < numel ? t[i + k] : from_acc<T>(Acc(0));
    }
  }
#pragma unroll
  for (int v = 0; v < kVectorsPerThread; ++v) {
    const int64_t i = thread_start + v * (kThreads * kSize);
#pragma unroll
    for (int k = 0; k < kSize; ++k) {
      values[v].lane[k] = select<kRelu>(values[v].lane[k], slope, (thread_bits[v] >> k) & 1u);
    }
    if (i + kSize <= numel) {
      *reinterpret_cast<Vec*>(out + i) = values[v];
    } else {
#pragma unroll
      for (int k = 0; k < kSize; ++k) {
        if (i + k < numel) out[i + k] = values[v].lane[k];
      }
    }
  }
}

bool aligned_to_16_bytes(const void* first, const void* second) {
  return (reinterpret_cast<uintptr_t>(first) | reinterpret_cast<uintptr_t>(second)) % 16 == 0;
}

template <int kSize>
unsigned num_blocks(int64_t numel) {
  constexpr int64_t kPerBlock = static_cast<int64_t>(kThreads) * kVectorsPerThread * kSize;
  return static_cast<unsigned>((numel + kPerBlock - 1) / kPerBlock);
}

template <typename T, typename Acc, int kSize>
void launch_pack(const void* x, void* y, uint32_t* bits, int64_t numel, double negative_slope, cudaStream_t stream) {
  const auto kernel =
      negative_slope == 0 ? leaky_relu_pack_kernel<T, Acc, kSize, true> : leaky_relu_pack_kernel<T, Acc, kSize, false>;
  kernel<<<num_blocks<kSize>(numel), kThreads, 0, stream>>>(static_cast<const T*>(x), static_cast<T*>(y), bits, numel,
                                                            static_cast<Acc>(negative_slope));
}

template <typename T, typename Acc, int kSize>
void launch_mask(const void* t, const uint32_t* bits, void* out, int64_t numel, double negative_slope,
                 cudaStream_t stream) {
  const auto kernel =
      negative_slope == 0 ? leaky_relu_mask_kernel<T, Acc, kSize, true> : leaky_relu_mask_kernel<T, Acc, kSize, false>;
  kernel<<<num_blocks<kSize>(numel), kThreads, 0, stream>>>(static_cast<const T*>(t), bits, static_cast<T*>(out), numel,
                                                            static_cast<Acc>(negative_slope));
}

template <typename T, typename Acc>
void launch_pack_aligned(const void* x, void* y, uint32_t* bits, int64_t numel, double negative_slope,
                         cudaStream_t stream) {
  constexpr int kVector = 16 / sizeof(T);
  (aligned_to_16_bytes(x, y) ? launch_pack<T, Acc, kVector> : launch_pack<T, Acc, 1>)(x, y, bits, numel, negative_slope,
                                                                                      stream);
}

template <typename T, typename Acc>
void launch_mask_aligned(const void* t, const uint32_t* bits, void* out, int64_t numel, double negative_slope,
                         cudaStream_t stream) {
  constexpr int kVector = 16 / sizeof(T);
  (aligned_to_16_bytes(t, out) ? launch_mask<T, Acc, kVector> : launch_mask<T, Acc, 1>)(t, bits, out, numel,
                                                                                        negative_slope, stream);
}

}  // namespace

cudaError_t launch_leaky_relu_pack(DType dtype, const void* x, void* y, uint32_t* bits, int64_t numel,
                                   double negative_slope, cudaStream_t stream) {
  if (numel == 0) return cudaSuccess;
  switch (dtype) {
    case DType::kFloat32:
      launch_pack_aligned<float, float>(x, y, bits, numel, negative_slope, stream);
      break;
    case DType::kFloat64:
      launch_pack_aligned<double, double>(x, y, bits, numel, negative_slope, stream);
      break;
    case DType::kFloat16:
      launch_pack_aligned<__half, float>(x, y, bits, numel, negative_slope, stream);
      break;
    case DType::kBFloat16:
      launch_pack_aligned<__nv_bfloat16, float>(x, y, bits, numel, negative_slope, stream);
      break;
  }
  return cudaGetLastError();
}

cudaError_t launch_leaky_relu_mask(DType dtype, const void* t, const uint32_t* bits, void* out, int64_t numel,
                                   double negative_slope, cudaStream_t stream) {
  if (numel == 0) return cudaSuccess;
  switch (dtype) {
    case DType::kFloat32:
      launch_mask_aligned<float, float>(t, bits, out, numel, negative_slope, stream);
      break;
    case DType::kFloat64:
      launch_mask_aligned<double, double>(t, bits, out, numel, negative_slope, stream);
      break;
    case DType::kFloat16:
      launch_mask_aligned<__half, float>(t, bits, out, numel, negative_slope, stream);
      break;
    case DType::kBFloat16:
      launch_mask_aligned<__nv_bfloat16, float>(t, bits, out, numel, negative_slope, stream);
      break;
  }
  return cudaGetLastError();
}

#define GNFAST_STRINGIFY(...) #__VA_ARGS__
#define GNFAST_EXPANDED_STRING(...) GNFAST_STRINGIFY(__VA_ARGS__)

const char* compiled_architectures() {
  return GNFAST_EXPANDED_STRING(__CUDA_ARCH_LIST__);
}

}  // namespace gnfast::cuda
