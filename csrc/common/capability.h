// Which set of kernels runs on this processor.

#pragma once

#include <ATen/Version.h>

#include <string>

namespace gnfast::cpu {

// PyTorch's own answer, so that ATEN_CPU_CAPABILITY chooses narrower or portable kernels here as well.
inline bool has_capability(const char* name) {
#ifdef GNFAST_X86_KERNELS
  return at::get_cpu_capability().rfind(name, 0) == 0;
#else
  return false;
#endif
}

inline bool use_avx512() {
  static const bool use = has_capability("AVX512");
  return use;
}

inline bool use_avx2() {
  static const bool use = use_avx512() || has_capability("AVX2");
  return use;
}

}  // namespace gnfast::cpu
