// The verbs that the mathematics is written in. Each of them works on every number type: on a scalar, in a thread of a
// GPU, and on packs and pairs of packs of any instruction set of a CPU (simd/).
//
// The verbs below are made of the primitives that scalar.h lists, and choose between them by a few properties of a
// number type. A template is written for a number type V, whose elements are of type Scalar<V>.
#pragma once

#include "scalar.h"

#if !defined(__CUDACC__)
#include "simd/pair.h"
#endif

namespace mixflow {
namespace MIXFLOW_ARCH {

#if defined(__CUDACC__)
using Features = PlainFeatures;
#endif
template <class V>
constexpr bool has_scalef = is_pack<V> && Features::scalef;
template <class V>
constexpr bool has_lookup = is_pack<V> && is_float<V> && Features::lookup;
template <class V>
constexpr bool divides = !is_pack<V> || Features::divides;
// Whether a GPU has units for the special functions of this type (units.h).
template <class V>
constexpr bool has_units = false;
#if defined(MIXFLOW_UNITS)
template <>
constexpr bool has_units<float> = true;
#endif

// x in every lane. `x - 0` is exactly x for every x, also for -0, so the compiler makes a single broadcast of it.
template <class V>
MIXFLOW_FN V splat(Scalar<V> x) {
  return x - V{};
}
template <class V>
MIXFLOW_FN V infinity() {
  return splat<V>(static_cast<Scalar<V>>(__builtin_inff()));
}
template <class V>
MIXFLOW_FN V quiet_nan() {
  return splat<V>(static_cast<Scalar<V>>(__builtin_nanf("")));
}

// The same bits as another type. A pair is cast half by half: the compiler would copy it as a whole through memory, in
// pieces, and the processor stalls when it loads as a whole what was stored in pieces.
template <class To, class From>
MIXFLOW_FN To bit_cast(From x) {
  if constexpr (is_pair<From>) {
    return {bit_cast<decltype(To::a)>(x.a), bit_cast<decltype(To::b)>(x.b)};
  } else {
    To result;
    memcpy(&result, &x, sizeof x);
    return result;
  }
}
template <class V>
MIXFLOW_FN Bits<V> to_bits(V x) {
  return bit_cast<Bits<V>>(x);
}
template <class V>
MIXFLOW_FN V from_bits(Bits<V> bits) {
  return bit_cast<V>(bits);
}

// a in the lanes where the mask is set, and b in the others.
template <class V>
MIXFLOW_FN V select(Mask<V> mask, V a, V b) {
  if constexpr (is_pair<V>)
    return {select(mask.a, a.a, b.a), select(mask.b, a.b, b.b)};
  else
    return mask ? a : b;
}

// x, but not below or above a bound. A NaN in x is kept. If the bound is NaN, the result is either x or NaN; that is
// the only difference from max and min, and on a GPU it saves one of two instructions.
template <class V>
MIXFLOW_FN V at_least(V x, V bound) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  if constexpr (is_float<V>) {
    asm("max.NaN.f32 %0, %0, %1;" : "+f"(x) : "f"(bound));
    return x;
  }
#endif
  return max(x, bound);
}
template <class V>
MIXFLOW_FN V at_most(V x, V bound) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  if constexpr (is_float<V>) {
    asm("min.NaN.f32 %0, %0, %1;" : "+f"(x) : "f"(bound));
    return x;
  }
#endif
  return min(x, bound);
}

template <class V>
constexpr Bits<Scalar<V>> sign_bit = Bits<Scalar<V>>(1) << (sizeof(Scalar<V>) * 8 - 1);
// The absolute value; of NaN it is NaN.
template <class V>
MIXFLOW_FN V abs(V x) {
#if defined(__CUDACC__)
  // On a GPU this is no instruction, but a modifier of the instruction that uses the result.
  if constexpr (is_float<V>)
    return __builtin_fabsf(x);
  else
    return __builtin_fabs(x);
#endif
  return from_bits<V>(to_bits(x) & ~sign_bit<V>);
}
template <class V>
MIXFLOW_FN V copysign(V magnitude, V sign_source) {
  return from_bits<V>((to_bits(magnitude) & ~sign_bit<V>) | (to_bits(sign_source) & sign_bit<V>));
}
// False for NaN.
template <class V>
MIXFLOW_FN Mask<V> is_finite(V x) {
  return abs(x) <= Limits<Scalar<V>>::max;
}

// The ordinal of a number is its position in the order of all representable numbers, as an integer. The same function
// maps the bits to the ordinal and back.
template <class V>
MIXFLOW_FN SignedBits<V> flip_negative(SignedBits<V> bits) {
  constexpr int sign_shift = sizeof(Scalar<V>) * 8 - 1;
  constexpr SignedBits<Scalar<V>> magnitude = ~(SignedBits<Scalar<V>>(1) << sign_shift);
  return bits ^ ((bits >> sign_shift) & magnitude);
}
template <class V>
MIXFLOW_FN SignedBits<V> to_ordinal(V x) {
  return flip_negative<V>(bit_cast<SignedBits<V>>(x));
}
template <class V>
MIXFLOW_FN V from_ordinal(SignedBits<V> ordinal) {
  return bit_cast<V>(flip_negative<V>(ordinal));
}
// The number halfway between a and b in that order. A bisection that uses it ends after as many steps as a number has
// bits, whatever the magnitudes are.
template <class V>
MIXFLOW_FN V ordinal_middle(V a, V b) {
  SignedBits<V> i = to_ordinal(a), j = to_ordinal(b);
  return from_ordinal<V>((i & j) + ((i ^ j) >> 1));  // the floor of the mean, without overflow
}

// The leading half of the significand. The product of two such halves is exact.
template <class V>
MIXFLOW_FN V upper_half(V x) {
  constexpr Bits<Scalar<V>> mask = is_float<V> ? Bits<Scalar<V>>(0xfffff000u) : Bits<Scalar<V>>(0xfffffffff8000000ull);
  return from_bits<V>(to_bits(x) & mask);
}

template <class V>
MIXFLOW_FN V fma(V a, V b, Scalar<V> c) {
  return fma(a, b, splat<V>(c));
}
template <class V>
MIXFLOW_FN V fma(V a, Scalar<V> b, V c) {
  return fma(a, splat<V>(b), c);
}
template <class V>
MIXFLOW_FN V fma(V a, Scalar<V> b, Scalar<V> c) {
  return fma(a, splat<V>(b), splat<V>(c));
}

// a * b - p exactly, where p is the rounded product. Without fma, by Dekker's product of halves.
template <class V>
MIXFLOW_FN V product_rest(V a, V b, V p) {
  if constexpr (has_fma) {
    return fma(a, b, -p);
  } else {
    V a_head = upper_half(a), b_head = upper_half(b), a_tail = a - a_head, b_tail = b - b_head;
    return ((a_head * b_head - p) + a_head * b_tail + a_tail * b_head) + a_tail * b_tail;
  }
}
// a * b - n within one rounding, where n is a number near the product.
template <class V>
MIXFLOW_FN V product_minus(V a, V b, V n) {
  if constexpr (has_fma) {
    return fma(a, b, -n);
  } else {
    V p = a * b;
    return (p - n) + product_rest(a, b, p);
  }
}

// 1 / x within 1 ULP for every x; of 0 it is infinite, and of infinity 0.
template <class V>
MIXFLOW_FN V reciprocal(V x) {
  if constexpr (has_units<V>) return reciprocal_estimate(x);
  V r = bounded_reciprocal(x);
  if constexpr (!divides<V>) r = select<V>(r == r, r, reciprocal_estimate(x));  // of 0 and infinity
  return r;
}
// a / b. The error is below 1 ULP; by a GPU's units it is up to 2 ULP. The product of a and a reciprocal would have the
// errors of both.
template <class V>
MIXFLOW_FN V quotient(V a, V b) {
  if constexpr (has_units<V>) {
    return a * reciprocal_estimate(b);
  } else if constexpr (!divides<V>) {
    V r = reciprocal(b), q = a * r, corrected = fma(fma(-q, b, a), r, q);
    return select<V>(corrected == corrected, corrected, q);
  } else {
    return a / b;
  }
}

// The polynomial c0 + x (c1 + x (c2 + ...)). Estrin's scheme has a shorter chain of dependent operations, but takes
// more registers, and is 10 to 30 % slower.
template <class V>
MIXFLOW_FN V horner(V, Scalar<V> last) {
  return splat<V>(last);
}
template <class V, class... Rest>
MIXFLOW_FN V horner(V x, Scalar<V> first, Rest... rest) {
  return fma(x, horner(x, rest...), splat<V>(first));
}

// As many consecutive numbers of memory as V has lanes.
template <class V>
MIXFLOW_FN V load(const Scalar<V>* p) {
  if constexpr (is_pair<V>) {
    using Half = decltype(V::a);
    return {load<Half>(p), load<Half>(p + Number<Half>::lanes)};
  } else {
    V x;
    memcpy(&x, p, sizeof x);
    return x;
  }
}
template <class V>
MIXFLOW_FN void store(Scalar<V>* p, V x) {
  if constexpr (is_pair<V>) {
    store(p, x.a);
    store(p + Number<decltype(V::a)>::lanes, x.b);
  } else {
    memcpy(p, &x, sizeof x);
  }
}

}  // namespace MIXFLOW_ARCH
}  // namespace mixflow
