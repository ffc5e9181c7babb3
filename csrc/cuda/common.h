// The layout "common": one parameter set serves many elements.
//
// A block works on some elements of one set. It first prepares the set's components in shared memory, for all of its
// threads. A backward op also sums the gradients by the parameters over the block's elements; a second kernel adds up
// the sums of the blocks.
#pragma once

#include <algorithm>

#include "element.h"
#include "launcher.h"

namespace mixflow {
namespace MIXFLOW_ARCH {
namespace {

// A set is common if its elements fill a warp.
bool is_common(const Problem& problem) {
  return problem.inner.size >= kWarp;
}

// At most this many components are prepared in shared memory. With more, each thread recomputes the ones it needs.
constexpr int kPreparedComponents = 512;

// The number of blocks. The upper limit is twice what the largest GPUs run at once, so that no block waits long for the
// last one. It is no larger, since each block prepares the components. The limit on partial sums (three doubles a
// component) bounds their memory to 32 MiB, except with very many components.
constexpr int64_t kMaxBlocks = 2048, kMinBlocks = 32, kMaxPartialSums = 32 * 1024 * 1024 / (3 * sizeof(double));

// How the elements of a set are cut into chunks, one for each block. This depends on sizes alone, never on the grid or
// the GPU, so sums are always taken in the same order.
struct Chunks {
  int threads;            // of a block. At a time they work on as many elements, which are a tile
  int64_t length, count;  // of chunks
};
Chunks chunks_of(const Problem& problem) {
  Chunks chunks;
  chunks.threads = static_cast<int>(std::min<int64_t>(ceil_div(problem.inner.size, kWarp) * kWarp, kThreads));
  int64_t allowed = std::clamp(kMaxPartialSums / problem.components, kMinBlocks, kMaxBlocks);
  int64_t wanted = std::clamp<int64_t>(allowed / problem.outer.size, 1, ceil_div(problem.inner.size, chunks.threads));
  chunks.length = ceil_div(ceil_div(problem.inner.size, wanted), chunks.threads) * chunks.threads;
  chunks.count = ceil_div(problem.inner.size, chunks.length);
  return chunks;
}

// A component in shared memory. Aligned, so that a thread reads its linear part 16 bytes at a time.
template <class T>
struct alignas(16) PreparedComponent {
  Component<T> linear;
  T log_weight, inv_scale;
};

// A set that the block has prepared in shared memory.
template <class T>
struct PreparedSet : Extremes<T>, KeepsNothing<T> {
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
// Prepares the set whose operands begin at `place`. All threads of the block take part.
template <class Family, class T>
__device__ __forceinline__ PreparedSet<T> prepare(const Problem& problem, const int64_t (&place)[kOperands],
                                                  PreparedComponent<T>* prepared) {
  UnpreparedSet<Family, T> raw(ParameterRows<T>::at(problem, place), problem.components);
  for (int k = threadIdx.x; k < raw.components; k += blockDim.x) {
    LogComponent<T> c = raw.log_component(k);
    prepared[k] = {raw.component(k), c.log_weight, c.inv_scale};
  }
  __syncthreads();
  PreparedSet<T> result{raw, {}, prepared, raw.components, T(0), true};
  for (int k = 0; k < raw.components; ++k) {
    const Component<T>& c = prepared[k].linear;
    result.total += c.weight;
    // An idle element is computed as if it were at 0. So the distance in octaves of 0 from the component must be
    // finite.
    result.is_finite = result.is_finite && is_finite(c.loc * c.rate) && is_finite(c.loc) && is_finite(c.rated_weight) &&
                       is_finite(c.rate);
  }
  return result;
}

// The sums of a set's gradients over a chunk of elements. Gradient j of component k goes to
// partial[j * components + k].
//
// A thread first works on an element and then on a component. Once the seeds of a tile of elements lie in shared
// memory, each thread takes its own component through all of them, with the sums in registers. That costs three reads
// of 16 bytes and three additions for each pair of an element and a component; most reads are the same for all threads
// of a warp. Sums over the elements of a warp by shuffles would cost as much as the gradients themselves. If there are
// fewer components than threads, several groups of threads share the elements of a tile. If there are more, a thread
// takes several components, one after the other.
//
// The sum over a tile is taken in the number type, and the sum over tiles in double. So the error does not grow with
// the number of elements.
template <class Family, Op op, class T>
struct GradientSums {
  using Seeds = SeedsOf<op, T>;
  const Seeds* seeds;
  double* rows;  // one for each group, of 3 numbers for each component
  double* partial;
  int components, groups;

  static MIXFLOW_FN int groups_of(int components, int threads) {
    return components < threads ? threads / components : 1;
  }
  // The doubles in shared memory that the rows take. A single group adds to `partial` itself.
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
  // Calls f(sums, k, group, components) for the components k of this thread.
  template <class F>
  __device__ __forceinline__ void for_own(F f) const {
    int k = threadIdx.x, group = 0;
    if (groups > 1) {
      group = threadIdx.x / components;
      k = group < groups ? threadIdx.x - group * components : components;
    }
    for (; k < components; k += blockDim.x) f(rows + group * 3 * components + k, k, group, components);
  }
  // A set of which a thread uses a single component, for a whole tile. The component is found once.
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
  // Calls f(seeds) for the elements of a tile that this thread adds up.
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
  // The same for a tile in which no element needs logarithms, and a set whose parameters are all finite. Factors that
  // belong to the component are taken out of the sums. Idle elements need no branch: their seeds are zero.
  template <class Parameters>
  __device__ __forceinline__ void add_linear_tile(const Parameters& parameters, int used) const {
    for_own([&](double* sums, int k, int group, int components) {
      Component<T> c = parameters.component(k);
      T inv_scale = inv_scale_of<Family>(c.rate), masses{}, densities{}, slopes{}, moments{};
      for_elements(group, used, [&](const Seeds& at) {
        T distance = at.x - c.loc;
        Shares<T> shares = shares_of<Family, true>(distance, c);
        T density = shares.density * at.by_density;
        T slope = fma(Family::scored(density, distance, inv_scale, shares), inv_scale, shares.density * at.by_slope);
        masses += fma(at.cdf_is_smaller ? shares.cdf : shares.survival, at.by_tail, -at.by_weight);
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

// Returns x. The compiler cannot see that, so it keeps the result in a register and does not compute x again.
__device__ __forceinline__ int64_t once(int64_t x) {
#if defined(__CUDA_ARCH__)
  asm("" : "+l"(x));
#endif
  return x;
}

// A block works on one chunk of the elements of one set.
template <class Family, Op op, class T, bool is_prepared>
__global__ void __launch_bounds__(kThreads)
    run_common(const __grid_constant__ Problem problem, Chunks chunks, double* partial) {
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
    // The elements of a thread are a tile apart. If the inner space has a single axis, so are their operands.
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
        return UnpreparedSet<Family, T>(ParameterRows<T>::at(problem, first), problem.components);
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

// Adds up the partial sums of run_common, which have the shape (outer, chunk, 3 components), to gradients. `lanes`
// threads share a number: each adds up every lanes-th chunk, and the first of them adds up what they have found.
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

template <class Family, Op op, class T, bool is_prepared>
void launch_common(const Problem& problem, const Launcher& launch, double* partial) {
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
  launch(run_common<Family, op, T, is_prepared>, problem.outer.size * chunks.count, chunks.threads, bytes, problem,
         chunks, partial);
  if (sums) {
    int lanes = 1, threads = 2 * kThreads;
    while (lanes < chunks.count && lanes < 2 * kWarp) lanes *= 2;
    launch(add_partial_sums<T>, ceil_div(problem.outer.size * 3 * problem.components, threads / lanes), threads,
           threads * sizeof(double), problem, chunks.count, lanes, const_cast<const double*>(partial));
  }
}

}  // namespace
}  // namespace MIXFLOW_ARCH
}  // namespace mixflow
