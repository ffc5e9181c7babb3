// Parameter sets in the lanes of packs: what is prepared of them, and the memory for it. parameters.h states what a
// parameter set offers.
//
// This header and elements.h are parts of kernels.cpp, the only file that includes them.
#pragma once

#include <cstdlib>
#include <new>

#include "../affine.h"
#include "../mixture.h"
#include "../simd/across.h"
#include "lanes.h"

namespace mixflow {
namespace MIXFLOW_ARCH {
namespace {

// Memory for `count` numbers, aligned for packs. It does not use the STL (see kernels.cpp).
template <class T>
struct Scratch {
  T* data;
  explicit Scratch(int64_t count) : data(static_cast<T*>(aligned_alloc(64, (count * sizeof(T) + 63) / 64 * 64))) {
    if (data == nullptr && count > 0) throw std::bad_alloc();
  }
  ~Scratch() { free(data); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
};

// The first pass of a backward op keeps numbers of at most this many components for the second pass: as many as stay in
// the L1 cache. The second pass computes those of further components again.
constexpr int kKept = 64;

template <class V>
struct KeptNumbers {
  Kept<V>* numbers;
  int kept_components;

  MIXFLOW_FN bool has_kept(int k) const { return k < kept_components; }
  MIXFLOW_FN Kept<V> kept(int k) const { return numbers[k]; }
  MIXFLOW_FN void keep(int k, const Kept<V>& x) const {
    if (k < kept_components) numbers[k] = x;
  }
};

// A component as both kinds of sums take it.
template <class V>
struct StoredComponent {
  Component<V> linear;
  LogComponent<V> log;
};

// One parameter set, the same in all lanes.
template <class V>
struct PreparedSet : Extremes<V>, KeptNumbers<V> {
  StoredComponent<Scalar<V>>* stored;
  int components;
  V total;
  AffineMap<V> affine;

  MIXFLOW_FN Component<V> component(int k) const {
    const Component<Scalar<V>>& c = stored[k].linear;
    return {splat<V>(c.loc),   splat<V>(c.rate),   splat<V>(c.rate_rest),
            splat<V>(c.reach), splat<V>(c.weight), splat<V>(c.rated_weight)};
  }
  MIXFLOW_FN LogComponent<V> log_component(int k) const {
    const LogComponent<Scalar<V>>& c = stored[k].log;
    return {splat<V>(c.loc), splat<V>(c.log_weight), splat<V>(c.inv_scale), splat<V>(c.weight)};
  }
  MIXFLOW_FN V location(int k) const { return splat<V>(stored[k].linear.loc); }
  MIXFLOW_FN void set_component(int k, const Component<V>& c, const LogComponent<V>& log) {
    stored[k] = {{first_lane(c.loc), first_lane(c.rate), first_lane(c.rate_rest), first_lane(c.reach),
                  first_lane(c.weight), first_lane(c.rated_weight)},
                 {first_lane(log.loc), first_lane(log.log_weight), first_lane(log.inv_scale), first_lane(log.weight)}};
  }
  MIXFLOW_FN V total_weight() const { return total; }

  // The same set for half of the lanes. What may differ between lanes is left out.
  MIXFLOW_FN auto half() const {
    PreparedSet<decltype(V::a)> half;
    half.smallest_scale = this->smallest_scale.a;
    half.stored = stored;
    half.components = components;
    return half;
  }
};

// A parameter set for each lane.
//
// The costly parts of all components are computed before any sum is taken. To prepare a component, and to add its terms
// to the sums, takes a chain of dependent instructions each. In two loops, a processor works on the chains of several
// components at the same time. In a single loop it would have to look further ahead for them than it can.
template <class Family, Op op, class V>
struct PreparedSets : Extremes<V>, KeptNumbers<V> {
  static constexpr bool on_intervals = is_on_intervals(op);
  const V *logits, *loc, *log_scale;
  V *rates, *rests, *weights;  // on intervals: the inverse scales in place of the rates, and no rests
  int components;
  AffineMap<V> affine;

  MIXFLOW_FN V log_weight(int k) const { return logits[k] - this->largest_logit; }
  MIXFLOW_FN void prepare() {
    for (int k = 0; k < components; ++k) {
      if constexpr (on_intervals) {
        rates[k] = exp(-log_scale[k]);
      } else {
        Rate<V> of = rate_of<Family>(log_scale[k]);
        rates[k] = of.rate;
        rests[k] = of.rest;
      }
      weights[k] = quick_exp(log_weight(k));
    }
  }
  MIXFLOW_FN Component<V> component(int k) const {
    return make_component<Family>(loc[k], weights[k], Rate<V>{rates[k], rests[k]});
  }
  MIXFLOW_FN LogComponent<V> log_component(int k) const {
    return {loc[k], log_weight(k), on_intervals ? rates[k] : exp(-log_scale[k]), weights[k]};
  }
  MIXFLOW_FN V location(int k) const { return loc[k]; }
  MIXFLOW_FN V total_weight() const {
    V total{};
    for (int k = 0; k < components; ++k) total += weights[k];
    return total;
  }
};

// The memory of one piece: three columns for the parameters as they were loaded, and either one prepared set, or six
// more columns for what is prepared of the sets and for sums of gradients; and what a backward op keeps.
template <class V>
struct Workspace {
  Scratch<V> columns;
  Scratch<StoredComponent<Scalar<V>>> stored;
  Scratch<Kept<V>> kept;
  int components, kept_components;

  Workspace(const Problem& problem, bool is_single_set)
      : columns((is_single_set ? 3 : 9) * int64_t(problem.components)),
        stored(is_single_set ? problem.components : 0),
        kept(kept_of(problem)),
        components(problem.components),
        kept_components(kept_of(problem)) {}
  V* column(int j) const { return columns.data + j * int64_t(components); }
  KeptNumbers<V> kept_numbers() const { return {kept.data, kept_components}; }
  static int kept_of(const Problem& problem) {
    return !problem.has_parameter_gradients() ? 0 : problem.components < kKept ? problem.components : kKept;
  }
};

template <class T>
const T* numbers(const void* data) {
  return static_cast<const T*>(data);
}

// Prefetches the parameter sets of later packs, and the room for their gradients.
template <class T>
__attribute__((noinline)) void prefetch_sets(const Problem& problem, const Walk& sets) {
  asm volatile("");  // without it, the compiler drops calls of a function that does nothing but prefetch
  int components = problem.components;
  const T *logits = numbers<T>(problem.logits), *loc = numbers<T>(problem.loc),
          *log_scale = numbers<T>(problem.log_scale);
  const int64_t* steps = problem.component_stride;
  // A network puts all parameters of a set out in one row, which is fetched as a whole.
  bool together = loc - logits == components && log_scale - loc == components && sets.lie_alike(kLogits, kLoc) &&
                  sets.lie_alike(kLogits, kLogScale) && sets.stride(kLogits) > 2 * components;
  prefetch_rows<false>(sets, logits, kLogits, together ? 3 * components : components, steps[0]);
  if (!together) {
    prefetch_rows<false>(sets, loc, kLoc, components, steps[1]);
    prefetch_rows<false>(sets, log_scale, kLogScale, components, steps[2]);
  }
  int64_t step = steps[kGradParameters - kLogits];
  if (problem.grad_shift != nullptr)
    return prefetch_rows<true>(sets, numbers<T>(problem.grad_logits), kGradParameters, 3 * components, step);
  for (int j = 0; j < 3; ++j)
    if (problem.gradient(j) != nullptr)
      prefetch_rows<true>(sets, numbers<T>(problem.gradient(j)), kGradParameters, components, step);
}

// What the components of a set have in common.
template <class V>
MIXFLOW_FN Extremes<V> extremes_of(const Workspace<V>& space) {
  const V *logits = space.column(0), *log_scale = space.column(2);
  V largest = -infinity<V>(), least_log_scale = infinity<V>(), most_log_scale = -infinity<V>();
  for (int k = 0; k < space.components; ++k) {
    largest = max(largest, logits[k]);
    least_log_scale = min(least_log_scale, log_scale[k]);
    most_log_scale = max(most_log_scale, log_scale[k]);
  }
  return {largest, least_log_scale, most_log_scale};
}

// Prepares one set, whose operands begin at `place`, for all lanes. Then the columns of `space` are free again.
template <class Family, class V>
MIXFLOW_FN PreparedSet<V> prepare_set(const Problem& problem, const int64_t (&place)[kOperands],
                                      const Workspace<V>& space) {
  using T = Scalar<V>;
  const void* data[3] = {problem.logits, problem.loc, problem.log_scale};
  for (int j = 0; j < 3; ++j)
    for (int k = 0; k < problem.components; ++k)
      space.column(j)[k] = splat<V>(numbers<T>(data[j])[place[kLogits + j] + k * problem.component_stride[j]]);
  PreparedSet<V> set{extremes_of(space), space.kept_numbers(), space.stored.data, space.components, V{}, {}};
  for (int k = 0; k < space.components; ++k) {
    V log_weight = space.column(0)[k] - set.largest_logit, loc = space.column(1)[k], log_scale = space.column(2)[k];
    LogComponent<V> log = make_log_component(log_weight, loc, log_scale);
    set.set_component(k, make_component<Family>(log_weight, loc, log_scale), log);
    set.total += log.weight;
  }
  if (problem.is_affine())
    set.affine = {splat<V>(numbers<T>(problem.shift)[place[kLogits]]),
                  splat<V>(numbers<T>(problem.log_slope)[place[kLogits]])};
  return set;
}

// Prepares a set for each lane: those at the positions of a walk through the outer space.
template <class Family, Op op, class V>
MIXFLOW_FN PreparedSets<Family, op, V> prepare_sets(const Problem& problem, const Walk& walk,
                                                    const Workspace<V>& space) {
  using T = Scalar<V>;
  const void* data[3] = {problem.logits, problem.loc, problem.log_scale};
  Columns<V> columns(walk, problem.components);
  for (int j = 0; j < 3; ++j)
    columns.gather(numbers<T>(data[j]), static_cast<Operand>(kLogits + j), problem.component_stride[j],
                   space.column(j));
  PreparedSets<Family, op, V> sets{
      extremes_of(space), space.kept_numbers(), space.column(0), space.column(1),  space.column(2),
      space.column(3),    space.column(4),      space.column(5), space.components, {}};
  if (!problem.is_affine()) return sets.prepare(), sets;
  Room<T, Number<V>::lanes> shift, log_slope;
  const T* shift_at = shift.read(walk, problem.shift, 0, kLogits);
  const T* log_slope_at = log_slope.read(walk, problem.log_slope, 0, kLogits);
  sets.prepare();
  sets.affine = {load<V>(shift_at), load<V>(log_slope_at)};
  return sets;
}

}  // namespace
}  // namespace MIXFLOW_ARCH
}  // namespace mixflow
