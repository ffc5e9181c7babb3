// The loops of a CPU over the elements and the parameter sets of a problem. This file is compiled once for each
// instruction set. It does not use the STL: an inline function of it would be compiled for this instruction set, and
// the linker would be free to let all of the program use it.
#include "kernels.h"

#include "elements.h"
#include "sets.h"

namespace mixflow {
namespace MIXFLOW_ARCH {
namespace {

// How many times packs are paired. The builds with sanitizers set it to 0, since they take ten minutes to compile their
// checks of pairs.
#ifndef MIXFLOW_PAIRINGS
#define MIXFLOW_PAIRINGS 1
#endif

// The number type of loops over the elements of one set. Two packs fit in the registers. The forward op takes four,
// since its last steps are one long chain of dependent instructions.
template <class T, Op op>
using Wide = typename WideOf<Pack<T>, (op == Op::forward ? 2 : 1) * MIXFLOW_PAIRINGS>::type;

// The number type of loops over sets, whose parameters take up the L1 cache. Two packs pay only for ops that keep
// little of each set.
template <class T, Op op>
using WidePerElement = typename WideOf<Pack<T>, (op == Op::forward || op == Op::inverse) * MIXFLOW_PAIRINGS>::type;

constexpr auto all_operands = [](Operand) { return true; };

// This many elements are gathered at a time. Work that packs have in common is then done once for several of them. And
// a number has long been written to its room when it is loaded as part of a pack: processors stall on a load that is
// wider than a store just before it.
constexpr int kGatheredLength = 4 * kLongestPack;

// Lanes over the elements of one parameter set after the other.
template <class Family, Op op, class V>
void run_over_elements(const Problem& problem, const Piece& piece) {
  constexpr int lanes = Number<V>::lanes, packs_per_flush = 64;
  bool sums_wanted = is_backward(op) && problem.has_parameter_gradients();
  Workspace<V> space(problem, true);
  V* sums = space.columns.data;
  for (int64_t outer = piece.outer_begin; outer < piece.outer_end; ++outer) {
    int64_t place[kOperands];
    problem.outer.offsets(outer, all_operands, place);
    auto parameters = prepare_set<Family>(problem, place, space);
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
    // The sum over a few packs is taken in the number type, and the rest in double. So the error does not grow with the
    // number of elements.
    double* partial = piece.partial + (outer - piece.outer_begin) * 3 * problem.components;
    auto flush = [&] {
      for (int i = 0; i < 3 * problem.components; ++i) {
        partial[i] += static_cast<double>(sum_lanes(sums[i]));
        sums[i] = V{};
      }
    };
    for (int i = 0; i < 3 * problem.components; ++i) sums[i] = V{};
    Gathered<op, Scalar<V>, kGatheredLength> gathered(problem);
    int packs = 0;
    for (Walk walk(problem.inner, piece.inner_begin, piece.inner_end, kGatheredLength); !walk.is_done();
         walk.advance()) {
      gathered.gather(walk, place);
      for (int i = 0; i < walk.used(); i += lanes) {
        map_pack<Family, op, V>(
            problem, parameters, gathered.elements(), i,
            [&, used = smaller(lanes, walk.used() - i)](auto... gradients) { add(used, gradients...); });
        if (sums_wanted && ++packs % packs_per_flush == 0) flush();
      }
      gathered.scatter(walk, place);
    }
    if (sums_wanted) flush();
  }
}

// If a parameter takes more bytes than this, the parameters are prefetched, `kPacksAhead` packs early.
constexpr int64_t kLargeParameters = 1 << 19;
constexpr int kPacksAhead = 2;

// Lanes over parameter sets. Each lane takes its set's elements, which are few, one after the other.
template <class Family, Op op, class V>
void run_over_sets(const Problem& problem, const Piece& piece) {
  using T = Scalar<V>;
  constexpr int lanes = Number<V>::lanes;
  bool sums_wanted = is_backward(op) && problem.has_parameter_gradients();
  bool is_single = problem.inner.size == 1;  // if so, the elements of several packs of sets are gathered at a time
  Workspace<V> space(problem, false);
  int64_t places[kMostSerialElements][kOperands];
  for (int64_t inner = 0; inner < problem.inner.size; ++inner)
    problem.inner.offsets(inner, all_operands, places[inner]);
  bool is_large = problem.outer.size * problem.components * int64_t(sizeof(T)) > kLargeParameters;
  Gathered<op, T, kGatheredLength> elements(problem);
  Gathered<op, T, lanes> own_elements(problem);
  Walk sets(problem.outer, piece.outer_begin, piece.outer_end, lanes);
  int64_t later = piece.outer_begin + kPacksAhead * lanes;
  Walk ahead(problem.outer, later < piece.outer_end ? later : piece.outer_end, piece.outer_end, lanes);
  for (Walk block(problem.outer, piece.outer_begin, piece.outer_end, kGatheredLength); !block.is_done();
       block.advance()) {
    if (is_single) elements.gather(block, places[0]);
    for (int first = 0; first < block.used(); first += lanes, sets.advance()) {
      if (is_large) {
        prefetch_sets<T>(problem, ahead);
        ahead.advance();
      }
      auto parameters = prepare_sets<Family, op>(problem, sets, space);
      // The gradients of a single element take the place of the parameters, which are not read again.
      constexpr int beside = 6;
      int first_sum = is_single ? 0 : beside;
      V *g_logits = space.column(first_sum), *g_locs = space.column(first_sum + 1),
        *g_log_scales = space.column(first_sum + 2);
      if (sums_wanted && !is_single)
        for (int i = 0; i < 3 * problem.components; ++i) g_logits[i] = V{};
      for (int64_t inner = 0; inner < problem.inner.size; ++inner) {
        if (!is_single) own_elements.gather(sets, places[inner]);
        map_pack<Family, op, V>(problem, parameters, is_single ? elements.elements() : own_elements.elements(),
                                is_single ? first : 0, [&](int k, V g_logit, V g_loc, V g_log_scale) {
                                  g_logits[k] = is_single ? g_logit : g_logits[k] + g_logit;
                                  g_locs[k] = is_single ? g_loc : g_locs[k] + g_loc;
                                  g_log_scales[k] = is_single ? g_log_scale : g_log_scales[k] + g_log_scale;
                                });
        if (!is_single) own_elements.scatter(sets, places[inner]);
      }
      if constexpr (is_backward(op)) {
        Columns<V> columns(sets, problem.components);
        for (int j = 0; j < 3; ++j)
          if (T* gradient = static_cast<T*>(problem.gradient(j)))
            columns.scatter(gradient, kGradParameters, problem.component_stride[kGradParameters - kLogits],
                            space.column(first_sum + j));
      }
    }
    if (is_single) elements.scatter(block, places[0]);
  }
}

template <class Family, Op op, class T>
void run_op(const Problem& problem, const Piece& piece) {
  if (runs_over_elements(problem))
    run_over_elements<Family, op, Wide<T, op>>(problem, piece);
  else
    run_over_sets<Family, op, WidePerElement<T, op>>(problem, piece);
}

template <class Family, class T>
void run_family(const Problem& problem, const Piece& piece) {
  switch (problem.op) {
    case Op::forward:
      return run_op<Family, Op::forward, T>(problem, piece);
    case Op::forward_with_slopes:
      return run_op<Family, Op::forward_with_slopes, T>(problem, piece);
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

// The least arithmetic of a forward op: an exponential and a reciprocal for each component, two logarithms and three
// reciprocals for each element. Benchmarks state the speed of this loop as the limit.
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
    int used = smaller(lanes, size - begin), i = 0;
    T values[lanes];
    for (int j = 0; j < lanes; ++j) values[j] = input[begin + (j < used ? j : 0)];
    V x = load<V>(values);
#define MIXFLOW_CASE(FUNCTION) \
  if (function == i++) store(values, FUNCTION(x));
    MIXFLOW_SPECIAL_FUNCTIONS(MIXFLOW_CASE)
#undef MIXFLOW_CASE
    memcpy(output + begin, values, used * sizeof(T));
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
