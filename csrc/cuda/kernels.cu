// The CUDA loops over the templates of ../mixture.h, ../inverse.h and ../interval.h: one thread per element.
#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

#include "../interval.h"
#include "../inverse.h"
#include "launch.h"

namespace mixflow {
namespace MIXFLOW_ARCH {
namespace {

// The parameter set of one element, read through its strides; prepared component by component, since a thread has no
// room to keep it.
template <class Family, class T>
struct StridedParameters {
  const T *logits, *loc, *log_scale;
  int64_t stride[3];
  int components;
  T largest, total, largest_inv_scale, smallest_scale, density_floor;

  MIXFLOW_FN StridedParameters(const Problem& problem, int64_t outer)
      : logits(static_cast<const T*>(problem.logits) + problem.outer.offset(outer, kLogits)),
        loc(static_cast<const T*>(problem.loc) + problem.outer.offset(outer, kLoc)),
        log_scale(static_cast<const T*>(problem.log_scale) + problem.outer.offset(outer, kLogScale)),
        stride{problem.component_stride[0], problem.component_stride[1], problem.component_stride[2]},
        components(problem.components),
        largest(-infinity<T>()),
        total(0) {
    T smallest_log_scale = infinity<T>();
    for (int k = 0; k < components; ++k) {
      largest = max(logits[k * stride[0]], largest);
      smallest_log_scale = min(log_scale[k * stride[2]], smallest_log_scale);
    }
    for (int k = 0; k < components; ++k) total += exp(logits[k * stride[0]] - largest);
    largest_inv_scale = exp(-smallest_log_scale);
    smallest_scale = reciprocal(largest_inv_scale);
    density_floor = mixflow::cuda::density_floor(largest_inv_scale);
  }

  MIXFLOW_FN Component<T> component(int k) const {
    return make_component<Family>(logits[k * stride[0]] - largest, loc[k * stride[1]], log_scale[k * stride[2]]);
  }
  MIXFLOW_FN bool has_kept(int) const { return false; }
  MIXFLOW_FN Shares<T> kept(int) const { return {}; }
  MIXFLOW_FN void keep(int, const Shares<T>&) const {}
  MIXFLOW_FN T total_weight() const { return total; }
};

template <class Family, Op op, class T>
__global__ void __launch_bounds__(256) run(Problem problem) {
  int64_t size = problem.outer.size * problem.inner.size;
  RuntimeBase base{problem.base};
  for (int64_t i = blockIdx.x * int64_t(blockDim.x) + threadIdx.x; i < size; i += int64_t(gridDim.x) * blockDim.x) {
    int64_t outer = i / problem.inner.size, inner = i % problem.inner.size;
    auto at = [&](auto* p, Operand operand) {
      return p + problem.outer.offset(outer, operand) + problem.inner.offset(inner, operand);
    };
    StridedParameters<Family, T> parameters(problem, outer);
    T input = *at(static_cast<const T*>(problem.input), kInput);
    T* output = at(static_cast<T*>(problem.output), kOutput);
    auto write = [&](int k, T g_logit, T g_loc, T g_log_scale) {
      int64_t offset = problem.outer.offset(outer, kGradParameters) + k;
      static_cast<T*>(problem.grad_logits)[offset] = g_logit;
      static_cast<T*>(problem.grad_loc)[offset] = g_loc;
      static_cast<T*>(problem.grad_log_scale)[offset] = g_log_scale;
    };
    if constexpr (op == Op::interval) {
      *output = log_interval<Family>(input, *at(static_cast<const T*>(problem.upper), kUpper), parameters);
    } else if constexpr (op == Op::interval_backward) {
      EdgeGradients<T> grads =
          log_interval_backward<Family>(input, *at(static_cast<const T*>(problem.upper), kUpper),
                                        *at(static_cast<const T*>(problem.grad_value), kGradValue), parameters, write);
      *output = grads.lower;
      *at(static_cast<T*>(problem.grad_upper), kGradUpper) = grads.upper;
    } else if constexpr (is_backward(op)) {
      *output = backward<Family, op == Op::inverse_backward>(
          input, *at(static_cast<const T*>(problem.grad_value), kGradValue),
          *at(static_cast<const T*>(problem.grad_ladj), kGradLadj), parameters, base, write);
    } else {
      Mapped<T> mapped;
      if constexpr (op == Op::forward)
        mapped = forward<Family>(input, parameters, base);
      else
        mapped = inverse<Family>(input, parameters, base).mapped;
      *output = mapped.value;
      *at(static_cast<T*>(problem.ladj), kLadj) = mapped.ladj;
    }
  }
}

template <class Family, Op op, class T>
void launch(const Problem& problem, cudaStream_t stream) {
  constexpr int threads = 256;
  int64_t blocks = (problem.outer.size * problem.inner.size + threads - 1) / threads;
  run<Family, op, T><<<static_cast<unsigned>(blocks < (1 << 20) ? blocks : (1 << 20)), threads, 0, stream>>>(problem);
}

template <class Family, class T>
void launch_family(const Problem& problem, cudaStream_t stream) {
  switch (problem.op) {
    case Op::forward:
      return launch<Family, Op::forward, T>(problem, stream);
    case Op::backward:
      return launch<Family, Op::backward, T>(problem, stream);
    case Op::inverse:
      return launch<Family, Op::inverse, T>(problem, stream);
    case Op::inverse_backward:
      return launch<Family, Op::inverse_backward, T>(problem, stream);
    case Op::interval:
      return launch<Family, Op::interval, T>(problem, stream);
    case Op::interval_backward:
      return launch<Family, Op::interval_backward, T>(problem, stream);
  }
}

void check(cudaError_t status, const char* what) {
  if (status != cudaSuccess)
    throw std::runtime_error(std::string("mixflow: CUDA ") + what + " failed: " + cudaGetErrorString(status));
}

}  // namespace
}  // namespace MIXFLOW_ARCH

void run_on_cuda(const Problem& problem, int device, void* stream_handle) {
  using namespace MIXFLOW_ARCH;
  int before = 0;
  check(cudaGetDevice(&before), "cudaGetDevice");
  if (before != device) check(cudaSetDevice(device), "cudaSetDevice");
  auto stream = static_cast<cudaStream_t>(stream_handle);
  int i = 0;
#define MIXFLOW_CASE(FAMILY)                          \
  if (problem.family == i++) {                        \
    if (problem.dtype == Dtype::float32)              \
      launch_family<FAMILY, float>(problem, stream);  \
    else                                              \
      launch_family<FAMILY, double>(problem, stream); \
  }
  MIXFLOW_FAMILIES(MIXFLOW_CASE)
#undef MIXFLOW_CASE
  cudaError_t status = cudaGetLastError();
  if (before != device) cudaSetDevice(before);
  check(status, "launch of the mixture-CDF transform");
}

}  // namespace mixflow
