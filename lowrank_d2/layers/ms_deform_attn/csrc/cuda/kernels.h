// The launches, one translation unit for each type of value. Each returns the error of its launch.
#pragma once
#include <cuda_runtime_api.h>

#include "points.cuh"

namespace lowrank_d2 {
namespace cuda {

// `tile` and `lanes` of the problem are chosen here.
template <class T>
cudaError_t forward(Problem p, const Inputs<T>& in, T* out, cudaStream_t stream);
template <class T>
cudaError_t backward(Problem p, const Inputs<T>& in, const Gradients<T>& grad, cudaStream_t stream);

// The two halves of the sorted gradient of the value.
template <class T>
cudaError_t make_keys(Problem p, const Inputs<T>& in, int64_t* keys, Point<Wide<T>>* points, cudaStream_t stream);
template <class T>
cudaError_t sum_sorted(Problem p, int64_t count, const int64_t* keys, const int64_t* order,
                       const Point<Wide<T>>* points, const T* grad_out, T* grad_value, cudaStream_t stream);

}  // namespace cuda
}  // namespace lowrank_d2
