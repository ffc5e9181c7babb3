// SSE2, which every x86-64 processor has: packs of 16 bytes, and no fused multiply-add.
#pragma once

#include <immintrin.h>

#include "../scalar.h"

namespace mixflow {
namespace MIXFLOW_ARCH {

typedef float PackF __attribute__((vector_size(16)));
typedef double PackD __attribute__((vector_size(16)));
typedef int32_t PackMaskF __attribute__((vector_size(16)));
typedef int64_t PackMaskD __attribute__((vector_size(16)));

using Features = PlainFeatures;

// The arguments change places, since the instructions return the second one where either is NaN.
MIXFLOW_FN PackF max(PackF a, PackF b) {
  return (PackF)_mm_max_ps((__m128)b, (__m128)a);
}
MIXFLOW_FN PackD max(PackD a, PackD b) {
  return (PackD)_mm_max_pd((__m128d)b, (__m128d)a);
}
MIXFLOW_FN PackF min(PackF a, PackF b) {
  return (PackF)_mm_min_ps((__m128)b, (__m128)a);
}
MIXFLOW_FN PackD min(PackD a, PackD b) {
  return (PackD)_mm_min_pd((__m128d)b, (__m128d)a);
}
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
// An estimate r with 11 bits takes half the time of a square root and a division. With e = 1 - x r^2, the result is
// r / sqrt(1 - e) = r (1 + e (1/2 + e (3/8 + ...))).
MIXFLOW_FN PackF reciprocal_sqrt(PackF x) {
  PackF r = (PackF)_mm_rsqrt_ps((__m128)x);
  PackF e = 1 - (x * r) * r;
  return r + (r * e) * (e * 0.375f + 0.5f);
}
MIXFLOW_FN PackD reciprocal_sqrt(PackD x) {
  return 1 / sqrt(x);
}

MIXFLOW_FN bool any(PackMaskF m) {
  return _mm_movemask_epi8((__m128i)m) != 0;
}
MIXFLOW_FN bool any(PackMaskD m) {
  return _mm_movemask_epi8((__m128i)m) != 0;
}

// For transpose.h.
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
template <class V, class Rows>
MIXFLOW_FN void load_blocks(Rows row, int i, V& blocks) {
  V x;
  memcpy(&x, row(i, 0), 16);
  blocks = x;
}
template <class V, class Rows>
MIXFLOW_FN void store_blocks(Rows row, int i, V blocks) {
  memcpy(row(i, 0), &blocks, 16);
}

}  // namespace MIXFLOW_ARCH
}  // namespace mixflow
