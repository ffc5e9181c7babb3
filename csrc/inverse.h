// The inverse: x with F(x) = G(z), by Newton's method inside a bracket.
//
// The equation is solved as log F(x) - log S(x) = logit, in which the tails are straight lines or parabolas. The root
// lies between the smallest and the largest quantile of the components at the same probability. A Newton step is
// taken when it stays inside the bracket and the residual has at least halved since the last evaluation; otherwise
// the bracket is bisected. So every second evaluation halves either the residual or the bracket, and the loop ends.
#pragma once

#include "mixture.h"

namespace mixflow {
namespace MIXFLOW_ARCH {

constexpr int kMaxEvaluations = 160;

template <class V>
struct Bracket {
  V lower, upper, start;
};

template <class Family, class V, class Parameters>
MIXFLOW_FN Bracket<V> component_quantiles(V logit, const Parameters& parameters) {
  using T = Scalar<V>;
  constexpr T widening = 4 * Limits<T>::epsilon;
  V quantile = Family::quantile(logit);
  Bracket<V> bracket{infinity<V>(), -infinity<V>(), V{}};
  V total{};
  for (int k = 0; k < parameters.components; ++k) {
    Component<V> c = parameters.component(k);
    V offset = quantile / c.inv_scale, point = c.loc + offset;
    V margin = (abs(c.loc) + abs(offset)) * widening + Limits<T>::min_normal;
    Mask<V> counts = c.weight > T(0);
    bracket.lower = min(bracket.lower, select<V>(counts, point - margin, bracket.lower));
    bracket.upper = max(bracket.upper, select<V>(counts, point + margin, bracket.upper));
    bracket.start += select<V>(counts, c.weight * point, V{});
    total += c.weight;
  }
  V largest = splat<V>(Limits<T>::max);
  bracket.lower = max(bracket.lower, -largest);
  bracket.upper = min(bracket.upper, largest);
  bracket.start = max(min(bracket.start / total, bracket.upper), bracket.lower);
  return bracket;
}

template <class Family, class V, class Parameters>
MIXFLOW_FN V solve(V logit, const Parameters& parameters) {
  using T = Scalar<V>;
  Bracket<V> bracket = component_quantiles<Family>(logit, parameters);
  V x = bracket.start;
  V tolerance = max(abs(logit), splat<V>(1)) * (4 * Limits<T>::epsilon);
  V last_residual = infinity<V>();
  Mask<V> active = is_finite(logit);
  for (int i = 0; i < kMaxEvaluations && any(active); ++i) {
    Evaluation<V> at = evaluate<Family, false>(x, parameters);
    Tails<V> tails = tails_of(at);
    V residual = log_normal(tails.lower / tails.upper);
    if (!at.all_linear) residual = select<V>(at.linear, residual, tails.logit);
    residual -= logit;
    // d logit / dx = f / (F S) = (f / m) / (1 - m)
    V newton = x - residual * (Scalar<V>(1) - tails.smaller) / tails.density_over_smaller;
    bracket.lower = select<V>(active & (residual < T(0)), x, bracket.lower);
    bracket.upper = select<V>(active & (residual > T(0)), x, bracket.upper);
    V middle = bracket.lower * T(0.5) + bracket.upper * T(0.5);
    Mask<V> newton_holds =
        (newton > bracket.lower) & (newton < bracket.upper) & (abs(residual) <= last_residual * T(0.5));
    V next = select<V>(newton_holds, newton, middle);
    // Unordered comparisons end a lane whose parameters are NaN.
    Mask<V> unsettled = (abs(residual) > tolerance) & (next > bracket.lower) & (next < bracket.upper) & (next != x);
    x = select<V>(active & (residual != residual), residual, x);
    active = active & unsettled;
    x = select<V>(active, next, x);
    last_residual = abs(residual);
  }
  return select<V>(is_finite(logit), x, logit);
}

// x and log dx/dz.
template <class Family, class V, class Parameters, class Base>
MIXFLOW_FN Mapped<V> inverse(V z, const Parameters& parameters, Base base) {
  V x = solve<Family>(base.to_logit(z), parameters);
  return {x, -forward<Family>(x, parameters, base).ladj};
}

}  // namespace MIXFLOW_ARCH
}  // namespace mixflow
