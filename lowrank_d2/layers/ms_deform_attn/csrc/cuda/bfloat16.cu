#include <torch/headeronly/util/BFloat16.h>

#include "kernels.cuh"

namespace lowrank_d2 {
namespace cuda {
LOWRANK_D2_KERNELS_FOR(c10::BFloat16)
}  // namespace cuda
}  // namespace lowrank_d2
