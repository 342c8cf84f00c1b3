// How a problem is divided among threads. No CUDA is needed here.
#pragma once
#include <algorithm>

#include "problem.h"

namespace lowrank_d2 {
namespace cuda {

// Lanes for a query whose channels are taken `together` at a time.
inline int lanes_for(int channels, int together) {
  int lanes = QUAD;
  while (lanes < WARP && lanes * together < channels) lanes *= 2;
  return lanes;
}

// Blocks of `tile` queries; where queries are cells, of squares of them.
inline void set_tiles(Problem& p, int tile) {
  p.by_cell = p.queries == p.cells && tile == TILE;
  p.tile = tile;
  p.tiles = (p.queries + tile - 1) / tile;
  if (!p.by_cell) return;
  p.tiles = 0;
  const auto squares = [](int size) { return (size + TILE_SIDE - 1) / TILE_SIDE; };
  for (int level = 0; level < p.levels; ++level)
    p.tiles += squares(p.level[level].height) * squares(p.level[level].width);
}

inline void divide_forward(Problem& p, int together) {
  p.lanes = lanes_for(p.channels, together);
  set_tiles(p, p.queries == p.cells ? TILE : THREADS / p.lanes);
}

inline void divide_backward(Problem& p, int together) {
  p.lanes = lanes_for(p.channels, together);
  set_tiles(p, TILE);
}

// A group of lanes for every cell.
inline void divide_cells(Problem& p) {
  p.lanes = lanes_for(p.channels, 1);
  p.tile = THREADS / p.lanes;
  p.tiles = (p.cells + p.tile - 1) / p.tile;
}

inline int64_t blocks_of(const Problem& p) { return int64_t(p.images) * p.tiles * p.heads; }

// Levels and what follows from them. `shapes` is H0, W0, H1, W1, ...
template <class Shapes>
void set_levels(Problem& p, const Shapes& shapes) {
  int start = 0, base = 0;
  for (int level = 0; level < p.levels; ++level) {
    const int height = static_cast<int>(shapes[2 * level]), width = static_cast<int>(shapes[2 * level + 1]);
    p.level[level] = {height, width, start, base};
    start += height * width;
    base += (height + 1) * (width + 1);
  }
  p.bases = base;
  p.one_point = 0x80000000u / p.points;
}

}  // namespace cuda
}  // namespace lowrank_d2
