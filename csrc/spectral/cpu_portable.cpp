// Compiled with the flags of any processor.

#include "cpu_loops.h"

namespace gnfast::cpu {

template <typename T>
SpectralKernels<T> portable_spectral_kernels() {
  return Loops<T>::table();
}

template SpectralKernels<float> portable_spectral_kernels();
template SpectralKernels<double> portable_spectral_kernels();
template SpectralKernels<c10::Half> portable_spectral_kernels();
template SpectralKernels<c10::BFloat16> portable_spectral_kernels();

}  // namespace gnfast::cpu
