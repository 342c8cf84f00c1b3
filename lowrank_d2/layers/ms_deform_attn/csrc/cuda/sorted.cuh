// The gradient of the value without atomic additions, the same in every run: points are sorted by their upper left
// corner, then every cell sums the points that touch it, in the order of their numbers.
#pragma once
#include "points.cuh"

namespace lowrank_d2 {
namespace cuda {

__device__ __forceinline__ int64_t key_of(const Problem& p, const Level& map, int image, int head, int left, int top) {
  return (int64_t(image) * p.heads + head) * p.bases + map.base + (top + 1) * (map.width + 1) + left + 1;
}

// Sets up all points (N, Q, M, L, P), and gives each the key of its upper left corner. Those outside come last.
template <class T>
__global__ void __launch_bounds__(THREADS)
    keys_kernel(const __grid_constant__ Problem p, const Inputs<T> in, int64_t* keys, Point<Wide<T>>* points) {
  const Block block = block_of(p);
  const int lane = threadIdx.x % QUAD, query = query_of(p, block.tile, threadIdx.x / QUAD);
  const Query<T> mine(p, in, block.image, query, block.head, lane, QUAD);
  for (int k = lane; k < mine.count; k += QUAD) {
    const Point<Wide<T>> point = mine.point(p, k);
    points[mine.first + k] = point;
    int64_t key = int64_t(p.images) * p.heads * p.bases;
    if (point.anywhere()) {
      const Level& map = p.level[level_of(p, k)];
      const int hidden = point.inside(0) || point.inside(2) ? 0 : 1;  // the left column lies outside
      const int from_row_above = point.corner(0, 0) - map.start + hidden + map.width;
      const int top = from_row_above / map.width - 1, left = from_row_above % map.width - hidden;
      key = key_of(p, map, block.image, block.head, left, top);
    }
    keys[mine.first + k] = key;
  }
}

// The first of `count` sorted numbers that is not below `key`.
__device__ __forceinline__ int64_t first_not_below(const int64_t* sorted, int64_t count, int64_t key) {
  int64_t begin = 0;
  while (count > 0) {
    const int64_t half = count / 2;
    if (sorted[begin + half] < key) {
      begin += half + 1;
      count -= half + 1;
    } else {
      count = half;
    }
  }
  return begin;
}

// A group of lanes sums one cell of one head; tiles are of cells. `order` holds the points' numbers, below 2^31, in the
// order of their keys.
template <class T>
__global__ void __launch_bounds__(THREADS)
    sum_sorted_kernel(const __grid_constant__ Problem p, int64_t count, const int64_t* keys, const int64_t* order,
                      const Point<Wide<T>>* points, const T* grad_out, T* grad_value) {
  using A = Wide<T>;
  const Block block = block_of(p);
  const int cell = block.tile * p.tile + threadIdx.x / p.lanes;
  if (cell >= p.cells) return;
  int level = 0;
  while (cell >= p.level[level].start + p.level[level].height * p.level[level].width) ++level;
  const Level& map = p.level[level];
  const int x = (cell - map.start) % map.width, y = (cell - map.start) / map.width, all_points = p.levels * p.points;
  for (int channel = threadIdx.x & (p.lanes - 1); channel < p.channels; channel += p.lanes) {
    A total = 0;
    for (int row = 0; row < 2; ++row) {  // the cell is a corner of points based on its own row, and on the one above
      const int64_t key = key_of(p, map, block.image, block.head, x, y - row);
      for (int64_t i = first_not_below(keys, count, key - 1); i < count && keys[i] <= key; ++i) {
        A weights[4];
        points[order[i]].corner_weights(weights);
        const unsigned query_and_head = static_cast<unsigned>(order[i]) / all_points;
        const bool left = keys[i] == key;
        const A upper = left ? weights[0] : weights[1], lower = left ? weights[2] : weights[3];
        total += (row ? lower : upper) * static_cast<A>(grad_out[int64_t(query_and_head) * p.channels + channel]);
      }
    }
    grad_value[((int64_t(block.image) * p.cells + cell) * p.heads + block.head) * p.channels + channel] =
        static_cast<T>(total);
  }
}

}  // namespace cuda
}  // namespace lowrank_d2
