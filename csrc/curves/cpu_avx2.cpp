constexpr int kCurveLanes = 8;

#include "derivatives.h"

namespace gnfast::cpu {

const CurveSweeps* avx2_curve_sweeps() {
  return kCurveSweeps;
}

}  // namespace gnfast::cpu
