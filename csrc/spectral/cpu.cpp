// spectral_norm_iterate, _scale and _backward on the CPU: all layers at once, split into blocks of rows.
//
// The blocks depend on the shapes alone and their partial sums are added in order, so results do not depend on the
// number of threads.

#include "cpu.h"

#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "../common/capability.h"
#include "operators.h"

namespace gnfast::cpu {
namespace {

template <typename T>
SpectralKernels<T> spectral_kernels() {
#ifdef GNFAST_X86_KERNELS
  if (use_avx2()) return avx2_spectral_kernels<T>();
#endif
  return portable_spectral_kernels<T>();
}

// Large enough that a block's partial sums along the columns are few compared with its weights, small enough for the L2
// cache.
constexpr int64_t kBlockElements = 65536;
// Rows that are read a second time while they are in the L1 or L2 cache.
constexpr int64_t kPanelRows = 4;

// Rows [begin, end) of one layer, the `index`-th block there.
struct Block {
  size_t layer;
  int64_t begin, end, index;
};

int64_t rows_per_block(const SpectralLayout& layout) {
  const int64_t rows = (kBlockElements + layout.cols - 1) / layout.cols;
  return (rows + kPanelRows - 1) / kPanelRows * kPanelRows;
}

int64_t num_blocks(const SpectralLayout& layout) {
  return (layout.rows + rows_per_block(layout) - 1) / rows_per_block(layout);
}

template <typename Wanted>
std::vector<Block> row_blocks(const std::vector<SpectralLayer>& layers, const Wanted& wanted) {
  std::vector<Block> blocks;
  for (size_t i = 0; i < layers.size(); ++i) {
    if (!wanted(i)) continue;
    const auto& layout = layers[i].layout;
    for (int64_t index = 0; index < num_blocks(layout); ++index) {
      const int64_t begin = index * rows_per_block(layout);
      blocks.push_back({i, begin, std::min(begin + rows_per_block(layout), layout.rows), index});
    }
  }
  return blocks;
}

template <typename Item, typename Function>
void parallel_over(const std::vector<Item>& items, const Function& function) {
  at::parallel_for(0, static_cast<int64_t>(items.size()), 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) function(items[i]);
  });
}

// A vector along the columns, from their own order into that of memory, and back.
template <typename From, typename To>
void to_memory_order(const SpectralLayout& layout, const From* columns, To* positions) {
  for (int64_t x = 0; x < layout.major; ++x) {
    for (int64_t y = 0; y < layout.minor; ++y) {
      positions[x * layout.minor + y] = static_cast<To>(columns[y * layout.major + x]);
    }
  }
}
template <typename From, typename To>
void from_memory_order(const SpectralLayout& layout, const From* positions, To* columns) {
  for (int64_t y = 0; y < layout.minor; ++y) {
    for (int64_t x = 0; x < layout.major; ++x) {
      columns[y * layout.major + x] = static_cast<To>(positions[x * layout.minor + y]);
    }
  }
}

template <typename Acc>
double norm(const Acc* x, int64_t size) {
  double squares = 0;
  for (int64_t i = 0; i < size; ++i) squares += static_cast<double>(x[i]) * x[i];
  return std::sqrt(squares);
}

// One layer's matrix and the vectors in use, those along the columns in the order of memory.
template <typename T>
struct Layer {
  using Acc = at::opmath_type<T>;
  SpectralLayout layout;
  const T* weight;
  Acc* u;         // (rows), normalised
  Acc* v;         // (cols), normalised
  Acc* wv;        // (rows)
  Acc* partials;  // (blocks, cols): each block's share of Wᵀ(Wv)

  // Wv for the rows of a block and, if iterating, the block's share of Wᵀ(Wv): the norm of Wv is not known yet, and
  // divides both afterwards. So W comes from memory once for both products.
  void products(const SpectralKernels<T>& kernels, const Block& block, bool iterating) const {
    const auto [rows, cols, outer, inner, major, minor] = layout;
    const int64_t count = block.end - block.begin;
    Acc* const block_wv = wv + block.begin;
    Acc* const partial = partials + block.index * cols;
    std::fill_n(block_wv, count, Acc(0));
    if (iterating) std::fill_n(partial, cols, Acc(0));
    if (outer == 1) {
      for (int64_t r = 0; r < count; r += kPanelRows) {
        const T* panel = weight + (block.begin + r) * cols;
        const int64_t panel_rows = std::min(kPanelRows, count - r);
        kernels.rows_times(panel, cols, panel_rows, cols, v, block_wv + r);
        if (iterating) kernels.columns_times(panel, cols, panel_rows, cols, block_wv + r, partial);
      }
    } else if (inner == 1) {
      // The transpose lies in memory: its rows are our columns.
      kernels.columns_times(weight + block.begin, rows, outer, count, v, block_wv);
      if (iterating) kernels.rows_times(weight + block.begin, rows, outer, count, block_wv, partial);
    } else {
      const auto part = [&](int64_t o) { return weight + (o * rows + block.begin) * inner; };
      for (int64_t o = 0; o < outer; ++o) {
        kernels.rows_times(part(o), inner, count, inner, v + o * inner, block_wv);
      }
      for (int64_t o = 0; iterating && o < outer; ++o) {
        kernels.columns_times(part(o), inner, count, inner, block_wv, partial + o * inner);
      }
    }
  }

  // u = Wv / max(|Wv|, eps), v = Wᵀu / max(|Wᵀu|, eps), and sigma = uᵀWv = (Wᵀu)ᵀv.
  double finish(double eps) const {
    // Not std::max, which would drop a NaN.
    const auto at_least_eps = [eps](double value) { return value < eps ? eps : value; };
    const double wv_norm = at_least_eps(norm(wv, layout.rows));
    for (int64_t r = 0; r < layout.rows; ++r) u[r] = static_cast<Acc>(wv[r] / wv_norm);
    for (int64_t block = 1; block < num_blocks(layout); ++block) {
      for (int64_t c = 0; c < layout.cols; ++c) partials[c] += partials[block * layout.cols + c];
    }
    const Acc to_wtu = static_cast<Acc>(1 / wv_norm);
    for (int64_t c = 0; c < layout.cols; ++c) v[c] = partials[c] * to_wtu;
    const double wtu_norm = norm(v, layout.cols);
    const Acc to_v = static_cast<Acc>(1 / at_least_eps(wtu_norm));
    for (int64_t c = 0; c < layout.cols; ++c) v[c] *= to_v;
    return wtu_norm * wtu_norm / at_least_eps(wtu_norm);
  }

  double sigma_without_iterating() const {
    double sigma = 0;
    for (int64_t r = 0; r < layout.rows; ++r) sigma += static_cast<double>(u[r]) * wv[r];
    return sigma;
  }
};

template <typename T>
void iterate_typed(const std::vector<SpectralLayer>& spectral_layers, at::TensorList u, at::TensorList v,
                   at::IntArrayRef iterations, at::ArrayRef<double> eps, const at::Tensor& vectors,
                   const at::Tensor& sigma) {
  using Acc = at::opmath_type<T>;
  const auto kernels = spectral_kernels<T>();
  const size_t count = spectral_layers.size();
  int64_t workspace_size = 0;
  for (const auto& [weight, layout] : spectral_layers) {
    workspace_size += layout.rows + (1 + num_blocks(layout)) * layout.cols;
  }
  const at::Tensor workspace = at::empty({workspace_size}, vectors.options());
  Acc* free = workspace.mutable_data_ptr<Acc>();
  Acc* result = vectors.mutable_data_ptr<Acc>();
  Acc* const sigmas = sigma.mutable_data_ptr<Acc>();

  std::vector<Layer<T>> layers;
  std::vector<size_t> indices(count);
  for (size_t i = 0; i < count; ++i) {
    const auto& [weight, layout] = spectral_layers[i];
    Acc* const layer_v = free;
    Acc* const wv = layer_v + layout.cols;
    Acc* const partials = wv + layout.rows;
    free = partials + num_blocks(layout) * layout.cols;
    layers.push_back({layout, weight.template const_data_ptr<T>(), result, layer_v, wv, partials});
    result += layout.rows + layout.cols;
    std::copy_n(u[i].const_data_ptr<T>(), layout.rows, layers[i].u);
    to_memory_order(layout, v[i].const_data_ptr<T>(), layers[i].v);
    indices[i] = i;
  }

  const int64_t rounds = std::max<int64_t>(1, *std::max_element(iterations.begin(), iterations.end()));
  for (int64_t round = 0; round < rounds; ++round) {
    const auto wanted = [&](size_t i) { return round < std::max<int64_t>(1, iterations[i]); };
    parallel_over(row_blocks(spectral_layers, wanted), [&](const Block& block) {
      layers[block.layer].products(kernels, block, iterations[block.layer] > 0);
    });
    parallel_over(indices, [&](size_t i) {
      if (!wanted(i)) return;
      const auto& layer = layers[i];
      sigmas[i] = static_cast<Acc>(iterations[i] > 0 ? layer.finish(eps[i]) : layer.sigma_without_iterating());
    });
  }
  for (size_t i = 0; i < count; ++i) {
    const auto& [layout, weight, layer_u, layer_v, wv, partials] = layers[i];
    Acc* const columns = layer_u + layout.rows;
    from_memory_order(layout, layer_v, columns);
    if (iterations[i] == 0) continue;
    std::copy_n(layer_u, layout.rows, u[i].mutable_data_ptr<T>());
    std::copy_n(columns, layout.cols, v[i].mutable_data_ptr<T>());
  }
}

void iterate(const std::vector<SpectralLayer>& layers, at::TensorList u, at::TensorList v, at::IntArrayRef iterations,
             at::ArrayRef<double> eps, const at::Tensor& vectors, const at::Tensor& sigma) {
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, u[0].scalar_type(), "spectral_norm_iterate",
                                  [&] { iterate_typed<scalar_t>(layers, u, v, iterations, eps, vectors, sigma); });
}

// Elements [begin, end) of one layer's storage.
struct Range {
  size_t layer;
  int64_t begin, end;
};

// The last layers come first: of the pass before this one, they are what the cache still holds.
std::vector<Range> ranges_from_the_end(const std::vector<at::Tensor>& tensors) {
  std::vector<Range> ranges;
  for (size_t i = tensors.size(); i-- > 0;) {
    for (int64_t end = tensors[i].numel(); end > 0; end -= std::min(end, kBlockElements)) {
      ranges.push_back({i, std::max<int64_t>(0, end - kBlockElements), end});
    }
  }
  return ranges;
}

void scale(const std::vector<at::Tensor>& from, const std::vector<at::Tensor>& to, const at::Tensor& sigma,
           at::ArrayRef<double> coeffs) {
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, from[0].scalar_type(), "spectral_norm_scale", [&] {
    using Acc = at::opmath_type<scalar_t>;
    const auto kernels = spectral_kernels<scalar_t>();
    const Acc* const sigmas = sigma.const_data_ptr<Acc>();
    parallel_over(ranges_from_the_end(from), [&](const Range& range) {
      const auto [layer, begin, end] = range;
      kernels.scale(from[layer].template const_data_ptr<scalar_t>() + begin,
                    to[layer].template mutable_data_ptr<scalar_t>() + begin, end - begin,
                    static_cast<Acc>(coeffs[layer]) / sigmas[layer]);
    });
  });
}

template <typename T>
void backward_typed(const std::vector<SpectralLayer>& layers, const std::vector<at::Tensor>& grads,
                    const std::vector<at::Tensor>& results, const at::Tensor& vectors, const at::Tensor& sigma,
                    at::ArrayRef<double> coeffs) {
  using Acc = at::opmath_type<T>;
  const auto kernels = spectral_kernels<T>();
  const Acc* const sigmas = sigma.const_data_ptr<Acc>();

  std::vector<Range> ranges = ranges_from_the_end(grads);
  std::vector<double> partials(ranges.size());
  at::parallel_for(0, static_cast<int64_t>(ranges.size()), 1, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      const auto [layer, begin, end] = ranges[i];
      partials[i] = kernels.dot(grads[layer].template const_data_ptr<T>() + begin,
                                layers[layer].weight.template const_data_ptr<T>() + begin, end - begin);
    }
  });
  std::vector<double> products(layers.size());  // <G, W>
  for (size_t i = 0; i < ranges.size(); ++i) products[ranges[i].layer] += partials[i];

  std::vector<const Acc*> u(layers.size());
  std::vector<std::vector<Acc>> v(layers.size());
  const Acc* vector = vectors.const_data_ptr<Acc>();
  for (size_t i = 0; i < layers.size(); ++i) {
    const auto& layout = layers[i].layout;
    u[i] = vector;
    v[i].resize(layout.cols);
    to_memory_order(layout, vector + layout.rows, v[i].data());
    vector += layout.rows + layout.cols;
  }

  parallel_over(row_blocks(layers, [](size_t) { return true; }), [&](const Block& block) {
    const size_t layer = block.layer;
    const auto [rows, cols, outer, inner, major, minor] = layers[layer].layout;
    const T* const g = grads[layer].template const_data_ptr<T>();
    T* const out = results[layer].template mutable_data_ptr<T>();
    const Acc factor = static_cast<Acc>(coeffs[layer]) / sigmas[layer];
    const Acc amount = static_cast<Acc>(factor * (products[layer] / sigmas[layer]));
    if (inner == 1 && outer > 1) {
      for (int64_t o = 0; o < outer; ++o) {
        const int64_t start = o * rows + block.begin;
        kernels.project(g + start, out + start, block.end - block.begin, factor, amount * v[layer][o],
                        u[layer] + block.begin);
      }
      return;
    }
    for (int64_t o = 0; o < outer; ++o) {
      for (int64_t r = block.begin; r < block.end; ++r) {
        const int64_t start = (o * rows + r) * inner;
        kernels.project(g + start, out + start, inner, factor, amount * u[layer][r], v[layer].data() + o * inner);
      }
    }
  });
}

void backward(const std::vector<SpectralLayer>& layers, const std::vector<at::Tensor>& grads,
              const std::vector<at::Tensor>& results, const at::Tensor& vectors, const at::Tensor& sigma,
              at::ArrayRef<double> coeffs) {
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, grads[0].scalar_type(), "spectral_norm_backward",
                                  [&] { backward_typed<scalar_t>(layers, grads, results, vectors, sigma, coeffs); });
}

TORCH_LIBRARY_IMPL(gnfast, CPU, m) {
  register_spectral_norm<iterate, scale, backward>(m);
}

}  // namespace
}  // namespace gnfast::cpu
