// Random calls of the kernels, for the programs of this folder: with any shapes, strides, broadcasts and values, among
// them infinities and NaN.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <stdexcept>
#include <vector>

#include "names.h"
#include "plan.h"
#include "tensors.h"

namespace mixflow {

// The shape of an operand that is broadcast to the batch: leading axes may be missing, and others may have length 1.
inline Shape part_of(Random& random, const Shape& batch, double broadcast) {
  size_t missing = random.chance(broadcast) ? random.below(static_cast<int64_t>(batch.size()) + 1) : 0;
  Shape shape(batch.begin() + missing, batch.end());
  for (int64_t& size : shape)
    if (random.chance(broadcast)) size = 1;
  return shape;
}

struct Case {
  Op op;
  Dtype dtype;
  int family, base;
  Shape batch;
  Tensor input, upper, grad_value, grad_ladj, parameters[3];
  // A map with an affine map after it has rows of 3 K + 2 numbers in place of parameters.
  bool is_affine = false;
  Tensor rows;
  // Which gradients are wanted: by the input, the upper edge and the parameters.
  bool input_wanted = true, upper_wanted = true, wanted[3] = {true, true, true};

  // Whether an element has no incoming gradient at all.
  bool is_idle(const Shape& index) const {
    auto is_zero = [&](const Tensor& seed) { return seed.get(seed.offset(batch, index, 0)) == 0; };
    return is_backward(op) && is_zero(grad_value) && (is_interval() || is_zero(grad_ladj));
  }

  bool is_interval() const { return is_on_intervals(op); }
  bool is_map() const { return op == Op::forward || op == Op::inverse || op == Op::forward_with_slopes; }

  Shape gradient_shape() const {
    Shape shape(1, parameters[0].shape.back());
    for (const Tensor& parameter : parameters) {
      shape.insert(shape.begin(), std::max(parameter.shape.size(), shape.size()) - shape.size(), 1);
      for (size_t i = 1; i <= parameter.shape.size(); ++i)
        if (parameter.shape[parameter.shape.size() - i] != 1)
          shape[shape.size() - i] = parameter.shape[parameter.shape.size() - i];
    }
    return shape;
  }
  // The same call on contiguous operands.
  Case compacted() const {
    Case result = *this;
    for (Tensor* operand : {&result.input, &result.upper, &result.grad_value, &result.grad_ladj})
      *operand = compact(*operand);
    for (Tensor& parameter : result.parameters)
      if (!is_affine) parameter = compact(parameter);
    if (is_affine) result.rows = compact(rows);
    return result;
  }
};

// The same call with NaN and infinities in every element without an incoming gradient, and in some of the parameters
// that no other element uses. No gradient may depend on those.
inline Case poisoned(Random& random, const Case& from) {
  constexpr double infinity = std::numeric_limits<double>::infinity();
  auto poison = [&] { return random.of({std::nan(""), infinity, -infinity}); };
  Case result = from;
  result.input = expanded(from.input, from.batch);
  result.upper = expanded(from.upper, from.batch);
  int64_t i = 0;
  for_elements(from.batch, [&](const Shape& index) {
    if (from.is_idle(index))
      for (Tensor* edge : {&result.input, &result.upper}) edge->set(i, poison());
    ++i;
  });
  std::vector<Tensor*> parameters{&result.parameters[0], &result.parameters[1], &result.parameters[2]};
  if (from.is_affine) parameters = {&result.rows};
  for (Tensor* parameter : parameters) {
    *parameter = cloned(*parameter);
    std::vector<bool> used(parameter->numbers);
    for_elements(from.batch, [&](const Shape& index) {
      int64_t first = parameter->offset(from.batch, index, 1);
      for (int64_t k = 0; k < parameter->shape.back() && !from.is_idle(index); ++k)
        used[first + k * parameter->stride.back()] = true;
    });
    for (int64_t number = 0; number < parameter->numbers; ++number)
      if (!used[number] && random.chance(0.5)) parameter->set(number, poison());
  }
  return result;
}

inline Case make_case(Random& random) {
  Case made;
  made.op = random.of({Op::forward, Op::forward_with_slopes, Op::backward, Op::inverse, Op::inverse_backward,
                       Op::interval, Op::interval_backward});
  made.dtype = random.of({Dtype::float32, Dtype::float64});
  made.family = static_cast<int>(random.below(static_cast<int64_t>(family_names().size())));
  made.base = static_cast<int>(random.below(static_cast<int64_t>(base_names().size())));
  int64_t components = random.of<int64_t>({1, 2, 3, 4, 5, 8, 8, 9, 16, 33, 65, 130, 600});
  int64_t room = 100 + (random.chance(0.05) ? 300000 : 6000) / components;
  int64_t axes = random.chance(0.02) ? random.below(20) : random.below(5);
  for (int64_t i = 0; i < axes; ++i) {
    int64_t size = axes > 5 ? 1 + random.below(2)
                            : random.of<int64_t>({1, 2, 3, 4, 7, 8, 15, 16, 17, 33, 100, 130, 256, 700, 9000});
    if (random.chance(0.01)) size = 0;
    if (size > room) size = 1;
    made.batch.push_back(size);
    room /= std::max<int64_t>(size, 1);
  }
  double extremes = random.of({0.0, 0.0, 0.02, 0.3}), broadcast = random.of({0.0, 0.2, 0.8, 1.0});
  bool probability = made.base == 2 && made.op == Op::inverse;
  made.input = scattered(random, made.dtype, part_of(random, made.batch, 0.1),
                         probability ? Kind::probability : Kind::element, extremes);
  made.upper = scattered(random, made.dtype, part_of(random, made.batch, 0.1), Kind::upper, extremes);
  for (Tensor* gradient : {&made.grad_value, &made.grad_ladj})
    *gradient = scattered(random, made.dtype, part_of(random, made.batch, random.of({0.0, 0.0, 1.0})), Kind::gradient,
                          extremes);
  if (random.chance(0.3)) {
    double share = random.of({0.3, 0.8, 0.99});
    for (Tensor* gradient : {&made.grad_value, &made.grad_ladj})
      for (int64_t i = 0; i < gradient->numbers; ++i)
        if (random.chance(share)) gradient->set(i, random.of({0.0, -0.0}));
  }
  Kind kinds[3] = {Kind::logit, Kind::loc, Kind::log_scale};
  Shape shape = part_of(random, made.batch, broadcast);
  made.is_affine = !made.is_interval() && made.op != Op::forward_with_slopes && random.chance(0.3);
  if (made.is_affine) {
    shape.push_back(3 * components + 2);
    made.rows = scattered(random, made.dtype, shape, Kind::logit, extremes);
  } else {
    for (int j = 0; j < 3; ++j) {
      if (random.chance(0.2)) shape = part_of(random, made.batch, broadcast);
      Shape whole = shape;
      whole.push_back(components);
      made.parameters[j] = scattered(random, made.dtype, whole, kinds[j], extremes);
    }
  }
  if (random.chance(0.3)) {
    made.input_wanted = random.chance(0.6);
    made.upper_wanted = random.chance(0.6);
    for (bool& wanted : made.wanted) wanted = random.chance(0.4);
    if (made.is_affine && random.chance(0.5)) std::fill(made.wanted, made.wanted + 3, false);
  }
  return made;
}

// The outputs of a call, without those that are not wanted. Their order is: the value, or the gradient of the input;
// ladj, then evaluations and residual, or slopes; the gradient of the upper edge; the gradients of the parameters, or
// of rows. All but the last belong to the elements. Outputs are contiguous, or, given `random`, have any strides.
struct Outputs {
  std::vector<Tensor> all;
  size_t by_element = 0;
  Call call;

  Outputs(const Case& from, bool diagnosed, Random* random = nullptr) {
    call.op = from.op;
    call.dtype = from.dtype;
    call.family = from.family;
    call.base = from.base;
    call.input = from.input.array();
    if (from.is_affine) {
      set_rows(call, from.rows.array());
    } else {
      call.logits = from.parameters[0].array();
      call.loc = from.parameters[1].array();
      call.log_scale = from.parameters[2].array();
    }
    auto element = [&] { return blank(random, from.dtype, from.batch); };
    bool backward = is_backward(from.op);
    call.output = contiguous(from.dtype, from.batch).array();
    call.output.data = nullptr;
    if (!backward || from.input_wanted) add(element(), call.output);
    if (from.is_interval()) call.upper = from.upper.array();
    if (from.op == Op::interval_backward && from.upper_wanted) add(element(), call.grad_upper);
    if (from.is_map()) {
      add(element(), call.ladj);
      Tensor alike = all.back();
      auto add_alike = [&](Array& array) {
        Tensor other = alike;
        other.allocate();
        add(other, array);
      };
      if (from.op == Op::forward_with_slopes)
        for (Array* extra : {&call.slope, &call.ladj_slope}) add_alike(*extra);
      if (diagnosed)
        for (Array* extra : {&call.evaluations, &call.residual}) add_alike(*extra);
    }
    by_element = all.size();
    if (!backward) return;
    call.grad_value = from.grad_value.array();
    if (!from.is_interval()) call.grad_ladj = from.grad_ladj.array();
    if (from.is_affine) {
      Shape shape = from.batch;
      shape.push_back(from.rows.shape.back());
      Array rows;
      if (from.wanted[0]) {
        add(blank(random, from.dtype, shape), rows);
        set_gradient_rows(call, rows);
      }
      return;
    }
    Tensor alike = blank(random, from.dtype, from.gradient_shape());
    Array* gradients[3] = {&call.grad_logits, &call.grad_loc, &call.grad_log_scale};
    for (int j = 0; j < 3; ++j) {
      if (!from.wanted[j]) continue;
      Tensor own = alike;
      own.allocate();
      add(own, *gradients[j]);
    }
  }
  bool are_written() const {
    for (const Tensor& output : all)
      if (!output.is_written()) return false;
    return true;
  }

 private:
  void add(Tensor operand, Array& array) {
    array = operand.array();
    all.push_back(std::move(operand));
  }
};

struct Failure : std::runtime_error {
  using std::runtime_error::runtime_error;
};

inline void require(bool holds, const char* what) {
  if (!holds) throw Failure(what);
}

inline bool is_refused(const Call& call) {
  try {
    make_problem(call);
  } catch (const std::invalid_argument&) {
    return true;
  }
  return false;
}

// Checks that an element of the batch, with its parameters, gives the same bits alone. run(call) makes the call.
template <class Run>
void check_alone(Random& random, const Case& from, const Outputs& whole, bool diagnosed, Run run) {
  int64_t position = random.below(count(from.batch)), rest = position;
  Shape index(from.batch.size());
  for (size_t i = index.size(); i-- > 0; rest /= from.batch[i]) index[i] = rest % from.batch[i];
  Case alone = from;
  alone.batch.clear();
  alone.input = from.input.element(from.input.offset(from.batch, index, 0));
  alone.upper = from.upper.element(from.upper.offset(from.batch, index, 0));
  alone.grad_value = from.grad_value.element(from.grad_value.offset(from.batch, index, 0));
  alone.grad_ladj = from.grad_ladj.element(from.grad_ladj.offset(from.batch, index, 0));
  for (int j = 0; j < 3 && !from.is_affine; ++j)
    alone.parameters[j] = from.parameters[j].row(from.parameters[j].offset(from.batch, index, 1));
  if (from.is_affine) alone.rows = from.rows.row(from.rows.offset(from.batch, index, 1));
  Outputs single(alone, diagnosed);
  run(single.call);
  for (size_t i = 0; i < whole.by_element; ++i)
    require(single.all[i].same(0, whole.all[i], whole.all[i].place(position)),
            "an element alone differs from itself in the batch");
}

}  // namespace mixflow
