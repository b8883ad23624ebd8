constexpr int kCurveLanes = 16;

#include "derivatives.h"

namespace gnfast::cpu {

const CurveSweeps* avx512_curve_sweeps() {
  return kCurveSweeps;
}

}  // namespace gnfast::cpu
