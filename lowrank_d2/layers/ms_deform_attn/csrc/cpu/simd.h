// Vectors of the widest registers that this file is compiled for, on the compilers' vector extension (GCC, clang): the
// same source serves x86 and ARM. No standard header with functions may be included here, see problem.h.
#pragma once
#include "problem.h"

#if defined(__AVX512F__)
#define LOWRANK_D2_VECTOR_BYTES 64
#elif defined(__AVX2__)
#define LOWRANK_D2_VECTOR_BYTES 32
#else
#define LOWRANK_D2_VECTOR_BYTES 16
#endif

namespace lowrank_d2 {
namespace {

#define LOWRANK_D2_INLINE inline __attribute__((always_inline))

template <typename T>
struct Simd {
  static constexpr int lanes = LOWRANK_D2_VECTOR_BYTES / sizeof(T);
  typedef T Vector __attribute__((vector_size(LOWRANK_D2_VECTOR_BYTES)));
  typedef Integer<T> Integers __attribute__((vector_size(LOWRANK_D2_VECTOR_BYTES)));
  typedef T Anywhere __attribute__((vector_size(LOWRANK_D2_VECTOR_BYTES), aligned(sizeof(T)), may_alias));
  typedef Integer<T> IntegersAnywhere __attribute__((vector_size(LOWRANK_D2_VECTOR_BYTES), aligned(sizeof(T)), may_alias));
};

template <typename T> using Vector = typename Simd<T>::Vector;
template <typename T> using Integers = typename Simd<T>::Integers;

template <typename T> LOWRANK_D2_INLINE Vector<T> load(const T* from) {
  return *reinterpret_cast<const typename Simd<T>::Anywhere*>(from);
}
template <typename T> LOWRANK_D2_INLINE void store(T* to, Vector<T> x) {
  *reinterpret_cast<typename Simd<T>::Anywhere*>(to) = x;
}
LOWRANK_D2_INLINE Integers<float> load_integers(const int32_t* from) {
  return *reinterpret_cast<const Simd<float>::IntegersAnywhere*>(from);
}
LOWRANK_D2_INLINE Integers<double> load_integers(const int64_t* from) {
  return *reinterpret_cast<const Simd<double>::IntegersAnywhere*>(from);
}
LOWRANK_D2_INLINE void store_integers(int32_t* to, Integers<float> x) {
  *reinterpret_cast<Simd<float>::IntegersAnywhere*>(to) = x;
}
LOWRANK_D2_INLINE void store_integers(int64_t* to, Integers<double> x) {
  *reinterpret_cast<Simd<double>::IntegersAnywhere*>(to) = x;
}
template <typename T> LOWRANK_D2_INLINE Vector<T> all(T x) { return Vector<T>{} + x; }

// Shuffles of two vectors: lane i of the result is lane at(i) of the lanes of a and b, one after the other.
template <int... i> struct Sequence {};
template <int n, int... i> struct Count : Count<n - 1, n - 1, i...> {};
template <int... i> struct Count<0, i...> { using type = Sequence<i...>; };

template <class Pattern, typename T, int... i>
LOWRANK_D2_INLINE Vector<T> shuffle(Vector<T> a, Vector<T> b, Sequence<i...>) {
#if defined(__clang__)
  return __builtin_shufflevector(a, b, Pattern::at(i)...);
#else
  return __builtin_shuffle(a, b, Integers<T>{Pattern::at(i)...});
#endif
}
template <class Pattern, typename T> LOWRANK_D2_INLINE Vector<T> shuffle(Vector<T> a, Vector<T> b) {
  return shuffle<Pattern, T>(a, b, typename Count<Simd<T>::lanes>::type{});
}

// x0 y0 x1 y1 ... -> the x (odd = 0), the y (odd = 1).
template <int odd> struct EveryOther {
  static constexpr int at(int i) { return 2 * i + odd; }
};
// The way back: the first (upper = 0) or second half of x0 y0 x1 y1 ...
template <int lanes, int upper> struct Interleave {
  static constexpr int at(int i) { return (i + upper * lanes) / 2 + (i % 2) * lanes; }
};
// EveryOther among groups of `size` lanes, within every block of `block` lanes: what registers do in one instruction.
template <int lanes, int block, int size, int odd> struct EveryOtherGroup {
  static constexpr int at(int i) {
    const int first = i / block * block, group = (i % block) / size, half = block / size / 2;
    return (group >= half ? lanes : 0) + first + (2 * (group % half) + odd) * size + i % size;
  }
};
template <int block, int size, typename T> LOWRANK_D2_INLINE Vector<T> add_neighbours(Vector<T> a, Vector<T> b) {
  constexpr int lanes = Simd<T>::lanes;
  return shuffle<EveryOtherGroup<lanes, block, size, 0>, T>(a, b) + shuffle<EveryOtherGroup<lanes, block, size, 1>, T>(a, b);
}

// Lane i of the result is the sum of the lanes of x[i]. Merges pairs within 128 bits first, then whole groups of these.
template <typename T, int count> struct Merge {
  static LOWRANK_D2_INLINE Vector<T> sums(const Vector<T>* x) {
    constexpr int lanes = Simd<T>::lanes, quarter = 16 / sizeof(T);
    const Vector<T> a = Merge<T, count / 2>::sums(x), b = Merge<T, count / 2>::sums(x + count / 2);
    if constexpr (count <= quarter) return add_neighbours<quarter, 1, T>(a, b);
    else return add_neighbours<lanes, quarter, T>(a, b);
  }
};
template <typename T> struct Merge<T, 1> {
  static LOWRANK_D2_INLINE Vector<T> sums(const Vector<T>* x) { return *x; }
};
template <typename T> LOWRANK_D2_INLINE Vector<T> row_sums(const Vector<T>* x) {
  return Merge<T, Simd<T>::lanes>::sums(x);
}

template <typename T> LOWRANK_D2_INLINE T sum(Vector<T> x) {
  T total = 0;
  for (int i = 0; i < Simd<T>::lanes; ++i) total += x[i];
  return total;
}

// e^x for x <= 0; what would be below the smallest normal number is 0. Within 1.2 units in the last place for float.
LOWRANK_D2_INLINE Vector<float> exp_nonpositive(Vector<float> x) {
  const Vector<float> kept = x < -87.0f ? all(-87.0f) : x;
  const Integers<float> n = __builtin_convertvector(kept * 1.44269504f - 0.5f, Integers<float>);
  const Vector<float> whole = __builtin_convertvector(n, Vector<float>);
  const Vector<float> r = (kept - whole * 0.693359375f) + whole * 2.12194440e-4f;
  Vector<float> y = r * 1.9875691500e-4f + 1.3981999507e-3f;
  y = y * r + 8.3334519073e-3f;
  y = y * r + 4.1665795894e-2f;
  y = y * r + 1.6666665459e-1f;
  y = y * r + 5.0000001201e-1f;
  y = y * r * r + r + 1.0f;
  const Vector<float> power = reinterpret_cast<Vector<float>>((n + 127) << 23);
  return x < -87.0f ? all(0.0f) : y * power;
}
LOWRANK_D2_INLINE Vector<double> exp_nonpositive(Vector<double> x) {
  for (int i = 0; i < Simd<double>::lanes; ++i) x[i] = __builtin_exp(x[i]);
  return x;
}

}  // namespace
}  // namespace lowrank_d2
