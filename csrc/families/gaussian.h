// Gaussian components: C = Phi, the standard normal CDF.
#pragma once

#include "family.h"

namespace mixflow {
namespace MIXFLOW_ARCH {

struct Gaussian {
  static constexpr const char* name = "gaussian";
  static constexpr bool keeps_nan = true;
  static constexpr double density_factor = 0.398942280401432677940;  // 1 / sqrt(2 pi)
  static constexpr double unit = 0.8493218002880191,
                          unit_rest = -2.5959464104597403e-17;  // sqrt(log2(e) / 2)

  // On a GPU, the unit for powers of two returns zero for 2^-u^2 there.
  template <class V>
  static constexpr Scalar<V> negligible_octaves = has_units<V>  ? 12.3f
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
    return mirrored_shares<V>(distance, {e * octave_normal_tail(u), e});
  }
  template <class V>
  static MIXFLOW_FN KeptShares<V> kept(V distance, const Shares<V>& shares) {
    return {select<V>(distance < Scalar<V>(0), shares.cdf, shares.survival), shares.density};
  }
  template <class V>
  static MIXFLOW_FN Shares<V> restored(V distance, const KeptShares<V>& kept) {
    return mirrored_shares<V>(distance, kept);
  }
  static constexpr bool scored_shows_infinity = true;
  template <class V>
  static MIXFLOW_FN V scored(V density, V distance, V inv_scale, const Shares<V>&) {
    return -(density * (inv_scale * distance));
  }
  template <class V>
  static MIXFLOW_FN V exponent(V t) {
    return t * t * Scalar<V>(0.5);
  }
  template <class V>
  static MIXFLOW_FN V density_exponent(V t) {
    return exponent(t);
  }
  template <class V>
  static MIXFLOW_FN V tail(V t, V) {
    return scaled_normal_tail(t);
  }
  template <class V>
  static MIXFLOW_FN V density(V, V) {
    return splat<V>(1);
  }
  template <class V>
  static MIXFLOW_FN V score(V a, V) {
    return -a;
  }
  template <class V>
  static MIXFLOW_FN V quantile(V logit) {
    return probit_from_logit(logit);
  }
  // Narrow intervals are integrated about their centre; from others the two tails can be subtracted.
  static constexpr double narrow_width = 1;
  template <class V>
  static MIXFLOW_FN Mask<V> is_narrow(const Interval<V>& i) {
    return (i.width == Scalar<V>(0)) |
           ((i.width <= Scalar<V>(narrow_width)) & (i.width * i.centre <= Scalar<V>(2 * normal_window_reach)));
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
      // To the right of the centre, all is in units of the density at the nearer edge; around the centre, nothing is
      // scaled.
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

}  // namespace MIXFLOW_ARCH
}  // namespace mixflow
