// Launches of the kernels for one type, and the choice between them.
#pragma once
#include "backward.cuh"
#include "forward.cuh"
#include "geometry.h"
#include "kernels.h"
#include "sorted.cuh"

namespace lowrank_d2 {
namespace cuda {

// Whether rows of channels can be read 16 bytes at a time.
template <class T>
bool in_vectors(const Problem& p, const void* a, const void* b, const void* c = nullptr) {
  const auto aligned = [](const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % 16 == 0; };
  return VECTOR<T> > 1 && p.channels % VECTOR<T> == 0 && aligned(a) && aligned(b) && aligned(c);
}

template <class T>
cudaError_t forward(Problem p, const Inputs<T>& in, T* out, cudaStream_t stream) {
  const bool vectors = in_vectors<T>(p, in.value, out);
  divide_forward(p, vectors ? VECTOR<T> : 1);
  const unsigned blocks = static_cast<unsigned>(blocks_of(p));
  auto kernel = vectors ? &forward_kernel<T, VECTOR<T>> : &forward_kernel<T, 1>;
  kernel<<<blocks, THREADS, 0, stream>>>(p, in, out);
  return cudaGetLastError();
}

template <class T>
cudaError_t backward(Problem p, const Inputs<T>& in, const Gradients<T>& grad, cudaStream_t stream) {
  const bool vectors = in_vectors<T>(p, in.value, grad.out, grad.value);
  divide_backward(p, vectors ? VECTOR<T> : 1);
  const unsigned blocks = static_cast<unsigned>(blocks_of(p));
  auto kernel = vectors ? &backward_kernel<T, VECTOR<T>> : &backward_kernel<T, 1>;
  kernel<<<blocks, THREADS, 0, stream>>>(p, in, grad);
  return cudaGetLastError();
}

template <class T>
cudaError_t make_keys(Problem p, const Inputs<T>& in, int64_t* keys, Point<Wide<T>>* points, cudaStream_t stream) {
  divide_backward(p, 1);
  keys_kernel<T><<<static_cast<unsigned>(blocks_of(p)), THREADS, 0, stream>>>(p, in, keys, points);
  return cudaGetLastError();
}

template <class T>
cudaError_t sum_sorted(Problem p, int64_t count, const int64_t* keys, const int64_t* order,
                       const Point<Wide<T>>* points, const T* grad_out, T* grad_value, cudaStream_t stream) {
  divide_cells(p);
  sum_sorted_kernel<T><<<static_cast<unsigned>(blocks_of(p)), THREADS, 0, stream>>>(p, count, keys, order, points,
                                                                                    grad_out, grad_value);
  return cudaGetLastError();
}

#define LOWRANK_D2_KERNELS_FOR(T)                                                                             \
  template cudaError_t forward<T>(Problem, const Inputs<T>&, T*, cudaStream_t);                               \
  template cudaError_t backward<T>(Problem, const Inputs<T>&, const Gradients<T>&, cudaStream_t);             \
  template cudaError_t make_keys<T>(Problem, const Inputs<T>&, int64_t*, Point<Wide<T>>*, cudaStream_t);      \
  template cudaError_t sum_sorted<T>(Problem, int64_t, const int64_t*, const int64_t*, const Point<Wide<T>>*, \
                                     const T*, T*, cudaStream_t);

}  // namespace cuda
}  // namespace lowrank_d2
