#pragma once

#include "../problem.h"

namespace mixflow {

// Enqueues the problem on `stream` of `device`, with no synchronisation and no allocation. Backward problems must have
// one parameter set per element (inner.size == 1). Throws std::runtime_error when the launch fails.
void run_on_cuda(const Problem& problem, int device, void* stream);

}  // namespace mixflow
