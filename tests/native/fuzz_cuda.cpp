// Random calls of the CUDA kernels, which run on the CPU in an emulation (emulation.h), compared with the CPU kernels.
// Both are compiled from the same templates, and without fused multiply-add, so in float64 they must give the same
// bits. In float32 a GPU has units for special functions, so results are near those of the CPU. Each case checks that
//   - every element of every output is written (the address sanitizer checks that nothing else is);
//   - the same call on contiguous operands, with contiguous results, gives the same bits;
//   - other orders of blocks and threads and smaller grids give the same bits;
//   - the outputs of an element have the bits that they have when it is computed alone and, in float64, those of the
//   CPU
//     kernel; in float32 z and ladj are near those of the CPU kernel;
//   - elements without an incoming gradient change nothing, whatever values they and their parameters have;
//   - a gradient of a parameter is the sum of what each element adds to it, which the CPU kernel gives when every
//     element has a row of its own, within what rounding allows.
//
//   fuzz_cuda [--cases N] [--first I] [--seed S]
//
// A case depends on the seed and on its number alone, so --first I --cases 1 runs case I again.
#include <cstdio>
#include <cstdlib>
#include <string>

#include "cases.h"
#include "cpu/dispatch.h"
#include "cuda/kernels.cu"

namespace mixflow {
namespace {

void run_emulated(Call call, emulation::Schedule schedule) {
  call.on_gpu = true;
  Problem problem = make_problem(call);
  std::unique_ptr<void, decltype(&std::free)> workspace(std::malloc(cuda_workspace(problem)), std::free);
  emulation::schedule = schedule;
  run_on_cuda(problem, 0, nullptr, workspace.get());
}

// The gradient of each parameter, element by element.
Outputs terms_of(Case made, bool on_cpu) {
  std::vector<Tensor*> parameters{&made.parameters[0], &made.parameters[1], &made.parameters[2]};
  if (made.is_affine) parameters = {&made.rows};
  for (Tensor* operand : parameters) {
    Tensor& parameter = *operand;
    Tensor expanded{made.dtype, made.batch, Shape(made.batch.size()), parameter.memory, parameter.numbers};
    size_t own = parameter.shape.size() - 1, skipped = made.batch.size() - own;
    for (size_t i = 0; i < own; ++i) expanded.stride[skipped + i] = parameter.shape[i] == 1 ? 0 : parameter.stride[i];
    expanded.shape.push_back(parameter.shape.back());
    expanded.stride.push_back(parameter.stride.back());
    parameter = expanded;
  }
  Outputs terms(made, false);
  if (on_cpu)
    run_on_cpu(make_problem(terms.call), 1);
  else
    run_emulated(terms.call, {});
  return terms;
}

// Kernels add up to 128 numbers (a tile of elements) in the number type, and the sums of tiles in double. In float32
// the error is at most 128 half units of the sum of the magnitudes, and one more for the result. In float64, the
// numbers of tiles and of chunks come on top, which these cases keep below 128. If all elements of a tile are in linear
// space, the parts of a term are summed separately. They may be as large as the largest term of any component, or as
// the incoming gradients, even if the term itself is small. Then a thousand units of those are allowed.
void check_sums(const Case& made, const Tensor& sums, const Tensor& terms, const Tensor& by_input) {
  bool single = made.dtype == Dtype::float32;
  double epsilon = single ? 0x1p-23 : 0x1p-52, largest = single ? 0x1p126 : 0x1p1022, least = single ? 0x1p-149 : 0;
  struct Sum {
    long double value = 0, magnitude = 0, finite = 0;
    int64_t count = 0;
  };
  std::vector<Sum> expected(sums.numbers);
  int64_t components = sums.shape.back();
  int64_t element = 0;
  bool may_sum_parts = !made.is_interval();
  std::vector<long double> incoming(sums.numbers);
  for_elements(made.batch, [&](const Shape& index) {
    int64_t row = sums.offset(made.batch, index, 1);
    for (const Tensor* gradient : {&made.grad_value, &made.grad_ladj}) {
      double g = gradient->get(gradient->offset(made.batch, index, 0));
      if (may_sum_parts && std::isfinite(g)) incoming[row] += std::abs(g);
    }
    double g = by_input.get(element);
    if (may_sum_parts && std::isfinite(g)) incoming[row] += std::abs(g);
    for (int64_t k = 0; k < components; ++k) {
      Sum& sum = expected[row + k];
      double term = terms.get(element * components + k);
      sum.value += term;
      if (std::isfinite(term)) sum.finite += std::abs(term);
      ++sum.count;
    }
    ++element;
  });
  for (int64_t i = 0; i < sums.numbers; ++i) {
    const Sum& sum = expected[i];
    int64_t row = i - i % components;
    long double parts = incoming[row];
    for (int64_t k = 0; k < components && may_sum_parts; ++k) parts = std::max(parts, expected[row + k].finite);
    double found = sums.get(i), value = static_cast<double>(sum.value);
    if (sum.count == 1 || !std::isfinite(value)) {
      bool same = found == value || (std::isnan(found) && std::isnan(value));
      require(same || (sum.count > 1 && sum.finite > largest), "a gradient differs in its only or infinite term");
    } else if (sum.finite < largest) {
      require(std::abs(found - sum.value) <= 130 * epsilon * sum.finite + 1000 * epsilon * parts + least,
              "a sum of gradients is off");
    }
  }
}

// Compares z and ladj of the forward map in float32, on the scales of docs/how-exact.md. The emulated kernel may be
// wrong by 8 eps, and the CPU's by 4. Results that are not finite must be the same.
void check_near(const Case& made, const Outputs& emulated, const Outputs& expected) {
  constexpr double eps = 0x1p-23, log_sqrt_2pi = 0.918938533204672741780;
  for (int64_t i = 0; i < count(made.batch); ++i) {
    auto of = [&](const Outputs& outputs, size_t j) { return outputs.all[j].get(outputs.all[j].place(i)); };
    double z = of(expected, 0), ladj = of(expected, 1);
    double log_g = made.base == 0 ? -z * z / 2 - log_sqrt_2pi : made.base == 1 ? -std::abs(z) : 0;
    double z_scale = made.base == 2 ? std::abs(z) * std::max(1.0, -std::log(z)) + 1e-38 : std::max(1.0, std::abs(z));
    auto near = [&](double a, double b, double scale) {
      return a == b || (std::isnan(a) && std::isnan(b)) || std::abs(a - b) <= 12 * eps * scale;
    };
    require(near(of(emulated, 0), z, z_scale), "z is not near the CPU's");
    require(near(of(emulated, 1), ladj, 1 + std::abs(log_g) + std::abs(ladj + log_g)), "ladj is not near the CPU's");
  }
}

bool check_case(Random& random) {
  Case made = make_case(random);
  if (made.op == Op::forward_with_slopes) made.op = Op::forward;
  Outputs expected(made, false);
  if (is_refused(expected.call) || count(made.batch) == 0) return false;
  run_on_cpu(make_problem(expected.call), 1);
  Random layouts = random, same_layouts = random;
  Outputs emulated(made, false, &layouts), rescheduled(made, false, &same_layouts);
  run_emulated(emulated.call, {});
  require(emulated.are_written(), "an output was left unwritten, or what lies between was not");
  run_emulated(rescheduled.call, {random.chance(0.5), random.chance(0.7), 1 + static_cast<unsigned>(random.below(3))});
  Case compacted = made.compacted();
  Outputs contiguous_outputs(compacted, false);
  run_emulated(contiguous_outputs.call, {});
  for (size_t j = 0; j < emulated.all.size(); ++j) {
    require(are_same(emulated.all[j], rescheduled.all[j]), "the schedule changes the result");
    require(are_same(emulated.all[j], contiguous_outputs.all[j]), "the layout changes the result");
  }
  check_alone(random, made, emulated, false, [](const Call& call) { run_emulated(call, {}); });
  bool has_units = made.dtype == Dtype::float32;
  for (size_t j = 0; j < emulated.by_element && !has_units; ++j)
    require(are_same(emulated.all[j], expected.all[j]), "an element differs from the CPU's");
  if (has_units && made.op == Op::forward && !made.is_affine) check_near(made, emulated, expected);
  if (is_backward(made.op)) {
    Case bad = poisoned(random, made);
    Outputs unharmed(bad, false);
    run_emulated(unharmed.call, {});
    for (size_t j = 0; j < unharmed.all.size(); ++j)
      require(are_same(unharmed.all[j], emulated.all[j]), "an element without an incoming gradient is seen");
    Case all_wanted = made;
    all_wanted.input_wanted = true;
    Outputs terms = terms_of(all_wanted, !has_units);
    for (size_t j = emulated.by_element; j < emulated.all.size(); ++j)
      check_sums(made, contiguous_outputs.all[j], terms.all[j + terms.by_element - emulated.by_element], terms.all[0]);
  }
  return true;
}

// Checks the message of a failed launch, and that the current device is the same before and after a launch.
void check_errors(Random& random) {
  Case made = make_case(random);
  while (count(made.batch) == 0 || made.batch.size() > kMaxAxes || made.op == Op::forward_with_slopes)
    made = make_case(random);
  Outputs outputs(made, false);
  Problem problem = make_problem(outputs.call);
  std::unique_ptr<void, decltype(&std::free)> workspace(std::malloc(cuda_workspace(problem)), std::free);
  auto message_of = [&](int device) {
    try {
      run_on_cuda(problem, device, nullptr, workspace.get());
    } catch (const std::runtime_error& error) {
      return std::string(error.what());
    }
    return std::string();
  };
  emulation::launches_fail = true;
  require(message_of(1) ==
              std::string("mixflow: CUDA launch of ") + name_of(made.op) + " failed: invalid configuration argument",
          "a failed launch is not reported");
  emulation::launches_fail = false;
  require(emulation::current_device == 0, "a failed launch leaves another device behind");
  require(message_of(2) == "mixflow: CUDA cudaSetDevice failed: invalid device ordinal", "no such device");
  require(message_of(1).empty() && emulation::current_device == 0, "a launch leaves another device behind");
}

int run(int argc, char** argv) {
  long long cases = 500, first = 0, seed = 0;
  for (int i = 1; i < argc; i += 2) {
    std::string option = argv[i];
    long long* integer = option == "--cases"   ? &cases
                         : option == "--first" ? &first
                         : option == "--seed"  ? &seed
                                               : nullptr;
    if (integer == nullptr || i + 1 == argc) {
      std::fprintf(stderr, "usage: fuzz_cuda [--cases N] [--first I] [--seed S]\n");
      return 2;
    }
    *integer = std::atoll(argv[i + 1]);
  }
  setenv("MIXFLOW_CPU_CAPABILITY", "baseline", 1);
  long long checked = 0;
  for (long long i = first; i < first + cases; ++i) {
    Random random{static_cast<uint64_t>(seed) * 0x2545f4914f6cdd1du + static_cast<uint64_t>(i)};
    random.state = random.next();
    try {
      checked += check_case(random);
      if (i % 50 == 0) check_errors(random);
    } catch (const std::exception& error) {
      std::fprintf(stderr, "fuzz_cuda: seed %lld, case %lld: %s\n", seed, i, error.what());
      return 1;
    }
  }
  std::printf("fuzz_cuda: %lld cases, %lld of them refused or empty, seed %lld: ok\n", cases, cases - checked, seed);
  return 0;
}

}  // namespace
}  // namespace mixflow

int main(int argc, char** argv) {
  return mixflow::run(argc, argv);
}
