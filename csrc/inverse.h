// The inverse: x with F(x) = G(z), by a third-order Newton method inside a bracket.
//
// The equation is solved as h(x) = log F(x) - log S(x) - logit = 0, in which the tails are straight lines, parabolas or
// logarithms. The root lies between the smallest and the largest quantile of the components at the same probability.
// Halley's step
//     dx = -(h / h') / (1 - h h'' / (2 h'^2)),  h' = f / (F S),  h'' / h' = f'/f - h' (S - F),
// is taken if it stays inside the bracket and if the step before shrank the residual by at least a quarter. Otherwise
// the bracket is bisected. If the bisection did not help either, component_step is tried before the next one. Both are
// followed by one step of Halley's that is not judged. So at least one of any four evaluations shrinks the residual or
// halves the bracket, and the loop ends. Late in the loop a step must shrink the residual to a sixteenth: a residual of
// 1e244, as 1e122 scales out, would otherwise take too many steps.
#pragma once

#include "mixture.h"

namespace mixflow {
namespace MIXFLOW_ARCH {

// Bisection halves the bracket's length at first. If that is not enough, it halves the count of representable numbers
// in the bracket, which finds a root 1e-35 from zero in a bracket of length 1e35.
constexpr int kLinearBisections = 30, kMaxEvaluations = 4 * (kLinearBisections + 64);

template <class V>
struct Bracket {
  V left, right, start;
  Mask<V> overflows;  // whether every component's quantile is infinite, and so the root
  Mask<V> is_nan;     // whether the logit or a parameter is NaN
};

template <class Family, class V, class Parameters>
MIXFLOW_FN Bracket<V> component_quantiles(V logit, const Parameters& parameters) {
  using T = Scalar<V>;
  constexpr T widening = 4 * Limits<T>::epsilon;
  V quantile = Family::quantile(logit);
  Bracket<V> bracket{infinity<V>(), -infinity<V>(), V{}, logit == logit, logit != logit};
  for (int k = 0; k < parameters.components; ++k) {
    LogComponent<V> c = parameters.log_component(k);
    // A point mass has no scale, by which an infinite quantile could be multiplied.
    V scale = reciprocal(c.inv_scale), offset = select<V>(scale == T(0), V{}, quantile * scale), point = c.loc + offset;
    V margin = (abs(c.loc) + abs(offset)) * widening + Limits<T>::min_normal;
    // The quantile of a heavy tail may overflow. The location then bounds it on the other side.
    Mask<V> overflows = abs(offset) == infinity<V>();
    V least = select<V>(overflows, min(c.loc, offset), point - margin);
    V most = select<V>(overflows, max(c.loc, offset), point + margin);
    bracket.is_nan = bracket.is_nan | (c.loc != c.loc) | (c.inv_scale != c.inv_scale) | (c.log_weight != c.log_weight);
    Mask<V> counts = c.log_weight > -Limits<T>::max;  // the weight itself may have underflowed
    bracket.overflows = bracket.overflows & (overflows | (counts == 0));
    bracket.left = min(bracket.left, select<V>(counts, least, bracket.left));
    bracket.right = max(bracket.right, select<V>(counts, most, bracket.right));
    bracket.start += select<V>(c.weight > T(0), c.weight * point, V{});
  }
  // And there is a component at all, and the logit is not infinite itself.
  bracket.overflows = bracket.overflows & (bracket.left <= bracket.right) & is_finite(logit);
  V largest = splat<V>(Limits<T>::max);
  bracket.left = max(bracket.left, -largest);
  bracket.right = min(bracket.right, largest);
  bracket.start = max(min(bracket.start / parameters.total_weight(), bracket.right), bracket.left);
  return bracket;
}

// A point to try when neither Halley's step nor a bisection helped.
//
// First case: a plateau, on which F hardly changes and Newton's method leaps. The component with the largest tail on
// the side of the root is found by its exponent, since the tail itself may have underflowed. If F changed by this
// component alone, its tail beyond x would have to grow by |F(x) - u|, and its own quantile solves that. Between
// components that lie far apart this is exact.
//
// Second case: x lies within a wide component, probably beside a narrow one that Newton's method does not see. The
// location of the heaviest narrow component is tried, since F changes the most there.
//
// The result is NaN if no such component lies inside the bracket.
template <class Family, class V, class Parameters>
MIXFLOW_RARE V component_step(V x, V logit, V left, V right, Tails<V> tails, const Parameters& parameters) {
  using T = Scalar<V>;
  constexpr T far = 2, narrow = T(0.0625);
  V e = exp(-abs(logit)), larger = bounded_reciprocal(T(1) + e), smaller = e * larger;
  Mask<V> low = logit < T(0);
  V excess = tails.cdf * select<V>(low, larger, smaller) - tails.survival * select<V>(low, smaller, larger);
  Mask<V> root_left = excess > T(0);
  V exponent = -infinity<V>(), loc = quiet_nan<V>(), inv_scale = quiet_nan<V>(), weight{}, t{};
  V spike = quiet_nan<V>(), spike_log_weight = splat<V>(-Limits<T>::max);
  V narrow_inv_scale = T(1) / ((right - left) * narrow);
  for (int k = 0; k < parameters.components; ++k) {
    LogComponent<V> c = parameters.log_component(k);
    V a = (x - c.loc) * c.inv_scale, own = c.log_weight - Family::exponent(abs(a));
    Mask<V> nearer = (select<V>(root_left, a, -a) > T(0)) & (own > exponent);
    exponent = select<V>(nearer, own, exponent);
    loc = select<V>(nearer, c.loc, loc);
    inv_scale = select<V>(nearer, c.inv_scale, inv_scale);
    weight = select<V>(nearer, c.weight, weight);
    t = select<V>(nearer, abs(a), t);
    Mask<V> heavier =
        (c.loc > left) & (c.loc < right) & (c.inv_scale > narrow_inv_scale) & (c.log_weight > spike_log_weight);
    spike = select<V>(heavier, c.loc, spike);
    spike_log_weight = select<V>(heavier, c.log_weight, spike_log_weight);
  }
  V decay = exp_flushed(-Family::exponent(t));
  V tail = decay * Family::tail(t, decay) + abs(excess) * parameters.total_weight() / weight;
  V offset = Family::quantile(log((T(1) - tail) / tail)) / inv_scale;
  V leap = loc + select<V>(root_left, offset, -offset);
  return select<V>((t > far) & (leap > left) & (leap < right), leap, spike);
}

template <class V>
struct Solution {
  Mapped<V> mapped;
  V evaluations, residual;
};

// One end of the bracket: the last point evaluated on that side of the root, and what was found there.
template <class V>
struct End {
  V x, error = infinity<V>(), log_odds = quiet_nan<V>(), log_ratio = quiet_nan<V>();

  MIXFLOW_FN void update(Mask<V> here, V at, V its_error, V its_log_odds, V its_log_ratio) {
    x = select<V>(here, at, x);
    error = select<V>(here, its_error, error);
    log_odds = select<V>(here, its_log_odds, log_odds);
    log_ratio = select<V>(here, its_log_ratio, log_ratio);
  }
};

// x and log dx/dz.
template <class Family, class V, class Parameters>
MIXFLOW_FN Solution<V> inverse(V z, const Parameters& parameters, RuntimeBase base) {
  using T = Scalar<V>;
  V logit = base.dispatch<V>([&](auto base) { return base.to_logit(z); });
  Bracket<V> bracket = component_quantiles<Family>(logit, parameters);
  logit = select<V>(bracket.overflows, copysign(infinity<V>(), logit), logit);
  V x = bracket.start, evaluations{}, last_residual = infinity<V>();
  End<V> left{bracket.left}, right{bracket.right};
  V tolerance = max(abs(logit), splat<V>(1)) * (4 * Limits<T>::epsilon);
  Mask<V> active = is_finite(logit), bisected = active & (x != x), failed = bisected | bracket.is_nan;
  for (int i = 0; i < kMaxEvaluations && any(active); ++i) {
    Evaluation<V> at = evaluate<Family, true, false>(x, parameters);
    Tails<V> tails = tails_of<Family>(at);
    V log_odds = log_normal(tails.cdf * bounded_reciprocal(tails.survival));
    V log_ratio = log_normal(tails.density_over_smaller);
    if (!at.all_linear) {
      log_odds = select<V>(at.linear, log_odds, tails.logit);
      log_ratio = select<V>(at.linear, log_ratio, tails.log_density_over_smaller);
    }
    V residual = log_odds - logit;
    // h' = f / (F S) = (f / m) / (1 - m)
    V slope = tails.density_over_smaller * bounded_reciprocal(T(1) - tails.smaller);
    slope = select<V>(slope <= Limits<T>::max, slope, V{});  // a point mass has no slope to go by
    V D = at.sums.density_slope * reciprocal(at.sums.density) * parameters.largest_inv_scale;
    V curvature = D - slope * (tails.survival - tails.cdf);
    V newton = residual * reciprocal(slope);
    V bend = max(min(newton * curvature * T(0.5), splat<V>(T(0.5))), splat<V>(T(-1)));
    V step = newton * bounded_reciprocal(T(1) - bend);
    // The error against what rounding allows: that of the residual, and half a spacing of x at most.
    V error = abs(residual) * reciprocal(tolerance + slope * (abs(x) * (T(0.25) * Limits<T>::epsilon)));
    left.update(active & (residual < T(0)), x, error, log_odds, log_ratio);
    right.update(active & (residual >= T(0)), x, error, log_odds, log_ratio);
    V middle = i < kLinearBisections ? left.x * T(0.5) + right.x * T(0.5) : ordinal_middle(left.x, right.x);
    V stepped = x - step;
    // A step that rounds to nothing still shows on which side the root is.
    V neighbour = select<V>(residual > T(0), from_ordinal<V>(to_ordinal(x) - 1), from_ordinal<V>(to_ordinal(x) + 1));
    stepped = select<V>(stepped == x, neighbour, stepped);
    T enough = i < kLinearBisections ? T(0.75) : T(0.0625);
    Mask<V> holds = (stepped > left.x) & (stepped < right.x) & (abs(residual) <= last_residual * enough);
    V next = select<V>(holds, stepped, middle);
    Mask<V> jumps = holds == 0, leapt = x != x, stuck = active & bisected & jumps;
    if (any(stuck)) {
      V leap = component_step<Family>(x, logit, left.x, right.x, tails, parameters);
      leapt = stuck & (leap == leap);
      next = select<V>(leapt, leap, next);
    }
    bisected = jumps ^ leapt;  // a leap is a jump
    // Unordered comparisons end a lane whose parameters are NaN.
    failed = failed | (active & (residual != residual));
    // A large residual is not to be explained by the slope at x, which may be that of a component narrower than a
    // spacing.
    Mask<V> unsettled =
        ((error > T(1)) | (abs(residual) > max(tolerance, splat<V>(T(0.125))))) & (next > left.x) & (next < right.x);
    evaluations += select<V>(active, splat<V>(1), V{});
    active = active & unsettled;
    x = select<V>(active, next, x);
    // After a jump the search starts anew, and the residual before it is no measure for the next Newton step.
    last_residual = select<V>(jumps, infinity<V>(), abs(residual));
  }
  // Where the bracket ran out of numbers before the error was small, F jumps between its two ends: the end inside the
  // jump, with its slope, has the smaller error, though the residual may be smaller at the other.
  Mask<V> from_left = left.error < right.error;
  V root = select<V>(from_left, left.x, right.x), log_odds = select<V>(from_left, left.log_odds, right.log_odds);
  V log_ratio = select<V>(from_left, left.log_ratio, right.log_ratio);
  // The slope at x, not at the z asked for: where x can not resolve z they differ.
  V magnitude = abs(log_odds), log_larger = -log1p_exp_neg(magnitude);
  V log_mills = base.dispatch<V>(
      [&](auto base) { return base.log_mills(base.from_logit(log_odds), log_larger - magnitude, log_larger); });
  V ladj = -(log_ratio + log_mills);
  ladj = select<V>(bracket.is_nan, quiet_nan<V>(), select<V>(bracket.overflows, infinity<V>(), ladj));
  root = select<V>(failed, quiet_nan<V>(), select<V>(is_finite(logit), root, logit));
  return {{root, ladj}, evaluations, log_odds - logit};
}

}  // namespace MIXFLOW_ARCH
}  // namespace mixflow
