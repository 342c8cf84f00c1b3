#include "kernels.cuh"

namespace lowrank_d2 {
namespace cuda {
LOWRANK_D2_KERNELS_FOR(double)
}  // namespace cuda
}  // namespace lowrank_d2
