// What one call of an op is: pointers, strides and sizes, free of torch, numpy and of any instruction set.
//
// The batch axes of all operands are broadcast, those along which no parameter varies ("inner": one parameter set
// serves them all) are separated from the others ("outer"), and neighbouring axes that every operand walks evenly are
// merged. The kernels then know two index spaces only.
//
// Where no sum depends on their order, the axes of a space stand in the order in which its numbers lie in memory.
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

enum class Op { forward, forward_with_slopes, backward, inverse, inverse_backward, interval, interval_backward };
enum class Dtype { float32, float64 };

// Operands that are read or written per element, and the parameters with their gradients.
enum Operand {
  kInput,
  kUpper,
  kGradValue,
  kGradLadj,
  kOutput,
  kLadj,
  kGradUpper,
  kLogits,
  kLoc,
  kLogScale,
  kGradParameters,
  kOperands
};

MIXFLOW_HOST_DEVICE constexpr bool is_backward(Op op) {
  return op == Op::backward || op == Op::inverse_backward || op == Op::interval_backward;
}

constexpr int kMaxAxes = 16;
constexpr int64_t kMaxComponents = 1 << 24;

struct Axis {
  int64_t size;
  int64_t stride[kOperands];  // in elements
};

struct Axes {
  int count = 0;  // 1 at least, once make_problem is done
  int64_t size = 1;
  Axis axis[kMaxAxes];

  // Offsets of the flat (row-major) index, for the operands of which `wanted(operand)` is true; the others are left
  // alone. One division for each axis but the first, whatever the number of operands.
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

  // index % size; index becomes index / size. A GPU divides 32 bits in twenty instructions, and 64 bits in a hundred.
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
  int family, base;
  int components;
  Axes outer, inner;
  int64_t component_stride[kOperands - kLogits];  // of logits, loc, log_scale and of the gradients by them
  // input: x, z or the lower edge; upper: the upper edge (interval ops only); grad_value, grad_ladj: incoming gradients
  // of the outputs (backward ops only)
  const void *input, *upper, *grad_value, *grad_ladj;
  const void *logits, *loc, *log_scale;
  // An affine map after the mixture's (affine.h), or null: one number for each parameter set, beside the logits and
  // strided like them. In the backward ops a set then serves one element.
  const void *shift, *log_slope;
  // output: z, x, the log-probability, or the gradient of the input; ladj: of maps, forward and inverse; grad_upper:
  // interval backward only. The gradients, output and grad_upper, may be null: not wanted.
  void *output, *ladj, *grad_upper;
  // inverse only, null or shaped like ladj: the number of evaluations and the residual left, for tests and benchmarks
  void *evaluations, *residual;
  // forward_with_slopes only, shaped like ladj: dz/dx and dladj/dx
  void *slope, *ladj_slope;
  // backward ops only, each null where it is not wanted: the gradients by the parameters, and by shift and log_slope
  void *grad_logits, *grad_loc, *grad_log_scale, *grad_shift, *grad_log_slope;

  // No elements: nothing is to be done, and operands need have no memory. There may be parameters all the same.
  bool is_empty() const { return outer.size == 0 || inner.size == 0; }
  MIXFLOW_HOST_DEVICE bool is_affine() const { return shift != nullptr; }
  // Whether any gradient by the mixture's parameters is wanted.
  MIXFLOW_HOST_DEVICE bool has_parameter_gradients() const {
    return grad_logits != nullptr || grad_loc != nullptr || grad_log_scale != nullptr;
  }
  MIXFLOW_HOST_DEVICE void* gradient(int parameter) const {
    return parameter == 0 ? grad_logits : parameter == 1 ? grad_loc : grad_log_scale;
  }
};

}  // namespace mixflow
