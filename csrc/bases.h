// Base distributions: if x follows the mixture, z = G^-1(F(x)) follows the base with the CDF G. To add a base, write a
// struct here, add a line to MIXFLOW_BASES, and add a record in python/mixflow/standard/bases.py and in
// tests/truth/bases.py.
//
// No base is given a probability near 1, which would have lost the digits of the other tail. It is given both tails, F
// (`cdf`) and S = 1 - F (`survival`), or their log-ratio (`logit`). With m = min(F, S), g the base's density and both
// tails normal numbers:
//     from_tails(F, S), from_logit(log F - log S)      z = G^-1(F)
//     to_logit(z)                                      log G(z) - log(1 - G(z)); NaN outside the support
//     mills(z, F, S), log_mills(z, log m, log(1 - m))  m / g(z), which is bounded where 1 / g(z) overflows
//     score(z, F, S)                                   d log g(z) / dz
//     ladj(f, f / m, z, F, S)                          log f - log g(z), where f is a normal number, too
// The slope is dz/dx = f / g = (f / m) * mills. The common decay of f and m cancels in it before anything is rounded.
#pragma once

#include "special.h"

namespace mixflow {
namespace MIXFLOW_ARCH {

struct Normal {
  static constexpr const char* name = "normal";

  template <class V>
  static MIXFLOW_FN V from_tails(V cdf, V survival) {
    return probit(cdf - survival, max(-quick_log(cdf * survival * Scalar<V>(4)), V{}));
  }
  template <class V>
  static MIXFLOW_FN V from_logit(V logit) {
    return probit_from_logit(logit);
  }
  template <class V>
  static MIXFLOW_FN V to_logit(V z) {
    return logit_from_probit(z);
  }
  template <class V>
  static MIXFLOW_FN V mills(V z, V, V) {
    return MIXFLOW_ARCH::mills(abs(z));
  }
  template <class V>
  static MIXFLOW_FN V log_mills(V z, V, V) {
    return log(mills(z, z, z));
  }
  template <class V>
  static MIXFLOW_FN V score(V z, V, V) {
    return -z;
  }
  template <class V>
  static MIXFLOW_FN V ladj(V density, V density_over_smaller, V z, V cdf, V survival) {
    // Without the Mills ratio the error of z enters as z^2, and the result is the small difference of large logarithms.
    if constexpr (has_units<V>)
      return quick_log(density) + fma(z * Scalar<V>(0.5), z, splat<V>(Scalar<V>(0.918938533204672741780)));
    else
      return log_normal(density_over_smaller * mills(z, cdf, survival));
  }
};

struct StandardLogistic {
  static constexpr const char* name = "logistic";

  template <class V>
  static MIXFLOW_FN V from_tails(V cdf, V survival) {
    return log_normal(cdf * bounded_reciprocal(survival));
  }
  template <class V>
  static MIXFLOW_FN V from_logit(V logit) {
    return logit;
  }
  template <class V>
  static MIXFLOW_FN V to_logit(V z) {
    return z;
  }
  // g = F S, so min(F, S) / g = 1 / max(F, S).
  template <class V>
  static MIXFLOW_FN V mills(V, V cdf, V survival) {
    return bounded_reciprocal(max(cdf, survival));
  }
  template <class V>
  static MIXFLOW_FN V log_mills(V, V, V log_larger) {
    return -log_larger;
  }
  template <class V>
  static MIXFLOW_FN V score(V, V cdf, V survival) {
    return survival - cdf;
  }
  template <class V>
  static MIXFLOW_FN V ladj(V density, V, V, V cdf, V survival) {
    return quick_log(density * bounded_reciprocal(cdf * survival));
  }
};

struct Uniform {
  static constexpr const char* name = "uniform";

  template <class V>
  static MIXFLOW_FN V from_tails(V cdf, V) {
    return cdf;
  }
  template <class V>
  static MIXFLOW_FN V from_logit(V logit) {
    V e = exp(-abs(logit));
    return select<V>(logit < Scalar<V>(0), e, splat<V>(1)) / (Scalar<V>(1) + e);
  }
  // NaN outside [0, 1]; the ends go to -inf and inf.
  template <class V>
  static MIXFLOW_FN V to_logit(V u) {
    return log(u) - log(Scalar<V>(1) - u);
  }
  template <class V>
  static MIXFLOW_FN V mills(V, V cdf, V survival) {
    return min(cdf, survival);
  }
  template <class V>
  static MIXFLOW_FN V log_mills(V, V log_smaller, V) {
    return log_smaller;
  }
  template <class V>
  static MIXFLOW_FN V score(V, V, V) {
    return V{};
  }
  template <class V>
  static MIXFLOW_FN V ladj(V density, V, V, V, V) {
    return quick_log(density);
  }
};

#define MIXFLOW_BASES(X) \
  X(Normal)              \
  X(StandardLogistic)    \
  X(Uniform)

// The base is applied once for each element, after the loop over components. So it costs little to choose it at run
// time, and the compiler makes one loop for each family, op and dtype, and not one for each base as well.
struct RuntimeBase {
  int id;

  template <class Result, class Call>
  MIXFLOW_FN Result dispatch(Call call) const {
    int i = 0;
#define MIXFLOW_CASE(BASE) \
  if (id == i++) return call(BASE{});
    MIXFLOW_BASES(MIXFLOW_CASE)
#undef MIXFLOW_CASE
    __builtin_unreachable();
  }
};

}  // namespace MIXFLOW_ARCH
}  // namespace mixflow
