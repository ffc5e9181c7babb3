// The CUDA loops over the templates of ../mixture.h, ../inverse.h and ../interval.h.
//
// Three layouts: a parameter set that serves many elements is prepared once per block (run_shared); rows of parameters
// that serve one or a few elements pass through shared memory, however they lie in memory (run_rows); where those of a
// warp do not fit there, parameters are read through their strides (run_strided). An element has the same bits in all
// three, and how a sum is cut depends on sizes alone: never on the grid or the card.
#if defined(MIXFLOW_CUDA_EMULATION)
#include "emulation.h"
#else
#include <cuda_runtime.h>
static __device__ __forceinline__ unsigned char* shared_memory() {
  extern __shared__ __align__(16) unsigned char memory[];
  return memory;
}
#endif

#include <algorithm>
#include <stdexcept>
#include <string>
#include <type_traits>

#include "../affine.h"
#include "../interval.h"
#include "../inverse.h"
#include "launch.h"

namespace mixflow {
namespace MIXFLOW_ARCH {
namespace {

constexpr int kThreads = 128, kWarp = 32;
// What every card gives a block without being asked, and what those of compute capability 8 and later give at least.
constexpr size_t kSharedBytes = 48 * 1024, kMostSharedBytes = 96 * 1024;
constexpr int64_t kMaxGrid = (int64_t(1) << 31) - 1;

// Inner lengths from which a block works on one parameter set: those that fill a warp.
constexpr int64_t kSharedLength = kWarp;
// Components that a block prepares in shared memory. Of more, each thread prepares those it needs anew.
constexpr int kPreparedComponents = 512;

// Blocks of run_shared: twice what the largest cards hold at once, so that none waits long for the last; yet as few as
// that, since each prepares its components. Their limit bounds the partial sums (three doubles a component) to 32 MiB,
// but for very many components.
constexpr int64_t kMaxBlocks = 2048, kMinBlocks = 32, kMaxPartialSums = 32 * 1024 * 1024 / (3 * sizeof(double));

// How the elements of each parameter set are cut: by sizes alone.
struct Chunks {
  int threads;  // of a block; also the elements of a tile
  int64_t length, count;
};

int64_t ceil_div(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

Chunks chunks_of(const Problem& problem) {
  Chunks chunks;
  chunks.threads = static_cast<int>(std::min<int64_t>(ceil_div(problem.inner.size, kWarp) * kWarp, kThreads));
  int64_t allowed = std::clamp(kMaxPartialSums / problem.components, kMinBlocks, kMaxBlocks);
  int64_t wanted = std::clamp<int64_t>(allowed / problem.outer.size, 1, ceil_div(problem.inner.size, chunks.threads));
  chunks.length = ceil_div(ceil_div(problem.inner.size, wanted), chunks.threads) * chunks.threads;
  chunks.count = ceil_div(problem.inner.size, chunks.length);
  return chunks;
}

MIXFLOW_FN constexpr bool is_parameter(Operand operand) {
  return operand == kLogits || operand == kLoc || operand == kLogScale;
}

// A parameter set without room for what a second pass could use.
template <class T>
struct KeepsNothing {
  MIXFLOW_FN bool has_kept(int) const { return false; }
  MIXFLOW_FN Kept<T> kept(int) const { return {}; }
  MIXFLOW_FN T location(int) const { return {}; }
  MIXFLOW_FN void keep(int, const Kept<T>&) const {}
};

// Where the rows of a parameter set lie, and its k-th numbers.
template <class T>
struct RawRows {
  const T *logits, *loc, *log_scale;
  int64_t stride[3];

  // The set at this place of the outer space.
  static MIXFLOW_FN RawRows at(const Problem& problem, const int64_t (&place)[kOperands]) {
    return {static_cast<const T*>(problem.logits) + place[kLogits],
            static_cast<const T*>(problem.loc) + place[kLoc],
            static_cast<const T*>(problem.log_scale) + place[kLogScale],
            {problem.component_stride[0], problem.component_stride[1], problem.component_stride[2]}};
  }
  MIXFLOW_FN T logit_at(int k) const { return logits[k * stride[0]]; }
  MIXFLOW_FN T loc_at(int k) const { return loc[k * stride[1]]; }
  MIXFLOW_FN T log_scale_at(int k) const { return log_scale[k * stride[2]]; }
};

template <class T>
MIXFLOW_FN Common<T> common_of(const RawRows<T>& rows, int components) {
  T largest = -infinity<T>(), least_log_scale = infinity<T>(), most_log_scale = -infinity<T>();
  for (int k = 0; k < components; ++k) {
    T log_scale = rows.log_scale_at(k);
    largest = at_least(largest, rows.logit_at(k));
    least_log_scale = at_most(least_log_scale, log_scale);
    most_log_scale = at_least(most_log_scale, log_scale);
  }
  return {largest, least_log_scale, most_log_scale};
}

// A parameter set as it lies in memory, each component of which is prepared where it is used.
template <class Family, class T>
struct RawParameters : Common<T>, KeepsNothing<T> {
  RawRows<T> rows;
  int components;

  MIXFLOW_FN RawParameters(const RawRows<T>& rows, int components)
      : Common<T>(common_of(rows, components)), rows(rows), components(components) {}

  MIXFLOW_FN T log_weight(int k) const { return rows.logit_at(k) - this->largest_logit; }
  MIXFLOW_FN Component<T> component(int k) const {
    return make_component<Family>(log_weight(k), rows.loc_at(k), rows.log_scale_at(k));
  }
  MIXFLOW_FN LogComponent<T> log_component(int k) const {
    return make_log_component(log_weight(k), rows.loc_at(k), rows.log_scale_at(k));
  }
  MIXFLOW_FN T total_weight() const {
    T total(0);
    for (int k = 0; k < components; ++k) total += quick_exp(log_weight(k));
    return total;
  }
};

// A component in shared memory, such that its linear part is read 16 bytes at a time.
template <class T>
struct alignas(16) PreparedComponent {
  Component<T> linear;
  T log_weight, inv_scale;
};

// A parameter set that the block has prepared in shared memory.
template <class T>
struct PreparedParameters : Common<T>, KeepsNothing<T> {
  const PreparedComponent<T>* prepared;
  int components;
  T total;
  bool is_finite;  // every number of it

  MIXFLOW_FN const Component<T>& component(int k) const { return prepared[k].linear; }
  MIXFLOW_FN LogComponent<T> log_component(int k) const {
    const PreparedComponent<T>& c = prepared[k];
    return {c.linear.loc, c.log_weight, c.inv_scale, c.linear.weight};
  }
  MIXFLOW_FN T total_weight() const { return total; }
};

// A row of parameters whose thread keeps numbers of each component in shared memory, for backward ops. If the row
// serves a single element, the first two take the place of its logits and log_scale, which are not read again but for
// logarithmic sums; those read them where they come from.
template <class Family, class T>
struct KeepingRow : Common<T> {
  RawRows<T> rows;
  T* numbers[3];  // kept; of the fourth, `step` beyond the third
  int step, components;
  RawRows<T> origin;

  MIXFLOW_FN KeepingRow(T* own, int step, int components, bool in_place, const RawRows<T>& origin)
      : rows{own, own + step, own + 2 * step, {1, 1, 1}}, step(step), components(components), origin(origin) {
    static_cast<Common<T>&>(*this) = common_of(rows, components);
    numbers[0] = own + (in_place ? 0 : 3 * step);
    numbers[1] = own + (in_place ? 2 * step : 4 * step);
    numbers[2] = own + (in_place ? 3 * step : 5 * step);
  }
  MIXFLOW_FN Component<T> component(int k) const {
    return make_component<Family>(rows.logit_at(k) - this->largest_logit, rows.loc_at(k), rows.log_scale_at(k));
  }
  MIXFLOW_FN LogComponent<T> log_component(int k) const {
    return make_log_component(origin.logit_at(k) - this->largest_logit, origin.loc_at(k), origin.log_scale_at(k));
  }
  MIXFLOW_FN T total_weight() const {
    T total(0);
    for (int k = 0; k < components; ++k) total += log_component(k).weight;
    return total;
  }
  MIXFLOW_FN T location(int k) const { return rows.loc_at(k); }
  MIXFLOW_FN bool has_kept(int) const { return true; }
  MIXFLOW_FN Kept<T> kept(int k) const { return {{numbers[0][k], numbers[1][k], numbers[2][k], numbers[2][step + k]}}; }
  MIXFLOW_FN void keep(int k, const Kept<T>& x) const {
    numbers[0][k] = x.number[0];
    numbers[1][k] = x.number[1];
    numbers[2][k] = x.number[2];
    numbers[2][step + k] = x.number[3];
  }
};

// A row of parameters beside which a thread keeps in shared memory what is costly in each component, for the inverse,
// which goes through them several times.
template <class Family, class T>
struct PreparedRow : RawParameters<Family, T> {
  T* prepared;  // rate, its rest and weight, `step` apart
  int step;
  T total;

  MIXFLOW_FN PreparedRow(T* own, int step, int components)
      : RawParameters<Family, T>(RawRows<T>{own, own + step, own + 2 * step, {1, 1, 1}}, components),
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

template <class Family, class T>
__device__ __forceinline__ PreparedParameters<T> prepare(const Problem& problem, const int64_t (&place)[kOperands],
                                                         PreparedComponent<T>* prepared) {
  RawParameters<Family, T> raw(RawRows<T>::at(problem, place), problem.components);
  for (int k = threadIdx.x; k < raw.components; k += blockDim.x) {
    LogComponent<T> c = raw.log_component(k);
    prepared[k] = {raw.component(k), c.log_weight, c.inv_scale};
  }
  __syncthreads();
  PreparedParameters<T> result{raw, {}, prepared, raw.components, T(0), true};
  for (int k = 0; k < raw.components; ++k) {
    const Component<T>& c = prepared[k].linear;
    result.total += c.weight;
    // An idle element is taken to be at zero: its distance in octaves is to be finite, too.
    result.is_finite = result.is_finite && is_finite(c.loc * c.rate) && is_finite(c.loc) && is_finite(c.rated_weight) &&
                       is_finite(c.rate);
  }
  return result;
}

// Whether an op reads or writes this for each element.
MIXFLOW_FN constexpr bool has_operand(Op op, Operand operand) {
  bool on_intervals = op == Op::interval || op == Op::interval_backward;
  switch (operand) {
    case kInput:
    case kOutput:
      return true;
    case kUpper:
      return on_intervals;
    case kGradValue:
      return is_backward(op);
    case kGradLadj:
      return is_backward(op) && !on_intervals;
    case kLadj:
      return !is_backward(op) && !on_intervals;
    case kGradUpper:
      return op == Op::interval_backward;
    default:
      return false;
  }
}

// The seeds of an element, such that they are read 16 bytes at a time. An element without any incoming gradient is idle
// and adds nothing to any gradient, even where it, or its parameters, are NaN or infinite: a loss may mask it for that.
template <Op op, class T>
struct alignas(16) SeedsOf : std::conditional_t<op == Op::interval_backward, IntervalSeeds<T>, ElementSeeds<T>> {
  using Own = std::conditional_t<op == Op::interval_backward, IntervalSeeds<T>, ElementSeeds<T>>;
  bool idle;

  MIXFLOW_FN const Own& seeds() const { return *this; }
  // Whether no component needs logarithms.
  MIXFLOW_FN bool is_linear() const {
    if constexpr (op == Op::interval_backward)
      return true;
    else
      return this->all_linear;
  }
};

// sink(k, g_logit, g_loc, g_log_scale) for each component.
template <class Family, Op op, class T, class Parameters, class Sink>
__device__ __forceinline__ void for_gradients_of(const Parameters& parameters, const SeedsOf<op, T>& seeds,
                                                 Sink&& sink) {
  if (!seeds.idle) return for_gradients<Family>(parameters, seeds.seeds(), sink);
  for (int k = 0; k < parameters.components; ++k) sink(k, T(0), T(0), T(0));
}

// One element through one op, whose operands and rows of parameters are at `place`. Of a backward op, use(seeds) sees
// to the gradients by the parameters.
template <class Family, Op op, class T, class Parameters, class Use>
__device__ __forceinline__ void map_element(const Problem& problem, const Parameters& parameters,
                                            const int64_t (&place)[kOperands], Use use) {
  RuntimeBase base{problem.base};
  auto read = [&](const void* data, Operand operand) { return static_cast<const T*>(data)[place[operand]]; };
  auto put = [&](void* data, Operand operand, T value) { static_cast<T*>(data)[place[operand]] = value; };
  auto write = [&](void* data, Operand operand, T value) {
    if (data != nullptr) put(data, operand, value);
  };
  [[maybe_unused]] T g_value{}, g_ladj{};
  if constexpr (is_backward(op)) {
    g_value = read(problem.grad_value, kGradValue);
    if constexpr (op != Op::interval_backward) g_ladj = read(problem.grad_ladj, kGradLadj);
    if (g_value == T(0) && g_ladj == T(0)) {
      write(problem.output, kOutput, T(0));
      if constexpr (op == Op::interval_backward) write(problem.grad_upper, kGradUpper, T(0));
      write(problem.grad_shift, kGradParameters, T(0));
      write(problem.grad_log_slope, kGradParameters, T(0));
      return use(SeedsOf<op, T>{{}, true});
    }
  }
  AffineMap<T> affine{};
  if (problem.is_affine()) affine = {read(problem.shift, kLogits), read(problem.log_slope, kLogits)};
  T input = read(problem.input, kInput);
  if constexpr (op == Op::interval) {
    write(problem.output, kOutput, log_interval<Family>(input, read(problem.upper, kUpper), parameters));
  } else if constexpr (op == Op::interval_backward) {
    SeededEdgeGradients<T> at = seeded_edge_gradients<Family>(input, read(problem.upper, kUpper), g_value, parameters);
    write(problem.output, kOutput, at.edges.lower);
    write(problem.grad_upper, kGradUpper, at.edges.upper);
    use(SeedsOf<op, T>{at.seeds, false});
  } else if constexpr (is_backward(op)) {
    constexpr bool inverse = op == Op::inverse_backward;
    T seed = g_value;
    if (!inverse && problem.is_affine()) seed = g_value * exp(affine.log_slope);
    SeededGradient<T> at = seeded_gradient<Family, inverse>(input, seed, g_ladj, parameters, base);
    if (problem.is_affine()) {
      AffineGradients<T> grads = inverse ? affine_inverse_gradients(at.z, affine.log_slope, g_ladj, at.input)
                                         : affine_gradients(at.z, g_value, g_ladj, seed, at.input);
      at.input = grads.input;
      write(problem.grad_shift, kGradParameters, grads.shift);
      write(problem.grad_log_slope, kGradParameters, grads.log_slope);
    }
    write(problem.output, kOutput, at.input);
    use(SeedsOf<op, T>{at.seeds, false});
  } else {
    Mapped<T> mapped;
    if constexpr (op == Op::forward) {
      mapped = forward<Family>(input, parameters, base);
      if (problem.is_affine()) mapped = affine.forward(mapped);
    } else {
      if (problem.is_affine()) input = affine.inverse(input);
      mapped = inverse<Family>(input, parameters, base).mapped;
      if (problem.is_affine()) mapped.ladj = mapped.ladj - affine.log_slope;
    }
    put(problem.output, kOutput, mapped.value);
    put(problem.ladj, kLadj, mapped.ladj);
  }
}

// Where an element's operands are, at `inner` of the inner space; `place` is that of its set in the outer one.
template <Op op>
__device__ __forceinline__ void add_inner(const Problem& problem, int64_t inner, int64_t (&place)[kOperands]) {
  int64_t inside[kOperands];
  problem.inner.offsets(inner, [](Operand operand) { return has_operand(op, operand); }, inside);
  for (int operand = 0; operand < kLogits; ++operand)
    if (has_operand(op, static_cast<Operand>(operand))) place[operand] += inside[operand];
}
// Where a set's operands are: those of its elements that do not differ between them, and its own.
template <Op op>
__device__ __forceinline__ void find_set(const Problem& problem, int64_t outer, int64_t (&place)[kOperands]) {
  problem.outer.offsets(outer, [](Operand operand) { return has_operand(op, operand) || operand >= kLogits; }, place);
}

// The sums of a parameter set's gradients over a chunk of elements, which go to partial[j * components + k].
//
// A thread is first an element and then a component: once the seeds of a tile of elements lie in shared memory, each
// thread takes its own component through them, with the sums in registers. Per pair of element and component that costs
// three reads of 16 bytes, most of them the same for all threads of a warp, and three additions; sums over elements by
// shuffles would cost as much as the gradients themselves. With fewer components than threads, several groups of
// threads share the elements of a tile; with more, a thread takes several components, one after the other.
//
// Sums run in the number type over a tile and in double over the rest: the error does not grow with the length.
template <class Family, Op op, class T>
struct GradientSums {
  using Seeds = SeedsOf<op, T>;
  const Seeds* seeds;
  double* rows;  // one of 3 components for each group
  double* partial;
  int components, groups;

  static MIXFLOW_FN int groups_of(int components, int threads) {
    return components < threads ? threads / components : 1;
  }
  // A single group has no need of shared memory.
  static MIXFLOW_FN int shared_rows(int components, int threads) {
    int groups = groups_of(components, threads);
    return groups > 1 ? groups * 3 * components : 0;
  }

  __device__ __forceinline__ GradientSums(const Seeds* seeds, double* rows, double* partial, int components)
      : seeds(seeds), rows(rows), partial(partial), components(components), groups(groups_of(components, blockDim.x)) {
    if (groups == 1) this->rows = partial;
  }
  __device__ __forceinline__ void clear() const {
    for_own([](double* sums, int, int, int components) {
      for (int j = 0; j < 3; ++j) sums[j * components] = 0;
    });
  }
  // f(sums, k, group, components) for the components of this thread.
  template <class F>
  __device__ __forceinline__ void for_own(F f) const {
    int k = threadIdx.x, group = 0;
    if (groups > 1) {
      group = threadIdx.x / components;
      k = group < groups ? threadIdx.x - group * components : components;
    }
    for (; k < components; k += blockDim.x) f(rows + group * 3 * components + k, k, group, components);
  }
  // A parameter set as a thread sees it that takes one component through a tile: found once, however dear it is.
  template <class Parameters>
  struct Held : KeepsNothing<T> {
    const Parameters& parameters;
    Component<T> linear;
    LogComponent<T> log;

    MIXFLOW_FN const Component<T>& component(int) const { return linear; }
    MIXFLOW_FN LogComponent<T> log_component(int k) const {
      return op == Op::interval_backward ? log : parameters.log_component(k);
    }
  };
  // f(seeds) for the elements of a tile that this thread adds up.
  template <class F>
  __device__ __forceinline__ void for_elements(int group, int used, F f) const {
    for (int i = group; i < used; i += groups) f(seeds[i]);
  }
  __device__ __forceinline__ static void add(double* sums, int components, const ComponentGradients<T>& sum) {
    sums[0] += sum.logit;
    sums[components] += sum.loc;
    sums[2 * components] += sum.log_scale;
  }
  template <class Parameters>
  __device__ __forceinline__ void add_tile(const Parameters& parameters, int used) const {
    for_own([&](double* sums, int k, int group, int components) {
      Held<Parameters> held{{}, parameters, {}, {}};
      if constexpr (op == Op::interval_backward)
        held.log = parameters.log_component(k);
      else
        held.linear = parameters.component(k);
      ComponentGradients<T> sum{};
      for_elements(group, used, [&](const Seeds& at) {
        if (at.idle) return;
        ComponentGradients<T> g = any_gradients<Family>(k, held, at.seeds());
        sum.logit += g.logit;
        sum.loc += g.loc;
        sum.log_scale += g.log_scale;
      });
      add(sums, components, sum);
    });
  }
  // The same where no element needs logarithms and every parameter is finite: all that is the component's own is taken
  // out of the sums, and idle elements, whose seeds are zero, add nothing.
  template <class Parameters>
  __device__ __forceinline__ void add_linear_tile(const Parameters& parameters, int used) const {
    for_own([&](double* sums, int k, int group, int components) {
      Component<T> c = parameters.component(k);
      T inv_scale = inv_scale_of<Family>(c.rate), masses{}, densities{}, slopes{}, moments{};
      for_elements(group, used, [&](const Seeds& at) {
        T distance = at.x - c.loc;
        Shares<T> shares = Family::template shares<true>(distance, c);
        T density = shares.density * at.by_density;
        T slope = fma(Family::scored(density, distance, inv_scale, shares), inv_scale, shares.density * at.by_slope);
        masses += fma(at.lower_is_smaller ? shares.lower : shares.upper, at.by_tail, -at.by_weight);
        densities += density;
        slopes += slope;
        moments = fma(distance, slope, moments);
      });
      add(sums, components,
          {fma(c.weight, masses, c.rated_weight * densities), -(c.rated_weight * slopes),
           -(c.rated_weight * (moments + densities))});
    });
  }
  __device__ __forceinline__ void finish() const {
    if (groups == 1) return;
    __syncthreads();
    for (int i = threadIdx.x; i < 3 * components; i += blockDim.x) {
      double sum = 0;
      for (int group = 0; group < groups; ++group) sum += rows[group * 3 * components + i];
      partial[i] = sum;
    }
  }
};

// A number that the compiler is to keep, and not to find again wherever it is used.
__device__ __forceinline__ int64_t once(int64_t x) {
#if defined(__CUDA_ARCH__)
  asm("" : "+l"(x));
#endif
  return x;
}

// A block works on one chunk of the elements of one parameter set.
template <class Family, Op op, class T, bool is_prepared>
__global__ void __launch_bounds__(kThreads)
    run_shared(const __grid_constant__ Problem problem, Chunks chunks, double* partial) {
  using Seeds = SeedsOf<op, T>;
  constexpr bool has_lean_sums = is_prepared && is_backward(op) && op != Op::interval_backward;
  auto* seeds = reinterpret_cast<Seeds*>(shared_memory());
  auto* prepared = reinterpret_cast<PreparedComponent<T>*>(seeds + (is_backward(op) ? blockDim.x : 0));
  auto* rows = reinterpret_cast<double*>(prepared + (is_prepared ? problem.components : 0));
  for (int64_t block = blockIdx.x; block < problem.outer.size * chunks.count; block += gridDim.x) {
    int64_t outer = block / chunks.count, begin = (block - outer * chunks.count) * chunks.length;
    int64_t end = begin + chunks.length < problem.inner.size ? begin + chunks.length : problem.inner.size;
    int64_t first[kOperands]{};
    find_set<op>(problem, outer, first);
    // This thread's elements, a tile apart: of a single axis at even distances.
    bool is_even = problem.inner.count == 1;
    int64_t place[kOperands], step[kOperands];
    auto go_to = [&](int64_t i) {
      for (int operand = 0; operand < kOperands; ++operand) place[operand] = first[operand];
      add_inner<op>(problem, i, place);
    };
    auto advance = [&](int64_t next) {
      if (!is_even) return go_to(next);
      for (int operand = 0; operand < kLogits; ++operand)
        if (has_operand(op, static_cast<Operand>(operand))) place[operand] += step[operand];
    };
    for (int operand = 0; operand < kLogits; ++operand)
      step[operand] = once(blockDim.x * problem.inner.axis[0].stride[operand]);
    go_to(begin + threadIdx.x < end ? begin + threadIdx.x : begin);
    auto parameters = [&] {
      if constexpr (is_prepared)
        return prepare<Family, T>(problem, first, prepared);
      else
        return RawParameters<Family, T>(RawRows<T>::at(problem, first), problem.components);
    }();
    if constexpr (is_backward(op)) {
      bool sums_wanted = problem.has_parameter_gradients();
      GradientSums<Family, op, T> sums(seeds, rows, partial + block * 3 * problem.components, problem.components);
      if (sums_wanted) sums.clear();
      for (int64_t tile = begin; tile < end; tile += blockDim.x) {
        int used = end - tile < blockDim.x ? static_cast<int>(end - tile) : blockDim.x;
        [[maybe_unused]] bool is_linear = true;
        if (static_cast<int>(threadIdx.x) < used) {
          map_element<Family, op, T>(problem, parameters, place, [&](const Seeds& own) {
            seeds[threadIdx.x] = own;
            if constexpr (has_lean_sums) is_linear = own.idle || own.is_linear();
          });
          if (tile + blockDim.x + threadIdx.x < end) advance(tile + blockDim.x + threadIdx.x);
        }
        if (!sums_wanted) continue;
        if constexpr (has_lean_sums) {
          if (__syncthreads_and(is_linear) && parameters.is_finite)
            sums.add_linear_tile(parameters, used);
          else
            sums.add_tile(parameters, used);
        } else {
          __syncthreads();
          sums.add_tile(parameters, used);
        }
        __syncthreads();
      }
      if (sums_wanted) sums.finish();
    } else {
      for (int64_t i = begin + threadIdx.x; i < end;) {
        map_element<Family, op, T>(problem, parameters, place, nullptr);
        i += blockDim.x;
        if (i < end) advance(i);
      }
    }
    __syncthreads();
  }
}

// The gradients of run_shared from its partial sums, (outer, chunk, 3 components): a thread adds up every lanes-th
// chunk of one number, and the first of each number's threads what they found.
template <class T>
__global__ void __launch_bounds__(2 * kThreads)
    add_partial_sums(const __grid_constant__ Problem problem, int64_t chunks, int lanes, const double* partial) {
  auto* found = reinterpret_cast<double*>(shared_memory());
  int numbers = blockDim.x / lanes, lane = threadIdx.x / numbers;
  int64_t row = 3 * int64_t(problem.components), size = problem.outer.size * row;
  for (int64_t begin = int64_t(blockIdx.x) * numbers; begin < size; begin += int64_t(gridDim.x) * numbers) {
    int64_t i = begin + threadIdx.x % numbers, outer = i / row, own = i - outer * row;
    double sum = 0;
    if (i < size)
      for (int64_t chunk = lane; chunk < chunks; chunk += lanes) sum += partial[(outer * chunks + chunk) * row + own];
    found[threadIdx.x] = sum;
    __syncthreads();
    if (lane == 0 && i < size) {
      for (int j = 1; j < lanes; ++j) sum += found[j * numbers + threadIdx.x];
      int j = static_cast<int>(own / problem.components);
      int64_t k = own - j * int64_t(problem.components), step = problem.component_stride[kGradParameters - kLogits];
      if (T* gradient = static_cast<T*>(problem.gradient(j)))
        gradient[problem.outer.offset(outer, kGradParameters) + k * step] = static_cast<T>(sum);
    }
    __syncthreads();
  }
}

// So many numbers, which a thread moves at once: 16 bytes where memory allows it.
template <class T, int width>
struct alignas(width * sizeof(T)) Vector {
  T value[width];
};
template <class T>
constexpr int kWidest = 16 / sizeof(T);

// How the rows of three arrays lie in memory, which decides how a block moves them.
struct Way {
  enum Kind {
    in_one,     // one after the other without gaps: the block's rows are moved as one
    by_rows,    // each without gaps, anywhere: neighbouring threads move neighbouring numbers of a row
    by_threads  // numbers of a row apart: each thread moves its own row, beside that of its neighbour
  } kind;
  int width;  // numbers that a thread moves at once
};

// How rows of parameters lie in shared memory, and in the memory that they come from and go to. What a block would find
// out about them time and again is found out once, by the host.
struct Rows {
  int length, pitch;        // odd: threads that read the same place of their own rows then use different banks
  uint32_t inverse_length;  // 2^31 / length, rounded up
  bool whole_vectors;       // no 16 bytes belong to two rows
  Way load, store;

  // i / length, for what fits into shared memory; a division takes a GPU twenty instructions.
  MIXFLOW_FN int row_of(int i) const {
    return static_cast<int>((uint64_t(2 * static_cast<uint32_t>(i)) * inverse_length) >> 32);
  }
  MIXFLOW_FN int place_of(int i) const { return i + (pitch - length) * row_of(i); }
  // use(j, place) for `width` numbers from the i-th on.
  template <int width, class Use>
  MIXFLOW_FN void for_places(int i, Use use) const {
    if (whole_vectors) {
      int place = place_of(i);
      for (int j = 0; j < width; ++j) use(j, place + j);
    } else {
      for (int j = 0; j < width; ++j) use(j, place_of(i + j));
    }
  }
};

// The way of arrays (null where there is none) whose rows are at the outer offsets of these operands.
template <class T>
Way way_of(const Problem& problem, const void* const (&data)[3], const Operand (&operands)[3], const int64_t* steps) {
  const Axes& axes = problem.outer;
  bool in_one = axes.count == 1;
  for (int p = 0; p < 3; ++p) {
    if (data[p] == nullptr) continue;
    if (steps[p] != 1 && problem.components > 1) return {Way::by_threads, 1};
    in_one = in_one && (axes.axis[0].stride[operands[p]] == problem.components || axes.size == 1);
  }
  // Vectors begin where their size divides the address. Of rows without gaps, one may reach from a row into the next.
  auto fits = [&](int width) {
    bool fits = in_one || problem.components % width == 0;
    for (int p = 0; p < 3; ++p) {
      fits = fits && reinterpret_cast<uintptr_t>(data[p]) % (width * sizeof(T)) == 0;
      for (int i = 0; i < axes.count && data[p] != nullptr; ++i)
        fits = fits && (in_one || axes.axis[i].stride[operands[p]] % width == 0);
    }
    return fits;
  };
  if (in_one && fits(kWidest<T>)) return {Way::in_one, kWidest<T>};
  in_one = false;
  int width = kWidest<T>;
  while (!fits(width)) width /= 2;
  return {Way::by_rows, width};
}

template <class T>
Rows rows_of(const Problem& problem) {
  uint32_t length = static_cast<uint32_t>(problem.components);
  const int64_t* steps = problem.component_stride;
  int64_t own_step = steps[kGradParameters - kLogits], gradient_steps[3] = {own_step, own_step, own_step};
  return {problem.components,
          problem.components | 1,
          ((uint32_t(1) << 31) + length - 1) / length,
          length % kWidest<T> == 0,
          way_of<T>(problem, {problem.logits, problem.loc, problem.log_scale}, {kLogits, kLoc, kLogScale}, steps),
          way_of<T>(problem, {problem.grad_logits, problem.grad_loc, problem.grad_log_scale},
                    {kGradParameters, kGradParameters, kGradParameters}, gradient_steps)};
}

// The first `size` numbers of three arrays to rows in shared memory, `step` apart, or back. A last vector that is not
// whole belongs to a block with rows to spare: what it has too much goes there.
template <class T>
__device__ __forceinline__ void load_in_one(const Rows& rows, const T* const (&from)[3], int64_t first, int size,
                                            T* shared, int step) {
  constexpr int width = kWidest<T>;
  for (int i = threadIdx.x * width; i < size; i += blockDim.x * width) {
    Vector<T, width> vector[3];
    if (i + width <= size)
      for (int p = 0; p < 3; ++p) vector[p] = *reinterpret_cast<const Vector<T, width>*>(from[p] + (first + i));
    else
      for (int p = 0; p < 3; ++p)
        for (int j = 0; j < width; ++j) vector[p].value[j] = i + j < size ? from[p][first + i + j] : T(0);
    rows.template for_places<width>(i, [&](int j, int place) {
      for (int p = 0; p < 3; ++p) shared[p * step + place] = vector[p].value[j];
    });
  }
}
template <class T>
__device__ __forceinline__ void store_in_one(const Rows& rows, T* const (&to)[3], int64_t first, int size,
                                             const T* shared, int step) {
  constexpr int width = kWidest<T>;
  for (int i = threadIdx.x * width; i < size; i += blockDim.x * width) {
    Vector<T, width> vector[3];
    rows.template for_places<width>(i, [&](int j, int place) {
      for (int p = 0; p < 3; ++p) vector[p].value[j] = shared[p * step + place];
    });
    for (int p = 0; p < 3; ++p) {
      if (to[p] == nullptr) continue;
      if (i + width <= size)
        *reinterpret_cast<Vector<T, width>*>(to[p] + (first + i)) = vector[p];
      else
        for (int j = 0; j < width; ++j)
          if (i + j < size) to[p][first + i + j] = vector[p].value[j];
    }
  }
}

// The same for rows anywhere; row r of array p begins at offsets[p * blockDim.x + r].
template <int width, class T>
__device__ __forceinline__ void load_by_rows(const Rows& rows, const T* const (&from)[3], const int64_t* offsets,
                                             int size, T* shared, int step) {
  for (int i = threadIdx.x * width; i < size; i += blockDim.x * width) {
    int row = rows.row_of(i), k = i - row * rows.length, place = row * rows.pitch + k;
    Vector<T, width> vector[3];
    for (int p = 0; p < 3; ++p)
      vector[p] = *reinterpret_cast<const Vector<T, width>*>(from[p] + (offsets[p * blockDim.x + row] + k));
    for (int p = 0; p < 3; ++p)
      for (int j = 0; j < width; ++j) shared[p * step + place + j] = vector[p].value[j];
  }
}
template <int width, class T>
__device__ __forceinline__ void store_by_rows(const Rows& rows, T* const (&to)[3], const int64_t* offsets, int size,
                                              const T* shared, int step) {
  for (int i = threadIdx.x * width; i < size; i += blockDim.x * width) {
    int row = rows.row_of(i), k = i - row * rows.length, place = row * rows.pitch + k;
    for (int p = 0; p < 3; ++p) {
      if (to[p] == nullptr) continue;
      Vector<T, width> vector;
      for (int j = 0; j < width; ++j) vector.value[j] = shared[p * step + place + j];
      *reinterpret_cast<Vector<T, width>*>(to[p] + (offsets[row] + k)) = vector;
    }
  }
}

// `count` rows of each parameter, from row `begin` on, to shared memory; `offsets` has room for one of each.
template <class T>
__device__ __forceinline__ void load_rows(const Problem& problem, const Rows& rows, int64_t begin, int count, T* shared,
                                          int step, int64_t* offsets) {
  const T* const from[3] = {static_cast<const T*>(problem.logits), static_cast<const T*>(problem.loc),
                            static_cast<const T*>(problem.log_scale)};
  int size = count * rows.length, own = threadIdx.x;
  if (rows.load.kind == Way::in_one) return load_in_one(rows, from, begin * rows.length, size, shared, step);
  int64_t place[kOperands];
  if (own < count) problem.outer.offsets(begin + own, is_parameter, place);
  if (rows.load.kind == Way::by_threads) {
    if (own < count)
      for (int k = 0; k < rows.length; ++k)
        for (int p = 0; p < 3; ++p)
          shared[p * step + own * rows.pitch + k] = from[p][place[kLogits + p] + k * problem.component_stride[p]];
    return;
  }
  if (own < count)
    for (int p = 0; p < 3; ++p) offsets[p * blockDim.x + own] = place[kLogits + p];
  __syncthreads();
  if (rows.load.width == kWidest<T>)
    load_by_rows<kWidest<T>>(rows, from, offsets, size, shared, step);
  else if (rows.load.width == 2)
    load_by_rows<2>(rows, from, offsets, size, shared, step);
  else
    load_by_rows<1>(rows, from, offsets, size, shared, step);
}
// The reverse, for gradients.
template <class T>
__device__ __forceinline__ void store_rows(const Problem& problem, const Rows& rows, int64_t begin, int count,
                                           const T* shared, int step, int64_t* offsets) {
  T* const to[3] = {static_cast<T*>(problem.grad_logits), static_cast<T*>(problem.grad_loc),
                    static_cast<T*>(problem.grad_log_scale)};
  int size = count * rows.length, own = threadIdx.x;
  if (rows.store.kind == Way::in_one) return store_in_one(rows, to, begin * rows.length, size, shared, step);
  int64_t first = own < count ? problem.outer.offset(begin + own, kGradParameters) : 0;
  if (rows.store.kind == Way::by_threads) {
    int64_t stride = problem.component_stride[kGradParameters - kLogits];
    for (int p = 0; own < count && p < 3; ++p)
      for (int k = 0; to[p] != nullptr && k < rows.length; ++k)
        to[p][first + k * stride] = shared[p * step + own * rows.pitch + k];
    return;
  }
  if (own < count) offsets[own] = first;
  __syncthreads();
  if (rows.store.width == kWidest<T>)
    store_by_rows<kWidest<T>>(rows, to, offsets, size, shared, step);
  else if (rows.store.width == 2)
    store_by_rows<2>(rows, to, offsets, size, shared, step);
  else
    store_by_rows<1>(rows, to, offsets, size, shared, step);
}

// Arrays of rows that a block has in shared memory: the parameters, what is kept or prepared of them, and where a set
// serves several elements, the sums of their gradients. The gradients of a single one take the place of the parameters,
// since component k is not read again once its gradient is known.
MIXFLOW_FN int row_arrays(Op op, bool serves_one, bool sums) {
  int beside = is_backward(op) ? (serves_one ? 2 : 4) : op == Op::inverse ? 3 : 0;
  return 3 + beside + (sums ? 3 : 0);
}
MIXFLOW_FN bool sums_in_rows(const Problem& problem) {
  return problem.inner.size > 1 && problem.has_parameter_gradients();
}

// A row of parameters for each element, or for a few of them. The least that must be moved: 12 components + 12 bytes an
// element forward and back, 24 components + 16 in the backward ops (in float; 12 and 20 for intervals). Rows are staged
// in shared memory, so that this is also about all that is moved, in whole sectors.
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
          return KeepingRow<Family, T>(own, step, rows.length, problem.inner.size == 1, RawRows<T>::at(problem, first));
        else if constexpr (op == Op::inverse)
          return PreparedRow<Family, T>(own, step, rows.length);
        else
          return RawParameters<Family, T>(RawRows<T>{own, own + step, own + 2 * step, {1, 1, 1}}, rows.length);
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

// Any strides: one thread per element; in the backward ops per parameter set, which serves few elements.
template <class Family, Op op, class T>
__global__ void __launch_bounds__(kThreads) run_strided(const __grid_constant__ Problem problem) {
  int64_t inner_size = problem.inner.size, size = problem.outer.size * (is_backward(op) ? 1 : inner_size);
  for (int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < size; i += int64_t(gridDim.x) * blockDim.x) {
    int64_t outer = is_backward(op) || inner_size == 1 ? i : i / inner_size, set[kOperands]{}, place[kOperands];
    find_set<op>(problem, outer, set);
    RawParameters<Family, T> parameters(RawRows<T>::at(problem, set), problem.components);
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

const char* name_of(Op op) {
  switch (op) {
    case Op::forward:
      return "forward";
    case Op::forward_with_slopes:
      return "forward_with_slopes";
    case Op::backward:
      return "backward";
    case Op::inverse:
      return "inverse";
    case Op::inverse_backward:
      return "inverse_backward";
    case Op::interval:
      return "interval";
    case Op::interval_backward:
      return "interval_backward";
  }
  return "";
}

void check(cudaError_t status, const std::string& what) {
  if (status != cudaSuccess)
    throw std::runtime_error("mixflow: CUDA " + what + " failed: " + cudaGetErrorString(status));
}

// Makes `device` the current one for as long as this lives.
struct CurrentDevice {
  int before = 0, device;

  explicit CurrentDevice(int device) : device(device) {
    check(cudaGetDevice(&before), "cudaGetDevice");
    if (before != device) check(cudaSetDevice(device), "cudaSetDevice");
  }
  ~CurrentDevice() {
    if (before != device) cudaSetDevice(before);
  }
  CurrentDevice(const CurrentDevice&) = delete;
  CurrentDevice& operator=(const CurrentDevice&) = delete;
};

struct Launcher {
  Op op;
  cudaStream_t stream;

  // At most `blocks` blocks: kernels go on where the grid ends.
  template <class... Parameters, class... Arguments>
  void operator()(void (*kernel)(Parameters...), int64_t blocks, int threads, size_t shared_bytes,
                  const Arguments&... arguments) const {
    if (blocks == 0) return;
    void* pointers[] = {const_cast<void*>(static_cast<const void*>(&arguments))...};
    cudaError_t status = cudaSuccess;
    if (shared_bytes > kSharedBytes)
      status =
          cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes));
    if (status == cudaSuccess)
      status = cudaLaunchKernel(kernel, dim3(static_cast<unsigned>(std::min(blocks, kMaxGrid))), dim3(threads),
                                pointers, shared_bytes, stream);
    if (status != cudaSuccess) cudaGetLastError();  // told of here, so not to whoever asks next
    check(status, std::string("launch of ") + name_of(op));
  }
};

bool is_shared(const Problem& problem) {
  return problem.inner.size >= kSharedLength;
}

template <Op op, class T>
size_t row_bytes(const Problem& problem, const Rows& rows, int threads) {
  return threads * (3 * sizeof(int64_t) +
                    row_arrays(op, problem.inner.size == 1, sums_in_rows(problem)) * sizeof(T) * rows.pitch);
}

// Threads of a block of run_rows: as many as there is shared memory for. None where it does not apply.
template <Op op, class T>
int row_threads(const Problem& problem, const Rows& rows) {
  if (is_shared(problem)) return 0;
  for (int threads = kThreads; threads > kWarp; threads /= 2)
    if (row_bytes<op, T>(problem, rows, threads) <= kSharedBytes) return threads;
  return row_bytes<op, T>(problem, rows, kWarp) <= kMostSharedBytes ? kWarp : 0;
}

template <class Family, Op op, class T, bool is_prepared>
void launch_shared(const Problem& problem, const Launcher& launch, double* partial) {
  using Seeds = SeedsOf<op, T>;
  static_assert(kThreads * sizeof(Seeds) + 3 * kThreads * sizeof(double) +
                    kPreparedComponents * sizeof(PreparedComponent<T>) <=
                kSharedBytes);
  Chunks chunks = chunks_of(problem);
  size_t bytes = is_prepared ? problem.components * sizeof(PreparedComponent<T>) : 0;
  bool sums = is_backward(op) && problem.has_parameter_gradients();
  if (is_backward(op))
    bytes += chunks.threads * sizeof(Seeds) +
             GradientSums<Family, op, T>::shared_rows(problem.components, chunks.threads) * sizeof(double);
  launch(run_shared<Family, op, T, is_prepared>, problem.outer.size * chunks.count, chunks.threads, bytes, problem,
         chunks, partial);
  if (sums) {
    int lanes = 1, threads = 2 * kThreads;
    while (lanes < chunks.count && lanes < 2 * kWarp) lanes *= 2;
    launch(add_partial_sums<T>, ceil_div(problem.outer.size * 3 * problem.components, threads / lanes), threads,
           threads * sizeof(double), problem, chunks.count, lanes, const_cast<const double*>(partial));
  }
}

template <class Family, Op op, class T>
void launch_op(const Problem& problem, const Launcher& launch, double* partial) {
  if (is_shared(problem) && problem.components <= kPreparedComponents)
    return launch_shared<Family, op, T, true>(problem, launch, partial);
  if constexpr (is_backward(op))
    if (is_shared(problem)) return launch_shared<Family, op, T, false>(problem, launch, partial);
  Rows rows = rows_of<T>(problem);
  if (int threads = row_threads<op, T>(problem, rows))
    return launch(run_rows<Family, op, T>, ceil_div(problem.outer.size, threads), threads,
                  row_bytes<op, T>(problem, rows, threads), problem, rows);
  int64_t size = problem.outer.size * (is_backward(op) ? 1 : problem.inner.size);
  launch(run_strided<Family, op, T>, ceil_div(size, kThreads), kThreads, 0, problem);
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
  if (problem.is_empty() || !problem.has_parameter_gradients() || !is_shared(problem)) return 0;
  return problem.outer.size * chunks_of(problem).count * 3 * problem.components * sizeof(double);
}

void run_on_cuda(const Problem& problem, int device, void* stream, void* workspace) {
  using namespace MIXFLOW_ARCH;
  if (problem.is_empty()) return;
  CurrentDevice current(device);
  Launcher launch{problem.op, static_cast<cudaStream_t>(stream)};
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
