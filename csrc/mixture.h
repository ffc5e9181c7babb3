// The mixture-CDF transform of one element, or of one pack of elements: z = G^-1(F(x)) and ladj = log dz/dx.
#pragma once

#include "bases.h"
#include "sums.h"

namespace mixflow {
namespace MIXFLOW_ARCH {

// F and S normalised, m = min(F, S), f / m, and their logs where linear space does not reach.
template <class V>
struct Tails {
  V cdf, survival, smaller, density_over_smaller;
  V density;  // in linear space only
  Mask<V> cdf_is_smaller;
  V logit, log_smaller, log_larger,
      log_density_over_smaller;  // set only when some lane is not linear
};

template <class Family, class V>
MIXFLOW_FN Tails<V> linear_tails(const Sums<V>& sums) {
  Tails<V> tails;
  V inv_total = bounded_reciprocal(sums.cdf + sums.survival);
  tails.cdf = sums.cdf * inv_total;
  tails.survival = sums.survival * inv_total;
  tails.cdf_is_smaller = sums.cdf < sums.survival;
  tails.smaller = select<V>(tails.cdf_is_smaller, tails.cdf, tails.survival);
  V inv_smaller = bounded_reciprocal(select<V>(tails.cdf_is_smaller, sums.cdf, sums.survival));
  V density = sums.density * Scalar<V>(density_unit<Family>);
  tails.density_over_smaller = density * inv_smaller;
  tails.density = density * inv_total;
  return tails;
}

template <class Family, class V>
MIXFLOW_RARE Tails<V> with_logarithms(Evaluation<V> at, Tails<V> tails) {
  V log_cdf = at.shift.cdf + log(at.sums.cdf), log_survival = at.shift.survival + log(at.sums.survival);
  tails.logit = (at.shift.cdf - at.shift.survival) + (log(at.sums.cdf) - log(at.sums.survival));
  V magnitude = abs(tails.logit);
  tails.log_larger = -log1p_exp_neg(magnitude);
  tails.log_smaller = tails.log_larger - magnitude;
  tails.cdf_is_smaller = (at.linear & tails.cdf_is_smaller) | ((at.linear == 0) & (log_cdf < log_survival));
  V shift = select<V>(tails.cdf_is_smaller, at.shift.cdf, at.shift.survival);
  V sum = select<V>(tails.cdf_is_smaller, at.sums.cdf, at.sums.survival);
  V density = at.sums.density * Scalar<V>(Family::density_factor);  // sums in log space are in this unit
  tails.log_density_over_smaller = (at.shift.density - shift) + (log(density) - log(sum));
  V e = exp(-magnitude), larger = bounded_reciprocal(Scalar<V>(1) + e), smaller = e * larger;
  tails.smaller = select<V>(at.linear, tails.smaller, smaller);
  tails.cdf = select<V>(at.linear, tails.cdf, select<V>(tails.cdf_is_smaller, smaller, larger));
  tails.survival = select<V>(at.linear, tails.survival, select<V>(tails.cdf_is_smaller, larger, smaller));
  tails.density_over_smaller = select<V>(at.linear, tails.density_over_smaller, exp(tails.log_density_over_smaller));
  return tails;
}

template <class Family, class V>
MIXFLOW_FN Tails<V> tails_of(const Evaluation<V>& at) {
  Tails<V> tails = linear_tails<Family>(at.sums);
  if (!at.all_linear) tails = with_logarithms<Family>(at, tails);
  return tails;
}

template <class V>
struct Mapped {
  V value, ladj;
};

// What the base distribution makes of the tails. ladj is set where all lanes are linear, log_mills where some are not.
template <class V>
struct BaseTerms {
  V value, mills, score, ladj, log_mills;
};

template <class V>
MIXFLOW_RARE BaseTerms<V> with_logarithmic_base(Mask<V> linear, Tails<V> tails, BaseTerms<V> at, RuntimeBase base) {
  return base.dispatch<BaseTerms<V>>([&](auto base) {
    V z = select<V>(linear, at.value, base.from_logit(tails.logit));
    return BaseTerms<V>{z, base.mills(z, tails.cdf, tails.survival), base.score(z, tails.cdf, tails.survival), at.ladj,
                        base.log_mills(z, tails.log_smaller, tails.log_larger)};
  });
}

template <bool with_ladj, class V>
MIXFLOW_FN BaseTerms<V> base_terms(const Evaluation<V>& at, const Tails<V>& tails, RuntimeBase base) {
  BaseTerms<V> terms = base.dispatch<BaseTerms<V>>([&](auto base) {
    V z = base.from_tails(tails.cdf, tails.survival), ladj{};
    if constexpr (with_ladj) ladj = base.ladj(tails.density, tails.density_over_smaller, z, tails.cdf, tails.survival);
    return BaseTerms<V>{z, base.mills(z, tails.cdf, tails.survival), base.score(z, tails.cdf, tails.survival), ladj,
                        V{}};
  });
  if (!at.all_linear) terms = with_logarithmic_base(at.linear, tails, terms, base);
  return terms;
}

// log dz/dx from logarithms. Where a tail is smaller than any number, so far out that the exponents overflow, f and m
// are both 0 and their ratio is unknown. There log dz/dx is -inf, since the density is zero.
template <class V>
MIXFLOW_FN V logarithmic_ladj(const Tails<V>& tails, const BaseTerms<V>& terms) {
  return select<V>(abs(tails.logit) == infinity<V>(), -infinity<V>(), tails.log_density_over_smaller + terms.log_mills);
}

template <class V>
MIXFLOW_FN V ladj_of(const Evaluation<V>& at, const Tails<V>& tails, const BaseTerms<V>& terms) {
  return at.all_linear ? terms.ladj : select<V>(at.linear, terms.ladj, logarithmic_ladj(tails, terms));
}

// z = G^-1(F(x)) and log dz/dx.
template <class Family, class V, class Parameters>
MIXFLOW_FN Mapped<V> forward(V x, const Parameters& parameters, RuntimeBase base) {
  Evaluation<V> at = evaluate<Family, false, false>(x, parameters);
  Tails<V> tails = tails_of<Family>(at);
  BaseTerms<V> terms = base_terms<true>(at, tails, base);
  return {terms.value, ladj_of(at, tails, terms)};
}

// The same, and the derivatives of both by x: all that a gradient by x alone needs.
template <class V>
struct SlopedMap {
  Mapped<V> mapped;
  V slope, ladj_slope;
};
template <class Family, class V, class Parameters>
MIXFLOW_FN SlopedMap<V> forward_with_slopes(V x, const Parameters& parameters, RuntimeBase base) {
  Evaluation<V> at = evaluate<Family, true, false>(x, parameters);
  Tails<V> tails = tails_of<Family>(at);
  BaseTerms<V> terms = base_terms<true>(at, tails, base);
  V slope = tails.density_over_smaller * terms.mills, ladj = ladj_of(at, tails, terms);
  V D = at.sums.density_slope * reciprocal(at.sums.density) * parameters.largest_inv_scale;
  return {{terms.value, ladj}, slope, fma(-terms.score, slope, D)};
}

}  // namespace MIXFLOW_ARCH
}  // namespace mixflow
