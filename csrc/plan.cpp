#include "plan.h"

#include <algorithm>
#include <stdexcept>
#include <string>

namespace mixflow {
namespace {

// Strides of `array` along the axes of `batch`, zero where it is broadcast; `trailing` axes of the array are not part
// of the batch.
void broadcast_strides(const Array& array, const Extents& batch, int trailing, const char* name, int64_t* result) {
  std::fill(result, result + batch.count, 0);
  if (array.data == nullptr) return;
  if (array.shape.count < trailing || array.shape.count - trailing > batch.count)
    throw std::invalid_argument(std::string(name) + ": expected at most " + std::to_string(batch.count + trailing) +
                                " axes; got " + std::to_string(array.shape.count));
  int own = array.shape.count - trailing, skipped = batch.count - own;
  for (int i = 0; i < own; ++i) {
    if (array.shape[i] == 1) continue;
    if (array.shape[i] != batch[skipped + i])
      throw std::invalid_argument(std::string(name) + ": axis " + std::to_string(i) + " of length " +
                                  std::to_string(array.shape[i]) + " does not broadcast to length " +
                                  std::to_string(batch[skipped + i]));
    result[skipped + i] = array.stride[i];
  }
}

void append(Axes& axes, const Axis& axis) {
  axes.size *= axis.size;
  if (axis.size == 1) return;
  if (axes.count > 0) {
    Axis& last = axes.axis[axes.count - 1];
    bool even = true;
    for (int j = 0; j < kOperands; ++j) even &= last.stride[j] == axis.stride[j] * axis.size;
    if (even) {
      last.size *= axis.size;
      std::copy(axis.stride, axis.stride + kOperands, last.stride);
      return;
    }
  }
  if (axes.count == kMaxAxes)
    throw std::invalid_argument("x: expected at most " + std::to_string(kMaxAxes) +
                                " batch axes that are not contiguous with each other; got more");
  axes.axis[axes.count++] = axis;
}

// The kernels read axis 0 of one-dimensional spaces without asking.
void finish(Axes& axes) {
  if (axes.count > 0) return;
  axes.count = 1;
  axes.axis[0] = Axis{axes.size, {}};
}

}  // namespace

Problem make_problem(const Call& call) {
  const Extents& batch = call.output.shape;
  int64_t stride[kOperands][kMaxDimensions];
  broadcast_strides(call.input, batch, 0, "input", stride[kInput]);
  broadcast_strides(call.upper, batch, 0, "upper", stride[kUpper]);
  broadcast_strides(call.grad_value, batch, 0, "grad_value", stride[kGradValue]);
  broadcast_strides(call.grad_ladj, batch, 0, "grad_ladj", stride[kGradLadj]);
  broadcast_strides(call.output, batch, 0, "output", stride[kOutput]);
  broadcast_strides(call.ladj, batch, 0, "ladj", stride[kLadj]);
  broadcast_strides(call.grad_upper, batch, 0, "grad_upper", stride[kGradUpper]);
  broadcast_strides(call.logits, batch, 1, "logits", stride[kLogits]);
  broadcast_strides(call.loc, batch, 1, "loc", stride[kLoc]);
  broadcast_strides(call.log_scale, batch, 1, "log_scale", stride[kLogScale]);
  broadcast_strides(call.grad_logits, batch, 1, "grad_logits", stride[kGradParameters]);

  Problem problem{};
  problem.op = call.op;
  problem.dtype = call.dtype;
  problem.family = call.family;
  problem.base = call.base;
  const Array* parameters[3] = {&call.logits, &call.loc, &call.log_scale};
  for (int j = 0; j < 3; ++j) {
    problem.components = static_cast<int>(parameters[0]->shape.back());
    problem.component_stride[j] = parameters[j]->stride.back();
  }
  for (int i = 0; i < batch.count; ++i) {
    Axis axis{batch[i], {}};
    bool shared = true;
    for (int j = 0; j < kOperands; ++j) {
      axis.stride[j] = stride[j][i];
      if (j >= kLogits) shared &= axis.stride[j] == 0;
    }
    append(shared ? problem.inner : problem.outer, axis);
  }
  finish(problem.outer);
  finish(problem.inner);

  problem.input = call.input.data;
  problem.upper = call.upper.data;
  problem.grad_value = call.grad_value.data;
  problem.grad_ladj = call.grad_ladj.data;
  problem.logits = call.logits.data;
  problem.loc = call.loc.data;
  problem.log_scale = call.log_scale.data;
  problem.output = call.output.data;
  problem.ladj = call.ladj.data;
  problem.grad_upper = call.grad_upper.data;
  problem.evaluations = call.evaluations.data;
  problem.residual = call.residual.data;
  problem.grad_logits = call.grad_logits.data;
  problem.grad_loc = call.grad_loc.data;
  problem.grad_log_scale = call.grad_log_scale.data;
  return problem;
}

}  // namespace mixflow
