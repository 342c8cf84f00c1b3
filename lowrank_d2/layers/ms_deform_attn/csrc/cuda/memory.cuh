// How kernels read and write: runs of C channels at a time, and numbers of two widths behind one pointer.
#pragma once
#include "problem.h"

namespace lowrank_d2 {
namespace cuda {

// Four channels of float32 or eight of 16 bits: what one instruction moves. float64, which serves to check gradients,
// has no kernel of its own for vectors.
template <class T>
constexpr int VECTOR = std::is_same_v<T, double> ? 1 : 16 / int(sizeof(T));

template <class T, int C>
struct alignas(C * sizeof(T)) Run {
  T channel[C];
};

// Zeros where not `wanted`, and then nothing is read.
template <class T, int C>
__device__ __forceinline__ void load(const T* from, bool wanted, Wide<T> (&to)[C]) {
  if constexpr (C == VECTOR<T> && C > 1) {
    const uint4 bits = wanted ? __ldg(reinterpret_cast<const uint4*>(from)) : uint4{0, 0, 0, 0};
    const Run<T, C>& run = reinterpret_cast<const Run<T, C>&>(bits);
#pragma unroll
    for (int i = 0; i < C; ++i) to[i] = static_cast<Wide<T>>(run.channel[i]);
  } else {
    static_assert(C == 1, "channels are read one by one or 16 bytes at a time");
    to[0] = wanted ? static_cast<Wide<T>>(*from) : Wide<T>(0);
  }
}

// Written once and not read again by the kernel: it should not push cells out of the cache.
template <class T, int C>
__device__ __forceinline__ void store(T* to, const Wide<T> (&from)[C]) {
  if constexpr (C == VECTOR<T> && C > 1) {
    uint4 bits;
    Run<T, C>& run = reinterpret_cast<Run<T, C>&>(bits);
#pragma unroll
    for (int i = 0; i < C; ++i) run.channel[i] = static_cast<T>(from[i]);
    __stcs(reinterpret_cast<uint4*>(to), bits);
  } else {
    static_assert(C == 1, "channels are written one by one or 16 bytes at a time");
    *to = static_cast<T>(from[0]);
  }
}

// Adds to what other blocks add to as well.
template <class A, int C>
__device__ __forceinline__ void add(A* to, const A (&from)[C]) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  if constexpr (C % 4 == 0 && std::is_same_v<A, float>) {
#pragma unroll
    for (int i = 0; i < C; i += 4)
      asm volatile("red.global.add.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(__cvta_generic_to_global(to + i)),
                   "f"(from[i]), "f"(from[i + 1]), "f"(from[i + 2]), "f"(from[i + 3])
                   : "memory");
  } else
#endif
  {
#pragma unroll
    for (int i = 0; i < C; ++i) atomicAdd(to + i, from[i]);
  }
}

template <class T>
__device__ __forceinline__ Wide<T> number(const void* data, bool wide, int64_t i) {
  return wide ? static_cast<const Wide<T>*>(data)[i] : static_cast<Wide<T>>(static_cast<const T*>(data)[i]);
}

// Two neighbours, aligned as two.
template <class T>
__device__ __forceinline__ void pair(const void* data, bool wide, int64_t i, Wide<T>& x, Wide<T>& y) {
  if (wide) {
    const Run<Wide<T>, 2> both = static_cast<const Run<Wide<T>, 2>*>(data)[i];
    x = both.channel[0], y = both.channel[1];
  } else {
    const Run<T, 2> both = static_cast<const Run<T, 2>*>(data)[i];
    x = static_cast<Wide<T>>(both.channel[0]), y = static_cast<Wide<T>>(both.channel[1]);
  }
}

template <class T>
__device__ __forceinline__ void set_number(void* data, bool wide, int64_t i, Wide<T> x) {
  if (wide) static_cast<Wide<T>*>(data)[i] = x;
  else static_cast<T*>(data)[i] = static_cast<T>(x);
}

template <class T>
__device__ __forceinline__ void set_pair(void* data, bool wide, int64_t i, Wide<T> x, Wide<T> y) {
  if (wide) static_cast<Run<Wide<T>, 2>*>(data)[i] = {x, y};
  else static_cast<Run<T, 2>*>(data)[i] = {static_cast<T>(x), static_cast<T>(y)};
}

}  // namespace cuda
}  // namespace lowrank_d2
