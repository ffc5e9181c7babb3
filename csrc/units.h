// The units of a GPU for special functions: 1 / x, 1 / sqrt(x), 2^x and log2 x of a float32, by one instruction each.
//
// Their largest errors, from NVIDIA's description of PTX:
//     reciprocal_unit, any_reciprocal_unit     1 ULP
//     reciprocal_sqrt_unit                     2^-22.9 relative
//     exp2_unit                                2^-22.5 relative
//     log2_unit                                2^-22 absolute for x from 1/2 to 2, and 2^-22 relative otherwise
// Where the CPU imitates the units, for tests, results are wrong by pseudo-random parts of these errors. So what holds
// in the tests holds on every GPU.
#pragma once

#include <cstdint>
#include <cstring>

#include "target.h"

#if defined(__CUDACC__) || defined(MIXFLOW_CUDA_EMULATION)
#define MIXFLOW_UNITS

#if !defined(__CUDA_ARCH__)
#include <cmath>
#endif

namespace mixflow {
namespace MIXFLOW_ARCH {

#if !defined(__CUDA_ARCH__)
namespace imitated {
inline uint32_t bits(float x) {
  uint32_t result;
  memcpy(&result, &x, sizeof x);
  return result;
}
// A pseudo-random number from -1 to 1, which depends on x alone.
inline double share(float x) {
  uint64_t z = (bits(x) + uint64_t(1)) * 0x9e3779b97f4a7c15u;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  return static_cast<double>(static_cast<int64_t>(z ^ (z >> 27))) * 0x1p-63;
}
inline float without_subnormals(double x) {
  return std::fabs(x) < 0x1p-126 ? 0 * static_cast<float>(x) : static_cast<float>(x);
}
// Wrong by up to half an ULP. The rounding to float32 that follows adds up to another half.
inline double reciprocal(float x) {
  return 1 / static_cast<double>(x) * (1 + share(x) * 0x1p-24);
}
}  // namespace imitated
#endif

// Subnormal numbers, as x or as the result, become zero.
MIXFLOW_FN float reciprocal_unit(float x) {
#if defined(__CUDA_ARCH__)
  float r;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x));
  return r;
#else
  return imitated::without_subnormals(imitated::reciprocal(imitated::without_subnormals(x)));
#endif
}
// The same with subnormal numbers, which takes four instructions.
MIXFLOW_FN float any_reciprocal_unit(float x) {
#if defined(__CUDA_ARCH__)
  float r;
  asm("rcp.approx.f32 %0, %1;" : "=f"(r) : "f"(x));
  return r;
#else
  return static_cast<float>(imitated::reciprocal(x));
#endif
}
// For normal x above 0.
MIXFLOW_FN float reciprocal_sqrt_unit(float x) {
#if defined(__CUDA_ARCH__)
  float r;
  asm("rsqrt.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x));
  return r;
#else
  // 2^-22.9 less the 2^-24 that rounding may add.
  return imitated::without_subnormals(1 / std::sqrt(static_cast<double>(x)) * (1 + imitated::share(x) * 0x1.24bp-24));
#endif
}
MIXFLOW_FN float exp2_unit(float x) {
#if defined(__CUDA_ARCH__)
  float r;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x));
  return r;
#else
  return imitated::without_subnormals(std::exp2(static_cast<double>(x)) * (1 + imitated::share(x) * 0x1.6a0p-23));
#endif
}
MIXFLOW_FN float log2_unit(float x) {
#if defined(__CUDA_ARCH__)
  float r;
  asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x));
  return r;
#else
  double r = std::log2(static_cast<double>(x)), error = imitated::share(x) * 0x1p-22;
  return static_cast<float>(r + error * (x > 0.5f && x < 2 ? 1 : std::isfinite(r) ? r : 0));
#endif
}

}  // namespace MIXFLOW_ARCH
}  // namespace mixflow
#endif
