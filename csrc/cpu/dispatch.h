// Runs problems on the CPU: chooses the instruction set, cuts a problem into pieces, runs the pieces on threads, and
// adds up the gradients.
#pragma once

#include <string>
#include <vector>

#include "../problem.h"
#include "rows.h"

namespace mixflow {

// The instruction sets that mixflow was compiled for, the slowest first; those of them that this processor has; and the
// one in use, which is the fastest, or the one that the environment variable MIXFLOW_CPU_CAPABILITY names.
std::vector<std::string> cpu_builds();
std::vector<std::string> cpu_capabilities();
std::string cpu_capability();
// Without OpenMP everything runs on the calling thread.
bool has_openmp();

// Returns `threads`, or 1 if cost.h estimates that there is too little work for several.
int worthwhile_threads(const Problem& problem, int threads);
int worthwhile_threads(Op op, Dtype dtype, int components, int64_t sets, int64_t elements, int threads);

// Runs on `threads` threads. The result does not depend on their number.
void run_on_cpu(const Problem& problem, int threads);

// Applies a special function, given by its index in MIXFLOW_SPECIAL_FUNCTIONS, to contiguous numbers. The tests measure
// its error by this.
void run_special_on_cpu(int function, Dtype dtype, int64_t size, const void* input, void* output);

// Writes to `result` where a permutation sends `size` positions: those of the array `positions`, which may be `result`
// itself, or, if it is null, the consecutive ones from `first` on. Returns false if a position is not in [0, count).
// Then the result has no meaning.
bool permute_on_cpu(const Permutation& permutation, int64_t first, const int64_t* positions, int64_t size,
                    int64_t* result);

// Copies the rows with these numbers to `result`, one after the other, on the calling thread. Stops at a number that is
// not in [0, count), before it reads anything there. Returns how many rows it has copied.
int64_t take_rows_on_cpu(const Table& table, const int64_t* rows, int64_t size, char* result);

// Does the least arithmetic that a forward op over so many elements needs, without access to memory. Benchmarks compare
// with its time. The result has no meaning, except that the compiler cannot leave out the work.
double run_bare_loop(Dtype dtype, int components, int64_t elements, int threads);

}  // namespace mixflow
