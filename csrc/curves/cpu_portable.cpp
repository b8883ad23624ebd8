constexpr int kCurveLanes = 4;

#include "derivatives.h"

namespace gnfast::cpu {

const CurveSweeps* portable_curve_sweeps() {
  return kCurveSweeps;
}

}  // namespace gnfast::cpu
