// All gradients in one kernel. A block takes a tile of queries of one head, four points of each at a time: every thread
// sets up one point, then groups of lanes take whole queries for the dot products, and whole cells for what is added.
#pragma once
#include "merge.cuh"

namespace lowrank_d2 {
namespace cuda {

// The sum of x[lane % 4] over the lanes of a group.
template <class A>
__device__ __forceinline__ A quad_sums(const A (&x)[QUAD], int lane, int lanes) {
  const bool odd = lane & 1, upper = lane & 2;
  A low = odd ? x[1] : x[0], high = odd ? x[3] : x[2];
  low += __shfl_xor_sync(ALL_LANES, odd ? x[0] : x[1], 1);
  high += __shfl_xor_sync(ALL_LANES, odd ? x[2] : x[3], 1);
  A sum = upper ? high : low;
  sum += __shfl_xor_sync(ALL_LANES, upper ? low : high, 2);
  for (int step = QUAD; step < lanes; step *= 2) sum += __shfl_xor_sync(ALL_LANES, sum, step);
  return sum;
}

// What the gradients of one point's place and weight are made of. Summed over channels.
template <class A>
struct Slopes {
  A sample[QUAD], across[QUAD], down[QUAD];  // <sample, grad>, and its derivatives by u and v
};

// Adds C channels of a point, whose cells begin at `cells`.
template <class T, int C>
__device__ __forceinline__ void add_slopes(const Point<Wide<T>>& point, const T* cells, int width, int stride,
                                           bool active, const Wide<T> (&grad)[C], Slopes<Wide<T>>& to, int j) {
  using A = Wide<T>;
  A dot[4] = {};
#pragma unroll
  for (int corner = 0; corner < 4; ++corner) {
    A cell[C];
    load<T>(cells + int64_t(point.corner(corner, width)) * stride, active && point.inside(corner), cell);
#pragma unroll
    for (int c = 0; c < C; ++c) dot[corner] += grad[c] * cell[c];
  }
  const A top = dot[1] - dot[0], bottom = dot[3] - dot[2];
  const A upper = dot[0] + point.x * top, lower = dot[2] + point.x * bottom;
  to.sample[j] += upper + point.y * (lower - upper);
  to.across[j] += top + point.y * (bottom - top);
  to.down[j] += lower - upper;
}

// The gradients of places and weights of the points [first_point, first_point + 4) of the block's queries.
template <class T, int C>
__device__ void points_backward(const Problem& p, const Inputs<T>& in, const Gradients<T>& grad, const Block& block,
                                int first_point, const Point<Wide<T>>* points, const int* queries) {
  using A = Wide<T>;
  const int lane = threadIdx.x & (p.lanes - 1), stride = p.heads * p.channels;
  const T* cells = in.value + int64_t(block.image) * p.cells * stride + block.head * p.channels;
  for (int i = threadIdx.x / p.lanes; i < TILE; i += THREADS / p.lanes) {
    const int query = queries[i];
    const int64_t row = (int64_t(block.image) * p.queries + query) * p.heads + block.head;
    Slopes<A> slopes = {};
    for (int channel = lane * C; channel < lane * C + p.channels; channel += p.lanes * C) {
      const bool active = query >= 0 && channel < p.channels;
      A grad_out[C];
      load<T>(grad.out + row * p.channels + channel, active, grad_out);
#pragma unroll
      for (int j = 0; j < QUAD; ++j) {
        if constexpr (C > 4) __syncwarp();  // else the compiler fetches all points first, and registers spill
        add_slopes<T, C>(points[i * QUAD + j], cells + channel, p.level[level_of(p, first_point + j)].width, stride,
                         active, grad_out, slopes, j);
      }
    }
    const A sample = quad_sums(slopes.sample, lane, p.lanes), across = quad_sums(slopes.across, lane, p.lanes),
            down = quad_sums(slopes.down, lane, p.lanes);
    const int k = first_point + lane, count = p.levels * p.points;
    if (lane >= QUAD || k >= count || query < 0) continue;
    const int level = level_of(p, k);
    const A* reference = in.reference + block.image * p.reference_image + query * p.reference_query;
    const Frame<A> f = frame(p, p.level[level], reference + level * p.reference_level);
    const A attention = points[i * QUAD + lane].attention;
    const int64_t at = row * count + k;
    set_pair<T>(grad.places, p.wide_places, at, attention * f.scale_x * across, attention * f.scale_y * down);
    if (p.reference_size) grad.attention[at] = sample;
    else set_number<T>(grad.weights, p.wide_weights, at, sample);
  }
}

// From the gradients of attention weights to those of logits: p (g - sum p g).
template <class T>
__device__ void softmax_backward(const Problem& p, const Query<T>& points, const Gradients<T>& grad, int lane) {
  using A = Wide<T>;
  A mean = 0;
  for (int k = lane; k < points.count; k += QUAD) mean += points.attention(p, k) * grad.attention[points.first + k];
  for (int step = QUAD / 2; step; step /= 2) mean += __shfl_xor_sync(ALL_LANES, mean, step);
  for (int k = lane; k < points.count; k += QUAD)
    set_number<T>(grad.weights, p.wide_weights, points.first + k,
                  points.attention(p, k) * (grad.attention[points.first + k] - mean));
}

// Of a multiprocessor: as many as leave the registers that the kernel needs.
template <class T, int C>
constexpr int BLOCKS = C > 4 ? 3 : C == 4 ? 4 : sizeof(T) < 8 ? 2 : 1;

template <class T, int C>
__global__ void __launch_bounds__(THREADS, BLOCKS<T, C>)
    backward_kernel(const __grid_constant__ Problem p, const Inputs<T> in, const Gradients<T> grad) {
  using A = Wide<T>;
  __shared__ MergeTable<A> table;
  __shared__ Point<A> points[THREADS];
  __shared__ int queries[TILE];
  const Block block = block_of(p);
  const int count = p.levels * p.points, stride = p.heads * p.channels;
  const int own = threadIdx.x / QUAD, lane = threadIdx.x % QUAD;
  const int query = query_of(p, block.tile, own);
  queries[own] = query;
  const Query<T> mine(p, in, block.image, query, block.head, lane, QUAD);
  const int64_t head = block.head * p.channels;
  for (int first = 0; first < count; first += QUAD) {
    if (grad.value) table.clear();
    points[threadIdx.x] = mine.point(p, first + lane);
    __syncthreads();
    if (grad.value) table.insert(points[threadIdx.x], p.level[level_of(p, first + lane)].width);
    __syncthreads();
    if (grad.places) points_backward<T, C>(p, in, grad, block, first, points, queries);
    if (grad.value)
      add_merged<T, C>(p, table, first, points, queries, grad.out + int64_t(block.image) * p.queries * stride + head,
                       grad.value + int64_t(block.image) * p.cells * stride + head);
    __syncthreads();
  }
  if (grad.places && p.reference_size) softmax_backward(p, mine, grad, lane);
}

}  // namespace cuda
}  // namespace lowrank_d2
