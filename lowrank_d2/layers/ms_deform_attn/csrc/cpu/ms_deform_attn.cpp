// Registers the CPU kernels with PyTorch: what is checked, allocated and divided among threads before they run.
//
// Only the stable ABI of PyTorch 2.10 is used and only implementations are registered (ops.py has the schemas), so that
// one library serves every later PyTorch and any Python, and a second copy of it does no harm.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <limits>
#include <optional>
#include <tuple>
#include <vector>

#include "problem.h"

namespace lowrank_d2 {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int ABI = 2;  // of the schemas and of the exported functions below; ops.py asks for it

// Instruction sets that this machine has, best first.
struct Choice {
  const char* name;
  const InstructionSet* kernels;
};

std::vector<Choice> supported() {
  std::vector<Choice> found;
#if defined(__x86_64__)
  const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (has_avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl"))
    found.push_back({"avx512", &avx512});
  if (has_avx2) found.push_back({"avx2", &avx2});
#endif
  found.push_back({"baseline", &baseline});
  return found;
}

std::atomic<int> chosen{0};

const std::vector<Choice>& choices() {
  static const std::vector<Choice> all = supported();
  return all;
}

template <typename T>
const Kernels<T>& kernels_for(int64_t channels) {
  const std::vector<Choice>& all = choices();
  const auto of = [](const Choice& choice) -> const Kernels<T>& {
    if constexpr (std::is_same_v<T, float>) return choice.kernels->of_float;
    else return choice.kernels->of_double;
  };
  size_t index = chosen;
  // A register that the channels fill by half would double the work.
  while (index + 1 < all.size() && of(all[index]).lanes >= 2 * channels && of(all[index + 1]).lanes >= channels) ++index;
  return of(all[index]);
}

// Everything that a Problem points to.
template <typename T>
struct Call {
  Problem<T> problem{};
  std::vector<Level> levels;
  std::vector<T> width, height;
  std::vector<Integer<T>> origin;
  std::vector<Tensor> kept;

  Call(const Tensor& value, const std::vector<int64_t>& shapes, const Tensor& places, const Tensor& weights,
       const std::optional<Tensor>& reference) {
    Problem<T>& p = problem;
    p.images = value.size(0), p.cells = value.size(1), p.heads = value.size(2), p.channels = value.size(3);
    p.queries = weights.size(1), p.levels = weights.size(3), p.points = weights.size(4);
    add_levels(shapes);
    p.value = data(value), p.places = data(places), p.weights = data(weights);
    if (!reference) return;
    p.reference = data(*reference);
    p.reference_size = reference->size(3);
    p.reference_level = reference->size(2) > 1 ? p.reference_size : 0;
    p.reference_query = reference->size(2) * p.reference_size;
    p.reference_image = reference->size(0) > 1 ? p.queries * p.reference_query : 0;
  }

  // Contiguous, in the type that is computed in.
  const T* data(const Tensor& x) {
    constexpr ScalarType type = std::is_same_v<T, float> ? ScalarType::Float : ScalarType::Double;
    kept.push_back(torch::stable::contiguous(x.scalar_type() == type ? x : torch::stable::to(x, type)));
    return static_cast<const T*>(kept.back().const_data_ptr());
  }

  void add_levels(const std::vector<int64_t>& shapes) {
    Problem<T>& p = problem;
    int64_t start = 0, origin_of_next = 0;
    for (int64_t level = 0; level <= p.levels; ++level) {
      const bool last = level == p.levels;
      const int64_t h = last ? 0 : shapes[2 * level], w = last ? 0 : shapes[2 * level + 1];
      levels.push_back({h, w, start, origin_of_next});
      if (last) break;
      width.insert(width.end(), p.points, T(w));
      height.insert(height.end(), p.points, T(h));
      origin.insert(origin.end(), p.points, static_cast<Integer<T>>(origin_of_next));
      start += h * w;
      origin_of_next += (h + 3) * (w + 1) + 1;
      STD_TORCH_CHECK(origin_of_next < std::numeric_limits<int32_t>::max(), "a head has too many cells: ", origin_of_next);
    }
    const size_t padded = (width.size() + PADDING - 1) / PADDING * PADDING;
    width.resize(padded, T(-2));  // nothing lies in a level of size -2
    height.resize(padded, T(-2));
    origin.resize(padded, 0);
    p.level = levels.data(), p.width = width.data(), p.height = height.data(), p.origin = origin.data();
  }

  int64_t queries_and_heads() const { return problem.images * problem.queries * problem.heads; }
};

void check(const Tensor& value, const std::vector<int64_t>& shapes, const Tensor& places, const Tensor& weights,
           const std::optional<Tensor>& reference) {
  STD_TORCH_CHECK(value.dim() == 4 && places.dim() == 6 && weights.dim() == 5, "ms_deform_attn: wrong number of dimensions");
  const auto size = [&](int i) { return weights.size(i); };
  STD_TORCH_CHECK(size(0) == value.size(0) && size(2) == value.size(2) && 2 * size(3) == int64_t(shapes.size()),
                  "ms_deform_attn: weights do not fit value and shapes");
  for (int i = 0; i < 5; ++i) STD_TORCH_CHECK(places.size(i) == size(i), "ms_deform_attn: places do not fit weights");
  STD_TORCH_CHECK(places.size(5) == 2, "ms_deform_attn: places need an x and a y");
  int64_t cells = 0;
  for (size_t i = 0; i < shapes.size(); i += 2) {
    STD_TORCH_CHECK(shapes[i] >= 0 && shapes[i + 1] >= 0, "ms_deform_attn: a level has a negative size");
    cells += shapes[i] * shapes[i + 1];
  }
  STD_TORCH_CHECK(cells == value.size(1), "ms_deform_attn: value has ", value.size(1), " cells, its levels ", cells);
  if (!reference) return;
  STD_TORCH_CHECK(reference->dim() == 4 && (reference->size(0) == 1 || reference->size(0) == size(0)) &&
                      reference->size(1) == size(1) && (reference->size(2) == 1 || reference->size(2) == size(3)) &&
                      (reference->size(3) == 2 || reference->size(3) == 4),
                  "ms_deform_attn: reference must be (N or 1, Q, L or 1, 2 or 4)");
}

// Part of the work that one thread does in one piece.
template <typename T>
struct Task {
  decltype(Kernels<T>::forward) run;
  int64_t image, head, begin, end;
};

// Divides every head's [0, count) into as many parts as give each thread something to do.
template <typename T>
void add_tasks(std::vector<Task<T>>& tasks, decltype(Kernels<T>::forward) run, const Problem<T>& p, int64_t count,
               int64_t smallest, int64_t threads) {
  const int64_t heads = p.images * p.heads;
  const int64_t parts = std::max<int64_t>(1, std::min((threads + heads - 1) / heads, count / smallest));
  for (int64_t head = 0; head < heads; ++head)
    for (int64_t part = 0; part < parts; ++part)
      tasks.push_back({run, head / p.heads, head % p.heads, count * part / parts, count * (part + 1) / parts});
}

template <typename T>
void run(const Problem<T>& p, const Kernels<T>& kernels, const std::vector<Task<T>>& tasks, int64_t threads) {
  const int64_t workers = std::min<int64_t>(threads, tasks.size());
  const int64_t bytes = (kernels.scratch(p) + 4095) / 4096 * 4096 + 64;
  const Tensor scratch = torch::stable::empty({workers * bytes + 64}, ScalarType::Byte);
  char* memory = static_cast<char*>(scratch.mutable_data_ptr());
  memory += (64 - reinterpret_cast<uintptr_t>(memory) % 64) % 64;
  std::atomic<size_t> next{0};
  torch::stable::parallel_for(0, workers, 1, [&](int64_t worker, int64_t) {
    for (size_t i = next++; i < tasks.size(); i = next++) {
      const Task<T>& task = tasks[i];
      task.run(p, task.image, task.head, task.begin, task.end, memory + worker * bytes);
    }
  });
}

// Packing reads every cell once, working without it loses time at every corner.
template <typename T>
bool packing_pays(const Problem<T>& p, const Kernels<T>& kernels) {
  return p.channels % kernels.lanes != 0 || p.queries * p.levels * p.points > p.cells;
}

template <typename T>
void forward_in(Call<T>& call, const Tensor& out) {
  Problem<T>& p = call.problem;
  const Kernels<T>& kernels = kernels_for<T>(p.channels);
  p.out = static_cast<T*>(out.mutable_data_ptr());
  p.packed = packing_pays(p, kernels);
  const int64_t threads = torch::stable::get_num_threads();
  std::vector<Task<T>> tasks;
  add_tasks(tasks, kernels.forward, p, p.queries, 64, threads);
  run(p, kernels, tasks, threads);
}

template <typename T>
void backward_in(Call<T>& call, const Tensor* grad_value, const Tensor* grad_places, const Tensor* grad_weights) {
  Problem<T>& p = call.problem;
  const Kernels<T>& kernels = kernels_for<T>(p.channels);
  p.packed = packing_pays(p, kernels);
  const int64_t threads = torch::stable::get_num_threads();
  std::vector<Task<T>> tasks;
  if (grad_places) {
    p.grad_places = static_cast<T*>(grad_places->mutable_data_ptr());
    p.grad_weights = static_cast<T*>(grad_weights->mutable_data_ptr());
    add_tasks(tasks, kernels.backward_points, p, p.queries, 64, threads);
  }
  if (grad_value) {
    p.grad_value = static_cast<T*>(grad_value->mutable_data_ptr());
    if (!p.packed) std::memset(p.grad_value, 0, p.images * p.cells * p.heads * p.channels * sizeof(T));
    add_tasks(tasks, kernels.backward_value, p, p.levels, 1, threads);
  }
  run(p, kernels, tasks, threads);
}

// (N, Q, M * D), in the type of `value`.
Tensor forward(const Tensor& value, const std::vector<int64_t>& shapes, const Tensor& places, const Tensor& weights,
               const std::optional<Tensor>& reference) {
  check(value, shapes, places, weights, reference);
  const ScalarType type = value.scalar_type(), computed = type == ScalarType::Double ? type : ScalarType::Float;
  Tensor out = torch::stable::new_empty(value, {value.size(0), weights.size(1), value.size(2) * value.size(3)}, computed);
  if (out.numel() == 0) return torch::stable::to(out, type);
  if (weights.numel() == 0) return torch::stable::to(torch::stable::zero_(out), type);
  if (computed == ScalarType::Double) {
    Call<double> call(value, shapes, places, weights, reference);
    forward_in(call, out);
  } else {
    Call<float> call(value, shapes, places, weights, reference);
    forward_in(call, out);
  }
  return type == computed ? out : torch::stable::to(out, type);
}

// The gradients of value, places and weights, in their types; empty ones where nobody needs them.
std::tuple<Tensor, Tensor, Tensor> backward(const Tensor& grad_out, const Tensor& value, const std::vector<int64_t>& shapes,
                                            const Tensor& places, const Tensor& weights,
                                            const std::optional<Tensor>& reference, bool for_value, bool for_points) {
  check(value, shapes, places, weights, reference);
  STD_TORCH_CHECK(grad_out.numel() == value.size(0) * weights.size(1) * value.size(2) * value.size(3),
                  "ms_deform_attn: the gradient does not fit the output");
  const ScalarType computed = value.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
  const auto like = [&](const Tensor& x, bool needed) {
    const std::vector<int64_t> none = {0};
    return torch::stable::new_empty(x, needed ? x.sizes() : torch::headeronly::IntHeaderOnlyArrayRef(none), computed);
  };
  Tensor grad_value = like(value, for_value), grad_places = like(places, for_points), grad_weights = like(weights, for_points);
  const auto work = [&](auto call) {
    call.problem.grad_out = call.data(grad_out);
    backward_in(call, for_value ? &grad_value : nullptr, for_points ? &grad_places : nullptr, &grad_weights);
  };
  if (grad_out.numel() == 0 || weights.numel() == 0)
    for (Tensor* grad : {&grad_value, &grad_places, &grad_weights}) torch::stable::zero_(*grad);
  else if (computed == ScalarType::Double)
    work(Call<double>(value, shapes, places, weights, reference));
  else
    work(Call<float>(value, shapes, places, weights, reference));
  const auto as = [](const Tensor& grad, const Tensor& x) {
    return grad.scalar_type() == x.scalar_type() ? grad : torch::stable::to(grad, x.scalar_type());
  };
  return {as(grad_value, value), as(grad_places, places), as(grad_weights, weights)};
}

}  // namespace

const InstructionSet& best_instruction_set() { return *choices()[chosen].kernels; }

STABLE_TORCH_LIBRARY_IMPL(lowrank_d2, CPU, m) {
  m.impl("ms_deform_attn", TORCH_BOX(&forward));
  m.impl("ms_deform_attn_backward", TORCH_BOX(&backward));
}

}  // namespace lowrank_d2

#define LOWRANK_D2_EXPORT extern "C" __attribute__((visibility("default")))

LOWRANK_D2_EXPORT int lowrank_d2_ops_abi() { return lowrank_d2::ABI; }

// Name of the instruction set in use.
LOWRANK_D2_EXPORT const char* lowrank_d2_instruction_set() {
  return lowrank_d2::choices()[lowrank_d2::chosen].name;
}

// Uses another instruction set. 0 where this machine lacks it: for tests and measurements.
LOWRANK_D2_EXPORT int lowrank_d2_use_instruction_set(const char* name) {
  const auto& all = lowrank_d2::choices();
  for (size_t i = 0; i < all.size(); ++i)
    if (std::strcmp(all[i].name, name) == 0) return lowrank_d2::chosen = int(i), 1;
  return 0;
}
