#pragma once

#include <cstddef>

#include "../problem.h"

namespace mixflow {

// Memory that run_on_cuda needs beside the operands: partial sums of the parameters' gradients. In bytes, often 0.
size_t cuda_workspace(const Problem& problem);

// Enqueues the problem on `stream` of `device`, with no synchronisation and no allocation. `workspace` is memory of
// that device, aligned to 16 bytes, which may be used again by what is enqueued later. Throws std::runtime_error when
// the launch fails.
void run_on_cuda(const Problem& problem, int device, void* stream, void* workspace);

}  // namespace mixflow
