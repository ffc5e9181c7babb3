// From memory to the lanes of a pack and back, whatever the strides.
//
// A pack takes consecutive positions of an index space. For one operand they lie in one of two ways:
//   - evenly, `stride` apart: because the space's axes merge for this operand (it is contiguous, say, or the same number
//     everywhere), or because all lanes happen to lie along the last axis;
//   - in several runs along the last axis, each of them even.
// Each operand is looked at alone, so one with odd strides slows down nothing but itself. A position is carried from one
// pack to the next as its places along the axes, as an odometer counts, since a division takes as long as a component.
#pragma once

#include "../number.h"
#include "../problem.h"

namespace mixflow {
namespace MIXFLOW_ARCH {

MIXFLOW_FN int smaller(int64_t a, int64_t b) {
  return static_cast<int>(a < b ? a : b);
}

// The positions [begin, end) of an index space, `lanes` at a time.
class Walk {
 public:
  Walk(const Axes& axes, int64_t begin, int64_t end, int lanes)
      : axes(axes), last(axes.count - 1), lanes(lanes), begin(begin), end(end) {
    split(begin, place);
    split(lanes, step);
    for (int j = 0; j < kOperands; ++j) {
      bool even = true;
      for (int i = 0; i < last; ++i) even &= axes.axis[i].stride[j] == axes.axis[i + 1].stride[j] * axes.axis[i + 1].size;
      even_operands |= static_cast<unsigned>(even) << j;
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

  // Lanes with a position; the others are past the end.
  MIXFLOW_FN int used() const { return lanes_used; }
  // Whether every lane has a position, and they lie evenly for this operand: from `first` on, `stride` apart.
  MIXFLOW_FN bool is_even(Operand operand) const {
    return lanes_used == lanes && (along_last || (even_operands >> operand & 1) != 0);
  }
  MIXFLOW_FN int64_t stride(Operand operand) const { return axes.axis[last].stride[operand]; }
  MIXFLOW_FN int64_t first(Operand operand) const {
    if ((even_operands >> operand & 1) != 0) return begin * stride(operand);
    int64_t offset = 0;
    for (int i = 0; i <= last; ++i) offset += place[i] * axes.axis[i].stride[operand];
    return offset;
  }

  // visit(lane, count, offset) for each run of lanes: from offset on, stride(operand) apart.
  template <class Visit>
  MIXFLOW_FN void for_runs(Operand operand, Visit visit) const {
    int64_t offset = first(operand), own_stride = stride(operand);
    if (along_last || (even_operands >> operand & 1) != 0) return visit(0, lanes_used, offset);
    int64_t at[kMaxAxes];
    for (int i = 0; i <= last; ++i) at[i] = place[i];
    for (int lane = 0;;) {
      int run = smaller(lanes_used - lane, axes.axis[last].size - at[last]);
      visit(lane, run, offset);
      lane += run;
      if (lane == lanes_used) return;
      offset -= at[last] * own_stride;
      at[last] = 0;
      for (int i = last - 1; i >= 0; --i) {
        offset += axes.axis[i].stride[operand];
        if (++at[i] < axes.axis[i].size) break;
        offset -= at[i] * axes.axis[i].stride[operand];
        at[i] = 0;
      }
    }
  }
  // The offset of every lane; lanes past the end repeat the first.
  MIXFLOW_FN void offsets(Operand operand, int64_t* result) const {
    int64_t own_stride = stride(operand);
    for_runs(operand, [&](int lane, int count, int64_t offset) {
      for (int i = 0; i < count; ++i) result[lane + i] = offset + i * own_stride;
    });
    for (int i = lanes_used; i < lanes; ++i) result[i] = result[0];
  }

 private:
  void split(int64_t index, int64_t* places) const {
    for (int i = last; i > 0; --i) places[i] = Axes::remainder(index, axes.axis[i].size);
    places[0] = index;
  }
  MIXFLOW_FN void look() {
    lanes_used = smaller(lanes, end - begin);
    along_last = place[last] + lanes_used <= axes.axis[last].size;
  }

  const Axes& axes;
  int last, lanes, lanes_used = 0;
  unsigned even_operands = 0;
  bool along_last = false;
  int64_t begin, end, place[kMaxAxes], step[kMaxAxes];
};

// Numbers that are not side by side. Out of line, since they are slow in any case, and the same for every family and op.
template <class V>
__attribute__((noinline)) void gather_apart(const Walk& walk, const Scalar<V>* p, Operand operand, Scalar<V>* values) {
  int64_t stride = walk.stride(operand);
  walk.for_runs(operand, [&](int lane, int count, int64_t offset) {
    for (int i = 0; i < count; ++i) values[lane + i] = p[offset + i * stride];
  });
  for (int i = walk.used(); i < Number<V>::lanes; ++i) values[i] = values[0];
}
template <class V>
__attribute__((noinline)) void scatter_apart(const Walk& walk, Scalar<V>* p, Operand operand, const Scalar<V>* values) {
  int64_t stride = walk.stride(operand);
  walk.for_runs(operand, [&](int lane, int count, int64_t offset) {
    for (int i = 0; i < count; ++i) p[offset + i * stride] = values[lane + i];
  });
}

// One number for each lane, side by side: where they lie, if they lie so, else in `room`. Apart from load(), so that no
// number waits in a register for the one after it: a call would cost it that, and every loop that reads it.
template <class V>
struct Room {
  Scalar<V> values[Number<V>::lanes];
};
template <class V>
MIXFLOW_FN const Scalar<V>* side_by_side(const Walk& walk, const Scalar<V>* p, Operand operand, Room<V>& room) {
  if (walk.is_even(operand) && walk.stride(operand) == 1) return p + walk.first(operand);
  gather_apart<V>(walk, p, operand, room.values);
  return room.values;
}
template <class V>
MIXFLOW_FN void scatter(const Walk& walk, Scalar<V>* p, Operand operand, V x) {
  if (walk.is_even(operand) && walk.stride(operand) == 1) return store(p + walk.first(operand), x);
  Scalar<V> values[Number<V>::lanes];
  store(values, x);
  scatter_apart<V>(walk, p, operand, values);
}

// Rows of which neither neighbouring lanes nor neighbouring numbers of a row follow each other evenly in memory.
template <class V>
__attribute__((noinline)) void gather_columns_apart(const Walk& walk, const Scalar<V>* p, Operand operand, int length,
                                                    int64_t step, V* columns) {
  constexpr int lanes = Number<V>::lanes;
  int64_t at[lanes], stride = walk.stride(operand);
  if (walk.is_even(operand) && (stride == 0 || stride == 1)) {
    const Scalar<V>* first = p + walk.first(operand);
    for (int k = 0; k < length; ++k) columns[k] = stride == 1 ? load<V>(first + k * step) : splat<V>(first[k * step]);
    return;
  }
  walk.offsets(operand, at);
  if (step == 1 && length >= kBlock<V>) {
    for_blocks<V>(length, [&](int k) { load_columns([&](int i, int j) { return p + (at[i + j * kBlock<V>] + k); }, columns + k); });
    return;
  }
  for (int k = 0; k < length; ++k) {
    Scalar<V> values[lanes];
    for (int i = 0; i < lanes; ++i) values[i] = p[at[i] + k * step];
    columns[k] = load<V>(values);
  }
}
template <class V>
__attribute__((noinline)) void scatter_columns_apart(const Walk& walk, Scalar<V>* p, Operand operand, int length,
                                                     int64_t step, const V* columns) {
  constexpr int lanes = Number<V>::lanes;
  int64_t at[lanes];
  if (walk.is_even(operand) && walk.stride(operand) == 1) {
    Scalar<V>* first = p + walk.first(operand);
    for (int k = 0; k < length; ++k) store(first + k * step, columns[k]);
    return;
  }
  walk.offsets(operand, at);
  if (step == 1 && length >= kBlock<V> && walk.used() == lanes) {
    for_blocks<V>(length, [&](int k) { store_columns([&](int i, int j) { return p + (at[i + j * kBlock<V>] + k); }, columns + k); });
    return;
  }
  for (int k = 0; k < length; ++k) {
    Scalar<V> values[lanes];
    store(values, columns[k]);
    for (int i = 0; i < walk.used(); ++i) p[at[i] + k * step] = values[i];
  }
}

// Where rows lie that are `stride` apart. Compilers would compute the addresses of all rows once, before the loop over
// blocks, and keep them in memory, since there are more than registers; so the first is hidden from them.
template <class V, class T>
MIXFLOW_FN auto even_rows(T* first, int64_t stride) {
  asm("" : "+r"(first));
  return [first, stride](int i, int j) { return first + i * stride + j * (kBlock<V> * stride); };
}

// One row of `length` numbers, `step` apart, for each lane, transposed: column k holds number k of every lane's row.
template <class V>
MIXFLOW_FN void gather_columns(const Walk& walk, const Scalar<V>* p, Operand operand, int length, int64_t step,
                               V* columns) {
  int64_t stride = walk.stride(operand);
  if (step != 1 || stride < kBlock<V> || length < kBlock<V> || !walk.is_even(operand))
    return gather_columns_apart(walk, p, operand, length, step, columns);
  const Scalar<V>* first = p + walk.first(operand);
  for_blocks<V>(length, [&](int k) { load_columns(even_rows<V>(first + k, stride), columns + k); });
}
// The reverse.
template <class V>
MIXFLOW_FN void scatter_columns(const Walk& walk, Scalar<V>* p, Operand operand, int length, int64_t step,
                                const V* columns) {
  int64_t stride = walk.stride(operand);
  if (step != 1 || stride < kBlock<V> || length < kBlock<V> || !walk.is_even(operand))
    return scatter_columns_apart(walk, p, operand, length, step, columns);
  Scalar<V>* first = p + walk.first(operand);
  for_blocks<V>(length, [&](int k) { store_columns(even_rows<V>(first + k, stride), columns + k); });
}

}  // namespace MIXFLOW_ARCH
}  // namespace mixflow
