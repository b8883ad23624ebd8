// winograd_conv2d, its data gradient and its weight gradient on the CPU: argument checks, tiling, threads.
//
// Every output is the work of one thread, in an order that depends on the shapes alone, so results do not depend on the
// number of threads.

#include "cpu.h"

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <array>
#include <optional>

#include "../common/capability.h"
#include "tiling.h"

namespace gnfast::cpu {
namespace {

constexpr int64_t kSmallestPanel = 8;

// Those of the widest vectors that divide both numbers of channels.
WinogradKernels winograd_kernels(const Filter& filter, int64_t in_channels, int64_t out_channels) {
#ifdef GNFAST_X86_KERNELS
  if (use_avx512() && in_channels % 16 == 0 && out_channels % 16 == 0) return avx512_winograd_kernels(filter);
  if (use_avx2()) return avx2_winograd_kernels(filter);
#endif
  TORCH_CHECK_NOT_IMPLEMENTED(false, "Winograd convolutions need a processor with AVX2");
}

// Planes a multiple of 4 KiB apart would compete for the same lines of the L1 cache.
constexpr int64_t kPlaneGap = 16;

// Tiles that go through all steps of a convolution while they are in the L2 cache.
constexpr int64_t kConvolutionTiles = 64;
// Tiles of one product of a weight gradient: long enough to pay for loading the sums, short enough for the L1 cache.
constexpr int64_t kGradientTiles = kMaxTiles;
// Rows of such a product that one task computes.
constexpr int64_t kGradientRows = 64;

// Floats of transformed kernels, or of sums for their gradients, in use at one time: 16 MiB stay in the L3 cache, and
// are memory that the allocator keeps. Wider layers repeat the transforms of the other side for every block of
// channels.
constexpr int64_t kBlockFloats = int64_t{1} << 22;
constexpr int64_t kMinBlockChannels = 128;

int64_t channels_per_block(int64_t channels, int64_t floats_per_channel, int64_t panel) {
  const int64_t blocks = divide_up(channels * floats_per_channel, kBlockFloats);
  return std::min(channels, std::max(kMinBlockChannels, round_up(divide_up(channels, blocks), panel)));
}

FeatureMap<const float*> feature_map(const at::Tensor& x) {
  return {x.const_data_ptr<float>(), x.size(2), x.size(3), x.size(1), x.size(1)};
}

FeatureMap<float*> writable_feature_map(const at::Tensor& y) {
  return {y.mutable_data_ptr<float>(), y.size(2), y.size(3), y.size(1), y.size(1)};
}

template <typename Pointer>
FeatureMap<Pointer> channel_range(FeatureMap<Pointer> map, int64_t first, int64_t count) {
  return {map.data + first, map.height, map.width, count, map.pixel};
}

// y = convolution of x by kernels [plane][to.channels / P][input_parts * from.channels][P], plus the bias unless it is
// null, plus what there is if `accumulate`.
void convolve(const WinogradKernels& kernels, const Tiling& tiling, const FeatureMap<const float*>& from,
              const float* weights, const float* bias, bool accumulate, const FeatureMap<float*>& to,
              const at::TensorOptions& options) {
  const int64_t depth = tiling.input_parts * from.channels;
  // As many for one thread as for the other.
  const int64_t chunks = round_up(divide_up(tiling.tiles(), kConvolutionTiles), at::get_num_threads());
  const int64_t chunk = round_up(divide_up(tiling.tiles(), chunks), kTileGroup);
  const int64_t panel = chunk * kernels.panel;
  const int64_t in_plane = chunk * depth + kPlaneGap, out_plane = chunk * to.channels + kPlaneGap;
  // Parts of the input lie side by side in one plane, parts of the output have planes of their own.
  const int64_t in_part = tiling.input_parts > 1 ? chunk * from.channels : kernels.points * in_plane;
  const PanelStrides in_strides{in_plane, in_part, panel};
  const PanelStrides out_strides{out_plane, kernels.points * out_plane, panel};
  at::parallel_for(0, divide_up(tiling.tiles(), chunk), 1, [&](int64_t begin, int64_t end) {
    const at::Tensor workspace = at::empty({tiling.planes * (in_plane + out_plane)}, options);
    float* const inputs = workspace.mutable_data_ptr<float>();
    float* const outputs = inputs + tiling.planes * in_plane;
    for (int64_t index = begin; index < end; ++index) {
      const auto range = tiling.range(index * chunk, std::min(chunk, tiling.tiles() - index * chunk));
      kernels.input(from, tiling.input, range, inputs, in_strides);
      // Tiles that a product leaves out are 0.
      if (tiling.skips) std::fill_n(outputs, tiling.planes * out_plane, 0.0f);
      for (int64_t plane = 0; plane < tiling.planes; ++plane) {
        kernels.tile_product(inputs + plane * in_plane, weights + plane * (depth * to.channels + kPlaneGap),
                             outputs + plane * out_plane, panel, tiling.groups(plane, range), depth, to.channels);
      }
      kernels.output(outputs, out_strides, tiling.output, range, bias, accumulate, to);
    }
  });
}

// The same, block by block of y's channels; transform_kernel(tiling, part, panel, to, plane) writes the kernels of P of
// them, from `part` on.
template <typename TransformKernel>
void convolve_in_blocks(const WinogradKernels& kernels, const Tiling& whole, const at::Tensor& x, const float* bias,
                        const at::Tensor& y, const TransformKernel& transform_kernel) {
  const auto from = feature_map(x);
  const auto to = writable_feature_map(y);
  const int64_t at_once = whole.in_turn ? 1 : whole.input_parts;
  const int64_t depth = at_once * from.channels;
  const int64_t block = channels_per_block(to.channels, whole.planes * depth, kernels.panel);
  const at::Tensor transformed = at::empty({whole.planes * (depth * block + kPlaneGap)}, x.options());
  float* const weights = transformed.mutable_data_ptr<float>();
  for (int64_t part = 0; part < whole.input_parts; part += at_once) {
    const Tiling tiling = whole.in_turn ? whole.only(part) : whole;
    for (int64_t first = 0; first < to.channels; first += block) {
      const int64_t count = std::min(block, to.channels - first);
      at::parallel_for(0, count / kernels.panel, 1, [&](int64_t begin, int64_t end) {
        for (int64_t p = begin; p < end; ++p) {
          transform_kernel(tiling, part, first + p * kernels.panel, weights + p * kernels.panel * depth,
                           depth * count + kPlaneGap);
        }
      });
      convolve(kernels, tiling, from, weights, bias && part == 0 ? bias + first : nullptr, part > 0,
               channel_range(to, first, count), x.options());
    }
  }
}

void check_map(const at::Tensor& x, const char* name) {
  TORCH_CHECK_TYPE(x.scalar_type() == at::kFloat, name, ": got ", x.scalar_type(), ", wanted float32");
  TORCH_CHECK_VALUE(x.dim() == 4 && x.is_contiguous(at::MemoryFormat::ChannelsLast), name, ": got sizes ", x.sizes(),
                    " with strides ", x.strides(), ", wanted four dimensions in channels_last order");
  TORCH_CHECK_VALUE(x.size(1) % kSmallestPanel == 0 && x.numel() > 0, name, ": got sizes ", x.sizes(),
                    ", wanted a multiple of ", kSmallestPanel, " channels and no dimension of 0");
}

void check_filter(const Filter& filter) {
  TORCH_CHECK_VALUE(filter.size == 3 || filter.size == 4, "kernel_size: got ", filter.size, ", wanted 3 or 4");
  TORCH_CHECK_VALUE(filter.stride == 1 || (filter.stride == 2 && filter.size == 4), "stride: got ", filter.stride,
                    " with a kernel of ", filter.size, "×", filter.size, ", wanted 1, or 2 with 4×4");
  TORCH_CHECK_VALUE(filter.padding >= 0, "padding: got ", filter.padding, ", wanted 0 or more");
}

Filter checked_filter(const at::Tensor& weight, int64_t stride, int64_t padding) {
  check_map(weight, "weight");
  TORCH_CHECK_VALUE(weight.size(2) == weight.size(3) && weight.size(0) % kSmallestPanel == 0, "weight: got sizes ",
                    weight.sizes(), ", wanted a multiple of ", kSmallestPanel, " output channels and a square kernel");
  const Filter filter{weight.size(2), stride, padding};
  check_filter(filter);
  return filter;
}

int64_t output_size(int64_t size, const Filter& filter) {
  return (size + 2 * filter.padding - filter.size) / filter.stride + 1;
}

// `grad` must be a cotangent of the convolution of a (batch, .., height, width) input.
void check_cotangent(const at::Tensor& grad, at::IntArrayRef input_sizes, const Filter& filter) {
  const int64_t height = output_size(input_sizes[2], filter), width = output_size(input_sizes[3], filter);
  TORCH_CHECK_VALUE(grad.size(0) == input_sizes[0] && grad.size(2) == height && grad.size(3) == width,
                    "grad: got sizes ", grad.sizes(), ", wanted ", input_sizes[0], " samples of ", height, "×", width,
                    " pixels");
}

at::Tensor empty_map(int64_t batch, int64_t channels, int64_t height, int64_t width, const at::Tensor& like) {
  return at::empty({batch, channels, height, width}, like.options().memory_format(at::MemoryFormat::ChannelsLast));
}

at::Tensor winograd_conv2d(const at::Tensor& x, const at::Tensor& weight, const std::optional<at::Tensor>& bias,
                           int64_t stride, int64_t padding) {
  check_map(x, "x");
  const Filter filter = checked_filter(weight, stride, padding);
  const int64_t size = filter.size, out_channels = weight.size(0), in_channels = weight.size(1);
  TORCH_CHECK_VALUE(x.size(1) == in_channels, "x: got sizes ", x.sizes(), ", wanted the weight's ", in_channels,
                    " channels");
  TORCH_CHECK_VALUE(std::min(x.size(2), x.size(3)) + 2 * padding >= size, "x: got sizes ", x.sizes(),
                    ", wanted at least the kernel's after padding");
  TORCH_CHECK_VALUE(!bias || (bias->scalar_type() == at::kFloat && bias->sizes() == at::IntArrayRef{out_channels}),
                    "bias: got ", bias->scalar_type(), " of sizes ", bias->sizes(), ", wanted float32 of [",
                    out_channels, "]");
  const at::Tensor shift = bias ? bias->contiguous() : at::Tensor();
  const auto kernels = winograd_kernels(filter, in_channels, out_channels);
  at::Tensor y = empty_map(x.size(0), out_channels, output_size(x.size(2), filter), output_size(x.size(3), filter), x);

  const float* const from = weight.const_data_ptr<float>();
  convolve_in_blocks(kernels, tile_outputs(Sizes(x.sizes()), Sizes(y.sizes()), filter), x,
                     bias ? shift.const_data_ptr<float>() : nullptr, y,
                     [&](const Tiling& tiling, int64_t part, int64_t first, float* to, int64_t plane) {
                       for (int64_t p = 0; p < tiling.input_parts; ++p) {
                         kernels.weight(from + first * size * size * in_channels, in_channels, part + p,
                                        to + p * in_channels * kernels.panel, plane);
                       }
                     });
  return y;
}

at::Tensor winograd_conv2d_input_grad(const at::Tensor& grad, const at::Tensor& weight, int64_t stride, int64_t padding,
                                      int64_t height, int64_t width) {
  check_map(grad, "grad");
  const Filter filter = checked_filter(weight, stride, padding);
  const int64_t out_channels = weight.size(0), in_channels = weight.size(1);
  TORCH_CHECK_VALUE(grad.size(1) == out_channels, "grad: got sizes ", grad.sizes(), ", wanted the weight's ",
                    out_channels, " channels");
  check_cotangent(grad, {grad.size(0), in_channels, height, width}, filter);
  const auto kernels = winograd_kernels(filter, in_channels, out_channels);
  at::Tensor result = empty_map(grad.size(0), in_channels, height, width, grad);

  const float* const from = weight.const_data_ptr<float>();
  convolve_in_blocks(kernels, tile_input_grads(Sizes(grad.sizes()), Sizes(result.sizes()), filter), grad, nullptr,
                     result, [&](const Tiling& tiling, int64_t part, int64_t first, float* to, int64_t plane) {
                       for (int64_t p = 0; p < tiling.planes / kernels.points; ++p) {
                         kernels.weight_adjoint(from + first, out_channels, in_channels, padding, part + p,
                                                to + p * kernels.points * plane, plane);
                       }
                     });
  return result;
}

// sums[plane][from.channels / P][cotangent.channels][P] = the products of the transforms of tiles [begin, end).
void sum_products(const WinogradKernels& kernels, const Tiling& tiling, const FeatureMap<const float*>& from,
                  const FeatureMap<const float*>& cotangent, int64_t tiles_begin, int64_t tiles_end, float* sums,
                  int64_t sum_plane, const at::TensorOptions& options) {
  const int64_t out_channels = cotangent.channels, depth = tiling.input_parts * from.channels;
  const int64_t chunk = std::min(kGradientTiles, round_up(tiles_end - tiles_begin, kTileGroup));
  const int64_t panel = chunk * kernels.panel;
  const int64_t in_plane = chunk * depth + kPlaneGap, out_plane = chunk * out_channels + kPlaneGap;
  const at::Tensor workspace = at::empty({tiling.planes * (in_plane + out_plane)}, options);
  float* const inputs = workspace.mutable_data_ptr<float>();
  float* const outputs = inputs + tiling.planes * in_plane;
  const int64_t row_blocks = divide_up(out_channels, kGradientRows);

  for (int64_t first = tiles_begin; first < tiles_end; first += chunk) {
    const int64_t count = std::min(chunk, tiles_end - first);
    at::parallel_for(0, divide_up(count, kTileGroup), 1, [&](int64_t begin, int64_t end) {
      const int64_t offset = begin * kTileGroup;
      const auto range = tiling.range(first + offset, std::min(end * kTileGroup, count) - offset);
      kernels.input(from, tiling.input, range, inputs + offset * kernels.panel,
                    {in_plane, chunk * from.channels, panel});
      kernels.cotangent(cotangent, tiling.output, range, outputs + offset * kernels.panel, {out_plane, 0, panel});
    });
    at::parallel_for(0, tiling.planes * row_blocks, 1, [&](int64_t begin, int64_t end) {
      for (int64_t task = begin; task < end; ++task) {
        // Planes near each other need about as many tiles: every thread has some of all kinds.
        const int64_t plane = 7 * (task / row_blocks) % tiling.planes, row = task % row_blocks * kGradientRows;
        kernels.channel_product(outputs + plane * out_plane + row * chunk, inputs + plane * in_plane,
                                sums + plane * sum_plane + row * kernels.panel, panel, out_channels * kernels.panel,
                                tiling.groups(plane, tiling.range(first, count)),
                                std::min(kGradientRows, out_channels - row), depth, first > tiles_begin);
      }
    });
  }
}

// How many parts of the tiles have sums of their own, which saves threads from waiting for each other: a power of two
// that fixes the order of addition, so it must not depend on the number of threads.
int64_t num_splits(int64_t tiles, int64_t floats_per_sum) {
  int64_t splits = 1;
  while (splits < 16 && tiles / (2 * splits) >= 2 * kGradientTiles && 2 * splits * floats_per_sum <= kBlockFloats) {
    splits *= 2;
  }
  return splits;
}

// The gradient with respect to `parts` parts, from `part` on, of the kernels of `cotangent`'s channels, `filter` floats
// each.
void weight_grad(const WinogradKernels& kernels, const Tiling& tiling, const FeatureMap<const float*>& from,
                 const FeatureMap<const float*>& cotangent, int64_t part, bool accumulate, float* to, int64_t filter,
                 const at::TensorOptions& options) {
  const int64_t out_channels = cotangent.channels, sum_panel = out_channels * kernels.panel;
  const int64_t sum_plane = out_channels * tiling.input_parts * from.channels + kPlaneGap;
  const int64_t sum_size = tiling.planes * sum_plane;
  const int64_t splits = num_splits(tiling.tiles(), sum_size), per_split = divide_up(tiling.tiles(), splits);
  const at::Tensor workspace = at::empty({splits * sum_size}, options);
  float* const sums = workspace.mutable_data_ptr<float>();
  // With one split, the loops inside are parallel instead.
  at::parallel_for(0, splits, 1, [&](int64_t begin, int64_t end) {
    for (int64_t split = begin; split < end; ++split) {
      sum_products(kernels, tiling, from, cotangent, split * per_split,
                   std::min((split + 1) * per_split, tiling.tiles()), sums + split * sum_size, sum_plane, options);
    }
  });
  at::parallel_for(0, tiling.planes, 1, [&](int64_t begin, int64_t end) {
    for (int64_t split = 1; split < splits; ++split) {
      const float* const other = sums + split * sum_size;
      for (int64_t i = begin * sum_plane; i < end * sum_plane - kPlaneGap; ++i) sums[i] += other[i];
    }
  });
  at::parallel_for(0, out_channels, 4, [&](int64_t begin, int64_t end) {
    for (int64_t o = begin; o < end; ++o) {
      for (int64_t p = 0; p < tiling.input_parts; ++p) {
        kernels.weight_grad(sums + o * kernels.panel + p * from.channels * out_channels, {sum_plane, 0, sum_panel},
                            from.channels, part + p, accumulate, to + o * filter);
      }
    }
  });
}

// The gradient with respect to (grad.channels, x.channels, size, size) kernels at `to`.
void weight_grad_of(const at::Tensor& grad, const at::Tensor& x, const Filter& geometry, bool accumulate, float* to) {
  const auto kernels = winograd_kernels(geometry, x.size(1), grad.size(1));
  const Tiling whole = tile_outputs(Sizes(x.sizes()), Sizes(grad.sizes()), geometry);
  const auto from = feature_map(x), cotangent = feature_map(grad);
  const int64_t filter = geometry.size * geometry.size * x.size(1);

  const int64_t sums = whole.planes * from.channels;
  // Of wide layers one part after the other, with less to repeat than by blocks of channels.
  const bool by_parts = whole.input_parts * sums * cotangent.channels > kBlockFloats;
  const int64_t at_once = by_parts ? 1 : whole.input_parts;
  const int64_t block = channels_per_block(cotangent.channels, at_once * sums, kernels.panel);
  for (int64_t part = 0; part < whole.input_parts; part += at_once) {
    const Tiling tiling = by_parts ? whole.only(part) : whole;
    for (int64_t first = 0; first < cotangent.channels; first += block) {
      const auto channels = channel_range(cotangent, first, std::min(block, cotangent.channels - first));
      weight_grad(kernels, tiling, from, channels, part, accumulate, to + first * filter, filter, x.options());
    }
  }
}

void check_weight_grad(const at::Tensor& grad, const at::Tensor& x, const Filter& geometry) {
  check_map(grad, "grad");
  check_map(x, "x");
  check_filter(geometry);
  check_cotangent(grad, x.sizes(), geometry);
}

at::Tensor winograd_conv2d_weight_grad(const at::Tensor& grad, const at::Tensor& x, int64_t kernel_size, int64_t stride,
                                       int64_t padding) {
  const Filter geometry{kernel_size, stride, padding};
  check_weight_grad(grad, x, geometry);
  at::Tensor result = empty_map(grad.size(1), x.size(1), kernel_size, kernel_size, x);
  weight_grad_of(grad, x, geometry, false, result.mutable_data_ptr<float>());
  return result;
}

void winograd_conv2d_weight_grad_(at::Tensor& total, const at::Tensor& grad, const at::Tensor& x, int64_t stride,
                                  int64_t padding) {
  check_map(total, "total");
  const Filter geometry{total.size(2), stride, padding};
  check_weight_grad(grad, x, geometry);
  const std::array<int64_t, 4> wanted{grad.size(1), x.size(1), geometry.size, geometry.size};
  TORCH_CHECK_VALUE(total.sizes() == at::IntArrayRef(wanted), "total: got sizes ", total.sizes(), ", wanted ",
                    at::IntArrayRef(wanted));
  weight_grad_of(grad, x, geometry, true, total.mutable_data_ptr<float>());
}

TORCH_LIBRARY_IMPL(gnfast, CPU, m) {
  m.impl("winograd_conv2d", winograd_conv2d);
  m.impl("winograd_conv2d_input_grad", winograd_conv2d_input_grad);
  m.impl("winograd_conv2d_weight_grad", winograd_conv2d_weight_grad);
  m.impl("winograd_conv2d_weight_grad_", winograd_conv2d_weight_grad_);
}

}  // namespace
}  // namespace gnfast::cpu
