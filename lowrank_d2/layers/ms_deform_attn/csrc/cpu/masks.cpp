// Registers the kernels of masks.h with PyTorch. float32, contiguous after a copy where needed; every output has one writer.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <optional>
#include <vector>

#include "problem.h"

namespace lowrank_d2 {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int64_t POINTS_AT_ONCE = 8192, NUMBERS_AT_ONCE = 65536;

void check(const Tensor& maps, int64_t dims, const Tensor& points) {
  STD_TORCH_CHECK(maps.dim() == dims && points.dim() == 3 && points.size(2) == 2, "masks at points: wrong dimensions");
  STD_TORCH_CHECK(points.scalar_type() == ScalarType::Float, "masks at points: points must be float32");
}

void check_size(int64_t height, int64_t width) {
  STD_TORCH_CHECK(height > 0 && width > 0 && height < (1 << 24) && width < (1 << 24) && height * width < (int64_t(1) << 31),
                  "masks at points: masks of ", height, " x ", width, " pixels");
}

const float* floats(const Tensor& x) { return static_cast<const float*>(x.const_data_ptr()); }
float* floats_of(const Tensor& x) { return static_cast<float*>(x.mutable_data_ptr()); }

// Calls work(i) for i in [0, count), each once, on all threads.
template <class Work>
void in_parallel(int64_t count, const Work& work) {
  torch::stable::parallel_for(0, count, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) work(i);
  });
}

// Of masks (n, H, W), float32 or bool: row r of the result is masks[rows[r]] (masks[r] without rows) at points[r]: (R, P).
Tensor sample(const Tensor& masks, const Tensor& points, const std::optional<Tensor>& rows) {
  check(masks, 3, points);
  const bool is_bool = masks.scalar_type() == ScalarType::Bool;
  STD_TORCH_CHECK(is_bool || masks.scalar_type() == ScalarType::Float, "masks at points: masks must be float32 or bool");
  const int64_t count = points.size(0), size = points.size(1), height = masks.size(1), width = masks.size(2);
  const Tensor maps = torch::stable::contiguous(masks), at = torch::stable::contiguous(points);
  std::vector<int64_t> row(count);
  for (int64_t r = 0; r < count; ++r) row[r] = r;
  if (rows) {
    STD_TORCH_CHECK(rows->dim() == 1 && rows->size(0) == count && rows->scalar_type() == ScalarType::Long,
                    "masks at points: an int64 row for each set of points is needed");
    const Tensor given = torch::stable::contiguous(*rows);
    std::copy_n(static_cast<const int64_t*>(given.const_data_ptr()), count, row.begin());
  }
  for (const int64_t r : row) STD_TORCH_CHECK(r >= 0 && r < masks.size(0), "masks at points: there is no mask ", r);
  Tensor values = torch::stable::new_empty(points, {count, size});
  if (values.numel() == 0) return values;
  check_size(height, width);
  const MaskKernels& kernels = best_instruction_set().of_masks;
  const int64_t pieces = (size + POINTS_AT_ONCE - 1) / POINTS_AT_ONCE;
  const void* pixels = maps.const_data_ptr();
  const float* from = floats(at);
  float* to = floats_of(values);
  in_parallel(count * pieces, [&](int64_t i) {
    const int64_t r = i / pieces, first = i % pieces * POINTS_AT_ONCE, start = r * size + first;
    const int64_t mask = row[r] * height * width, n = std::min(POINTS_AT_ONCE, size - first);
    if (is_bool) kernels.sample_bool(static_cast<const uint8_t*>(pixels) + mask, height, width, from + 2 * start, n, to + start);
    else kernels.sample(static_cast<const float*>(pixels) + mask, height, width, from + 2 * start, n, to + start);
  });
  return values;
}

// The gradient (R, H, W) of masks from that of their values at points (R, P, 2), (R, P).
Tensor spread(const Tensor& grad, const Tensor& points, int64_t height, int64_t width) {
  check(grad, 2, points);
  STD_TORCH_CHECK(grad.scalar_type() == ScalarType::Float && grad.size(0) == points.size(0) && grad.size(1) == points.size(1),
                  "masks at points: a float32 gradient for each point is needed");
  check_size(height, width);
  const Tensor from = torch::stable::contiguous(grad), at = torch::stable::contiguous(points);
  Tensor masks = torch::stable::new_empty(grad, {grad.size(0), height, width});
  const MaskKernels& kernels = best_instruction_set().of_masks;
  const float *values = floats(from), *places = floats(at);
  float* to = floats_of(masks);
  const int64_t size = grad.size(1);
  in_parallel(grad.size(0), [&](int64_t r) {
    kernels.spread(values + r * size, height, width, places + 2 * r * size, size, to + r * height * width);
  });
  return masks;
}

// Of each mask's candidate points (R, P, 2) the `keep` at which masks (R, H, W) are nearest to zero: (R, keep, 2).
Tensor choose(const Tensor& masks, const Tensor& candidates, int64_t keep) {
  check(masks, 3, candidates);
  const int64_t count = masks.size(0), size = candidates.size(1), height = masks.size(1), width = masks.size(2);
  STD_TORCH_CHECK(masks.scalar_type() == ScalarType::Float && candidates.size(0) == count && keep >= 0 && keep <= size,
                  "masks at points: ", keep, " of ", size, " candidates cannot be chosen");
  Tensor chosen = torch::stable::new_empty(candidates, {count, keep, 2});
  if (chosen.numel() == 0) return chosen;
  check_size(height, width);
  const Tensor maps = torch::stable::contiguous(masks), at = torch::stable::contiguous(candidates);
  const MaskKernels& kernels = best_instruction_set().of_masks;
  const float *pixels = floats(maps), *places = floats(at);
  float* to = floats_of(chosen);
  torch::stable::parallel_for(0, count, 1, [&](int64_t begin, int64_t end) {
    std::vector<float> values(size);
    std::vector<int32_t> scratch(3 * size);
    for (int64_t r = begin; r < end; ++r) {
      const float* points = places + 2 * r * size;
      kernels.sample(pixels + r * height * width, height, width, points, size, values.data());
      kernels.least_certain(values.data(), points, size, keep, scratch.data(), to + 2 * r * keep);
    }
  });
  return chosen;
}

// `count` float32 numbers, uniform in [0, 1): the stream of `seed`, whatever the number of threads.
Tensor uniform(int64_t seed, int64_t count) {
  Tensor numbers = torch::stable::empty({count}, ScalarType::Float);
  float* to = floats_of(numbers);
  const auto fill = best_instruction_set().of_masks.fill_uniform;
  in_parallel((count + NUMBERS_AT_ONCE - 1) / NUMBERS_AT_ONCE, [&](int64_t i) {
    fill(uint64_t(seed), i * NUMBERS_AT_ONCE, std::min(count, (i + 1) * NUMBERS_AT_ONCE), to);
  });
  return numbers;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(lowrank_d2, CPU, m) {
  m.impl("masks_at_points", TORCH_BOX(&sample));
  m.impl("masks_at_points_backward", TORCH_BOX(&spread));
  m.impl("least_certain_points", TORCH_BOX(&choose));
}

STABLE_TORCH_LIBRARY_IMPL(lowrank_d2, CompositeExplicitAutograd, m) { m.impl("uniform_numbers", TORCH_BOX(&uniform)); }

}  // namespace lowrank_d2
