// What the kernels need of CUDA, or of its emulation on the CPU (tests/native/emulation.h), and what a block may use.
//
// The headers of this folder are parts of kernels.cu, the only file that includes them.
#pragma once

#if defined(MIXFLOW_CUDA_EMULATION)
#include "emulation.h"
#else
#include <cuda_runtime.h>
// The memory that the threads of a block share; a launch states its size.
static __device__ __forceinline__ unsigned char* shared_memory() {
  extern __shared__ __align__(16) unsigned char memory[];
  return memory;
}
#endif

#include <cstddef>
#include <cstdint>

#include "../target.h"

namespace mixflow {
namespace MIXFLOW_ARCH {
namespace {

constexpr int kThreads = 128;  // of a block, at most
constexpr int kWarp = 32;
// The shared memory that every GPU gives a block; and what GPUs of compute capability 8 and later give at least to a
// block whose kernel requests it.
constexpr size_t kSharedBytes = 48 * 1024, kMostSharedBytes = 96 * 1024;
constexpr int64_t kMaxGrid = (int64_t(1) << 31) - 1;

inline int64_t ceil_div(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

}  // namespace
}  // namespace MIXFLOW_ARCH
}  // namespace mixflow
