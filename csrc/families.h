// Families of component distributions. A family is one struct here plus one line in MIXFLOW_FAMILIES; everything else
// (CPU and CUDA kernels, bindings, Python, command line, tests, benchmarks) sees it through that list.
//
// A family is symmetric and standardised: C its CDF, c its density up to `density_factor`. It is asked in two ways.
//
// Near the centre, where nothing overflows, all three at once:
//     shares(distance, component)      C(a), C(-a), c(a) for a = distance / scale, |u(a)| <= reach
// The exponential in them is a power of two of the distance in octaves: u(a) = unit a is the variable in which the
// decay is 2^-|u| or 2^-u^2. The component holds unit / scale to twice the precision (rate and rate_rest), so that the
// exponent is reduced exactly, without the multiplication by log2(e) and its rounding.
//
// Anywhere, through its decay: with t = |a|, h = exponent(t) and e = exp(-h),
//     C(-t) = e * tail(t, e)           c(t) = e * density(t, e)
// where tail and density are tame functions that neither overflow nor vanish. Both tails therefore keep full relative
// accuracy, and log-space sums need only the exponents, which cost no transcendental function.
//
//     score(a, C(a), C(-a)) = d log c(a) / da
//     quantile(logit) = C^-1(sigmoid(logit))
#pragma once

#include "special.h"

namespace mixflow {
namespace MIXFLOW_ARCH {

template <class V>
struct Component {
  V loc, weight, log_weight;
  V rate, rate_rest;  // unit / scale
  V reach;            // distance from loc at which the decay is near the smallest normal number
  V density_weight;   // weight density_factor / scale
  V inv_scale;
};

template <class V>
struct Shares {
  V lower, upper, density;
};

struct Gaussian {
  static constexpr const char* name = "gaussian";
  static constexpr double density_factor = 0.398942280401432677940;                        // 1 / sqrt(2 pi)
  static constexpr double unit = 0.8493218002880191, unit_rest = -2.5959464104597403e-17;  // sqrt(log2(e) / 2)

  template <class V>
  static MIXFLOW_FN V reach() {
    return sqrt(splat<V>(octave_limit<V>));
  }
  // 2^-u^2 with u = t rate (1 + ...): u^2 is reduced exactly, and what rounding took from u enters to first order.
  template <class V>
  static MIXFLOW_FN Shares<V> shares(V distance, const Component<V>& c) {
    constexpr Scalar<V> magic = Constants<Scalar<V>>::round_magic;
    V t = abs(distance), u = t * c.rate, u_rest = fma(t, c.rate_rest, product_rest(t, c.rate, u));
    V shifted = fma(-u, u, splat<V>(magic));
    V r = fma(u * u_rest, Scalar<V>(-2), product_minus(-u, u, shifted - magic));
    V e = exp2_split(shifted, r);
    V near = e * octave_normal_tail(u), far = Scalar<V>(1) - near;
    Mask<V> negative = distance < Scalar<V>(0);
    return {select<V>(negative, near, far), select<V>(negative, far, near), e};
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
  template <class V>
  static MIXFLOW_FN V score(V a, V, V) {
    return -a;
  }
  template <class V>
  static MIXFLOW_FN V quantile(V logit) {
    return probit_from_logit(logit);
  }
};

// C(a) = 1 / (1 + exp(-a)).
struct Logistic {
  static constexpr const char* name = "logistic";
  static constexpr double density_factor = 1;
  static constexpr double unit = 1.4426950408889634, unit_rest = 2.0355273740931033e-17;  // log2(e)

  template <class V>
  static MIXFLOW_FN V reach() {
    return splat<V>(octave_limit<V>);
  }
  // With E = exp(a): 1 - C = 1 / (1 + E), C = E (1 - C) and c = C (1 - C), none of which cancels at either end.
  template <class V>
  static MIXFLOW_FN Shares<V> shares(V distance, const Component<V>& c) {
    constexpr Scalar<V> magic = Constants<Scalar<V>>::round_magic;
    V shifted = fma(distance, c.rate, splat<V>(magic));
    V r = fma(distance, c.rate_rest, product_minus(distance, c.rate, shifted - magic));
    V e = exp2_split(shifted, r);
    V upper = bounded_reciprocal(Scalar<V>(1) + e), lower = e * upper;
    return {lower, upper, lower * upper};
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
  template <class V>
  static MIXFLOW_FN V score(V, V lower, V upper) {
    return upper - lower;
  }
  template <class V>
  static MIXFLOW_FN V quantile(V logit) {
    return logit;
  }
};

}  // namespace MIXFLOW_ARCH
}  // namespace mixflow

#define MIXFLOW_FAMILIES(X) \
  X(Gaussian)               \
  X(Logistic)
