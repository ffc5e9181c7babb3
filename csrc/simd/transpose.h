// Rows in memory to columns of packs, and back.
//
// Each lane has a row of numbers in memory; column k is the pack of the k-th numbers of all rows. Rows are moved in
// blocks of 16 bytes, which are kBlock<V> numbers. Blocks are loaded as they lie in memory and transposed in registers,
// so a block of each row gives kBlock<V> columns.
//
// The caller states where the rows lie by a function: the block of lane i + kBlock<V> j lies at row(i, j). The lane has
// these two parts since evenly spaced rows then have few different distances, which the compiler keeps in registers.
//
// The file of an instruction set has
//     load_blocks(row, i, pack), store_blocks(row, i, pack)
//                                 the blocks at row(i, 0), row(i, 1), ..., side by side in a pack
//     unpack_low(a, b), unpack_high(a, b)
//                                 within each 16 bytes, the numbers of the first or the second half of a and of b, in
//                                 turns: a0 b0 a1 b1, or a2 b2 a3 b3
#pragma once

#include "../number.h"

namespace mixflow {
namespace MIXFLOW_ARCH {

template <class V>
constexpr int kBlock = 16 / sizeof(Scalar<V>);

// Number j of block i becomes number i of block j, for each 16 bytes of the packs. Done twice, it changes nothing.
MIXFLOW_FN void transpose_blocks(const PackD (&in)[2], PackD* out) {
  out[0] = unpack_low(in[0], in[1]);
  out[1] = unpack_high(in[0], in[1]);
}
MIXFLOW_FN void transpose_blocks(const PackF (&in)[4], PackF* out) {
  PackD low01 = (PackD)unpack_low(in[0], in[1]), low23 = (PackD)unpack_low(in[2], in[3]);
  PackD high01 = (PackD)unpack_high(in[0], in[1]), high23 = (PackD)unpack_high(in[2], in[3]);
  out[0] = (PackF)unpack_low(low01, low23);
  out[1] = (PackF)unpack_high(low01, low23);
  out[2] = (PackF)unpack_low(high01, high23);
  out[3] = (PackF)unpack_high(high01, high23);
}

// One block of each row to kBlock<V> columns, and back.
template <class Rows, class V>
MIXFLOW_FN void load_columns(Rows row, V* columns) {
  V blocks[kBlock<V>];
  for (int i = 0; i < kBlock<V>; ++i) load_blocks(row, i, blocks[i]);
  transpose_blocks(blocks, columns);
}
template <class Rows, class V>
MIXFLOW_FN void store_columns(Rows row, const V* columns) {
  V in[kBlock<V>], blocks[kBlock<V>];
  for (int i = 0; i < kBlock<V>; ++i) in[i] = columns[i];
  transpose_blocks(in, blocks);
  for (int i = 0; i < kBlock<V>; ++i) store_blocks(row, i, blocks[i]);
}
template <class Rows, class V>
MIXFLOW_FN void load_columns(Rows row, Pair<V>* columns) {
  V a[kBlock<V>], b[kBlock<V>];
  load_columns(row, a);
  load_columns([&](int i, int block) { return row(i, block + Number<V>::lanes / kBlock<V>); }, b);
  for (int i = 0; i < kBlock<V>; ++i) columns[i] = {a[i], b[i]};
}
template <class Rows, class V>
MIXFLOW_FN void store_columns(Rows row, const Pair<V>* columns) {
  V a[kBlock<V>], b[kBlock<V>];
  for (int i = 0; i < kBlock<V>; ++i) {
    a[i] = columns[i].a;
    b[i] = columns[i].b;
  }
  store_columns(row, a);
  store_columns([&](int i, int block) { return row(i, block + Number<V>::lanes / kBlock<V>); }, b);
}

// Calls block(k) for blocks, from number k on, that cover a row of `length` numbers, which are at least kBlock<V>. If
// the last block would reach past the row, it begins earlier and shares numbers with the one before.
template <class V, class Block>
MIXFLOW_FN void for_blocks(int length, Block block) {
  int k = 0;
  for (; k + kBlock<V> <= length; k += kBlock<V>) block(k);
  if (k < length) block(length - kBlock<V>);
}

}  // namespace MIXFLOW_ARCH
}  // namespace mixflow
