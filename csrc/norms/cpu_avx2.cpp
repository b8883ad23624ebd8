constexpr int kNormLanes = 4;

#include "loops.h"

namespace gnfast::cpu {

template <typename T>
NormKernels<T> avx2_norm_kernels() {
  return norm_kernels<T>();
}

template NormKernels<float> avx2_norm_kernels();
template NormKernels<double> avx2_norm_kernels();

}  // namespace gnfast::cpu
