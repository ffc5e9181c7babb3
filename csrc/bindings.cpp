// What Python sees: pointers and shapes in, nothing out. Allocation and argument checks with their messages are
// Python's; this file only refuses what would read out of bounds. Arrays of rows come as buffers, which bring their
// shapes and strides along and are held while they are read.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>

#include "cpu/dispatch.h"
#include "names.h"
#include "plan.h"
#if defined(MIXFLOW_CUDA)
#include "cuda/launch.h"
#endif

namespace py = pybind11;
using namespace mixflow;

namespace {

void to_extents(const py::tuple& values, Extents& extents) {
  if (values.size() > kMaxDimensions)
    throw std::invalid_argument("operands: expected at most " + std::to_string(kMaxDimensions) + " axes");
  for (py::handle value : values) extents.value[extents.count++] = value.cast<int64_t>();
}

// (address, shape, strides in elements)
void to_array(const py::tuple& fields, Array& array, bool is_optional) {
  array.data = reinterpret_cast<void*>(fields[0].cast<uintptr_t>());
  if (array.data == nullptr && !is_optional)
    throw std::invalid_argument("operands: expected tensors with memory of their own");
  to_extents(fields[1], array.shape);
  to_extents(fields[2], array.stride);
}

void check_parameters(const Call& call) {
  for (const Array* parameter : {&call.logits, &call.loc, &call.log_scale})
    if (parameter->shape.count == 0 || parameter->shape.back() < 1 ||
        parameter->shape.back() != call.logits.shape.back())
      throw std::invalid_argument(
          "logits, loc, log_scale: expected one last axis of the same length >= 1 in all three");
  if (call.logits.shape.back() > kMaxComponents)
    throw std::invalid_argument("logits: expected at most " + std::to_string(kMaxComponents) + " components; got " +
                                std::to_string(call.logits.shape.back()));
  if (call.family < 0 || call.family >= static_cast<int>(family_names().size()))
    throw std::invalid_argument("family: index out of range");
  if (call.base < 0 || call.base >= static_cast<int>(base_names().size()))
    throw std::invalid_argument("base: index out of range");
}

// `device` is -1 for the CPU, with `stream` the largest number of threads; else a CUDA device index and stream handle.
// What a CUDA kernel needs of memory comes from allocate(bytes), which returns an address.
void execute(Call& call, int device, int64_t stream, [[maybe_unused]] const py::object& allocate = py::none()) {
  check_parameters(call);
  call.on_gpu = device >= 0;
  Problem problem = make_problem(call);
#if defined(MIXFLOW_CUDA)
  void* workspace = nullptr;
  if (size_t bytes = device < 0 ? 0 : cuda_workspace(problem))
    workspace = reinterpret_cast<void*>(allocate(bytes).cast<uintptr_t>());
#endif
  py::gil_scoped_release release;
  if (device < 0) {
    try {
      return run_on_cpu(problem, worthwhile_threads(problem, static_cast<int>(stream)));
    } catch (const std::bad_alloc&) {
      py::gil_scoped_acquire acquire;
      PyErr_Format(PyExc_MemoryError, "logits: not enough memory to work with %d components", problem.components);
      throw py::error_already_set();
    }
  }
#if defined(MIXFLOW_CUDA)
  run_on_cuda(problem, device, reinterpret_cast<void*>(stream), workspace);
#else
  throw std::runtime_error("x: this build of mixflow has no CUDA kernels");
#endif
}

Call make_call(Op op, int family, int base, bool is_double) {
  Call call;
  call.op = op;
  call.dtype = is_double ? Dtype::float64 : Dtype::float32;
  call.family = family;
  call.base = base;
  return call;
}

// Fills the call's arrays from the operands, in the order given; of the last, the gradients, any address may be 0: not
// wanted.
void assign(const py::sequence& operands, std::initializer_list<Array*> arrays,
            std::initializer_list<Array*> gradients = {}) {
  if (operands.size() != arrays.size() + gradients.size())
    throw std::invalid_argument("operands: expected " + std::to_string(arrays.size() + gradients.size()) + "; got " +
                                std::to_string(operands.size()));
  size_t i = 0;
  for (Array* array : arrays) to_array(operands[i++], *array, false);
  for (Array* array : gradients) to_array(operands[i++], *array, true);
}

void map(bool inverse, int family, int base, bool is_double, const py::sequence& operands, int device, int64_t stream) {
  Call call = make_call(inverse ? Op::inverse : Op::forward, family, base, is_double);
  if (inverse && operands.size() == 8)
    assign(operands, {&call.input, &call.logits, &call.loc, &call.log_scale, &call.output, &call.ladj,
                      &call.evaluations, &call.residual});
  else
    assign(operands, {&call.input, &call.logits, &call.loc, &call.log_scale, &call.output, &call.ladj});
  execute(call, device, stream);
}

void map_with_slopes(int family, int base, bool is_double, const py::sequence& operands, int device, int64_t stream) {
  Call call = make_call(Op::forward_with_slopes, family, base, is_double);
  assign(operands, {&call.input, &call.logits, &call.loc, &call.log_scale, &call.output, &call.ladj, &call.slope,
                    &call.ladj_slope});
  execute(call, device, stream);
}

void map_backward(bool inverse, int family, int base, bool is_double, const py::sequence& operands, int device,
                  int64_t stream, const py::object& allocate) {
  Call call = make_call(inverse ? Op::inverse_backward : Op::backward, family, base, is_double);
  assign(operands, {&call.grad_value, &call.grad_ladj, &call.input, &call.logits, &call.loc, &call.log_scale},
         {&call.output, &call.grad_logits, &call.grad_loc, &call.grad_log_scale});
  execute(call, device, stream, allocate);
}

void packed_map(bool inverse, int family, int base, bool is_double, const py::sequence& operands, int device,
                int64_t stream) {
  Call call = make_call(inverse ? Op::inverse : Op::forward, family, base, is_double);
  Array rows;
  assign(operands, {&call.input, &rows, &call.output, &call.ladj});
  set_rows(call, rows);
  execute(call, device, stream);
}

void packed_map_backward(bool inverse, int family, int base, bool is_double, const py::sequence& operands, int device,
                         int64_t stream, const py::object& allocate) {
  Call call = make_call(inverse ? Op::inverse_backward : Op::backward, family, base, is_double);
  Array rows, grad_rows;
  assign(operands, {&call.grad_value, &call.grad_ladj, &call.input, &rows}, {&call.output, &grad_rows});
  set_rows(call, rows);
  set_gradient_rows(call, grad_rows);
  execute(call, device, stream, allocate);
}

void interval(int family, bool is_double, const py::sequence& operands, int device, int64_t stream) {
  Call call = make_call(Op::interval, family, 0, is_double);
  assign(operands, {&call.input, &call.upper, &call.logits, &call.loc, &call.log_scale, &call.output});
  execute(call, device, stream);
}

void interval_backward(int family, bool is_double, const py::sequence& operands, int device, int64_t stream,
                       const py::object& allocate) {
  Call call = make_call(Op::interval_backward, family, 0, is_double);
  assign(operands, {&call.grad_value, &call.input, &call.upper, &call.logits, &call.loc, &call.log_scale},
         {&call.output, &call.grad_upper, &call.grad_logits, &call.grad_loc, &call.grad_log_scale});
  execute(call, device, stream, allocate);
}

int worthwhile(const std::string& op, bool is_double, int components, int64_t sets, int64_t elements, int threads) {
  const std::pair<const char*, Op> ops[] = {{"forward", Op::forward},
                                            {"forward_with_slopes", Op::forward_with_slopes},
                                            {"backward", Op::backward},
                                            {"inverse", Op::inverse},
                                            {"inverse_backward", Op::inverse_backward},
                                            {"interval", Op::interval},
                                            {"interval_backward", Op::interval_backward}};
  for (const auto& [name, value] : ops)
    if (op == name)
      return worthwhile_threads(value, is_double ? Dtype::float64 : Dtype::float32, components, sets, elements,
                                threads);
  throw std::invalid_argument("op: expected the name of an op; got " + op);
}

void special(const std::string& name, bool is_double, int64_t size, uintptr_t input, uintptr_t output) {
  auto names = special_function_names();
  auto found = std::find(names.begin(), names.end(), name);
  if (found == names.end()) throw std::invalid_argument("name: expected one of SPECIAL_FUNCTIONS; got " + name);
  run_special_on_cpu(static_cast<int>(found - names.begin()), is_double ? Dtype::float64 : Dtype::float32, size,
                     reinterpret_cast<const void*>(input), reinterpret_cast<void*>(output));
}

// A buffer of this form, with nothing between neighbours along its last axis.
py::buffer_info view(const char* name, const py::buffer& buffer, ssize_t axes, ssize_t item_size, bool is_written) {
  py::buffer_info info = buffer.request(is_written);
  bool is_dense = info.ndim == axes && (info.shape.back() <= 1 || info.strides.back() == info.itemsize);
  if (!is_dense || (item_size != 0 && info.itemsize != item_size))
    throw std::invalid_argument(std::string(name) + ": expected a dense array of " + std::to_string(axes) +
                                (item_size == 0 ? " axes" : " axes, " + std::to_string(item_size) + " bytes a number"));
  return info;
}

// `positions` are an array, or the first of as many as the result has places.
void permute(const py::buffer& keys, int64_t count, const py::object& positions, const py::buffer& result) {
  py::buffer_info key = view("keys", keys, 1, sizeof(uint32_t), false);
  py::buffer_info to = view("result", result, 1, sizeof(int64_t), true);
  py::buffer_info from;
  int64_t first = 0;
  if (py::isinstance<py::int_>(positions))
    first = positions.cast<int64_t>();
  else
    from = view("positions", positions.cast<py::buffer>(), 1, sizeof(int64_t), false);
  if (key.size != kRounds || (from.ptr != nullptr && from.size != to.size))
    throw std::invalid_argument("keys, result: expected 12 keys, and a place for each position");
  if (count < 0 || count > kMaxPermuted) throw std::invalid_argument("count: expected 0 to 2^62");
  Permutation permutation{static_cast<uint64_t>(count), {}};
  std::copy_n(static_cast<const uint32_t*>(key.ptr), kRounds, permutation.keys);
  py::gil_scoped_release release;
  if (!permute_on_cpu(permutation, first, static_cast<const int64_t*>(from.ptr), to.size,
                      static_cast<int64_t*>(to.ptr)))
    throw std::out_of_range("positions: expected integers from 0 to " + std::to_string(count - 1));
}

void take_rows(const py::buffer& table, const py::buffer& rows, const py::buffer& result) {
  py::buffer_info from = view("table", table, 2, 0, false);
  py::buffer_info numbers = view("rows", rows, 1, sizeof(int64_t), false);
  py::buffer_info to = view("result", result, 2, from.itemsize, true);
  int64_t width = from.shape[1] * from.itemsize;
  bool fits = to.shape[0] == numbers.size && to.shape[1] == from.shape[1] && (to.size == 0 || to.strides[0] == width);
  if (!fits) throw std::invalid_argument("result: expected a dense array of as many rows as numbers");
  const int64_t* row = static_cast<const int64_t*>(numbers.ptr);
  py::gil_scoped_release release;
  int64_t taken = take_rows_on_cpu({static_cast<const char*>(from.ptr), from.shape[0], from.strides[0], width}, row,
                                   numbers.size, static_cast<char*>(to.ptr));
  if (taken < numbers.size)
    throw std::out_of_range("rows: expected numbers from 0 to " + std::to_string(from.shape[0] - 1) + "; got " +
                            std::to_string(row[taken]));
}

template <class Strings>
py::tuple to_tuple(const Strings& values) {
  py::list result;
  for (const auto& value : values) result.append(py::str(value));
  return py::tuple(result);
}

}  // namespace

PYBIND11_MODULE(_core, m) {
  m.doc() = "Fused kernels of the mixture-CDF transform. Use mixflow.ops; this module trusts its caller.";
  m.attr("FAMILIES") = to_tuple(family_names());
  m.attr("BASES") = to_tuple(base_names());
  m.attr("SPECIAL_FUNCTIONS") = to_tuple(special_function_names());
  m.attr("__version__") = MIXFLOW_VERSION;
  m.attr("BUILD") = MIXFLOW_BUILD;
  m.def("map", &map, py::arg("inverse"), py::arg("family"), py::arg("base"), py::arg("is_double"), py::arg("operands"),
        py::arg("device"), py::arg("stream"));
  m.def("map_with_slopes", &map_with_slopes, py::arg("family"), py::arg("base"), py::arg("is_double"),
        py::arg("operands"), py::arg("device"), py::arg("stream"));
  m.def("map_backward", &map_backward, py::arg("inverse"), py::arg("family"), py::arg("base"), py::arg("is_double"),
        py::arg("operands"), py::arg("device"), py::arg("stream"), py::arg("allocate"));
  m.def("packed_map", &packed_map, py::arg("inverse"), py::arg("family"), py::arg("base"), py::arg("is_double"),
        py::arg("operands"), py::arg("device"), py::arg("stream"));
  m.def("packed_map_backward", &packed_map_backward, py::arg("inverse"), py::arg("family"), py::arg("base"),
        py::arg("is_double"), py::arg("operands"), py::arg("device"), py::arg("stream"), py::arg("allocate"));
  m.def("interval", &interval, py::arg("family"), py::arg("is_double"), py::arg("operands"), py::arg("device"),
        py::arg("stream"));
  m.def("interval_backward", &interval_backward, py::arg("family"), py::arg("is_double"), py::arg("operands"),
        py::arg("device"), py::arg("stream"), py::arg("allocate"));
  m.def("special", &special, py::arg("name"), py::arg("is_double"), py::arg("size"), py::arg("input"),
        py::arg("output"));
  m.def("worthwhile_threads", &worthwhile, py::arg("op"), py::arg("is_double"), py::arg("components"), py::arg("sets"),
        py::arg("elements"), py::arg("threads"));
  m.def("permute", &permute, py::arg("keys"), py::arg("count"), py::arg("positions"), py::arg("result"));
  m.def("take_rows", &take_rows, py::arg("table"), py::arg("rows"), py::arg("result"));
  m.def(
      "bare_loop",
      [](bool is_double, int components, int64_t elements, int threads) {
        py::gil_scoped_release release;
        return run_bare_loop(is_double ? Dtype::float64 : Dtype::float32, components, elements, threads);
      },
      py::arg("is_double"), py::arg("components"), py::arg("elements"), py::arg("threads"));
  m.def("cpu_builds", [] { return to_tuple(cpu_builds()); });
  m.def("cpu_capabilities", [] { return to_tuple(cpu_capabilities()); });
  m.def("cpu_capability", &cpu_capability);
  m.def("has_openmp", &has_openmp);
  m.def("cuda_architectures", [] {
#if defined(MIXFLOW_CUDA)
    return std::string(MIXFLOW_CUDA_ARCHITECTURES);
#else
    return std::string();
#endif
  });
}
