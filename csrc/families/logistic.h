// Logistic components: C(a) = 1 / (1 + exp(-a)).
#pragma once

#include "family.h"

namespace mixflow {
namespace MIXFLOW_ARCH {

struct Logistic {
  static constexpr const char* name = "logistic";
  static constexpr bool keeps_nan = true;
  static constexpr double density_factor = 1;
  static constexpr double unit = 1.4426950408889634,
                          unit_rest = 2.0355273740931033e-17;  // log2(e)

  template <class V>
  static constexpr Scalar<V> negligible_octaves = is_float<V> ? 110.0f : 900.0f;

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
    V survival = bounded_reciprocal(one_plus), cdf = e * survival;
    if constexpr (zero_beyond) survival = select<V>(distance > c.reach, V{}, survival);
    return {cdf, survival, cdf * survival};
  }
  template <class V>
  static MIXFLOW_FN KeptShares<V> kept(V, const Shares<V>& shares) {
    return {shares.cdf, shares.survival};
  }
  template <class V>
  static MIXFLOW_FN Shares<V> restored(V, const KeptShares<V>& kept) {
    return {kept.first, kept.second, kept.first * kept.second};
  }
  static constexpr bool scored_shows_infinity = false;
  template <class V>
  static MIXFLOW_FN V scored(V density, V, V, const Shares<V>& shares) {
    return density * (shares.survival - shares.cdf);
  }
  template <class V>
  static MIXFLOW_FN V exponent(V t) {
    return t;
  }
  template <class V>
  static MIXFLOW_FN V density_exponent(V t) {
    return exponent(t);
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
  // -tanh(a / 2).
  template <class V>
  static MIXFLOW_FN V score(V a, V e) {
    return copysign((Scalar<V>(1) - e) * bounded_reciprocal(Scalar<V>(1) + e), -a);
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
    V cdf = select<V>(aside, near, e_near * near);
    return {probability, cdf * near, select<V>(aside, e_width, e_far) * far * far,
            probability * (far * cdf * one_minus_exp_neg(i.centre + i.centre, e_centre))};
  }
};

}  // namespace MIXFLOW_ARCH
}  // namespace mixflow
