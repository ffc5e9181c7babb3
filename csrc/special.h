// Elementary and special functions, written once for every number type.
//
// Above each stand two lines: its domain, and its largest error in units in the last place (ULP), measured against
// mpmath in both dtypes (tests/test_special.py, tools/measure_ulp.py). "Every x" includes infinities, subnormal numbers
// and NaN. NaN makes NaN, except where a warning stands.
//
// Exponentials. x = n ln 2 + r with a whole number n and |r| <= ln(2) / 2. A polynomial gives exp(r), and 2^n goes into
// the exponent's bits. ln 2 is split into two numbers, the first with so few bits that n times it is exact (Cody and
// Waite); without that, exp(x) would lose |x| ULP. A caller who has x / ln 2 to twice the precision skips this step
// (exp2_split).
//
// The normal distribution. Phi(-t) vanishes like exp(-t^2/2) / t, so no formula for it can be accurate and simple at
// once. Everything is built on T(t) = Phi(-t) exp(t^2/2), the tail without its decay, which is smooth and between 1/2
// and 1 / (sqrt(2 pi) t): scaled_normal_tail in coefficients.h.
//
// The probit, the inverse of Phi, takes three formulas. With w = -log(4 p (1 - p)), which is 0 at p = 1/2 and grows
// without bound in both tails:
//     w < probit_split                  probit(p) = (2 p - 1) A(w), A a rational function
//     probit_split <= w < probit_limit  the same with A a rational function of sqrt(w), the asymptote's variable
//     beyond                            the tail is smaller than any number and only its logarithm is known:
//                                       Newton's method on log Phi (probit_far)
// p itself would lose its last digits near 1, so callers pass both tails, or the logit.
#pragma once

#include "coefficients.h"
#include "number.h"

namespace mixflow {
namespace MIXFLOW_ARCH {

template <class T>
struct Constants;
template <>
struct Constants<float> {
  static constexpr float log2_e = 0x1.715476p+0f, log2_e_rest = 0x1.4ae0bcp-26f;
  static constexpr float ln2_hi = 0x1.63p-1f,
                         ln2_lo = -0x1.bd0106p-13f;  // hi: 9 bits, so n * hi is exact
  static constexpr float round_magic = 0x1.8p23f;
  static constexpr float exp_flush = -88.0f, exp_lowest = -104.0f, exp_highest = 89.0f;
  static constexpr uint32_t sqrt_half_bits = 0x3f3504f3u, one_bits = 0x3f800000u, mantissa_mask = 0x007fffffu;
  static constexpr float subnormal_scale = 0x1p24f, subnormal_log2 = 24;
};
template <>
struct Constants<double> {
  static constexpr double log2_e = 0x1.71547652b82fep+0, log2_e_rest = 0x1.777d0ffda0d24p-56;
  static constexpr double ln2_hi = 0x1.62e42feep-1,
                          ln2_lo = 0x1.a39ef35793c76p-33;  // hi: 32 bits
  static constexpr double round_magic = 0x1.8p52;
  static constexpr double exp_flush = -709.0, exp_lowest = -746.0, exp_highest = 710.0;
  static constexpr uint64_t sqrt_half_bits = 0x3fe6a09e667f3bcdull, one_bits = 0x3ff0000000000000ull,
                            mantissa_mask = 0x000fffffffffffffull;
  static constexpr double subnormal_scale = 0x1p54, subnormal_log2 = 54;
};

// 2^n for a whole number n that was rounded by adding `round_magic`: the low bits of that sum are n in two's
// complement.
// Domain: n from 1 - bias to bias, for which 2^n is a normal number. Error: none.
template <class V>
MIXFLOW_FN V power_of_two(V n_plus_magic) {
  using L = Limits<Scalar<V>>;
  return from_bits<V>((to_bits(n_plus_magic) << L::mantissa_bits) +
                      (Bits<Scalar<V>>(L::exponent_bias) << L::mantissa_bits));
}

// x 2^n for a whole number n.
// Domain: every x; |n| up to twice the exponent's range. Error: one rounding, where the result is subnormal.
template <class V>
MIXFLOW_FN V scale_by_power_of_two(V x, V n) {
  if constexpr (has_scalef<V>) return scalef(x, n);
  constexpr Scalar<V> magic = Constants<Scalar<V>>::round_magic;
  V half = fma(n, Scalar<V>(0.5), magic), remaining = (n - (half - magic)) + magic;
  return x * power_of_two(half) * power_of_two(remaining);
}

// The same for an n that was rounded by adding `round_magic`.
// Domain: 2^n and the result are normal numbers. Error: none.
template <class V>
MIXFLOW_FN V scale_within_range(V x, V n_plus_magic) {
  if constexpr (has_scalef<V>) return scalef(x, n_plus_magic - Constants<Scalar<V>>::round_magic);
  return x * power_of_two(n_plus_magic);
}

// x = n ln 2 + r with |r| <= ln(2)/2; the two-part ln 2 keeps r exact (Cody and Waite). exp(r) - 1 is r + r^2 P(r).
template <class V>
struct Reduced {
  V shifted, n, r;

  MIXFLOW_FN explicit Reduced(V x) {
    using C = Constants<Scalar<V>>;
    shifted = fma(x, C::log2_e, C::round_magic);
    n = shifted - C::round_magic;
    r = fma(n, -C::ln2_lo, fma(n, -C::ln2_hi, x));
  }
  MIXFLOW_FN V exp_minus_one() const { return fma(r * r, exp_poly(r), r); }
};

// exp(x), where results below the smallest normal number may become 0.
// Domain: x <= 0. Error: at most 1 ULP.
template <class V>
MIXFLOW_FN V exp_flushed(V x) {
  Reduced<V> reduced(at_least(x, splat<V>(Constants<Scalar<V>>::exp_flush)));
  return (reduced.exp_minus_one() + Scalar<V>(1)) * power_of_two(reduced.shifted);
}

// exp(x + lo) for |lo| small against 1. `rest`, if it is not null, becomes the part of the result that rounding took.
// Domain: every x, with subnormal results, and inf where the result overflows. Error: at most 1 ULP.
template <class V>
MIXFLOW_FN V exp(V x, const V* lo, V* rest) {
  using C = Constants<Scalar<V>>;
  Reduced<V> reduced(at_most(at_least(x, splat<V>(C::exp_lowest)), splat<V>(C::exp_highest)));
  if (lo != nullptr) reduced.r += *lo;
  V minus_one = reduced.exp_minus_one(), result = minus_one + Scalar<V>(1);
  if (rest != nullptr) *rest = scale_by_power_of_two(minus_one - (result - Scalar<V>(1)), reduced.n);
  return scale_by_power_of_two(result, reduced.n);
}
template <class V>
MIXFLOW_FN V exp(V x) {
  return exp(x, static_cast<const V*>(nullptr), static_cast<V*>(nullptr));
}

// 2^(n + r), and 1 + 2^(n + r). n was rounded by adding `octave_magic`: to a whole number with |r| <= 1/2 or, where
// powers are looked up in a table, to a sixteenth with |r| <= 1/32.
// Domain: a normal result. Error: at most 2 ULP.
// Warning: for a NaN input, `value` may be an ordinary number, because the exponent is added to its bits as an integer.
// `one_plus` is NaN.
template <class V>
constexpr Scalar<V> octave_magic =
    has_lookup<V> ? Constants<Scalar<V>>::round_magic / 16 : Constants<Scalar<V>>::round_magic;
template <class V>
struct PowerOfTwo {
  V value, one_plus;
};

template <class V>
MIXFLOW_FN PowerOfTwo<V> exp2_split(V n_plus_magic, V r) {
  if constexpr (has_lookup<V>) {
    // scalef takes the floor of n, and the table what is left of it.
    V power = lookup(sixteenth_powers, to_bits(n_plus_magic)), rest = r * sixteenth_poly(r);
    V value = scalef(fma(power, rest, power), n_plus_magic - octave_magic<V>);
    return {value, value + Scalar<V>(1)};
  }
  V significand = fma(r, exp2_poly(r), splat<V>(1));
  V value = from_bits<V>(to_bits(significand) + (to_bits(n_plus_magic) << Limits<Scalar<V>>::mantissa_bits));
  return {value, fma(significand, power_of_two(n_plus_magic), splat<V>(1))};
}

// log(x).
// Domain: normal x > 0. Error: at most 1 ULP.
// Warning: NaN becomes a number, because the exponent is taken from its bits as an integer.
// x = 2^e (1 + f) with 1 + f in [sqrt(1/2), sqrt(2)). With s = f / (2 + f),
//     log(1 + f) = f - (f^2/2 - s (f^2/2 + s^2 P(s^2))),
// the arrangement of Sun's fdlibm, in which f is exact and everything after it is small.
template <class V>
MIXFLOW_FN V log_normal(V x) {
  using T = Scalar<V>;
  using C = Constants<T>;
  using L = Limits<T>;
  Bits<V> shifted = to_bits(x) + (C::one_bits - C::sqrt_half_bits);
  Bits<V> exponent = shifted >> L::mantissa_bits;
  V e = from_bits<V>(exponent + to_bits(C::round_magic)) - (C::round_magic + T(L::exponent_bias));
  V f = from_bits<V>((shifted & C::mantissa_mask) + C::sqrt_half_bits) - T(1);
  V s = f * bounded_reciprocal(f + T(2));
  V z = s * s;
  V half_square = f * f * T(0.5);
  V small = fma(s, fma(z, log_poly(z), half_square), e * C::ln2_lo);
  return fma(e, C::ln2_hi, f - (half_square - small));
}

// log(x).
// Domain: every x; log(0) = -inf, and NaN for x < 0. Error: at most 1 ULP.
template <class V>
MIXFLOW_FN V log(V x) {
  using T = Scalar<V>;
  using C = Constants<T>;
  Mask<V> tiny = x < Limits<T>::min_normal;
  V scaled = select<V>(tiny, x * C::subnormal_scale, x);
  V result = log_normal(scaled) - select<V>(tiny, splat<V>(C::subnormal_log2 * T(0.693147180559945309417)), V{});
  result = select<V>(x == infinity<V>(), x, result);
  result = select<V>(x == T(0), -infinity<V>(), result);
  return select<V>(x >= T(0), result, quiet_nan<V>());
}

// log(x), for uses that an error of 2 eps max(1, |log x|) does not harm.
// Domain: normal x > 0. Error: at most 1 ULP; 2 eps max(1, |log x|) by the units of a GPU.
template <class V>
MIXFLOW_FN V quick_log(V x) {
  if constexpr (has_units<V>)
    return log2_unit(x) * Scalar<V>(0.693147180559945309417);
  else
    return log_normal(x);
}

// exp(x), where results below the smallest normal number become 0. The units of a GPU take the power of x log2(e) after
// it was rounded.
// Domain: x <= 0. Error: at most 2 ULP; (|x| + 3) / 2 eps by the units of a GPU.
template <class V>
MIXFLOW_FN V quick_exp(V x) {
  using C = Constants<Scalar<V>>;
  if constexpr (has_units<V>) {
    return exp2_unit(x * C::log2_e);
  } else {
    V bounded = at_least(x, splat<V>(C::exp_flush));
    V shifted = fma(bounded, C::log2_e, octave_magic<V>);
    V r = fma(bounded, C::log2_e_rest, product_minus(bounded, splat<V>(C::log2_e), shifted - octave_magic<V>));
    if constexpr (has_lookup<V>)
      return select<V>(x <= C::exp_flush, V{}, exp2_split(shifted, r).value);
    else
      return fma(r, exp2_poly(r), splat<V>(1)) * power_of_two(shifted);  // 2^-127 is 0
  }
}

// log(1 + x). With u = 1 + x rounded, log u + (x - (u - 1)) / u restores what the addition lost.
// Domain: every x; NaN below -1. Error: at most 2 ULP.
template <class V>
MIXFLOW_FN V log1p(V x) {
  using T = Scalar<V>;
  V u = x + T(1), result = log(u) + (x - (u - T(1))) * reciprocal(u);
  return select<V>(x == infinity<V>(), x, result);
}

// 1 - exp(-t), given e = exp(-t).
// Domain: t >= 0. Error: at most 2 ULP.
template <class V>
MIXFLOW_FN V one_minus_exp_neg(V t, V e) {
  return select<V>(t < Scalar<V>(0.34), fma(-t * t, exp_poly(-t), t), Scalar<V>(1) - e);
}

// log(1 + exp(-t)).
// Domain: t >= 0. Error: at most 2 ULP.
template <class V>
MIXFLOW_FN V log1p_exp_neg(V t) {
  return log1p(exp(-t));
}

// exp(-t^2/2). The square is split into a part that is exact and a small one, since rounding t^2 alone would cost t^2/2
// ULP.
// Domain: t >= 0. Error: at most 2 ULP.
template <class V>
MIXFLOW_FN V exp_neg_half_square(V t) {
  using T = Scalar<V>;
  t = min(t,
          splat<V>(is_float<V> ? T(16) : T(40)));  // far past the smallest number, and no overflow below
  V head = upper_half(t), lo = (t - head) * (t + head) * T(-0.5);
  return exp(head * head * T(-0.5), &lo, static_cast<V*>(nullptr));
}

// log(Phi(-t)).
// Domain: t >= 0. Error: at most 4 ULP.
template <class V>
MIXFLOW_FN V log_normal_tail(V t) {
  return log(scaled_normal_tail(t)) - t * (t * Scalar<V>(0.5));
}

// |probit| from the log of the smaller tail. Newton's method on log Phi(-t) = log_p: its derivative is -1 / mills(t),
// and the function is so close to a parabola that each step squares the error and divides it by 2 t. It starts at two
// terms of the asymptotic expansion.
// Domain: log_p <= -probit_limit, tails that the direct approximation does not reach. Error: at most 4 ULP.
template <class V>
MIXFLOW_FN V probit_far(V log_p) {
  using T = Scalar<V>;
  constexpr T log_2pi = T(1.837877066409345483561), sqrt_2pi = T(2.506628274631000502416);
  V y = fma(log_p, T(-2), -log_2pi);
  V t = sqrt(y - log(y));
  for (int i = 0; i < 3; ++i) t = fma(scaled_normal_tail(t) * sqrt_2pi, log_normal_tail(t) - log_p, t);
  // Where -2 log_p would overflow, the logarithm of t is far below its rounding.
  t = select<V>(log_p < T(-1e30), sqrt(-log_p) * T(1.414213562373095048802), t);
  return select<V>(is_finite(log_p), t, -log_p);
}

// probit(p) from x = 2 p - 1 and w = -log(4 p (1 - p)), both of which are accurate where 1 - p is not: the variables of
// Giles, "Approximating the erfinv function" (2010).
// Domain: -1 <= x <= 1, 0 <= w <= probit_limit. Error: at most 4 ULP.
template <class V>
MIXFLOW_FN V probit(V x, V w) {
  Mask<V> center = w < probit_split<V>;
  V factor = probit_center(w);
  if (!all(center)) factor = select<V>(center, factor, probit_tail(sqrt(w)));
  return x * factor;
}

// probit(sigmoid(logit)).
// Domain: every logit. Error: at most 4 ULP.
template <class V>
MIXFLOW_FN V probit_from_logit(V logit) {
  using T = Scalar<V>;
  V magnitude = abs(logit);
  V e = exp_flushed(-magnitude);
  V log_1p_e = log1p(e);
  V w = max(fma(log_1p_e, T(2), magnitude) - T(1.386294361119890618834), V{});
  Mask<V> near = w < probit_limit<V>;
  V z = probit(one_minus_exp_neg(magnitude, e) * bounded_reciprocal(T(1) + e), select<V>(near, w, V{}));
  if (!all(near)) z = select<V>(near, z, probit_far(-(magnitude + log_1p_e)));
  return copysign(z, logit);
}

// logit(Phi(z)) = log Phi(z) - log Phi(-z).
// Domain: every z. Error: at most 4 ULP from |z| = 1/2 on, below it at most 3 eps.
template <class V>
MIXFLOW_FN V logit_from_probit(V z) {
  V t = abs(z);
  V tail = scaled_normal_tail(t) * exp_neg_half_square(t);
  return copysign(log1p(-tail) - log_normal_tail(t), z);
}

// log(sigmoid(x)).
// Domain: every x. Error: at most 2 ULP.
template <class V>
MIXFLOW_FN V log_sigmoid(V x) {
  return min(x, V{}) - log1p_exp_neg(abs(x));
}

// Phi(x).
// Domain: every x. Error: at most 3 ULP.
template <class V>
MIXFLOW_FN V normal_cdf(V x) {
  V t = abs(x), tail = scaled_normal_tail(t) * exp_neg_half_square(t);
  return select<V>(x < Scalar<V>(0), tail, Scalar<V>(1) - tail);
}
// log Phi(x).
// Domain: every x. Error: at most 4 ULP.
template <class V>
MIXFLOW_FN V log_normal_cdf(V x) {
  V t = abs(x), tail = scaled_normal_tail(t) * exp_neg_half_square(t);
  return select<V>(x < Scalar<V>(0), log_normal_tail(t), log1p(-tail));
}

// The Mills ratio Phi(-t) / phi(t), which is about 1 / t far out.
// Domain: t >= 0; 0 where sqrt(2 pi) t overflows. Error: at most 3 ULP.
template <class V>
MIXFLOW_FN V mills(V t) {
  return scaled_normal_tail(t) * Scalar<V>(2.506628274631000502416);
}

// exp(-t^2/2) around a centre m, over the window m +- h, in units of its value at m:
//     exp(-m h s - h^2 s^2 / 2) = sum_n g_n (-s)^n for s in [-1, 1],   g_(n+1) = (m h g_n - h^2 g_(n-1)) / (n + 1),
// since g_n = He_n(m) h^n / n!. `mean` is the mean over the window, `even` and `odd` are the mean of the values at its
// ends, m - h first, and half of their difference.
// Domain: 0 <= h <= 1/2, 0 <= m h <= normal_window_reach; h is then so small that nothing cancels. Error: a few ULP.
constexpr double normal_window_reach = 1;
template <class V>
struct NormalWindow {
  V mean, even, odd;

  MIXFLOW_FN NormalWindow(V mh, V h) {
    using T = Scalar<V>;
    constexpr int terms = is_float<V> ? 16 : 26;  // the rest is below 2^-28 and 2^-58
    V g[terms];
    g[0] = splat<V>(1);
    g[1] = mh;
    V square = h * h;
    for (int n = 1; n + 1 < terms; ++n) g[n + 1] = fma(mh, g[n], -(square * g[n - 1])) * (T(1) / T(n + 1));
    mean = even = odd = V{};
    for (int n = terms - 2; n >= 0; n -= 2) {  // the small ones first
      mean = fma(g[n], T(1) / T(n + 1), mean);
      even += g[n];
      odd += g[n + 1];
    }
  }
};

// probit(p). p - 1/2 is exact for p >= 1/4, and 1 - p for p >= 1/2: where they matter.
// Domain: 0 < p < 1. Error: at most 4 ULP.
template <class V>
MIXFLOW_FN V probit(V p) {
  return probit((p - Scalar<V>(0.5)) * Scalar<V>(2), -log(p * (Scalar<V>(1) - p) * Scalar<V>(4)));
}

}  // namespace MIXFLOW_ARCH
}  // namespace mixflow

// The functions above that are reachable from Python, for the tests that measure them.
#define MIXFLOW_SPECIAL_FUNCTIONS(X) \
  X(exp)                             \
  X(exp_flushed)                     \
  X(quick_exp)                       \
  X(exp_neg_half_square)             \
  X(log)                             \
  X(log_normal)                      \
  X(log1p_exp_neg)                   \
  X(log_normal_tail)                 \
  X(log1p)                           \
  X(log_sigmoid)                     \
  X(normal_cdf)                      \
  X(log_normal_cdf)                  \
  X(mills)                           \
  X(probit)                          \
  X(probit_from_logit)               \
  X(logit_from_probit)
