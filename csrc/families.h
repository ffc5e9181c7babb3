// Families of component distributions. A family is one struct here plus one line in MIXFLOW_FAMILIES; everything else
// (CPU and CUDA kernels, bindings, Python, command line, tests, benchmarks) sees it through that list.
//
// A family is symmetric and standardised: C its CDF, c its density up to `density_factor`. It is asked in two ways.
//
// Near the centre, where nothing overflows, all three at once:
//     shares(distance, component)      C(a), C(-a), c(a) for a = distance / scale, or, beyond the component's reach,
//                                      for a there; if that is asked for, what decays is zero beyond it
//     kept(distance, shares), restored(distance, kept)
//                                      the two numbers from which the three can be had again, bit by bit
// The exponential in them is a power of two of the distance in octaves: u(a) = unit a is the variable in which the
// decay is 2^-|u| or 2^-u^2. The component holds unit / scale to twice the precision (rate and rate_rest), so that the
// exponent is reduced exactly, without the multiplication by log2(e) and its rounding.
//
// Anywhere, through its decay: with t = |a|, h = exponent(t) and e = exp(-h),
//     C(-t) = e * tail(t, e)           c(t) = e * density(t, e)
// where tail and density are tame functions that neither overflow nor vanish. Both tails therefore keep full relative
// accuracy, and log-space sums need only the exponents, which cost no transcendental function.
//
//     score_grows                      whether d log c(a) / da grows with a
//     scored(density, distance, inv_scale, shares)
//                                      density d log c(a) / da; NaN where a is infinite, of a family whose score grows
//     quantile(logit) = C^-1(sigmoid(logit))
//
// Over an interval, from its nearer to its farther edge (u + v >= 0, see Interval), again without cancellation:
//     interval_exponent(interval)      h, which costs no transcendental function
//     interval_shares(interval)        C(v) - C(u), c(u), c(v) and c(u) - c(v), all times exp(h)
#pragma once

#include "special.h"

namespace mixflow {
namespace MIXFLOW_ARCH {

// A component as sums in linear space take it. On a GPU it is read in 16 and 8 bytes.
template <class V>
struct Component {
  V loc;
  V rate, rate_rest;  // unit / scale
  V reach;            // distance from loc at which the decay is far below all that counts, and not yet zero
  V weight;
  V rated_weight;  // weight rate
};

// A component as sums in log space take it.
template <class V>
struct LogComponent {
  V loc, log_weight, inv_scale, weight;
};

template <class V>
struct Shares {
  V lower, upper, density;
};
template <class V>
struct KeptShares {
  V first, second;
};

// Where u(a) is about the family's `reach_octaves`: up to an eighth beyond, since the difference of the bits of two
// numbers is a quotient whose significand went along a straight line.
template <class V>
MIXFLOW_FN V reach_of(V rate, Scalar<V> reach_octaves) {
  return from_bits<V>((to_bits(splat<V>(1)) + to_bits(splat<V>(reach_octaves))) - to_bits(rate));
}

// An interval as a component sees it: edges, centre and width in scales, the edges from its location and mirrored where
// that brings the centre to the right: near + far >= 0. The width is exact where the edges are close.
template <class V>
struct Interval {
  V near, far, centre, width;
  Mask<V> mirrored;
};

// Densities with their factor, unlike those in Shares.
template <class V>
struct IntervalShares {
  V probability, near, far, difference;
};

struct Gaussian {
  static constexpr const char* name = "gaussian";
  static constexpr double density_factor = 0.398942280401432677940;                        // 1 / sqrt(2 pi)
  static constexpr double unit = 0.8493218002880191, unit_rest = -2.5959464104597403e-17;  // sqrt(log2(e) / 2)

  // By the units for special functions 2^-u^2 becomes zero there.
  template <class V>
  static constexpr Scalar<V> reach_octaves = has_units<V>  ? 12.3f
                                             : is_float<V> ? 9.9f
                                                           : 28.0f;

  // 2^-u^2 with u = t rate (1 + ...): u^2 is reduced exactly, and what rounding took from u enters to first order.
  template <bool zero_beyond, class V>
  static MIXFLOW_FN Shares<V> shares(V distance, const Component<V>& c) {
    V t = at_most(abs(distance), c.reach), u = t * c.rate, u_rest = fma(t, c.rate_rest, product_rest(t, c.rate, u)), e;
    if constexpr (has_units<V>) {
      V square = u * u, rest = fma(u * u_rest, Scalar<V>(2), product_rest(u, u, square));
      e = exp2_unit(-square);
      e = fma(e * Scalar<V>(-0.693147180559945309417), rest, e);
    } else {
      constexpr Scalar<V> magic = octave_magic<V>;
      V shifted = fma(-u, u, splat<V>(magic));
      V r = fma(u * u_rest, Scalar<V>(-2), product_minus(-u, u, shifted - magic));
      e = exp2_split(shifted, r).value;
      if constexpr (zero_beyond) e = select<V>(abs(distance) > c.reach, V{}, e);
    }
    return both_sides(distance, {e * octave_normal_tail(u), e});
  }
  template <class V>
  static MIXFLOW_FN KeptShares<V> kept(V distance, const Shares<V>& shares) {
    return {select<V>(distance < Scalar<V>(0), shares.lower, shares.upper), shares.density};
  }
  template <class V>
  static MIXFLOW_FN Shares<V> restored(V distance, const KeptShares<V>& kept) {
    return both_sides(distance, kept);
  }
  // From the smaller tail and the density.
  template <class V>
  static MIXFLOW_FN Shares<V> both_sides(V distance, const KeptShares<V>& at) {
    V near = at.first, far = Scalar<V>(1) - near;
    Mask<V> negative = distance < Scalar<V>(0);
    return {select<V>(negative, near, far), select<V>(negative, far, near), at.second};
  }
  template <class V>
  static MIXFLOW_FN V exponent(V t) {
    return t * t * Scalar<V>(0.5);
  }
  template <class V>
  static MIXFLOW_FN V tail(V t, V) {
    return scaled_normal_tail(t);
  }
  template <class V>
  static MIXFLOW_FN V density(V, V) {
    return splat<V>(1);
  }
  static constexpr bool score_grows = true;
  template <class V>
  static MIXFLOW_FN V scored(V density, V distance, V inv_scale, const Shares<V>&) {
    return -(density * (inv_scale * distance));
  }
  template <class V>
  static MIXFLOW_FN V quantile(V logit) {
    return probit_from_logit(logit);
  }
  // Narrow intervals are integrated about their centre; from others the two tails can be subtracted.
  template <class V>
  static MIXFLOW_FN Mask<V> is_narrow(const Interval<V>& i) {
    return (i.width == Scalar<V>(0)) |
           ((i.width <= Scalar<V>(1)) & (i.width * i.centre <= Scalar<V>(2 * normal_window_reach)));
  }
  template <class V>
  static MIXFLOW_FN V interval_exponent(const Interval<V>& i) {
    return exponent(select<V>(is_narrow(i), i.centre, max(i.near, V{})));
  }
  template <class V>
  static MIXFLOW_FN IntervalShares<V> interval_shares(const Interval<V>& i) {
    using T = Scalar<V>;
    Mask<V> narrow = is_narrow(i);
    IntervalShares<V> shares{};
    if (any(narrow)) {
      V half = select<V>(narrow, i.width * T(0.5), V{});
      NormalWindow<V> window(select<V>(half == T(0), V{}, i.centre * half), half);
      shares = {i.width * window.mean, window.even + window.odd, window.even - window.odd, window.odd * T(2)};
    }
    if (!all(narrow)) {
      // To the right of the centre in units of the density at the nearer edge; around it as they are.
      V t = abs(i.near);
      Mask<V> aside = i.near > T(0);
      V near = select<V>(aside, splat<V>(1), exp_flushed(-exponent(t)));
      V far = exp_flushed(-select<V>(aside, i.width * i.centre, exponent(i.far)));
      V near_tail = near * mills(t), far_tail = far * mills(i.far);
      V inside = select<V>(aside, near_tail, T(1 / density_factor) - near_tail) - far_tail;
      shares = {select<V>(narrow, shares.probability, inside), select<V>(narrow, shares.near, near),
                select<V>(narrow, shares.far, far), select<V>(narrow, shares.difference, near - far)};
    }
    constexpr T factor = T(density_factor);
    return {shares.probability * factor, shares.near * factor, shares.far * factor, shares.difference * factor};
  }
};

// C(a) = 1 / (1 + exp(-a)).
struct Logistic {
  static constexpr const char* name = "logistic";
  static constexpr double density_factor = 1;
  static constexpr double unit = 1.4426950408889634, unit_rest = 2.0355273740931033e-17;  // log2(e)

  template <class V>
  static constexpr Scalar<V> reach_octaves = is_float<V> ? 110.0f : 900.0f;

  // With E = exp(a): 1 - C = 1 / (1 + E), C = E (1 - C) and c = C (1 - C), none of which cancels at either end.
  template <bool zero_beyond, class V>
  static MIXFLOW_FN Shares<V> shares(V distance, const Component<V>& c) {
    V d = at_most(distance, c.reach), e, one_plus;
    if constexpr (has_units<V>) {
      // Below the reach e becomes zero.
      V u = d * c.rate, rest = fma(d, c.rate_rest, product_rest(d, c.rate, u));
      e = exp2_unit(u);
      e = fma(e * Scalar<V>(0.693147180559945309417), rest, e);
      one_plus = e + Scalar<V>(1);
    } else {
      constexpr Scalar<V> magic = octave_magic<V>;
      d = at_least(d, -c.reach);
      V shifted = fma(d, c.rate, splat<V>(magic));
      V r = fma(d, c.rate_rest, product_minus(d, c.rate, shifted - magic));
      PowerOfTwo<V> power = exp2_split(shifted, r);
      e = power.value;
      one_plus = power.one_plus;
      if constexpr (zero_beyond) e = select<V>(distance < -c.reach, V{}, e);
    }
    V upper = bounded_reciprocal(one_plus), lower = e * upper;
    if constexpr (zero_beyond) upper = select<V>(distance > c.reach, V{}, upper);
    return {lower, upper, lower * upper};
  }
  template <class V>
  static MIXFLOW_FN KeptShares<V> kept(V, const Shares<V>& shares) {
    return {shares.lower, shares.upper};
  }
  template <class V>
  static MIXFLOW_FN Shares<V> restored(V, const KeptShares<V>& kept) {
    return {kept.first, kept.second, kept.first * kept.second};
  }
  template <class V>
  static MIXFLOW_FN V exponent(V t) {
    return t;
  }
  template <class V>
  static MIXFLOW_FN V tail(V, V e) {
    return bounded_reciprocal(Scalar<V>(1) + e);
  }
  template <class V>
  static MIXFLOW_FN V density(V t, V e) {
    V r = tail(t, e);
    return r * r;
  }
  static constexpr bool score_grows = false;
  template <class V>
  static MIXFLOW_FN V scored(V density, V, V, const Shares<V>& shares) {
    return density * (shares.upper - shares.lower);
  }
  template <class V>
  static MIXFLOW_FN V quantile(V logit) {
    return logit;
  }
  template <class V>
  static MIXFLOW_FN V interval_exponent(const Interval<V>& i) {
    return max(i.near, V{});
  }
  // C(v) - C(u) = C(v) C(-u) (1 - exp(u - v)), and c(u) - c(v) is that times C(v) - C(-u), of the same form.
  template <class V>
  static MIXFLOW_FN IntervalShares<V> interval_shares(const Interval<V>& i) {
    Mask<V> aside = i.near > Scalar<V>(0);
    V e_near = exp_flushed(-abs(i.near)), e_far = exp_flushed(-i.far);
    V e_width = exp_flushed(-i.width), e_centre = exp_flushed(-i.centre - i.centre);
    V near = bounded_reciprocal(Scalar<V>(1) + e_near), far = bounded_reciprocal(Scalar<V>(1) + e_far);
    V probability = near * far * one_minus_exp_neg(i.width, e_width);
    V lower = select<V>(aside, near, e_near * near);
    return {probability, lower * near, select<V>(aside, e_width, e_far) * far * far,
            probability * (far * lower * one_minus_exp_neg(i.centre + i.centre, e_centre))};
  }
};

}  // namespace MIXFLOW_ARCH
}  // namespace mixflow

#define MIXFLOW_FAMILIES(X) \
  X(Gaussian)               \
  X(Logistic)
