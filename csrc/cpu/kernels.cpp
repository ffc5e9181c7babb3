// The CPU loops over the templates of ../mixture.h, ../inverse.h and ../interval.h. Compiled once per instruction set;
// no STL in here, since the linker would be free to use this build's copy of an inline function everywhere.
#include "kernels.h"

#include <cstdlib>
#include <new>

#include "../interval.h"
#include "../inverse.h"

namespace mixflow {
namespace MIXFLOW_ARCH {
namespace {

// How many times packs are paired. Not at all under sanitizers, whose checks of packs of packs take ten minutes to
// compile.
#ifndef MIXFLOW_PAIRINGS
#define MIXFLOW_PAIRINGS 1
#endif

// Lanes of a shared parameter set: two packs, for which there are registers; four in the forward op, whose last steps
// are one long chain of dependent instructions.
template <class T, Op op>
using Wide = typename WideOf<Pack<T>, (op == Op::forward ? 2 : 1) * MIXFLOW_PAIRINGS>::type;

// Lanes over parameter sets, which take the L1 cache: more than one pack at a time pays only where little is kept of
// each set.
template <class T, Op op>
using WidePerElement = typename WideOf<Pack<T>, (op == Op::forward || op == Op::inverse) * MIXFLOW_PAIRINGS>::type;

// Scratch of one piece. malloc, since the size depends on the number of components.
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

// Shares that the first pass over the components of a backward op keeps for the second: so many that they stay in the
// L1 cache; those of further components are computed again.
constexpr int kKept = 64;

// One prepared parameter set per lane, or one for all lanes.
template <class V, bool shared>
struct Prepared {
  using T = Scalar<V>;
  template <class U, bool one>
  struct Choose {
    using type = U;
  };
  template <class U>
  struct Choose<U, true> {
    using type = Scalar<U>;
  };
  using Stored = Component<typename Choose<V, shared>::type>;

  Stored* stored;
  Shares<V>* shares;
  int components;
  V total, largest_inv_scale, smallest_scale, density_floor;

  // Field by field: compilers copy a large struct as a whole through memory.
  MIXFLOW_FN Component<V> component(int k) const {
    const Stored& c = stored[k];
    if constexpr (shared)
      return {splat<V>(c.loc),       splat<V>(c.weight), splat<V>(c.log_weight),     splat<V>(c.rate),
              splat<V>(c.rate_rest), splat<V>(c.reach),  splat<V>(c.density_weight), splat<V>(c.inv_scale)};
    else
      return {c.loc, c.weight, c.log_weight, c.rate, c.rate_rest, c.reach, c.density_weight, c.inv_scale};
  }
  MIXFLOW_FN void set_component(int k, const Component<V>& c) {
    Stored& to = stored[k];
    set(to.loc, c.loc);
    set(to.weight, c.weight);
    set(to.log_weight, c.log_weight);
    set(to.rate, c.rate);
    set(to.rate_rest, c.rate_rest);
    set(to.reach, c.reach);
    set(to.density_weight, c.density_weight);
    set(to.inv_scale, c.inv_scale);
  }
  static MIXFLOW_FN void set(V& to, V x) { to = x; }
  static MIXFLOW_FN void set(T& to, V x) { to = first_lane(x); }
  MIXFLOW_FN V total_weight() const { return total; }

  // The same set for half of the lanes. What differs between lanes is not in it.
  MIXFLOW_FN auto half() const {
    static_assert(shared);
    Prepared<decltype(V::a), true> half;
    half.stored = stored;
    half.components = components;
    half.smallest_scale = smallest_scale.a;
    return half;
  }

  MIXFLOW_FN bool has_kept(int k) const { return k < kKept; }
  MIXFLOW_FN Shares<V> kept(int k) const { return shares[k]; }
  MIXFLOW_FN void keep(int k, const Shares<V>& x) const {
    if (k < kKept) shares[k] = x;
  }
};

template <class V>
MIXFLOW_FN V load_lanes(const Scalar<V>* p, int64_t stride, int used) {
  constexpr int lanes = Number<V>::lanes;
  if (stride == 1 && used == lanes) return load<V>(p);
  Scalar<V> values[lanes];
  for (int i = 0; i < lanes; ++i) values[i] = p[i < used ? i * stride : 0];
  return load<V>(values);
}
template <class V>
MIXFLOW_FN void store_lanes(Scalar<V>* p, int64_t stride, int used, V x) {
  constexpr int lanes = Number<V>::lanes;
  if (stride == 1 && used == lanes) return store(p, x);
  Scalar<V> values[lanes];
  store(values, x);
  for (int i = 0; i < used; ++i) p[i * stride] = values[i];
}

// A pack's worth of positions in an index space, for one operand. Lanes past the end repeat the first.
template <class V>
struct Lanes {
  const Axes& axes;
  int64_t begin;
  int used;

  MIXFLOW_FN V gather(const Scalar<V>* p, Operand operand) const {
    if (axes.count == 1) return load_lanes<V>(p + axes.offset(begin, operand), axes.axis[0].stride[operand], used);
    Scalar<V> values[Number<V>::lanes];
    for (int i = 0; i < Number<V>::lanes; ++i) values[i] = p[axes.offset(begin + (i < used ? i : 0), operand)];
    return load<V>(values);
  }
  MIXFLOW_FN void scatter(Scalar<V>* p, Operand operand, V x) const {
    if (axes.count == 1) return store_lanes<V>(p + axes.offset(begin, operand), axes.axis[0].stride[operand], used, x);
    Scalar<V> values[Number<V>::lanes];
    store(values, x);
    for (int i = 0; i < used; ++i) p[axes.offset(begin + i, operand)] = values[i];
  }
};

MIXFLOW_FN int lanes_used(int64_t begin, int64_t end, int lanes) {
  return end - begin < lanes ? static_cast<int>(end - begin) : lanes;
}

// One row of parameters per lane, transposed: column k holds parameter k of every lane.
template <class V>
MIXFLOW_FN void gather_columns(const Problem& problem, const Lanes<V>& lanes, const void* data, Operand operand,
                               V* columns) {
  using T = Scalar<V>;
  const T* first = static_cast<const T*>(data);
  int64_t stride = problem.component_stride[operand - kLogits];
  int k = 0;
  if (stride == 1 && lanes.axes.count == 1 && lanes.used == Number<V>::lanes) {
    const T* rows = first + lanes.axes.offset(lanes.begin, operand);
    int64_t row_stride = lanes.axes.axis[0].stride[operand];
    for (; k + kBlock<V> <= problem.components; k += kBlock<V>) load_columns(rows + k, row_stride, columns + k);
  }
  for (; k < problem.components; ++k) columns[k] = lanes.gather(first + k * stride, operand);
}
// The reverse, for rows of consecutive numbers.
template <class V>
MIXFLOW_FN void scatter_columns(const Lanes<V>& lanes, int components, const V* columns, Scalar<V>* data) {
  int k = 0;
  if (lanes.axes.count == 1 && lanes.used == Number<V>::lanes) {
    Scalar<V>* rows = data + lanes.axes.offset(lanes.begin, kGradParameters);
    int64_t row_stride = lanes.axes.axis[0].stride[kGradParameters];
    for (; k + kBlock<V> <= components; k += kBlock<V>) store_columns(rows + k, row_stride, columns + k);
  }
  for (; k < components; ++k) lanes.scatter(data + k, kGradParameters, columns[k]);
}

// Memory of one piece: the parameter sets at hand, their columns as they were loaded, later the sums of their
// gradients, and what a backward op keeps.
template <class V, bool shared>
struct Workspace {
  Scratch<V> columns;
  Scratch<typename Prepared<V, shared>::Stored> stored;
  Scratch<Shares<V>> shares;
  int components;

  Workspace(int components, bool keeps)
      : columns(3 * int64_t(components)),
        stored(components),
        shares(keeps ? (components < kKept ? components : kKept) : 0),
        components(components) {}
  V* column(int j) { return columns.data + j * int64_t(components); }
};

// The parameter sets at `lanes` of the outer space (one set, in every lane, when `shared`).
template <class Family, class V, bool shared>
MIXFLOW_FN Prepared<V, shared> prepare(const Problem& problem, const Lanes<V>& lanes, Workspace<V, shared>& space) {
  V *logits = space.column(0), *loc = space.column(1), *log_scale = space.column(2);
  gather_columns(problem, lanes, problem.logits, kLogits, logits);
  gather_columns(problem, lanes, problem.loc, kLoc, loc);
  gather_columns(problem, lanes, problem.log_scale, kLogScale, log_scale);
  V largest = -infinity<V>();
  for (int k = 0; k < problem.components; ++k) largest = max(largest, logits[k]);
  Prepared<V, shared> prepared;
  prepared.stored = space.stored.data;
  prepared.shares = space.shares.data;
  prepared.components = problem.components;
  V total{}, largest_inv_scale{};
  for (int k = 0; k < problem.components; ++k) {
    Component<V> c = make_component<Family>(logits[k] - largest, loc[k], log_scale[k]);
    prepared.set_component(k, c);
    total += c.weight;
    largest_inv_scale = max(largest_inv_scale, c.inv_scale);
  }
  prepared.total = total;
  prepared.largest_inv_scale = largest_inv_scale;
  prepared.smallest_scale = reciprocal(largest_inv_scale);
  prepared.density_floor = density_floor(largest_inv_scale);
  return prepared;
}

// One pack of elements through one op. Gradients of the parameters go to sink(k, g_logit, g_loc, g_log_scale).
template <class Family, Op op, class V, class Parameters, class Sink>
MIXFLOW_FN void map_pack(const Problem& problem, const Parameters& parameters, const Lanes<V>& lanes,
                         int64_t const (&first)[kOperands], Sink&& sink) {
  using T = Scalar<V>;
  RuntimeBase base{problem.base};
  V input = lanes.gather(static_cast<const T*>(problem.input) + first[kInput], kInput);
  if constexpr (op == Op::interval) {
    V upper = lanes.gather(static_cast<const T*>(problem.upper) + first[kUpper], kUpper);
    lanes.scatter(static_cast<T*>(problem.output) + first[kOutput], kOutput,
                  log_interval<Family>(input, upper, parameters));
  } else if constexpr (op == Op::interval_backward) {
    V upper = lanes.gather(static_cast<const T*>(problem.upper) + first[kUpper], kUpper);
    V g = lanes.gather(static_cast<const T*>(problem.grad_value) + first[kGradValue], kGradValue);
    EdgeGradients<V> grads = log_interval_backward<Family>(input, upper, g, parameters, static_cast<Sink&&>(sink));
    lanes.scatter(static_cast<T*>(problem.output) + first[kOutput], kOutput, grads.lower);
    lanes.scatter(static_cast<T*>(problem.grad_upper) + first[kGradUpper], kGradUpper, grads.upper);
  } else if constexpr (is_backward(op)) {
    V g_value = lanes.gather(static_cast<const T*>(problem.grad_value) + first[kGradValue], kGradValue);
    V g_ladj = lanes.gather(static_cast<const T*>(problem.grad_ladj) + first[kGradLadj], kGradLadj);
    V g_input = backward<Family, op == Op::inverse_backward>(input, g_value, g_ladj, parameters, base,
                                                             static_cast<Sink&&>(sink));
    lanes.scatter(static_cast<T*>(problem.output) + first[kOutput], kOutput, g_input);
  } else {
    Mapped<V> mapped;
    if constexpr (op == Op::forward) {
      mapped = forward<Family>(input, parameters, base);
    } else {
      Solution<V> solution = inverse<Family>(input, parameters, base);
      mapped = solution.mapped;
      if (problem.evaluations != nullptr) {
        lanes.scatter(static_cast<T*>(problem.evaluations) + first[kLadj], kLadj, solution.evaluations);
        lanes.scatter(static_cast<T*>(problem.residual) + first[kLadj], kLadj, solution.residual);
      }
    }
    lanes.scatter(static_cast<T*>(problem.output) + first[kOutput], kOutput, mapped.value);
    lanes.scatter(static_cast<T*>(problem.ladj) + first[kLadj], kLadj, mapped.ladj);
  }
}

MIXFLOW_FN void first_offsets(const Axes& axes, int64_t index, int64_t (&first)[kOperands]) {
  for (int i = 0; i < kOperands; ++i) first[i] = axes.offset(index, static_cast<Operand>(i));
}

// Lanes over elements that share a parameter set.
template <class Family, Op op, class V>
void run_shared(const Problem& problem, const Piece& piece) {
  constexpr int lanes = Number<V>::lanes, packs_per_flush = 64;
  Workspace<V, true> space(problem.components, is_backward(op));
  V* sums = space.columns.data;
  for (int64_t outer = piece.outer_begin; outer < piece.outer_end; ++outer) {
    int64_t first[kOperands];
    first_offsets(problem.outer, outer, first);
    auto parameters = prepare<Family>(problem, Lanes<V>{problem.outer, outer, 1}, space);
    auto add = [&](int used, int k, V g_logit, V g_loc, V g_log_scale) {
      if (used < lanes) {
        g_logit = first_lanes(g_logit, used);
        g_loc = first_lanes(g_loc, used);
        g_log_scale = first_lanes(g_log_scale, used);
      }
      sums[3 * k] += g_logit;
      sums[3 * k + 1] += g_loc;
      sums[3 * k + 2] += g_log_scale;
    };
    // Sums run in the number type over a few packs and in double over the rest: the error does not grow with N.
    auto flush = [&] {
      for (int i = 0; i < 3 * problem.components; ++i) {
        piece.partial[i] += static_cast<double>(sum_lanes(sums[i]));
        sums[i] = V{};
      }
    };
    for (int i = 0; i < 3 * problem.components; ++i) sums[i] = V{};
    int packs = 0;
    for (int64_t i = piece.inner_begin; i < piece.inner_end; i += lanes) {
      Lanes<V> elements{problem.inner, i, lanes_used(i, piece.inner_end, lanes)};
      map_pack<Family, op>(problem, parameters, elements, first,
                           [&](auto... gradients) { add(elements.used, gradients...); });
      if (is_backward(op) && ++packs % packs_per_flush == 0) flush();
    }
    if (is_backward(op)) flush();
  }
}

// Lanes over parameter sets; each set serves the (few) inner elements one after the other.
template <class Family, Op op, class V>
void run_per_element(const Problem& problem, const Piece& piece) {
  using T = Scalar<V>;
  constexpr int lanes = Number<V>::lanes;
  Workspace<V, false> space(problem.components, is_backward(op));
  V *g_logits = space.column(0), *g_locs = space.column(1), *g_log_scales = space.column(2);
  for (int64_t outer = piece.outer_begin; outer < piece.outer_end; outer += lanes) {
    Lanes<V> sets{problem.outer, outer, lanes_used(outer, piece.outer_end, lanes)};
    auto parameters = prepare<Family>(problem, sets, space);
    if constexpr (is_backward(op))
      for (int i = 0; i < 3 * problem.components; ++i) space.columns.data[i] = V{};
    auto add = [&](int k, V g_logit, V g_loc, V g_log_scale) {
      g_logits[k] += g_logit;
      g_locs[k] += g_loc;
      g_log_scales[k] += g_log_scale;
    };
    for (int64_t inner = piece.inner_begin; inner < piece.inner_end; ++inner) {
      int64_t first[kOperands];
      first_offsets(problem.inner, inner, first);
      map_pack<Family, op>(problem, parameters, sets, first, add);
    }
    if constexpr (is_backward(op)) {
      scatter_columns(sets, problem.components, g_logits, static_cast<T*>(problem.grad_logits));
      scatter_columns(sets, problem.components, g_locs, static_cast<T*>(problem.grad_loc));
      scatter_columns(sets, problem.components, g_log_scales, static_cast<T*>(problem.grad_log_scale));
    }
  }
}

template <class Family, Op op, class T>
void run_op(const Problem& problem, const Piece& piece) {
  if (problem.inner.size >= kSharedLength)
    run_shared<Family, op, Wide<T, op>>(problem, piece);
  else
    run_per_element<Family, op, WidePerElement<T, op>>(problem, piece);
}

template <class Family, class T>
void run_family(const Problem& problem, const Piece& piece) {
  switch (problem.op) {
    case Op::forward:
      return run_op<Family, Op::forward, T>(problem, piece);
    case Op::backward:
      return run_op<Family, Op::backward, T>(problem, piece);
    case Op::inverse:
      return run_op<Family, Op::inverse, T>(problem, piece);
    case Op::inverse_backward:
      return run_op<Family, Op::inverse_backward, T>(problem, piece);
    case Op::interval:
      return run_op<Family, Op::interval, T>(problem, piece);
    case Op::interval_backward:
      return run_op<Family, Op::interval_backward, T>(problem, piece);
  }
}

// What the forward op cannot do without, and nothing else: an exponential and a reciprocal for each component, two
// logarithms and three reciprocals for each element. The rate of this loop is the limit that benchmarks refer to.
template <class T>
T bare_loop_of(int components, int64_t elements) {
  using V = Wide<T, Op::forward>;
  constexpr int lanes = Number<V>::lanes;
  T start[lanes];
  for (int i = 0; i < lanes; ++i) start[i] = T(i) / lanes;
  V x = load<V>(start), sink{};
  for (int64_t i = 0; i < elements; i += lanes) {
    V sum = x;
    for (int k = 0; k < components; ++k) sum += bounded_reciprocal(exp_flushed(x - T(k)) + T(1));
    V odds = bounded_reciprocal(sum) * bounded_reciprocal(sum + x);
    sink += log_normal(odds) + log_normal(bounded_reciprocal(odds + T(1)));
    x = x * T(0.999);
  }
  return sum_lanes(sink);
}

template <class T>
void run_special_of(int function, int64_t size, const T* input, T* output) {
  using V = Pack<T>;
  constexpr int lanes = Number<V>::lanes;
  for (int64_t begin = 0; begin < size; begin += lanes) {
    int used = lanes_used(begin, size, lanes);
    V x = load_lanes<V>(input + begin, 1, used);
    int i = 0;
#define MIXFLOW_CASE(FUNCTION) \
  if (function == i++) store_lanes<V>(output + begin, 1, used, FUNCTION(x));
    MIXFLOW_SPECIAL_FUNCTIONS(MIXFLOW_CASE)
#undef MIXFLOW_CASE
  }
}

}  // namespace

void run_special(int function, Dtype dtype, int64_t size, const void* input, void* output) {
  if (dtype == Dtype::float32)
    run_special_of(function, size, static_cast<const float*>(input), static_cast<float*>(output));
  else
    run_special_of(function, size, static_cast<const double*>(input), static_cast<double*>(output));
}

double bare_loop(Dtype dtype, int components, int64_t elements) {
  return dtype == Dtype::float32 ? static_cast<double>(bare_loop_of<float>(components, elements))
                                 : bare_loop_of<double>(components, elements);
}

void run_piece(const Problem& problem, const Piece& piece) {
  int i = 0;
#define MIXFLOW_CASE(FAMILY)                                                           \
  if (problem.family == i++)                                                           \
    return problem.dtype == Dtype::float32 ? run_family<FAMILY, float>(problem, piece) \
                                           : run_family<FAMILY, double>(problem, piece);
  MIXFLOW_FAMILIES(MIXFLOW_CASE)
#undef MIXFLOW_CASE
}

}  // namespace MIXFLOW_ARCH
}  // namespace mixflow
