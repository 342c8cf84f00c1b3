// Multi-scale deformable attention on a CPU (https://arxiv.org/abs/2010.04159), compiled once per instruction set.
//
// A head's cells are copied side by side into maps with an empty border (problem.h), which stay in the cache while its
// queries read them: in `value` a head occupies 1 line in 8 and would evict itself. Then a point is two runs of two cells
// without a condition. Each output has one writer and one order of additions, so results do not depend on threads.
#include "masks.h"
#include "points.h"

#ifndef LOWRANK_D2_INSTRUCTION_SET
#define LOWRANK_D2_INSTRUCTION_SET baseline
#endif

namespace lowrank_d2 {
namespace {

// The four corners of the points of a query, in packed maps.
template <typename T>
struct PackedCorners {
  T* maps;  // where a cell 0 would lie
  int64_t channels;
  const Integer<T>* cell;
  const int64_t* row;
  LOWRANK_D2_INLINE void of(int64_t k, T* (&at)[4]) const {
    at[0] = maps + cell[k] * channels;
    at[1] = at[0] + channels;
    at[2] = at[0] + row[k];
    at[3] = at[2] + channels;
  }
};

// In `value` (or its gradient) itself, or in `nothing` outside the maps.
template <typename T>
struct DirectCorners {
  T* const* pointers;
  LOWRANK_D2_INLINE void of(int64_t k, T* (&at)[4]) const {
    for (int i = 0; i < 4; ++i) at[i] = pointers[4 * k + i];
  }
};

template <typename T>
PackedCorners<T> corners_of(const Problem<T>&, const Scratch<T>& s, const Points<T>& points, int64_t origin) {
  return {s.maps - origin * s.padded_channels, s.padded_channels, points.cell, s.row};
}

template <typename T>
DirectCorners<T> direct_corners(const Problem<T>& p, const Scratch<T>& s, const Points<T>& points, T* head) {
  for (int64_t level = 0, k = 0; level < p.levels; ++level) {
    const Level& map = p.level[level];
    for (int64_t point = 0; point < p.points; ++point, ++k)
      for (int i = 0; i < 4; ++i) {
        const int64_t x = points.column[k] + i % 2, y = points.line[k] + i / 2;
        const bool inside = x >= 0 && x < map.width && y >= 0 && y < map.height;
        s.pointers[4 * k + i] = inside ? head + (map.start + y * map.width + x) * p.heads * p.channels : s.nothing;
      }
  }
  return {s.pointers};
}

// Copies the levels [begin, end) of one head between `value` (N, S, M, D) and the packed maps.
template <typename T>
void pack(const Problem<T>& p, const Scratch<T>& s, int64_t image, int64_t head, int64_t begin, int64_t end) {
  const int64_t d = s.padded_channels, stride = p.heads * p.channels, origin = p.level[begin].origin;
  for (int64_t level = begin; level < end; ++level) {
    const Level& map = p.level[level];
    const int64_t row = (map.width + 1) * d;
    T* to = s.maps + (map.origin - origin) * d;
    const T* from = p.value + (((image * p.cells) + map.start) * p.heads + head) * p.channels;
    __builtin_memset(to, 0, 2 * row * sizeof(T));
    to += 2 * row;
    for (int64_t y = 0; y < map.height; ++y) {
      __builtin_memset(to, 0, d * sizeof(T));
      to += d;
      for (int64_t x = 0; x < map.width; ++x, from += stride, to += d) {
        prefetch(from + 8 * stride, p.channels);
        if (d == p.channels) {
          for (int64_t c = 0; c < d; c += Simd<T>::lanes) store(to + c, load(from + c));
        } else {
          __builtin_memcpy(to, from, p.channels * sizeof(T));
          __builtin_memset(to + p.channels, 0, (d - p.channels) * sizeof(T));
        }
      }
    }
    __builtin_memset(to, 0, (row + d) * sizeof(T));
  }
}

template <typename T>
void unpack(const Problem<T>& p, const Scratch<T>& s, int64_t image, int64_t head, int64_t begin, int64_t end) {
  const int64_t d = s.padded_channels, stride = p.heads * p.channels, origin = p.level[begin].origin;
  for (int64_t level = begin; level < end; ++level) {
    const Level& map = p.level[level];
    const T* from = s.maps + (map.origin - origin + 2 * (map.width + 1)) * d;
    T* to = p.grad_value + (((image * p.cells) + map.start) * p.heads + head) * p.channels;
    for (int64_t y = 0; y < map.height; ++y) {
      from += d;
      for (int64_t x = 0; x < map.width; ++x, from += d, to += stride) {
        prefetch_to_write(to + 8 * stride, p.channels);
        if (d == p.channels)
          for (int64_t c = 0; c < d; c += Simd<T>::lanes) store(to + c, load(from + c));
        else
          __builtin_memcpy(to, from, p.channels * sizeof(T));
      }
    }
  }
}

// out[c] = sum over points and corners of weight * cell[c], `wide` vectors of channels at a time.
template <int wide, typename T, class Corners>
LOWRANK_D2_INLINE void gather(const Corners& corners, const Points<T>& points, int64_t k, int64_t channels, T* out) {
  constexpr int lanes = Simd<T>::lanes, chains = wide == 4 ? 2 : 4;  // sums in flight, to hide the latency of an addition
  for (int64_t c = 0; c < channels; c += wide * lanes) {
    Vector<T> total[chains][wide] = {};
    for (int64_t i = 0; i < k; ++i) {
      T* at[4];
      corners.of(i, at);
      for (int corner = 0; corner < 4; ++corner) {
        const Vector<T> weight = all(points.corner[corner][i]);
        for (int j = 0; j < wide; ++j) total[corner % chains][j] += weight * load(at[corner] + c + j * lanes);
      }
    }
    for (int j = 0; j < wide; ++j) {
      Vector<T> x = total[0][j] + total[1][j];
      if constexpr (chains == 4) x += total[2][j] + total[3][j];
      store(out + c + j * lanes, x);
    }
  }
}

// cell[c] += weight * grad[c] for every corner of the points [begin, end).
template <int wide, typename T, class Corners>
LOWRANK_D2_INLINE void scatter(const Corners& corners, const Points<T>& points, int64_t begin, int64_t end, int64_t channels,
                               const T* grad) {
  constexpr int lanes = Simd<T>::lanes;
  for (int64_t c = 0; c < channels; c += wide * lanes) {
    Vector<T> g[wide];
    for (int j = 0; j < wide; ++j) g[j] = load(grad + c + j * lanes);
    for (int64_t i = begin; i < end; ++i) {
      T* at[4];
      corners.of(i, at);
      for (int corner = 0; corner < 4; ++corner) {
        const Vector<T> weight = all(points.corner[corner][i]);
        for (int j = 0; j < wide; ++j) {
          T* to = at[corner] + c + j * lanes;
          store(to, load(to) + weight * g[j]);
        }
      }
    }
  }
}

// dots[corner][i] = <cell, grad> for every corner of every point.
template <int wide, typename T, class Corners>
LOWRANK_D2_INLINE void dot_products(const Corners& corners, const Scratch<T>& s, int64_t k, const T* grad) {
  constexpr int lanes = Simd<T>::lanes, together = lanes > 4 ? lanes / 4 : 1, sums = 4 * together;
  for (int64_t i = 0; i < k; i += together) {
    Vector<T> part[sums] = {};
    for (int64_t c = 0; c < s.padded_channels; c += wide * lanes) {
      Vector<T> g[wide];
      for (int j = 0; j < wide; ++j) g[j] = load(grad + c + j * lanes);
      for (int point = 0; point < together; ++point) {
        T* at[4];
        corners.of(i + point, at);
        for (int corner = 0; corner < 4; ++corner)
          for (int j = 0; j < wide; ++j) part[corner * together + point] += g[j] * load(at[corner] + c + j * lanes);
      }
    }
    T total[sums];
    for (int j = 0; j < sums; j += lanes) store(total + j, row_sums<T>(part + j));
    for (int corner = 0; corner < 4; ++corner)
      __builtin_memcpy(s.dots[corner] + i, total + corner * together, together * sizeof(T));
  }
}

// From the dot products to the gradients of places and weights, of one query and head.
template <typename T>
LOWRANK_D2_INLINE void finish_points(const Problem<T>& p, const Scratch<T>& s, const Points<T>& points, int64_t row) {
  constexpr int lanes = Simd<T>::lanes;
  const int64_t k = p.levels * p.points;
  const bool whole = k % lanes == 0;
  T* grad_attention = whole ? p.grad_weights + row * k : s.grad_attention;
  T* grad_places = whole ? p.grad_places + row * 2 * k : s.places;
  Vector<T> mean = all(T(0));
  for (int64_t i = 0; i < k; i += lanes) {
    const Vector<T> x = load(points.x + i), y = load(points.y + i), attention = load(points.attention + i);
    const Vector<T> s00 = load(s.dots[0] + i), s01 = load(s.dots[1] + i), s10 = load(s.dots[2] + i), s11 = load(s.dots[3] + i);
    const Vector<T> top = s00 + x * (s01 - s00), bottom = s10 + x * (s11 - s10);
    const Vector<T> sample = top + y * (bottom - top);
    const Vector<T> across = (s01 - s00) + y * ((s11 - s10) - (s01 - s00));
    const Vector<T> grad_x = attention * load(points.scale_x + i) * across;
    const Vector<T> grad_y = attention * load(points.scale_y + i) * (bottom - top);
    mean += attention * sample;
    store(grad_attention + i, sample);
    store(grad_places + 2 * i, shuffle<Interleave<lanes, 0>, T>(grad_x, grad_y));
    store(grad_places + 2 * i + lanes, shuffle<Interleave<lanes, 1>, T>(grad_x, grad_y));
  }
  if (p.reference) {  // through the softmax
    const T total = sum<T>(mean);
    for (int64_t i = 0; i < k; i += lanes)
      store(grad_attention + i, load(points.attention + i) * (load(grad_attention + i) - total));
  }
  if (!whole) {
    __builtin_memcpy(p.grad_weights + row * k, s.grad_attention, k * sizeof(T));
    __builtin_memcpy(p.grad_places + row * 2 * k, s.places, 2 * k * sizeof(T));
  }
}

// Sets up blocks of queries, then calls visit(query, its points).
template <typename T, class Visit>
LOWRANK_D2_INLINE void for_queries(const Problem<T>& p, const Scratch<T>& s, int64_t image, int64_t head, int64_t begin,
                                   int64_t end, const Visit& visit) {
  for (int64_t first = begin; first < end; first += BLOCK) {
    const int64_t count = end - first < BLOCK ? end - first : BLOCK;
    for (int64_t i = 0; i < count; ++i) set_up(p, s, image, first + i, head, s.points[i]);
    for (int64_t i = 0; i < count; ++i) visit(first + i, s.points[i]);
  }
}

// A row of channels in whole vectors.
template <typename T> LOWRANK_D2_INLINE const T* channels_of(const Problem<T>& p, const Scratch<T>& s, const T* row) {
  if (s.padded_channels == p.channels) return row;
  return static_cast<const T*>(__builtin_memcpy(s.channels, row, p.channels * sizeof(T)));
}

template <int wide, typename T>
void forward(const Problem<T>& p, int64_t image, int64_t head, int64_t begin, int64_t end, char* memory) {
  const Scratch<T> s = prepare(p, memory);
  const int64_t k = p.levels * p.points, d = s.padded_channels;
  T* value = const_cast<T*>(p.value) + (image * p.cells * p.heads + head) * p.channels;  // read only
  if (p.packed) pack(p, s, image, head, 0, p.levels);
  for_queries(p, s, image, head, begin, end, [&](int64_t query, const Points<T>& points) __attribute__((always_inline)) {
    T* row = p.out + row_of(p, image, query, head) * p.channels;
    T* out = d == p.channels ? row : s.channels;
    if (query + AHEAD < end) prefetch_to_write(row + AHEAD * p.heads * p.channels, p.channels);
    if (p.packed) gather<wide, T>(corners_of(p, s, points, 0), points, k, d, out);
    else gather<wide, T>(direct_corners(p, s, points, value), points, k, d, out);
    if (out != row) __builtin_memcpy(row, out, p.channels * sizeof(T));
  });
}

template <int wide, typename T>
void backward_points(const Problem<T>& p, int64_t image, int64_t head, int64_t begin, int64_t end, char* memory) {
  const Scratch<T> s = prepare(p, memory);
  const int64_t k = p.levels * p.points;
  T* value = const_cast<T*>(p.value) + (image * p.cells * p.heads + head) * p.channels;  // read only
  if (p.packed) pack(p, s, image, head, 0, p.levels);
  else for (int64_t i = 4 * k; i < 4 * s.padded_points; ++i) s.pointers[i] = s.nothing;
  for_queries(p, s, image, head, begin, end, [&](int64_t query, const Points<T>& points) __attribute__((always_inline)) {
    const int64_t row = row_of(p, image, query, head), next = row + AHEAD * p.heads;
    if (query + AHEAD < end) {
      prefetch(p.grad_out + next * p.channels, p.channels);
      prefetch_to_write(p.grad_places + next * 2 * k, 2 * k);
      prefetch_to_write(p.grad_weights + next * k, k);
    }
    const T* grad = channels_of(p, s, p.grad_out + row * p.channels);
    if (p.packed) dot_products<wide, T>(corners_of(p, s, points, 0), s, k, grad);
    else dot_products<wide, T>(direct_corners(p, s, points, value), s, k, grad);
    finish_points(p, s, points, row);
  });
}

template <int wide, typename T>
void backward_value(const Problem<T>& p, int64_t image, int64_t head, int64_t begin, int64_t end, char* memory) {
  const Scratch<T> s = prepare(p, memory);
  const int64_t d = s.padded_channels, origin = p.level[begin].origin;
  T* grad_value = p.grad_value + (image * p.cells * p.heads + head) * p.channels;
  if (p.packed) __builtin_memset(s.maps, 0, (p.level[end].origin - origin) * d * sizeof(T));
  for_queries(p, s, image, head, 0, p.queries, [&](int64_t query, const Points<T>& points) __attribute__((always_inline)) {
    const T* row = p.grad_out + row_of(p, image, query, head) * p.channels;
    if (query + AHEAD < p.queries) prefetch(row + AHEAD * p.heads * p.channels, p.channels);
    const T* grad = channels_of(p, s, row);
    if (p.packed) scatter<wide, T>(corners_of(p, s, points, origin), points, begin * p.points, end * p.points, d, grad);
    else scatter<wide, T>(direct_corners(p, s, points, grad_value), points, begin * p.points, end * p.points, d, grad);
  });
  if (p.packed) unpack(p, s, image, head, begin, end);
}

// How many vectors of channels are worked on together: as many as divide the channels, up to four.
template <typename T> int width_of(const Problem<T>& p) {
  const int64_t vectors = round_up(p.channels, Simd<T>::lanes) / Simd<T>::lanes;
  return vectors % 4 == 0 ? 4 : vectors % 2 == 0 ? 2 : 1;
}

#define LOWRANK_D2_BY_WIDTH(function)                                                                       \
  [](const Problem<T>& p, int64_t image, int64_t head, int64_t begin, int64_t end, char* scratch) {         \
    const int wide = width_of(p);                                                                           \
    auto chosen = wide == 4 ? &function<4, T> : wide == 2 ? &function<2, T> : &function<1, T>;               \
    chosen(p, image, head, begin, end, scratch);                                                            \
  }

template <typename T>
constexpr Kernels<T> kernels() {
  return {[](const Problem<T>& p) { return lay_out(p, nullptr).bytes; }, LOWRANK_D2_BY_WIDTH(forward),
          LOWRANK_D2_BY_WIDTH(backward_points), LOWRANK_D2_BY_WIDTH(backward_value), Simd<T>::lanes};
}

}  // namespace

const InstructionSet LOWRANK_D2_INSTRUCTION_SET = {
    kernels<float>(), kernels<double>(),
    {sample_mask<float>, sample_mask<uint8_t>, spread_over_mask, least_certain, fill_uniform}};

}  // namespace lowrank_d2
