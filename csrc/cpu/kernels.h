// The functions of kernels.cpp and rows.cpp, which are compiled once for each instruction set.
#pragma once

#include "../problem.h"
#include "rows.h"

namespace mixflow {

// A piece of a problem: the outer indices [outer_begin, outer_end) times the inner indices [inner_begin, inner_end).
//
// If lanes run over the elements of a set, the sums of the sets' gradients over this piece are added to `partial`,
// which are (sets, components, 3) doubles. If lanes run over sets, `partial` is null, and gradients are written to the
// operands.
struct Piece {
  int64_t outer_begin, outer_end, inner_begin, inner_end;
  double* partial;
};

// run_piece computes a piece of a problem. run_special applies a special function, given by its index in
// MIXFLOW_SPECIAL_FUNCTIONS, to `size` contiguous numbers. dispatch.h describes the others.
#define MIXFLOW_DECLARE(ARCH)                                                                               \
  namespace ARCH {                                                                                          \
  void run_piece(const Problem&, const Piece&);                                                             \
  void run_special(int function, Dtype dtype, int64_t size, const void* input, void* output);               \
  double bare_loop(Dtype dtype, int components, int64_t elements);                                          \
  bool permute(const Permutation&, int64_t first, const int64_t* positions, int64_t size, int64_t* result); \
  int64_t take_rows(const Table&, const int64_t* rows, int64_t size, char* result);                         \
  }
MIXFLOW_DECLARE(baseline)
MIXFLOW_DECLARE(avx2)
MIXFLOW_DECLARE(avx512)
#undef MIXFLOW_DECLARE

// Whether lanes run over the elements of a parameter set, or over parameter sets, whose elements follow one after the
// other. In the first case a set is prepared for all lanes alike, which pays if it has many elements, or if there are
// too few sets to fill the lanes. This depends on sizes alone.
constexpr int64_t kMostSerialElements = 127, kFewestSerialElements = 15, kFewSets = 16;
inline bool runs_over_elements(const Problem& problem) {
  return problem.inner.size > (problem.outer.size < kFewSets ? kFewestSerialElements : kMostSerialElements);
}
// The most elements that a kernel takes at a time. In chunks of a multiple of it no lane is idle.
constexpr int64_t kLongestPack = 64;

}  // namespace mixflow
