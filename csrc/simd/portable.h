// Any other instruction set, such as NEON: packs of 16 bytes in loops of fixed length, which the compiler turns into
// vector instructions. An instruction set with a file of its own states the same names.
#pragma once

#include "../scalar.h"

namespace mixflow {
namespace MIXFLOW_ARCH {

typedef float PackF __attribute__((vector_size(16)));
typedef double PackD __attribute__((vector_size(16)));
typedef int32_t PackMaskF __attribute__((vector_size(16)));
typedef int64_t PackMaskD __attribute__((vector_size(16)));

using Features = PlainFeatures;

template <class V, class F>
MIXFLOW_FN V by_lane(F f) {
  V result;
  for (unsigned i = 0; i < sizeof(V) / sizeof(result[0]); ++i) result[i] = f(i);
  return result;
}
MIXFLOW_FN PackF max(PackF a, PackF b) {
  return a < b ? b : a;
}
MIXFLOW_FN PackD max(PackD a, PackD b) {
  return a < b ? b : a;
}
MIXFLOW_FN PackF min(PackF a, PackF b) {
  return b < a ? b : a;
}
MIXFLOW_FN PackD min(PackD a, PackD b) {
  return b < a ? b : a;
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
MIXFLOW_FN PackF reciprocal_sqrt(PackF x) {
  return 1 / sqrt(x);
}
MIXFLOW_FN PackD reciprocal_sqrt(PackD x) {
  return 1 / sqrt(x);
}
template <class M>
MIXFLOW_FN bool any(M m) {
  bool found = false;
  for (unsigned i = 0; i < sizeof(M) / sizeof(m[0]); ++i) found |= m[i] != 0;
  return found;
}

// For transpose.h.
MIXFLOW_FN PackF unpack_low(PackF a, PackF b) {
  return PackF{a[0], b[0], a[1], b[1]};
}
MIXFLOW_FN PackF unpack_high(PackF a, PackF b) {
  return PackF{a[2], b[2], a[3], b[3]};
}
MIXFLOW_FN PackD unpack_low(PackD a, PackD b) {
  return PackD{a[0], b[0]};
}
MIXFLOW_FN PackD unpack_high(PackD a, PackD b) {
  return PackD{a[1], b[1]};
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
