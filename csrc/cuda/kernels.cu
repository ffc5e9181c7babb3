// The CUDA kernels: which layout an op gets, and the choice of its family and number type.
//
// There are three layouts: common.h for parameter sets that serve many elements, rows.h for those that serve one or a
// few, and strided.h for what does not fit in shared memory. An element has the same bits in all three. How a sum is
// cut depends on sizes alone, never on the grid or the GPU.
#include "common.h"
#include "launch.h"
#include "rows.h"
#include "strided.h"

namespace mixflow {
namespace MIXFLOW_ARCH {
namespace {

template <class Family, Op op, class T>
void launch_op(const Problem& problem, const Launcher& launch, double* partial) {
  if (!is_common(problem)) {
    if (!launch_rows<Family, op, T>(problem, launch)) launch_strided<Family, op, T>(problem, launch);
  } else if (problem.components <= kPreparedComponents) {
    launch_common<Family, op, T, true>(problem, launch, partial);
  } else if constexpr (is_backward(op)) {
    launch_common<Family, op, T, false>(problem, launch, partial);
  } else {
    launch_strided<Family, op, T>(problem, launch);
  }
}

template <class Family, class T>
void launch_family(const Problem& problem, const Launcher& launch, double* partial) {
  switch (problem.op) {
    case Op::forward:
      return launch_op<Family, Op::forward, T>(problem, launch, partial);
    case Op::forward_with_slopes:
      throw std::invalid_argument("op: forward_with_slopes is the CPU's; a GPU computes gradients of x alone as such");
    case Op::backward:
      return launch_op<Family, Op::backward, T>(problem, launch, partial);
    case Op::inverse:
      return launch_op<Family, Op::inverse, T>(problem, launch, partial);
    case Op::inverse_backward:
      return launch_op<Family, Op::inverse_backward, T>(problem, launch, partial);
    case Op::interval:
      return launch_op<Family, Op::interval, T>(problem, launch, partial);
    case Op::interval_backward:
      return launch_op<Family, Op::interval_backward, T>(problem, launch, partial);
  }
}

}  // namespace
}  // namespace MIXFLOW_ARCH

size_t cuda_workspace(const Problem& problem) {
  using namespace MIXFLOW_ARCH;
  if (problem.is_empty() || !problem.has_parameter_gradients() || !is_common(problem)) return 0;
  return problem.outer.size * chunks_of(problem).count * 3 * problem.components * sizeof(double);
}

void run_on_cuda(const Problem& problem, int device, void* stream, void* workspace) {
  using namespace MIXFLOW_ARCH;
  if (problem.is_empty()) return;
  CurrentDevice current(device);
  Launcher launch{name_of(problem.op), static_cast<cudaStream_t>(stream)};
  int i = 0;
#define MIXFLOW_CASE(FAMILY)                                                           \
  if (problem.family == i++) {                                                         \
    if (problem.dtype == Dtype::float32)                                               \
      launch_family<FAMILY, float>(problem, launch, static_cast<double*>(workspace));  \
    else                                                                               \
      launch_family<FAMILY, double>(problem, launch, static_cast<double*>(workspace)); \
  }
  MIXFLOW_FAMILIES(MIXFLOW_CASE)
#undef MIXFLOW_CASE
}

}  // namespace mixflow
