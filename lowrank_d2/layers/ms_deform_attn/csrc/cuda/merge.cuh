// Adding to the gradient of the value, with few additions in global memory.
//
// The queries of a tile read the same cells again and again, those of coarse levels above all. A block therefore
// collects what its points add, in a table of cells in shared memory, and adds each cell once.
#pragma once
#include "points.cuh"

namespace lowrank_d2 {
namespace cuda {

constexpr int CORNERS = 4 * THREADS;  // of the points that a block works on together
constexpr int SLOTS = 512;            // twice what a tile of an encoder's queries needs
constexpr int PROBES = 8;
constexpr int EMPTY = -1, END = -1;

// A corner has the number 4 * thread + (0 to 3). Corners of one cell hang in a chain.
template <class A>
struct MergeTable {
  int cell[SLOTS];      // of the slot's chain
  int head[SLOTS];      // its first corner
  short next[CORNERS];  // the following corner of a chain
  A weight[CORNERS];
  int todo[CORNERS];  // what is to be added: a slot, or ~corner of one that found no slot
  int todo_count;

  __device__ void clear() {
    for (int slot = threadIdx.x; slot < SLOTS; slot += THREADS) {
      cell[slot] = EMPTY;
      head[slot] = END;
    }
    if (threadIdx.x == 0) todo_count = 0;
  }

  __device__ void insert(const Point<A>& point, int width) {
    A weights[4];
    point.corner_weights(weights);
    for (int i = 0; i < 4; ++i)
      if (point.inside(i)) insert(4 * threadIdx.x + i, point.corner(i, width), weights[i]);
  }

 private:
  __device__ void insert(int corner, int where, A corner_weight) {
    weight[corner] = corner_weight;
    unsigned slot = unsigned(where) * 0x9e3779b1u >> 16;  // neighbouring cells far apart
    for (int probe = 0; probe < PROBES; ++probe, ++slot) {
      slot %= SLOTS;
      const int found = atomicCAS(&cell[slot], EMPTY, where);
      if (found != EMPTY && found != where) continue;
      if (found == EMPTY) todo[atomicAdd(&todo_count, 1)] = slot;
      next[corner] = static_cast<short>(atomicExch(&head[slot], corner));
      return;
    }
    next[corner] = END;
    todo[atomicAdd(&todo_count, 1)] = ~corner;
  }
};

// Adds all that the table holds. `first_point` is the number of the quads' first point, `points` those of the block,
// `queries` its queries; `grad_value` and `grad_out` begin with the block's image and head.
template <class T, int C>
__device__ void add_merged(const Problem& p, const MergeTable<Wide<T>>& table, int first_point,
                           const Point<Wide<T>>* points, const int* queries, const T* grad_out, Wide<T>* grad_value) {
  using A = Wide<T>;
  const int lane = threadIdx.x & (p.lanes - 1);
  const int64_t stride = p.heads * p.channels;
  for (int i = threadIdx.x / p.lanes; i < table.todo_count; i += THREADS / p.lanes) {
    const int slot = table.todo[i], first = slot >= 0 ? table.head[slot] : ~slot;
    const int thread = first / 4, width = p.level[level_of(p, first_point + thread % QUAD)].width;
    const int cell = points[thread].corner(first % 4, width);
    for (int channel = lane * C; channel < p.channels; channel += p.lanes * C) {
      A total[C] = {};
      for (int corner = first; corner != END; corner = table.next[corner]) {
        const A weight = table.weight[corner];
        A grad[C];
        load<T>(grad_out + queries[corner / (4 * QUAD)] * stride + channel, true, grad);
#pragma unroll
        for (int c = 0; c < C; ++c) total[c] += weight * grad[c];
      }
      add<A>(grad_value + cell * stride + channel, total);
    }
  }
}

}  // namespace cuda
}  // namespace lowrank_d2
