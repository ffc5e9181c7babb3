// The types that the functions of a family (families.h) take and return.
#pragma once

#include "../special.h"

namespace mixflow {
namespace MIXFLOW_ARCH {

// One component, as the sums in linear space take it. A GPU thread reads it as 16 and 8 bytes.
template <class V>
struct Component {
  V loc;
  // unit / scale as the sum of two numbers: the rounded quotient, and what rounding took from it.
  V rate, rate_rest;
  // The distance from loc at which |u| is about the family's negligible_octaves.
  V reach;
  V weight;
  V rated_weight;  // weight times rate
};

// One component, as the sums in log space take it.
template <class V>
struct LogComponent {
  V loc, log_weight, inv_scale, weight;
};

// C(a), C(-a) and c(a) of one component.
template <class V>
struct Shares {
  V cdf, survival, density;
};
// Two numbers from which a family restores its shares, bit for bit.
template <class V>
struct KeptShares {
  V first, second;
};

// Where |u| is about `negligible_octaves`, and at most an eighth beyond: the difference of the bits of two numbers is
// the bits of their quotient, except that a straight line replaces the quotient of the significands.
template <class V>
MIXFLOW_FN V reach_of(V rate, Scalar<V> negligible_octaves) {
  return from_bits<V>((to_bits(splat<V>(1)) + to_bits(splat<V>(negligible_octaves))) - to_bits(rate));
}

// The shares of a family that is symmetric, from its smaller tail C(-|a|) and its density.
template <class V>
MIXFLOW_FN Shares<V> mirrored_shares(V distance, const KeptShares<V>& tail_and_density) {
  V near = tail_and_density.first, far = Scalar<V>(1) - near;
  Mask<V> negative = distance < Scalar<V>(0);
  return {select<V>(negative, near, far), select<V>(negative, far, near), tail_and_density.second};
}

// Whether a family's own formulas make NaN of a distance or a rate that is NaN. A family that does not declare this is
// helped by shares_of, at the cost of a comparison for each component.
template <class Family, class = void>
constexpr bool keeps_nan = false;
template <class Family>
constexpr bool keeps_nan<Family, decltype(void(Family::keeps_nan))> = Family::keeps_nan;

// The shares of one component. All code except the families calls this and not Family::shares, so that no family can
// turn a NaN into a number.
template <class Family, bool zero_beyond, class V>
MIXFLOW_FN Shares<V> shares_of(V distance, const Component<V>& c) {
  Shares<V> shares = Family::template shares<zero_beyond>(distance, c);
  if constexpr (!keeps_nan<Family>) {
    V scaled = distance * c.rate;
    Mask<V> is_nan = scaled != scaled;
    V nan = quiet_nan<V>();
    shares = {select<V>(is_nan, nan, shares.cdf), select<V>(is_nan, nan, shares.survival),
              select<V>(is_nan, nan, shares.density)};
  }
  return shares;
}

// An interval in the units of one component: the distances of its edges from the component's location, its centre and
// its width, all divided by the scale. If the centre lies to the left of the location, the interval is mirrored, so
// that near + far >= 0. The width is exact where the edges are close.
template <class V>
struct Interval {
  V near, far, centre, width;
  Mask<V> mirrored;
};

// C(far) - C(near), c(near), c(far) and c(near) - c(far), all times exp(h) for the interval's exponent h. The densities
// include `density_factor`, unlike the one in Shares.
template <class V>
struct IntervalShares {
  V probability, near, far, difference;
};

}  // namespace MIXFLOW_ARCH
}  // namespace mixflow
