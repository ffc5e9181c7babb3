// How long a problem takes on one thread, to decide whether further threads are worth their risk.
#pragma once

#include "../problem.h"

namespace mixflow {

// Nanoseconds for one element and for one parameter set, in float32 with AVX-512: so much, and so much more for each
// component. Lines through the times of both families for 1 to 64 components on an AMD EPYC (Zen 5), of which nine in
// ten are within a factor of 2; other processors differ by more. Nothing but the decision below depends on them.
struct Cost {
  double element, element_component, set, set_component;
};
constexpr Cost cost_of(Op op) {
  switch (op) {
    case Op::forward:
      return {1.7, 0.24, 3, 0.55};
    case Op::forward_with_slopes:
      return {2.3, 0.34, 4, 0.6};
    case Op::inverse:
      return {8, 2.0, 3, 0.55};
    case Op::interval:
      return {1, 1.1, 3, 0.9};
    case Op::interval_backward:
      return {1, 1.9, 4, 1.3};
    case Op::backward:
    case Op::inverse_backward:
      break;
  }
  return {2.4, 0.5, 5, 1.0};
}

// How much longer everything takes in float64, and with each other build.
constexpr double kDoubleSlowness = 3;
namespace slowness {
constexpr double avx512 = 1, avx2 = 1.8, baseline = 5;
}

// Whether sets are few and elements many makes no difference here: `sets` parameter sets, each for `elements` elements.
constexpr double estimated_nanoseconds(Op op, Dtype dtype, int components, int64_t sets, int64_t elements) {
  Cost cost = cost_of(op);
  double of_element = cost.element + cost.element_component * components;
  double of_set = cost.set + cost.set_component * components;
  double single = static_cast<double>(sets) * (static_cast<double>(elements) * of_element + of_set);
  return dtype == Dtype::float64 ? kDoubleSlowness * single : single;
}

// Work from which on further threads take part. A parallel region ends when its last thread has had a processor. On a
// machine with nothing else to do that is at once, and two threads take 0.53 of the time of one from 60 microseconds of
// work on. But beside two busy processes on two processors, the system lets a thread wait for 10 to 20 milliseconds.
// There, two threads took so many times the time of one: 20 for 0.25 ms of work, 4.7 for 1 ms, 1.2 for 4 ms, and less
// than one from 8 ms on. From 2 milliseconds on, the most that can be lost is not far from what can be gained.
constexpr double kParallelNanoseconds = 2e6;

}  // namespace mixflow
