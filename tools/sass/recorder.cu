// The launches that the project's host code makes of an op, on `inner` elements for each of `outer` parameter sets.
#include <algorithm>
#include <cstring>
#include <initializer_list>
#include <stdexcept>
#include <string>

#include "cuda/kernels.cu"
#include "names.h"
#include "plan.h"

using namespace mixflow;

static Array array(void* data, std::initializer_list<int64_t> sizes) {
  Array array;
  array.data = data;
  array.shape.count = array.stride.count = static_cast<int>(sizes.size());
  int64_t stride = 1;
  for (int i = array.shape.count - 1; i >= 0; stride *= array.shape[i--]) {
    array.shape.value[i] = sizes.begin()[i];
    array.stride.value[i] = stride;
  }
  return array;
}

static int index_of(const char* wanted, const std::vector<const char*>& names) {
  auto is_wanted = [&](const char* name) { return std::strcmp(name, wanted) == 0; };
  return static_cast<int>(std::find_if(names.begin(), names.end(), is_wanted) - names.begin());
}

// `data` are the operands in the order of OPERANDS in launch.py, and the workspace. Returns an error's text, or null.
extern "C" const char* record(const char* family, bool backward, int64_t outer, int64_t inner, int components,
                              void* const* data, size_t workspace_bytes) {
  static std::string error;
  Call call{};
  call.op = backward ? Op::backward : Op::forward;
  call.dtype = Dtype::float32;
  call.family = index_of(family, family_names());
  call.base = index_of("normal", base_names());
  call.on_gpu = true;
  for (Array* operand : {&call.input, &call.output}) *operand = array(*data++, {outer, inner});
  for (Array* operand : {&call.logits, &call.loc, &call.log_scale}) *operand = array(*data++, {outer, 1, components});
  if (backward) {
    for (Array* operand : {&call.grad_value, &call.grad_ladj}) *operand = array(*data++, {outer, inner});
    for (Array* operand : {&call.grad_logits, &call.grad_loc, &call.grad_log_scale})
      *operand = array(*data++, {outer, 1, components});
  } else {
    call.ladj = array(*data++, {outer, inner});
  }
  try {
    Problem problem = make_problem(call);
    if (cuda_workspace(problem) > workspace_bytes) throw std::runtime_error("workspace: too small");
    run_on_cuda(problem, 0, nullptr, *data);
  } catch (const std::exception& e) {
    error = e.what();
    return error.c_str();
  }
  return nullptr;
}
