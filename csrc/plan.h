// From the shapes and strides of a call to the index spaces of a Problem.
#pragma once

#include "problem.h"

namespace mixflow {

// A shape or strides, without an allocation: a call of a few elements should not spend its time on those.
constexpr int kMaxDimensions = 64;  // as in torch
struct Extents {
  int count = 0;
  int64_t value[kMaxDimensions];

  int64_t operator[](int i) const { return value[i]; }
  int64_t back() const { return value[count - 1]; }
};

// What the caller knows of one operand: where it is, its shape and its strides in elements. Parameters and their
// gradients have the component axis last, wherever it lies in memory.
struct Array {
  void* data = nullptr;
  Extents shape, stride;
};

struct Call {
  Op op;
  Dtype dtype;
  int family, base;
  bool on_gpu = false;
  Array input, upper, grad_value, grad_ladj;
  Array logits, loc, log_scale;
  // evaluations and residual are those of a diagnosed inverse, slope and ladj_slope of a forward map with slopes: all
  // strided like ladj.
  Array output, ladj, grad_upper, evaluations, residual, slope, ladj_slope;
  Array grad_logits, grad_loc, grad_log_scale;
  // Of an affine map after the mixture's: strided like logits, and like the gradients by the parameters.
  const void *shift = nullptr, *log_slope = nullptr;
  void *grad_shift = nullptr, *grad_log_slope = nullptr;
};

// Parameters, or gradients, in rows of (logits, loc, log_scale, shift, log_slope), 3 K + 2 numbers in all, as a network
// puts them out. The dtype of the call is set. Throws std::invalid_argument for rows of another length.
void set_rows(Call& call, const Array& rows);
void set_gradient_rows(Call& call, const Array& rows);

// Outputs have the broadcast batch shape, and any strides; so do the gradients by the parameters, of the parameters'
// own broadcast shape. A gradient without memory is not wanted; `output` has the batch's shape even so. Throws
// std::invalid_argument where shapes do not broadcast, and where the batch has more than kMaxAxes axes that can not be
// merged.
Problem make_problem(const Call& call);

}  // namespace mixflow
