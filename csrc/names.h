// The registries of families, bases and special functions as lists of names, in the order that indexes them.
#pragma once

#include <vector>

namespace mixflow {
std::vector<const char*> family_names();
std::vector<const char*> base_names();
std::vector<const char*> special_function_names();
}  // namespace mixflow
