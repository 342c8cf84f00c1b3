// Masks compared at points (PointRend, https://arxiv.org/abs/1912.08193): what a training step with sampled mask losses
// does most often after its matrix products. One mask of H x W pixels at a time, points (x, y) as fractions of it.
#pragma once
#include "simd.h"

namespace lowrank_d2 {
namespace {

// The pixels around each point of a block, and their shares; what lies outside has share 0 and stands for any pixel.
struct Corners {
  static constexpr int64_t BLOCK = 64;
  alignas(64) int32_t pixel[4][BLOCK];
  alignas(64) float share[4][BLOCK];
};

// Of one coordinate: the pixels before and after, and their shares.
struct Between {
  Integers<float> low, high;
  Vector<float> low_share, high_share;
};

LOWRANK_D2_INLINE Between between(Vector<float> fraction, int32_t size) {
  // In the order of grid_sample on 2 fraction - 1, which rounds as this does.
  Vector<float> position = ((fraction * 2.0f - 1.0f) + 1.0f) * (size * 0.5f) - 0.5f;
  position = position > -2.0f ? position : all(-2.0f);  // where NaN goes, too
  position = position < float(size) ? position : all(float(size));
  Integers<float> low = __builtin_convertvector(position, Integers<float>);
  low += __builtin_convertvector(low, Vector<float>) > position;  // true is -1
  const Integers<float> high = low + 1, none = {}, last = none + (size - 1);
  const Vector<float> share = position - __builtin_convertvector(low, Vector<float>), outside = {};
  return {low < none ? none : low > last ? last : low, high < none ? none : high > last ? last : high,
          low >= none & low <= last ? 1.0f - share : outside, high >= none & high <= last ? share : outside};
}

LOWRANK_D2_INLINE void find_corners(int32_t height, int32_t width, const float* points, int64_t count, Corners& corners) {
  constexpr int lanes = Simd<float>::lanes;
  float padded[2 * lanes] = {};
  for (int64_t i = 0; i < count; i += lanes) {
    const float* from = points + 2 * i;
    if (count - i < lanes) from = static_cast<const float*>(__builtin_memcpy(padded, from, 2 * (count - i) * sizeof(float)));
    const Vector<float> first = load(from), second = load(from + lanes);
    const Between x = between(shuffle<EveryOther<0>, float>(first, second), width);
    const Between y = between(shuffle<EveryOther<1>, float>(first, second), height);
    const Integers<float> above = y.low * width, below = y.high * width;
    store_integers(corners.pixel[0] + i, above + x.low), store(corners.share[0] + i, y.low_share * x.low_share);
    store_integers(corners.pixel[1] + i, above + x.high), store(corners.share[1] + i, y.low_share * x.high_share);
    store_integers(corners.pixel[2] + i, below + x.low), store(corners.share[2] + i, y.high_share * x.low_share);
    store_integers(corners.pixel[3] + i, below + x.high), store(corners.share[3] + i, y.high_share * x.high_share);
  }
}

template <class Visit>
LOWRANK_D2_INLINE void for_blocks(int32_t height, int32_t width, const float* points, int64_t count, const Visit& visit) {
  Corners corners;
  for (int64_t first = 0; first < count; first += Corners::BLOCK) {
    const int64_t size = count - first < Corners::BLOCK ? count - first : Corners::BLOCK;
    find_corners(height, width, points + 2 * first, size, corners);
    visit(first, size, corners);
  }
}

template <typename Pixel>
void sample_mask(const Pixel* mask, int32_t height, int32_t width, const float* points, int64_t count, float* values) {
  for_blocks(height, width, points, count, [&](int64_t first, int64_t size, const Corners& c) __attribute__((always_inline)) {
    for (int64_t i = 0; i < size; ++i)
      values[first + i] = c.share[0][i] * mask[c.pixel[0][i]] + c.share[1][i] * mask[c.pixel[1][i]] +
                          c.share[2][i] * mask[c.pixel[2][i]] + c.share[3][i] * mask[c.pixel[3][i]];
  });
}

void spread_over_mask(const float* grad, int32_t height, int32_t width, const float* points, int64_t count, float* mask) {
  __builtin_memset(mask, 0, int64_t(height) * width * sizeof(float));
  for_blocks(height, width, points, count, [&](int64_t first, int64_t size, const Corners& c) __attribute__((always_inline)) {
    for (int64_t i = 0; i < size; ++i)
      for (int corner = 0; corner < 4; ++corner) mask[c.pixel[corner][i]] += c.share[corner][i] * grad[first + i];
  });
}

// Of `count` keys below 2^bits the one that stands at place `nth`, from 0, in ascending order: the range that it lies in is
// halved until one key is left. `below` becomes how many keys are smaller.
template <typename Key>
Key find_nth(const Key* keys, int64_t count, int64_t nth, int bits, int64_t& below) {
  below = 0;
  Key limit = 0;
  for (int bit = bits - 1; bit >= 0; --bit) {
    const Key middle = limit + (Key(1) << bit);
    int64_t smaller = 0;
    for (int64_t first = 0; first < count; first += 1 << 14) {  // whose count a Key can hold
      const int64_t size = count - first < 1 << 14 ? count - first : 1 << 14;
      Key part = 0;
      for (int64_t i = 0; i < size; ++i) part += keys[first + i] < middle;
      smaller += part;
    }
    if (smaller <= nth) limit = middle, below = smaller;
  }
  return limit;
}

// The points whose values are nearest to zero, in their order; of equal ones the first. `scratch` holds 3 * count.
// Magnitudes of floats have the order of their bits without the sign.
void least_certain(const float* values, const float* points, int64_t count, int64_t keep, int32_t* scratch, float* chosen) {
  int32_t *bits = scratch, *rest = scratch + count;
  int16_t* upper = reinterpret_cast<int16_t*>(rest + count);
  __builtin_memcpy(bits, values, count * sizeof(float));
  for (int64_t i = 0; i < count; ++i) bits[i] &= 0x7fffffff;
  for (int64_t i = 0; i < count; ++i) upper[i] = int16_t(bits[i] >> 16);
  int64_t below, same = 0, below_same;
  const int32_t half = find_nth<int16_t>(upper, count, keep - 1, 15, below);
  for (int64_t i = 0; i < count; ++i) {
    rest[same] = bits[i] & 0xffff;
    same += bits[i] >> 16 == half;
  }
  const int32_t limit = half << 16 | find_nth<int32_t>(rest, same, keep - 1 - below, 16, below_same);
  int64_t equal = keep - below - below_same;
  for (int64_t i = 0, n = 0; n < keep; ++i) {
    __builtin_memcpy(chosen + 2 * n, points + 2 * i, 2 * sizeof(float));
    const bool tied = bits[i] == limit;
    n += bits[i] < limit || (tied && equal > 0);
    equal -= tied;
  }
}

// Numbers [begin, end) of the stream `seed`, uniform in [0, 1): SplitMix64 (Steele et al. 2014,
// https://doi.org/10.1145/2660193.2660195) of a counter, two numbers of 24 bits each time. `begin` is even.
void fill_uniform(uint64_t seed, int64_t begin, int64_t end, float* numbers) {
  const auto pair = [seed](int64_t i) __attribute__((always_inline)) {
    uint64_t z = seed + uint64_t(i + 1) * 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
  };
  constexpr float unit = 1.0f / (1 << 24);
  for (int64_t i = begin / 2; i < end / 2; ++i) {
    const uint64_t z = pair(i);
    numbers[2 * i] = unit * int32_t(uint32_t(z) >> 8);
    numbers[2 * i + 1] = unit * int32_t(z >> 40);
  }
  if (end % 2) numbers[end - 1] = unit * int32_t(uint32_t(pair(end / 2)) >> 8);
}

}  // namespace
}  // namespace lowrank_d2
