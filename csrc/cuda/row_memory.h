// Rows of parameters between memory and shared memory, however they lie in memory.
#pragma once

#include "../mixture.h"
#include "../problem.h"
#include "device.h"

namespace mixflow {
namespace MIXFLOW_ARCH {
namespace {

// The numbers that a thread moves at once: 16 bytes, if the addresses allow it.
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

// How rows of parameters lie in shared memory, and in the memory that they come from and go to. The host finds this out
// once, for all blocks.
struct Rows {
  int length, pitch;        // odd: threads that read the same place of their rows then use different banks
  uint32_t inverse_length;  // 2^31 / length, rounded up
  bool whole_vectors;       // no vector of 16 bytes reaches from one row into the next
  Way load, store;

  // i / length, for any i that fits in shared memory. A division would take twenty instructions.
  MIXFLOW_FN int row_of(int i) const {
    return static_cast<int>((uint64_t(2 * static_cast<uint32_t>(i)) * inverse_length) >> 32);
  }
  MIXFLOW_FN int place_of(int i) const { return i + (pitch - length) * row_of(i); }
  // Calls use(j, place) for the numbers i + j, j < width, of consecutive rows, with their places in shared memory.
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

// How the arrays `data` lie, whose rows begin at the outer offsets of `operands`. An array that does not exist is null.
template <class T>
Way way_of(const Problem& problem, const void* const (&data)[3], const Operand (&operands)[3], const int64_t* steps) {
  const Axes& axes = problem.outer;
  bool in_one = axes.count == 1;
  for (int p = 0; p < 3; ++p) {
    if (data[p] == nullptr) continue;
    if (steps[p] != 1 && problem.components > 1) return {Way::by_threads, 1};
    in_one = in_one && (axes.axis[0].stride[operands[p]] == problem.components || axes.size == 1);
  }
  // The address of a vector must be a multiple of its size. In rows without gaps between them, a vector may reach from
  // one row into the next.
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

// The first `size` numbers of three arrays, from number `first` on, to rows in shared memory, which for each array are
// `step` apart, and back. The last vector may reach past the data. Its extra numbers go to unused rows of shared
// memory, which a block that is not full always has.
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

// The same for rows that lie anywhere: row r of array p begins at offsets[p * blockDim.x + r].
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

// Whether the parameters have this operand.
MIXFLOW_FN constexpr bool is_parameter(Operand operand) {
  return operand == kLogits || operand == kLoc || operand == kLogScale;
}
// Moves `count` rows of each parameter, from row `begin` on, to shared memory. `offsets` has room for three numbers of
// each thread.
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
// Moves rows of gradients back.
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

}  // namespace
}  // namespace MIXFLOW_ARCH
}  // namespace mixflow
