// log P(lower < X <= upper) of a mixture, and its gradients.
//
//     P = sum_k w_k (C(b_k) - C(a_k))      a_k = (lower - loc_k) / s_k      b_k = (upper - loc_k) / s_k
//
// A family gives each difference without cancellation, as exp(-exponent) times a factor. So the sum over the components
// is a log-sum-exp of positive numbers, whose shift costs a logarithm at most.
#pragma once

#include "gradients.h"

namespace mixflow {
namespace MIXFLOW_ARCH {

// The interval as a component sees it: in scales from its location, mirrored where that brings the centre to the right.
template <class V>
MIXFLOW_FN Interval<V> interval_from(V lower, V upper, V width, const LogComponent<V>& c) {
  using T = Scalar<V>;
  V a = lower - c.loc, b = upper - c.loc, centre = a * T(0.5) + b * T(0.5);
  Mask<V> mirrored = centre < T(0);
  // Two infinite edges have no centre, and no use of one but that it is not near.
  centre = select<V>(width == infinity<V>(), width, abs(centre) * c.inv_scale);
  return {select<V>(mirrored, -b, a) * c.inv_scale, select<V>(mirrored, -a, b) * c.inv_scale, centre,
          width * c.inv_scale, mirrored};
}

template <class V>
MIXFLOW_FN V interval_width(V lower, V upper) {
  return select<V>(lower == upper, V{}, upper - lower);  // also at infinity
}

template <class Family, class V, class Parameters>
MIXFLOW_FN V largest_interval_exponent(V lower, V upper, V width, const Parameters& parameters) {
  V shift = splat<V>(-Limits<Scalar<V>>::max);  // a sum of zeros has no exponent: keep inf - inf out
  for (int k = 0; k < parameters.components; ++k) {
    LogComponent<V> c = parameters.log_component(k);
    V exponent = c.log_weight - Family::interval_exponent(interval_from(lower, upper, width, c));
    shift = select<V>(exponent > shift, exponent, shift);
  }
  return shift;
}

// P up to the factor exp(shift), and the sum of the weights, by which it is to be divided. Here the latter matters to
// the last digit, so it is taken in blocks, too.
template <class V>
struct MassSums {
  V probability{}, weight{};

  MIXFLOW_FN void add(const MassSums& other) {
    probability += other.probability;
    weight += other.weight;
  }
};

// NaN where the edges are not in order.
template <class Family, class V, class Parameters>
MIXFLOW_FN V log_interval(V lower, V upper, const Parameters& parameters) {
  V width = interval_width(lower, upper);
  V shift = largest_interval_exponent<Family>(lower, upper, width, parameters);
  MassSums<V> sums = add_up<MassSums<V>, 1>(parameters.components, [&](int k, MassSums<V>& block) {
    LogComponent<V> c = parameters.log_component(k);
    Interval<V> interval = interval_from(lower, upper, width, c);
    V weight = quick_exp((c.log_weight - Family::interval_exponent(interval)) - shift);
    block.probability = fma(weight, Family::interval_shares(interval).probability, block.probability);
    block.weight += c.weight;
  });
  // A logarithm of a probability is never positive.
  V result = min(shift + log(quotient(sums.probability, sums.weight)), V{});
  return select<V>(lower <= upper, result, quiet_nan<V>());
}

// What a component has in P, in the densities at the two edges, and in the derivatives of P by its location and by the
// logarithm of its scale, all up to the factor exp(shift).
template <class V>
struct IntervalTerms {
  V probability, at_lower, at_upper, by_loc, by_log_scale;
};

// x y where y = 0 wins over x = inf.
template <class V>
MIXFLOW_FN V vanishing_product(V x, V y) {
  return select<V>(y == Scalar<V>(0), V{}, x * y);
}

template <class Family, class V>
MIXFLOW_FN IntervalTerms<V> interval_terms(V lower, V upper, V width, V shift, const LogComponent<V>& c) {
  using T = Scalar<V>;
  Interval<V> interval = interval_from(lower, upper, width, c);
  IntervalShares<V> shares = Family::interval_shares(interval);
  V weight = quick_exp((c.log_weight - Family::interval_exponent(interval)) - shift);
  V near = weight * shares.near, far = weight * shares.far, difference = weight * shares.difference;
  // far c(far) - near c(near): by the edges, or by the centre where the edges are so close that they cancel.
  V by_edges = vanishing_product(interval.far, far) - vanishing_product(interval.near, near);
  V sum = near + far, half = select<V>(sum == T(0), V{}, interval.width * T(0.5));
  V by_centre = fma(half, sum, -vanishing_product(interval.centre, difference));
  V spread = select<V>(interval.width <= max(interval.near, splat<V>(T(1))), by_centre, by_edges);
  V slope = vanishing_product(c.inv_scale, difference);
  near = vanishing_product(c.inv_scale, near);
  far = vanishing_product(c.inv_scale, far);
  return {weight * shares.probability, select<V>(interval.mirrored, far, near), select<V>(interval.mirrored, near, far),
          select<V>(interval.mirrored, -slope, slope), -spread};
}

// P and the mixture's density at the two edges, up to the factor exp(shift).
template <class V>
struct EdgeSums {
  V probability{}, at_lower{}, at_upper{};

  MIXFLOW_FN void add(const EdgeSums& other) {
    probability += other.probability;
    at_lower += other.at_lower;
    at_upper += other.at_upper;
  }
};

// What the first pass keeps of a component.
template <class V>
struct KeptBin {
  V weight, probability, by_loc, by_log_scale;

  MIXFLOW_FN Kept<V> packed() const { return {{weight, probability, by_loc, by_log_scale}}; }
  MIXFLOW_FN static KeptBin unpacked(const Kept<V>& kept) {
    return {kept.number[0], kept.number[1], kept.number[2], kept.number[3]};
  }
};

template <class V>
struct EdgeGradients {
  V lower, upper;
};

// What the gradients by the parameters take from an interval (see ElementSeeds).
template <class V>
struct IntervalSeeds {
  V lower, upper, width, shift, by_probability, by_weight;
};

template <class V>
struct SeededEdgeGradients {
  EdgeGradients<V> edges;
  IntervalSeeds<V> seeds;
};

// With P_k = w_k p_k and f the mixture's density,
//     dlogP/dlower = -f(lower) / P     dlogP/dupper = f(upper) / P     dlogP/dlogit_k = P_k / P - omega_k
// and by the other parameters as in IntervalTerms, over P.
template <class Family, class V, class Parameters>
MIXFLOW_FN SeededEdgeGradients<V> seeded_edge_gradients(V lower, V upper, V g, const Parameters& parameters) {
  V width = interval_width(lower, upper);
  V shift = largest_interval_exponent<Family>(lower, upper, width, parameters);
  EdgeSums<V> sums = add_up<EdgeSums<V>, 1>(parameters.components, [&](int k, EdgeSums<V>& block) {
    LogComponent<V> c = parameters.log_component(k);
    IntervalTerms<V> terms = interval_terms<Family>(lower, upper, width, shift, c);
    parameters.keep(k, KeptBin<V>{c.weight, terms.probability, terms.by_loc, terms.by_log_scale}.packed());
    block.probability += terms.probability;
    block.at_lower += terms.at_lower;
    block.at_upper += terms.at_upper;
  });
  g = select<V>(lower <= upper, g, quiet_nan<V>());
  V by_probability = g * reciprocal(sums.probability), by_weight = g * reciprocal(parameters.total_weight());
  return {{-(sums.at_lower * by_probability), sums.at_upper * by_probability},
          {lower, upper, width, shift, by_probability, by_weight}};
}

// Of the k-th component, from what was kept of it or, of those that are not kept, found again.
template <class Family, class V, class Parameters>
MIXFLOW_FN ComponentGradients<V> component_gradients(int k, const Parameters& parameters, const IntervalSeeds<V>& at) {
  KeptBin<V> bin;
  if (parameters.has_kept(k)) {
    bin = KeptBin<V>::unpacked(parameters.kept(k));
  } else {
    LogComponent<V> c = parameters.log_component(k);
    IntervalTerms<V> terms = interval_terms<Family>(at.lower, at.upper, at.width, at.shift, c);
    bin = {c.weight, terms.probability, terms.by_loc, terms.by_log_scale};
  }
  return {fma(bin.probability, at.by_probability, -(bin.weight * at.by_weight)), bin.by_loc * at.by_probability,
          bin.by_log_scale * at.by_probability};
}

// The same formula serves all intervals.
template <class Family, class V, class Parameters>
MIXFLOW_FN ComponentGradients<V> linear_gradients(int k, const Parameters& parameters, const IntervalSeeds<V>& at) {
  return component_gradients<Family>(k, parameters, at);
}
template <class Family, class V, class Parameters>
MIXFLOW_FN ComponentGradients<V> any_gradients(int k, const Parameters& parameters, const IntervalSeeds<V>& at) {
  return component_gradients<Family>(k, parameters, at);
}
template <class Family, class V, class Parameters, class Sink>
MIXFLOW_FN void for_gradients(const Parameters& parameters, const IntervalSeeds<V>& at, Sink&& sink) {
  for (int k = 0; k < parameters.components; ++k) {
    ComponentGradients<V> g = component_gradients<Family>(k, parameters, at);
    sink(k, g.logit, g.loc, g.log_scale);
  }
}

// sink(k, g_logit, g_loc, g_log_scale) receives the gradients by the parameters, if they are wanted.
template <class Family, class V, class Parameters, class Sink>
MIXFLOW_FN EdgeGradients<V> log_interval_backward(V lower, V upper, V g, const Parameters& parameters,
                                                  bool parameters_wanted, Sink&& sink) {
  SeededEdgeGradients<V> at = seeded_edge_gradients<Family>(lower, upper, g, parameters);
  if (parameters_wanted) for_gradients<Family>(parameters, at.seeds, sink);
  return at.edges;
}

}  // namespace MIXFLOW_ARCH
}  // namespace mixflow
