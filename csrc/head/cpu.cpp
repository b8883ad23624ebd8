// head_normalize and head_pull on the CPU: what gnfast/kernels/head/triton.py does on GPUs.
//
// Formulas, norms and coefficients are in double, so that for narrower tensors none of them leaves the range. A sample
// belongs to one thread, so results do not depend on the number of threads.

#include <ATen/Dispatch.h>
#include <ATen/OpMathType.h>
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <optional>
#include <string_view>
#include <tuple>
#include <vector>

#include "../common/strides.h"

namespace gnfast::cpu {
namespace {

#define GNFAST_DISPATCH(...) AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, __VA_ARGS__)

constexpr double kInfinity = std::numeric_limits<double>::infinity();
// As many entries per thread as PyTorch's own pointwise loops take at least.
constexpr int64_t kGrainEntries = 32768;

// Calls sample(i) for every sample.
template <typename Sample>
void for_samples(int64_t batch, int64_t per_sample, const Sample& sample) {
  const int64_t grain = std::max<int64_t>(1, kGrainEntries / std::max<int64_t>(1, per_sample));
  at::parallel_for(0, batch, grain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) sample(i);
  });
}

// The one entry of each sample.
std::vector<double> entries_of(const at::Tensor& tensor, int64_t batch, const char* name) {
  TORCH_CHECK_VALUE(tensor.numel() == batch && (tensor.dim() == 0 || tensor.size(0) == batch), name, ": got sizes ",
                    tensor.sizes(), ", wanted one entry for each of ", batch, " samples");
  std::vector<double> entries(batch);
  const int64_t stride = tensor.dim() == 0 ? 0 : tensor.stride(0);
  GNFAST_DISPATCH(tensor.scalar_type(), "head", [&] {
    const auto* from = tensor.const_data_ptr<scalar_t>();
    for (int64_t i = 0; i < batch; ++i) entries[i] = static_cast<double>(from[i * stride]);
  });
  return entries;
}

struct Formula {
  std::string_view kind;
  bool complement;
  double tau, eps;
};

// φ(u, m) and its partial derivatives.
struct Values {
  double value, by_u, by_m;
};

// As a divisor, a total that is not negative gives 0 where it is 0. NaN stays NaN.
double divisor(double total) {
  return total <= 0 ? kInfinity : total;
}

// As gnfast/engine/heads.py has them.
Values gn(double u, double m) {
  const double total = divisor(m + std::abs(u));
  return {u / total, m / total / total, -u / total / total};
}

Values gn0(double u, double m) {
  const double safe = divisor(m), at_zero = u == 0 ? 0 : u * kInfinity;
  return {m == 0 ? at_zero : u / safe, (m != 0) / safe, -((m != 0) * u) / safe / safe};
}

Values shift(double u, double m, double tau, double eps) {
  return {u / (m + eps) / tau, 1 / (m + eps) / tau, -u / (m + eps) / (m + eps) / tau};
}

Values gran(double u, double m, double tau, double eps) {
  const double safe = divisor(m), root = std::sqrt(eps), inverse = 1 / (safe + eps / safe);
  // From whichever of m²/ε and ε/m² is at most 1.
  const auto square = [](double x) { return x * x; };
  const double small = m / root, large = root / safe;
  const double by_m = m <= root ? (1 - square(small)) / square(1 + square(small)) / eps
                                : (square(large) - 1) / square(1 + square(large)) / safe / safe;
  return {u * inverse / tau, inverse / tau, u / tau * by_m};
}

Values values_of(const Formula& formula, double f, double m) {
  const auto& kind = formula.kind;
  const double u = formula.complement ? 1 - f : f;
  Values values = kind == "gn"      ? gn(u, m)
                  : kind == "gn0"   ? gn0(u, m)
                  : kind == "shift" ? shift(u, m, formula.tau, formula.eps)
                                    : gran(u, m, formula.tau, formula.eps);
  if (formula.complement) values.by_u = -values.by_u;
  return values;
}

// ‖g − centre‖² of one sample. Sixteen sums side by side are a vector to the compiler.
template <typename T>
double sum_of_squares(const T* g, int64_t size, double centre) {
  constexpr int64_t kSums = 16;
  double sums[kSums] = {};
  const auto add = [&](int64_t i, int64_t j) {
    const double entry = static_cast<double>(static_cast<at::opmath_type<T>>(g[i])) - centre;
    sums[j] += entry * entry;
  };
  int64_t i = 0;
  for (; i + kSums <= size; i += kSums) {
    for (int64_t j = 0; j < kSums; ++j) add(i + j, j);
  }
  for (int64_t j = 0; i < size; ++i, ++j) add(i, j);
  return std::accumulate(sums, sums + kSums, 0.0);
}

// m² of every sample: the sum of `squares`, or that of g's entries where those are not given.
std::vector<double> squared_norms(const at::Tensor& g, const std::optional<at::Tensor>& squares, double centre) {
  const int64_t batch = g.size(0);
  std::vector<double> norms(batch);
  const at::Tensor entries = squares ? squares->contiguous() : batch_major(g);
  TORCH_CHECK_VALUE(!squares || (squares->dim() == 2 && squares->size(0) == batch && squares->dtype() == at::kDouble),
                    "squares: got ", entries.dtype(), " of sizes ", entries.sizes(), ", wanted float64 (", batch,
                    ", parts)");
  if (batch == 0) return norms;
  const int64_t per_sample = entries.numel() / batch;
  GNFAST_DISPATCH(entries.scalar_type(), "head", [&] {
    const auto* from = entries.const_data_ptr<scalar_t>();
    for_samples(batch, per_sample, [&](int64_t i) {
      const auto* sample = from + i * per_sample;
      if (!squares) {
        norms[i] = sum_of_squares(sample, per_sample, centre);
      } else {
        for (int64_t part = 0; part < per_sample; ++part) norms[i] += static_cast<double>(sample[part]);
      }
    });
  });
  return norms;
}

// f̂ of f's shape, and (3, B) in float64: ∂f̂/∂f, ∂f̂/∂m and m.
std::tuple<at::Tensor, at::Tensor> normalize(const at::Tensor& f, const at::Tensor& g,
                                             const std::optional<at::Tensor>& squares, at::ScalarType dtype,
                                             std::string_view kind, bool complement, double centre, double tau,
                                             double eps) {
  TORCH_CHECK_VALUE(kind == "gn" || kind == "gn0" || kind == "shift" || kind == "gran", "kind: got ", kind,
                    ", wanted gn, gn0, shift or gran");
  TORCH_CHECK_VALUE(g.dim() > 0, "g: got a number, wanted (B, ...)");
  const int64_t batch = g.size(0);
  const auto logits = entries_of(f, batch, "f"), norms = squared_norms(g, squares, centre);
  at::Tensor f_hat = at::empty(f.sizes(), f.options().dtype(dtype));
  at::Tensor partials = at::empty({3, batch}, g.options().dtype(at::kDouble));
  double* const by_f = partials.mutable_data_ptr<double>();
  GNFAST_DISPATCH(dtype, "head", [&] {
    auto* const to = f_hat.mutable_data_ptr<scalar_t>();
    for (int64_t i = 0; i < batch; ++i) {
      const double m = std::sqrt(norms[i]);
      const auto [value, by_u, by_m] = values_of({kind, complement, tau, eps}, logits[i], m);
      to[i] = static_cast<scalar_t>(value);
      by_f[i] = by_u;
      by_f[batch + i] = by_m;
      by_f[2 * batch + i] = m;
    }
  });
  return {f_hat, partials};
}

// ∂L/∂f̂, ∂f̂/∂f, ∂f̂/∂m and m ↦ s (B,), c₀ and ∂L/∂x, for x and g of one dtype and order in memory.
template <typename T>
void pull_typed(const std::vector<double>& upstream, const double* partials, const at::Tensor& x, const at::Tensor& g,
                double centre, const at::Tensor& scale, const at::Tensor& start, const at::Tensor& grad_x) {
  using Acc = at::opmath_type<T>;
  const int64_t batch = x.size(0), per_sample = batch ? x.numel() / batch : 0;
  const T* const inputs = x.const_data_ptr<T>();
  const T* const gradients = g.const_data_ptr<T>();
  T* const starts = start.defined() ? start.mutable_data_ptr<T>() : nullptr;
  T* const grads_x = grad_x.defined() ? grad_x.mutable_data_ptr<T>() : nullptr;
  Acc* const scales = scale.mutable_data_ptr<Acc>();
  for_samples(batch, per_sample, [&](int64_t i) {
    const int64_t first = i * per_sample, end = first + per_sample;
    // A unit vector first: the coefficient divided by m may leave the range where the product does not.
    const Acc s = upstream[i] * partials[i], along = upstream[i] * partials[batch + i];
    const Acc m = divisor(partials[2 * batch + i]), middle = centre;
    scales[i] = s;
    for (int64_t e = first; starts && e < end; ++e) {
      const Acc direction = (static_cast<Acc>(gradients[e]) - middle) / m;
      starts[e] = static_cast<T>(s * static_cast<Acc>(inputs[e]) + along * direction);
    }
    for (int64_t e = first; grads_x && e < end; ++e) grads_x[e] = static_cast<T>(s * static_cast<Acc>(gradients[e]));
  });
}

std::tuple<at::Tensor, std::optional<at::Tensor>, std::optional<at::Tensor>> pull(
    const at::Tensor& partials, const at::Tensor& upstream, const at::Tensor& x, const at::Tensor& g, double centre,
    bool wants_start, bool wants_grad_x, at::ScalarType dtype) {
  TORCH_CHECK_VALUE(x.dim() > 0 && x.sizes() == g.sizes(), "g: got sizes ", g.sizes(), ", wanted x's, ", x.sizes());
  const int64_t batch = x.size(0);
  TORCH_CHECK_VALUE(
      partials.dtype() == at::kDouble && partials.is_contiguous() && partials.sizes() == at::IntArrayRef({3, batch}),
      "partials: got ", partials.dtype(), " of sizes ", partials.sizes(), ", wanted those of normalize");
  // Where dtypes differ (autocast), the widest serves for all, and each result is rounded once.
  const auto g_dtype = g.scalar_type();
  const bool one_dtype = x.scalar_type() == g_dtype && dtype == g_dtype;
  const auto common = one_dtype ? g_dtype : c10::promoteTypes(c10::promoteTypes(x.scalar_type(), g_dtype), at::kFloat);
  const at::Tensor inputs = batch_major(x).to(common), gradients = with_strides_of(g, inputs).to(common);
  const at::Tensor scale = at::empty({batch}, g.options().dtype(at::toOpMathType(common)));
  const at::Tensor start = wants_start ? at::empty_like(inputs) : at::Tensor();
  const at::Tensor grad_x = wants_grad_x ? at::empty_like(inputs) : at::Tensor();
  const auto above = entries_of(upstream, batch, "upstream");
  GNFAST_DISPATCH(common, "head", [&] {
    pull_typed<scalar_t>(above, partials.const_data_ptr<double>(), inputs, gradients, centre, scale, start, grad_x);
  });
  return {scale.to(at::toOpMathType(g_dtype)), wants_start ? std::optional(start.to(dtype)) : std::nullopt,
          wants_grad_x ? std::optional(grad_x.to(x.scalar_type())) : std::nullopt};
}

TORCH_LIBRARY_IMPL(gnfast, CPU, m) {
  m.impl("head_normalize", normalize);
  m.impl("head_pull", pull);
}

}  // namespace
}  // namespace gnfast::cpu
