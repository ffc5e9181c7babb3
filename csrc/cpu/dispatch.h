// CPU execution: picks the instruction set, cuts a problem into pieces, runs them on threads and adds up gradients.
#pragma once

#include <string>
#include <vector>

#include "../problem.h"
#include "rows.h"

namespace mixflow {

// Instruction sets that this build carries, worst first, those of them that this processor has, and the one in use: the
// best, or the one named by the environment variable MIXFLOW_CPU_CAPABILITY.
std::vector<std::string> cpu_builds();
std::vector<std::string> cpu_capabilities();
std::string cpu_capability();
bool has_openmp();  // otherwise all runs on one thread

// `threads`, or 1 if there is too little work for more, by the estimate in cost.h.
int worthwhile_threads(const Problem& problem, int threads);
int worthwhile_threads(Op op, Dtype dtype, int components, int64_t sets, int64_t elements, int threads);

// Runs on `threads` threads. The result does not depend on their number.
void run_on_cpu(const Problem& problem, int threads);

// A special function, by its index in the registry, over contiguous numbers: for the tests that measure its error.
void run_special_on_cpu(int function, Dtype dtype, int64_t size, const void* input, void* output);

// Where a permutation sends `positions`, whose memory `result` may share; or, where they are null, those from `first`
// on. Returns false, with a result of no meaning, where a position is not below the permutation's count.
bool permute_on_cpu(const Permutation& permutation, int64_t first, const int64_t* positions, int64_t size,
                    int64_t* result);

// The rows of these numbers, one after the other, on the calling thread. A number that is no row's ends it, unread:
// what it returns, the number of rows copied, is then less than `size`.
int64_t take_rows_on_cpu(const Table& table, const int64_t* rows, int64_t size, char* result);

// The least arithmetic of a forward op over so many elements, touching no memory: the limit that benchmarks refer to.
// The result has no meaning but that the work was done.
double run_bare_loop(Dtype dtype, int components, int64_t elements, int threads);

}  // namespace mixflow
