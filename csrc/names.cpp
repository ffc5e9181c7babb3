#include "names.h"

#define MIXFLOW_ARCH registry
#include "inverse.h"

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

std::vector<Constant> constants() {
  using namespace registry;
  using F = LinearRange<float>;
  using D = LinearRange<double>;
  return {
      {"linear_smallest", F::smallest, D::smallest},
      {"linear_largest", F::largest, D::largest},
      {"linear_least_log_scale", F::least_log_scale, D::least_log_scale},
      {"linear_most_log_scale", F::most_log_scale, D::most_log_scale},
      {"probit_split", probit_split<float>, probit_split<double>},
      {"probit_far", probit_limit<float>, probit_far_piece * probit_far_piece},
      {"probit_limit", probit_limit<float>, probit_limit<double>},
      {"exp_flush", Constants<float>::exp_flush, Constants<double>::exp_flush},
      {"exp_lowest", Constants<float>::exp_lowest, Constants<double>::exp_lowest},
      {"exp_highest", Constants<float>::exp_highest, Constants<double>::exp_highest},
      {"normal_window_reach", normal_window_reach, normal_window_reach},
      {"narrow_width", Gaussian::narrow_width, Gaussian::narrow_width},
      {"most_evaluations", kMaxEvaluations, kMaxEvaluations},
  };
}

}  // namespace mixflow
