// What one call of an op is: pointers, strides and sizes, free of torch, numpy and of any instruction set.
//
// The batch axes of all operands are broadcast, those along which no parameter varies ("inner": one parameter set
// serves them all) are separated from the others ("outer"), and neighbouring axes that every operand walks evenly are
// merged. The kernels then know two index spaces only.
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

enum class Op { forward, backward, inverse, inverse_backward, interval, interval_backward };
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

constexpr int kMaxAxes = 16;
constexpr int64_t kMaxComponents = 1 << 24;

struct Axis {
  int64_t size;
  int64_t stride[kOperands];  // in elements
};

struct Axes {
  int count = 0;
  int64_t size = 1;
  Axis axis[kMaxAxes];

  // Offset of the flat (row-major) index for one operand.
  MIXFLOW_HOST_DEVICE int64_t offset(int64_t index, Operand operand) const {
    return count == 1 ? index * axis[0].stride[operand] : general_offset(index, operand);
  }
  // A GPU divides in a hundred instructions, and kernels ask for the offsets of many operands.
  MIXFLOW_HOST_DEVICE MIXFLOW_OUT_OF_LINE int64_t general_offset(int64_t index, Operand operand) const {
    int64_t result = 0;
    for (int i = count - 1; i >= 0; --i) {
      result += index % axis[i].size * axis[i].stride[operand];
      index /= axis[i].size;
    }
    return result;
  }
};

struct Problem {
  Op op;
  Dtype dtype;
  int family, base;
  int components;
  Axes outer, inner;
  int64_t component_stride[3];  // of logits, loc, log_scale
  // input: x, z or the lower edge; upper: the upper edge (interval ops only); grad_value, grad_ladj: incoming gradients
  // of the outputs (backward ops only)
  const void *input, *upper, *grad_value, *grad_ladj;
  const void *logits, *loc, *log_scale;
  // output: z, x, the log-probability, or the gradient of the input; ladj: forward and inverse only; grad_upper:
  // interval backward only
  void *output, *ladj, *grad_upper;
  // inverse only, null or shaped like ladj: the number of evaluations and the residual left, for tests and benchmarks
  void *evaluations, *residual;
  // gradients of the parameters, contiguous, (outer..., components): backward ops only
  void *grad_logits, *grad_loc, *grad_log_scale;

  // No elements: nothing is to be done, and operands need have no memory. There may be parameters all the same.
  bool is_empty() const { return outer.size == 0 || inner.size == 0; }
};

MIXFLOW_HOST_DEVICE constexpr bool is_backward(Op op) {
  return op == Op::backward || op == Op::inverse_backward || op == Op::interval_backward;
}

}  // namespace mixflow
