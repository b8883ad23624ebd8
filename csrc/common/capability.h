// Which set of kernels runs on this processor.

#pragma once

#include <ATen/Version.h>

#include <string>

namespace gnfast::cpu {

// PyTorch's own answer, so that ATEN_CPU_CAPABILITY=default also turns these kernels portable.
inline bool use_avx2() {
#ifdef GNFAST_WITH_AVX2
  static const bool use = [] {
    const std::string capability = at::get_cpu_capability();
    return capability == "AVX2" || capability.rfind("AVX512", 0) == 0;
  }();
  return use;
#else
  return false;
#endif
}

}  // namespace gnfast::cpu
