// A Problem is one call of an op, as pointers, strides and sizes. It depends neither on torch and numpy nor on an
// instruction set.
//
// The kernels see two index spaces, whatever the shapes and strides of a call. The batch axes of all operands are
// broadcast. The axes along which no parameter varies are the inner space: one parameter set serves all elements along
// them. The others are the outer space, which has an index for each parameter set. Neighbouring axes are merged if
// every operand is even along both. The axes of a space stand in the order in which its numbers lie in memory, unless a
// sum depends on their order.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define MIXFLOW_HOST_DEVICE __host__ __device__
#define MIXFLOW_OUT_OF_LINE __noinline__
#else
#define MIXFLOW_HOST_DEVICE
#define MIXFLOW_OUT_OF_LINE
#endif

namespace mixflow {

enum class Dtype { float32, float64 };
enum class Op { forward, forward_with_slopes, backward, inverse, inverse_backward, interval, interval_backward };

struct NamedOp {
  Op op;
  const char* name;
};
constexpr NamedOp kOps[] = {{Op::forward, "forward"},
                            {Op::forward_with_slopes, "forward_with_slopes"},
                            {Op::backward, "backward"},
                            {Op::inverse, "inverse"},
                            {Op::inverse_backward, "inverse_backward"},
                            {Op::interval, "interval"},
                            {Op::interval_backward, "interval_backward"}};

inline const char* name_of(Op op) {
  for (const NamedOp& named : kOps)
    if (named.op == op) return named.name;
  return "";
}

MIXFLOW_HOST_DEVICE constexpr bool is_backward(Op op) {
  return op == Op::backward || op == Op::inverse_backward || op == Op::interval_backward;
}
MIXFLOW_HOST_DEVICE constexpr bool is_on_intervals(Op op) {
  return op == Op::interval || op == Op::interval_backward;
}

// The operands that have strides of their own. Other operands have the strides of one of these (see Problem).
enum Operand {
  // of the elements
  kInput,
  kUpper,
  kGradValue,
  kGradLadj,
  kOutput,
  kLadj,
  kGradUpper,
  // of the parameter sets
  kLogits,
  kLoc,
  kLogScale,
  kGradParameters,
  kOperands
};

constexpr int kMaxAxes = 16;
constexpr int64_t kMaxComponents = 1 << 24;

struct Axis {
  int64_t size;
  int64_t stride[kOperands];  // in elements
};

struct Axes {
  int count = 0;  // at least 1 in a Problem
  int64_t size = 1;
  Axis axis[kMaxAxes];

  // The offset at an index, for each operand for which wanted(operand) is true. The others are left alone. The last
  // axis runs fastest. This takes a division for each axis except the first, whatever the number of operands.
  template <class Wanted>
  MIXFLOW_HOST_DEVICE void offsets(int64_t index, Wanted wanted, int64_t (&result)[kOperands]) const {
    if (count == 1) {
      for (int j = 0; j < kOperands; ++j)
        if (wanted(static_cast<Operand>(j))) result[j] = index * axis[0].stride[j];
      return;
    }
    for (int j = 0; j < kOperands; ++j)
      if (wanted(static_cast<Operand>(j))) result[j] = 0;
    for (int i = count - 1; i >= 0; --i) {
      int64_t along = i == 0 ? index : remainder(index, axis[i].size);
      for (int j = 0; j < kOperands; ++j)
        if (wanted(static_cast<Operand>(j))) result[j] += along * axis[i].stride[j];
    }
  }
  MIXFLOW_HOST_DEVICE int64_t offset(int64_t index, Operand operand) const {
    int64_t result[kOperands];
    offsets(index, [operand](Operand other) { return other == operand; }, result);
    return result[operand];
  }

  // Returns index % size, and sets index to index / size. A GPU takes twenty instructions to divide numbers of 32 bits,
  // and a hundred for 64 bits.
  static MIXFLOW_HOST_DEVICE int64_t remainder(int64_t& index, int64_t size) {
    int64_t whole = static_cast<uint64_t>(index | size) >> 32 == 0
                        ? static_cast<uint32_t>(index) / static_cast<uint32_t>(size)
                        : long_quotient(index, size);
    int64_t rest = index - whole * size;
    index = whole;
    return rest;
  }
  static MIXFLOW_HOST_DEVICE MIXFLOW_OUT_OF_LINE int64_t long_quotient(int64_t index, int64_t size) {
    return index / size;
  }
};

struct Problem {
  Op op;
  Dtype dtype;
  int family, base;  // indices in MIXFLOW_FAMILIES and MIXFLOW_BASES
  int components;
  Axes outer, inner;
  // From one component to the next: of logits, loc, log_scale, and of the gradients by the parameters.
  int64_t component_stride[kOperands - kLogits];

  // x, z, or the lower edges of intervals; their upper edges (interval ops)
  const void *input, *upper;
  // The gradients of the outputs (backward ops)
  const void *grad_value, *grad_ladj;
  const void *logits, *loc, *log_scale;
  // An affine map after the mixture's map (affine.h), or null: a number for each parameter set, with the strides of the
  // logits. In the backward ops a set then serves a single element.
  const void *shift, *log_slope;

  // Results. Those that may be null are gradients, which are not wanted then, and diagnostics.
  void* output;                  // z, x, the log-probability, or the gradient by `input`
  void* ladj;                    // forward and inverse
  void* grad_upper;              // interval_backward
  void *evaluations, *residual;  // inverse, with the strides of ladj: diagnostics for tests and benchmarks
  void *slope, *ladj_slope;      // forward_with_slopes, with the strides of ladj: dz/dx and dladj/dx
  void *grad_logits, *grad_loc, *grad_log_scale;  // backward ops
  void *grad_shift, *grad_log_slope;  // backward ops of an affine map, with the strides of the gradients above

  // Whether there are no elements. Then nothing is to be done, and operands may have no memory. There may be
  // parameters.
  bool is_empty() const { return outer.size == 0 || inner.size == 0; }
  MIXFLOW_HOST_DEVICE bool is_affine() const { return shift != nullptr; }
  // Whether a gradient by the mixture's parameters is wanted.
  MIXFLOW_HOST_DEVICE bool has_parameter_gradients() const {
    return grad_logits != nullptr || grad_loc != nullptr || grad_log_scale != nullptr;
  }
  // The gradient by logits (0), loc (1) or log_scale (2).
  MIXFLOW_HOST_DEVICE void* gradient(int parameter) const {
    return parameter == 0 ? grad_logits : parameter == 1 ? grad_loc : grad_log_scale;
  }
};

}  // namespace mixflow
