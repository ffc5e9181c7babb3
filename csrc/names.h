// What the compiled core tells Python about itself: the lists of families, bases and special functions, in the order
// that indexes them, and the constants at which a formula gives way to another.
#pragma once

#include <vector>

namespace mixflow {

std::vector<const char*> family_names();
std::vector<const char*> base_names();
std::vector<const char*> special_function_names();

struct Constant {
  const char* name;
  double in_float32, in_float64;
};
std::vector<Constant> constants();

}  // namespace mixflow
