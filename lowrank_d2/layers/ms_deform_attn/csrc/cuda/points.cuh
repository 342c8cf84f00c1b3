// Where the points of a query lie and how much each counts, and which queries a block takes.
#pragma once
#include "memory.cuh"

namespace lowrank_d2 {
namespace cuda {

constexpr unsigned ALL_LANES = 0xffffffffu;

// A sample of one level.
template <class A>
struct Point {
  int cell;     // number of its upper left corner in the image, times 16, and one bit for each corner inside the map
  A x, y;       // way from that corner to the next, in [0, 1)
  A attention;  // its weight

  // Corners are 0 upper left, 1 upper right, 2 lower left, 3 lower right.
  __device__ bool anywhere() const { return cell & 15; }
  __device__ bool inside(int corner) const { return cell >> corner & 1; }
  __device__ int corner(int i, int width) const { return (cell >> 4) + i % 2 + (i / 2) * width; }
  __device__ void corner_weights(A (&to)[4]) const {
    const A lower = attention * y, upper = attention - lower;
    to[1] = upper * x;
    to[0] = upper - to[1];
    to[3] = lower * x;
    to[2] = lower - to[3];
  }
};

// Position (u, v) in cells of `map`, whose first cell has its center at 0. No number, or an infinite one, makes x or y no
// number, and so what comes of the point; it is outside, and nothing is read or added to there.
template <class A>
__device__ __forceinline__ Point<A> locate(const Level& map, A u, A v, A attention) {
  const A near_u = fmin(fmax(u, A(-2)), A(map.width + 1)), near_v = fmin(fmax(v, A(-2)), A(map.height + 1));
  const A column = floor(near_u), line = floor(near_v);
  const int left = static_cast<int>(column), top = static_cast<int>(line);
  const bool columns[] = {left >= 0 && left < map.width, left >= -1 && left < map.width - 1};
  const bool lines[] = {top >= 0 && top < map.height, top >= -1 && top < map.height - 1};
  const int corners = (columns[0] && lines[0]) | (columns[1] && lines[0]) << 1 | (columns[0] && lines[1]) << 2 |
                      (columns[1] && lines[1]) << 3;
  const int cell = corners ? (map.start + top * map.width + left) * 16 + corners : 0;
  return {cell, near_u - column + (u - u), near_v - line + (v - v), attention};
}

// u = place * scale + shift, from the numbers of a place to cells of a level.
template <class A>
struct Frame {
  A scale_x, shift_x, scale_y, shift_y;
};

// `reference` is null or the row of the query and level.
template <class A>
__device__ __forceinline__ Frame<A> frame(const Problem& p, const Level& map, const A* reference) {
  const A width = A(map.width), height = A(map.height), half = A(0.5);
  if (p.reference_size == 0) return {width, -half, height, -half};
  const A shift_x = reference[0] * width - half, shift_y = reference[1] * height - half;
  if (p.reference_size == 2) return {A(1), shift_x, A(1), shift_y};
  const A share = half / A(p.points);
  return {reference[2] * share * width, shift_x, reference[3] * share * height, shift_y};
}

// floor(k / points), without a division: (2 k + 1) / (2 points) is never near a whole number.
__device__ __forceinline__ int level_of(const Problem& p, int k) { return __umulhi(2u * k + 1, p.one_point); }

// The points of one query and head, set up by some neighbouring lanes of a warp.
template <class T>
struct Query {
  using A = Wide<T>;
  const Inputs<T>& in;
  int64_t first;       // of its points in places and weights
  const A* reference;  // of the first level
  int count;           // of its points; 0 where there is no such query
  A top, inverse;      // of the softmax: the largest logit, and one over the sum of exponentials

  // `lane` of `lanes`, a power of two. All lanes of the warp must come here.
  __device__ Query(const Problem& p, const Inputs<T>& in, int image, int query, int head, int lane, int lanes)
      : in(in), reference(in.reference), top(0), inverse(1) {
    count = query < 0 ? 0 : p.levels * p.points;
    first = ((int64_t(image) * p.queries + query) * p.heads + head) * p.levels * p.points;
    if (p.reference_size == 0) return;
    reference += image * p.reference_image + int64_t(query) * p.reference_query;
    top = -INFINITY;
    for (int k = lane; k < count; k += lanes) top = fmax(top, weight(p, k));
    for (int step = lanes / 2; step; step /= 2) top = fmax(top, __shfl_xor_sync(ALL_LANES, top, step));
    A sum = 0;
    for (int k = lane; k < count; k += lanes) sum += exp(weight(p, k) - top);
    for (int step = lanes / 2; step; step /= 2) sum += __shfl_xor_sync(ALL_LANES, sum, step);
    inverse = A(1) / sum;
  }

  __device__ A weight(const Problem& p, int k) const { return number<T>(in.weights, p.wide_weights, first + k); }
  __device__ A attention(const Problem& p, int k) const {
    const A w = weight(p, k);
    return p.reference_size ? exp(w - top) * inverse : w;
  }
  __device__ Frame<A> frame_of(const Problem& p, int level) const {
    return frame(p, p.level[level], reference + level * p.reference_level);
  }
  __device__ Point<A> point(const Problem& p, int k) const {
    if (k >= count) return {0, A(0), A(0), A(0)};
    const int level = level_of(p, k);
    const Level& map = p.level[level];
    // Whatever number or no number a point of an empty level has, it counts for nothing; but the softmax knows it.
    if (map.height * map.width == 0) return {0, A(0), A(0), p.reference_size ? attention(p, k) : A(0)};
    const Frame<A> f = frame_of(p, level);
    A x, y;
    pair<T>(in.places, p.wide_places, first + k, x, y);
    return locate(map, x * f.scale_x + f.shift_x, y * f.scale_y + f.shift_y, attention(p, k));
  }
};

// What a block works on: a tile of the queries of an image, for one head. Heads vary fastest, so that blocks that run
// together write whole rows.
struct Block {
  int image, tile, head;
};

__device__ __forceinline__ Block block_of(const Problem& p) {
  const int head = blockIdx.x % p.heads, tiles = blockIdx.x / p.heads;
  return {tiles / p.tiles, tiles % p.tiles, head};
}

// The i-th query of a tile, or -1. Neighbouring cells read much the same, so the queries of an encoder go by squares.
__device__ __forceinline__ int query_of(const Problem& p, int tile, int i) {
  if (!p.by_cell) {
    const int query = tile * p.tile + i;
    return query < p.queries ? query : -1;
  }
  for (int level = 0; level < p.levels; ++level) {
    const Level& map = p.level[level];
    const int columns = (map.width + TILE_SIDE - 1) / TILE_SIDE, rows = (map.height + TILE_SIDE - 1) / TILE_SIDE;
    if (tile < columns * rows) {
      const int x = tile % columns * TILE_SIDE + i % TILE_SIDE, y = tile / columns * TILE_SIDE + i / TILE_SIDE;
      return x < map.width && y < map.height ? map.start + y * map.width + x : -1;
    }
    tile -= columns * rows;
  }
  return -1;
}

}  // namespace cuda
}  // namespace lowrank_d2
