// The elements of a pack through one op.
#pragma once

#include "../affine.h"
#include "../interval.h"
#include "../inverse.h"
#include "lanes.h"

namespace mixflow {
namespace MIXFLOW_ARCH {
namespace {

// What an op reads and writes of some elements. The numbers of each operand are side by side; an operand that the op
// does not have is null.
template <class T>
struct Elements {
  const T *input, *upper, *grad_value, *grad_ladj;
  T *output, *ladj, *grad_upper, *evaluations, *residual, *slope, *ladj_slope, *grad_shift, *grad_log_slope;
};

// The elements at the positions of a walk through one index space. `place` are the offsets of the operands in the other
// index space. Operands that are not side by side in memory are copied to rooms, and results back from them.
template <Op op, class T, int length>
class Gathered {
 public:
  MIXFLOW_FN Gathered(const Problem& problem) : problem(problem), at{} {}
  Gathered(const Gathered&) = delete;
  Gathered& operator=(const Gathered&) = delete;

  MIXFLOW_FN void gather(const Walk& walk, const int64_t (&place)[kOperands]) {
    at.input = rooms[0].read(walk, problem.input, place[kInput], kInput);
    if constexpr (is_on_intervals(op)) at.upper = rooms[1].read(walk, problem.upper, place[kUpper], kUpper);
    if constexpr (is_backward(op))
      at.grad_value = rooms[2].read(walk, problem.grad_value, place[kGradValue], kGradValue);
    if constexpr (is_backward(op) && !is_on_intervals(op))
      at.grad_ladj = rooms[3].read(walk, problem.grad_ladj, place[kGradLadj], kGradLadj);
    for_outputs(
        [&](auto& room, T*& to, void* data, Operand operand) { to = room.write(walk, data, place[operand], operand); });
  }
  MIXFLOW_FN void scatter(const Walk& walk, const int64_t (&place)[kOperands]) {
    for_outputs([&](auto& room, T*&, void* data, Operand operand) { room.done(walk, data, place[operand], operand); });
  }
  MIXFLOW_FN const Elements<T>& elements() const { return at; }

 private:
  template <class Use>
  MIXFLOW_FN void for_outputs(Use use) {
    use(rooms[4], at.output, problem.output, kOutput);
    if constexpr (!is_backward(op) && !is_on_intervals(op)) use(rooms[5], at.ladj, problem.ladj, kLadj);
    if constexpr (op == Op::forward_with_slopes) {
      use(rooms[6], at.slope, problem.slope, kLadj);
      use(rooms[7], at.ladj_slope, problem.ladj_slope, kLadj);
    }
    if constexpr (op == Op::inverse) {
      use(rooms[6], at.evaluations, problem.evaluations, kLadj);
      use(rooms[7], at.residual, problem.residual, kLadj);
    }
    if constexpr (op == Op::interval_backward) use(rooms[5], at.grad_upper, problem.grad_upper, kGradUpper);
    if constexpr (op == Op::backward || op == Op::inverse_backward) {
      use(rooms[6], at.grad_shift, problem.grad_shift, kGradParameters);
      use(rooms[7], at.grad_log_slope, problem.grad_log_slope, kGradParameters);
    }
  }

  const Problem& problem;
  Elements<T> at;
  Room<T, length> rooms[8];
};

// The gradients of the pack of elements from number i on. Those by the parameters go to
// sink(k, g_logit, g_loc, g_log_scale).
//
// An element without any incoming gradient is idle and adds nothing to any gradient. A loss may mask an element because
// it, or its parameters, are NaN or infinite. For such an element the formulas would give 0 * NaN, so the results of
// its lane are replaced by 0.
template <class Family, Op op, class V, class Parameters, class Sink>
MIXFLOW_FN void backward_pack(const Problem& problem, const Parameters& parameters, const Elements<Scalar<V>>& at,
                              int i, Sink&& sink) {
  using T = Scalar<V>;
  V input = load<V>(at.input + i), g_value = load<V>(at.grad_value + i), g_ladj{};
  if constexpr (op != Op::interval_backward) g_ladj = load<V>(at.grad_ladj + i);
  Mask<V> idle = (g_value == T(0)) & (g_ladj == T(0));
  bool some_idle = any(idle);
  auto write = [&](T* to, V x) {
    if (to == nullptr) return;
    if (some_idle) x = select<V>(idle, V{}, x);
    store(to + i, x);
  };
  if (some_idle && all(idle)) {
    T* const gradients[] = {at.output, at.grad_upper, at.grad_shift, at.grad_log_slope};
    for (T* gradient : gradients) write(gradient, V{});
    for (int k = 0; problem.has_parameter_gradients() && k < problem.components; ++k) sink(k, V{}, V{}, V{});
    return;
  }
  auto add = [&](int k, V g_logit, V g_loc, V g_log_scale) {
    if (some_idle) {
      g_logit = select<V>(idle, V{}, g_logit);
      g_loc = select<V>(idle, V{}, g_loc);
      g_log_scale = select<V>(idle, V{}, g_log_scale);
    }
    sink(k, g_logit, g_loc, g_log_scale);
  };
  bool parameters_wanted = problem.has_parameter_gradients();
  if constexpr (op == Op::interval_backward) {
    EdgeGradients<V> grads =
        log_interval_backward<Family>(input, load<V>(at.upper + i), g_value, parameters, parameters_wanted, add);
    write(at.output, grads.lower);
    write(at.grad_upper, grads.upper);
  } else {
    constexpr bool inverse = op == Op::inverse_backward;
    V seed = g_value;
    if (!inverse && problem.is_affine()) seed = g_value * exp(parameters.affine.log_slope);
    InputGradient<V> found =
        backward<Family, inverse>(input, seed, g_ladj, parameters, RuntimeBase{problem.base}, parameters_wanted, add);
    if (problem.is_affine()) {
      AffineGradients<V> grads =
          inverse ? affine_inverse_gradients(found.z, parameters.affine.log_slope, g_ladj, found.input)
                  : affine_gradients(found.z, g_value, g_ladj, seed, found.input);
      found.input = grads.input;
      write(at.grad_shift, grads.shift);
      write(at.grad_log_slope, grads.log_slope);
    }
    write(at.output, found.input);
  }
}

// The pack of elements from number i on through one op.
template <class Family, Op op, class V, class Parameters, class Sink>
MIXFLOW_FN void map_pack(const Problem& problem, const Parameters& parameters, const Elements<Scalar<V>>& at, int i,
                         Sink&& sink) {
  using T = Scalar<V>;
  if constexpr (is_backward(op)) {
    backward_pack<Family, op, V>(problem, parameters, at, i, static_cast<Sink&&>(sink));
  } else {
    RuntimeBase base{problem.base};
    auto write = [i](T* to, V x) {
      if (to != nullptr) store(to + i, x);
    };
    V input = load<V>(at.input + i);
    if constexpr (op == Op::interval) {
      write(at.output, log_interval<Family>(input, load<V>(at.upper + i), parameters));
    } else {
      Mapped<V> mapped;
      if constexpr (op == Op::forward_with_slopes) {
        SlopedMap<V> found = forward_with_slopes<Family>(input, parameters, base);
        mapped = found.mapped;
        write(at.slope, found.slope);
        write(at.ladj_slope, found.ladj_slope);
      } else if constexpr (op == Op::forward) {
        mapped = forward<Family>(input, parameters, base);
        if (problem.is_affine()) mapped = parameters.affine.forward(mapped);
      } else {
        if (problem.is_affine()) input = parameters.affine.inverse(input);
        Solution<V> solution = inverse<Family>(input, parameters, base);
        mapped = solution.mapped;
        if (problem.is_affine()) mapped.ladj = mapped.ladj - parameters.affine.log_slope;
        write(at.evaluations, solution.evaluations);
        write(at.residual, solution.residual);
      }
      write(at.output, mapped.value);
      write(at.ladj, mapped.ladj);
    }
  }
}

}  // namespace
}  // namespace MIXFLOW_ARCH
}  // namespace mixflow
