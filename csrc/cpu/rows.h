// Rows of training data: the order in which they are met, and copies of them in that order.
#pragma once

#include <cstdint>

namespace mixflow {

// A permutation of the numbers from 0 to count - 1. At most 2^62 numbers; the keys choose the permutation.
constexpr int kRounds = 12;
constexpr int64_t kMaxPermuted = int64_t(1) << 62;
struct Permutation {
  uint64_t count;
  uint32_t keys[kRounds];
};

// `count` rows of `width` bytes each, one every `stride` bytes.
struct Table {
  const char* data;
  int64_t count, stride, width;
};

}  // namespace mixflow
