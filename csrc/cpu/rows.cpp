// Plain loops, which the compiler vectorises. Compiled once for each instruction set and without the STL, like
// kernels.cpp.
#include "rows.h"

#include <cstring>

#include "kernels.h"

namespace mixflow {
namespace MIXFLOW_ARCH {
namespace {

// The numbers that pass through the rounds together. They stay in the L1 cache.
constexpr int kTogether = 2048;
// The most lanes of 32 bits that an instruction set has. A loop over a multiple of it needs no single steps at its end.
constexpr int kLanes = 16;

// A Feistel network. It splits a number into two halves, of which the left one may have one bit more, and mixes one
// half into the other in turns. It permutes the numbers of so many bits, whatever function does the mixing.
struct Network {
  int low_bits;
  uint32_t high_mask, low_mask;
  uint32_t keys[kRounds];

  explicit Network(const Permutation& permutation) {
    int bits = 2;
    while (bits < 62 && (permutation.count - 1) >> bits != 0) ++bits;
    low_bits = bits / 2;
    high_mask = (uint32_t(1) << (bits - low_bits)) - 1;
    low_mask = (uint32_t(1) << low_bits) - 1;
    memcpy(keys, permutation.keys, sizeof keys);
  }

  static uint32_t mix(uint32_t x) {
    x *= 0x85EBCA6B;
    x ^= x >> 13;
    x *= 0xC2B2AE35;
    return x ^ (x >> 16);
  }

  // A round is a long chain of dependent instructions. So all numbers go through a round before the next one begins.
  void run(uint32_t* __restrict left, uint32_t* __restrict right, int size) const {
    const uint32_t high = high_mask, low = low_mask;
    for (int round = 0; round < kRounds; round += 2) {
      const uint32_t first = keys[round], second = keys[round + 1];
      for (int i = 0; i < size; ++i) {
        uint32_t a = left[i], b = right[i];
        a ^= mix(b + first) & high;
        b ^= mix(a + second) & low;
        left[i] = a;
        right[i] = b;
      }
    }
  }
};

// A width that is known to the compiler is copied by a few instructions. 0 stands for any width.
template <int width>
int64_t take_rows_of(const Table& table, const int64_t* rows, int64_t size, char* result) {
  constexpr int64_t ahead = 24;  // saves a tenth to a fifth of the time if the table does not fit in the caches
  const int64_t bytes = width == 0 ? table.width : width;
  for (int64_t i = 0; i < size; ++i) {
    if (static_cast<uint64_t>(rows[i]) >= static_cast<uint64_t>(table.count)) return i;
    // The address may be out of range, which does no harm: a prefetch never faults.
    uintptr_t offset = static_cast<uintptr_t>(rows[i + ahead < size ? i + ahead : i]) * table.stride;
    __builtin_prefetch(reinterpret_cast<const void*>(reinterpret_cast<uintptr_t>(table.data) + offset));
    memcpy(result + i * bytes, table.data + rows[i] * table.stride, bytes);
  }
  return size;
}

}  // namespace

// After Black and Rogaway, "Ciphers with Arbitrary Finite Domains", 2002. The network permutes the numbers below a
// power of two. A number that it sends out of [0, count) is sent through it again until it is back. It does come back,
// since it lies on a cycle with the position from which it started. From a position outside there may be no way in, so
// such a position is refused.
bool permute(const Permutation& permutation, int64_t first, const int64_t* positions, int64_t size, int64_t* result) {
  const Network network(permutation);
  const int64_t count = static_cast<int64_t>(permutation.count);
  uint32_t left[kTogether] = {}, right[kTogether] = {};
  uint16_t strays[kTogether];
  for (int64_t begin = 0; begin < size; begin += kTogether) {
    const int used = static_cast<int>(size - begin < kTogether ? size - begin : kTogether);
    int64_t* block = result + begin;
    // Sends the numbers at these places through the network, and lists the places of those that are outside then.
    auto send = [&](int places, auto place) {
      for (int i = 0; i < places; ++i) {
        uint64_t value = static_cast<uint64_t>(block[place(i)]);
        left[i] = static_cast<uint32_t>(value >> network.low_bits);
        right[i] = static_cast<uint32_t>(value) & network.low_mask;
      }
      network.run(left, right, (places + kLanes - 1) / kLanes * kLanes);
      for (int i = 0; i < places; ++i)
        block[place(i)] = static_cast<int64_t>((static_cast<uint64_t>(left[i]) << network.low_bits) | right[i]);
      int outside = 0;
      for (int i = 0; i < places; ++i) {
        int at = place(i);
        strays[outside] = static_cast<uint16_t>(at);
        outside += block[at] >= count;
      }
      return outside;
    };
    if (positions != nullptr)
      memmove(block, positions + begin, used * sizeof(int64_t));
    else
      for (int i = 0; i < used; ++i) block[i] = first + begin + i;
    uint64_t signs = 0;  // the sign bit is set by a negative number, or by one beyond the last
    for (int i = 0; i < used; ++i) signs |= static_cast<uint64_t>(block[i]) | (permutation.count - 1 - block[i]);
    if (signs >> 63 != 0) return false;
    int outside = send(used, [](int i) { return i; });
    while (outside > 0) outside = send(outside, [&](int i) { return strays[i]; });
  }
  return true;
}

int64_t take_rows(const Table& table, const int64_t* rows, int64_t size, char* result) {
  switch (table.width) {
#define MIXFLOW_CASE(WIDTH) \
  case WIDTH:               \
    return take_rows_of<WIDTH>(table, rows, size, result);
    MIXFLOW_CASE(4)
    MIXFLOW_CASE(8)
    MIXFLOW_CASE(12)
    MIXFLOW_CASE(16)
    MIXFLOW_CASE(20)
    MIXFLOW_CASE(24)
    MIXFLOW_CASE(32)
    MIXFLOW_CASE(40)
    MIXFLOW_CASE(48)
    MIXFLOW_CASE(64)
#undef MIXFLOW_CASE
  }
  return take_rows_of<0>(table, rows, size, result);
}

}  // namespace MIXFLOW_ARCH
}  // namespace mixflow
