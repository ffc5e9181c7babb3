// AVX2 and FMA: packs of 32 bytes.
#pragma once

#include <immintrin.h>

#include "../scalar.h"

namespace mixflow {
namespace MIXFLOW_ARCH {

typedef float PackF __attribute__((vector_size(32)));
typedef double PackD __attribute__((vector_size(32)));
typedef int32_t PackMaskF __attribute__((vector_size(32)));
typedef int64_t PackMaskD __attribute__((vector_size(32)));

using Features = PlainFeatures;

// The arguments change places, since the instructions return the second one where either is NaN.
MIXFLOW_FN PackF max(PackF a, PackF b) {
  return (PackF)_mm256_max_ps((__m256)b, (__m256)a);
}
MIXFLOW_FN PackD max(PackD a, PackD b) {
  return (PackD)_mm256_max_pd((__m256d)b, (__m256d)a);
}
MIXFLOW_FN PackF min(PackF a, PackF b) {
  return (PackF)_mm256_min_ps((__m256)b, (__m256)a);
}
MIXFLOW_FN PackD min(PackD a, PackD b) {
  return (PackD)_mm256_min_pd((__m256d)b, (__m256d)a);
}
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
  PackF r = (PackF)_mm256_rsqrt_ps((__m256)x);
  PackF e = fma(-(x * r), r, 1 - PackF{});
  return fma(r * e, fma(e, 0.375f - PackF{}, 0.5f - PackF{}), r);
}
MIXFLOW_FN PackD reciprocal_sqrt(PackD x) {
  return 1 / sqrt(x);
}

MIXFLOW_FN bool any(PackMaskF m) {
  return _mm256_movemask_epi8((__m256i)m) != 0;
}
MIXFLOW_FN bool any(PackMaskD m) {
  return _mm256_movemask_epi8((__m256i)m) != 0;
}

// For transpose.h.
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
template <class V, class Rows>
MIXFLOW_FN void load_blocks(Rows row, int i, V& blocks) {
  __m256i r = _mm256_castsi128_si256(_mm_loadu_si128((const __m128i*)row(i, 0)));
  blocks = (V)_mm256_inserti128_si256(r, _mm_loadu_si128((const __m128i*)row(i, 1)), 1);
}
template <class V, class Rows>
MIXFLOW_FN void store_blocks(Rows row, int i, V blocks) {
  memcpy(row(i, 0), &blocks, 16);
  _mm_storeu_si128((__m128i*)row(i, 1), _mm256_extracti128_si256((__m256i)blocks, 1));
}

}  // namespace MIXFLOW_ARCH
}  // namespace mixflow
