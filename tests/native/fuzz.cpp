// Random calls of the CPU kernels, without Python, for sanitizers and for long runs: with any shapes, strides,
// broadcasts and values, among them infinities and NaN. Each case checks that
//   - shapes that do not broadcast are refused, and no others;
//   - every element of every output is written (the address sanitizer checks that nothing else is);
//   - several callers at once, each with several threads, get the same bits as one caller with one thread;
//   - an element that is computed alone has the bits that it has in the batch;
//   - the same call on contiguous operands, with contiguous results, gives the same bits, also of sums of gradients;
//   - elements without an incoming gradient change nothing, whatever values they and their parameters have;
//   - the inverse ends before the limit on its evaluations;
//   - a permutation of rows has each of them once, a part of it equals that part of the whole, and rows are copied
//     unchanged.
//
//   fuzz [--cases N | --seconds S] [--first I] [--seed S] [--callers C] [--threads T]
//
// A case depends on the seed and on its number alone, so --first I --cases 1 runs case I again.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <string>
#include <thread>
#include <vector>

#if defined(_OPENMP)
#include <omp.h>
#endif

#include "cases.h"
#include "cpu/dispatch.h"

using namespace mixflow;

namespace {

constexpr double kMostEvaluations = 4 * (30 + 64);  // the limit in inverse.h: a search that meets it was cut off

// Checks that an axis of the wrong length, and one axis too many, are refused before any element is read.
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

void check_order(Random& random) {
  int64_t count = 1 + random.below(random.chance(0.5) ? 70 : 9000);
  Permutation permutation{static_cast<uint64_t>(count), {}};
  for (uint32_t& key : permutation.keys) key = static_cast<uint32_t>(random.next());
  std::vector<int64_t> whole(count), sorted, positions(random.below(3000)), part(positions.size());
  require(permute_on_cpu(permutation, 0, nullptr, count, whole.data()), "an order was refused");
  sorted = whole;
  std::sort(sorted.begin(), sorted.end());
  for (int64_t i = 0; i < count; ++i) require(sorted[i] == i, "an order does not meet each row once");
  for (int64_t& position : positions) position = random.below(count);
  int64_t size = static_cast<int64_t>(positions.size());
  require(permute_on_cpu(permutation, 0, positions.data(), size, part.data()), "positions were refused");
  for (int64_t i = 0; i < size; ++i) require(part[i] == whole[positions[i]], "a part of an order differs");
  require(permute_on_cpu(permutation, 0, positions.data(), size, positions.data()) && positions == part,
          "an order in place differs");
  int64_t first = random.below(count);
  part.resize(random.below(count - first + 1));
  require(permute_on_cpu(permutation, first, nullptr, static_cast<int64_t>(part.size()), part.data()) &&
              std::equal(part.begin(), part.end(), whole.begin() + first),
          "a stretch of an order differs");
  int64_t outside = random.of({int64_t{-1}, count, std::numeric_limits<int64_t>::min()});
  require(!permute_on_cpu(permutation, 0, &outside, 1, &outside), "a position outside was not refused");
}

void check_rows(Random& random) {
  int64_t width = random.of({1, 4, 8, 12, 16, 20, 24, 28, 32, 40, 48, 64, 100});
  int64_t count = 1 + random.below(300), stride = width + random.of({0, 0, 1, 12});
  std::vector<char> data((count - 1) * stride + width);
  for (char& byte : data) byte = static_cast<char>(random.next());
  std::vector<int64_t> rows(random.below(200));
  for (int64_t& row : rows) row = random.below(count);
  int64_t size = static_cast<int64_t>(rows.size());
  std::vector<char> taken(size * width);
  require(take_rows_on_cpu({data.data(), count, stride, width}, rows.data(), size, taken.data()) == size,
          "rows were refused");
  for (int64_t i = 0; i < size; ++i)
    require(std::equal(taken.begin() + i * width, taken.begin() + (i + 1) * width, data.begin() + rows[i] * stride),
            "a row was not copied as it is");
  if (size == 0) return;
  int64_t bad = random.below(size);
  rows[bad] = random.of({int64_t{-1}, count, std::numeric_limits<int64_t>::min(), std::numeric_limits<int64_t>::max()});
  require(take_rows_on_cpu({data.data(), count, stride, width}, rows.data(), size, taken.data()) == bad,
          "a number that is no row's was not refused");
}

// Returns false if the case was refused, because its batch has too many axes that cannot be merged.
bool check_case(Random& random, int callers, int threads) {
  Case made = make_case(random);
  bool diagnosed = made.op == Op::inverse && !made.is_affine;
  Random apart = random;
  check_order(apart);
  check_rows(apart);
  if (!made.is_affine && random.chance(0.1)) check_refusal(random, made);
  Random layouts = random;
  Outputs expected(made, diagnosed, &layouts);
  if (is_refused(expected.call)) {
    require(made.batch.size() > static_cast<size_t>(kMaxAxes), "shapes that broadcast were refused");
    return false;
  }
  run_on_cpu(make_problem(expected.call), 1);
  if (count(made.batch) > 0) require(expected.are_written(), "an output was left unwritten");
  if (diagnosed)
    for (int64_t i = 0; i < expected.all[2].numbers; ++i)
      require(!(expected.all[2].get(i) >= kMostEvaluations), "the inverse was cut off");

  std::vector<Outputs> others;
  for (int i = 0; i < callers; ++i) {
    layouts = random;
    others.emplace_back(made, diagnosed, &layouts);
  }
  std::vector<std::thread> running;
  for (int i = 1; i < callers; ++i) running.emplace_back([&, i] { run_on_cpu(make_problem(others[i].call), threads); });
  run_on_cpu(make_problem(others[0].call), threads);
  for (std::thread& thread : running) thread.join();
  for (const Outputs& other : others)
    for (size_t j = 0; j < other.all.size(); ++j)
      require(are_same(other.all[j], expected.all[j]), "threads or callers change the result");
  Case compacted = made.compacted();
  Outputs plain(compacted, diagnosed);
  run_on_cpu(make_problem(plain.call), 1);
  for (size_t j = 0; j < plain.all.size(); ++j)
    require(are_same(plain.all[j], expected.all[j]), "the layout changes the result");
  if (count(made.batch) > 0)
    check_alone(random, made, expected, made.op == Op::inverse && !made.is_affine,
                [](const Call& call) { run_on_cpu(make_problem(call), 1); });
  if (is_backward(made.op)) {
    Case bad = poisoned(random, made);
    Outputs unharmed(bad, false);
    run_on_cpu(make_problem(unharmed.call), 1);
    for (size_t j = 0; j < unharmed.all.size(); ++j)
      require(are_same(unharmed.all[j], expected.all[j]), "an element without an incoming gradient is seen");
  }
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
