// From a tensor's dtype to that of the kernels.

#pragma once

#include <c10/core/ScalarType.h>
#include <c10/util/Exception.h>

#include "cuda_dtype.h"

namespace gnfast::cuda {

inline DType kernel_dtype(c10::ScalarType dtype) {
  switch (dtype) {
    case c10::kFloat:
      return DType::kFloat32;
    case c10::kDouble:
      return DType::kFloat64;
    case c10::kHalf:
      return DType::kFloat16;
    case c10::kBFloat16:
      return DType::kBFloat16;
    default:
      TORCH_CHECK_TYPE(false, "no kernel for ", dtype);
  }
}

}  // namespace gnfast::cuda
