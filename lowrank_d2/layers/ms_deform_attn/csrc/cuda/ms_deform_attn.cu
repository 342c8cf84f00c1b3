// Registers the CUDA kernels with PyTorch: what is checked, cast and allocated before they run.
//
// As for the CPU: only the stable ABI of PyTorch 2.10, and only implementations; ops.py has the schemas.
#include <dlfcn.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <limits>
#include <optional>
#include <tuple>
#include <vector>

#include "geometry.h"
#include "kernels.h"

namespace lowrank_d2 {
namespace cuda {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int ABI = 2;  // of the schemas and of the exported function below

template <class T>
constexpr ScalarType TYPE = ScalarType::Float;
template <>
constexpr ScalarType TYPE<double> = ScalarType::Double;
template <>
constexpr ScalarType TYPE<c10::Half> = ScalarType::Half;
template <>
constexpr ScalarType TYPE<c10::BFloat16> = ScalarType::BFloat16;

void check(cudaError_t error, const char* what) {
  STD_TORCH_CHECK(error == cudaSuccess, "ms_deform_attn: ", what, " failed: ", cudaGetErrorString(error));
}

// Of PyTorch, on this thread. The function is looked up in the library that PyTorch has loaded, so that ours can be
// built and linked where PyTorch has no CUDA.
cudaStream_t current_stream(int device) {
  using Get = AOTITorchError (*)(int32_t, void**);
  static const Get get = [] {
    void* library = dlopen("libtorch_cuda.so", RTLD_LAZY | RTLD_NOLOAD);
    return library ? reinterpret_cast<Get>(dlsym(library, "aoti_torch_get_current_cuda_stream")) : nullptr;
  }();
  STD_TORCH_CHECK(get, "ms_deform_attn: this PyTorch does not say which CUDA stream is current");
  void* stream = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(get(device, &stream));
  return static_cast<cudaStream_t>(stream);
}

// Both runtimes, PyTorch's and the one linked into this library, use the tensor's device as long as this lives.
struct OnDevice {
  torch::stable::accelerator::DeviceGuard guard;
  cudaStream_t stream;
  explicit OnDevice(const Tensor& tensor) : guard(tensor.get_device_index()) {
    check(cudaSetDevice(tensor.get_device_index()), "choosing the device");
    stream = current_stream(tensor.get_device_index());
  }
};

// torch.are_deterministic_algorithms_enabled(), at the time of the call; ops.py answers.
bool deterministic() {
  StableIValue answer[1] = {};
  STABLE_TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("lowrank_d2::deterministic", "", answer, TORCH_ABI_VERSION));
  return torch::stable::detail::to<bool>(answer[0]);
}

void check_arguments(const Tensor& value, const std::vector<int64_t>& shapes, const Tensor& places,
                     const Tensor& weights, const std::optional<Tensor>& reference) {
  STD_TORCH_CHECK(value.dim() == 4 && places.dim() == 6 && weights.dim() == 5,
                  "ms_deform_attn: wrong number of dimensions");
  const int64_t levels = weights.size(3);
  STD_TORCH_CHECK(
      weights.size(0) == value.size(0) && weights.size(2) == value.size(2) && 2 * levels == int64_t(shapes.size()),
      "ms_deform_attn: weights do not fit value and shapes");
  for (int i = 0; i < 5; ++i)
    STD_TORCH_CHECK(places.size(i) == weights.size(i), "ms_deform_attn: places do not fit weights");
  STD_TORCH_CHECK(places.size(5) == 2, "ms_deform_attn: places need an x and a y");
  int64_t cells = 0;
  for (size_t i = 0; i < shapes.size(); i += 2) {
    STD_TORCH_CHECK(shapes[i] >= 0 && shapes[i + 1] >= 0, "ms_deform_attn: a level has a negative size");
    cells += shapes[i] * shapes[i + 1];
  }
  STD_TORCH_CHECK(cells == value.size(1), "ms_deform_attn: value has ", value.size(1), " cells, its levels ", cells);
  STD_TORCH_CHECK(levels <= MAX_LEVELS, "ms_deform_attn on CUDA takes up to ", MAX_LEVELS, " levels, not ", levels);
  STD_TORCH_CHECK(cells < MAX_CELLS, "ms_deform_attn on CUDA takes fewer than ", MAX_CELLS, " cells, not ", cells);
  for (const Tensor* other : {&places, &weights, reference ? &*reference : &weights})
    STD_TORCH_CHECK(other->is_cuda() && other->get_device_index() == value.get_device_index(),
                    "ms_deform_attn: all tensors must be on the device of value");
  if (!reference) return;
  const Tensor& r = *reference;
  STD_TORCH_CHECK(r.dim() == 4 && (r.size(0) == 1 || r.size(0) == value.size(0)) && r.size(1) == weights.size(1) &&
                      (r.size(2) == 1 || r.size(2) == levels) && (r.size(3) == 2 || r.size(3) == 4),
                  "ms_deform_attn: reference must be (N or 1, Q, L or 1, 2 or 4)");
}

// Contiguous, of type T or Wide<T>, and aligned for reads of two.
template <class T>
Tensor readable(const Tensor& x, bool& wide) {
  wide = x.scalar_type() != TYPE<T> || std::is_same_v<T, Wide<T>>;
  Tensor y =
      torch::stable::contiguous(wide && x.scalar_type() != TYPE<Wide<T>> ? torch::stable::to(x, TYPE<Wide<T>>) : x);
  const bool aligned = reinterpret_cast<uintptr_t>(y.const_data_ptr()) % (2 * y.element_size()) == 0;
  return aligned ? y : torch::stable::clone(y);
}

Tensor as(const Tensor& x, ScalarType type) { return x.scalar_type() == type ? x : torch::stable::to(x, type); }

Tensor like(const Tensor& x, ScalarType type) { return torch::stable::new_empty(x, x.sizes(), type); }

Tensor nothing(const Tensor& x) { return torch::stable::new_empty(x, {0}, x.scalar_type()); }

// A problem with its tensors in the form that kernels read.
template <class T>
struct Call {
  using A = Wide<T>;
  Problem p{};
  Tensor value, places, weights;
  std::optional<Tensor> reference;
  Inputs<T> in{};

  Call(const Tensor& value, const std::vector<int64_t>& shapes, const Tensor& places, const Tensor& weights,
       const std::optional<Tensor>& reference)
      : value(torch::stable::contiguous(value)),
        places(readable<T>(places, p.wide_places)),
        weights(readable<T>(weights, p.wide_weights)) {
    const int64_t sizes[] = {value.size(0), weights.size(1), value.size(2) * value.size(3),
                             weights.size(3) * weights.size(4)};
    for (int64_t size : sizes)
      STD_TORCH_CHECK(size < (1 << 30), "ms_deform_attn on CUDA: a size of ", size, " is too large");
    p.images = sizes[0], p.queries = sizes[1], p.cells = value.size(1), p.heads = value.size(2),
    p.channels = value.size(3);
    p.levels = weights.size(3), p.points = weights.size(4);
    set_levels(p, shapes);
    const int64_t blocks =
        sizes[0] * p.heads * (p.queries + int64_t(p.cells) + 2 * p.levels);  // more than any kernel has
    STD_TORCH_CHECK(blocks < std::numeric_limits<int>::max(), "ms_deform_attn on CUDA: too many queries and heads");
    if (reference) {
      this->reference = torch::stable::contiguous(as(*reference, TYPE<A>));
      p.reference_size = reference->size(3);
      p.reference_level = reference->size(2) > 1 ? p.reference_size : 0;
      p.reference_query = reference->size(2) * p.reference_size;
      p.reference_image = reference->size(0) > 1 ? p.queries * p.reference_query : 0;
      in.reference = static_cast<const A*>(this->reference->const_data_ptr());
    }
    in.value = static_cast<const T*>(this->value.const_data_ptr());
    in.places = this->places.const_data_ptr();
    in.weights = this->weights.const_data_ptr();
  }
};

template <class T>
Tensor forward_as(const Tensor& value, const std::vector<int64_t>& shapes, const Tensor& places, const Tensor& weights,
                  const std::optional<Tensor>& reference) {
  const OnDevice device(value);
  const Call<T> call(value, shapes, places, weights, reference);
  Tensor out =
      torch::stable::new_empty(value, {value.size(0), weights.size(1), value.size(2) * value.size(3)}, TYPE<T>);
  check(forward<T>(call.p, call.in, static_cast<T*>(out.mutable_data_ptr()), device.stream), "the forward kernel");
  return out;
}

// Points are sorted by PyTorch; the sort keeps the order of equal keys.
template <class T>
Tensor sorted_value_gradient(const Call<T>& call, const T* grad_out, cudaStream_t stream) {
  using A = Wide<T>;
  const int64_t count = call.weights.numel();
  STD_TORCH_CHECK(count < std::numeric_limits<int>::max(), "ms_deform_attn: ", count, " points are too many to sort");
  const Tensor keys = torch::stable::new_empty(call.weights, {count}, ScalarType::Long);
  const Tensor points = torch::stable::new_empty(call.weights, {count * int64_t(sizeof(Point<A>))}, ScalarType::Byte);
  check(make_keys<T>(call.p, call.in, static_cast<int64_t*>(keys.mutable_data_ptr()),
                     static_cast<Point<A>*>(points.mutable_data_ptr()), stream),
        "the kernel of keys");
  using torch::stable::detail::from;
  StableIValue stack[] = {from(keys), from(std::optional<bool>(true)), from(int64_t(-1)), from(false)};
  STABLE_TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::sort", "stable", stack, TORCH_ABI_VERSION));
  const Tensor sorted = torch::stable::detail::to<Tensor>(stack[0]),
               order = torch::stable::detail::to<Tensor>(stack[1]);
  Tensor grad = like(call.value, TYPE<T>);
  check(sum_sorted<T>(call.p, count, static_cast<const int64_t*>(sorted.const_data_ptr()),
                      static_cast<const int64_t*>(order.const_data_ptr()),
                      static_cast<const Point<A>*>(points.const_data_ptr()), grad_out,
                      static_cast<T*>(grad.mutable_data_ptr()), stream),
        "the kernel of sorted sums");
  return grad;
}

using ThreeTensors = std::tuple<Tensor, Tensor, Tensor>;

template <class T>
ThreeTensors backward_as(const Tensor& given_grad_out, const Tensor& value, const std::vector<int64_t>& shapes,
                         const Tensor& places, const Tensor& weights, const std::optional<Tensor>& reference,
                         bool for_value, bool for_points) {
  using A = Wide<T>;
  const OnDevice device(value);
  const Call<T> call(value, shapes, places, weights, reference);
  const Tensor grad_out = torch::stable::contiguous(as(given_grad_out, TYPE<T>));
  Gradients<T> grad{static_cast<const T*>(grad_out.const_data_ptr())};

  Tensor grad_value = nothing(value), grad_places = nothing(places), grad_weights = nothing(weights),
         attention = grad_weights;
  if (for_points) {
    grad_places = like(call.places, call.places.scalar_type());
    grad_weights = like(call.weights, call.weights.scalar_type());
    attention = reference && !call.p.wide_weights ? like(call.weights, TYPE<A>) : grad_weights;
    grad.places = grad_places.mutable_data_ptr();
    grad.weights = grad_weights.mutable_data_ptr();
    grad.attention = static_cast<A*>(attention.mutable_data_ptr());
  }
  const bool sorted = for_value && value.numel() > 0 && deterministic();
  if (sorted) grad_value = sorted_value_gradient(call, grad.out, device.stream);
  if (for_value && !sorted) {
    grad_value = torch::stable::new_zeros(value, value.sizes(), TYPE<A>);
    grad.value = static_cast<A*>(grad_value.mutable_data_ptr());
  }
  if (grad.value || grad.places) check(backward<T>(call.p, call.in, grad, device.stream), "the backward kernel");
  return {as(grad_value, TYPE<T>), as(grad_places, places.scalar_type()), as(grad_weights, weights.scalar_type())};
}

// Calls `run` with a value of the C++ type.
template <class Run>
auto by_type(ScalarType type, const Run& run) {
  switch (type) {
    case ScalarType::Float: return run(float{});
    case ScalarType::Double: return run(double{});
    case ScalarType::Half: return run(c10::Half{});
    case ScalarType::BFloat16: return run(c10::BFloat16{});
    default: STD_TORCH_CHECK(false, "ms_deform_attn on CUDA takes values in float32, float64, float16 and bfloat16");
  }
}

// (N, Q, M * D), in the type of `value`.
Tensor ms_deform_attn(const Tensor& value, const std::vector<int64_t>& shapes, const Tensor& places,
                      const Tensor& weights, const std::optional<Tensor>& reference) {
  check_arguments(value, shapes, places, weights, reference);
  const int64_t out = value.size(0) * weights.size(1) * value.size(2) * value.size(3);
  if (out == 0 || weights.numel() == 0)
    return torch::stable::new_zeros(value, {value.size(0), weights.size(1), value.size(2) * value.size(3)});
  return by_type(value.scalar_type(),
                 [&](auto zero) { return forward_as<decltype(zero)>(value, shapes, places, weights, reference); });
}

// The gradients of value, places and weights, in their types; empty ones where nobody needs them.
ThreeTensors ms_deform_attn_backward(const Tensor& grad_out, const Tensor& value, const std::vector<int64_t>& shapes,
                                     const Tensor& places, const Tensor& weights,
                                     const std::optional<Tensor>& reference, bool for_value, bool for_points) {
  check_arguments(value, shapes, places, weights, reference);
  STD_TORCH_CHECK(grad_out.numel() == value.size(0) * weights.size(1) * value.size(2) * value.size(3),
                  "ms_deform_attn: the gradient does not fit the output");
  const auto zeros = [](const Tensor& x, bool wanted) {
    return wanted ? torch::stable::new_zeros(x, x.sizes()) : nothing(x);
  };
  if (grad_out.numel() == 0 || weights.numel() == 0)
    return {zeros(value, for_value), zeros(places, for_points), zeros(weights, for_points)};
  return by_type(value.scalar_type(), [&](auto zero) {
    return backward_as<decltype(zero)>(grad_out, value, shapes, places, weights, reference, for_value, for_points);
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(lowrank_d2, CUDA, m) {
  m.impl("ms_deform_attn", TORCH_BOX(&ms_deform_attn));
  m.impl("ms_deform_attn_backward", TORCH_BOX(&ms_deform_attn_backward));
}

}  // namespace cuda
}  // namespace lowrank_d2

extern "C" __attribute__((visibility("default"))) int lowrank_d2_ops_abi() { return lowrank_d2::cuda::ABI; }
