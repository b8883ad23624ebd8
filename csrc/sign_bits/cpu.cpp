// leaky_relu_pack and leaky_relu_mask on the CPU: argument checks, choice of kernel, threads.

#include "cpu.h"

#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include <algorithm>
#include <tuple>

#include "../common/capability.h"
#include "checks.h"

namespace gnfast::cpu {
namespace {

template <typename T>
SignBitKernels<T> sign_bit_kernels() {
#ifdef GNFAST_WITH_AVX2
  if (use_avx2()) return avx2_sign_bit_kernels<T>();
#endif
  return portable_sign_bit_kernels<T>();
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

at::Tensor pack_into(const at::Tensor& x, const at::Tensor& y, double negative_slope) {
  at::Tensor bits = at::empty({num_sign_words(x.numel())}, x.options().dtype(at::kInt));
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, x.scalar_type(), "leaky_relu_pack", [&] {
    const auto* from = x.const_data_ptr<scalar_t>();
    auto* to = y.mutable_data_ptr<scalar_t>();
    auto* words = reinterpret_cast<uint32_t*>(bits.mutable_data_ptr<int32_t>());
    const auto pack = sign_bit_kernels<scalar_t>().pack;
    parallel_over_words(x.numel(), [&](int64_t first, int64_t word, int64_t count) {
      pack(from + first, to + first, words + word, count, negative_slope);
    });
  });
  return bits;
}

void mask_into(const at::Tensor& t, const at::Tensor& bits, const at::Tensor& out, double negative_slope) {
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, t.scalar_type(), "leaky_relu_mask", [&] {
    const auto* from = t.const_data_ptr<scalar_t>();
    auto* to = out.mutable_data_ptr<scalar_t>();
    const auto* words = reinterpret_cast<const uint32_t*>(bits.const_data_ptr<int32_t>());
    const auto mask = sign_bit_kernels<scalar_t>().mask;
    parallel_over_words(t.numel(), [&](int64_t first, int64_t word, int64_t count) {
      mask(from + first, words + word, to + first, count, negative_slope);
    });
  });
}

std::tuple<at::Tensor, at::Tensor> leaky_relu_pack(const at::Tensor& x, double negative_slope) {
  check_dense_floating(x, "x");
  at::Tensor y = at::empty_like(x);
  at::Tensor bits = pack_into(x, y, negative_slope);
  return {std::move(y), std::move(bits)};
}

at::Tensor leaky_relu_pack_(at::Tensor& x, double negative_slope) {
  check_dense_floating(x, "x");
  return pack_into(x, x, negative_slope);
}

at::Tensor leaky_relu_mask(const at::Tensor& t, const at::Tensor& bits, double negative_slope) {
  check_dense_floating(t, "t");
  check_sign_words(bits, t);
  at::Tensor out = at::empty_like(t);
  mask_into(t, bits, out, negative_slope);
  return out;
}

void leaky_relu_mask_(at::Tensor& t, const at::Tensor& bits, double negative_slope) {
  check_dense_floating(t, "t");
  check_sign_words(bits, t);
  mask_into(t, bits, t, negative_slope);
}

TORCH_LIBRARY_IMPL(gnfast, CPU, m) {
  m.impl("leaky_relu_pack", leaky_relu_pack);
  m.impl("leaky_relu_pack_", leaky_relu_pack_);
  m.impl("leaky_relu_mask", leaky_relu_mask);
  m.impl("leaky_relu_mask_", leaky_relu_mask_);
}

}  // namespace
}  // namespace gnfast::cpu
