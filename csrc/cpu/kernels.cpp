// The CPU loops over the templates of ../mixture.h and ../inverse.h. Compiled once per instruction set; no STL in here,
// since the linker would be free to use this build's copy of an inline function everywhere.
#include "kernels.h"

#include <cstdlib>
#include <new>

#include "../inverse.h"

namespace mixflow {
namespace MIXFLOW_ARCH {
namespace {

// Scratch of one piece. malloc, since the size depends on the number of components.
template <class T>
struct Scratch {
  T* data;
  explicit Scratch(int64_t count) : data(static_cast<T*>(aligned_alloc(64, (count * sizeof(T) + 63) / 64 * 64))) {}
  ~Scratch() { free(data); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
};

enum Field { kFieldLoc, kFieldInvScale, kFieldInvScaleRest, kFieldWeight, kFieldLogWeight, kFields };

// One prepared parameter set per lane: `width` values per field and component.
template <class V, bool shared>
struct Prepared {
  using T = Scalar<V>;
  static constexpr int width = shared ? 1 : Number<V>::lanes;

  const T* data;
  int components;
  V total, smallest_scale, density_floor;

  static MIXFLOW_FN V read(const T* p) {
    if constexpr (shared)
      return splat<V>(*p);
    else
      return load<V>(p);
  }
  MIXFLOW_FN Component<V> component(int k) const {
    const T* p = data + static_cast<int64_t>(k) * kFields * width;
    return {read(p + kFieldLoc * width), read(p + kFieldInvScale * width), read(p + kFieldInvScaleRest * width),
            read(p + kFieldWeight * width), read(p + kFieldLogWeight * width)};
  }
  MIXFLOW_FN V total_weight() const { return total; }
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

// Softmax numerators and reciprocal scales of the parameter sets at `lanes` of the outer space (one set, in every lane,
// when `shared`).
template <class V, bool shared>
MIXFLOW_FN Prepared<V, shared> prepare(const Problem& problem, const Lanes<V>& lanes, Scalar<V>* data) {
  using T = Scalar<V>;
  constexpr int width = Prepared<V, shared>::width;
  auto parameter = [&](const void* p, Operand operand, int k) {
    const T* first = static_cast<const T*>(p) + k * problem.component_stride[operand - kLogits];
    return lanes.gather(first, operand);
  };
  V largest = -infinity<V>();
  for (int k = 0; k < problem.components; ++k) largest = max(largest, parameter(problem.logits, kLogits, k));
  V total{}, largest_inv_scale{};
  auto keep = [&](T* p, V x) {
    if constexpr (shared)
      *p = x[0];
    else
      store(p, x);
  };
  for (int k = 0; k < problem.components; ++k) {
    T* p = data + static_cast<int64_t>(k) * kFields * width;
    V log_weight = parameter(problem.logits, kLogits, k) - largest, weight = exp(log_weight);
    V inv_scale_rest, inv_scale = exp(-parameter(problem.log_scale, kLogScale, k), V{}, &inv_scale_rest);
    keep(p + kFieldLoc * width, parameter(problem.loc, kLoc, k));
    keep(p + kFieldInvScale * width, inv_scale);
    keep(p + kFieldInvScaleRest * width, inv_scale_rest);
    keep(p + kFieldWeight * width, weight);
    keep(p + kFieldLogWeight * width, log_weight);
    total += weight;
    largest_inv_scale = max(largest_inv_scale, inv_scale);
  }
  return {data, problem.components, total, Scalar<V>(1) / largest_inv_scale, density_floor(largest_inv_scale)};
}

// One pack of elements through one op. Gradients of the parameters go to sink(k, g_logit, g_loc, g_log_scale).
template <class Family, Op op, class V, class Parameters, class Sink>
MIXFLOW_FN void map_pack(const Problem& problem, const Parameters& parameters, const Lanes<V>& lanes,
                         int64_t const (&first)[kOperands], Sink&& sink) {
  using T = Scalar<V>;
  RuntimeBase base{problem.base};
  V input = lanes.gather(static_cast<const T*>(problem.input) + first[kInput], kInput);
  if constexpr (is_backward(op)) {
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
  using T = Scalar<V>;
  constexpr int lanes = Number<V>::lanes, packs_per_flush = 64;
  Scratch<T> scratch(static_cast<int64_t>(problem.components) * (kFields + 3 * lanes));
  T* sums = scratch.data;
  T* prepared = scratch.data + static_cast<int64_t>(problem.components) * 3 * lanes;
  for (int64_t outer = piece.outer_begin; outer < piece.outer_end; ++outer) {
    int64_t first[kOperands];
    first_offsets(problem.outer, outer, first);
    auto parameters = prepare<V, true>(problem, Lanes<V>{problem.outer, outer, 1}, prepared);
    int used = lanes;
    auto add = [&](int k, V g_logit, V g_loc, V g_log_scale) {
      T* p = sums + static_cast<int64_t>(k) * 3 * lanes;
      V gradients[3] = {g_logit, g_loc, g_log_scale};
      for (int j = 0; j < 3; ++j) {
        T values[lanes];
        if (used < lanes) {
          store(values, gradients[j]);
          for (int i = used; i < lanes; ++i) values[i] = 0;
          gradients[j] = load<V>(values);
        }
        store(p + j * lanes, load<V>(p + j * lanes) + gradients[j]);
      }
    };
    // Sums run in the number type over a few packs and in double over the rest: the error does not grow with N.
    auto flush = [&] {
      if constexpr (is_backward(op))
        for (int i = 0; i < 3 * problem.components; ++i)
          for (int lane = 0; lane < lanes; ++lane) {
            piece.partial[i] += static_cast<double>(sums[i * lanes + lane]);
            sums[i * lanes + lane] = 0;
          }
    };
    for (int i = 0; i < 3 * problem.components * lanes; ++i) sums[i] = 0;
    int packs = 0;
    for (int64_t i = piece.inner_begin; i < piece.inner_end; i += lanes) {
      used = lanes_used(i, piece.inner_end, lanes);
      map_pack<Family, op>(problem, parameters, Lanes<V>{problem.inner, i, used}, first, add);
      if (++packs % packs_per_flush == 0) flush();
    }
    flush();
  }
}

// Lanes over parameter sets; each set serves the (few) inner elements one after the other.
template <class Family, Op op, class V>
void run_per_element(const Problem& problem, const Piece& piece) {
  using T = Scalar<V>;
  constexpr int lanes = Number<V>::lanes;
  Scratch<T> scratch(static_cast<int64_t>(problem.components) * (kFields + 3) * lanes);
  T* sums = scratch.data;
  T* prepared = scratch.data + static_cast<int64_t>(problem.components) * 3 * lanes;
  T* targets[3] = {static_cast<T*>(problem.grad_logits), static_cast<T*>(problem.grad_loc),
                   static_cast<T*>(problem.grad_log_scale)};
  for (int64_t outer = piece.outer_begin; outer < piece.outer_end; outer += lanes) {
    Lanes<V> sets{problem.outer, outer, lanes_used(outer, piece.outer_end, lanes)};
    auto parameters = prepare<V, false>(problem, sets, prepared);
    if constexpr (is_backward(op))
      for (int i = 0; i < 3 * problem.components * lanes; ++i) sums[i] = 0;
    auto add = [&](int k, V g_logit, V g_loc, V g_log_scale) {
      T* p = sums + static_cast<int64_t>(k) * 3 * lanes;
      V gradients[3] = {g_logit, g_loc, g_log_scale};
      for (int j = 0; j < 3; ++j) store(p + j * lanes, load<V>(p + j * lanes) + gradients[j]);
    };
    for (int64_t inner = piece.inner_begin; inner < piece.inner_end; ++inner) {
      int64_t first[kOperands];
      first_offsets(problem.inner, inner, first);
      map_pack<Family, op>(problem, parameters, sets, first, add);
    }
    if constexpr (is_backward(op))
      for (int j = 0; j < 3; ++j)
        for (int lane = 0; lane < sets.used; ++lane) {
          T* target = targets[j] + problem.outer.offset(outer + lane, kGradParameters);
          for (int k = 0; k < problem.components; ++k)
            target[k] = sums[(static_cast<int64_t>(k) * 3 + j) * lanes + lane];
        }
  }
}

template <class Family, Op op, class T>
void run_op(const Problem& problem, const Piece& piece) {
  if (problem.inner.size >= kSharedLength)
    run_shared<Family, op, Pack<T>>(problem, piece);
  else
    run_per_element<Family, op, Pack<T>>(problem, piece);
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
  }
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
