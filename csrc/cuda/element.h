// One element through one op, whatever the layout.
#pragma once

#include <type_traits>

#include "../affine.h"
#include "../interval.h"
#include "../inverse.h"
#include "sets.h"

namespace mixflow {
namespace MIXFLOW_ARCH {
namespace {

// Whether an op reads or writes this operand for each element.
MIXFLOW_FN constexpr bool has_operand(Op op, Operand operand) {
  switch (operand) {
    case kInput:
    case kOutput:
      return true;
    case kUpper:
      return is_on_intervals(op);
    case kGradValue:
      return is_backward(op);
    case kGradLadj:
      return is_backward(op) && !is_on_intervals(op);
    case kLadj:
      return !is_backward(op) && !is_on_intervals(op);
    case kGradUpper:
      return op == Op::interval_backward;
    default:
      return false;
  }
}

// The offsets of the parameter set with the index `outer` in the outer space: of its parameters and of their gradients,
// and what the offsets of its elements have in common.
template <Op op>
__device__ __forceinline__ void find_set(const Problem& problem, int64_t outer, int64_t (&place)[kOperands]) {
  problem.outer.offsets(outer, [](Operand operand) { return has_operand(op, operand) || operand >= kLogits; }, place);
}
// Adds to the offsets of a set those of its element with the index `inner` in the inner space.
template <Op op>
__device__ __forceinline__ void add_inner(const Problem& problem, int64_t inner, int64_t (&place)[kOperands]) {
  int64_t inside[kOperands];
  problem.inner.offsets(inner, [](Operand operand) { return has_operand(op, operand); }, inside);
  for (int operand = 0; operand < kLogits; ++operand)
    if (has_operand(op, static_cast<Operand>(operand))) place[operand] += inside[operand];
}

// The seeds of an element, from which the gradients by each component follow. Aligned, so that a thread reads 16 bytes
// at a time.
//
// An element without any incoming gradient is idle. It adds nothing to any gradient, even if it or its parameters are
// NaN or infinite: a loss may mask an element for that reason.
template <Op op, class T>
struct alignas(16) SeedsOf : std::conditional_t<op == Op::interval_backward, IntervalSeeds<T>, ElementSeeds<T>> {
  using Own = std::conditional_t<op == Op::interval_backward, IntervalSeeds<T>, ElementSeeds<T>>;
  bool idle;

  MIXFLOW_FN const Own& seeds() const { return *this; }
  // Whether no component needs logarithms.
  MIXFLOW_FN bool is_linear() const {
    if constexpr (op == Op::interval_backward)
      return true;
    else
      return this->all_linear;
  }
};

// Calls sink(k, g_logit, g_loc, g_log_scale) for each component, with what the element adds to the gradients.
template <class Family, Op op, class T, class Parameters, class Sink>
__device__ __forceinline__ void for_gradients_of(const Parameters& parameters, const SeedsOf<op, T>& seeds,
                                                 Sink&& sink) {
  if (!seeds.idle) return for_gradients<Family>(parameters, seeds.seeds(), sink);
  for (int k = 0; k < parameters.components; ++k) sink(k, T(0), T(0), T(0));
}

// Reads an element's operands at the offsets `place`, computes the op, and writes the results. A backward op also calls
// use(seeds), which adds what the element contributes to the gradients by the parameters. Other ops ignore `use`.
template <class Family, Op op, class T, class Parameters, class Use>
__device__ __forceinline__ void map_element(const Problem& problem, const Parameters& parameters,
                                            const int64_t (&place)[kOperands], Use use) {
  RuntimeBase base{problem.base};
  auto read = [&](const void* data, Operand operand) { return static_cast<const T*>(data)[place[operand]]; };
  auto put = [&](void* data, Operand operand, T value) { static_cast<T*>(data)[place[operand]] = value; };
  auto write = [&](void* data, Operand operand, T value) {
    if (data != nullptr) put(data, operand, value);
  };
  [[maybe_unused]] T g_value{}, g_ladj{};
  if constexpr (is_backward(op)) {
    g_value = read(problem.grad_value, kGradValue);
    if constexpr (op != Op::interval_backward) g_ladj = read(problem.grad_ladj, kGradLadj);
    if (g_value == T(0) && g_ladj == T(0)) {
      write(problem.output, kOutput, T(0));
      if constexpr (op == Op::interval_backward) write(problem.grad_upper, kGradUpper, T(0));
      write(problem.grad_shift, kGradParameters, T(0));
      write(problem.grad_log_slope, kGradParameters, T(0));
      return use(SeedsOf<op, T>{{}, true});
    }
  }
  AffineMap<T> affine{};
  if (problem.is_affine()) affine = {read(problem.shift, kLogits), read(problem.log_slope, kLogits)};
  T input = read(problem.input, kInput);
  if constexpr (op == Op::interval) {
    write(problem.output, kOutput, log_interval<Family>(input, read(problem.upper, kUpper), parameters));
  } else if constexpr (op == Op::interval_backward) {
    SeededEdgeGradients<T> at = seeded_edge_gradients<Family>(input, read(problem.upper, kUpper), g_value, parameters);
    write(problem.output, kOutput, at.edges.lower);
    write(problem.grad_upper, kGradUpper, at.edges.upper);
    use(SeedsOf<op, T>{at.seeds, false});
  } else if constexpr (is_backward(op)) {
    constexpr bool inverse = op == Op::inverse_backward;
    T seed = g_value;
    if (!inverse && problem.is_affine()) seed = g_value * exp(affine.log_slope);
    SeededGradient<T> at = seeded_gradient<Family, inverse>(input, seed, g_ladj, parameters, base);
    if (problem.is_affine()) {
      AffineGradients<T> grads = inverse ? affine_inverse_gradients(at.z, affine.log_slope, g_ladj, at.input)
                                         : affine_gradients(at.z, g_value, g_ladj, seed, at.input);
      at.input = grads.input;
      write(problem.grad_shift, kGradParameters, grads.shift);
      write(problem.grad_log_slope, kGradParameters, grads.log_slope);
    }
    write(problem.output, kOutput, at.input);
    use(SeedsOf<op, T>{at.seeds, false});
  } else {
    Mapped<T> mapped;
    if constexpr (op == Op::forward) {
      mapped = forward<Family>(input, parameters, base);
      if (problem.is_affine()) mapped = affine.forward(mapped);
    } else {
      if (problem.is_affine()) input = affine.inverse(input);
      mapped = inverse<Family>(input, parameters, base).mapped;
      if (problem.is_affine()) mapped.ladj = mapped.ladj - affine.log_slope;
    }
    put(problem.output, kOutput, mapped.value);
    put(problem.ladj, kLadj, mapped.ladj);
  }
}

}  // namespace
}  // namespace MIXFLOW_ARCH
}  // namespace mixflow
