// leaky_relu_pack and leaky_relu_mask on the CPU: choice of kernel, threads.

#include "cpu.h"

#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>

#include <algorithm>

#include "../common/capability.h"
#include "operators.h"

namespace gnfast::cpu {
namespace {

template <typename T>
SignBitKernels<T> kernels_for(double negative_slope) {
#ifdef GNFAST_X86_KERNELS
  if (use_avx2()) return avx2_sign_bit_kernels<T>(negative_slope == 0);
#endif
  return portable_sign_bit_kernels<T>(negative_slope == 0);
}

// As many elements per thread as PyTorch's own pointwise loops take at least.
constexpr int64_t kGrainWords = 32768 / 32;

// Calls range(first element, first word, number of elements) on chunks that share no word.
template <typename Range>
void parallel_over_words(int64_t numel, const Range& range) {
  at::parallel_for(0, num_sign_words(numel), kGrainWords, [&](int64_t begin, int64_t end) {
    range(32 * begin, begin, std::min(32 * end, numel) - 32 * begin);
  });
}

void pack(const at::Tensor& x, const at::Tensor& y, const at::Tensor& bits, double negative_slope) {
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, x.scalar_type(), "leaky_relu_pack", [&] {
    const auto* from = x.const_data_ptr<scalar_t>();
    auto* to = y.mutable_data_ptr<scalar_t>();
    auto* words = reinterpret_cast<uint32_t*>(bits.mutable_data_ptr<int32_t>());
    const auto kernel = kernels_for<scalar_t>(negative_slope).pack;
    parallel_over_words(x.numel(), [&](int64_t first, int64_t word, int64_t count) {
      kernel(from + first, to + first, words + word, count, negative_slope);
    });
  });
}

void mask(const at::Tensor& t, const at::Tensor& bits, const at::Tensor& out, double negative_slope) {
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, t.scalar_type(), "leaky_relu_mask", [&] {
    const auto* from = t.const_data_ptr<scalar_t>();
    auto* to = out.mutable_data_ptr<scalar_t>();
    const auto* words = reinterpret_cast<const uint32_t*>(bits.const_data_ptr<int32_t>());
    const auto kernel = kernels_for<scalar_t>(negative_slope).mask;
    parallel_over_words(t.numel(), [&](int64_t first, int64_t word, int64_t count) {
      kernel(from + first, words + word, to + first, count, negative_slope);
    });
  });
}

TORCH_LIBRARY_IMPL(gnfast, CPU, m) {
  register_sign_bits<pack, mask>(m);
}

}  // namespace
}  // namespace gnfast::cpu
