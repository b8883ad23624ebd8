// The operators curves_* on the CPU; gnfast/kernels/curves says what these compute.

#include "cpu.h"

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include <algorithm>
#include <string_view>
#include <tuple>

#include "../common/capability.h"
#include "../common/strides.h"

namespace gnfast::cpu {
namespace {

const CurveSweeps* sweeps_here() {
#ifdef GNFAST_X86_KERNELS
  if (use_avx512()) return avx512_curve_sweeps();
  if (use_avx2()) return avx2_curve_sweeps();
#endif
  return portable_curve_sweeps();
}

// φ, and h without gaps in memory, in some order of the axes, which all results have.
struct Curve {
  const CurveSweeps* sweeps;
  float constants[kCurveConstants] = {};
  at::Tensor h;

  Curve(std::string_view kind, at::ArrayRef<double> given, const at::Tensor& any_h) {
    const CurveSweeps* const all = sweeps_here();
    sweeps = std::find_if(all, all + kCurves, [&](const CurveSweeps& own) { return own.kind == kind; });
    TORCH_CHECK_VALUE(sweeps != all + kCurves, "kind: got '", kind, "', wanted one of gnfast/kernels/curves");
    TORCH_CHECK_VALUE(given.size() == static_cast<size_t>(sweeps->constants), "constants: got ", given.size(),
                      ", wanted ", sweeps->constants, " for ", kind);
    std::copy(given.begin(), given.end(), constants);
    TORCH_CHECK_TYPE(any_h.scalar_type() == at::kFloat, "h: got ", any_h.scalar_type(), ", wanted float32");
    h = any_h.is_non_overlapping_and_dense() ? any_h : at::empty_like(any_h).copy_(any_h);
  }

  at::Tensor like_h(const char* name, const at::Tensor& tensor) const {
    TORCH_CHECK_TYPE(tensor.dtype() == h.dtype(), name, ": got ", tensor.dtype(), ", wanted h's ", h.dtype());
    TORCH_CHECK_VALUE(tensor.sizes() == h.sizes(), name, ": got sizes ", tensor.sizes(), ", wanted h's, ", h.sizes());
    return with_strides_of(tensor, h);
  }

  // Tensors that a sweep does not use are undefined.
  void run(CurveSweep sweep, const at::Tensor& tangent, const at::Tensor& cotangent, const at::Tensor& sloped,
           const at::Tensor& bent) const {
    const CurveEntries all{h.const_data_ptr<float>(), tangent.const_data_ptr<float>(),
                           cotangent.defined() ? cotangent.const_data_ptr<float>() : nullptr,
                           sloped.defined() ? sloped.mutable_data_ptr<float>() : nullptr,
                           bent.defined() ? bent.mutable_data_ptr<float>() : nullptr};
    // As many entries per thread as PyTorch's own pointwise loops take at least.
    at::parallel_for(0, h.numel(), 32768, [&](int64_t begin, int64_t end) {
      const auto from = [&](auto* data) { return data ? data + begin : nullptr; };
      sweep({from(all.h), from(all.tangent), from(all.cotangent), from(all.sloped), from(all.bent)}, end - begin,
            constants);
    });
  }
};

using Constants = at::ArrayRef<double>;

at::Tensor sloped(const at::Tensor& u, const at::Tensor& h, std::string_view kind, Constants constants) {
  const Curve curve(kind, constants, h);
  at::Tensor result = at::empty_like(curve.h);
  curve.run(curve.sweeps->sloped, curve.like_h("u", u), {}, result, {});
  return result;
}

void sloped_onto_(at::Tensor& addend, const at::Tensor& u, const at::Tensor& h, std::string_view kind,
                  Constants constants) {
  const Curve curve(kind, constants, h);
  const at::Tensor total = curve.like_h("addend", addend);
  curve.run(curve.sweeps->onto, curve.like_h("u", u), {}, total, {});
  if (!total.is_same(addend)) addend.copy_(total);
}

at::Tensor bent(const at::Tensor& h, const at::Tensor& t, const at::Tensor& cotangent, std::string_view kind,
                Constants constants) {
  const Curve curve(kind, constants, h);
  at::Tensor result = at::empty_like(curve.h);
  curve.run(curve.sweeps->bent, curve.like_h("t", t), curve.like_h("cotangent", cotangent), {}, result);
  return result;
}

std::tuple<at::Tensor, at::Tensor> both(const at::Tensor& h, const at::Tensor& t, const at::Tensor& cotangent,
                                        std::string_view kind, Constants constants) {
  const Curve curve(kind, constants, h);
  at::Tensor first = at::empty_like(curve.h), second = at::empty_like(curve.h);
  curve.run(curve.sweeps->both, curve.like_h("t", t), curve.like_h("cotangent", cotangent), first, second);
  return {first, second};
}

TORCH_LIBRARY_IMPL(gnfast, CPU, m) {
  m.impl("curves_sloped", sloped);
  m.impl("curves_sloped_onto_", sloped_onto_);
  m.impl("curves_bent", bent);
  m.impl("curves_both", both);
}

}  // namespace
}  // namespace gnfast::cpu
