#include <torch/headeronly/util/Half.h>

#include "kernels.cuh"

namespace lowrank_d2 {
namespace cuda {
LOWRANK_D2_KERNELS_FOR(c10::Half)
}  // namespace cuda
}  // namespace lowrank_d2
