// From the shapes and strides of a call to the index spaces of a Problem (problem.h).
#pragma once

#include "problem.h"

namespace mixflow {

// A shape or strides. It allocates no memory, which a call of a few elements would spend much of its time on.
constexpr int kMaxDimensions = 64;  // as in torch
struct Extents {
  int count = 0;
  int64_t value[kMaxDimensions];

  int64_t operator[](int i) const { return value[i]; }
  int64_t back() const { return value[count - 1]; }
};

// An operand as the caller has it: its address, its shape, and its strides in elements. The last axis of a parameter,
// and of the gradient by a parameter, is the axis of components.
struct Array {
  void* data = nullptr;
  Extents shape, stride;
};

// One call of an op. The members have the meaning of those of Problem.
struct Call {
  Op op;
  Dtype dtype;
  int family, base;
  bool on_gpu = false;
  Array input, upper, grad_value, grad_ladj;
  Array logits, loc, log_scale;
  // evaluations, residual, slope and ladj_slope have the strides of ladj.
  Array output, ladj, grad_upper, evaluations, residual, slope, ladj_slope;
  Array grad_logits, grad_loc, grad_log_scale;
  // The strides of shift and log_slope are those of the logits, and the strides of their gradients those of
  // grad_logits.
  const void *shift = nullptr, *log_slope = nullptr;
  void *grad_shift = nullptr, *grad_log_slope = nullptr;
};

// Sets the parameters of a call, or its gradients, from rows of (logits, loc, log_scale, shift, log_slope), each of 3 K
// + 2 numbers, as a network puts them out. The dtype of the call must be set. Throws std::invalid_argument for rows of
// another length.
void set_rows(Call& call, const Array& rows);
void set_gradient_rows(Call& call, const Array& rows);

// `output` has the shape of the batch, to which all operands broadcast. The gradients by the parameters have the
// broadcast shape of the parameters. All may have any strides. A gradient that is not wanted has a null address;
// `output` has the shape of the batch even then. Throws std::invalid_argument if shapes do not broadcast, or if the
// batch has more than kMaxAxes axes that cannot be merged.
Problem make_problem(const Call& call);

}  // namespace mixflow
