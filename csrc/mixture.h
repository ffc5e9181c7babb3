// The mixture-CDF transform of one element (or one pack of elements): value, log-derivative and gradients.
//
//     F(x) = sum_k w_k C(a_k)    S(x) = sum_k w_k C(-a_k)    f(x) = sum_k w_k c(a_k) / s_k    a_k = (x - loc_k) / s_k
//
// Weights are exp(logit - largest logit): they need not sum to one, since only F / (F + S) and the like are ever used.
// Sums are taken in linear space; where one of them leaves the range in which that is exact (far tails, gaps between
// far components), the same sums are taken with a shift in the exponent, a log-sum-exp whose exponents cost no
// transcendental function. Each lane is decided by its own values alone, so a result never depends on its neighbours.
#pragma once

#include "bases.h"
#include "families.h"

namespace mixflow {
namespace MIXFLOW_ARCH {

#if defined(__CUDACC__)
#define MIXFLOW_RARE __host__ __device__ __noinline__
#else
#define MIXFLOW_RARE __attribute__((noinline))
#endif

template <class V>
struct Component {
  V loc, inv_scale, inv_scale_rest, weight, log_weight;  // inv_scale (1 + inv_scale_rest) is exp(-log_scale)
};

// A parameter set answers component(k), k in [0, components), and knows the sum of the weights, the smallest scale, and
// the density below which components flushed to zero could have mattered (see density_floor).
template <class T>
struct LinearRange;
template <>
struct LinearRange<float> {
  static constexpr float smallest = 0x1p-80f, largest = 0x1p40f;
};
template <>
struct LinearRange<double> {
  static constexpr double smallest = 0x1p-900, largest = 0x1p100;
};

// Decays below the smallest normal number count as zero, an absolute error of inv_scale * min_normal in the density.
// Above this floor that is far less than one rounding.
template <class V>
MIXFLOW_FN V density_floor(V largest_inv_scale) {
  return max(largest_inv_scale, splat<V>(1)) * LinearRange<Scalar<V>>::smallest;
}

// What one component adds to F, S and f, and its score d log c / da.
template <class V>
struct Terms {
  V lower, upper, density, score;
};

template <class V>
struct Shifts {
  V lower, upper, density;
};

// F, S, f and f' up to factors exp(shift), which are one in linear space; f' in units of the smallest scale, since
// 1 / scale^2 would overflow long before the density does.
template <class V>
struct Sums {
  V lower{}, upper{}, density{}, density_slope{};

  template <bool with_slope>
  MIXFLOW_FN void add(const Terms<V>& term, V relative_inv_scale) {
    lower += term.lower;
    upper += term.upper;
    density += term.density;
    if constexpr (with_slope) density_slope = fma(term.density * relative_inv_scale, term.score, density_slope);
  }
};

// Adds up term(component) over all components, in blocks: rounding errors grow with the length of a block and the
// number of blocks, not with their product.
template <bool with_slope, class V, class Parameters, class Term>
MIXFLOW_FN Sums<V> sum_terms(const Parameters& parameters, Term term) {
  constexpr int block_length = 8;
  Sums<V> total;
  for (int begin = 0; begin < parameters.components; begin += block_length) {
    int rest = parameters.components - begin, end = begin + (rest < block_length ? rest : block_length);
    Sums<V> block;
    for (int k = begin; k < end; ++k) {
      Component<V> c = parameters.component(k);
      block.template add<with_slope>(term(c), c.inv_scale * parameters.smallest_scale);
    }
    total.lower += block.lower;
    total.upper += block.upper;
    total.density += block.density;
    if constexpr (with_slope) total.density_slope += block.density_slope;
  }
  return total;
}

// a = (x - loc) / scale with what rounding took from it. On the flank of a narrow component the two large parts of
// log f = -log scale - h(a) cancel, and an error of a would be left, multiplied by h'(a) a.
template <class V>
struct Standardised {
  V a, t, t_rest;
  Mask<V> negative;

  MIXFLOW_FN Standardised(V x, const Component<V>& c) {
    V distance = x - c.loc;
    a = distance * c.inv_scale;
    t = abs(a);
    negative = a < Scalar<V>(0);
    V rest = fma(a, c.inv_scale_rest, product_rest(distance, c.inv_scale, a));
    // Far out the decay is zero whatever the rest, which may be large or, where a overflowed, NaN.
    t_rest = select<V>(t < Scalar<V>(1024), select<V>(negative, -rest, rest), V{});
  }
};

template <class Family, class V>
MIXFLOW_FN Terms<V> linear_terms(V x, const Component<V>& c) {
  Standardised<V> s(x, c);
  V a = s.a, t = s.t, e = Family::decay(t, s.t_rest);
  V decayed = c.weight * e;
  V near = decayed * Family::tail(t, e), far = c.weight * Family::bulk(t, e);
  return {select<V>(s.negative, near, far), select<V>(s.negative, far, near),
          decayed * Family::density(t, e) * c.inv_scale, Family::score(a, t, e)};
}

template <class Family, class V>
MIXFLOW_FN Terms<V> shifted_terms(V x, const Component<V>& c, const Shifts<V>& shift) {
  V a = (x - c.loc) * c.inv_scale, t = abs(a), e = Family::decay(t, V{});
  V h = Family::exponent(t), tail = Family::tail(t, e), bulk = Family::bulk(t, e);
  Mask<V> negative = a < Scalar<V>(0);
  V decayed = c.log_weight - h;
  V lower = exp_flushed(select<V>(negative, decayed, c.log_weight) - shift.lower);
  V upper = exp_flushed(select<V>(negative, c.log_weight, decayed) - shift.upper);
  // A scale below the dtype's range makes a point mass: no density beside it, though its inverse scale is inf.
  V density = exp_flushed(decayed - shift.density) * Family::density(t, e);
  density = select<V>(density == Scalar<V>(0), V{}, density * c.inv_scale);
  return {lower * select<V>(negative, tail, bulk), upper * select<V>(negative, bulk, tail), density,
          Family::score(a, t, e)};
}

// The largest exponent in each sum. In a far tail the shifts of f and of the smaller of F and S are the same number,
// so that f / min(F, S) loses nothing.
template <class Family, class V, class Parameters>
MIXFLOW_FN Shifts<V> largest_exponents(V x, const Parameters& parameters) {
  Shifts<V> shift{-infinity<V>(), -infinity<V>(), -infinity<V>()};
  for (int k = 0; k < parameters.components; ++k) {
    Component<V> c = parameters.component(k);
    V a = (x - c.loc) * c.inv_scale, decayed = c.log_weight - Family::exponent(abs(a));
    Mask<V> negative = a < Scalar<V>(0);
    shift.lower = max(shift.lower, select<V>(negative, decayed, c.log_weight));
    shift.upper = max(shift.upper, select<V>(negative, c.log_weight, decayed));
    shift.density = max(shift.density, decayed);
  }
  V lowest = splat<V>(-Limits<Scalar<V>>::max);  // a sum of zeros has no exponent: keep inf - inf out
  return {max(shift.lower, lowest), max(shift.upper, lowest), max(shift.density, lowest)};
}

// The sums at x. `linear` says which lanes are in linear space; `shift` is zero there.
template <class V>
struct Evaluation {
  Sums<V> sums;
  Shifts<V> shift{};
  Mask<V> linear;
  bool all_linear;
};

template <class Family, bool with_slope, class V, class Parameters>
MIXFLOW_RARE void shifted_sums(V x, const Parameters& parameters, Evaluation<V>& at) {
  Shifts<V> shift = largest_exponents<Family>(x, parameters);
  Sums<V> sums =
      sum_terms<with_slope, V>(parameters, [&](const Component<V>& c) { return shifted_terms<Family>(x, c, shift); });
  at.shift = {select<V>(at.linear, V{}, shift.lower), select<V>(at.linear, V{}, shift.upper),
              select<V>(at.linear, V{}, shift.density)};
  at.sums.lower = select<V>(at.linear, at.sums.lower, sums.lower);
  at.sums.upper = select<V>(at.linear, at.sums.upper, sums.upper);
  at.sums.density = select<V>(at.linear, at.sums.density, sums.density);
  at.sums.density_slope = select<V>(at.linear, at.sums.density_slope, sums.density_slope);
}

template <class Family, bool with_slope, class V, class Parameters>
MIXFLOW_FN Evaluation<V> evaluate(V x, const Parameters& parameters) {
  using Range = LinearRange<Scalar<V>>;
  Evaluation<V> at;
  at.sums = sum_terms<with_slope, V>(parameters, [&](const Component<V>& c) { return linear_terms<Family>(x, c); });
  at.linear = (at.sums.lower >= Range::smallest) & (at.sums.upper >= Range::smallest) &
              (at.sums.density >= parameters.density_floor) & (at.sums.density <= Range::largest);
  at.all_linear = all(at.linear);
  if (!at.all_linear) shifted_sums<Family, with_slope>(x, parameters, at);
  return at;
}

// F and S normalised, m = min(F, S), f / m, and their logs where linear space does not reach.
template <class V>
struct Tails {
  V lower, upper, smaller, density_over_smaller;
  Mask<V> lower_is_smaller;
  V logit, log_smaller, log_larger, log_density_over_smaller;  // set only when some lane is not linear
};

template <class V>
MIXFLOW_FN Tails<V> linear_tails(const Sums<V>& sums) {
  Tails<V> tails;
  V inv_total = Scalar<V>(1) / (sums.lower + sums.upper);
  tails.lower = sums.lower * inv_total;
  tails.upper = sums.upper * inv_total;
  tails.lower_is_smaller = sums.lower < sums.upper;
  tails.smaller = select<V>(tails.lower_is_smaller, tails.lower, tails.upper);
  tails.density_over_smaller = sums.density / select<V>(tails.lower_is_smaller, sums.lower, sums.upper);
  return tails;
}

template <class V>
MIXFLOW_RARE void logarithmic_tails(const Evaluation<V>& at, Tails<V>& tails) {
  V log_lower = at.shift.lower + log(at.sums.lower), log_upper = at.shift.upper + log(at.sums.upper);
  tails.logit = (at.shift.lower - at.shift.upper) + (log(at.sums.lower) - log(at.sums.upper));
  V magnitude = abs(tails.logit);
  tails.log_larger = -log1p_exp_neg(magnitude);
  tails.log_smaller = tails.log_larger - magnitude;
  tails.lower_is_smaller = at.linear ? tails.lower_is_smaller : (log_lower < log_upper);
  V shift = select<V>(tails.lower_is_smaller, at.shift.lower, at.shift.upper);
  V sum = select<V>(tails.lower_is_smaller, at.sums.lower, at.sums.upper);
  tails.log_density_over_smaller = (at.shift.density - shift) + (log(at.sums.density) - log(sum));
  V e = exp(-magnitude), larger = Scalar<V>(1) / (Scalar<V>(1) + e), smaller = e * larger;
  tails.smaller = select<V>(at.linear, tails.smaller, smaller);
  tails.lower = select<V>(at.linear, tails.lower, select<V>(tails.lower_is_smaller, smaller, larger));
  tails.upper = select<V>(at.linear, tails.upper, select<V>(tails.lower_is_smaller, larger, smaller));
  tails.density_over_smaller = select<V>(at.linear, tails.density_over_smaller, exp(tails.log_density_over_smaller));
}

template <class V>
MIXFLOW_FN Tails<V> tails_of(const Evaluation<V>& at) {
  Tails<V> tails = linear_tails(at.sums);
  if (!at.all_linear) logarithmic_tails(at, tails);
  return tails;
}

template <class V>
struct Mapped {
  V value, ladj;
};

template <class V, class Base>
MIXFLOW_FN V base_value(const Evaluation<V>& at, const Tails<V>& tails, Base base) {
  V z = base.from_tails(tails.lower, tails.upper);
  if (!at.all_linear) z = select<V>(at.linear, z, base.from_logit(tails.logit));
  return z;
}

// z = G^-1(F(x)) and log dz/dx.
template <class Family, class V, class Parameters, class Base>
MIXFLOW_FN Mapped<V> forward(V x, const Parameters& parameters, Base base) {
  Evaluation<V> at = evaluate<Family, false>(x, parameters);
  Tails<V> tails = tails_of(at);
  V z = base_value(at, tails, base);
  V ladj = log_normal(tails.density_over_smaller * base.mills(z, tails.lower, tails.upper));
  if (!at.all_linear) {
    V log_mills = base.log_mills(z, tails.log_smaller, tails.log_larger);
    ladj = select<V>(at.linear, ladj, tails.log_density_over_smaller + log_mills);
  }
  return {z, ladj};
}

// Gradients. With r_k = w_k c(a_k) / (s_k f), q_k = w_k C(+-a_k) / m for the smaller tail m, the normalised weight
// omega_k, the component score psi_k and the base score, all of which are tame in the tails:
//     dz/dx       = (f / m) mills                          dladj/dx       = D - score dz/dx,  D = sum_k r_k psi_k / s_k
//     dz/dloc     = -r_k dz/dx                             dladj/dloc     = -r_k psi_k / s_k - score dz/dloc
//     dz/dlog_s   = -r_k (x - loc_k) dz/dx                 dladj/dlog_s   = -r_k (1 + a_k psi_k) - score dz/dlog_s
//     dz/dlogit   = +- mills (q_k - omega_k)               dladj/dlogit   = r_k - omega_k - score dz/dlogit
// Incoming gradients g_value and g_ladj therefore enter through
//     along = (g_value - g_ladj score) dz/dx   and   across = (g_value - g_ladj score) mills.
// The inverse differentiates implicitly, x(z, theta): with u = g_x - g_ladj' dladj/dx and ladj' = -ladj, its gradients
// are u / (dz/dx) for z, and those above for theta with g_value = -u / (dz/dx), g_ladj = -g_ladj'. In `along` the base
// score cancels.
template <class V>
struct Seeds {
  V along, across, g_ladj, g_input;
};

template <class V, class Base>
MIXFLOW_FN Seeds<V> forward_seeds(const Tails<V>& tails, V z, V D, V g_value, V g_ladj, Base base) {
  V across = (g_value - g_ladj * base.score(z, tails.lower, tails.upper)) * base.mills(z, tails.lower, tails.upper);
  V along = across * tails.density_over_smaller;
  return {along, across, g_ladj, fma(g_ladj, D, along)};
}

template <class V, class Base>
MIXFLOW_FN Seeds<V> inverse_seeds(const Evaluation<V>& at, const Tails<V>& tails, V z, V D, V g_value, V g_ladj,
                                  Base base) {
  V along = fma(g_ladj, D, -g_value);
  V across = along / tails.density_over_smaller;
  V through_x = along / (tails.density_over_smaller * base.mills(z, tails.lower, tails.upper));
  if (!at.all_linear) {
    V log_mills = base.log_mills(z, tails.log_smaller, tails.log_larger);
    // In two factors: dx/dz may overflow where its product with a small gradient does not.
    V root = exp((tails.log_density_over_smaller + log_mills) * Scalar<V>(-0.5));
    through_x = select<V>(at.linear, through_x, along * root * root);
  }
  V g_z = g_ladj * base.score(z, tails.lower, tails.upper) - through_x;
  return {along, across, -g_ladj, g_z};
}

// Returns the gradient of the input (x forward, z inverse); sink(k, g_logit, g_loc, g_log_scale) receives the rest.
template <class Family, bool inverse, class V, class Parameters, class Base, class Sink>
MIXFLOW_FN V backward(V x, V g_value, V g_ladj, const Parameters& parameters, Base base, Sink&& sink) {
  Evaluation<V> at = evaluate<Family, true>(x, parameters);
  Tails<V> tails = tails_of(at);
  V z = base_value(at, tails, base);
  V inv_density = Scalar<V>(1) / at.sums.density;
  V D = at.sums.density_slope * inv_density / parameters.smallest_scale;
  Seeds<V> seeds = inverse ? inverse_seeds(at, tails, z, D, g_value, g_ladj, base)
                           : forward_seeds(tails, z, D, g_value, g_ladj, base);
  V inv_smaller = Scalar<V>(1) / select<V>(tails.lower_is_smaller, at.sums.lower, at.sums.upper);
  V across = select<V>(tails.lower_is_smaller, seeds.across, -seeds.across);
  V inv_total = Scalar<V>(1) / parameters.total_weight();

  for (int k = 0; k < parameters.components; ++k) {
    Component<V> c = parameters.component(k);
    Terms<V> term = linear_terms<Family>(x, c);
    if (!at.all_linear) {
      Terms<V> shifted = shifted_terms<Family>(x, c, at.shift);
      term = {select<V>(at.linear, term.lower, shifted.lower), select<V>(at.linear, term.upper, shifted.upper),
              select<V>(at.linear, term.density, shifted.density), term.score};
    }
    V r = term.density * inv_density;
    V q = select<V>(tails.lower_is_smaller, term.lower, term.upper) * inv_smaller;
    V omega = c.weight * inv_total;
    V distance = x - c.loc, score_of_log_scale = fma(distance * c.inv_scale, term.score, splat<V>(1));
    V g_loc = -fma(seeds.g_ladj * term.score, r * c.inv_scale, r * seeds.along);
    V g_log_scale = -r * fma(seeds.along, distance, seeds.g_ladj * score_of_log_scale);
    // A component without density at x may be infinitely many scales away; its share is zero all the same.
    Mask<V> absent = r == Scalar<V>(0);
    sink(k, fma(across, q - omega, seeds.g_ladj * (r - omega)), select<V>(absent, V{}, g_loc),
         select<V>(absent, V{}, g_log_scale));
  }
  return seeds.g_input;
}

}  // namespace MIXFLOW_ARCH
}  // namespace mixflow
