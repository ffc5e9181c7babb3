// The layout "strided": each thread reads the parameters through their strides, without shared memory.
//
// It serves sets of few elements whose rows do not fit in shared memory, and ops without gradients on sets of very many
// components.
#pragma once

#include "element.h"
#include "launcher.h"

namespace mixflow {
namespace MIXFLOW_ARCH {
namespace {

// A thread works on one element. In a backward op it works on all elements of one set, and sums the gradients in
// memory.
template <class Family, Op op, class T>
__global__ void __launch_bounds__(kThreads) run_strided(const __grid_constant__ Problem problem) {
  int64_t inner_size = problem.inner.size, size = problem.outer.size * (is_backward(op) ? 1 : inner_size);
  for (int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < size; i += int64_t(gridDim.x) * blockDim.x) {
    int64_t outer = is_backward(op) || inner_size == 1 ? i : i / inner_size, set[kOperands]{}, place[kOperands];
    find_set<op>(problem, outer, set);
    UnpreparedSet<Family, T> parameters(ParameterRows<T>::at(problem, set), problem.components);
    if constexpr (is_backward(op)) {
      int64_t step = problem.component_stride[kGradParameters - kLogits];
      for (int64_t inner = 0; inner < inner_size; ++inner) {
        for (int operand = 0; operand < kOperands; ++operand) place[operand] = set[operand];
        add_inner<op>(problem, inner, place);
        map_element<Family, op, T>(problem, parameters, place, [&](const auto& seeds) {
          auto add = [&](void* data, int k, T g) {
            if (data == nullptr) return;
            T& sum = static_cast<T*>(data)[set[kGradParameters] + k * step];
            sum = inner == 0 ? g : sum + g;
          };
          if (!problem.has_parameter_gradients()) return;
          for_gradients_of<Family, op, T>(parameters, seeds, [&](int k, T g_logit, T g_loc, T g_log_scale) {
            add(problem.grad_logits, k, g_logit);
            add(problem.grad_loc, k, g_loc);
            add(problem.grad_log_scale, k, g_log_scale);
          });
        });
      }
    } else {
      for (int operand = 0; operand < kOperands; ++operand) place[operand] = set[operand];
      add_inner<op>(problem, i - outer * inner_size, place);
      map_element<Family, op, T>(problem, parameters, place, nullptr);
    }
  }
}

template <class Family, Op op, class T>
void launch_strided(const Problem& problem, const Launcher& launch) {
  int64_t size = problem.outer.size * (is_backward(op) ? 1 : problem.inner.size);
  launch(run_strided<Family, op, T>, ceil_div(size, kThreads), kThreads, 0, problem);
}

}  // namespace
}  // namespace MIXFLOW_ARCH
}  // namespace mixflow
