// Laplace components: c(a) = exp(-|a|) / 2, with a kink at 0. tests/test_recipe.py copies this file to csrc/families/.
#pragma once

#include "family.h"

namespace mixflow {
namespace MIXFLOW_ARCH {

struct Laplace {
  static constexpr const char* name = "laplace";
  static constexpr double density_factor = 0.5;
  static constexpr double unit = 1.4426950408889634, unit_rest = 2.0355273740931033e-17;  // log2(e)
  static constexpr bool scored_shows_infinity = false;

  template <class V>
  static constexpr Scalar<V> negligible_octaves = is_float<V> ? 110.0f : 900.0f;

  // exp(-t) = 2^-(t rate), reduced exactly. It is the density, and twice the tail.
  template <bool zero_beyond, class V>
  static MIXFLOW_FN Shares<V> shares(V distance, const Component<V>& c) {
    V t = at_most(abs(distance), c.reach), e;
    if constexpr (has_units<V>) {
      V u = t * c.rate, rest = fma(t, c.rate_rest, product_rest(t, c.rate, u));
      e = exp2_unit(-u);
      e = fma(e * Scalar<V>(-0.693147180559945309417), rest, e);
    } else {
      constexpr Scalar<V> magic = octave_magic<V>;
      V shifted = fma(-t, c.rate, splat<V>(magic));
      V r = fma(-t, c.rate_rest, product_minus(-t, c.rate, shifted - magic));
      e = exp2_split(shifted, r).value;
    }
    if constexpr (zero_beyond) e = select<V>(abs(distance) > c.reach, V{}, e);
    return restored<V>(distance, {e * Scalar<V>(0.5), e});
  }
  template <class V>
  static MIXFLOW_FN KeptShares<V> kept(V distance, const Shares<V>& shares) {
    return {select<V>(distance < Scalar<V>(0), shares.cdf, shares.survival), shares.density};
  }
  template <class V>
  static MIXFLOW_FN Shares<V> restored(V distance, const KeptShares<V>& kept) {
    return mirrored_shares<V>(distance, kept);
  }
  template <class V>
  static MIXFLOW_FN V scored(V density, V distance, V, const Shares<V>&) {
    return density * score(distance, V{});
  }
  template <class V>
  static MIXFLOW_FN V exponent(V t) {
    return t;
  }
  template <class V>
  static MIXFLOW_FN V density_exponent(V t) {
    return t;
  }
  template <class V>
  static MIXFLOW_FN V tail(V, V) {
    return splat<V>(0.5);
  }
  template <class V>
  static MIXFLOW_FN V density(V, V) {
    return splat<V>(1);
  }
  // -1 or 1, and 0 at the kink.
  template <class V>
  static MIXFLOW_FN V score(V a, V) {
    return select<V>(a == Scalar<V>(0), V{}, copysign(splat<V>(1), -a));
  }
  // With m = |logit|, exp(-t) / 2 = exp(-m) / (1 + exp(-m)).
  template <class V>
  static MIXFLOW_FN V quantile(V logit) {
    V m = abs(logit), complement = one_minus_exp_neg(m, exp_flushed(-m));
    return copysign(m + log1p(complement * Scalar<V>(-0.5)), logit);
  }
  template <class V>
  static MIXFLOW_FN V interval_exponent(const Interval<V>& i) {
    return max(i.near, V{});
  }
  // To the right of the location, the tails at the edges are exp(-near) and exp(-near) exp(-width), halved. Around it,
  // the probability is the sum of those on either side.
  template <class V>
  static MIXFLOW_FN IntervalShares<V> interval_shares(const Interval<V>& i) {
    Mask<V> aside = i.near > Scalar<V>(0);
    V t = abs(i.near), twice_centre = i.centre + i.centre;
    V e_near = exp_flushed(-t), e_far = exp_flushed(-i.far), e_width = exp_flushed(-i.width);
    V apart = one_minus_exp_neg(i.width, e_width);
    V around = one_minus_exp_neg(t, e_near) + one_minus_exp_neg(i.far, e_far);
    V difference = e_near * one_minus_exp_neg(twice_centre, exp_flushed(-twice_centre));
    constexpr Scalar<V> half = 0.5;
    return {select<V>(aside, apart, around) * half, select<V>(aside, splat<V>(1), e_near) * half,
            select<V>(aside, e_width, e_far) * half, select<V>(aside, apart, difference) * half};
  }
};

}  // namespace MIXFLOW_ARCH
}  // namespace mixflow
