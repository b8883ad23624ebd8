#include <type_traits>

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

// With kPack, a bit for x > 0 and y = bit ? x : slope * x; else the same y for given bits.
template <typename T, typename Acc, int kSize, bool kRelu, bool kPack>
__global__ void __launch_bounds__(kThreads)
    leaky_relu_kernel(const T* x, T* y, uint32_t* bits, int64_t numel, Acc slope) {
  const int lane = threadIdx.x % 32;
  const int64_t block_start = static_cast<int64_t>(blockIdx.x) * kThreads * kVectorsPerThread * kSize;
  const int64_t thread_start = block_start + threadIdx.x * kSize;

  Vector<T, kSize> values[kVectorsPerThread];
  uint32_t thread_bits[kVectorsPerThread] = {};
#pragma unroll
  for (int v = 0; v < kVectorsPerThread; ++v) {
    const int64_t i = thread_start + v * (kThreads * kSize);
    if (!kPack && i < numel) thread_bits[v] = bits[i / 32] >> (i % 32);
    values[v] = load<kSize>(x, i, numel);
  }
#pragma unroll
  for (int v = 0; v < kVectorsPerThread; ++v) {
    const int64_t i = thread_start + v * (kThreads * kSize);
#pragma unroll
    for (int k = 0; k < kSize; ++k) {
      T& value = values[v].lane[k];
      if (kPack) {
        bool positive;
        value = activate<kRelu>(value, slope, positive);
        thread_bits[v] |= static_cast<uint32_t>(positive) << k;
      } else {
        value = select<kRelu>(value, slope, (thread_bits[v] >> k) & 1u);
      }
    }
    if (kPack) {
      const uint32_t word = gather_word<kSize>(thread_bits[v], lane);
      if (i < numel && lane % (32 / kSize) == 0) bits[i / 32] = word;
    }
    store(y, i, numel, values[v]);
  }
}

template <typename T, typename Acc, bool kPack>
cudaError_t launch(std::bool_constant<kPack>, const void* x, void* y, uint32_t* bits, int64_t numel,
                   double negative_slope, cudaStream_t stream) {
  if (numel == 0) return cudaSuccess;
  constexpr int kVector = 16 / sizeof(T);
  const bool aligned = aligned_to_16_bytes(x, y);
  const auto relu =
      aligned ? leaky_relu_kernel<T, Acc, kVector, true, kPack> : leaky_relu_kernel<T, Acc, 1, true, kPack>;
  const auto leaky =
      aligned ? leaky_relu_kernel<T, Acc, kVector, false, kPack> : leaky_relu_kernel<T, Acc, 1, false, kPack>;
  const int64_t per_block = int64_t{kThreads} * kVectorsPerThread * (aligned ? kVector : 1);
  const auto blocks = static_cast<unsigned>((numel + per_block - 1) / per_block);
  (negative_slope == 0 ? relu : leaky)<<<blocks, kThreads, 0, stream>>>(static_cast<const T*>(x), static_cast<T*>(y),
                                                                        bits, numel, static_cast<Acc>(negative_slope));
  return cudaGetLastError();
}

}  // namespace

cudaError_t launch_leaky_relu_pack(DType dtype, const void* x, void* y, uint32_t* bits, int64_t numel,
                                   double negative_slope, cudaStream_t stream) {
  GNFAST_DISPATCH(dtype, launch, std::true_type(), x, y, bits, numel, negative_slope, stream);
}

cudaError_t launch_leaky_relu_mask(DType dtype, const void* t, const uint32_t* bits, void* out, int64_t numel,
                                   double negative_slope, cudaStream_t stream) {
  // They are only read.
  auto* const words = const_cast<uint32_t*>(bits);
  GNFAST_DISPATCH(dtype, launch, std::false_type(), t, out, words, numel, negative_slope, stream);
}

#define GNFAST_STRINGIFY(...) #__VA_ARGS__
#define GNFAST_EXPANDED_STRING(...) GNFAST_STRINGIFY(__VA_ARGS__)

const char* compiled_architectures() {
  return GNFAST_EXPANDED_STRING(__CUDA_ARCH_LIST__);
}

}  // namespace gnfast::cuda
