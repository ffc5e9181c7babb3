// Rows of training data: the order in which an epoch takes them, and copies of them in that order.
#pragma once

#include <cstdint>

namespace mixflow {

// A permutation of the numbers from 0 to count - 1, which the keys choose.
constexpr int kRounds = 12;
constexpr int64_t kMaxPermuted = int64_t(1) << 62;
struct Permutation {
  uint64_t count;
  uint32_t keys[kRounds];
};

// `count` rows of `width` bytes each. A row begins `stride` bytes after the one before.
struct Table {
  const char* data;
  int64_t count, stride, width;
};

}  // namespace mixflow
