// What one call of the operator computes, in plain types: handed to every CUDA kernel by value, so that a recorded
// graph of launches needs no memory of the host.
#pragma once
#include <cstdint>
#include <type_traits>

namespace lowrank_d2 {
namespace cuda {

constexpr int THREADS = 256;  // of a block
constexpr int WARP = 32;
constexpr int QUAD = 4;               // points of a query that are worked on together in the backward pass
constexpr int TILE = THREADS / QUAD;  // queries of a block there, so that every thread sets up one point
constexpr int TILE_SIDE = 8;
constexpr int MAX_LEVELS = 64;
constexpr int64_t MAX_CELLS = int64_t(1) << 26;  // of an image: a cell's number travels with four bits in an int32

static_assert(TILE_SIDE * TILE_SIDE == TILE, "a tile of queries is a square of cells");

// Sums and positions are float32, also for 16-bit values.
template <class T>
using Wide = std::conditional_t<std::is_same_v<T, double>, double, float>;

struct Level {
  int height, width;
  int start;  // first of its cells in `value`
  int base;   // first of its (height + 1) * (width + 1) upper left corners, which may lie one cell outside
};

// N images, S cells, Q queries, M heads of D channels, L levels, P points.
struct Problem {
  int images, cells, queries, heads, channels, levels, points;
  int bases;                       // upper left corners of all levels
  unsigned one_point;              // level of point k = upper half of (2 k + 1) * one_point; see level_of
  int lanes;                       // threads that share a query: a power of two, 4 to 32
  int tile;                        // queries of a block
  int tiles;                       // of an image
  bool by_cell;                    // query i is cell i: blocks take squares of cells, else stretches of queries
  bool wide_places, wide_weights;  // in Wide<T> though the values are in T

  // Rows of 2 (a point) or 4 (a box) of a reference; size 0: places are locations and weights are no logits.
  int reference_size, reference_level;
  int64_t reference_query, reference_image;  // strides
  Level level[MAX_LEVELS + QUAD];            // the last ones are empty and belong to points that round K up
};

// The tensors, all contiguous. T is the type of the values.
template <class T>
struct Inputs {
  const T* value;            // (N, S, M, D)
  const void* places;        // (N, Q, M, L, P, 2): locations, or offsets from a reference
  const void* weights;       // (N, Q, M, L, P): attention weights, or logits with a reference
  const Wide<T>* reference;  // see Problem
};

template <class T>
struct Gradients {
  const T* out;        // (N, Q, M, D), what is given
  Wide<T>* value;      // as the value, zeros to add to; null where nobody needs it
  void* places;        // as the places; null where nobody needs it, together with `weights`
  void* weights;       // as the weights
  Wide<T>* attention;  // (N, Q, M, L, P) with a reference: of the attention weights. May be `weights`
};

}  // namespace cuda
}  // namespace lowrank_d2
