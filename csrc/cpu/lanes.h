// From memory to the lanes of a pack and back, whatever the strides.
//
// The lanes of a pack are consecutive positions of an index space. In memory, the numbers of one operand at these
// positions lie in one of two ways:
//   - evenly, `stride` apart. Either the axes of the space merge for this operand (it is contiguous, for example), or
//   all
//     lanes lie along the last axis;
//   - in several runs along the last axis. Each run is even.
// Each operand is treated by itself, so an operand with unusual strides does not slow down the others.
#pragma once

#include "../problem.h"
#include "../simd/transpose.h"

namespace mixflow {
namespace MIXFLOW_ARCH {

MIXFLOW_FN int smaller(int64_t a, int64_t b) {
  return static_cast<int>(a < b ? a : b);
}

// Calls move(run, i) for each of `runs` runs and each i in [0, length). The compiler unrolls the loop over i for the
// shortest lengths, which narrow matrices have.
template <int length, class Move>
MIXFLOW_FN void move_short_runs(int runs, Move move) {
  for (int run = 0; run < runs; ++run)
    for (int i = 0; i < length; ++i) move(run, i);
}
template <class Move>
MIXFLOW_FN void move_runs(int runs, int length, Move move) {
  switch (length) {
    case 1:
      return move_short_runs<1>(runs, move);
    case 2:
      return move_short_runs<2>(runs, move);
    case 3:
      return move_short_runs<3>(runs, move);
    case 4:
      return move_short_runs<4>(runs, move);
    default:
      for (int run = 0; run < runs; ++run)
        for (int i = 0; i < length; ++i) move(run, i);
  }
}

// A walk over the positions [begin, end) of an index space, `lanes` at a time.
//
// The walk keeps its position as one index for each axis, and counts as an odometer does: an integer division takes as
// long as a component.
class Walk {
 public:
  Walk(const Axes& axes, int64_t begin, int64_t end, int lanes)
      : axes(axes), last(axes.count - 1), lanes(lanes), begin(begin), end(end) {
    split(begin, place);
    split(lanes, step);
    for (int j = 0; j < kOperands; ++j) {
      bool even = true;
      for (int i = 0; i < last; ++i)
        even &= axes.axis[i].stride[j] == axes.axis[i + 1].stride[j] * axes.axis[i + 1].size;
      even_operands |= static_cast<unsigned>(even) << j;
      dense_operands |= static_cast<unsigned>(stride(static_cast<Operand>(j)) == 1) << j;
    }
    look();
  }

  MIXFLOW_FN bool is_done() const { return begin >= end; }
  MIXFLOW_FN void advance() {
    begin += lanes;
    if (last == 0) {
      place[0] = begin;
    } else {
      bool carry = false;
      for (int i = last; i >= 0; --i) {
        place[i] += step[i] + carry;
        carry = i > 0 && place[i] >= axes.axis[i].size;
        if (carry) place[i] -= axes.axis[i].size;
      }
    }
    look();
  }

  // The number of lanes that have a position. The others are past the end.
  MIXFLOW_FN int used() const { return lanes_used; }
  // Whether every lane has a position, and the operand's numbers lie evenly: from offset `first` on, `stride` apart.
  MIXFLOW_FN bool is_even(Operand operand) const { return (even_now >> operand & 1) != 0; }
  MIXFLOW_FN bool is_side_by_side(Operand operand) const { return (even_now & dense_operands) >> operand & 1; }
  MIXFLOW_FN int64_t stride(Operand operand) const { return axes.axis[last].stride[operand]; }
  MIXFLOW_FN int64_t first(Operand operand) const {
    if ((even_operands >> operand & 1) != 0) return begin * stride(operand);
    int64_t offset = 0;
    for (int i = 0; i <= last; ++i) offset += place[i] * axes.axis[i].stride[operand];
    return offset;
  }

  // Whether two operands have the same strides, and so the same offsets.
  MIXFLOW_FN bool lie_alike(Operand a, Operand b) const {
    bool alike = true;
    for (int i = 0; i <= last; ++i) alike &= axes.axis[i].stride[a] == axes.axis[i].stride[b];
    return alike;
  }
  // Calls visit(lane, runs, length, offset, next) for groups of runs that together cover all lanes. A group begins at
  // lane `lane` and has `runs` runs of `length` lanes each. The first run begins at `offset`, and each further one
  // `next` beyond the one before. The numbers of a run are stride(operand) apart.
  template <class Visit>
  MIXFLOW_FN void for_runs(Operand operand, Visit visit) const {
    int64_t offset = first(operand);
    if (along_last || (even_operands >> operand & 1) != 0) return visit(0, 1, lanes_used, offset, 0);
    int64_t length = axes.axis[last].size, at[kMaxAxes];
    for (int i = 0; i < last; ++i) at[i] = place[i];
    int lane = smaller(length - place[last], lanes_used);
    visit(0, 1, lane, offset, 0);
    offset -= place[last] * stride(operand);  // where the run's axis begins
    const Axis& outside = axes.axis[last - 1];
    int64_t next = outside.stride[operand], left = outside.size - at[last - 1] - 1;
    while (lane < lanes_used) {
      if (left == 0) {
        left = outside.size;
        offset -= (left - 1) * next;
        for (int i = last - 2; i >= 0; --i) {
          offset += axes.axis[i].stride[operand];
          if (++at[i] < axes.axis[i].size) break;
          offset -= at[i] * axes.axis[i].stride[operand];
          at[i] = 0;
        }
        offset -= next;
      }
      int rest = lanes_used - lane, count = smaller(length, rest), runs = 1;
      if (length <= 16 && rest >= length) runs = smaller(rest / static_cast<int>(length), left);
      visit(lane, runs, count, offset + next, next);
      lane += runs * count;
      left -= runs;
      offset += runs * next;
    }
  }
  // The offset of every lane. Lanes past the end get that of the first lane.
  MIXFLOW_FN void offsets(Operand operand, int64_t* result) const {
    int64_t own_stride = stride(operand);
    for_runs(operand, [&](int lane, int runs, int length, int64_t offset, int64_t next) {
      move_runs(runs, length,
                [=](int run, int i) { result[lane + run * length + i] = offset + run * next + i * own_stride; });
    });
    for (int i = lanes_used; i < lanes; ++i) result[i] = result[0];
  }

 private:
  void split(int64_t index, int64_t* places) const {
    for (int i = last; i > 0; --i) places[i] = Axes::remainder(index, axes.axis[i].size);
    places[0] = index;
  }
  MIXFLOW_FN void look() {
    lanes_used = begin < end ? smaller(lanes, end - begin) : 0;
    along_last = place[last] + lanes_used <= axes.axis[last].size;
    even_now = lanes_used < lanes ? 0 : along_last ? ~0u : even_operands;
  }

  const Axes& axes;
  int last, lanes, lanes_used = 0;
  unsigned even_operands = 0, dense_operands = 0, even_now = 0;  // a bit for each operand
  bool along_last = false;
  int64_t begin, end, place[kMaxAxes], step[kMaxAxes];
};

// Copies numbers that are not side by side in memory to `values`, and back. Not inlined: copying is slow in any case,
// and the functions are the same for every family and op. Lanes past the end get the number of the first lane, so that
// they do ordinary work.
template <class T>
__attribute__((noinline)) void gather_apart(const Walk& walk, const T* p, Operand operand, T* values, int room) {
  int64_t stride = walk.stride(operand);
  walk.for_runs(operand, [&](int lane, int runs, int length, int64_t offset, int64_t next) {
    T* to = values + lane;
    const T* from = p + offset;
    move_runs(runs, length, [=](int run, int i) { to[run * length + i] = from[run * next + i * stride]; });
  });
  for (int i = walk.used(); i < room; ++i) values[i] = values[0];
}
template <class T>
__attribute__((noinline)) void scatter_apart(const Walk& walk, T* p, Operand operand, const T* values) {
  int64_t stride = walk.stride(operand);
  walk.for_runs(operand, [&](int lane, int runs, int length, int64_t offset, int64_t next) {
    T* to = p + offset;
    const T* from = values + lane;
    move_runs(runs, length, [=](int run, int i) { to[run * next + i * stride] = from[run * length + i]; });
  });
}

// Memory for the numbers of one operand at the positions of a walk. It is used only if the numbers are not side by side
// in the operand's own memory.
template <class T, int length>
struct Room {
  alignas(64) T values[length];

  // Returns where the numbers are side by side. The caller loads packs from there some time later: a processor stalls
  // on a load that is wider than a store just before it.
  MIXFLOW_FN const T* read(const Walk& walk, const void* data, int64_t offset, Operand operand) {
    const T* p = static_cast<const T*>(data) + offset;
    if (walk.is_side_by_side(operand)) return p + walk.first(operand);
    gather_apart(walk, p, operand, values, length);
    return values;
  }
  // Returns where to write numbers, or null if `data` is null. done() brings them to where they belong.
  MIXFLOW_FN T* write(const Walk& walk, void* data, int64_t offset, Operand operand) {
    if (data == nullptr) return nullptr;
    return walk.is_side_by_side(operand) ? static_cast<T*>(data) + offset + walk.first(operand) : values;
  }
  MIXFLOW_FN void done(const Walk& walk, void* data, int64_t offset, Operand operand) const {
    if (data == nullptr || walk.is_side_by_side(operand)) return;
    scatter_apart(walk, static_cast<T*>(data) + offset, operand, values);
  }
};

// The addresses of rows that are `stride` apart, as transpose.h takes them. The compiler would compute all of them
// once, before the loop over blocks, and keep them in memory, since there are more rows than registers. The empty asm
// keeps it from that: the compiler must assume that the values change there.
template <class V, class T>
MIXFLOW_FN auto even_rows(T* first, int64_t stride) {
  asm("" : "+r"(first), "+r"(stride));
  return [first, stride](int i, int j) { return first + i * stride + j * (kBlock<V> * stride); };
}

// Moves the rows of an operand to columns and back. Each lane, at its position of a walk, has a row of `length`
// numbers, which are `step` apart. Column k holds number k of every lane's row.
template <class V>
class Columns {
  using T = Scalar<V>;
  static constexpr int lanes = Number<V>::lanes;

 public:
  Columns(const Walk& walk, int length) : walk(walk), length(length) {}

  MIXFLOW_FN void gather(const T* p, Operand operand, int64_t step, V* columns) {
    if (!are_even_rows(operand, step)) return gather_apart(p, operand, step, columns);
    const T* first = p + walk.first(operand);
    int64_t stride = walk.stride(operand);
    for_blocks<V>(length, [&](int k) { load_columns(even_rows<V>(first + k, stride), columns + k); });
  }
  MIXFLOW_FN void scatter(T* p, Operand operand, int64_t step, const V* columns) {
    if (!are_even_rows(operand, step)) return scatter_apart(p, operand, step, columns);
    T* first = p + walk.first(operand);
    int64_t stride = walk.stride(operand);
    for_blocks<V>(length, [&](int k) { store_columns(even_rows<V>(first + k, stride), columns + k); });
  }

 private:
  MIXFLOW_FN bool are_even_rows(Operand operand, int64_t step) const {
    return step == 1 && length >= kBlock<V> && walk.stride(operand) >= kBlock<V> && walk.is_even(operand);
  }
  // Finds the offset of each lane's row. It is kept for the next operand, if that has the same strides.
  MIXFLOW_FN void find(Operand operand) {
    if (known == kOperands || !walk.lie_alike(known, operand)) walk.offsets(operand, at);
    known = operand;
  }
  __attribute__((noinline)) void gather_apart(const T* p, Operand operand, int64_t step, V* columns) {
    if (walk.is_side_by_side(operand)) {
      const T* first = p + walk.first(operand);
      for (int k = 0; k < length; ++k) columns[k] = load<V>(first + k * step);
      return;
    }
    find(operand);
    if (step == 1 && length >= kBlock<V>) {
      for_blocks<V>(length, [&](int k) {
        load_columns([&](int i, int j) { return p + (at[i + j * kBlock<V>] + k); }, columns + k);
      });
      return;
    }
    for (int k = 0; k < length; ++k) {
      T values[lanes];
      for (int i = 0; i < lanes; ++i) values[i] = p[at[i] + k * step];
      columns[k] = load<V>(values);
    }
  }
  __attribute__((noinline)) void scatter_apart(T* p, Operand operand, int64_t step, const V* columns) {
    if (walk.is_side_by_side(operand)) {
      T* first = p + walk.first(operand);
      for (int k = 0; k < length; ++k) store(first + k * step, columns[k]);
      return;
    }
    find(operand);
    if (step == 1 && length >= kBlock<V> && walk.used() == lanes) {
      for_blocks<V>(length, [&](int k) {
        store_columns([&](int i, int j) { return p + (at[i + j * kBlock<V>] + k); }, columns + k);
      });
      return;
    }
    for (int k = 0; k < length; ++k) {
      T values[lanes];
      store(values, columns[k]);
      for (int i = 0; i < walk.used(); ++i) p[at[i] + k * step] = values[i];
    }
  }

  const Walk& walk;
  int length;
  Operand known = kOperands;
  int64_t at[lanes];
};

// Prefetches the rows at the positions of a walk, which is ahead of the walk that loads or stores them. The prefetcher
// of the processor follows accesses in order, but rows are accessed in blocks, out of order. Rows that do not follow
// each other in memory are not prefetched: a prefetch for each of them takes longer than it saves.
template <bool for_writing, class T>
MIXFLOW_FN void prefetch_rows(const Walk& walk, const T* p, Operand operand, int length, int64_t step) {
  constexpr int line = 64 / sizeof(T);
  int64_t stride = walk.stride(operand);
  if (step != 1 || !walk.is_even(operand) || stride < 1 || stride >= length + line) return;
  const T* first = p + walk.first(operand);
  for (int64_t i = 0; i < walk.used() * stride; i += line) __builtin_prefetch(first + i, for_writing);
}

}  // namespace MIXFLOW_ARCH
}  // namespace mixflow
