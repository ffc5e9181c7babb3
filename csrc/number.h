// The verbs that the mathematics is written in, for every number type it is instantiated with: a scalar
// (CUDA thread, tests) or a SIMD pack (a GCC/Clang vector as wide as the instruction set of this translation unit).
// Everything below lives in a namespace named after the instruction set, so that several builds of the same source
// can be linked into one module without the linker choosing one build's inline function for another.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__CUDACC__)
#define MIXFLOW_ARCH cuda
#define MIXFLOW_FN __host__ __device__ __forceinline__
#define MIXFLOW_UNROLLED _Pragma("unroll unrolled")  // of the constant of this name
#define MIXFLOW_NOT_UNROLLED _Pragma("unroll 1")
#else
#define MIXFLOW_UNROLLED
#define MIXFLOW_NOT_UNROLLED
#ifndef MIXFLOW_ARCH
#error "compile with -DMIXFLOW_ARCH=<name of the instruction set>"
#endif
#define MIXFLOW_FN inline __attribute__((always_inline))
#if defined(__x86_64__)
#include <immintrin.h>
#endif
#if defined(__AVX512F__)
#define MIXFLOW_PACK_BYTES 64
#elif defined(__AVX2__)
#define MIXFLOW_PACK_BYTES 32
#else
#define MIXFLOW_PACK_BYTES 16
#endif
#endif

#include "units.h"

namespace mixflow {
namespace MIXFLOW_ARCH {

// Number<V>: the element type, the unsigned integer of the same layout, and the lane count of a number type.
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

#if !defined(__CUDACC__)
typedef float PackF __attribute__((vector_size(MIXFLOW_PACK_BYTES)));
typedef double PackD __attribute__((vector_size(MIXFLOW_PACK_BYTES)));
typedef uint32_t PackBitsF __attribute__((vector_size(MIXFLOW_PACK_BYTES)));
typedef uint64_t PackBitsD __attribute__((vector_size(MIXFLOW_PACK_BYTES)));
typedef int32_t PackMaskF __attribute__((vector_size(MIXFLOW_PACK_BYTES)));
typedef int64_t PackMaskD __attribute__((vector_size(MIXFLOW_PACK_BYTES)));

template <>
struct Number<PackF> {
  using Scalar = float;
  using Bits = PackBitsF;
  using SignedBits = PackMaskF;
  using Mask = PackMaskF;
  static constexpr int lanes = MIXFLOW_PACK_BYTES / sizeof(float);
};
template <>
struct Number<PackD> {
  using Scalar = double;
  using Bits = PackBitsD;
  using SignedBits = PackMaskD;
  using Mask = PackMaskD;
  static constexpr int lanes = MIXFLOW_PACK_BYTES / sizeof(double);
};
template <class T>
struct PackOf;
template <>
struct PackOf<float> {
  using type = PackF;
};
template <>
struct PackOf<double> {
  using type = PackD;
};
template <class T>
using Pack = typename PackOf<T>::type;

// Two numbers side by side, operation by operation. A chain of dependent instructions leaves the arithmetic units idle
// most of the time, and the processor looks only so far ahead for others; packs of packs put independent ones there.
template <class V>
struct Pair {
  V a, b;

  // Not left to the compiler, which would clear the whole in memory.
  MIXFLOW_FN Pair() : a{}, b{} {}
  MIXFLOW_FN Pair(V a, V b) : a(a), b(b) {}
};
template <class V>
struct Number<Pair<V>> {
  using Scalar = typename Number<V>::Scalar;
  using Bits = Pair<typename Number<V>::Bits>;
  using SignedBits = Pair<typename Number<V>::SignedBits>;
  using Mask = Pair<typename Number<V>::Mask>;
  static constexpr int lanes = 2 * Number<V>::lanes;
};
// V paired `times` times: 2^times of it.
template <class V, int times>
struct WideOf : WideOf<Pair<V>, times - 1> {};
template <class V>
struct WideOf<V, 0> {
  using type = V;
};

template <class V>
constexpr bool is_pair = false;
template <class V>
constexpr bool is_pair<Pair<V>> = true;

template <class V>
struct ElementOf {
  using type = decltype(+V()[0]);
};
template <class V>
struct ElementOf<Pair<V>> : ElementOf<V> {};
template <class V>
using Element = typename ElementOf<V>::type;

#define MIXFLOW_BINARY(OPERATOR)                                                 \
  template <class V>                                                             \
  MIXFLOW_FN auto operator OPERATOR(const Pair<V>& x, const Pair<V>& y) {        \
    return Pair<decltype(x.a OPERATOR y.a)>{x.a OPERATOR y.a, x.b OPERATOR y.b}; \
  }                                                                              \
  template <class V>                                                             \
  MIXFLOW_FN auto operator OPERATOR(const Pair<V>& x, Element<V> y) {            \
    return Pair<decltype(x.a OPERATOR y)>{x.a OPERATOR y, x.b OPERATOR y};       \
  }                                                                              \
  template <class V>                                                             \
  MIXFLOW_FN auto operator OPERATOR(Element<V> x, const Pair<V>& y) {            \
    return Pair<decltype(x OPERATOR y.a)>{x OPERATOR y.a, x OPERATOR y.b};       \
  }
MIXFLOW_BINARY(+)
MIXFLOW_BINARY(-)
MIXFLOW_BINARY(*)
MIXFLOW_BINARY(/)
MIXFLOW_BINARY(&)
MIXFLOW_BINARY(|)
MIXFLOW_BINARY(^)
MIXFLOW_BINARY(<<)
MIXFLOW_BINARY(>>)
MIXFLOW_BINARY(<)
MIXFLOW_BINARY(<=)
MIXFLOW_BINARY(>)
MIXFLOW_BINARY(>=)
MIXFLOW_BINARY(==)
MIXFLOW_BINARY(!=)
#undef MIXFLOW_BINARY
template <class V>
MIXFLOW_FN Pair<V> operator-(const Pair<V>& x) {
  return {-x.a, -x.b};
}
template <class V>
MIXFLOW_FN Pair<V> operator~(const Pair<V>& x) {
  return {~x.a, ~x.b};
}
template <class V>
MIXFLOW_FN Pair<V>& operator+=(Pair<V>& x, const Pair<V>& y) {
  return x = x + y;
}
#endif

template <class V>
using Scalar = typename Number<V>::Scalar;
template <class V>
using Bits = typename Number<V>::Bits;
template <class V>
using Mask = typename Number<V>::Mask;
template <class V>
using SignedBits = typename Number<V>::SignedBits;
template <class V>
constexpr bool is_float = sizeof(Scalar<V>) == sizeof(float);
// Whether there are units for the special functions of this type (units.h).
template <class V>
constexpr bool has_units = false;
#if defined(MIXFLOW_UNITS)
template <>
constexpr bool has_units<float> = true;
#endif

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

// Whether the sums over components are to be taken for one half of the lanes after the other: those of four packs would
// leave the 16 registers there are.
template <class V>
constexpr bool exceeds_registers = false;
#if !defined(__CUDACC__) && !defined(__AVX512F__)
template <class V>
constexpr bool exceeds_registers<Pair<Pair<V>>> = true;
#endif

#if !defined(__CUDACC__) && defined(__x86_64__)
#if defined(__AVX512F__)
#define MIXFLOW_NATIVE(NAME, TYPE) _mm512_maskz_##NAME##_##TYPE
#define MIXFLOW_ALL(LANES) LANES,
#define MIXFLOW_REGISTER(SUFFIX) __m512##SUFFIX
#elif defined(__AVX2__)
#define MIXFLOW_NATIVE(NAME, TYPE) _mm256_##NAME##_##TYPE
#define MIXFLOW_ALL(LANES)
#define MIXFLOW_REGISTER(SUFFIX) __m256##SUFFIX
#else
#define MIXFLOW_NATIVE(NAME, TYPE) _mm_##NAME##_##TYPE
#define MIXFLOW_ALL(LANES)
#define MIXFLOW_REGISTER(SUFFIX) __m128##SUFFIX
#endif
// The second argument where either is NaN.
MIXFLOW_FN PackF larger_of(PackF a, PackF b) {
  return (PackF)MIXFLOW_NATIVE(max, ps)(MIXFLOW_ALL(0xffff)(MIXFLOW_REGISTER()) a, (MIXFLOW_REGISTER())b);
}
MIXFLOW_FN PackD larger_of(PackD a, PackD b) {
  return (PackD)MIXFLOW_NATIVE(max, pd)(MIXFLOW_ALL(0xff)(MIXFLOW_REGISTER(d)) a, (MIXFLOW_REGISTER(d))b);
}
MIXFLOW_FN PackF smaller_of(PackF a, PackF b) {
  return (PackF)MIXFLOW_NATIVE(min, ps)(MIXFLOW_ALL(0xffff)(MIXFLOW_REGISTER()) a, (MIXFLOW_REGISTER())b);
}
MIXFLOW_FN PackD smaller_of(PackD a, PackD b) {
  return (PackD)MIXFLOW_NATIVE(min, pd)(MIXFLOW_ALL(0xff)(MIXFLOW_REGISTER(d)) a, (MIXFLOW_REGISTER(d))b);
}
#undef MIXFLOW_NATIVE
#undef MIXFLOW_ALL
#undef MIXFLOW_REGISTER
#endif

// `x - 0` is exactly x for every x, signed zeros included, so the compiler turns this into one broadcast.
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

// The same bits as another type. Pairs by their halves: a compiler copies a struct of two packs through memory, in
// pieces whose reload as a whole stalls.
template <class To, class From>
MIXFLOW_FN To bit_cast(From x) {
#if !defined(__CUDACC__)
  if constexpr (is_pair<From>)
    return {bit_cast<decltype(To::a)>(x.a), bit_cast<decltype(To::b)>(x.b)};
  else
#endif
  {
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

template <class V>
MIXFLOW_FN V select(Mask<V> mask, V a, V b) {
#if !defined(__CUDACC__)
  if constexpr (is_pair<V>)
    return {select(mask.a, a.a, b.a), select(mask.b, a.b, b.b)};
  else
#endif
    return mask ? a : b;
}
// A NaN in the first argument survives both; the second argument must not be NaN. x86 has an instruction for each, with
// the arguments in the other order, which compilers do not find by themselves.
template <class V>
MIXFLOW_FN V max(V a, V b) {
#if !defined(__CUDACC__) && defined(__x86_64__)
  if constexpr (is_pair<V>)
    return {max(a.a, b.a), max(a.b, b.b)};
  else if constexpr (Number<V>::lanes > 1)
    return larger_of(b, a);
  else
#endif
    return select<V>(a < b, b, a);
}
template <class V>
MIXFLOW_FN V min(V a, V b) {
#if !defined(__CUDACC__) && defined(__x86_64__)
  if constexpr (is_pair<V>)
    return {min(a.a, b.a), min(a.b, b.b)};
  else if constexpr (Number<V>::lanes > 1)
    return smaller_of(b, a);
  else
#endif
    return select<V>(b < a, b, a);
}
// The same for bounds of which a NaN may come out, too: one instruction of a GPU in place of two.
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
MIXFLOW_FN V abs(V x) {
#if defined(__CUDACC__)
  // No instruction at all, but a modifier of the one that takes it.
  if constexpr (is_float<V>)
    return __builtin_fabsf(x);
  else
    return __builtin_fabs(x);
#endif
  constexpr Bits<Scalar<V>> sign = Bits<Scalar<V>>(1) << (sizeof(Scalar<V>) * 8 - 1);
  return from_bits<V>(to_bits(x) & ~sign);
}
template <class V>
MIXFLOW_FN V copysign(V magnitude, V sign_source) {
  constexpr Bits<Scalar<V>> sign = Bits<Scalar<V>>(1) << (sizeof(Scalar<V>) * 8 - 1);
  return from_bits<V>((to_bits(magnitude) & ~sign) | (to_bits(sign_source) & sign));
}
// Position in the order of all representable numbers, as an integer, and back (the same map either way).
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
// Halfway in that order: bisection by it ends after as many steps as a number has bits, whatever the magnitudes.
template <class V>
MIXFLOW_FN V ordinal_middle(V a, V b) {
  SignedBits<V> i = to_ordinal(a), j = to_ordinal(b);
  return from_ordinal<V>((i & j) + ((i ^ j) >> 1));  // the floor of the mean, without overflow
}
template <class V>
MIXFLOW_FN Mask<V> is_finite(V x) {
  return abs(x) <= Limits<Scalar<V>>::max;
}

// The leading half of the significand, so that products of halves are exact.
template <class V>
MIXFLOW_FN V upper_half(V x) {
  constexpr Bits<Scalar<V>> mask = is_float<V> ? Bits<Scalar<V>>(0xfffff000u) : Bits<Scalar<V>>(0xfffffffff8000000ull);
  return from_bits<V>(to_bits(x) & mask);
}

// fma is the only contraction there is: the sources are compiled with -ffp-contract=off, so a result depends on the
// source and not on what surrounds an expression after inlining. Without hardware FMA it rounds twice; nothing here
// relies on the single rounding.
MIXFLOW_FN float fma(float a, float b, float c) {
#if defined(__FMA__) || defined(__CUDACC__) || defined(__aarch64__)
  return __builtin_fmaf(a, b, c);
#else
  return a * b + c;
#endif
}
MIXFLOW_FN double fma(double a, double b, double c) {
#if defined(__FMA__) || defined(__CUDACC__) || defined(__aarch64__)
  return __builtin_fma(a, b, c);
#else
  return a * b + c;
#endif
}
MIXFLOW_FN float sqrt(float x) {
  return __builtin_sqrtf(x);
}
MIXFLOW_FN double sqrt(double x) {
  return __builtin_sqrt(x);
}
// 1 / x in three grades, which on most instruction sets are one division: for x in [2^-125, 2^125] ([2^-1020, 2^1020]
// in double) within 1 ULP; for any x; and to 12 bits for any x.
MIXFLOW_FN float bounded_reciprocal(float x) {
#if defined(MIXFLOW_UNITS)
  return reciprocal_unit(x);  // division takes ten instructions and a branch
#else
  return 1 / x;
#endif
}
MIXFLOW_FN double bounded_reciprocal(double x) {
  return 1 / x;
}
MIXFLOW_FN float reciprocal_estimate(float x) {
#if defined(MIXFLOW_UNITS)
  return any_reciprocal_unit(x);
#else
  return 1 / x;
#endif
}
MIXFLOW_FN double reciprocal_estimate(double x) {
  return 1 / x;
}
MIXFLOW_FN bool any(bool mask) {
  return mask;
}
MIXFLOW_FN bool all(bool mask) {
  return mask;
}

#if !defined(__CUDACC__)
#if defined(__AVX512F__)
MIXFLOW_FN PackF fma(PackF a, PackF b, PackF c) {
  return (PackF)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
}
MIXFLOW_FN PackD fma(PackD a, PackD b, PackD c) {
  return (PackD)_mm512_fmadd_pd((__m512d)a, (__m512d)b, (__m512d)c);
}
MIXFLOW_FN PackF sqrt(PackF x) {
  return (PackF)_mm512_mask_sqrt_ps((__m512)x, 0xffff, (__m512)x);
}
MIXFLOW_FN PackD sqrt(PackD x) {
  return (PackD)_mm512_mask_sqrt_pd((__m512d)x, 0xff, (__m512d)x);
}
#define MIXFLOW_HAS_SCALEF
MIXFLOW_FN PackF scalef(PackF x, PackF n) {
  return (PackF)_mm512_maskz_scalef_ps(0xffff, (__m512)x, (__m512)n);
}
MIXFLOW_FN PackD scalef(PackD x, PackD n) {
  return (PackD)_mm512_maskz_scalef_pd(0xff, (__m512d)x, (__m512d)n);
}
// (The masked forms of intrinsics, with full masks, since the plain ones make GCC 12 warn of its own header.)
// For each lane one of 16 numbers, by the low bits of an integer.
#define MIXFLOW_HAS_LOOKUP
template <class V>
MIXFLOW_FN V lookup(const float (&table)[16], Bits<V> index) {
  if constexpr (is_pair<V>)
    return {lookup<decltype(V::a)>(table, index.a), lookup<decltype(V::b)>(table, index.b)};
  else
    return (PackF)_mm512_maskz_permutexvar_ps(0xffff, (__m512i)index, _mm512_loadu_ps(table));
}
// Division blocks its port for 16 cycles; an estimate to 14 bits and Newton's steps take 2 and 3.
MIXFLOW_FN PackF reciprocal_estimate(PackF x) {
  return (PackF)_mm512_maskz_rcp14_ps(0xffff, (__m512)x);
}
MIXFLOW_FN PackD reciprocal_estimate(PackD x) {
  return (PackD)_mm512_maskz_rcp14_pd(0xff, (__m512d)x);
}
MIXFLOW_FN PackF bounded_reciprocal(PackF x) {
  PackF r = reciprocal_estimate(x);
  return fma(r, fma(-x, r, 1 - PackF{}), r);
}
MIXFLOW_FN PackD bounded_reciprocal(PackD x) {
  PackD r = reciprocal_estimate(x);
  r = fma(r, fma(-x, r, 1 - PackD{}), r);
  return fma(r, fma(-x, r, 1 - PackD{}), r);
}
MIXFLOW_FN bool any(PackMaskF m) {
  return _mm512_movepi32_mask((__m512i)m) != 0;
}
MIXFLOW_FN bool any(PackMaskD m) {
  return _mm512_movepi64_mask((__m512i)m) != 0;
}
#elif defined(__AVX2__)
MIXFLOW_FN PackF fma(PackF a, PackF b, PackF c) {
  return (PackF)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
}
MIXFLOW_FN PackD fma(PackD a, PackD b, PackD c) {
  return (PackD)_mm256_fmadd_pd((__m256d)a, (__m256d)b, (__m256d)c);
}
MIXFLOW_FN PackF sqrt(PackF x) {
  return (PackF)_mm256_sqrt_ps((__m256)x);
}
MIXFLOW_FN PackD sqrt(PackD x) {
  return (PackD)_mm256_sqrt_pd((__m256d)x);
}
MIXFLOW_FN bool any(PackMaskF m) {
  return _mm256_movemask_epi8((__m256i)m) != 0;
}
MIXFLOW_FN bool any(PackMaskD m) {
  return _mm256_movemask_epi8((__m256i)m) != 0;
}
#elif defined(__SSE2__)
MIXFLOW_FN PackF fma(PackF a, PackF b, PackF c) {
  return a * b + c;
}
MIXFLOW_FN PackD fma(PackD a, PackD b, PackD c) {
  return a * b + c;
}
MIXFLOW_FN PackF sqrt(PackF x) {
  return (PackF)_mm_sqrt_ps((__m128)x);
}
MIXFLOW_FN PackD sqrt(PackD x) {
  return (PackD)_mm_sqrt_pd((__m128d)x);
}
MIXFLOW_FN bool any(PackMaskF m) {
  return _mm_movemask_epi8((__m128i)m) != 0;
}
MIXFLOW_FN bool any(PackMaskD m) {
  return _mm_movemask_epi8((__m128i)m) != 0;
}
#else
// Other instruction sets (NEON): the compiler turns these fixed-length loops into vector instructions.
template <class V, class F>
MIXFLOW_FN V by_lane(F f) {
  V result;
  for (int i = 0; i < Number<V>::lanes; ++i) result[i] = f(i);
  return result;
}
MIXFLOW_FN PackF fma(PackF a, PackF b, PackF c) {
  return by_lane<PackF>([&](int i) { return fma(a[i], b[i], c[i]); });
}
MIXFLOW_FN PackD fma(PackD a, PackD b, PackD c) {
  return by_lane<PackD>([&](int i) { return fma(a[i], b[i], c[i]); });
}
MIXFLOW_FN PackF sqrt(PackF x) {
  return by_lane<PackF>([&](int i) { return sqrt(x[i]); });
}
MIXFLOW_FN PackD sqrt(PackD x) {
  return by_lane<PackD>([&](int i) { return sqrt(x[i]); });
}
template <class M>
MIXFLOW_FN bool any(M m) {
  bool found = false;
  for (unsigned i = 0; i < sizeof(M) / sizeof(m[0]); ++i) found |= m[i] != 0;
  return found;
}
#endif
#if !defined(__AVX512F__)
MIXFLOW_FN PackF bounded_reciprocal(PackF x) {
  return 1 / x;
}
MIXFLOW_FN PackD bounded_reciprocal(PackD x) {
  return 1 / x;
}
MIXFLOW_FN PackF reciprocal_estimate(PackF x) {
  return 1 / x;
}
MIXFLOW_FN PackD reciprocal_estimate(PackD x) {
  return 1 / x;
}
#endif
MIXFLOW_FN bool all(PackMaskF m) {
  return !any(PackMaskF(~m));
}
MIXFLOW_FN bool all(PackMaskD m) {
  return !any(PackMaskD(~m));
}

template <class V>
MIXFLOW_FN Pair<V> fma(const Pair<V>& x, const Pair<V>& y, const Pair<V>& z) {
  return {fma(x.a, y.a, z.a), fma(x.b, y.b, z.b)};
}
#if defined(MIXFLOW_HAS_SCALEF)
template <class V>
MIXFLOW_FN Pair<V> scalef(const Pair<V>& x, const Pair<V>& n) {
  return {scalef(x.a, n.a), scalef(x.b, n.b)};
}
#endif
template <class V>
MIXFLOW_FN Pair<V> sqrt(const Pair<V>& x) {
  return {sqrt(x.a), sqrt(x.b)};
}
template <class V>
MIXFLOW_FN Pair<V> bounded_reciprocal(const Pair<V>& x) {
  return {bounded_reciprocal(x.a), bounded_reciprocal(x.b)};
}
template <class V>
MIXFLOW_FN Pair<V> reciprocal_estimate(const Pair<V>& x) {
  return {reciprocal_estimate(x.a), reciprocal_estimate(x.b)};
}
template <class M>
MIXFLOW_FN bool any(const Pair<M>& m) {
  return any(m.a | m.b);
}
template <class M>
MIXFLOW_FN bool all(const Pair<M>& m) {
  return all(m.a & m.b);
}
#endif

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

template <class V>
MIXFLOW_FN V reciprocal(V x) {
  if constexpr (has_units<V>) return reciprocal_estimate(x);
  V r = bounded_reciprocal(x);
#if defined(__AVX512F__)
  if constexpr (Number<V>::lanes > 1) r = select<V>(r == r, r, reciprocal_estimate(x));  // 1 / 0, 1 / inf
#endif
  return r;
}

// a / b to less than 1 ULP, where an error of the reciprocal and one of the product would be too many; by units to 2.
template <class V>
MIXFLOW_FN V quotient(V a, V b) {
  if constexpr (has_units<V>) return a * reciprocal_estimate(b);
#if defined(__AVX512F__)
  if constexpr (Number<V>::lanes > 1) {
    V r = reciprocal(b), q = a * r, corrected = fma(fma(-q, b, a), r, q);
    return select<V>(corrected == corrected, corrected, q);
  }
#endif
  return a / b;
}

// a * b - p exactly, where p is the rounded product. Without fma, by Dekker's product of halves.
template <class V>
MIXFLOW_FN V product_rest(V a, V b, V p) {
#if defined(__FMA__) || defined(__CUDACC__) || defined(__aarch64__)
  return fma(a, b, -p);
#else
  V a_head = upper_half(a), b_head = upper_half(b), a_tail = a - a_head, b_tail = b - b_head;
  return ((a_head * b_head - p) + a_head * b_tail + a_tail * b_head) + a_tail * b_tail;
#endif
}

// a * b - n within one rounding, where n is a number near the product.
template <class V>
MIXFLOW_FN V product_minus(V a, V b, V n) {
#if defined(__FMA__) || defined(__CUDACC__) || defined(__aarch64__)
  return fma(a, b, -n);
#else
  V p = a * b;
  return (p - n) + product_rest(a, b, p);
#endif
}

// c0 + x (c1 + x (c2 + ...)). Estrin's scheme, whose chain is shorter, is 10 to 30 % slower: it takes more registers.
template <class V>
MIXFLOW_FN V horner(V, Scalar<V> last) {
  return splat<V>(last);
}
template <class V, class... Rest>
MIXFLOW_FN V horner(V x, Scalar<V> first, Rest... rest) {
  return fma(x, horner(x, rest...), splat<V>(first));
}

// Memory to number and back; `stride` in elements. A pack with fewer than all lanes in use repeats its first lane, so
// that unused lanes do ordinary work.
template <class V>
MIXFLOW_FN V load(const Scalar<V>* p) {
#if !defined(__CUDACC__)
  if constexpr (is_pair<V>) {
    using Half = decltype(V::a);
    return {load<Half>(p), load<Half>(p + Number<Half>::lanes)};
  } else
#endif
  {
    V x;
    memcpy(&x, p, sizeof x);
    return x;
  }
}
template <class V>
MIXFLOW_FN void store(Scalar<V>* p, V x) {
#if !defined(__CUDACC__)
  if constexpr (is_pair<V>) {
    store(p, x.a);
    store(p + Number<decltype(V::a)>::lanes, x.b);
  } else
#endif
    memcpy(p, &x, sizeof x);
}

#if !defined(__CUDACC__)
// Rows of kBlock consecutive numbers to kBlock columns and back; that of lane i + kBlock j lies at row(i, j), in two
// parts since evenly spaced rows then have few different distances to keep in registers. On x86 in blocks of 16 bytes,
// which are moved as they are and transposed in registers.
#if defined(__x86_64__)
template <class V>
constexpr int kBlock = 16 / sizeof(Scalar<V>);

#if defined(__AVX512F__)
MIXFLOW_FN PackF unpack_low(PackF a, PackF b) {
  return (PackF)_mm512_maskz_unpacklo_ps(0xffff, (__m512)a, (__m512)b);
}
MIXFLOW_FN PackF unpack_high(PackF a, PackF b) {
  return (PackF)_mm512_maskz_unpackhi_ps(0xffff, (__m512)a, (__m512)b);
}
MIXFLOW_FN PackD unpack_low(PackD a, PackD b) {
  return (PackD)_mm512_maskz_unpacklo_pd(0xff, (__m512d)a, (__m512d)b);
}
MIXFLOW_FN PackD unpack_high(PackD a, PackD b) {
  return (PackD)_mm512_maskz_unpackhi_pd(0xff, (__m512d)a, (__m512d)b);
}
template <class T, class Rows>
MIXFLOW_FN Pack<T> load_blocks(Rows row, int i) {
  __m512i r = _mm512_castsi128_si512(_mm_loadu_si128((const __m128i*)row(i, 0)));
  r = _mm512_inserti32x4(r, _mm_loadu_si128((const __m128i*)row(i, 1)), 1);
  r = _mm512_inserti32x4(r, _mm_loadu_si128((const __m128i*)row(i, 2)), 2);
  return (Pack<T>)_mm512_inserti32x4(r, _mm_loadu_si128((const __m128i*)row(i, 3)), 3);
}
template <class T, class Rows>
MIXFLOW_FN void store_blocks(Rows row, int i, Pack<T> x) {
  memcpy(row(i, 0), &x, 16);
  _mm_storeu_si128((__m128i*)row(i, 1), _mm512_maskz_extracti64x2_epi64(3, (__m512i)x, 1));
  _mm_storeu_si128((__m128i*)row(i, 2), _mm512_maskz_extracti64x2_epi64(3, (__m512i)x, 2));
  _mm_storeu_si128((__m128i*)row(i, 3), _mm512_maskz_extracti64x2_epi64(3, (__m512i)x, 3));
}
#elif defined(__AVX2__)
MIXFLOW_FN PackF unpack_low(PackF a, PackF b) {
  return (PackF)_mm256_unpacklo_ps((__m256)a, (__m256)b);
}
MIXFLOW_FN PackF unpack_high(PackF a, PackF b) {
  return (PackF)_mm256_unpackhi_ps((__m256)a, (__m256)b);
}
MIXFLOW_FN PackD unpack_low(PackD a, PackD b) {
  return (PackD)_mm256_unpacklo_pd((__m256d)a, (__m256d)b);
}
MIXFLOW_FN PackD unpack_high(PackD a, PackD b) {
  return (PackD)_mm256_unpackhi_pd((__m256d)a, (__m256d)b);
}
template <class T, class Rows>
MIXFLOW_FN Pack<T> load_blocks(Rows row, int i) {
  __m256i r = _mm256_castsi128_si256(_mm_loadu_si128((const __m128i*)row(i, 0)));
  return (Pack<T>)_mm256_inserti128_si256(r, _mm_loadu_si128((const __m128i*)row(i, 1)), 1);
}
template <class T, class Rows>
MIXFLOW_FN void store_blocks(Rows row, int i, Pack<T> x) {
  memcpy(row(i, 0), &x, 16);
  _mm_storeu_si128((__m128i*)row(i, 1), _mm256_extracti128_si256((__m256i)x, 1));
}
#else
MIXFLOW_FN PackF unpack_low(PackF a, PackF b) {
  return (PackF)_mm_unpacklo_ps((__m128)a, (__m128)b);
}
MIXFLOW_FN PackF unpack_high(PackF a, PackF b) {
  return (PackF)_mm_unpackhi_ps((__m128)a, (__m128)b);
}
MIXFLOW_FN PackD unpack_low(PackD a, PackD b) {
  return (PackD)_mm_unpacklo_pd((__m128d)a, (__m128d)b);
}
MIXFLOW_FN PackD unpack_high(PackD a, PackD b) {
  return (PackD)_mm_unpackhi_pd((__m128d)a, (__m128d)b);
}
template <class T, class Rows>
MIXFLOW_FN Pack<T> load_blocks(Rows row, int i) {
  return load<Pack<T>>(row(i, 0));
}
template <class T, class Rows>
MIXFLOW_FN void store_blocks(Rows row, int i, Pack<T> x) {
  store(row(i, 0), x);
}
#endif

// Within each block of 16 bytes; its own inverse.
MIXFLOW_FN void transpose_blocks(const PackD (&in)[2], PackD* out) {
  out[0] = unpack_low(in[0], in[1]);
  out[1] = unpack_high(in[0], in[1]);
}
MIXFLOW_FN void transpose_blocks(const PackF (&in)[4], PackF* out) {
  PackD low01 = (PackD)unpack_low(in[0], in[1]), low23 = (PackD)unpack_low(in[2], in[3]);
  PackD high01 = (PackD)unpack_high(in[0], in[1]), high23 = (PackD)unpack_high(in[2], in[3]);
  out[0] = (PackF)unpack_low(low01, low23);
  out[1] = (PackF)unpack_high(low01, low23);
  out[2] = (PackF)unpack_low(high01, high23);
  out[3] = (PackF)unpack_high(high01, high23);
}
template <class Rows, class V>
MIXFLOW_FN void load_columns(Rows row, V* columns) {
  V blocks[kBlock<V>];
  for (int i = 0; i < kBlock<V>; ++i) blocks[i] = load_blocks<Scalar<V>>(row, i);
  transpose_blocks(blocks, columns);
}
template <class Rows, class V>
MIXFLOW_FN void store_columns(Rows row, const V* columns) {
  V in[kBlock<V>], blocks[kBlock<V>];
  for (int i = 0; i < kBlock<V>; ++i) in[i] = columns[i];
  transpose_blocks(in, blocks);
  for (int i = 0; i < kBlock<V>; ++i) store_blocks<Scalar<V>>(row, i, blocks[i]);
}
#else
template <class V>
constexpr int kBlock = 1;
template <class Rows, class V>
MIXFLOW_FN void load_columns(Rows row, V* columns) {
  for (int i = 0; i < Number<V>::lanes; ++i) columns[0][i] = *row(0, i);
}
template <class Rows, class V>
MIXFLOW_FN void store_columns(Rows row, const V* columns) {
  for (int i = 0; i < Number<V>::lanes; ++i) *row(0, i) = columns[0][i];
}
#endif
template <class V>
constexpr int kBlock<Pair<V>> = kBlock<V>;

template <class Rows, class V>
MIXFLOW_FN void load_columns(Rows row, Pair<V>* columns) {
  V a[kBlock<V>], b[kBlock<V>];
  load_columns(row, a);
  load_columns([&](int i, int block) { return row(i, block + Number<V>::lanes / kBlock<V>); }, b);
  for (int i = 0; i < kBlock<V>; ++i) columns[i] = {a[i], b[i]};
}
template <class Rows, class V>
MIXFLOW_FN void store_columns(Rows row, const Pair<V>* columns) {
  V a[kBlock<V>], b[kBlock<V>];
  for (int i = 0; i < kBlock<V>; ++i) {
    a[i] = columns[i].a;
    b[i] = columns[i].b;
  }
  store_columns(row, a);
  store_columns([&](int i, int block) { return row(i, block + Number<V>::lanes / kBlock<V>); }, b);
}

// block(k) for the blocks that cover `length` numbers, at least kBlock of them: where the last one would not be whole,
// it begins earlier and shares numbers with the one before.
template <class V, class Block>
MIXFLOW_FN void for_blocks(int length, Block block) {
  int k = 0;
  for (; k + kBlock<V> <= length; k += kBlock<V>) block(k);
  if (k < length) block(length - kBlock<V>);
}

template <class V>
MIXFLOW_FN Scalar<V> first_lane(V x) {
  if constexpr (is_pair<V>)
    return first_lane(x.a);
  else
    return x[0];
}
// x in the first `used` lanes, 0 in the others.
template <class V>
MIXFLOW_FN V first_lanes(V x, int used) {
  Scalar<V> values[Number<V>::lanes];
  store(values, x);
  for (int i = used; i < Number<V>::lanes; ++i) values[i] = 0;
  return load<V>(values);
}
// The sum of all lanes, by halves.
template <class V>
MIXFLOW_FN Scalar<V> sum_lanes(V x) {
  Scalar<V> values[Number<V>::lanes];
  store(values, x);
  for (int half = Number<V>::lanes / 2; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) values[i] += values[i + half];
  return values[0];
}
#endif

}  // namespace MIXFLOW_ARCH
}  // namespace mixflow
