// The CPU loops over the templates of ../mixture.h, ../inverse.h and ../interval.h. Compiled once per instruction set;
// no STL in here, since the linker would be free to use this build's copy of an inline function everywhere.
#include "kernels.h"

#include <cstdlib>
#include <new>

#include "../affine.h"
#include "../interval.h"
#include "../inverse.h"
#include "lanes.h"

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

// Components of which the first pass of a backward op keeps numbers for the second: so many that they stay in the L1
// cache; those of further components are computed again.
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

template <class V>
struct StoredComponent {
  Component<V> linear;
  LogComponent<V> log;
};

// One parameter set for all lanes.
template <class V>
struct PreparedSet : Common<V>, KeptNumbers<V> {
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

  // The same set for half of the lanes. What differs between lanes is not in it.
  MIXFLOW_FN auto half() const {
    PreparedSet<decltype(V::a)> half;
    half.smallest_scale = this->smallest_scale.a;
    half.stored = stored;
    half.components = components;
    return half;
  }
};

// A parameter set per lane, as it was loaded, and of each component what is costly. That is found for all components
// before the sums are taken: each of the two chains of dependent instructions then has others beside it, of which a
// processor sees only so many.
template <class Family, Op op, class V>
struct PreparedSets : Common<V>, KeptNumbers<V> {
  static constexpr bool on_intervals = op == Op::interval || op == Op::interval_backward;
  const V *logits, *loc, *log_scale;
  V *rates, *rests, *weights;  // on intervals, inverse scales in the place of rates, and no rests
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

// Memory of one piece: the parameter sets at hand, in three columns as they were loaded; what is prepared of them; sums
// of their gradients; and what a backward op keeps.
template <class V>
struct Workspace {
  Scratch<V> columns;
  Scratch<StoredComponent<Scalar<V>>> stored;
  Scratch<Kept<V>> kept;
  int components, kept_components;

  Workspace(const Problem& problem, bool shared)
      : columns((shared ? 3 : 9) * int64_t(problem.components)),
        stored(shared ? problem.components : 0),
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

// The parameter sets of later packs, and room for their gradients.
template <class T>
__attribute__((noinline)) void prefetch_sets(const Problem& problem, const Walk& sets) {
  asm volatile("");  // to a compiler, a function that does no more than prefetch does nothing
  int components = problem.components;
  const T *logits = numbers<T>(problem.logits), *loc = numbers<T>(problem.loc),
          *log_scale = numbers<T>(problem.log_scale);
  const int64_t* steps = problem.component_stride;
  // Parameters that lie in the same rows, as a network puts them out, are fetched as such.
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

template <class V>
MIXFLOW_FN Common<V> common_of(const Workspace<V>& space) {
  const V *logits = space.column(0), *log_scale = space.column(2);
  V largest = -infinity<V>(), least_log_scale = infinity<V>(), most_log_scale = -infinity<V>();
  for (int k = 0; k < space.components; ++k) {
    largest = max(largest, logits[k]);
    least_log_scale = min(least_log_scale, log_scale[k]);
    most_log_scale = max(most_log_scale, log_scale[k]);
  }
  return {largest, least_log_scale, most_log_scale};
}

// One set, at this place of the outer space, in every lane. Its columns are free afterwards.
template <class Family, class V>
MIXFLOW_FN PreparedSet<V> prepare_set(const Problem& problem, const int64_t (&place)[kOperands],
                                      const Workspace<V>& space) {
  using T = Scalar<V>;
  const void* data[3] = {problem.logits, problem.loc, problem.log_scale};
  for (int j = 0; j < 3; ++j)
    for (int k = 0; k < problem.components; ++k)
      space.column(j)[k] = splat<V>(numbers<T>(data[j])[place[kLogits + j] + k * problem.component_stride[j]]);
  PreparedSet<V> set{common_of(space), space.kept_numbers(), space.stored.data, space.components, V{}, {}};
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

// A set for each lane.
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
      common_of(space), space.kept_numbers(), space.column(0), space.column(1),  space.column(2),
      space.column(3),  space.column(4),      space.column(5), space.components, {}};
  if (!problem.is_affine()) return sets.prepare(), sets;
  Room<T, Number<V>::lanes> shift, log_slope;
  const T* shift_at = shift.read(walk, problem.shift, 0, kLogits);
  const T* log_slope_at = log_slope.read(walk, problem.log_slope, 0, kLogits);
  sets.prepare();
  sets.affine = {load<V>(shift_at), load<V>(log_slope_at)};
  return sets;
}

// What an op reads and writes of some elements, each operand side by side; null where the op has no such operand.
template <class T>
struct Elements {
  const T *input, *upper, *grad_value, *grad_ladj;
  T *output, *ladj, *grad_upper, *evaluations, *residual, *slope, *ladj_slope, *grad_shift, *grad_log_slope;
};

// The elements at the positions of a walk through one index space, at `place` of the other.
template <Op op, class T, int length>
class Gathered {
 public:
  MIXFLOW_FN Gathered(const Problem& problem) : problem(problem), at{} {}
  Gathered(const Gathered&) = delete;
  Gathered& operator=(const Gathered&) = delete;

  MIXFLOW_FN void gather(const Walk& walk, const int64_t (&place)[kOperands]) {
    at.input = rooms[0].read(walk, problem.input, place[kInput], kInput);
    if constexpr (on_intervals) at.upper = rooms[1].read(walk, problem.upper, place[kUpper], kUpper);
    if constexpr (is_backward(op))
      at.grad_value = rooms[2].read(walk, problem.grad_value, place[kGradValue], kGradValue);
    if constexpr (is_backward(op) && !on_intervals)
      at.grad_ladj = rooms[3].read(walk, problem.grad_ladj, place[kGradLadj], kGradLadj);
    for_outputs(
        [&](auto& room, T*& to, void* data, Operand operand) { to = room.write(walk, data, place[operand], operand); });
  }
  MIXFLOW_FN void scatter(const Walk& walk, const int64_t (&place)[kOperands]) {
    for_outputs([&](auto& room, T*&, void* data, Operand operand) { room.done(walk, data, place[operand], operand); });
  }
  MIXFLOW_FN const Elements<T>& elements() const { return at; }

 private:
  static constexpr bool on_intervals = op == Op::interval || op == Op::interval_backward;

  template <class Use>
  MIXFLOW_FN void for_outputs(Use use) {
    use(rooms[4], at.output, problem.output, kOutput);
    if constexpr (!is_backward(op) && !on_intervals) use(rooms[5], at.ladj, problem.ladj, kLadj);
    if constexpr (op == Op::forward_with_slopes) {
      use(rooms[6], at.slope, problem.slope, kLadj);
      use(rooms[7], at.ladj_slope, problem.ladj_slope, kLadj);
    }
    if constexpr (op == Op::inverse) {
      use(rooms[6], at.evaluations, problem.evaluations, kLadj);
      use(rooms[7], at.residual, problem.residual, kLadj);
    }
    if constexpr (op == Op::interval_backward) use(rooms[5], at.grad_upper, problem.grad_upper, kGradUpper);
    if constexpr (op == Op::backward || op == Op::inverse_backward) {
      use(rooms[6], at.grad_shift, problem.grad_shift, kGradParameters);
      use(rooms[7], at.grad_log_slope, problem.grad_log_slope, kGradParameters);
    }
  }

  const Problem& problem;
  Elements<T> at;
  Room<T, length> rooms[8];
};

// The gradients of the i-th and following elements. Those by the parameters go to sink(k, g_logit, g_loc, g_log_scale).
//
// An element without any incoming gradient adds nothing to any gradient. A loss that masks it may do so because it, or
// its parameters, are NaN or infinite, and the formulas below would give 0 * NaN. So its lane is cleared.
template <class Family, Op op, class V, class Parameters, class Sink>
MIXFLOW_FN void backward_pack(const Problem& problem, const Parameters& parameters, const Elements<Scalar<V>>& at,
                              int i, Sink&& sink) {
  using T = Scalar<V>;
  V input = load<V>(at.input + i), g_value = load<V>(at.grad_value + i), g_ladj{};
  if constexpr (op != Op::interval_backward) g_ladj = load<V>(at.grad_ladj + i);
  Mask<V> idle = (g_value == T(0)) & (g_ladj == T(0));
  bool some_idle = any(idle);
  auto write = [&](T* to, V x) {
    if (to == nullptr) return;
    if (some_idle) x = select<V>(idle, V{}, x);
    store(to + i, x);
  };
  if (some_idle && all(idle)) {
    T* const gradients[] = {at.output, at.grad_upper, at.grad_shift, at.grad_log_slope};
    for (T* gradient : gradients) write(gradient, V{});
    for (int k = 0; problem.has_parameter_gradients() && k < problem.components; ++k) sink(k, V{}, V{}, V{});
    return;
  }
  auto add = [&](int k, V g_logit, V g_loc, V g_log_scale) {
    if (some_idle) {
      g_logit = select<V>(idle, V{}, g_logit);
      g_loc = select<V>(idle, V{}, g_loc);
      g_log_scale = select<V>(idle, V{}, g_log_scale);
    }
    sink(k, g_logit, g_loc, g_log_scale);
  };
  bool parameters_wanted = problem.has_parameter_gradients();
  if constexpr (op == Op::interval_backward) {
    EdgeGradients<V> grads =
        log_interval_backward<Family>(input, load<V>(at.upper + i), g_value, parameters, parameters_wanted, add);
    write(at.output, grads.lower);
    write(at.grad_upper, grads.upper);
  } else {
    constexpr bool inverse = op == Op::inverse_backward;
    V seed = g_value;
    if (!inverse && problem.is_affine()) seed = g_value * exp(parameters.affine.log_slope);
    InputGradient<V> found =
        backward<Family, inverse>(input, seed, g_ladj, parameters, RuntimeBase{problem.base}, parameters_wanted, add);
    if (problem.is_affine()) {
      AffineGradients<V> grads =
          inverse ? affine_inverse_gradients(found.z, parameters.affine.log_slope, g_ladj, found.input)
                  : affine_gradients(found.z, g_value, g_ladj, seed, found.input);
      found.input = grads.input;
      write(at.grad_shift, grads.shift);
      write(at.grad_log_slope, grads.log_slope);
    }
    write(at.output, found.input);
  }
}

// The i-th and following elements through one op.
template <class Family, Op op, class V, class Parameters, class Sink>
MIXFLOW_FN void map_pack(const Problem& problem, const Parameters& parameters, const Elements<Scalar<V>>& at, int i,
                         Sink&& sink) {
  using T = Scalar<V>;
  if constexpr (is_backward(op)) {
    backward_pack<Family, op, V>(problem, parameters, at, i, static_cast<Sink&&>(sink));
  } else {
    RuntimeBase base{problem.base};
    auto write = [i](T* to, V x) {
      if (to != nullptr) store(to + i, x);
    };
    V input = load<V>(at.input + i);
    if constexpr (op == Op::interval) {
      write(at.output, log_interval<Family>(input, load<V>(at.upper + i), parameters));
    } else {
      Mapped<V> mapped;
      if constexpr (op == Op::forward_with_slopes) {
        SlopedMap<V> found = forward_with_slopes<Family>(input, parameters, base);
        mapped = found.mapped;
        write(at.slope, found.slope);
        write(at.ladj_slope, found.ladj_slope);
      } else if constexpr (op == Op::forward) {
        mapped = forward<Family>(input, parameters, base);
        if (problem.is_affine()) mapped = parameters.affine.forward(mapped);
      } else {
        if (problem.is_affine()) input = parameters.affine.inverse(input);
        Solution<V> solution = inverse<Family>(input, parameters, base);
        mapped = solution.mapped;
        if (problem.is_affine()) mapped.ladj = mapped.ladj - parameters.affine.log_slope;
        write(at.evaluations, solution.evaluations);
        write(at.residual, solution.residual);
      }
      write(at.output, mapped.value);
      write(at.ladj, mapped.ladj);
    }
  }
}

constexpr auto all_operands = [](Operand) { return true; };

// So many elements are gathered at a time. What is common to the packs among them is done once; and the numbers of a
// pack have long been written when they are loaded, which processors want of writes and reads of different widths.
constexpr int kGatheredLength = 4 * kLongestPack;

// Lanes over elements that share a parameter set.
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
    // Sums run in the number type over a few packs and in double over the rest: the error does not grow with N.
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

// Bytes of one parameter from which on the parameters are not expected in the cache.
constexpr int64_t kLargeParameters = 1 << 19;
constexpr int kPacksAhead = 2;

// Lanes over parameter sets; each set serves the (few) inner elements one after the other.
template <class Family, Op op, class V>
void run_over_sets(const Problem& problem, const Piece& piece) {
  using T = Scalar<V>;
  constexpr int lanes = Number<V>::lanes;
  bool sums_wanted = is_backward(op) && problem.has_parameter_gradients();
  bool is_single = problem.inner.size == 1;  // then the elements of several packs of sets are gathered at a time
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
      // The gradients of a single element take the place of what is not read again.
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
