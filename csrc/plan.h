// From the shapes and strides of a call to the index spaces of a Problem.
#pragma once

#include <vector>

#include "problem.h"

namespace mixflow {

// What the caller knows of one operand: where it is, its shape and its strides in elements. Parameters and their
// gradients have the component axis last.
struct Array {
  void* data = nullptr;
  std::vector<int64_t> shape, stride;
};

struct Call {
  Op op;
  Dtype dtype;
  int family, base;
  Array input, grad_value, grad_ladj;
  Array logits, loc, log_scale;
  Array output, ladj, evaluations, residual;  // the last two only for a diagnosed inverse, strided like ladj
  Array grad_logits, grad_loc, grad_log_scale;
};

// Throws std::invalid_argument where shapes do not broadcast, and where the batch has more than kMaxAxes axes that can
// not be merged. Outputs have the broadcast batch shape; gradients of parameters have the parameters' own broadcast
// shape and are contiguous.
Problem make_problem(const Call& call);

}  // namespace mixflow
