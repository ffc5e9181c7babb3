// Families of component distributions: their contract, and the list of them.
//
// To add a family, write one struct in families/<name>.h and add it to the two lists at the end of this file. The
// kernels for CPUs and GPUs, the bindings, the command line and the benchmarks read the list. Python and the tests need
// a record each: CONTRIBUTING.md has the whole recipe, and tests/test_recipe.py follows it with a family of its own.
//
// A family is a standard distribution that is symmetric about 0. In the notation of docs/notation.md, C is its CDF, c
// its density, loc and scale belong to the component, distance = x - loc, a = distance / scale and t = |a|.
//
// What a family declares
// ----------------------
// name              the name in Python.
// density_factor    All functions below, except interval_shares, give c(a) divided by this constant. It is applied
//                   once for each element.
// unit, unit_rest   A component holds rate = unit / scale to twice the precision, as `rate` and `rate_rest`. A family
//                   whose density decays exponentially chooses the unit such that the decay is 2^-|u| or 2^-u^2 in the
//                   variable u = unit a: the exponent can then be reduced exactly, without the multiplication by
//                   log2(e) and its rounding. Any other family takes 1 and 0. unit is the exact constant rounded to
//                   double, unit_rest is what rounding took. `python tools/fit_coefficients.py --unit "log(e, 2)"`
//                   prints both for a formula in mpmath's functions.
// negligible_octaves<V>
//                   |u| from where on the family's tail is negligible in any sum that linear space holds, while its
//                   square and its power of two are still numbers. `Component::reach` is the distance at which |u| is
//                   there. A family that bounds its argument by itself declares 1 and does not use `reach`.
// keeps_nan         true if shares() is NaN, in all three numbers or at least in both tails, wherever the distance or
//                   the rate is NaN. Without this declaration shares_of() takes care of it, at the cost of a
//                   comparison.
// scored_shows_infinity
//                   true if scored() is NaN where a is infinite. Otherwise the sums over components add that.
//
// In linear space, near enough for nothing to overflow
// ----------------------------------------------------
// shares<zero_beyond>(distance, component)
//                   C(a), C(-a) and c(a), each to a few ULP. Domain: every number; see keeps_nan. Beyond `reach` the
//                   result may be that at `reach`, which is negligible in F, S and f. But a gradient may consist of
//                   such numbers alone, so with zero_beyond the tail and the density are exactly 0 there.
// kept(distance, shares), restored(distance, kept)
//                   Two numbers that stand for the three, and the three again, bit for bit.
// scored(density, distance, inv_scale, shares)
//                   density times d log c(a) / da.
//
// In log space, for every a; h, e and t have this meaning in all of these
// ------------------------------------------------------------------------
// exponent(t)       h >= 0, the decay, which grows with t up to inf and costs no more than a logarithm. Powers are
//                   exponents, too: h = 2 log t for a tail like t^-2. NaN for NaN.
// tail(t, e)        C(-t) = e tail, where e = exp(-h). It is within a few powers of two of 1 for every t, inf included.
// density_exponent(t), density(t, e)
//                   c(t) = exp(-density_exponent) density, with the same condition; e is still exp(-h). An exponential
//                   family takes exponent(t) again. A power decays by one order more than its tail.
// score(a, e)       d log c(a) / da. Where density is 0, it is not used.
// quantile(logit)   C^-1(sigmoid(logit)) to a few ULP, also where it is near 0; inf where it overflows. The inverse is
//                   then infinite, too. So layers of a family with heavy tails must not be stacked on each other.
// Both tails keep full relative accuracy by this, and a log-sum-exp needs only the exponents.
//
// Over an interval (see Interval): u = near, v = far, u + v >= 0; either may be infinite
// -------------------------------------------------------------------------------------
// interval_exponent(interval)
//                   h, with the same cost as above.
// interval_shares(interval)
//                   C(v) - C(u), c(u), c(v) and c(u) - c(v), all times exp(h) and with density_factor, without
//                   cancellation. u = v = inf and v - u = 0 must give finite numbers. Gradients multiply c(v) by v, so
//                   exp(h) must keep c(v) from becoming zero before v c(v) does. A density may have a kink at 0,
//                   where c(u) - c(v) is as it is; the record of the family in Python then declares that it is not
//                   smooth, for the oracle, which integrates.
//
// On a GPU in float32, where has_units<V> is true, exponentials, logarithms and reciprocals come from units that are
// two eps off, and the op's bounds are twice as wide. Functions of special.h and number.h choose the units by
// themselves.
//
// What every family must do with values that are not finite is tested for all of them (tests/test_ops.py): NaN in x or
// in a parameter makes NaN, infinite x makes the ends of the base, a component at infinity has its whole mass there.
#pragma once

#include "families/gaussian.h"
#include "families/logistic.h"
#include "families/student.h"

#define MIXFLOW_FAMILIES(X) \
  X(Gaussian)               \
  X(Logistic)               \
  X(Student)
