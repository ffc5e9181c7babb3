// Packs: as many numbers as a register holds, one in each lane. PackF and PackD are vectors of GCC and Clang, which
// have the operators of scalars. A comparison gives a mask, in which all bits of a lane are set where it holds.
#pragma once

#if defined(__AVX512F__)
#include "avx512.h"
#elif defined(__AVX2__)
#include "avx2.h"
#elif defined(__SSE2__)
#include "sse2.h"
#else
#include "portable.h"
#endif

namespace mixflow {
namespace MIXFLOW_ARCH {

typedef uint32_t PackBitsF __attribute__((vector_size(sizeof(PackF))));
typedef uint64_t PackBitsD __attribute__((vector_size(sizeof(PackD))));

template <>
struct Number<PackF> {
  using Scalar = float;
  using Bits = PackBitsF;
  using SignedBits = PackMaskF;
  using Mask = PackMaskF;
  static constexpr int lanes = sizeof(PackF) / sizeof(float);
};
template <>
struct Number<PackD> {
  using Scalar = double;
  using Bits = PackBitsD;
  using SignedBits = PackMaskD;
  using Mask = PackMaskD;
  static constexpr int lanes = sizeof(PackD) / sizeof(double);
};

// The pack of numbers of type T.
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

MIXFLOW_FN bool all(PackMaskF m) {
  return !any(PackMaskF(~m));
}
MIXFLOW_FN bool all(PackMaskD m) {
  return !any(PackMaskD(~m));
}

}  // namespace MIXFLOW_ARCH
}  // namespace mixflow
