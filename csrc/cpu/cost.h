// An estimate of how long a problem takes on one thread. It decides whether the problem gets further threads.
#pragma once

#include "../problem.h"

namespace mixflow {

// Nanoseconds for one element and for one parameter set, and how much more for each component, in float32 with AVX-512.
//
// These are lines through the times of the Gaussian and the logistic family, for 1 to 64 components, on an AMD EPYC
// (Zen 5). Nine in ten of the times are within a factor of 2 of their line; other processors differ by more. Only the
// decision below depends on them.
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

// How much longer everything takes in float64, and with each other instruction set.
constexpr double kDoubleSlowness = 3;
namespace slowness {
constexpr double avx512 = 1, avx2 = 1.8, baseline = 5;
}

// For `sets` parameter sets, each of which serves `elements` elements. Which of the two numbers is the larger one makes
// no difference here.
constexpr double estimated_nanoseconds(Op op, Dtype dtype, int components, int64_t sets, int64_t elements) {
  Cost cost = cost_of(op);
  double of_element = cost.element + cost.element_component * components;
  double of_set = cost.set + cost.set_component * components;
  double single = static_cast<double>(sets) * (static_cast<double>(elements) * of_element + of_set);
  return dtype == Dtype::float64 ? kDoubleSlowness * single : single;
}

// A problem with less work than this runs on one thread.
//
// A parallel region ends when the last of its threads is done, and a thread may have to wait for a processor. On an
// idle machine it does not wait, and two threads take 0.53 times as long as one, from 60 microseconds of work on. But
// on two processors that are busy with two other processes, the system lets a thread wait for 10 to 20 milliseconds.
// Two threads then took longer than one: 20 times as long for 0.25 ms of work, 4.7 times for 1 ms, 1.2 times for 4 ms;
// from 8 ms on they were faster. With a limit of 2 ms, the most that can be lost is not far from what can be gained.
constexpr double kParallelNanoseconds = 2e6;

}  // namespace mixflow
