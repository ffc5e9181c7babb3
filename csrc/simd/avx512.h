// AVX-512 (F, DQ, VL and BW): packs of 64 bytes.
//
// The masked forms of the intrinsics stand here, with masks that select every lane: the plain forms make GCC 12 warn
// about its own header.
#pragma once

#include <immintrin.h>

#include "../scalar.h"

namespace mixflow {
namespace MIXFLOW_ARCH {

typedef float PackF __attribute__((vector_size(64)));
typedef double PackD __attribute__((vector_size(64)));
typedef int32_t PackMaskF __attribute__((vector_size(64)));
typedef int64_t PackMaskD __attribute__((vector_size(64)));

struct Features : PlainFeatures {
  static constexpr bool scalef = true, lookup = true;
  static constexpr bool divides = false;  // a division blocks its port for 16 cycles
  static constexpr int registers = 32;
};

// The arguments change places, since the instructions return the second one where either is NaN.
MIXFLOW_FN PackF max(PackF a, PackF b) {
  return (PackF)_mm512_maskz_max_ps(0xffff, (__m512)b, (__m512)a);
}
MIXFLOW_FN PackD max(PackD a, PackD b) {
  return (PackD)_mm512_maskz_max_pd(0xff, (__m512d)b, (__m512d)a);
}
MIXFLOW_FN PackF min(PackF a, PackF b) {
  return (PackF)_mm512_maskz_min_ps(0xffff, (__m512)b, (__m512)a);
}
MIXFLOW_FN PackD min(PackD a, PackD b) {
  return (PackD)_mm512_maskz_min_pd(0xff, (__m512d)b, (__m512d)a);
}
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

// Estimates with 14 bits, and Newton's steps on them, take 2 and 3 cycles.
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
// With an estimate r and e = 1 - x r^2, the result is r / sqrt(1 - e) = r (1 + e (1/2 + e (3/8 + e (5/16 + ...)))).
MIXFLOW_FN PackF reciprocal_sqrt(PackF x) {
  PackF r = (PackF)_mm512_maskz_rsqrt14_ps(0xffff, (__m512)x);
  PackF e = fma(-(x * r), r, 1 - PackF{});
  return fma(r * e, 0.5f - PackF{}, r);
}
MIXFLOW_FN PackD reciprocal_sqrt(PackD x) {
  PackD r = (PackD)_mm512_maskz_rsqrt14_pd(0xff, (__m512d)x);
  PackD e = fma(-(x * r), r, 1 - PackD{});
  PackD series = fma(e, 35.0 / 128 - PackD{}, 5.0 / 16 - PackD{});
  series = fma(e, fma(e, series, 3.0 / 8 - PackD{}), 0.5 - PackD{});
  return fma(r * e, series, r);
}

// x 2^floor(n), rounded once. Overflow and subnormal results are right.
MIXFLOW_FN PackF scalef(PackF x, PackF n) {
  return (PackF)_mm512_maskz_scalef_ps(0xffff, (__m512)x, (__m512)n);
}
MIXFLOW_FN PackD scalef(PackD x, PackD n) {
  return (PackD)_mm512_maskz_scalef_pd(0xff, (__m512d)x, (__m512d)n);
}
// table[index % 16] for each lane.
typedef uint32_t PackIndex __attribute__((vector_size(64)));
MIXFLOW_FN PackF lookup(const float (&table)[16], PackIndex index) {
  return (PackF)_mm512_maskz_permutexvar_ps(0xffff, (__m512i)index, _mm512_loadu_ps(table));
}

MIXFLOW_FN bool any(PackMaskF m) {
  return _mm512_movepi32_mask((__m512i)m) != 0;
}
MIXFLOW_FN bool any(PackMaskD m) {
  return _mm512_movepi64_mask((__m512i)m) != 0;
}

// For transpose.h.
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
template <class V, class Rows>
MIXFLOW_FN void load_blocks(Rows row, int i, V& blocks) {
  __m512i r = _mm512_castsi128_si512(_mm_loadu_si128((const __m128i*)row(i, 0)));
  r = _mm512_inserti32x4(r, _mm_loadu_si128((const __m128i*)row(i, 1)), 1);
  r = _mm512_inserti32x4(r, _mm_loadu_si128((const __m128i*)row(i, 2)), 2);
  blocks = (V)_mm512_inserti32x4(r, _mm_loadu_si128((const __m128i*)row(i, 3)), 3);
}
template <class V, class Rows>
MIXFLOW_FN void store_blocks(Rows row, int i, V blocks) {
  memcpy(row(i, 0), &blocks, 16);
  _mm_storeu_si128((__m128i*)row(i, 1), _mm512_maskz_extracti64x2_epi64(3, (__m512i)blocks, 1));
  _mm_storeu_si128((__m128i*)row(i, 2), _mm512_maskz_extracti64x2_epi64(3, (__m512i)blocks, 2));
  _mm_storeu_si128((__m128i*)row(i, 3), _mm512_maskz_extracti64x2_epi64(3, (__m512i)blocks, 3));
}

}  // namespace MIXFLOW_ARCH
}  // namespace mixflow
