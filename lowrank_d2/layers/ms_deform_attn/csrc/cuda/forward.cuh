// out[q] = sum over points and corners of weight * cell: a group of lanes for every query and head.
#pragma once
#include "points.cuh"

namespace lowrank_d2 {
namespace cuda {

// Each lane sums C neighbouring channels (and others `lanes * C` on, where there are more). A point is set up by one
// lane; the others hear of it through shuffles.
template <class T, int C>
__global__ void __launch_bounds__(THREADS, 4)
    forward_kernel(const __grid_constant__ Problem p, const Inputs<T> in, T* __restrict__ out) {
  using A = Wide<T>;
  const int lane = threadIdx.x & (p.lanes - 1), first_lane = (threadIdx.x & (WARP - 1)) - lane;
  const Block block = block_of(p);
  const int all_points = p.levels * p.points, stride = p.heads * p.channels;
  const T* value = in.value + int64_t(block.image) * p.cells * stride + block.head * p.channels;
  for (int i = threadIdx.x / p.lanes; i < p.tile; i += THREADS / p.lanes) {
    const int query = query_of(p, block.tile, i);
    const Query<T> points(p, in, block.image, query, block.head, lane, p.lanes);
    for (int channel = lane * C; channel < lane * C + p.channels; channel += p.lanes * C) {
      const bool active = query >= 0 && channel < p.channels;
      const T* cells = value + channel;
      A total[C] = {};
      for (int first = 0; first < all_points; first += p.lanes) {
        const Point<A> mine = points.point(p, first + lane);
        A weights[4];
        mine.corner_weights(weights);
        const int together = min(p.lanes, all_points - first);
#pragma unroll 2
        for (int j = 0; j < together; ++j) {
          const Point<A> point = {__shfl_sync(ALL_LANES, mine.cell, first_lane + j)};
          const int width = p.level[level_of(p, first + j)].width;
#pragma unroll
          for (int corner = 0; corner < 4; ++corner) {
            const A weight = __shfl_sync(ALL_LANES, weights[corner], first_lane + j);
            A cell[C];
            load<T>(cells + int64_t(point.corner(corner, width)) * stride, active && point.inside(corner), cell);
#pragma unroll
            for (int c = 0; c < C; ++c) total[c] += weight * cell[c];
          }
        }
      }
      if (active)
        store<T>(out + ((int64_t(block.image) * p.queries + query) * p.heads + block.head) * p.channels + channel,
                 total);
    }
  }
}

}  // namespace cuda
}  // namespace lowrank_d2
