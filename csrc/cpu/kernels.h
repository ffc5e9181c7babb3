// The entry points that each instruction set's build of cpu/kernels.cpp and cpu/rows.cpp offers.
#pragma once

#include "../problem.h"
#include "rows.h"

namespace mixflow {

// A piece of a problem: outer indices [outer_begin, outer_end) times inner indices [inner_begin, inner_end). Where
// lanes run over the elements of a parameter set, the sets' gradients over this piece are added to `partial`, (sets,
// components, 3) doubles; elsewhere `partial` is null and gradients are written in place.
struct Piece {
  int64_t outer_begin, outer_end, inner_begin, inner_end;
  double* partial;
};

// What one instruction set's build offers: a piece of a problem; a special function (an index into
// MIXFLOW_SPECIAL_FUNCTIONS) over `size` contiguous numbers; the arithmetic that no forward op can do without, for
// benchmarks; and, in cpu/rows.cpp, what dispatch.h describes of permutations and rows.
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

// Whether lanes run over the elements that share a parameter set, or over parameter sets, each of which serves its
// elements one after the other. The former prepares a set in all lanes alike, which pays for many elements, or where
// there are too few sets to fill the lanes. Sizes alone decide.
constexpr int64_t kMostSerialElements = 127, kFewestSerialElements = 15, kFewSets = 16;
inline bool runs_over_elements(const Problem& problem) {
  return problem.inner.size > (problem.outer.size < kFewSets ? kFewestSerialElements : kMostSerialElements);
}
// No kernel takes more elements at a time: chunks that are multiples of it leave no lanes idle.
constexpr int64_t kLongestPack = 64;

}  // namespace mixflow
