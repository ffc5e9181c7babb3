// Base distributions: what z = G^-1(F(x)) is distributed as when x follows the mixture. A base is one struct here plus
// one line in MIXFLOW_BASES.
//
// A base never sees a probability near 1. It is given both tails, F (`lower`) and S = 1 - F (`upper`), or their
// log-ratio (`logit`), and with m = min(F, S) it answers
//     from_tails(F, S), from_logit(log F - log S)      z = G^-1(F)
//     to_logit(z)                                      log G(z) - log(1 - G(z))
//     mills(z, F, S), log_mills(z, log m, log(1 - m))  m / g(z): bounded where 1 / g(z) overflows
//     score(z, F, S)                                   d log g(z) / dz
//     ladj(f, f / m, z, F, S)                          log f - log g(z), where f, F and S are normal numbers
// dz/dx = f / g = (f / m) * mills, in which the common decay of f and m cancels before anything is rounded.
#pragma once

#include "special.h"

namespace mixflow {
namespace MIXFLOW_ARCH {

struct Normal {
  static constexpr const char* name = "normal";

  template <class V>
  static MIXFLOW_FN V from_tails(V lower, V upper) {
    return probit(lower - upper, max(-quick_log(lower * upper * Scalar<V>(4)), V{}));
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
  static MIXFLOW_FN V ladj(V density, V density_over_smaller, V z, V lower, V upper) {
    // Without the Mills ratio the error of z enters as z^2, and the result is the small difference of large logarithms.
    if constexpr (has_units<V>)
      return quick_log(density) + fma(z * Scalar<V>(0.5), z, splat<V>(Scalar<V>(0.918938533204672741780)));
    else
      return log_normal(density_over_smaller * mills(z, lower, upper));
  }
};

struct StandardLogistic {
  static constexpr const char* name = "logistic";

  template <class V>
  static MIXFLOW_FN V from_tails(V lower, V upper) {
    return log_normal(lower * bounded_reciprocal(upper));
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
  static MIXFLOW_FN V mills(V, V lower, V upper) {
    return bounded_reciprocal(max(lower, upper));
  }
  template <class V>
  static MIXFLOW_FN V log_mills(V, V, V log_larger) {
    return -log_larger;
  }
  template <class V>
  static MIXFLOW_FN V score(V, V lower, V upper) {
    return upper - lower;
  }
  template <class V>
  static MIXFLOW_FN V ladj(V density, V, V, V lower, V upper) {
    return quick_log(density * bounded_reciprocal(lower * upper));
  }
};

struct Uniform {
  static constexpr const char* name = "uniform";

  template <class V>
  static MIXFLOW_FN V from_tails(V lower, V) {
    return lower;
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
  static MIXFLOW_FN V mills(V, V lower, V upper) {
    return min(lower, upper);
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

// The base distribution is applied once per element, after the loop over components: choosing it at run time keeps the
// number of compiled loops at one per family, op and dtype.
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
