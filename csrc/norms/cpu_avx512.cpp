constexpr int kNormLanes = 8;

#include "loops.h"

namespace gnfast::cpu {

template <typename T>
NormKernels<T> avx512_norm_kernels() {
  return norm_kernels<T>();
}

template NormKernels<float> avx512_norm_kernels();
template NormKernels<double> avx512_norm_kernels();

}  // namespace gnfast::cpu
