// The gradients of the mixture-CDF transform and of its inverse, by the element and by the parameters.
//
// With r_k = w_k c(a_k) / (s_k f), q_k = w_k C(+-a_k) / m for the smaller tail m, the normalised weight omega_k, the
// component's score psi_k and the base's score, all of which are tame in the tails:
//     dz/dx       = (f / m) mills                          dladj/dx       = D - score dz/dx,  D = sum_k r_k psi_k / s_k
//     dz/dloc     = -r_k dz/dx                             dladj/dloc     = -r_k psi_k / s_k - score dz/dloc
//     dz/dlog_s   = -r_k (x - loc_k) dz/dx                 dladj/dlog_s   = -r_k (1 + a_k psi_k) - score dz/dlog_s
//     dz/dlogit   = +- mills (q_k - omega_k)               dladj/dlogit   = r_k - omega_k - score dz/dlogit
// Incoming gradients g_value and g_ladj therefore enter through
//     along = (g_value - g_ladj score) dz/dx   and   across = (g_value - g_ladj score) mills.
// The inverse differentiates implicitly, x(z, theta): with u = g_x - g_ladj' dladj/dx and ladj' = -ladj, its gradients
// are u / (dz/dx) for z, and those above for theta with g_value = -u / (dz/dx), g_ladj = -g_ladj'. In `along` the
// base's score cancels.
#pragma once

#include "mixture.h"

namespace mixflow {
namespace MIXFLOW_ARCH {

template <class V>
struct Seeds {
  V along, across, g_ladj, g_input;
};

template <class V>
MIXFLOW_FN Seeds<V> forward_seeds(const Tails<V>& tails, const BaseTerms<V>& base, V D, V g_value, V g_ladj) {
  V across = (g_value - g_ladj * base.score) * base.mills;
  V along = across * tails.density_over_smaller;
  return {along, across, g_ladj, fma(g_ladj, D, along)};
}

template <class V>
MIXFLOW_FN Seeds<V> inverse_seeds(const Evaluation<V>& at, const Tails<V>& tails, const BaseTerms<V>& base, V D,
                                  V g_value, V g_ladj) {
  V along = fma(g_ladj, D, -g_value);
  V across = along * reciprocal(tails.density_over_smaller);
  V through_x = along * reciprocal(tails.density_over_smaller * base.mills);
  if (!at.all_linear) {
    // In two factors: dx/dz may overflow where its product with a small gradient does not.
    V root = exp((tails.log_density_over_smaller + base.log_mills) * Scalar<V>(-0.5));
    through_x = select<V>(at.linear, through_x, along * root * root);
  }
  V g_z = g_ladj * base.score - through_x;
  return {along, across, -g_ladj, g_z};
}

// Replaces what linear space does not hold.
template <class Family, class V>
MIXFLOW_RARE Terms<V> with_shifted_terms(V x, LogComponent<V> c, Mask<V> linear, Shifts<V> shift, Terms<V> term) {
  Terms<V> shifted = shifted_terms<Family>(x, c, shift);
  return {select<V>(linear, term.cdf, shifted.cdf), select<V>(linear, term.survival, shifted.survival),
          select<V>(linear, term.density, shifted.density), select<V>(linear, term.scored, shifted.scored),
          select<V>(linear, term.distance, shifted.distance)};
}

// What the gradients by the parameters take from an element: the factors that all components have in common.
template <class V>
struct ElementSeeds {
  V x, by_tail, by_weight, by_density, by_slope;
  Mask<V> cdf_is_smaller, linear;
  bool all_linear;
  Shifts<V> shift;
};

template <class V>
struct ComponentGradients {
  V logit, loc, log_scale;
};

// Of the k-th component, from what was kept of it or, of those that are not kept, found again.
template <class Family, bool all_linear, class V, class Parameters>
MIXFLOW_FN ComponentGradients<V> component_gradients(int k, const Parameters& parameters, const ElementSeeds<V>& at) {
  V distance, weight, rate;
  Shares<V> shares;
  if (parameters.has_kept(k)) {
    KeptComponent<V> kept = KeptComponent<V>::unpacked(parameters.kept(k));
    distance = at.x - parameters.location(k);
    weight = kept.weight;
    rate = kept.rate;
    shares = Family::restored(distance, kept.shares);
  } else {
    Component<V> c = parameters.component(k);
    distance = at.x - c.loc;
    weight = c.weight;
    rate = c.rate;
    shares = shares_of<Family, true>(distance, c);
  }
  V inv_scale = inv_scale_of<Family>(rate), density = weight * rate * shares.density;
  Terms<V> term{weight * shares.cdf, weight * shares.survival, density,
                Family::scored(density, distance, inv_scale, shares), distance};
  if constexpr (!all_linear) {
    LogComponent<V> c = parameters.log_component(k);
    term = with_shifted_terms<Family>(at.x, c, at.linear, at.shift, term);
    inv_scale = select<V>(at.linear, inv_scale, c.inv_scale);
  }
  V tail = select<V>(at.cdf_is_smaller, term.cdf, term.survival), by_density = term.density * at.by_density;
  V by_loc = -fma(term.scored, inv_scale * at.by_density, term.density * at.by_slope);
  return {fma(tail, at.by_tail, fma(-weight, at.by_weight, by_density)), by_loc,
          fma(term.distance, by_loc, -by_density)};
}

template <class Family, class V, class Parameters>
MIXFLOW_FN ComponentGradients<V> linear_gradients(int k, const Parameters& parameters, const ElementSeeds<V>& at) {
  return component_gradients<Family, true>(k, parameters, at);
}
template <class Family, class V, class Parameters>
MIXFLOW_FN ComponentGradients<V> any_gradients(int k, const Parameters& parameters, const ElementSeeds<V>& at) {
  return component_gradients<Family, false>(k, parameters, at);
}

// sink(k, g_logit, g_loc, g_log_scale) for each component: in a loop of its own where no lane needs logarithms.
template <class Family, class V, class Parameters, class Sink>
MIXFLOW_FN void for_gradients(const Parameters& parameters, const ElementSeeds<V>& at, Sink&& sink) {
  auto give = [&](int k, const ComponentGradients<V>& g) { sink(k, g.logit, g.loc, g.log_scale); };
  if (at.all_linear)
    for (int k = 0; k < parameters.components; ++k) give(k, linear_gradients<Family>(k, parameters, at));
  else
    for (int k = 0; k < parameters.components; ++k) give(k, any_gradients<Family>(k, parameters, at));
}

// The gradient of the input (x forward, z inverse), z itself, and what component_gradients needs for the rest.
template <class V>
struct SeededGradient {
  V input, z;
  ElementSeeds<V> seeds;
};

template <class Family, bool inverse, class V, class Parameters>
MIXFLOW_FN SeededGradient<V> seeded_gradient(V x, V g_value, V g_ladj, const Parameters& parameters, RuntimeBase base) {
  Evaluation<V> at = evaluate<Family, true, true>(x, parameters);
  Tails<V> tails = tails_of<Family>(at);
  BaseTerms<V> terms = base_terms<false>(at, tails, base);
  V inv_density = reciprocal(at.sums.density);
  V D = at.sums.density_slope * inv_density * parameters.largest_inv_scale;
  Seeds<V> seeds =
      inverse ? inverse_seeds(at, tails, terms, D, g_value, g_ladj) : forward_seeds(tails, terms, D, g_value, g_ladj);
  V across = select<V>(tails.cdf_is_smaller, seeds.across, -seeds.across);
  V inv_smaller = reciprocal(select<V>(tails.cdf_is_smaller, at.sums.cdf, at.sums.survival));
  // The gradients above, with all that is common to the components taken out of the loop.
  // The weights add up to F + S, except for rounding.
  V inv_weight = bounded_reciprocal(at.sums.cdf + at.sums.survival);
  if (!at.all_linear) inv_weight = select<V>(at.linear, inv_weight, reciprocal(parameters.total_weight()));
  V by_tail = across * inv_smaller, by_weight = (across + seeds.g_ladj) * inv_weight;
  V by_density = seeds.g_ladj * inv_density, by_slope = seeds.along * inv_density;
  return {seeds.g_input,
          terms.value,
          {x, by_tail, by_weight, by_density, by_slope, tails.cdf_is_smaller, at.linear, at.all_linear, at.shift}};
}

// The gradient of the input, and z. sink(k, g_logit, g_loc, g_log_scale) receives the rest, if it is wanted.
template <class V>
struct InputGradient {
  V input, z;
};
template <class Family, bool inverse, class V, class Parameters, class Sink>
MIXFLOW_FN InputGradient<V> backward(V x, V g_value, V g_ladj, const Parameters& parameters, RuntimeBase base,
                                     bool parameters_wanted, Sink&& sink) {
  SeededGradient<V> at = seeded_gradient<Family, inverse>(x, g_value, g_ladj, parameters, base);
  if (parameters_wanted) for_gradients<Family>(parameters, at.seeds, sink);
  return {at.input, at.z};
}

}  // namespace MIXFLOW_ARCH
}  // namespace mixflow
