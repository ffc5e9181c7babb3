// Student's t distribution with two degrees of freedom, the heavy-tailed family: its tails are powers,
// C(-t) ~ 1 / (2 t^2) and c(t) ~ 1 / t^3, its mean is finite and its variance is not.
//
// With r = sqrt(2 + a^2), which is the hypotenuse of a and sqrt(2),
//     C(a) = (1 + a / r) / 2      c(a) = 1 / r^3      C(a) C(-a) = 1 / (2 r^2)
// For a = -t the difference 1 - t / r cancels. Multiplied by r + t, it becomes (r^2 - t^2) / r = 2 / r, so that
//     C(-t) = 1 / (r (r + t)) = (1 / r^2) / (1 + t / r),
// a sum and products of positive numbers. Nothing here takes an exponential: the CDF and the density cost one
// reciprocal square root and one reciprocal. Source: Jones, "Student's simplest distribution" (2002).
#pragma once

#include "family.h"

namespace mixflow {
namespace MIXFLOW_ARCH {

struct Student {
  static constexpr const char* name = "student";
  static constexpr bool keeps_nan = true;
  static constexpr double density_factor = 1;
  static constexpr double unit = 1, unit_rest = 0;

  // `shares` measures its reach in scales, as `farthest`, since a distance of so many scales could overflow.
  template <class V>
  static constexpr Scalar<V> negligible_octaves = 1;
  // The square of this neither overflows nor leaves the domain of reciprocal_sqrt; C(-farthest) is 2^-93 in float32 and
  // 2^-757 in float64, far below what the linear sums resolve.
  template <class V>
  static constexpr Scalar<V> farthest = is_float<V> ? Scalar<V>(0x1p46) : Scalar<V>(0x1p378);

  template <bool zero_beyond, class V>
  static MIXFLOW_FN Shares<V> shares(V distance, const Component<V>& c) {
    V scales = abs(distance * c.rate), t = at_most(scales, splat<V>(farthest<V>)), square = fma(t, t, splat<V>(2));
    V inv_radius = reciprocal_sqrt(square), inv_square = inv_radius * inv_radius;
    V tail = inv_square * bounded_reciprocal(fma(t, inv_radius, splat<V>(Scalar<V>(1))));
    V density = inv_square * inv_radius;
    if constexpr (zero_beyond) {
      Mask<V> beyond = scales > farthest<V>;
      tail = select<V>(beyond, V{}, tail);
      density = select<V>(beyond, V{}, density);
    }
    return mirrored_shares<V>(distance, {tail, density});
  }
  template <class V>
  static MIXFLOW_FN KeptShares<V> kept(V distance, const Shares<V>& shares) {
    return {select<V>(distance < Scalar<V>(0), shares.cdf, shares.survival), shares.density};
  }
  template <class V>
  static MIXFLOW_FN Shares<V> restored(V distance, const KeptShares<V>& kept) {
    return mirrored_shares<V>(distance, kept);
  }
  // -3 a / r^2 = -6 a C(a) C(-a). Where a is infinite, the density is zero and the product is NaN.
  static constexpr bool scored_shows_infinity = true;
  template <class V>
  static MIXFLOW_FN V scored(V density, V distance, V inv_scale, const Shares<V>& shares) {
    return density * (inv_scale * distance) * (shares.cdf * shares.survival) * Scalar<V>(-6);
  }

  // In log space the decay is a power, too: 1 / r^2 for the tail, 1 / r^3 for the density.
  template <class V>
  static MIXFLOW_FN V exponent(V t) {
    return log(radius(t)) * Scalar<V>(2);
  }
  template <class V>
  static MIXFLOW_FN V density_exponent(V t) {
    return log(radius(t)) * Scalar<V>(3);
  }
  // r, to which sqrt(2) adds nothing where t^2 could overflow.
  template <class V>
  static MIXFLOW_FN V radius(V t) {
    Mask<V> far = t > farthest<V>;
    return select<V>(far, t, sqrt(fma(t, t, splat<V>(Scalar<V>(2)))));
  }
  template <class V>
  static MIXFLOW_FN V tail(V t, V) {
    return quotient(splat<V>(1), sine(t, radius(t)) + Scalar<V>(1));
  }
  template <class V>
  static MIXFLOW_FN V density(V, V) {
    return splat<V>(1);
  }
  template <class V>
  static MIXFLOW_FN V score(V a, V) {
    return quotient(splat<V>(-3), a + quotient(splat<V>(2), a));
  }
  // t / r, the sine of the angle whose tangent is t / sqrt(2).
  template <class V>
  static MIXFLOW_FN V sine(V t, V radius) {
    return select<V>(t > farthest<V>, splat<V>(1), quotient(t, radius));
  }

  // C(a) = sigmoid(2 asinh(a / sqrt(2))), and sinh(l / 2) = (1 - exp(-l)) exp(l / 2) / 2.
  template <class V>
  static MIXFLOW_FN V quantile(V logit) {
    V magnitude = abs(logit), one_minus = one_minus_exp_neg(magnitude, exp_flushed(-magnitude));
    V half = one_minus * Scalar<V>(0.707106781186547524401);
    return copysign(half * exp(magnitude * Scalar<V>(0.5)), logit);
  }

  template <class V>
  static MIXFLOW_FN V interval_exponent(const Interval<V>& i) {
    return select<V>(i.near > Scalar<V>(0), exponent(i.near), V{});
  }
  // With p = r(near), q = r(far) and their sines: to the right of the location, where the probability is half of the
  // difference of the two sines, v q - u p = (v^2 - u^2) (...) takes the difference into width and centre:
  //     C(v) - C(u) = (v - u) (v + u) / (p q (v p + u q))
  // All is then divided by powers of q, which may be infinite. The densities' difference contains
  //     q - p = (v - u) (v + u) / (q + p)   and   1 / p^3 - 1 / q^3 = (q - p) (q^2 + q p + p^2) / (p q)^3.
  template <class V>
  static MIXFLOW_FN IntervalShares<V> interval_shares(const Interval<V>& i) {
    using T = Scalar<V>;
    const V one = splat<V>(1);
    Mask<V> aside = i.near > T(0), open = i.far == infinity<V>();
    V u = abs(i.near), p = radius(u), q = radius(i.far);
    V sine_u = sine(u, p), sine_v = sine(i.far, q);
    V ratio = select<V>(open, V{}, quotient(p, q));
    V width = select<V>(open, one, quotient(i.width, q)), sum = select<V>(open, one, quotient(i.centre, q) * T(2));
    V inv_p = quotient(one, p), inv_q = quotient(one, q);
    V apart = width * quotient(sum, sine_v + sine_u);
    V around = (sine_v + sine_u) * T(0.5);
    V unit = select<V>(aside, one, inv_p * inv_p);  // 1 / p^2, times exp(h)
    V difference = width * sum * quotient(fma(ratio, ratio + T(1), one), ratio + T(1)) * inv_p * unit;
    return {select<V>(aside, apart, around), inv_p * unit, select<V>(aside, ratio * ratio, inv_q * inv_q) * inv_q,
            difference};
  }
};

}  // namespace MIXFLOW_ARCH
}  // namespace mixflow
