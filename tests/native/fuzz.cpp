// Random calls of the CPU kernels, without Python, for sanitizers and for long runs: any shapes, strides, broadcasts
// and values, infinities and NaN among them. Each case checks that
//   - shapes that do not broadcast are refused, and only those;
//   - every element of every output is written (that nothing else is, the address sanitizer sees);
//   - several callers at once, each with several threads, get the bits of one caller with one thread;
//   - an element computed alone has the bits that it has in the batch;
//   - the inverse ends before the limit on its evaluations.
//
//   fuzz [--cases N | --seconds S] [--first I] [--seed S] [--callers C] [--threads T]
//
// A case depends on the seed and its number alone: --first I --cases 1 runs it again.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <numeric>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#if defined(_OPENMP)
#include <omp.h>
#endif

#include "cpu/dispatch.h"
#include "names.h"
#include "plan.h"

using namespace mixflow;

namespace {

constexpr double kMostEvaluations = 4 * (30 + 64);  // the limit in inverse.h: a search that meets it was cut off

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

int64_t count(const Shape& shape) {
  return std::accumulate(shape.begin(), shape.end(), int64_t{1}, std::multiplies<int64_t>());
}

// Memory of one operand, no byte larger than it must be, and where its elements lie in it.
struct Operand {
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
  bool is_written(int64_t i) const {
    const unsigned char* first = memory.get() + static_cast<size_t>(i) * width();
    return std::any_of(first, first + width(), [](unsigned char byte) { return byte != 0xff; });
  }
  // Bits of one number; all NaN count as one.
  bool same(int64_t i, const Operand& other, int64_t j) const {
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
  Operand row(int64_t offset) const {
    Operand result{dtype, {shape.back()}, {1}, nullptr};
    result.allocate();
    for (int64_t k = 0; k < shape.back(); ++k) result.set(k, get(offset + k * stride.back()));
    return result;
  }
  Operand element(int64_t offset) const {
    Operand result{dtype, {}, {}, nullptr};
    result.allocate();
    result.set(0, get(offset));
    return result;
  }
};

Operand contiguous(Dtype dtype, const Shape& shape) {
  Operand operand{dtype, shape, Shape(shape.size()), nullptr};
  int64_t step = 1;
  for (size_t i = shape.size(); i-- > 0; step *= std::max<int64_t>(shape[i], 1)) operand.stride[i] = step;
  operand.allocate();
  return operand;
}

enum class Kind { element, probability, gradient, logit, loc, log_scale };

double draw(Random& random, Kind kind, double extremes) {
  constexpr double infinity = std::numeric_limits<double>::infinity();
  if (random.chance(extremes))
    return random.of({infinity, -infinity, std::nan(""), 0.0, -0.0, 1.0, 1e-320, 1e-40, 1e-30, -1e30, 3.4e38, 1e300,
                      -1e300, 88.8, -103.9, 709.8, -745.2});
  switch (kind) {
    case Kind::element:
      return random.normal() * random.of({1.0, 3.0, 3.0, 30.0, 1e4});
    case Kind::probability:
      return random.of({random.uniform(), random.uniform(), std::exp(-100 * random.uniform())});
    case Kind::log_scale:
      return random.normal() * random.of({0.5, 0.5, 0.5, 3.0, 25.0});
    case Kind::loc:
      return random.normal() * random.of({2.0, 2.0, 100.0});
    default:
      return random.normal() * random.of({1.0, 1.0, 10.0});
  }
}

// Which part of the batch's shape an operand has: leading axes may be missing, others of length 1.
Shape part_of(Random& random, const Shape& batch, double shared) {
  size_t missing = random.chance(shared) ? random.below(static_cast<int64_t>(batch.size()) + 1) : 0;
  Shape shape(batch.begin() + missing, batch.end());
  for (int64_t& size : shape)
    if (random.chance(shared)) size = 1;
  return shape;
}

// Any order of the axes in memory, gaps between elements, axes that repeat the same memory.
Operand scattered(Random& random, Dtype dtype, const Shape& shape, Kind kind, double extremes) {
  Operand operand{dtype, shape, Shape(shape.size()), nullptr};
  std::vector<size_t> order(shape.size());
  std::iota(order.rbegin(), order.rend(), size_t{0});
  if (random.chance(0.3))
    for (size_t i = order.size(); i > 1; --i) std::swap(order[i - 1], order[random.below(i)]);
  int64_t step = random.chance(0.2) ? 1 + random.below(3) : 1;
  for (size_t i : order) {
    bool repeats = random.chance(0.05);
    operand.stride[i] = repeats ? 0 : step;
    step *= repeats ? 1 : std::max<int64_t>(shape[i], 1) + (random.chance(0.1) ? random.below(3) : 0);
  }
  operand.allocate();
  for (int64_t i = 0; i < operand.numbers; ++i) operand.set(i, draw(random, kind, extremes));
  return operand;
}

struct Case {
  Op op;
  Dtype dtype;
  int family, base;
  Shape batch;
  Operand input, grad_value, grad_ladj, parameters[3];

  Shape gradient_shape() const {
    Shape shape(1, parameters[0].shape.back());
    for (const Operand& parameter : parameters) {
      shape.insert(shape.begin(), std::max(parameter.shape.size(), shape.size()) - shape.size(), 1);
      for (size_t i = 1; i <= parameter.shape.size(); ++i)
        if (parameter.shape[parameter.shape.size() - i] != 1)
          shape[shape.size() - i] = parameter.shape[parameter.shape.size() - i];
    }
    return shape;
  }
};

Case make_case(Random& random) {
  Case made;
  made.op = random.of({Op::forward, Op::backward, Op::inverse, Op::inverse_backward});
  made.dtype = random.of({Dtype::float32, Dtype::float64});
  made.family = static_cast<int>(random.below(static_cast<int64_t>(family_names().size())));
  made.base = static_cast<int>(random.below(static_cast<int64_t>(base_names().size())));
  int64_t components = random.of<int64_t>({1, 2, 3, 4, 5, 8, 8, 9, 16, 33, 65, 130});
  int64_t room = 1 + (random.chance(0.05) ? 300000 : 6000) / components;
  int64_t axes = random.chance(0.02) ? random.below(20) : random.below(5);
  for (int64_t i = 0; i < axes; ++i) {
    int64_t size = axes > 5 ? 1 + random.below(2) : random.of<int64_t>({1, 2, 3, 4, 7, 8, 15, 16, 17, 33, 100, 9000});
    if (random.chance(0.01)) size = 0;
    if (size > room) size = 1;
    made.batch.push_back(size);
    room /= std::max<int64_t>(size, 1);
  }
  double extremes = random.of({0.0, 0.0, 0.02, 0.3}), shared = random.of({0.0, 0.2, 0.8, 1.0});
  bool probability = made.base == 2 && made.op == Op::inverse;
  made.input = scattered(random, made.dtype, part_of(random, made.batch, 0.1),
                         probability ? Kind::probability : Kind::element, extremes);
  for (Operand* gradient : {&made.grad_value, &made.grad_ladj})
    *gradient = scattered(random, made.dtype, part_of(random, made.batch, random.of({0.0, 0.0, 1.0})), Kind::gradient,
                          extremes);
  Kind kinds[3] = {Kind::logit, Kind::loc, Kind::log_scale};
  Shape shape = part_of(random, made.batch, shared);
  for (int j = 0; j < 3; ++j) {
    if (random.chance(0.2)) shape = part_of(random, made.batch, shared);
    Shape whole = shape;
    whole.push_back(components);
    made.parameters[j] = scattered(random, made.dtype, whole, kinds[j], extremes);
  }
  return made;
}

// Outputs in the order: value or gradient of the input, ladj, evaluations, residual, gradients of the parameters.
struct Outputs {
  std::vector<Operand> all;
  Call call;

  Outputs(const Case& from, bool diagnosed) {
    call.op = from.op;
    call.dtype = from.dtype;
    call.family = from.family;
    call.base = from.base;
    call.input = from.input.array();
    call.logits = from.parameters[0].array();
    call.loc = from.parameters[1].array();
    call.log_scale = from.parameters[2].array();
    add(contiguous(from.dtype, from.batch), call.output);
    if (is_backward(from.op)) {
      call.grad_value = from.grad_value.array();
      call.grad_ladj = from.grad_ladj.array();
      for (Array* gradient : {&call.grad_logits, &call.grad_loc, &call.grad_log_scale})
        add(contiguous(from.dtype, from.gradient_shape()), *gradient);
    } else {
      add(contiguous(from.dtype, from.batch), call.ladj);
      if (diagnosed)
        for (Array* extra : {&call.evaluations, &call.residual}) add(contiguous(from.dtype, from.batch), *extra);
    }
  }
  void run(int threads) { run_on_cpu(make_problem(call), threads); }

 private:
  void add(Operand operand, Array& array) {
    array = operand.array();
    all.push_back(std::move(operand));
  }
};

struct Failure : std::runtime_error {
  using std::runtime_error::runtime_error;
};

void require(bool holds, const char* what) {
  if (!holds) throw Failure(what);
}

bool is_refused(const Call& call) {
  try {
    make_problem(call);
  } catch (const std::invalid_argument&) {
    return true;
  }
  return false;
}

// An axis of the wrong length, or one too many: never read, always refused.
void check_refusal(Random& random, const Case& from) {
  Call call = Outputs(from, false).call;
  Array* operands[] = {&call.input, &call.logits, &call.loc, &call.log_scale};
  int64_t which = random.below(4);
  Array& array = *operands[which];
  int own = array.shape.count - (which > 0), batch = call.output.shape.count;
  if (own > 0 && random.chance(0.7)) {
    int64_t axis = random.below(own);
    array.shape.value[axis] = call.output.shape[static_cast<int>(batch - own + axis)] + 2;
  } else {
    for (int i = own; i <= batch; ++i) {  // more axes than the batch has
      std::copy_backward(array.shape.value, array.shape.value + array.shape.count,
                         array.shape.value + array.shape.count + 1);
      std::copy_backward(array.stride.value, array.stride.value + array.stride.count,
                         array.stride.value + array.stride.count + 1);
      array.shape.value[0] = 1, ++array.shape.count, ++array.stride.count;
    }
  }
  require(is_refused(call), "shapes that do not broadcast were not refused");
}

void check_alone(Random& random, const Case& from, const Outputs& whole) {
  int64_t position = random.below(count(from.batch)), rest = position;
  Shape index(from.batch.size());
  for (size_t i = index.size(); i-- > 0; rest /= from.batch[i]) index[i] = rest % from.batch[i];
  Case alone{from.op, from.dtype, from.family, from.base, {}, {}, {}, {}, {}};
  alone.input = from.input.element(from.input.offset(from.batch, index, 0));
  alone.grad_value = from.grad_value.element(from.grad_value.offset(from.batch, index, 0));
  alone.grad_ladj = from.grad_ladj.element(from.grad_ladj.offset(from.batch, index, 0));
  for (int j = 0; j < 3; ++j)
    alone.parameters[j] = from.parameters[j].row(from.parameters[j].offset(from.batch, index, 1));
  Outputs single(alone, from.op == Op::inverse);
  single.run(1);
  // Gradients of parameters are sums over the batch; all else belongs to the element.
  size_t own = is_backward(from.op) ? 1 : whole.all.size();
  for (size_t i = 0; i < own; ++i)
    require(single.all[i].same(0, whole.all[i], position), "an element alone differs from itself in the batch");
}

// Whether the case was run: batches with too many axes that cannot be merged are refused.
bool check_case(Random& random, int callers, int threads) {
  Case made = make_case(random);
  bool diagnosed = made.op == Op::inverse;
  if (random.chance(0.1)) check_refusal(random, made);
  Outputs expected(made, diagnosed);
  if (is_refused(expected.call)) {
    require(made.batch.size() > static_cast<size_t>(kMaxAxes), "shapes that broadcast were refused");
    return false;
  }
  expected.run(1);
  if (count(made.batch) > 0)
    for (const Operand& output : expected.all)
      for (int64_t i = 0; i < output.numbers; ++i) require(output.is_written(i), "an output was left unwritten");
  if (diagnosed)
    for (int64_t i = 0; i < expected.all[2].numbers; ++i)
      require(expected.all[2].get(i) < kMostEvaluations, "the inverse was cut off");

  std::vector<Outputs> others;
  for (int i = 0; i < callers; ++i) others.emplace_back(made, diagnosed);
  std::vector<std::thread> running;
  for (int i = 1; i < callers; ++i) running.emplace_back([&, i] { others[i].run(threads); });
  others[0].run(threads);
  for (std::thread& thread : running) thread.join();
  for (const Outputs& other : others)
    for (size_t j = 0; j < other.all.size(); ++j)
      for (int64_t i = 0; i < other.all[j].numbers; ++i)
        require(other.all[j].same(i, expected.all[j], i), "threads or callers change the result");
  if (count(made.batch) > 0) check_alone(random, made, expected);
  return true;
}

}  // namespace

int main(int argc, char** argv) {
  long long cases = 2000, first = 0, seed = 0, callers = 2, threads = 2;
  double seconds = std::numeric_limits<double>::infinity();
  for (int i = 1; i < argc; ++i) {
    std::string option = argv[i];
    long long* integer = option == "--cases"     ? &cases
                         : option == "--first"   ? &first
                         : option == "--seed"    ? &seed
                         : option == "--callers" ? &callers
                         : option == "--threads" ? &threads
                                                 : nullptr;
    if ((integer == nullptr && option != "--seconds") || ++i == argc) {
      std::fprintf(stderr,
                   "usage: fuzz [--cases N | --seconds S] [--first I] [--seed S] [--callers C] [--threads T]\n");
      return 2;
    }
    if (integer != nullptr)
      *integer = std::atoll(argv[i]);
    else
      seconds = std::atof(argv[i]), cases = std::numeric_limits<long long>::max() - first;
  }
#if defined(_OPENMP)
  omp_set_dynamic(0);  // also keeps the runtime linked, which the kernels refer to weakly
#endif
  auto start = std::chrono::steady_clock::now();
  long long done = 0, refused = 0;
  auto passed = [&] { return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count(); };
  for (; done < cases && passed() < seconds; ++done) {
    Random random{static_cast<uint64_t>(seed) * 0x2545f4914f6cdd1du + static_cast<uint64_t>(first + done)};
    random.state = random.next();
    try {
      refused += !check_case(random, static_cast<int>(callers), static_cast<int>(threads));
    } catch (const std::exception& error) {
      std::fprintf(stderr, "fuzz: seed %lld, case %lld, %s: %s\n", seed, first + done, cpu_capability().c_str(),
                   error.what());
      return 1;
    }
  }
  std::printf(
      "fuzz: %lld cases, %lld of them refused for their axes, seed %lld, %s, %lld callers of %lld threads%s: ok\n",
      done, refused, seed, cpu_capability().c_str(), callers, threads, has_openmp() ? "" : " (no OpenMP)");
  return 0;
}
