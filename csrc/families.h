// Families of component distributions. A family is one struct here plus one line in MIXFLOW_FAMILIES; everything else
// (CPU and CUDA kernels, bindings, Python, command line, tests, benchmarks) sees it through that list.
//
// A family is symmetric and standardised. It is described by how it decays: with t = |a|, h = exponent(t) and
// e = decay(t, 0) = exp(-h) (the second argument is what rounding took from t),
//     C(-t) = e * tail(t, e)       C(t) = bulk(t, e) = 1 - C(-t)       c(t) = e * density(t, e)
// where tail, bulk and density are tame functions that neither overflow nor vanish. Both tails therefore keep full
// relative accuracy, and log-space sums need only the exponents, which cost no transcendental function.
//     score(a, t, e) = d log c(a) / da
//     quantile(logit) = C^-1(sigmoid(logit))
#pragma once

#include "special.h"

namespace mixflow {
namespace MIXFLOW_ARCH {

struct Gaussian {
  static constexpr const char* name = "gaussian";

  template <class V>
  static MIXFLOW_FN V exponent(V t) {
    return t * t * Scalar<V>(0.5);
  }
  template <class V>
  static MIXFLOW_FN V decay(V t, V rest) {
    return exp_neg_half_square<true>(t, rest);
  }
  template <class V>
  static MIXFLOW_FN V tail(V t, V) {
    return scaled_normal_tail(t);
  }
  template <class V>
  static MIXFLOW_FN V bulk(V t, V e) {
    return fma(-e, tail(t, e), splat<V>(1));
  }
  template <class V>
  static MIXFLOW_FN V density(V, V) {
    return splat<V>(Scalar<V>(0.398942280401432677940));  // 1 / sqrt(2 pi)
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

  template <class V>
  static MIXFLOW_FN V exponent(V t) {
    return t;
  }
  template <class V>
  static MIXFLOW_FN V decay(V t, V rest) {
    return exp_flushed(-t, -rest);
  }
  template <class V>
  static MIXFLOW_FN V tail(V, V e) {
    return Scalar<V>(1) / (Scalar<V>(1) + e);
  }
  template <class V>
  static MIXFLOW_FN V bulk(V t, V e) {
    return tail(t, e);
  }
  template <class V>
  static MIXFLOW_FN V density(V t, V e) {
    V r = tail(t, e);
    return r * r;
  }
  template <class V>
  static MIXFLOW_FN V score(V a, V t, V e) {
    return copysign((Scalar<V>(1) - e) * tail(t, e), -a);
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
