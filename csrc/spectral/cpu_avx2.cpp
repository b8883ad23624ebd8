// Compiled with AVX2 flags and CPU_CAPABILITY=AVX2 (see setup.py).

#include "cpu_loops.h"

namespace gnfast::cpu {

template <typename T>
SpectralKernels<T> avx2_spectral_kernels() {
  return Loops<T>::table();
}

template SpectralKernels<float> avx2_spectral_kernels();
template SpectralKernels<double> avx2_spectral_kernels();
template SpectralKernels<c10::Half> avx2_spectral_kernels();
template SpectralKernels<c10::BFloat16> avx2_spectral_kernels();

}  // namespace gnfast::cpu
