// The parameters of one mixture, as the sums over its components take them.
//
// A parameter set is the template parameter `Parameters` of everything in sums.h, mixture.h, gradients.h, inverse.h and
// interval.h. Each kind of loop (CPU or GPU; one set for all elements, or a set for each) has its own. It derives from
// Extremes and offers, for 0 <= k < K,
//     components                       K
//     component(k)                     for the sums in linear space
//     log_component(k)                 for the sums in log space, which few elements need
//     total_weight()                   the sum of the weights, which few elements need
//     half()                           on CPUs: the set for half of the lanes, where exceeds_registers holds
// and, for backward ops, storage between the two passes over the components:
//     keep(k, kept), has_kept(k), kept(k), location(k)
// A set may write what it keeps over what component(k) reads, so component(k) is not called for a kept k after keep().
// Weights are exp(logit - largest logit).
#pragma once

#include "families.h"

namespace mixflow {
namespace MIXFLOW_ARCH {

// For paths that few packs take. Pass arguments by value: a reference would make the compiler keep the caller's copy in
// memory. On a GPU these functions are inlined, since a call costs more than it saves: values that live across it move
// to the few registers that calls preserve, or to memory.
#if defined(__CUDACC__)
#define MIXFLOW_RARE MIXFLOW_FN
#else
#define MIXFLOW_RARE __attribute__((noinline))
#endif

// The range in which the sums in linear space are exact; the smallest exponents of a GPU's float32 decide it. A set
// with a log scale outside its limits goes to log space as a whole: the linear code adds the exponent of
// exp(-log_scale) to a significand's bits, which must not overflow.
template <class T>
struct LinearRange;
template <>
struct LinearRange<float> {
  static constexpr float smallest = 0x1p-64f, largest = 0x1p40f, least_log_scale = -40, most_log_scale = 80;
};
template <>
struct LinearRange<double> {
  static constexpr double smallest = 0x1p-700, largest = 0x1p100, least_log_scale = -300, most_log_scale = 700;
};

// unit / scale to twice the precision, for log_scale in the linear range:
//     unit exp(-log_scale) = 2^n unit exp(r) = 2^n (unit + (unit_rest + unit (r + r^2 P(r))))
// The rest is what the outer sum rounds away. Its first bits count: far out on a narrow component an error of d in the
// rate is one of a^2 d in log f, whose scale may be that of log s.
template <class V>
struct Rate {
  V rate, rest;
};
template <class Family, class V>
MIXFLOW_FN Rate<V> rate_of(V log_scale) {
  using T = Scalar<V>;
  constexpr T unit = T(Family::unit), unit_rest = T(Family::unit - unit + Family::unit_rest);
  Reduced<V> reduced(-log_scale);
  V r = reduced.r, more = fma(r, unit, fma(r * r, exp_poly(r, unit), splat<V>(unit_rest)));
  V rate = more + unit, rest = more - (rate - unit);
  return {scale_within_range(rate, reduced.shifted), scale_within_range(rest, reduced.shifted)};
}

// A component from its location and its log weight, up to a constant that all components share. Callers that keep the
// weight and the rate take the first form.
template <class Family, class V>
MIXFLOW_FN Component<V> make_component(V loc, V weight, const Rate<V>& of) {
  return {loc, of.rate, of.rest, reach_of(of.rate, Family::template negligible_octaves<V>), weight, weight * of.rate};
}
template <class Family, class V>
MIXFLOW_FN Component<V> make_component(V log_weight, V loc, V log_scale) {
  return make_component<Family>(loc, quick_exp(log_weight), rate_of<Family>(log_scale));
}
template <class V>
MIXFLOW_FN LogComponent<V> make_log_component(V log_weight, V loc, V log_scale) {
  return {loc, log_weight, exp(-log_scale), quick_exp(log_weight)};
}

// What a parameter set's components have in common. `smallest_scale` is a unit for sums of 1 / scale^2, which would
// overflow long before the density does.
template <class V>
struct Extremes {
  V largest_logit, smallest_scale, largest_inv_scale;
  // The density below which components at the end of their reach could have mattered: there they have an absolute error
  // of inv_scale times a power of two far below `smallest`, so that a power of two for the largest inv_scale will do.
  // Infinite where the scales leave the linear range.
  V density_floor;

  Extremes() = default;
  MIXFLOW_FN Extremes(V largest_logit, V least_log_scale, V most_log_scale) : largest_logit(largest_logit) {
    using Range = LinearRange<Scalar<V>>;
    using C = Constants<Scalar<V>>;
    largest_inv_scale = exp(-least_log_scale);
    smallest_scale = reciprocal(largest_inv_scale);
    Mask<V> holds = (least_log_scale >= Range::least_log_scale) & (most_log_scale <= Range::most_log_scale);
    V power = power_of_two(fma(least_log_scale, -C::log2_e, splat<V>(C::round_magic)));
    density_floor = select<V>(holds, max(power, splat<V>(1)) * Range::smallest, infinity<V>());
  }
};

// Four numbers of one component that the first pass of a backward op keeps for the second. Each op has its own type for
// what they are: KeptComponent in sums.h, KeptBin in interval.h.
template <class V>
struct Kept {
  V number[4];
};

}  // namespace MIXFLOW_ARCH
}  // namespace mixflow
