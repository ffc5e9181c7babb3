// Scalars: the number types `float` and `double`, and the primitives that number.h builds on.
//
// Every number type has the same primitives: scalars here, packs in simd/<instruction set>.h, and pairs of packs in
// simd/pair.h. They are max, min, fma, sqrt, bounded_reciprocal, reciprocal_estimate, reciprocal_sqrt and any (whether
// a mask is set in any lane). What they promise stands here, above those of scalars. The packs of an instruction set
// have four more, which transpose.h explains, and may have those of its Features.
#pragma once

#include "units.h"

namespace mixflow {
namespace MIXFLOW_ARCH {

// Number<V> describes a number type: its element, integers with as many bits (without and with a sign), the type of a
// comparison, and how many lanes it has.
template <class V>
struct Number;

template <>
struct Number<float> {
  using Scalar = float;
  using Bits = uint32_t;
  using SignedBits = int32_t;
  using Mask = bool;
  static constexpr int lanes = 1;
};
template <>
struct Number<double> {
  using Scalar = double;
  using Bits = uint64_t;
  using SignedBits = int64_t;
  using Mask = bool;
  static constexpr int lanes = 1;
};

template <class V>
using Scalar = typename Number<V>::Scalar;
template <class V>
using Bits = typename Number<V>::Bits;
template <class V>
using SignedBits = typename Number<V>::SignedBits;
template <class V>
using Mask = typename Number<V>::Mask;
template <class V>
constexpr bool is_float = sizeof(Scalar<V>) == sizeof(float);
template <class V>
constexpr bool is_pack = Number<V>::lanes > 1;
// Specialised in simd/pair.h. A number type exceeds the registers if the sums over components should be taken for one
// half of its lanes after the other, because those of all lanes do not fit in the registers.
template <class V>
constexpr bool is_pair = false;
template <class V>
constexpr bool exceeds_registers = false;

template <class T>
struct Limits;
template <>
struct Limits<float> {
  static constexpr float epsilon = 0x1p-23f, min_normal = 0x1p-126f, max = 0x1.fffffep127f;
  static constexpr int mantissa_bits = 23, exponent_bias = 127;
};
template <>
struct Limits<double> {
  static constexpr double epsilon = 0x1p-52, min_normal = 0x1p-1022, max = 0x1.fffffffffffffp1023;
  static constexpr int mantissa_bits = 52, exponent_bias = 1023;
};

// What else is known of an instruction set. Its file in simd/ overrides what differs.
struct PlainFeatures {
  static constexpr int registers = 16;   // that hold packs
  static constexpr bool divides = true;  // division is fast enough to compute reciprocals by it
  static constexpr bool scalef = false;  // has scalef(x, n) = x 2^floor(n), rounded once
  static constexpr bool lookup = false;  // has lookup(table, index): for each lane one of 16 floats
};

// Whether fma is one instruction and rounds once. Otherwise it rounds twice, and nothing relies on the single rounding.
#if defined(__FMA__) || defined(__CUDACC__) || defined(__aarch64__)
constexpr bool has_fma = true;
#else
constexpr bool has_fma = false;
#endif

// fma is the only contraction there is. The sources are compiled with -ffp-contract=off, so a result depends on the
// source alone, and not on what the compiler finds around an expression after inlining.
MIXFLOW_FN float fma(float a, float b, float c) {
  if constexpr (has_fma) return __builtin_fmaf(a, b, c);
  return a * b + c;
}
MIXFLOW_FN double fma(double a, double b, double c) {
  if constexpr (has_fma) return __builtin_fma(a, b, c);
  return a * b + c;
}

// The larger and the smaller of two numbers. If a or b is NaN, the result is a: a NaN in a is kept, and a NaN in b is
// lost. If both are zeros, of whatever sign, the result is a, too.
MIXFLOW_FN float max(float a, float b) {
  return a < b ? b : a;
}
MIXFLOW_FN double max(double a, double b) {
  return a < b ? b : a;
}
MIXFLOW_FN float min(float a, float b) {
  return b < a ? b : a;
}
MIXFLOW_FN double min(double a, double b) {
  return b < a ? b : a;
}

MIXFLOW_FN float sqrt(float x) {
  return __builtin_sqrtf(x);
}
MIXFLOW_FN double sqrt(double x) {
  return __builtin_sqrt(x);
}

// Reciprocals. Where division is fast (PlainFeatures::divides), each of them is exactly a division. Otherwise:
//
// bounded_reciprocal: 1 / x within 1 ULP, for |x| in [2^-125, 2^125], in double in [2^-1020, 2^1020]. Of NaN it is NaN;
// outside of this range it may be NaN.
// reciprocal_estimate: 1 / x for every x, with a relative error of up to 2^-14.
// reciprocal_sqrt: 1 / sqrt(x) within 1.5 ULP, on a GPU with a relative error of up to 2^-22.9, for x in [1, 2^125], in
// double in [1, 2^1000]. Of NaN it is NaN; of infinity it may be NaN.
//
// number.h adds reciprocal(x), which is accurate for every x.
#if defined(MIXFLOW_UNITS)
// A GPU divides by ten instructions and a branch, so float32 uses its units.
MIXFLOW_FN float bounded_reciprocal(float x) {
  return reciprocal_unit(x);
}
MIXFLOW_FN float reciprocal_estimate(float x) {
  return any_reciprocal_unit(x);
}
MIXFLOW_FN float reciprocal_sqrt(float x) {
  return reciprocal_sqrt_unit(x);
}
#else
MIXFLOW_FN float bounded_reciprocal(float x) {
  return 1 / x;
}
MIXFLOW_FN float reciprocal_estimate(float x) {
  return 1 / x;
}
MIXFLOW_FN float reciprocal_sqrt(float x) {
  return 1 / sqrt(x);
}
#endif
MIXFLOW_FN double bounded_reciprocal(double x) {
  return 1 / x;
}
MIXFLOW_FN double reciprocal_estimate(double x) {
  return 1 / x;
}
MIXFLOW_FN double reciprocal_sqrt(double x) {
  return 1 / sqrt(x);
}

MIXFLOW_FN bool any(bool mask) {
  return mask;
}
MIXFLOW_FN bool all(bool mask) {
  return mask;
}

}  // namespace MIXFLOW_ARCH
}  // namespace mixflow
