// Random calls of the kernels, for the programs of this folder: any shapes, strides, broadcasts and values, infinities
// and NaN among them.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <initializer_list>
#include <limits>
#include <memory>
#include <numeric>
#include <stdexcept>
#include <vector>

#include "names.h"
#include "plan.h"

namespace mixflow {

// SplitMix64 (Steele, Lea and Flood, 2014): the same cases on every machine.
struct Random {
  uint64_t state;

  uint64_t next() {
    uint64_t z = state += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
  }
  int64_t below(int64_t n) { return static_cast<int64_t>(next() % static_cast<uint64_t>(n)); }
  double uniform() { return static_cast<double>(next() >> 11) * 0x1p-53; }
  bool chance(double p) { return uniform() < p; }
  double normal() { return std::sqrt(-2 * std::log(1 - uniform())) * std::cos(6.283185307179586 * uniform()); }
  template <class T>
  T of(std::initializer_list<T> choices) {
    return choices.begin()[below(static_cast<int64_t>(choices.size()))];
  }
};

using Shape = std::vector<int64_t>;

inline int64_t count(const Shape& shape) {
  return std::accumulate(shape.begin(), shape.end(), int64_t{1}, std::multiplies<int64_t>());
}

// visit(index) for every element of a batch, in row-major order.
template <class Visit>
void for_elements(const Shape& batch, Visit visit) {
  Shape index(batch.size());
  for (int64_t element = 0; element < count(batch); ++element) {
    int64_t rest = element;
    for (size_t i = index.size(); i-- > 0; rest /= batch[i]) index[i] = rest % batch[i];
    visit(index);
  }
}

// Memory of one operand, no byte larger than it must be, and where its elements lie in it.
struct Tensor {
  Dtype dtype;
  Shape shape, stride;
  std::shared_ptr<unsigned char> memory;
  int64_t numbers = 0;

  size_t width() const { return dtype == Dtype::float32 ? sizeof(float) : sizeof(double); }
  void allocate() {
    numbers = count(shape) > 0 ? 1 : 0;
    for (size_t i = 0; i < shape.size(); ++i) numbers += numbers > 0 ? (shape[i] - 1) * stride[i] : 0;
    size_t bytes = static_cast<size_t>(numbers) * width();
    memory = {static_cast<unsigned char*>(std::malloc(bytes)), std::free};
    std::memset(memory.get(), 0xff, bytes);  // a NaN that no kernel makes
  }
  void set(int64_t i, double value) {
    if (dtype == Dtype::float32) {
      float narrow = static_cast<float>(value);
      std::memcpy(memory.get() + i * sizeof narrow, &narrow, sizeof narrow);
    } else {
      std::memcpy(memory.get() + i * sizeof value, &value, sizeof value);
    }
  }
  double get(int64_t i) const {
    float narrow;
    double value;
    if (dtype == Dtype::float64) return std::memcpy(&value, memory.get() + i * sizeof value, sizeof value), value;
    return std::memcpy(&narrow, memory.get() + i * sizeof narrow, sizeof narrow), narrow;
  }
  void copy(int64_t i, const Tensor& from, int64_t j) {
    std::memcpy(memory.get() + i * width(), from.memory.get() + j * width(), width());
  }
  bool is_written(int64_t i) const {
    const unsigned char* first = memory.get() + static_cast<size_t>(i) * width();
    return std::any_of(first, first + width(), [](unsigned char byte) { return byte != 0xff; });
  }
  // Where the i-th number of its own shape, in row-major order, lies.
  int64_t place(int64_t i) const {
    int64_t result = 0;
    for (size_t j = shape.size(); j-- > 0; i /= shape[j]) result += i % shape[j] * stride[j];
    return result;
  }
  // Every number of it, and nothing between them.
  bool is_written() const {
    int64_t own = 0, found = 0;
    for (int64_t i = 0; i < count(shape); ++i) own += is_written(place(i));
    for (int64_t i = 0; i < numbers; ++i) found += is_written(i);
    return own == count(shape) && found == own;
  }
  // Bits of one number; all NaN count as one.
  bool same(int64_t i, const Tensor& other, int64_t j) const {
    return std::memcmp(memory.get() + i * width(), other.memory.get() + j * width(), width()) == 0 ||
           (std::isnan(get(i)) && std::isnan(other.get(j)));
  }
  Array array(int64_t offset = 0) const {
    Array result;
    result.data = memory.get() + static_cast<size_t>(offset) * width();
    for (size_t i = 0; i < shape.size(); ++i) {
      result.shape.value[result.shape.count++] = shape[i];
      result.stride.value[result.stride.count++] = stride[i];
    }
    return result;
  }
  // Where the element of `batch` with this index lies; `trailing` axes are not part of the batch.
  int64_t offset(const Shape& batch, const Shape& index, size_t trailing) const {
    int64_t result = 0;
    size_t own = shape.size() - trailing, skipped = batch.size() - own;
    for (size_t i = 0; i < own; ++i) result += shape[i] == 1 ? 0 : index[skipped + i] * stride[i];
    return result;
  }
  // The row of parameters there, alone.
  Tensor row(int64_t offset) const {
    Tensor result{dtype, {shape.back()}, {1}, nullptr};
    result.allocate();
    for (int64_t k = 0; k < shape.back(); ++k) result.set(k, get(offset + k * stride.back()));
    return result;
  }
  Tensor element(int64_t offset) const {
    Tensor result{dtype, {}, {}, nullptr};
    result.allocate();
    result.set(0, get(offset));
    return result;
  }
};

inline Tensor contiguous(Dtype dtype, const Shape& shape) {
  Tensor operand{dtype, shape, Shape(shape.size()), nullptr};
  int64_t step = 1;
  for (size_t i = shape.size(); i-- > 0; step *= std::max<int64_t>(shape[i], 1)) operand.stride[i] = step;
  operand.allocate();
  return operand;
}

enum class Kind { element, probability, upper, gradient, logit, loc, log_scale };

inline double draw(Random& random, Kind kind, double extremes) {
  constexpr double infinity = std::numeric_limits<double>::infinity();
  if (random.chance(extremes))
    return random.of({infinity, -infinity, std::nan(""), 0.0, -0.0, 1.0, 1e-320, 1e-40, 1e-30, -1e30, 3.4e38, 1e300,
                      -1e300, 88.8, -103.9, 709.8, -745.2});
  switch (kind) {
    case Kind::element:
      return random.normal() * random.of({1.0, 3.0, 3.0, 30.0, 1e4});
    case Kind::probability:
      return random.of({random.uniform(), random.uniform(), std::exp(-100 * random.uniform())});
    case Kind::upper:  // more often than not above a lower edge
      return random.normal() * random.of({1.0, 3.0, 30.0}) + random.of({0.5, 5.0, 100.0, 1e4});
    case Kind::log_scale:
      return random.normal() * random.of({0.5, 0.5, 0.5, 3.0, 25.0});
    case Kind::loc:
      return random.normal() * random.of({2.0, 2.0, 100.0});
    default:
      return random.normal() * random.of({1.0, 1.0, 10.0});
  }
}

// Which part of the batch's shape an operand has: leading axes may be missing, others of length 1.
inline Shape part_of(Random& random, const Shape& batch, double shared) {
  size_t missing = random.chance(shared) ? random.below(static_cast<int64_t>(batch.size()) + 1) : 0;
  Shape shape(batch.begin() + missing, batch.end());
  for (int64_t& size : shape)
    if (random.chance(shared)) size = 1;
  return shape;
}

// Any order of the axes in memory, gaps between elements, axes that repeat the same memory; of those without elements,
// whose strides mean nothing, every other one.
inline Tensor scattered(Random& random, Dtype dtype, const Shape& shape, Kind kind, double extremes) {
  Tensor operand{dtype, shape, Shape(shape.size()), nullptr};
  std::vector<size_t> order(shape.size());
  std::iota(order.rbegin(), order.rend(), size_t{0});
  if (random.chance(0.3))
    for (size_t i = order.size(); i > 1; --i) std::swap(order[i - 1], order[random.below(i)]);
  int64_t step = random.chance(0.2) ? 1 + random.below(3) : 1;
  for (size_t i : order) {
    bool repeats = random.chance(shape[i] == 0 ? 0.5 : 0.05);
    operand.stride[i] = repeats ? 0 : step;
    step *= repeats ? 1 : std::max<int64_t>(shape[i], 1) + (random.chance(0.1) ? random.below(3) : 0);
  }
  operand.allocate();
  for (int64_t i = 0; i < operand.numbers; ++i) operand.set(i, draw(random, kind, extremes));
  return operand;
}

// The same numbers in contiguous memory.
inline Tensor compact(const Tensor& from) {
  Tensor operand = contiguous(from.dtype, from.shape);
  for (int64_t i = 0; i < count(from.shape); ++i) operand.copy(i, from, from.place(i));
  return operand;
}

// Memory to write to: contiguous, or, given `random`, with axes in any order and gaps between elements.
inline Tensor blank(Random* random, Dtype dtype, const Shape& shape) {
  if (random == nullptr) return contiguous(dtype, shape);
  Tensor operand{dtype, shape, Shape(shape.size()), nullptr};
  std::vector<size_t> order(shape.size());
  std::iota(order.rbegin(), order.rend(), size_t{0});
  if (random->chance(0.5))
    for (size_t i = order.size(); i > 1; --i) std::swap(order[i - 1], order[random->below(i)]);
  int64_t step = random->chance(0.2) ? 1 + random->below(3) : 1;
  for (size_t i : order) {
    operand.stride[i] = step;
    step *= std::max<int64_t>(shape[i], 1) + (random->chance(0.2) ? random->below(3) : 0);
  }
  operand.allocate();
  return operand;
}

struct Case {
  Op op;
  Dtype dtype;
  int family, base;
  Shape batch;
  Tensor input, upper, grad_value, grad_ladj, parameters[3];
  // Of a map with an affine one after it, in the place of parameters: rows of 3 K + 2 numbers.
  bool is_affine = false;
  Tensor rows;
  // Which gradients are wanted: by the input, the upper edge and the parameters.
  bool input_wanted = true, upper_wanted = true, wanted[3] = {true, true, true};

  // Whether an element has no incoming gradient at all.
  bool is_idle(const Shape& index) const {
    auto is_zero = [&](const Tensor& seed) { return seed.get(seed.offset(batch, index, 0)) == 0; };
    return is_backward(op) && is_zero(grad_value) && (is_interval() || is_zero(grad_ladj));
  }

  bool is_interval() const { return op == Op::interval || op == Op::interval_backward; }
  bool is_map() const { return op == Op::forward || op == Op::inverse || op == Op::forward_with_slopes; }

  Shape gradient_shape() const {
    Shape shape(1, parameters[0].shape.back());
    for (const Tensor& parameter : parameters) {
      shape.insert(shape.begin(), std::max(parameter.shape.size(), shape.size()) - shape.size(), 1);
      for (size_t i = 1; i <= parameter.shape.size(); ++i)
        if (parameter.shape[parameter.shape.size() - i] != 1)
          shape[shape.size() - i] = parameter.shape[parameter.shape.size() - i];
    }
    return shape;
  }
  // The same call on contiguous operands.
  Case compacted() const {
    Case result = *this;
    for (Tensor* operand : {&result.input, &result.upper, &result.grad_value, &result.grad_ladj})
      *operand = compact(*operand);
    for (Tensor& parameter : result.parameters)
      if (!is_affine) parameter = compact(parameter);
    if (is_affine) result.rows = compact(rows);
    return result;
  }
};

// The same numbers in memory of their own, for the whole batch.
inline Tensor expanded(const Tensor& from, const Shape& batch) {
  Tensor operand = contiguous(from.dtype, batch);
  int64_t i = 0;
  for_elements(batch, [&](const Shape& index) { operand.copy(i++, from, from.offset(batch, index, 0)); });
  return operand;
}

// The same numbers in other memory of the same layout.
inline Tensor cloned(const Tensor& from) {
  Tensor operand = from;
  operand.allocate();
  for (int64_t i = 0; i < from.numbers; ++i) operand.copy(i, from, i);
  return operand;
}

// The same call with NaN and infinities in every element without an incoming gradient, and in every parameter that no
// other element uses. Nothing of that may be seen in any gradient.
inline Case poisoned(Random& random, const Case& from) {
  constexpr double infinity = std::numeric_limits<double>::infinity();
  auto poison = [&] { return random.of({std::nan(""), infinity, -infinity}); };
  Case result = from;
  result.input = expanded(from.input, from.batch);
  result.upper = expanded(from.upper, from.batch);
  int64_t i = 0;
  for_elements(from.batch, [&](const Shape& index) {
    if (from.is_idle(index))
      for (Tensor* edge : {&result.input, &result.upper}) edge->set(i, poison());
    ++i;
  });
  std::vector<Tensor*> parameters{&result.parameters[0], &result.parameters[1], &result.parameters[2]};
  if (from.is_affine) parameters = {&result.rows};
  for (Tensor* parameter : parameters) {
    *parameter = cloned(*parameter);
    std::vector<bool> used(parameter->numbers);
    for_elements(from.batch, [&](const Shape& index) {
      int64_t first = parameter->offset(from.batch, index, 1);
      for (int64_t k = 0; k < parameter->shape.back() && !from.is_idle(index); ++k)
        used[first + k * parameter->stride.back()] = true;
    });
    for (int64_t number = 0; number < parameter->numbers; ++number)
      if (!used[number] && random.chance(0.5)) parameter->set(number, poison());
  }
  return result;
}

inline Case make_case(Random& random) {
  Case made;
  made.op = random.of({Op::forward, Op::forward_with_slopes, Op::backward, Op::inverse, Op::inverse_backward,
                       Op::interval, Op::interval_backward});
  made.dtype = random.of({Dtype::float32, Dtype::float64});
  made.family = static_cast<int>(random.below(static_cast<int64_t>(family_names().size())));
  made.base = static_cast<int>(random.below(static_cast<int64_t>(base_names().size())));
  int64_t components = random.of<int64_t>({1, 2, 3, 4, 5, 8, 8, 9, 16, 33, 65, 130, 600});
  int64_t room = 100 + (random.chance(0.05) ? 300000 : 6000) / components;
  int64_t axes = random.chance(0.02) ? random.below(20) : random.below(5);
  for (int64_t i = 0; i < axes; ++i) {
    int64_t size = axes > 5 ? 1 + random.below(2)
                            : random.of<int64_t>({1, 2, 3, 4, 7, 8, 15, 16, 17, 33, 100, 130, 256, 700, 9000});
    if (random.chance(0.01)) size = 0;
    if (size > room) size = 1;
    made.batch.push_back(size);
    room /= std::max<int64_t>(size, 1);
  }
  double extremes = random.of({0.0, 0.0, 0.02, 0.3}), shared = random.of({0.0, 0.2, 0.8, 1.0});
  bool probability = made.base == 2 && made.op == Op::inverse;
  made.input = scattered(random, made.dtype, part_of(random, made.batch, 0.1),
                         probability ? Kind::probability : Kind::element, extremes);
  made.upper = scattered(random, made.dtype, part_of(random, made.batch, 0.1), Kind::upper, extremes);
  for (Tensor* gradient : {&made.grad_value, &made.grad_ladj})
    *gradient = scattered(random, made.dtype, part_of(random, made.batch, random.of({0.0, 0.0, 1.0})), Kind::gradient,
                          extremes);
  if (random.chance(0.3)) {
    double share = random.of({0.3, 0.8, 0.99});
    for (Tensor* gradient : {&made.grad_value, &made.grad_ladj})
      for (int64_t i = 0; i < gradient->numbers; ++i)
        if (random.chance(share)) gradient->set(i, random.of({0.0, -0.0}));
  }
  Kind kinds[3] = {Kind::logit, Kind::loc, Kind::log_scale};
  Shape shape = part_of(random, made.batch, shared);
  made.is_affine = !made.is_interval() && made.op != Op::forward_with_slopes && random.chance(0.3);
  if (made.is_affine) {
    shape.push_back(3 * components + 2);
    made.rows = scattered(random, made.dtype, shape, Kind::logit, extremes);
  } else {
    for (int j = 0; j < 3; ++j) {
      if (random.chance(0.2)) shape = part_of(random, made.batch, shared);
      Shape whole = shape;
      whole.push_back(components);
      made.parameters[j] = scattered(random, made.dtype, whole, kinds[j], extremes);
    }
  }
  if (random.chance(0.3)) {
    made.input_wanted = random.chance(0.6);
    made.upper_wanted = random.chance(0.6);
    for (bool& wanted : made.wanted) wanted = random.chance(0.4);
    if (made.is_affine && random.chance(0.5)) std::fill(made.wanted, made.wanted + 3, false);
  }
  return made;
}

// Outputs in the order: value or gradient of the input; ladj, evaluations and residual, slopes, or gradient of the
// upper edge; gradients of the parameters, or of rows. All but the last belong to the elements. Those not wanted are
// left out. They are contiguous, or, given `random`, laid out in any way.
struct Outputs {
  std::vector<Tensor> all;
  size_t by_element = 0;
  Call call;

  Outputs(const Case& from, bool diagnosed, Random* random = nullptr) {
    call.op = from.op;
    call.dtype = from.dtype;
    call.family = from.family;
    call.base = from.base;
    call.input = from.input.array();
    if (from.is_affine) {
      set_rows(call, from.rows.array());
    } else {
      call.logits = from.parameters[0].array();
      call.loc = from.parameters[1].array();
      call.log_scale = from.parameters[2].array();
    }
    auto element = [&] { return blank(random, from.dtype, from.batch); };
    bool backward = is_backward(from.op);
    call.output = contiguous(from.dtype, from.batch).array();
    call.output.data = nullptr;
    if (!backward || from.input_wanted) add(element(), call.output);
    if (from.is_interval()) call.upper = from.upper.array();
    if (from.op == Op::interval_backward && from.upper_wanted) add(element(), call.grad_upper);
    if (from.is_map()) {
      add(element(), call.ladj);
      Tensor alike = all.back();
      auto add_alike = [&](Array& array) {
        Tensor other = alike;
        other.allocate();
        add(other, array);
      };
      if (from.op == Op::forward_with_slopes)
        for (Array* extra : {&call.slope, &call.ladj_slope}) add_alike(*extra);
      if (diagnosed)
        for (Array* extra : {&call.evaluations, &call.residual}) add_alike(*extra);
    }
    by_element = all.size();
    if (!backward) return;
    call.grad_value = from.grad_value.array();
    if (!from.is_interval()) call.grad_ladj = from.grad_ladj.array();
    if (from.is_affine) {
      Shape shape = from.batch;
      shape.push_back(from.rows.shape.back());
      Array rows;
      if (from.wanted[0]) {
        add(blank(random, from.dtype, shape), rows);
        set_gradient_rows(call, rows);
      }
      return;
    }
    Tensor alike = blank(random, from.dtype, from.gradient_shape());
    Array* gradients[3] = {&call.grad_logits, &call.grad_loc, &call.grad_log_scale};
    for (int j = 0; j < 3; ++j) {
      if (!from.wanted[j]) continue;
      Tensor own = alike;
      own.allocate();
      add(own, *gradients[j]);
    }
  }
  bool are_written() const {
    for (const Tensor& output : all)
      if (!output.is_written()) return false;
    return true;
  }

 private:
  void add(Tensor operand, Array& array) {
    array = operand.array();
    all.push_back(std::move(operand));
  }
};

struct Failure : std::runtime_error {
  using std::runtime_error::runtime_error;
};

inline void require(bool holds, const char* what) {
  if (!holds) throw Failure(what);
}

// Whether two outputs are the same in every bit, wherever they lie.
inline bool are_same(const Tensor& a, const Tensor& b) {
  for (int64_t i = 0; i < count(a.shape); ++i)
    if (!a.same(a.place(i), b, b.place(i))) return false;
  return true;
}

inline bool is_refused(const Call& call) {
  try {
    make_problem(call);
  } catch (const std::invalid_argument&) {
    return true;
  }
  return false;
}

// An element of the batch, with the parameters that it uses, alone: by run(call).
template <class Run>
void check_alone(Random& random, const Case& from, const Outputs& whole, bool diagnosed, Run run) {
  int64_t position = random.below(count(from.batch)), rest = position;
  Shape index(from.batch.size());
  for (size_t i = index.size(); i-- > 0; rest /= from.batch[i]) index[i] = rest % from.batch[i];
  Case alone = from;
  alone.batch.clear();
  alone.input = from.input.element(from.input.offset(from.batch, index, 0));
  alone.upper = from.upper.element(from.upper.offset(from.batch, index, 0));
  alone.grad_value = from.grad_value.element(from.grad_value.offset(from.batch, index, 0));
  alone.grad_ladj = from.grad_ladj.element(from.grad_ladj.offset(from.batch, index, 0));
  for (int j = 0; j < 3 && !from.is_affine; ++j)
    alone.parameters[j] = from.parameters[j].row(from.parameters[j].offset(from.batch, index, 1));
  if (from.is_affine) alone.rows = from.rows.row(from.rows.offset(from.batch, index, 1));
  Outputs single(alone, diagnosed);
  run(single.call);
  for (size_t i = 0; i < whole.by_element; ++i)
    require(single.all[i].same(0, whole.all[i], whole.all[i].place(position)),
            "an element alone differs from itself in the batch");
}

}  // namespace mixflow
