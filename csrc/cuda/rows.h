// The layout "rows": a parameter set serves one or a few elements.
//
// Each thread works on one set, whose numbers are rows of shared memory. The block moves the rows of all its threads
// from memory and back together, so that neighbouring threads access neighbouring addresses. The least that an op must
// move is, for a single element of a set, 12 K + 12 bytes forward and back, and 24 K + 16 bytes in backward ops (for K
// components in float32; for intervals 12 and 20 bytes instead). This is also about what it does move.
#pragma once

#include "element.h"
#include "launcher.h"
#include "row_memory.h"

namespace mixflow {
namespace MIXFLOW_ARCH {
namespace {

// A set of the backward ops. Its thread keeps numbers of each component in shared memory, for the second pass over the
// components. If the set serves a single element, `in_place`, the first two of them take the place of the logits and
// log_scale. Those are read again for logarithmic sums only, which read them from `origin`, where the rows came from.
template <class Family, class T>
struct KeepingRow : RowSet<Family, T> {
  T* numbers[3];  // where three of the numbers are kept; the fourth are `step` beyond the third
  int step;
  ParameterRows<T> origin;

  MIXFLOW_FN KeepingRow(T* own, int step, int components, bool in_place, const ParameterRows<T>& origin)
      : RowSet<Family, T>({own, own + step, own + 2 * step, {1, 1, 1}}, components), step(step), origin(origin) {
    numbers[0] = own + (in_place ? 0 : 3 * step);
    numbers[1] = own + (in_place ? 2 * step : 4 * step);
    numbers[2] = own + (in_place ? 3 * step : 5 * step);
  }
  MIXFLOW_FN LogComponent<T> log_component(int k) const {
    return make_log_component(origin.logit_at(k) - this->largest_logit, origin.loc_at(k), origin.log_scale_at(k));
  }
  MIXFLOW_FN T total_weight() const {
    T total(0);
    for (int k = 0; k < this->components; ++k) total += log_component(k).weight;
    return total;
  }
  MIXFLOW_FN T location(int k) const { return this->rows.loc_at(k); }
  MIXFLOW_FN bool has_kept(int) const { return true; }
  MIXFLOW_FN Kept<T> kept(int k) const { return {{numbers[0][k], numbers[1][k], numbers[2][k], numbers[2][step + k]}}; }
  MIXFLOW_FN void keep(int k, const Kept<T>& x) const {
    numbers[0][k] = x.number[0];
    numbers[1][k] = x.number[1];
    numbers[2][k] = x.number[2];
    numbers[2][step + k] = x.number[3];
  }
};

// A set of the inverse, which goes through the components several times. Its thread keeps in shared memory what is
// costly to compute of each component.
template <class Family, class T>
struct PreparedRow : UnpreparedSet<Family, T> {
  T* prepared;  // the rates, their rests and the weights, `step` apart
  int step;
  T total;

  MIXFLOW_FN PreparedRow(T* own, int step, int components)
      : UnpreparedSet<Family, T>(ParameterRows<T>{own, own + step, own + 2 * step, {1, 1, 1}}, components),
        prepared(own + 3 * step),
        step(step),
        total(0) {
    for (int k = 0; k < components; ++k) {
      Rate<T> of = rate_of<Family>(this->rows.log_scale_at(k));
      T weight = quick_exp(this->log_weight(k));
      prepared[k] = of.rate;
      prepared[step + k] = of.rest;
      prepared[2 * step + k] = weight;
      total += weight;
    }
  }
  MIXFLOW_FN Component<T> component(int k) const {
    return make_component<Family>(this->rows.loc_at(k), prepared[2 * step + k],
                                  Rate<T>{prepared[k], prepared[step + k]});
  }
  MIXFLOW_FN T total_weight() const { return total; }
};

// The arrays that a block has in shared memory, each with a row for each thread: three parameters; what is kept or
// prepared of them; and sums of gradients, if a set serves several elements. The gradients of a single element take the
// place of the parameters, since a component is not read again once its gradients are known.
MIXFLOW_FN int row_arrays(Op op, bool serves_one, bool sums) {
  int beside = is_backward(op) ? (serves_one ? 2 : 4) : op == Op::inverse ? 3 : 0;
  return 3 + beside + (sums ? 3 : 0);
}
MIXFLOW_FN bool sums_in_rows(const Problem& problem) {
  return problem.inner.size > 1 && problem.has_parameter_gradients();
}

// A thread works on the elements of one set.
template <class Family, Op op, class T>
__global__ void __launch_bounds__(kThreads) run_rows(const __grid_constant__ Problem problem, Rows rows) {
  int threads = blockDim.x, step = threads * rows.pitch;
  auto* offsets = reinterpret_cast<int64_t*>(shared_memory());
  auto* shared = reinterpret_cast<T*>(offsets + 3 * threads);
  bool sums = sums_in_rows(problem);
  T* gradients = shared + (sums ? row_arrays(op, problem.inner.size == 1, false) * step : 0);
  for (int64_t begin = int64_t(blockIdx.x) * threads; begin < problem.outer.size;
       begin += int64_t(gridDim.x) * threads) {
    int count = problem.outer.size - begin < threads ? static_cast<int>(problem.outer.size - begin) : threads;
    load_rows(problem, rows, begin, count, shared, step, offsets);
    __syncthreads();
    if (static_cast<int>(threadIdx.x) < count) {
      T* own = shared + threadIdx.x * rows.pitch;
      int64_t first[kOperands]{};
      find_set<op>(problem, begin + threadIdx.x, first);
      auto parameters = [&] {
        if constexpr (is_backward(op))
          return KeepingRow<Family, T>(own, step, rows.length, problem.inner.size == 1,
                                       ParameterRows<T>::at(problem, first));
        else if constexpr (op == Op::inverse)
          return PreparedRow<Family, T>(own, step, rows.length);
        else
          return UnpreparedSet<Family, T>(ParameterRows<T>{own, own + step, own + 2 * step, {1, 1, 1}}, rows.length);
      }();
      T* own_gradients = gradients + threadIdx.x * rows.pitch;
      for (int64_t inner = 0; inner < problem.inner.size; ++inner) {
        int64_t place[kOperands];
        for (int operand = 0; operand < kOperands; ++operand) place[operand] = first[operand];
        if (problem.inner.size > 1) add_inner<op>(problem, inner, place);
        map_element<Family, op, T>(problem, parameters, place, [&](const auto& seeds) {
          if (!problem.has_parameter_gradients()) return;
          if (problem.inner.size == 1 && !seeds.idle && seeds.is_linear()) {
            [[maybe_unused]] constexpr int unrolled = 4;
            MIXFLOW_UNROLLED
            for (int k = 0; k < rows.length; ++k) {
              ComponentGradients<T> g = linear_gradients<Family>(k, parameters, seeds.seeds());
              own_gradients[k] = g.logit;
              own_gradients[step + k] = g.loc;
              own_gradients[2 * step + k] = g.log_scale;
            }
            return;
          }
          for_gradients_of<Family, op, T>(parameters, seeds, [&](int k, T g_logit, T g_loc, T g_log_scale) {
            T* own = own_gradients + k;
            own[0] = inner == 0 ? g_logit : own[0] + g_logit;
            own[step] = inner == 0 ? g_loc : own[step] + g_loc;
            own[2 * step] = inner == 0 ? g_log_scale : own[2 * step] + g_log_scale;
          });
        });
      }
    }
    __syncthreads();
    if constexpr (is_backward(op)) {
      if (problem.has_parameter_gradients()) store_rows(problem, rows, begin, count, gradients, step, offsets);
      __syncthreads();
    }
  }
}

template <Op op, class T>
size_t row_bytes(const Problem& problem, const Rows& rows, int threads) {
  return threads * (3 * sizeof(int64_t) +
                    row_arrays(op, problem.inner.size == 1, sums_in_rows(problem)) * sizeof(T) * rows.pitch);
}
// The threads of a block: as many as there is shared memory for. None if there is not enough for a warp.
template <Op op, class T>
int row_threads(const Problem& problem, const Rows& rows) {
  for (int threads = kThreads; threads > kWarp; threads /= 2)
    if (row_bytes<op, T>(problem, rows, threads) <= kSharedBytes) return threads;
  return row_bytes<op, T>(problem, rows, kWarp) <= kMostSharedBytes ? kWarp : 0;
}

// Returns false if the rows of a warp do not fit in shared memory.
template <class Family, Op op, class T>
bool launch_rows(const Problem& problem, const Launcher& launch) {
  Rows rows = rows_of<T>(problem);
  int threads = row_threads<op, T>(problem, rows);
  if (threads == 0) return false;
  launch(run_rows<Family, op, T>, ceil_div(problem.outer.size, threads), threads,
         row_bytes<op, T>(problem, rows, threads), problem, rows);
  return true;
}

}  // namespace
}  // namespace MIXFLOW_ARCH
}  // namespace mixflow
