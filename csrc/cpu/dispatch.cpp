#include "dispatch.h"

#include <pthread.h>
#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <algorithm>
#include <cstdlib>
#include <exception>
#include <numeric>
#include <stdexcept>

#include "cost.h"
#include "kernels.h"

#if defined(MIXFLOW_OPENMP_OF_TORCH)
// The functions that GCC calls for the pragma below. The linker finds them in the OpenMP runtime that torch has loaded,
// if there is one (see CMakeLists.txt).
asm(".weak GOMP_parallel\n"
    ".weak GOMP_loop_nonmonotonic_dynamic_start\n"
    ".weak GOMP_loop_nonmonotonic_dynamic_next\n"
    ".weak GOMP_loop_end_nowait\n"
    ".weak GOMP_critical_start\n"
    ".weak GOMP_critical_end\n");
extern "C" __attribute__((weak)) void GOMP_parallel(void (*)(void*), void*, unsigned, unsigned);
#endif

namespace mixflow {
namespace {

using RunPiece = decltype(&baseline::run_piece);

// The functions that were compiled for an instruction set.
struct Capability {
  const char* name;
  double slowness;
  RunPiece run;
  decltype(&baseline::run_special) run_special;
  decltype(&baseline::bare_loop) bare_loop;
  decltype(&baseline::permute) permute;
  decltype(&baseline::take_rows) take_rows;
};
#define MIXFLOW_CAPABILITY(ARCH)                                                                               \
  Capability {                                                                                                 \
    #ARCH, slowness::ARCH, ARCH::run_piece, ARCH::run_special, ARCH::bare_loop, ARCH::permute, ARCH::take_rows \
  }

struct Build {
  Capability capability;
  bool runs;  // on this processor
};

// The slowest first.
std::vector<Build> builds() {
  std::vector<Build> all{{MIXFLOW_CAPABILITY(baseline), true}};
#if defined(MIXFLOW_HAS_avx2) || defined(MIXFLOW_HAS_avx512)
  __builtin_cpu_init();
#endif
#if defined(MIXFLOW_HAS_avx2)
  all.push_back({MIXFLOW_CAPABILITY(avx2), __builtin_cpu_supports("fma") && __builtin_cpu_supports("avx2")});
#endif
#if defined(MIXFLOW_HAS_avx512)
  all.push_back({MIXFLOW_CAPABILITY(avx512), __builtin_cpu_supports("fma") && __builtin_cpu_supports("avx512f") &&
                                                 __builtin_cpu_supports("avx512dq") &&
                                                 __builtin_cpu_supports("avx512vl") &&
                                                 __builtin_cpu_supports("avx512bw")});
#endif
  return all;
}

std::vector<Capability> available() {
  std::vector<Capability> found;
  for (const auto& build : builds())
    if (build.runs) found.push_back(build.capability);
  return found;
}

const Capability& chosen() {
  static const Capability capability = [] {
    auto found = available();
    const char* wanted = std::getenv("MIXFLOW_CPU_CAPABILITY");
    if (wanted == nullptr || *wanted == '\0') return found.back();
    std::string names;
    for (const auto& candidate : found) {
      if (std::string(candidate.name) == wanted) return candidate;
      names += names.empty() ? candidate.name : std::string(", ") + candidate.name;
    }
    throw std::runtime_error("MIXFLOW_CPU_CAPABILITY: expected one of " + names + " (what this build and this " +
                             "processor have), got " + wanted);
  }();
  return capability;
}

// The many elements of a parameter set are cut into chunks. The number of chunks depends on sizes alone, never on the
// number of threads, so sums are always taken in the same order. Its limit bounds the memory for partial sums (three
// doubles for each component and chunk) to 256 KiB. With very many components there are more, to occupy 16 threads.
constexpr int64_t kChunkLength = 8192, kMaxChunks = 256, kMinChunks = 16, kMostSetsPerPiece = 512;
constexpr int64_t kMaxPartialSums = 256 * 1024 / (3 * sizeof(double));

int64_t chunks_per_set(const Problem& problem) {
  int64_t wanted = (problem.inner.size + kChunkLength - 1) / kChunkLength;
  int64_t allowed = std::clamp(kMaxPartialSums / problem.components, kMinChunks, kMaxChunks);
  return std::max<int64_t>(1, std::min(wanted, allowed / problem.outer.size));
}

template <class T>
void write_gradients(const Problem& problem, int64_t outer, const double* sums) {
  int64_t offset = problem.outer.offset(outer, kGradParameters);
  int64_t step = problem.component_stride[kGradParameters - kLogits];
  for (int j = 0; j < 3; ++j)
    if (T* gradient = static_cast<T*>(problem.gradient(j)))
      for (int k = 0; k < problem.components; ++k) gradient[offset + k * step] = static_cast<T>(sums[3 * k + j]);
}

void write_gradients(const Problem& problem, int64_t outer, const double* sums) {
  if (problem.dtype == Dtype::float32)
    write_gradients<float>(problem, outer, sums);
  else
    write_gradients<double>(problem, outer, sums);
}

// The threads of OpenMP do not exist in a forked child, but libgomp would wait for them forever. So a child uses a
// single thread.
bool is_forked_child = false;
[[maybe_unused]] const int fork_is_noticed = pthread_atfork(nullptr, nullptr, [] { is_forked_child = true; });

// Calls f(i) for i in [0, count), on `threads` threads or on the calling thread alone. A smaller team is not used, even
// if `count` is smaller: libgomp would end the threads that are left over, and start them anew for the next larger
// team, which is torch's.
template <class F>
void parallel_for(int64_t count, int threads, F f) {
#if defined(_OPENMP)
  if (threads > 1 && count > 1 && has_openmp() && !is_forked_child) {
    std::exception_ptr error;  // an exception must not leave the parallel region
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads)
    for (int64_t i = 0; i < count; ++i) {
      try {
        f(i);
      } catch (...) {
#pragma omp critical
        error = std::current_exception();
      }
    }
    if (error) std::rethrow_exception(error);
    return;
  }
#else
  static_cast<void>(threads);
#endif
  for (int64_t i = 0; i < count; ++i) f(i);
}

// Lanes over elements. A piece has several sets with few elements each, or one chunk of a set's many elements.
void run_pieces_of_elements(const Problem& problem, int threads, RunPiece run) {
  size_t sums = problem.has_parameter_gradients() ? 3 * static_cast<size_t>(problem.components) : 0;
  int64_t chunks = chunks_per_set(problem), sets = std::max<int64_t>(1, kChunkLength / problem.inner.size);
  if (chunks == 1) {
    parallel_for((problem.outer.size + sets - 1) / sets, threads, [&](int64_t i) {
      int64_t begin = i * sets, end = std::min(begin + sets, problem.outer.size);
      std::vector<double> own((end - begin) * sums);
      run(problem, {begin, end, 0, problem.inner.size, own.data()});
      for (int64_t outer = begin; sums > 0 && outer < end; ++outer)
        write_gradients(problem, outer, own.data() + (outer - begin) * sums);
    });
    return;
  }
  int64_t length = (problem.inner.size + chunks - 1) / chunks;
  length = (length + kLongestPack - 1) / kLongestPack * kLongestPack;
  std::vector<double> partial(problem.outer.size * chunks * sums);
  parallel_for(problem.outer.size * chunks, threads, [&](int64_t i) {
    int64_t outer = i / chunks, begin = std::min(i % chunks * length, problem.inner.size);
    run(problem, {outer, outer + 1, begin, std::min(begin + length, problem.inner.size), partial.data() + i * sums});
  });
  for (int64_t outer = 0; sums > 0 && outer < problem.outer.size; ++outer) {
    double* first = partial.data() + outer * chunks * sums;
    for (int64_t chunk = 1; chunk < chunks; ++chunk)
      for (size_t i = 0; i < sums; ++i) first[i] += first[chunk * sums + i];
    write_gradients(problem, outer, first);
  }
}

// Lanes over sets. A piece has several sets.
void run_pieces_of_sets(const Problem& problem, int threads, RunPiece run) {
  int64_t sets = std::clamp(kChunkLength / problem.inner.size, kLongestPack, kMostSetsPerPiece);
  parallel_for((problem.outer.size + sets - 1) / sets, threads, [&](int64_t i) {
    int64_t begin = i * sets;
    run(problem, {begin, std::min(begin + sets, problem.outer.size), 0, problem.inner.size, nullptr});
  });
}

// Asks Linux for huge pages (2 MiB) for an output. The memory of a large output is new, and the system provides each
// page when it is first written to. With pages of 4 KiB this takes as long as the forward op itself. Some systems use
// huge pages only where a program asks for them.
void prefer_huge_pages([[maybe_unused]] void* data, [[maybe_unused]] size_t bytes) {
#if defined(MADV_HUGEPAGE)
  constexpr uintptr_t page = 2 << 20;
  uintptr_t begin = (reinterpret_cast<uintptr_t>(data) + page - 1) / page * page;
  uintptr_t end = (reinterpret_cast<uintptr_t>(data) + bytes) / page * page;
  if (data != nullptr && begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
}

// How far it is from the first to the last number of an operand, in numbers.
size_t extent(const Problem& problem, Operand operand) {
  size_t last = 0;
  for (const Axes* axes : {&problem.outer, &problem.inner})
    for (int i = 0; i < axes->count; ++i) last += (axes->axis[i].size - 1) * axes->axis[i].stride[operand];
  if (operand == kGradParameters) last += (problem.components - 1) * problem.component_stride[operand - kLogits];
  return last + 1;
}

void prefer_huge_pages(const Problem& problem) {
  size_t width = problem.dtype == Dtype::float32 ? sizeof(float) : sizeof(double);
  prefer_huge_pages(problem.output, extent(problem, kOutput) * width);
  prefer_huge_pages(problem.ladj, extent(problem, kLadj) * width);
  prefer_huge_pages(problem.grad_upper, extent(problem, kGradUpper) * width);
  for (int j = 0; j < 3; ++j) prefer_huge_pages(problem.gradient(j), extent(problem, kGradParameters) * width);
}

}  // namespace

std::vector<std::string> cpu_builds() {
  std::vector<std::string> names;
  for (const auto& build : builds()) names.emplace_back(build.capability.name);
  return names;
}

std::vector<std::string> cpu_capabilities() {
  std::vector<std::string> names;
  for (const auto& capability : available()) names.emplace_back(capability.name);
  return names;
}

std::string cpu_capability() {
  return chosen().name;
}

bool has_openmp() {
#if defined(MIXFLOW_OPENMP_OF_TORCH)
  return GOMP_parallel != nullptr;
#elif defined(_OPENMP)
  return true;
#else
  return false;
#endif
}

void run_special_on_cpu(int function, Dtype dtype, int64_t size, const void* input, void* output) {
  chosen().run_special(function, dtype, size, input, output);
}

bool permute_on_cpu(const Permutation& permutation, int64_t first, const int64_t* positions, int64_t size,
                    int64_t* result) {
  return chosen().permute(permutation, first, positions, size, result);
}

int64_t take_rows_on_cpu(const Table& table, const int64_t* rows, int64_t size, char* result) {
  return chosen().take_rows(table, rows, size, result);
}

double run_bare_loop(Dtype dtype, int components, int64_t elements, int threads) {
  std::vector<double> results((elements + kChunkLength - 1) / kChunkLength);
  parallel_for(static_cast<int64_t>(results.size()), threads, [&](int64_t i) {
    results[i] = chosen().bare_loop(dtype, components, std::min(kChunkLength, elements - i * kChunkLength));
  });
  return std::accumulate(results.begin(), results.end(), 0.0);
}

int worthwhile_threads(Op op, Dtype dtype, int components, int64_t sets, int64_t elements, int threads) {
  double work = chosen().slowness * estimated_nanoseconds(op, dtype, components, sets, elements);
  return work < kParallelNanoseconds ? 1 : threads;
}

int worthwhile_threads(const Problem& problem, int threads) {
  return worthwhile_threads(problem.op, problem.dtype, problem.components, problem.outer.size, problem.inner.size,
                            threads);
}

void run_on_cpu(const Problem& problem, int threads) {
  if (problem.is_empty()) return;
  prefer_huge_pages(problem);
  if (runs_over_elements(problem))
    run_pieces_of_elements(problem, threads, chosen().run);
  else
    run_pieces_of_sets(problem, threads, chosen().run);
}

}  // namespace mixflow
