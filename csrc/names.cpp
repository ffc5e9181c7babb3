#include "names.h"

#define MIXFLOW_ARCH registry
#include "bases.h"
#include "families.h"

namespace mixflow {

#define MIXFLOW_NAME(TYPE) registry::TYPE::name,
std::vector<const char*> family_names() {
  return {MIXFLOW_FAMILIES(MIXFLOW_NAME)};
}
std::vector<const char*> base_names() {
  return {MIXFLOW_BASES(MIXFLOW_NAME)};
}
#undef MIXFLOW_NAME
#define MIXFLOW_NAME(FUNCTION) #FUNCTION,
std::vector<const char*> special_function_names() {
  return {MIXFLOW_SPECIAL_FUNCTIONS(MIXFLOW_NAME)};
}
#undef MIXFLOW_NAME

}  // namespace mixflow
