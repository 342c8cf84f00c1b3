// The operator's CUDA kernels on the emulated device, behind plain functions.
#include "device.h"
// The emulator comes first: the kernels need what it defines.
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include "backward.cuh"
#include "forward.cuh"
#include "geometry.h"
#include "sorted.cuh"

using namespace lowrank_d2::cuda;

// Mirrored in the test.
struct Call {
  int64_t images, cells, heads, channels, queries, levels, points;
  const int64_t* shapes;
  int64_t wide_places, wide_weights;
  int64_t reference_size, reference_level, reference_query, reference_image;
  const void *value, *places, *weights, *reference, *grad_out;
  void *out, *grad_value, *grad_places, *grad_weights, *attention;
  int64_t vectors, reversed;
};

namespace {

Problem problem_of(const Call& call) {
  Problem p{};
  p.images = call.images, p.cells = call.cells, p.heads = call.heads, p.channels = call.channels;
  p.queries = call.queries, p.levels = call.levels, p.points = call.points;
  p.wide_places = call.wide_places, p.wide_weights = call.wide_weights;
  p.reference_size = call.reference_size, p.reference_level = call.reference_level;
  p.reference_query = call.reference_query, p.reference_image = call.reference_image;
  set_levels(p, call.shapes);
  return p;
}

template <class T>
Inputs<T> inputs_of(const Call& call) {
  return {static_cast<const T*>(call.value), call.places, call.weights, static_cast<const Wide<T>*>(call.reference)};
}

void launch(const Problem& p, const Call& call, std::function<void()> kernel) {
  emulator::Machine::here().run(int(blocks_of(p)), THREADS, call.reversed, std::move(kernel));
}

template <class T>
void forward(const Call& call) {
  Problem p = problem_of(call);
  divide_forward(p, call.vectors ? VECTOR<T> : 1);
  const auto kernel = call.vectors ? &forward_kernel<T, VECTOR<T>> : &forward_kernel<T, 1>;
  launch(p, call, [&] { kernel(p, inputs_of<T>(call), static_cast<T*>(call.out)); });
}

template <class T>
void backward(const Call& call) {
  Problem p = problem_of(call);
  divide_backward(p, call.vectors ? VECTOR<T> : 1);
  const Gradients<T> grad = {static_cast<const T*>(call.grad_out), static_cast<Wide<T>*>(call.grad_value),
                             call.grad_places, call.grad_weights, static_cast<Wide<T>*>(call.attention)};
  const auto kernel = call.vectors ? &backward_kernel<T, VECTOR<T>> : &backward_kernel<T, 1>;
  launch(p, call, [&] { kernel(p, inputs_of<T>(call), grad); });
}

template <class T>
void sorted(const Call& call) {
  Problem p = problem_of(call);
  const int64_t count = call.images * call.queries * call.heads * call.levels * call.points;
  std::vector<int64_t> keys(count), order(count), ordered(count);
  std::vector<Point<Wide<T>>> points(count);
  divide_backward(p, 1);
  launch(p, call, [&] { keys_kernel<T>(p, inputs_of<T>(call), keys.data(), points.data()); });
  for (int64_t i = 0; i < count; ++i) order[i] = i;
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return keys[a] < keys[b]; });
  for (int64_t i = 0; i < count; ++i) ordered[i] = keys[order[i]];
  divide_cells(p);
  launch(p, call, [&] {
    sum_sorted_kernel<T>(p, count, ordered.data(), order.data(), points.data(), static_cast<const T*>(call.grad_out),
                         static_cast<T*>(call.grad_value));
  });
}

template <class T>
void compute(const char* what, const Call& call) {
  if (!strcmp(what, "forward")) forward<T>(call);
  else if (!strcmp(what, "backward")) backward<T>(call);
  else sorted<T>(call);
}

}  // namespace

// Null, or what went wrong.
extern "C" const char* emulate(const char* what, const char* type, const Call* call) {
  static std::string message;
  try {
    if (!strcmp(type, "float32")) compute<float>(what, *call);
    else if (!strcmp(type, "float64")) compute<double>(what, *call);
    else if (!strcmp(type, "float16")) compute<c10::Half>(what, *call);
    else compute<c10::BFloat16>(what, *call);
  } catch (const std::exception& error) {
    return (message = error.what()).c_str();
  }
  return nullptr;
}
