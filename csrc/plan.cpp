#include "plan.h"

#include <algorithm>
#include <cstdlib>
#include <initializer_list>
#include <stdexcept>
#include <string>

namespace mixflow {
namespace {

// The strides of `array` along the axes of `batch`, which are zero where it is broadcast. Its last `trailing` axes are
// not axes of the batch.
void broadcast_strides(const Array& array, const Extents& batch, int trailing, const char* name, int64_t* result) {
  std::fill(result, result + batch.count, 0);
  if (array.data == nullptr) return;
  if (array.shape.count < trailing || array.shape.count - trailing > batch.count)
    throw std::invalid_argument(std::string(name) + ": expected at most " + std::to_string(batch.count + trailing) +
                                " axes, got " + std::to_string(array.shape.count));
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

// Whether two operands have the same shape and strides.
bool lie_alike(const Array& a, const Array& b) {
  return a.shape.count == b.shape.count && std::equal(a.shape.value, a.shape.value + a.shape.count, b.shape.value) &&
         std::equal(a.stride.value, a.stride.value + a.shape.count, b.stride.value);
}

// Appends an axis to a space, or merges it with the last one if every operand is even along both.
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
                                " batch axes that are not contiguous with each other, got more");
  axes.axis[axes.count++] = axis;
}

// Sorts axes by the strides of these operands, longest first. Neighbouring lanes and threads then read and write
// neighbouring numbers, even of a transposed tensor.
void sort(Axis* axes, int count, std::initializer_list<Operand> leaders) {
  auto distance = [&](const Axis& axis) {
    int64_t longest = 0;
    for (Operand leader : leaders) longest = std::max(longest, std::abs(axis.stride[leader]));
    return longest;
  };
  for (int i = 1; i < count; ++i)
    for (int j = i; j > 0 && distance(axes[j]) > distance(axes[j - 1]); --j) std::swap(axes[j], axes[j - 1]);
}

// Cuts the outer space into tiles, if neighbouring parameter sets have elements that are far apart.
//
// Lanes usually run along the last axis, in which the rows of parameters are neighbours. In a transposed matrix of many
// columns, the elements along that axis are far apart, and their cache lines are evicted before the neighbours in them
// are read. Then lanes run along the axis in which elements are neighbours instead, `length` at a time, and after that
// along the axes of the parameters. A GPU does not need this, since many threads together move rows of parameters.
void tile(Axis* axes, int& count) {
  constexpr int64_t length = 128, far = 512;
  auto distance = [&](int i) { return std::abs(axes[i].stride[kOutput]); };
  int nearest = count - 1;
  for (int i = 0; i < count; ++i)
    if (axes[i].size > 1 && distance(i) < distance(nearest)) nearest = i;
  if (nearest >= count - 1 || distance(nearest) == 0 || distance(count - 1) < far) return;
  Axis inside = axes[nearest];
  if (inside.size % length == 0 && inside.size > length && count < kMaxAxes) {
    inside.size = length;
    axes[nearest].size /= length;
    for (int64_t& stride : axes[nearest].stride) stride *= length;
    axes[count++] = inside;
  } else {
    std::copy(axes + nearest + 1, axes + count, axes + nearest);
    axes[count - 1] = inside;
  }
}

// The kernels rely on at least one axis.
void finish(Axes& axes) {
  if (axes.count > 0) return;
  axes.count = 1;
  axes.axis[0] = Axis{axes.size, {}};
}

// The parts of rows of (logits, loc, log_scale, shift, log_slope).
struct Parts {
  Array parameters[3];
  void *shift, *log_slope;

  Parts(const Array& rows, Dtype dtype) {
    int64_t numbers = rows.shape.count == 0 ? 0 : rows.shape.back(), components = (numbers - 2) / 3;
    if (components < 1 || numbers != 3 * components + 2)
      throw std::invalid_argument("operands: expected a last axis of length 3 K + 2, got " + std::to_string(numbers));
    int64_t step = rows.stride.back() * (dtype == Dtype::float32 ? sizeof(float) : sizeof(double));
    auto at = [&](int64_t i) { return rows.data == nullptr ? nullptr : static_cast<char*>(rows.data) + i * step; };
    for (int j = 0; j < 3; ++j) {
      parameters[j] = rows;
      parameters[j].data = at(j * components);
      parameters[j].shape.value[rows.shape.count - 1] = components;
    }
    shift = at(3 * components);
    log_slope = at(3 * components + 1);
  }
};

}  // namespace

void set_rows(Call& call, const Array& rows) {
  Parts parts(rows, call.dtype);
  call.logits = parts.parameters[0];
  call.loc = parts.parameters[1];
  call.log_scale = parts.parameters[2];
  call.shift = parts.shift;
  call.log_slope = parts.log_slope;
}

void set_gradient_rows(Call& call, const Array& rows) {
  Parts parts(rows, call.dtype);
  call.grad_logits = parts.parameters[0];
  call.grad_loc = parts.parameters[1];
  call.grad_log_scale = parts.parameters[2];
  call.grad_shift = parts.shift;
  call.grad_log_slope = parts.log_slope;
}

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

  Problem problem{};
  problem.op = call.op;
  problem.dtype = call.dtype;
  problem.family = call.family;
  problem.base = call.base;
  problem.components = static_cast<int>(call.logits.shape.back());
  const Array* parameters[3] = {&call.logits, &call.loc, &call.log_scale};
  for (int j = 0; j < 3; ++j) problem.component_stride[j] = parameters[j]->stride.back();

  // The gradients by the parameters that are wanted have the same strides, so the first of them stands for all.
  const Array* gradients[3] = {&call.grad_logits, &call.grad_loc, &call.grad_log_scale};
  const Array* gradient = *std::find_if(gradients, gradients + 2, [](const Array* g) { return g->data != nullptr; });
  broadcast_strides(*gradient, batch, 1, "grad_logits, grad_loc, grad_log_scale", stride[kGradParameters]);
  for (const Array* other : gradients) {
    if (other->data == nullptr) continue;
    problem.component_stride[kGradParameters - kLogits] = other->stride.back();
    if (!lie_alike(*other, *gradient))
      throw std::invalid_argument("grad_logits, grad_loc, grad_log_scale: expected the same shape and strides in all");
  }

  Axis outer[kMaxDimensions], inner[kMaxDimensions];
  int outer_count = 0, inner_count = 0;
  for (int i = 0; i < batch.count; ++i) {
    Axis axis{batch[i], {}};
    bool is_inner = true;
    for (int j = 0; j < kOperands; ++j) {
      axis.stride[j] = axis.size == 1 ? 0 : stride[j][i];
      if (j >= kLogits) is_inner &= axis.stride[j] == 0;
    }
    (is_inner ? inner[inner_count++] : outer[outer_count++]) = axis;
  }
  // Sets are sorted by their parameters, and the elements of a set by their results: these are most of what is read and
  // written. Where gradients by the parameters are wanted, elements stay in the order of the batch, in which they are
  // summed.
  sort(outer, outer_count, {kLogits, kLoc, kLogScale});
  if (!call.on_gpu) tile(outer, outer_count);
  if (gradient->data == nullptr) sort(inner, inner_count, {call.output.data != nullptr ? kOutput : kInput});
  for (int i = 0; i < outer_count; ++i) append(problem.outer, outer[i]);
  for (int i = 0; i < inner_count; ++i) append(problem.inner, inner[i]);
  finish(problem.outer);
  finish(problem.inner);
  if (call.grad_shift != nullptr && problem.inner.size != 1 && problem.outer.size != 0)
    throw std::invalid_argument("grad_shift, grad_log_slope: expected parameters of which each element has its own");

  problem.input = call.input.data;
  problem.upper = call.upper.data;
  problem.grad_value = call.grad_value.data;
  problem.grad_ladj = call.grad_ladj.data;
  problem.logits = call.logits.data;
  problem.loc = call.loc.data;
  problem.log_scale = call.log_scale.data;
  problem.shift = call.shift;
  problem.log_slope = call.log_slope;
  problem.output = call.output.data;
  problem.ladj = call.ladj.data;
  problem.grad_upper = call.grad_upper.data;
  problem.evaluations = call.evaluations.data;
  problem.residual = call.residual.data;
  problem.slope = call.slope.data;
  problem.ladj_slope = call.ladj_slope.data;
  problem.grad_logits = call.grad_logits.data;
  problem.grad_loc = call.grad_loc.data;
  problem.grad_log_scale = call.grad_log_scale.data;
  problem.grad_shift = call.grad_shift;
  problem.grad_log_slope = call.grad_log_slope;
  return problem;
}

}  // namespace mixflow
