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
#else
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

template <class V>
MIXFLOW_FN Bits<V> to_bits(V x) {
  Bits<V> bits;
  memcpy(&bits, &x, sizeof x);
  return bits;
}
template <class V>
MIXFLOW_FN V from_bits(Bits<V> bits) {
  V x;
  memcpy(&x, &bits, sizeof x);
  return x;
}

template <class V>
MIXFLOW_FN V select(Mask<V> mask, V a, V b) {
  return mask ? a : b;
}
// A NaN in the first argument survives both; the second argument must not be NaN.
template <class V>
MIXFLOW_FN V max(V a, V b) {
  return select<V>(a < b, b, a);
}
template <class V>
MIXFLOW_FN V min(V a, V b) {
  return select<V>(b < a, b, a);
}
template <class V>
MIXFLOW_FN V abs(V x) {
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
  SignedBits<V> bits;
  memcpy(&bits, &x, sizeof x);
  return flip_negative<V>(bits);
}
template <class V>
MIXFLOW_FN V from_ordinal(SignedBits<V> ordinal) {
  SignedBits<V> bits = flip_negative<V>(ordinal);
  V x;
  memcpy(&x, &bits, sizeof x);
  return x;
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
MIXFLOW_FN bool all(PackMaskF m) {
  return !any(PackMaskF(~m));
}
MIXFLOW_FN bool all(PackMaskD m) {
  return !any(PackMaskD(~m));
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

// c0 + x (c1 + x (c2 + ...)).
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
  V x;
  memcpy(&x, p, sizeof x);
  return x;
}
template <class V>
MIXFLOW_FN void store(Scalar<V>* p, V x) {
  memcpy(p, &x, sizeof x);
}

}  // namespace MIXFLOW_ARCH
}  // namespace mixflow
