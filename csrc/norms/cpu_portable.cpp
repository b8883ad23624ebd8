constexpr int kNormLanes = 2;

#include "loops.h"

namespace gnfast::cpu {

template <typename T>
NormKernels<T> portable_norm_kernels() {
  return norm_kernels<T>();
}

template NormKernels<float> portable_norm_kernels();
template NormKernels<double> portable_norm_kernels();

}  // namespace gnfast::cpu
