// The element types that kernels exist for.

#pragma once

namespace gnfast::cuda {

enum class DType { kFloat32, kFloat64, kFloat16, kBFloat16 };

}  // namespace gnfast::cuda
