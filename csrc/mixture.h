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

// For paths that few packs take. Arguments are passed by value: a reference would keep the caller's copy in memory. On
// a GPU a call costs more than it saves: what lives across it goes to the few registers that calls preserve, or to
// memory.
#if defined(__CUDACC__)
#define MIXFLOW_RARE MIXFLOW_FN
#else
#define MIXFLOW_RARE __attribute__((noinline))
#endif

// Where the linear sums hold, for all of which a GPU's float32 decides. Of a set with scales outside of these, no
// density is above the floor: exp(-log_scale) is an exponent added to a significand.
template <class T>
struct LinearRange;
template <>
struct LinearRange<float> {
  static constexpr float smallest = 0x1p-64f, largest = 0x1p40f, least_log_scale = -40, most_log_scale = 80;
};
template <>
struct LinearRange<double> {
  static constexpr double smallest = 0x1p-700, largest = 0x1p100, least_log_scale = -300, most_log_scale = 700;
};

// unit / scale to twice the precision, for log_scale in the linear range:
//     unit exp(-log_scale) = 2^n unit exp(r) = 2^n (unit + (unit_rest + unit (r + r^2 P(r))))
// The rest is what the outer sum rounds away. Its first bits count: far out on a narrow component an error of d in the
// rate is one of a^2 d in log f, whose scale may be that of log s.
template <class V>
struct Rate {
  V rate, rest;
};
template <class Family, class V>
MIXFLOW_FN Rate<V> rate_of(V log_scale) {
  using T = Scalar<V>;
  constexpr T unit = T(Family::unit), unit_rest = T(Family::unit - unit + Family::unit_rest);
  Reduced<V> reduced(-log_scale);
  V r = reduced.r, more = fma(r, unit, fma(r * r, exp_poly(r, unit), splat<V>(unit_rest)));
  V rate = more + unit, rest = more - (rate - unit);
  return {scale_within_range(rate, reduced.shifted), scale_within_range(rest, reduced.shifted)};
}

// Of a parameter set's log-softmax weight (up to a constant) and location; in two steps for those who keep the first.
template <class Family, class V>
MIXFLOW_FN Component<V> make_component(V loc, V weight, const Rate<V>& of) {
  return {loc, of.rate, of.rest, reach_of(of.rate, Family::template reach_octaves<V>), weight, weight * of.rate};
}
template <class Family, class V>
MIXFLOW_FN Component<V> make_component(V log_weight, V loc, V log_scale) {
  return make_component<Family>(loc, quick_exp(log_weight), rate_of<Family>(log_scale));
}
template <class V>
MIXFLOW_FN LogComponent<V> make_log_component(V log_weight, V loc, V log_scale) {
  return {loc, log_weight, exp(-log_scale), quick_exp(log_weight)};
}

// What a parameter set's components have in common. `smallest_scale` is a unit for sums of 1 / scale^2, which would
// overflow long before the density does.
template <class V>
struct Common {
  V largest_logit, smallest_scale, largest_inv_scale;
  // The density below which components at the end of their reach could have mattered: there they have an absolute error
  // of inv_scale times a power of two far below `smallest`, so that a power of two for the largest inv_scale will do.
  // Infinite where the scales leave the linear range.
  V density_floor;

  Common() = default;
  MIXFLOW_FN Common(V largest_logit, V least_log_scale, V most_log_scale) : largest_logit(largest_logit) {
    using Range = LinearRange<Scalar<V>>;
    using C = Constants<Scalar<V>>;
    largest_inv_scale = exp(-least_log_scale);
    smallest_scale = reciprocal(largest_inv_scale);
    Mask<V> holds = (least_log_scale >= Range::least_log_scale) & (most_log_scale <= Range::most_log_scale);
    V power = power_of_two(fma(least_log_scale, -C::log2_e, splat<V>(C::round_magic)));
    density_floor = select<V>(holds, max(power, splat<V>(1)) * Range::smallest, infinity<V>());
  }
};

// A parameter set offers, for k in [0, components),
//     component(k)                     as the linear sums take it
//     log_component(k)                 as the logarithmic sums take it: rarely
//     total_weight()                   the sum of the weights: rarely
// and what it has in Common. It may keep four numbers of some components between the passes of a backward op:
//     keep(k, numbers), has_kept(k), kept(k), location(k)
// after which it may no longer be asked for component(k).
template <class V>
struct Kept {
  V number[4];
};

// What one component adds to F, S and f, the last times its score d log c / da, and how far away it is.
template <class V>
struct Terms {
  V lower, upper, density, scored, distance;
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
};

// Adds up what add(k, sums) adds for each component, in blocks: rounding errors grow with the length of a block and the
// number of blocks, not with their product.
// `is_hot`: whether a whole block is worth code of its own for each component.
template <bool with_slope, bool is_hot, class V, class Add>
MIXFLOW_FN Sums<V> add_up(int components, Add add) {
  constexpr int block_length = 8;
  [[maybe_unused]] constexpr int unrolled = !is_hot ? 1 : with_slope ? 4 : block_length;
  Sums<V> total;
  auto add_block = [&](const Sums<V>& block) {
    total.lower += block.lower;
    total.upper += block.upper;
    total.density += block.density;
    if constexpr (with_slope) total.density_slope += block.density_slope;
  };
  int begin = 0;
  for (; begin + block_length <= components; begin += block_length) {
    Sums<V> block;
    MIXFLOW_UNROLLED
    for (int k = 0; k < block_length; ++k) add(begin + k, block);
    add_block(block);
  }
  if (begin == components) return total;
  Sums<V> block;
  MIXFLOW_NOT_UNROLLED
  for (; begin < components; ++begin) add(begin, block);
  add_block(block);
  return total;
}

// 1 / scale to about an ULP, from unit / scale.
template <class Family, class V>
MIXFLOW_FN V inv_scale_of(V rate) {
  return rate * Scalar<V>(1 / Family::unit);
}

// The density of linear sums is in units of this, so that no component has to be multiplied by it.
template <class Family>
constexpr double density_unit = Family::density_factor / Family::unit;

template <class Family, bool with_slope, bool keep, class V, class Parameters>
MIXFLOW_FN Sums<V> linear_sums(V x, const Parameters& parameters) {
  if constexpr (exceeds_registers<V>) {
    static_assert(!keep);
    auto half = parameters.half();
    auto a = linear_sums<Family, with_slope, false>(x.a, half), b = linear_sums<Family, with_slope, false>(x.b, half);
    return {{a.lower, b.lower}, {a.upper, b.upper}, {a.density, b.density}, {a.density_slope, b.density_slope}};
  } else {
    Sums<V> total = add_up<with_slope, is_float<V>, V>(parameters.components, [&](int k, Sums<V>& sums) {
      Component<V> c = parameters.component(k);
      V distance = x - c.loc;
      Shares<V> shares = Family::template shares<with_slope>(distance, c);
      sums.lower = fma(c.weight, shares.lower, sums.lower);
      sums.upper = fma(c.weight, shares.upper, sums.upper);
      sums.density = fma(c.rated_weight, shares.density, sums.density);
      if constexpr (with_slope) {
        V density = c.rated_weight * shares.density, inv_scale = inv_scale_of<Family>(c.rate);
        V scored = Family::scored(density, distance, inv_scale, shares);
        sums.density_slope = fma(scored, inv_scale * parameters.smallest_scale, sums.density_slope);
        // NaN where the distance is infinite, as by families whose score grows with it.
        if constexpr (!Family::score_grows) sums.density_slope = fma(distance, Scalar<V>(0), sums.density_slope);
      }
      if constexpr (keep) {
        KeptShares<V> kept = Family::kept(distance, shares);
        parameters.keep(k, Kept<V>{{c.weight, c.rate, kept.first, kept.second}});
      }
    });
    return total;
  }
}

template <class Family, class V>
MIXFLOW_FN Terms<V> shifted_terms(V x, const LogComponent<V>& c, const Shifts<V>& shift) {
  V a = (x - c.loc) * c.inv_scale, t = abs(a), h = Family::exponent(t), e = exp_flushed(-h);
  V tail = Family::tail(t, e), bulk = fma(-e, tail, splat<V>(1));
  Mask<V> negative = a < Scalar<V>(0);
  V decayed = c.log_weight - h;
  V lower = exp_flushed(select<V>(negative, decayed, c.log_weight) - shift.lower);
  V upper = exp_flushed(select<V>(negative, c.log_weight, decayed) - shift.upper);
  // A scale below the dtype's range makes a point mass: no density beside it, though its inverse scale is inf.
  V density = exp_flushed(decayed - shift.density) * Family::density(t, e);
  density = select<V>(density == Scalar<V>(0), V{}, density * c.inv_scale);
  Shares<V> shares{select<V>(negative, e * tail, bulk), select<V>(negative, bulk, e * tail), density};
  V distance = x - c.loc, scored = Family::scored(density, a, splat<V>(1), shares);
  // A component without density at x may be infinitely many scales away; its share is zero all the same.
  Mask<V> absent = density == Scalar<V>(0);
  return {lower * select<V>(negative, tail, bulk), upper * select<V>(negative, bulk, tail), density,
          select<V>(absent, V{}, scored), select<V>(absent, V{}, distance)};
}

// The largest exponent in each sum. In a far tail the shifts of f and of the smaller of F and S are the same number,
// so that f / min(F, S) loses nothing.
template <class Family, class V, class Parameters>
MIXFLOW_FN Shifts<V> largest_exponents(V x, const Parameters& parameters) {
  Shifts<V> shift{-infinity<V>(), -infinity<V>(), -infinity<V>()};
  for (int k = 0; k < parameters.components; ++k) {
    LogComponent<V> c = parameters.log_component(k);
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

template <class V>
struct ShiftedSums {
  Sums<V> sums;
  Shifts<V> shift;
};

template <class Family, bool with_slope, class V, class Parameters>
MIXFLOW_RARE ShiftedSums<V> shifted_sums(V x, const Parameters& parameters) {
  Shifts<V> shift = largest_exponents<Family>(x, parameters);
  return {add_up<with_slope, false, V>(
              parameters.components,
              [&](int k, Sums<V>& block) {
                LogComponent<V> c = parameters.log_component(k);
                Terms<V> term = shifted_terms<Family>(x, c, shift);
                block.lower += term.lower;
                block.upper += term.upper;
                block.density += term.density;
                if constexpr (with_slope)
                  block.density_slope = fma(term.scored, c.inv_scale * parameters.smallest_scale, block.density_slope);
              }),
          shift};
}

template <class Family, bool with_slope, bool keep, class V, class Parameters>
MIXFLOW_FN Evaluation<V> evaluate(V x, const Parameters& parameters) {
  using Range = LinearRange<Scalar<V>>;
  Evaluation<V> at;
  at.sums = linear_sums<Family, with_slope, keep>(x, parameters);
  at.linear = (at.sums.lower >= Range::smallest) & (at.sums.upper >= Range::smallest) &
              (at.sums.density >= parameters.density_floor) & (at.sums.density <= Range::largest);
  // Where a component lies at infinity, the slope is that of an infinite distance.
  if constexpr (with_slope) at.linear = at.linear & (at.sums.density_slope == at.sums.density_slope);
  at.all_linear = all(at.linear);
  if (!at.all_linear) {
    // Field by field, and nothing of `at` is passed on as a whole: it would live in memory from its beginning.
    ShiftedSums<V> other = shifted_sums<Family, with_slope>(x, parameters);
    at.shift.lower = select<V>(at.linear, V{}, other.shift.lower);
    at.shift.upper = select<V>(at.linear, V{}, other.shift.upper);
    at.shift.density = select<V>(at.linear, V{}, other.shift.density);
    at.sums.lower = select<V>(at.linear, at.sums.lower, other.sums.lower);
    at.sums.upper = select<V>(at.linear, at.sums.upper, other.sums.upper);
    at.sums.density = select<V>(at.linear, at.sums.density, other.sums.density);
    at.sums.density_slope = select<V>(at.linear, at.sums.density_slope, other.sums.density_slope);
  }
  return at;
}

// F and S normalised, m = min(F, S), f / m, and their logs where linear space does not reach.
template <class V>
struct Tails {
  V lower, upper, smaller, density_over_smaller;
  V density;  // in linear space only
  Mask<V> lower_is_smaller;
  V logit, log_smaller, log_larger, log_density_over_smaller;  // set only when some lane is not linear
};

template <class Family, class V>
MIXFLOW_FN Tails<V> linear_tails(const Sums<V>& sums) {
  Tails<V> tails;
  V inv_total = bounded_reciprocal(sums.lower + sums.upper);
  tails.lower = sums.lower * inv_total;
  tails.upper = sums.upper * inv_total;
  tails.lower_is_smaller = sums.lower < sums.upper;
  tails.smaller = select<V>(tails.lower_is_smaller, tails.lower, tails.upper);
  V inv_smaller = bounded_reciprocal(select<V>(tails.lower_is_smaller, sums.lower, sums.upper));
  V density = sums.density * Scalar<V>(density_unit<Family>);
  tails.density_over_smaller = density * inv_smaller;
  tails.density = density * inv_total;
  return tails;
}

template <class Family, class V>
MIXFLOW_RARE Tails<V> with_logarithms(Evaluation<V> at, Tails<V> tails) {
  V log_lower = at.shift.lower + log(at.sums.lower), log_upper = at.shift.upper + log(at.sums.upper);
  tails.logit = (at.shift.lower - at.shift.upper) + (log(at.sums.lower) - log(at.sums.upper));
  V magnitude = abs(tails.logit);
  tails.log_larger = -log1p_exp_neg(magnitude);
  tails.log_smaller = tails.log_larger - magnitude;
  tails.lower_is_smaller = (at.linear & tails.lower_is_smaller) | ((at.linear == 0) & (log_lower < log_upper));
  V shift = select<V>(tails.lower_is_smaller, at.shift.lower, at.shift.upper);
  V sum = select<V>(tails.lower_is_smaller, at.sums.lower, at.sums.upper);
  V density = at.sums.density * Scalar<V>(Family::density_factor);  // sums in log space are in this unit
  tails.log_density_over_smaller = (at.shift.density - shift) + (log(density) - log(sum));
  V e = exp(-magnitude), larger = bounded_reciprocal(Scalar<V>(1) + e), smaller = e * larger;
  tails.smaller = select<V>(at.linear, tails.smaller, smaller);
  tails.lower = select<V>(at.linear, tails.lower, select<V>(tails.lower_is_smaller, smaller, larger));
  tails.upper = select<V>(at.linear, tails.upper, select<V>(tails.lower_is_smaller, larger, smaller));
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
    return BaseTerms<V>{z, base.mills(z, tails.lower, tails.upper), base.score(z, tails.lower, tails.upper), at.ladj,
                        base.log_mills(z, tails.log_smaller, tails.log_larger)};
  });
}

template <bool with_ladj, class V>
MIXFLOW_FN BaseTerms<V> base_terms(const Evaluation<V>& at, const Tails<V>& tails, RuntimeBase base) {
  BaseTerms<V> terms = base.dispatch<BaseTerms<V>>([&](auto base) {
    V z = base.from_tails(tails.lower, tails.upper), ladj{};
    if constexpr (with_ladj) ladj = base.ladj(tails.density, tails.density_over_smaller, z, tails.lower, tails.upper);
    return BaseTerms<V>{z, base.mills(z, tails.lower, tails.upper), base.score(z, tails.lower, tails.upper), ladj, V{}};
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
  return {select<V>(linear, term.lower, shifted.lower), select<V>(linear, term.upper, shifted.upper),
          select<V>(linear, term.density, shifted.density), select<V>(linear, term.scored, shifted.scored),
          select<V>(linear, term.distance, shifted.distance)};
}

// What the gradients by the parameters take from an element: the factors that all components have in common.
template <class V>
struct ElementSeeds {
  V x, by_tail, by_weight, by_density, by_slope;
  Mask<V> lower_is_smaller, linear;
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
    Kept<V> kept = parameters.kept(k);
    distance = at.x - parameters.location(k);
    weight = kept.number[0];
    rate = kept.number[1];
    shares = Family::restored(distance, KeptShares<V>{kept.number[2], kept.number[3]});
  } else {
    Component<V> c = parameters.component(k);
    distance = at.x - c.loc;
    weight = c.weight;
    rate = c.rate;
    shares = Family::template shares<true>(distance, c);
  }
  V inv_scale = inv_scale_of<Family>(rate), density = weight * rate * shares.density;
  Terms<V> term{weight * shares.lower, weight * shares.upper, density,
                Family::scored(density, distance, inv_scale, shares), distance};
  if constexpr (!all_linear) {
    LogComponent<V> c = parameters.log_component(k);
    term = with_shifted_terms<Family>(at.x, c, at.linear, at.shift, term);
    inv_scale = select<V>(at.linear, inv_scale, c.inv_scale);
  }
  V tail = select<V>(at.lower_is_smaller, term.lower, term.upper), by_density = term.density * at.by_density;
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
  V across = select<V>(tails.lower_is_smaller, seeds.across, -seeds.across);
  V inv_smaller = reciprocal(select<V>(tails.lower_is_smaller, at.sums.lower, at.sums.upper));
  // The gradients above, with all that is common to the components taken out of the loop.
  // The weights add up to F + S, but for rounding.
  V inv_weight = bounded_reciprocal(at.sums.lower + at.sums.upper);
  if (!at.all_linear) inv_weight = select<V>(at.linear, inv_weight, reciprocal(parameters.total_weight()));
  V by_tail = across * inv_smaller, by_weight = (across + seeds.g_ladj) * inv_weight;
  V by_density = seeds.g_ladj * inv_density, by_slope = seeds.along * inv_density;
  return {seeds.g_input,
          terms.value,
          {x, by_tail, by_weight, by_density, by_slope, tails.lower_is_smaller, at.linear, at.all_linear, at.shift}};
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
