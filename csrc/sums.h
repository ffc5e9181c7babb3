// F, S, f and f' of a mixture at one x: the sums over its components.
//
//     F(x) = sum_k w_k C(a_k)    S(x) = sum_k w_k C(-a_k)    f(x) = sum_k w_k c(a_k) / s_k    a_k = (x - loc_k) / s_k
//
// Weights need not add up to one, since only F / (F + S) and the like are ever used. The sums are taken in linear space
// first. If one of them leaves the range in which that is exact (in far tails, and in gaps between components far
// apart), the same sums are taken again as log-sum-exps: each sum is then known up to a factor exp(shift). The shift is
// the largest of the components' exponents, which cost a logarithm at most. Each lane is decided by its own values
// alone, so a result never depends on its neighbours.
#pragma once

#include "parameters.h"

namespace mixflow {
namespace MIXFLOW_ARCH {

// What one component adds to F, S and f; the last once more, times the component's score d log c / da; and x - loc.
template <class V>
struct Terms {
  V cdf, survival, density, scored, distance;
};

template <class V>
struct Shifts {
  V cdf, survival, density;
};

// F, S, f and f' up to factors exp(shift), which are one in linear space. f' is in units of the smallest scale, since 1
// / scale^2 would overflow long before the density does.
template <class V>
struct Sums {
  V cdf{}, survival{}, density{}, density_slope{};

  MIXFLOW_FN void add(const Sums& other) {
    cdf += other.cdf;
    survival += other.survival;
    density += other.density;
    density_slope += other.density_slope;
  }
};

// The sum of what add(k, sum) adds for each component k, taken in blocks: rounding errors then grow with the length of
// a block plus the number of blocks, and not with their product. `unrolled` components of a block get code of their
// own, one after the other.
template <class Sum, int unrolled, class Add>
MIXFLOW_FN Sum add_up(int components, Add add) {
  constexpr int block_length = 8;
  Sum total;
  int begin = 0;
  for (; begin + block_length <= components; begin += block_length) {
    Sum block;
    MIXFLOW_UNROLLED
    for (int k = 0; k < block_length; ++k) add(begin + k, block);
    total.add(block);
  }
  if (begin == components) return total;
  Sum block;
  MIXFLOW_NOT_UNROLLED
  for (; begin < components; ++begin) add(begin, block);
  total.add(block);
  return total;
}

// What the first pass of a backward op keeps of a component.
template <class V>
struct KeptComponent {
  V weight, rate;
  KeptShares<V> shares;

  MIXFLOW_FN Kept<V> packed() const { return {{weight, rate, shares.first, shares.second}}; }
  MIXFLOW_FN static KeptComponent unpacked(const Kept<V>& kept) {
    return {kept.number[0], kept.number[1], {kept.number[2], kept.number[3]}};
  }
};

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
    return {{a.cdf, b.cdf}, {a.survival, b.survival}, {a.density, b.density}, {a.density_slope, b.density_slope}};
  } else {
    constexpr int unrolled = !is_float<V> ? 1 : with_slope ? 4 : 8;
    return add_up<Sums<V>, unrolled>(parameters.components, [&](int k, Sums<V>& sums) {
      Component<V> c = parameters.component(k);
      V distance = x - c.loc;
      Shares<V> shares = shares_of<Family, with_slope>(distance, c);
      sums.cdf = fma(c.weight, shares.cdf, sums.cdf);
      sums.survival = fma(c.weight, shares.survival, sums.survival);
      sums.density = fma(c.rated_weight, shares.density, sums.density);
      if constexpr (with_slope) {
        V density = c.rated_weight * shares.density, inv_scale = inv_scale_of<Family>(c.rate);
        V scored = Family::scored(density, distance, inv_scale, shares);
        sums.density_slope = fma(scored, inv_scale * parameters.smallest_scale, sums.density_slope);
        // A component at infinity makes NaN of the slope, by which `evaluate` finds it.
        if constexpr (!Family::scored_shows_infinity)
          sums.density_slope = fma(distance, Scalar<V>(0), sums.density_slope);
      }
      if constexpr (keep)
        parameters.keep(k, KeptComponent<V>{c.weight, c.rate, Family::kept(distance, shares)}.packed());
    });
  }
}

template <class Family, class V>
MIXFLOW_FN Terms<V> shifted_terms(V x, const LogComponent<V>& c, const Shifts<V>& shift) {
  V a = (x - c.loc) * c.inv_scale, t = abs(a), h = Family::exponent(t), e = exp_flushed(-h);
  V tail = Family::tail(t, e), bulk = fma(-e, tail, splat<V>(1));
  Mask<V> negative = a < Scalar<V>(0);
  V decayed = c.log_weight - h, decayed_density = c.log_weight - Family::density_exponent(t);
  V cdf = exp_flushed(select<V>(negative, decayed, c.log_weight) - shift.cdf);
  V survival = exp_flushed(select<V>(negative, c.log_weight, decayed) - shift.survival);
  // A scale below the dtype's range makes a point mass: no density beside it, though its inverse scale is inf.
  V density = exp_flushed(decayed_density - shift.density) * Family::density(t, e);
  density = select<V>(density == Scalar<V>(0), V{}, density * c.inv_scale);
  V distance = x - c.loc, scored = density * Family::score(a, e);
  // A component without density at x may be infinitely many scales away; its share is zero all the same.
  Mask<V> absent = density == Scalar<V>(0);
  return {cdf * select<V>(negative, tail, bulk), survival * select<V>(negative, bulk, tail), density,
          select<V>(absent, V{}, scored), select<V>(absent, V{}, distance)};
}

// The largest exponent in each sum. In a far tail the shifts of f and of the smaller of F and S are the same number for
// families that decay exponentially, so that f / min(F, S) loses nothing.
template <class Family, class V, class Parameters>
MIXFLOW_FN Shifts<V> largest_exponents(V x, const Parameters& parameters) {
  Shifts<V> shift{-infinity<V>(), -infinity<V>(), -infinity<V>()};
  for (int k = 0; k < parameters.components; ++k) {
    LogComponent<V> c = parameters.log_component(k);
    V a = (x - c.loc) * c.inv_scale, decayed = c.log_weight - Family::exponent(abs(a));
    V decayed_density = c.log_weight - Family::density_exponent(abs(a));
    Mask<V> negative = a < Scalar<V>(0);
    shift.cdf = max(shift.cdf, select<V>(negative, decayed, c.log_weight));
    shift.survival = max(shift.survival, select<V>(negative, c.log_weight, decayed));
    shift.density = max(shift.density, decayed_density);
  }
  V lowest = splat<V>(-Limits<Scalar<V>>::max);  // a sum of zeros has no exponent: keep inf - inf out
  return {max(shift.cdf, lowest), max(shift.survival, lowest), max(shift.density, lowest)};
}

// The sums at x. `linear` marks the lanes whose sums are in linear space; `shift` is zero there.
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
  Sums<V> sums = add_up<Sums<V>, 1>(parameters.components, [&](int k, Sums<V>& block) {
    LogComponent<V> c = parameters.log_component(k);
    Terms<V> term = shifted_terms<Family>(x, c, shift);
    block.cdf += term.cdf;
    block.survival += term.survival;
    block.density += term.density;
    if constexpr (with_slope)
      block.density_slope = fma(term.scored, c.inv_scale * parameters.smallest_scale, block.density_slope);
  });
  return {sums, shift};
}

template <class Family, bool with_slope, bool keep, class V, class Parameters>
MIXFLOW_FN Evaluation<V> evaluate(V x, const Parameters& parameters) {
  using Range = LinearRange<Scalar<V>>;
  Evaluation<V> at;
  at.sums = linear_sums<Family, with_slope, keep>(x, parameters);
  at.linear = (at.sums.cdf >= Range::smallest) & (at.sums.survival >= Range::smallest) &
              (at.sums.density >= parameters.density_floor) & (at.sums.density <= Range::largest);
  // Where a component lies at infinity, the slope is that of an infinite distance.
  if constexpr (with_slope) at.linear = at.linear & (at.sums.density_slope == at.sums.density_slope);
  at.all_linear = all(at.linear);
  if (!at.all_linear) {
    // Field by field: if `at` were passed on as a whole, the compiler would keep all of it in memory from the
    // beginning.
    ShiftedSums<V> other = shifted_sums<Family, with_slope>(x, parameters);
    at.shift.cdf = select<V>(at.linear, V{}, other.shift.cdf);
    at.shift.survival = select<V>(at.linear, V{}, other.shift.survival);
    at.shift.density = select<V>(at.linear, V{}, other.shift.density);
    at.sums.cdf = select<V>(at.linear, at.sums.cdf, other.sums.cdf);
    at.sums.survival = select<V>(at.linear, at.sums.survival, other.sums.survival);
    at.sums.density = select<V>(at.linear, at.sums.density, other.sums.density);
    at.sums.density_slope = select<V>(at.linear, at.sums.density_slope, other.sums.density_slope);
  }
  return at;
}

}  // namespace MIXFLOW_ARCH
}  // namespace mixflow
