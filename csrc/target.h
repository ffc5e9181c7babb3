// What this translation unit is compiled for.
//
// The same source is compiled several times: once for each instruction set of a CPU, and once for GPUs. All of it lives
// in a namespace that is named after its target, MIXFLOW_ARCH. Without that, the linker could replace an inline
// function of one build by that of another, which may use instructions that the processor does not have.
#pragma once

#if defined(__CUDACC__)

#define MIXFLOW_ARCH cuda
#define MIXFLOW_FN __host__ __device__ __forceinline__
// Before a loop: unroll it as often as the constant `unrolled` states, which the caller defines; or do not unroll it.
#define MIXFLOW_UNROLLED _Pragma("unroll unrolled")
#define MIXFLOW_NOT_UNROLLED _Pragma("unroll 1")

#else

#ifndef MIXFLOW_ARCH
#error "compile with -DMIXFLOW_ARCH=<name of the instruction set>"
#endif
#define MIXFLOW_FN inline __attribute__((always_inline))
#define MIXFLOW_UNROLLED
#define MIXFLOW_NOT_UNROLLED

#endif
