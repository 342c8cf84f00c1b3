// Where the points of one query and head lie, and how much each counts: the first half of the operator, one vector of
// points at a time. Also the memory that a kernel works in.
#pragma once
#include "simd.h"

namespace lowrank_d2 {
namespace {

constexpr int BLOCK = 4;  // queries that are set up before their cells are read: hides the one behind the other
constexpr int AHEAD = 6;  // queries between a prefetch and its use; the stride of M * D defeats the processor's own

LOWRANK_D2_INLINE int64_t round_up(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }

// Points of one query and head, in arrays that are padded to whole vectors with points that lie nowhere.
template <typename T>
struct Points {
  Integer<T>* cell;          // upper left corner, in the padded maps
  Integer<T> *column, *line;  // the same in its level; (-1, -2) when the point lies outside
  T* corner[4];              // weights of the corners: upper left, upper right, lower left, lower right
  T *x, *y;                  // way from the upper left corner to the next, in [0, 1]
  T *scale_x, *scale_y;      // cells per unit of `places`
  T* attention;
};

template <typename T>
struct Scratch {
  int64_t padded_points, padded_channels;
  T* maps;                 // of one head: padded_channels for every cell
  T* nothing;              // a cell that corners outside the maps read, or add to; of use when the maps are not packed
  Points<T> points[BLOCK];
  int64_t* row;            // from a corner to the one below, in elements of `maps`, of every point
  T **pointers;            // four a point
  T *places, *logits;      // padded copies, where a query's own are no whole vectors
  T* reference[4];         // one for every point, where levels have their own
  T* channels;             // a padded copy of a row of channels
  T *dots[4], *grad_attention;
  size_t bytes;
};

// Hands out pieces of memory one after the other; from 0 it only counts.
struct Pieces {
  uintptr_t at;
  template <typename U> U* take(int64_t n) {
    U* piece = reinterpret_cast<U*>(at);
    at += round_up(n * sizeof(U), 64);
    return piece;
  }
};

template <typename T>
Scratch<T> lay_out(const Problem<T>& p, char* memory) {
  Scratch<T> s;
  const int64_t k = s.padded_points = round_up(p.levels * p.points, PADDING);
  s.padded_channels = round_up(p.channels, Simd<T>::lanes);
  Pieces pieces{reinterpret_cast<uintptr_t>(memory)};
  for (Points<T>& points : s.points) {
    points.cell = pieces.take<Integer<T>>(k);
    points.column = pieces.take<Integer<T>>(k);
    points.line = pieces.take<Integer<T>>(k);
    for (T*& array : points.corner) array = pieces.take<T>(k);
    T** const others[] = {&points.x, &points.y, &points.scale_x, &points.scale_y, &points.attention};
    for (T** array : others) *array = pieces.take<T>(k);
  }
  s.row = pieces.take<int64_t>(k);
  s.pointers = pieces.take<T*>(4 * k);
  s.places = pieces.take<T>(2 * k);
  s.logits = pieces.take<T>(k);
  s.grad_attention = pieces.take<T>(k);
  for (T*& array : s.reference) array = pieces.take<T>(k);
  for (T*& array : s.dots) array = pieces.take<T>(k);
  s.channels = pieces.take<T>(s.padded_channels);
  s.nothing = pieces.take<T>(s.padded_channels);
  s.maps = pieces.take<T>(p.packed ? p.level[p.levels].origin * s.padded_channels : 0);
  s.bytes = pieces.at - reinterpret_cast<uintptr_t>(memory);
  return s;
}

template <typename T>
Scratch<T> prepare(const Problem<T>& p, char* memory) {
  Scratch<T> s = lay_out(p, memory);
  const int64_t k = s.padded_points;
  __builtin_memset(s.places, 0, 2 * k * sizeof(T));
  __builtin_memset(s.channels, 0, s.padded_channels * sizeof(T));
  __builtin_memset(s.nothing, 0, s.padded_channels * sizeof(T));
  for (int64_t i = 0; i < k; ++i) {
    s.logits[i] = p.reference ? -__builtin_inf() : 0;
    for (T* reference : s.reference) reference[i] = 0;
    for (T* dots : s.dots) dots[i] = 0;  // 0 * what was left in memory could be no number
    s.row[i] = i < p.levels * p.points ? (p.level[i / p.points].width + 1) * s.padded_channels : 0;
  }
  return s;
}

// Number of a (query, head) among the rows of `places`, `weights`, `out`.
template <typename T> LOWRANK_D2_INLINE int64_t row_of(const Problem<T>& p, int64_t image, int64_t query, int64_t head) {
  return (image * p.queries + query) * p.heads + head;
}

// u = place * scale + shift, in cells of the level, whose first cell's centre is 0.
template <typename T> struct Frame {
  Vector<T> scale_x, shift_x, scale_y, shift_y;
};

template <typename T>
LOWRANK_D2_INLINE Frame<T> frame(const Problem<T>& p, const Scratch<T>& s, const T* reference, int64_t k) {
  const Vector<T> width = load(p.width + k), height = load(p.height + k), half = all(T(0.5));
  if (!reference) return {width, -half, height, -half};
  const auto of = [&](int i) { return p.reference_level ? load(s.reference[i] + k) : all(reference[i]); };
  const Vector<T> shift_x = of(0) * width - half, shift_y = of(1) * height - half, one = all(T(1));
  if (p.reference_size == 2) return {one, shift_x, one, shift_y};
  const T share = T(0.5) / p.points;
  return {of(2) * share * width, shift_x, of(3) * share * height, shift_y};
}

// Softmax over the points of all levels.
template <typename T>
LOWRANK_D2_INLINE void softmax(const T* logits, int64_t k, T* out) {
  constexpr int lanes = Simd<T>::lanes;
  Vector<T> largest = load(logits);
  for (int64_t i = lanes; i < k; i += lanes) {
    const Vector<T> x = load(logits + i);
    largest = x > largest ? x : largest;
  }
  T top = largest[0];
  for (int i = 1; i < lanes; ++i) top = largest[i] > top ? largest[i] : top;
  Vector<T> total = all(T(0));
  for (int64_t i = 0; i < k; i += lanes) {
    const Vector<T> x = exp_nonpositive(load(logits + i) - top);
    total += x;
    store(out + i, x);
  }
  const T inverse = 1 / sum<T>(total);
  for (int64_t i = 0; i < k; i += lanes) store(out + i, load(out + i) * inverse);
}

template <typename T>
LOWRANK_D2_INLINE void prefetch(const T* from, int64_t count) {
  for (int64_t i = 0; i < count; i += 64 / int64_t(sizeof(T))) __builtin_prefetch(from + i);
}
template <typename T>
LOWRANK_D2_INLINE void prefetch_to_write(T* to, int64_t count) {
  for (int64_t i = 0; i < count; i += 64 / int64_t(sizeof(T))) __builtin_prefetch(to + i, 1);
}

template <typename T>
LOWRANK_D2_INLINE const T* reference_of(const Problem<T>& p, const Scratch<T>& s, int64_t image, int64_t query) {
  if (!p.reference) return nullptr;
  const T* row = p.reference + image * p.reference_image + query * p.reference_query;
  if (p.reference_level)
    for (int64_t level = 0, k = 0; level < p.levels; ++level)
      for (int64_t point = 0; point < p.points; ++point, ++k)
        for (int i = 0; i < p.reference_size; ++i) s.reference[i][k] = row[level * p.reference_level + i];
  return row;
}

// Sets up the points of a query and head.
template <typename T>
LOWRANK_D2_INLINE void set_up(const Problem<T>& p, const Scratch<T>& s, int64_t image, int64_t query, int64_t head,
                              const Points<T>& to) {
  constexpr int lanes = Simd<T>::lanes;
  const int64_t k = p.levels * p.points, row = row_of(p, image, query, head);
  if (query + AHEAD < p.queries) {
    prefetch(p.places + (row + AHEAD * p.heads) * 2 * k, 2 * k);
    prefetch(p.weights + (row + AHEAD * p.heads) * k, k);
  }
  const T *places = p.places + row * 2 * k, *weights = p.weights + row * k;
  if (k % lanes != 0) {  // never reads beyond the tensors
    places = static_cast<const T*>(__builtin_memcpy(s.places, places, 2 * k * sizeof(T)));
    weights = static_cast<const T*>(__builtin_memcpy(s.logits, weights, k * sizeof(T)));
  }
  const T* reference = reference_of(p, s, image, query);
  if (reference) {
    softmax(weights, round_up(k, lanes), to.attention);
    weights = to.attention;
  }
  for (int64_t i = 0; i < k; i += lanes) {
    const Frame<T> f = frame(p, s, reference, i);
    const Vector<T> low = load(places + 2 * i), high = load(places + 2 * i + lanes);
    const Vector<T> width = load(p.width + i), height = load(p.height + i), outside = all(T(-2));
    // Points of a level without cells count for nothing, whatever number or no number they have.
    const Integers<T> somewhere = (width > T(0)) & (height > T(0));
    const Vector<T> place_x = shuffle<EveryOther<0>, T>(low, high) * f.scale_x + f.shift_x;
    const Vector<T> place_y = shuffle<EveryOther<1>, T>(low, high) * f.scale_y + f.shift_y;
    const Vector<T> u = somewhere ? place_x : outside, v = somewhere ? place_y : outside;
    // Kept in what an integer holds; no number becomes -2, which is outside, and comes back below.
    Vector<T> x = u > outside ? u : outside, y = v > outside ? v : outside;
    x = x < width + 1 ? x : width + 1;
    y = y < height + 1 ? y : height + 1;
    Integers<T> column = __builtin_convertvector(x, Integers<T>), line = __builtin_convertvector(y, Integers<T>);
    column += __builtin_convertvector(column, Vector<T>) > x;  // truncated upwards below 0; true is -1
    line += __builtin_convertvector(line, Vector<T>) > y;
    const Vector<T> left = __builtin_convertvector(column, Vector<T>), top = __builtin_convertvector(line, Vector<T>);
    const Integers<T> inside = (left >= T(-1)) & (left < width) & (top >= T(-1)) & (top < height);
    column = inside ? column : Integers<T>{} - 1;
    line = inside ? line : Integers<T>{} - 2;
    const Integers<T> step = __builtin_convertvector(width, Integers<T>) + 1;
    store_integers(to.cell + i, load_integers(p.origin + i) + (line + 2) * step + column + 1);
    if (!p.packed) {
      store_integers(to.column + i, column);
      store_integers(to.line + i, line);
    }
    x = x - left + (u - u);  // no number, when a location is infinite or no number
    y = y - top + (v - v);
    const Vector<T> given = load(weights + i), counted = somewhere ? given : all(T(0));
    const Vector<T> lower = counted * y, upper = counted - lower;
    const Vector<T> upper_right = upper * x, lower_right = lower * x;
    store(to.corner[0] + i, upper - upper_right);
    store(to.corner[1] + i, upper_right);
    store(to.corner[2] + i, lower - lower_right);
    store(to.corner[3] + i, lower_right);
    store(to.x + i, x);
    store(to.y + i, y);
    store(to.scale_x + i, f.scale_x);
    store(to.scale_y + i, f.scale_y);
    store(to.attention + i, reference ? given : counted);  // the softmax shares weight with what counts for nothing
  }
}

}  // namespace
}  // namespace lowrank_d2
