// What one call of the operator computes, in plain types: the interface between the dispatcher (compiled once) and the
// kernels (compiled once per instruction set). No function with a body may stand here: the linker could choose the copy
// that was compiled for an instruction set which this machine lacks.
#pragma once
#include <cstddef>
#include <cstdint>

namespace lowrank_d2 {

// Integers as wide as T, so that a vector of one has as many lanes as a vector of the other.
template <typename T> struct IntegerOf;
template <> struct IntegerOf<float> { using type = int32_t; };
template <> struct IntegerOf<double> { using type = int64_t; };
template <typename T> using Integer = typename IntegerOf<T>::type;

// A map of H x W cells becomes (H + 3) rows of W + 1 cells, and one cell more: two empty rows above, one below, one empty
// cell before every row, which also ends the row before. The four corners of any point near the map are then cells of
// it, and a point that is far away can be sent to the upper left corner, where it reads four zeros.
struct Level {
  int64_t height, width;
  int64_t start;   // first of its cells in `value`
  int64_t origin;  // first of its cells in a padded head
};

// N images, S cells, Q queries, M heads of D channels, L levels, P points; all tensors contiguous.
template <typename T>
struct Problem {
  int64_t images, cells, queries, heads, channels, levels, points;
  const Level* level;    // L, and a last one whose origin is the size of a padded head
  // Of the level that each of the K = L * P points of a query reads; K rounded up to PADDING, the rest reads nothing.
  const T* width;
  const T* height;
  const Integer<T>* origin;

  const T* value;    // (N, S, M, D)
  const T* places;   // (N, Q, M, L, P, 2): locations; offsets where there is a reference
  const T* weights;  // (N, Q, M, L, P): attention weights; logits where there is a reference

  const T* reference;                                              // null, or rows of 2 (points) or 4 (boxes)
  int64_t reference_size, reference_image, reference_query, reference_level;  // size of a row, strides

  const T* grad_out;  // (N, Q, M, D)
  T* out;             // as grad_out
  T* grad_value;      // as value; all zeros when not `packed`
  T* grad_places;     // as places
  T* grad_weights;    // as weights

  bool packed;  // copy a head into padded maps first; pays when its cells are read many times
};

constexpr int64_t PADDING = 16;

// Every function needs `scratch` bytes of its own, aligned to 64.
template <typename T>
struct Kernels {
  size_t (*scratch)(const Problem<T>&);
  // `out` of queries [begin, end).
  void (*forward)(const Problem<T>&, int64_t image, int64_t head, int64_t begin, int64_t end, char* scratch);
  // `grad_places` and `grad_weights` of queries [begin, end).
  void (*backward_points)(const Problem<T>&, int64_t image, int64_t head, int64_t begin, int64_t end, char* scratch);
  // `grad_value` of levels [begin, end), in which it visits all queries in order.
  void (*backward_value)(const Problem<T>&, int64_t image, int64_t head, int64_t begin, int64_t end, char* scratch);
  int lanes;  // of a vector; without packing, the channels must be a multiple
};

// Masks at points, see masks.h.
struct MaskKernels {
  void (*sample)(const float* mask, int32_t height, int32_t width, const float* points, int64_t count, float* values);
  void (*sample_bool)(const uint8_t* mask, int32_t height, int32_t width, const float* points, int64_t count, float* values);
  void (*spread)(const float* grad, int32_t height, int32_t width, const float* points, int64_t count, float* mask);
  void (*least_certain)(const float* values, const float* points, int64_t count, int64_t keep, int32_t* scratch, float* chosen);
  void (*fill_uniform)(uint64_t seed, int64_t begin, int64_t end, float* numbers);
};

struct InstructionSet {
  Kernels<float> of_float;
  Kernels<double> of_double;
  MaskKernels of_masks;
};

extern const InstructionSet baseline;
extern const InstructionSet avx2;
extern const InstructionSet avx512;

const InstructionSet& best_instruction_set();  // of this machine, or the one that was asked for

}  // namespace lowrank_d2
