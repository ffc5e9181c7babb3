// Operands for the programs of this folder: random numbers, and memory with any strides.
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
#include <vector>

#include "plan.h"

namespace mixflow {

// SplitMix64 (Steele, Lea and Flood, 2014), which makes the same cases on every machine.
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

// Calls visit(index) for every element of a batch, in row-major order.
template <class Visit>
void for_elements(const Shape& batch, Visit visit) {
  Shape index(batch.size());
  for (int64_t element = 0; element < count(batch); ++element) {
    int64_t rest = element;
    for (size_t i = index.size(); i-- > 0; rest /= batch[i]) index[i] = rest % batch[i];
    visit(index);
  }
}

// An operand. Its memory has not a byte more than it must have, so that the address sanitizer finds every access
// outside.
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
  // The offset of its i-th number in row-major order.
  int64_t place(int64_t i) const {
    int64_t result = 0;
    for (size_t j = shape.size(); j-- > 0; i /= shape[j]) result += i % shape[j] * stride[j];
    return result;
  }
  // Whether every number of it has been written, and nothing between them.
  bool is_written() const {
    int64_t own = 0, found = 0;
    for (int64_t i = 0; i < count(shape); ++i) own += is_written(place(i));
    for (int64_t i = 0; i < numbers; ++i) found += is_written(i);
    return own == count(shape) && found == own;
  }
  // Whether two numbers have the same bits. All NaN are taken to be the same.
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
  // The offset of the element of `batch` with this index. The last `trailing` axes are not axes of the batch.
  int64_t offset(const Shape& batch, const Shape& index, size_t trailing) const {
    int64_t result = 0;
    size_t own = shape.size() - trailing, skipped = batch.size() - own;
    for (size_t i = 0; i < own; ++i) result += shape[i] == 1 ? 0 : index[skipped + i] * stride[i];
    return result;
  }
  // The row of parameters at this offset, in memory of its own.
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

// Random numbers in memory with any order of the axes, gaps between elements, and axes of stride 0. Every other axis of
// length 0, whose stride has no meaning, has stride 0.
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

// A copy in contiguous memory.
inline Tensor compact(const Tensor& from) {
  Tensor operand = contiguous(from.dtype, from.shape);
  for (int64_t i = 0; i < count(from.shape); ++i) operand.copy(i, from, from.place(i));
  return operand;
}

// Memory to write to. It is contiguous, or, given `random`, has axes in any order and gaps between elements.
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

// A contiguous copy that is broadcast to the whole batch.
inline Tensor expanded(const Tensor& from, const Shape& batch) {
  Tensor operand = contiguous(from.dtype, batch);
  int64_t i = 0;
  for_elements(batch, [&](const Shape& index) { operand.copy(i++, from, from.offset(batch, index, 0)); });
  return operand;
}

// A copy with the same strides.
inline Tensor cloned(const Tensor& from) {
  Tensor operand = from;
  operand.allocate();
  for (int64_t i = 0; i < from.numbers; ++i) operand.copy(i, from, i);
  return operand;
}

// Whether two operands of the same shape have the same bits, whatever their strides.
inline bool are_same(const Tensor& a, const Tensor& b) {
  for (int64_t i = 0; i < count(a.shape); ++i)
    if (!a.same(a.place(i), b, b.place(i))) return false;
  return true;
}

}  // namespace mixflow
