// The Python module mixflow._core: addresses and shapes in, nothing out.
//
// Python allocates all memory, and checks arguments with messages for users. This file only refuses what would read out
// of bounds. Rows of training data come as Python buffers, which have shapes and strides, and which Python keeps alive
// while they are read.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <map>
#include <string>
#include <vector>

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

// From a tuple of address, shape and strides (in elements).
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
    throw std::invalid_argument("logits: expected at most " + std::to_string(kMaxComponents) + " components, got " +
                                std::to_string(call.logits.shape.back()));
  if (call.family < 0 || call.family >= static_cast<int>(family_names().size()))
    throw std::invalid_argument("family: index out of range");
  if (call.base < 0 || call.base >= static_cast<int>(base_names().size()))
    throw std::invalid_argument("base: index out of range");
}

// A call as Python makes it. Some kernels take the parameters of a set, and its gradients, as one row.
struct PythonCall : Call {
  Array rows, grad_rows;
};

// An operand that Python passes: its name, and where it goes in a call.
struct NamedOperand {
  const char* name;
  Array PythonCall::* array;
};
using Operands = std::vector<NamedOperand>;
Operands operator+(Operands a, const Operands& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}
// The operands of a kernel, in the order in which Python passes them. The addresses of gradients may be 0, which means
// that they are not wanted.
struct Signature {
  Operands required, gradients;
};

// The signatures of all kernels by name. Nothing else in C++ depends on the order of operands.
std::map<std::string, Signature> make_signatures() {
  const Operands parameters{{"logits", &Call::logits}, {"loc", &Call::loc}, {"log_scale", &Call::log_scale}};
  const Operands grad_parameters{
      {"grad_logits", &Call::grad_logits}, {"grad_loc", &Call::grad_loc}, {"grad_log_scale", &Call::grad_log_scale}};
  const Operands outputs{{"value", &Call::output}, {"ladj", &Call::ladj}};
  const Operands grad_outputs{{"grad_value", &Call::grad_value}, {"grad_ladj", &Call::grad_ladj}};
  const Operands slopes{{"slope", &Call::slope}, {"ladj_slope", &Call::ladj_slope}};
  const Operands diagnostics{{"evaluations", &Call::evaluations}, {"residual", &Call::residual}};
  const Operands x{{"x", &Call::input}}, grad_x{{"grad_x", &Call::output}};
  const Operands rows{{"rows", &PythonCall::rows}}, grad_rows{{"grad_rows", &PythonCall::grad_rows}};
  const Operands edges{{"lower", &Call::input}, {"upper", &Call::upper}};
  const Operands grad_edges{{"grad_lower", &Call::output}, {"grad_upper", &Call::grad_upper}};
  const Operands log_prob{{"log_prob", &Call::output}}, grad_log_prob{{"grad_log_prob", &Call::grad_value}};
  return {{"map", {x + parameters + outputs, {}}},
          {"map_with_diagnostics", {x + parameters + outputs + diagnostics, {}}},
          {"map_with_slopes", {x + parameters + outputs + slopes, {}}},
          {"map_backward", {grad_outputs + x + parameters, grad_x + grad_parameters}},
          {"packed_map", {x + rows + outputs, {}}},
          {"packed_map_backward", {grad_outputs + x + rows, grad_x + grad_rows}},
          {"interval", {edges + parameters + log_prob, {}}},
          {"interval_backward", {grad_log_prob + edges + parameters, grad_edges + grad_parameters}}};
}
const std::map<std::string, Signature> signatures = make_signatures();

void assign(PythonCall& call, const Signature& signature, const py::sequence& operands) {
  size_t expected = signature.required.size() + signature.gradients.size(), i = 0;
  if (operands.size() != expected)
    throw std::invalid_argument("operands: expected " + std::to_string(expected) + ", got " +
                                std::to_string(operands.size()));
  for (const NamedOperand& operand : signature.required) to_array(operands[i++], call.*operand.array, false);
  for (const NamedOperand& operand : signature.gradients) to_array(operands[i++], call.*operand.array, true);
  if (call.rows.shape.count > 0) set_rows(call, call.rows);
  if (call.grad_rows.shape.count > 0) set_gradient_rows(call, call.grad_rows);
}

// What all kernels take from Python.
struct Arguments {
  int family, base;
  bool is_double;
  const py::sequence& operands;
  int device;      // of CUDA, or -1 for the CPU
  int64_t stream;  // of CUDA
  int threads;     // at most so many on the CPU
};

// Runs an op. `allocate(bytes)` returns the address of memory that a CUDA kernel needs beside the operands.
void execute(Op op, const Signature& signature, const Arguments& arguments,
             [[maybe_unused]] const py::object& allocate = py::none()) {
  PythonCall call;
  call.op = op;
  call.dtype = arguments.is_double ? Dtype::float64 : Dtype::float32;
  call.family = arguments.family;
  call.base = arguments.base;
  call.on_gpu = arguments.device >= 0;
  assign(call, signature, arguments.operands);
  check_parameters(call);
  Problem problem = make_problem(call);
#if defined(MIXFLOW_CUDA)
  void* workspace = nullptr;
  if (size_t bytes = call.on_gpu ? cuda_workspace(problem) : 0)
    workspace = reinterpret_cast<void*>(allocate(bytes).cast<uintptr_t>());
#endif
  py::gil_scoped_release release;
  if (!call.on_gpu) {
    try {
      return run_on_cpu(problem, worthwhile_threads(problem, arguments.threads));
    } catch (const std::bad_alloc&) {
      py::gil_scoped_acquire acquire;
      PyErr_Format(PyExc_MemoryError, "logits: not enough memory to work with %d components", problem.components);
      throw py::error_already_set();
    }
  }
#if defined(MIXFLOW_CUDA)
  run_on_cuda(problem, arguments.device, reinterpret_cast<void*>(arguments.stream), workspace);
#else
  throw std::runtime_error("x: this build of mixflow has no CUDA kernels");
#endif
}

void map(bool inverse, int family, int base, bool is_double, const py::sequence& operands, int device, int64_t stream,
         int threads) {
  static const Signature &plain = signatures.at("map"), &diagnosed = signatures.at("map_with_diagnostics");
  bool has_diagnostics = inverse && operands.size() == diagnosed.required.size();
  execute(inverse ? Op::inverse : Op::forward, has_diagnostics ? diagnosed : plain,
          {family, base, is_double, operands, device, stream, threads});
}

void map_with_slopes(int family, int base, bool is_double, const py::sequence& operands, int device, int64_t stream,
                     int threads) {
  static const Signature& own = signatures.at("map_with_slopes");
  execute(Op::forward_with_slopes, own, {family, base, is_double, operands, device, stream, threads});
}

void map_backward(bool inverse, int family, int base, bool is_double, const py::sequence& operands, int device,
                  int64_t stream, int threads, const py::object& allocate) {
  static const Signature& own = signatures.at("map_backward");
  execute(inverse ? Op::inverse_backward : Op::backward, own,
          {family, base, is_double, operands, device, stream, threads}, allocate);
}

void packed_map(bool inverse, int family, int base, bool is_double, const py::sequence& operands, int device,
                int64_t stream, int threads) {
  static const Signature& own = signatures.at("packed_map");
  execute(inverse ? Op::inverse : Op::forward, own, {family, base, is_double, operands, device, stream, threads});
}

void packed_map_backward(bool inverse, int family, int base, bool is_double, const py::sequence& operands, int device,
                         int64_t stream, int threads, const py::object& allocate) {
  static const Signature& own = signatures.at("packed_map_backward");
  execute(inverse ? Op::inverse_backward : Op::backward, own,
          {family, base, is_double, operands, device, stream, threads}, allocate);
}

void interval(int family, bool is_double, const py::sequence& operands, int device, int64_t stream, int threads) {
  static const Signature& own = signatures.at("interval");
  execute(Op::interval, own, {family, 0, is_double, operands, device, stream, threads});
}

void interval_backward(int family, bool is_double, const py::sequence& operands, int device, int64_t stream,
                       int threads, const py::object& allocate) {
  static const Signature& own = signatures.at("interval_backward");
  execute(Op::interval_backward, own, {family, 0, is_double, operands, device, stream, threads}, allocate);
}

int worthwhile(const std::string& op, bool is_double, int components, int64_t sets, int64_t elements, int threads) {
  for (const NamedOp& named : kOps)
    if (op == named.name)
      return worthwhile_threads(named.op, is_double ? Dtype::float64 : Dtype::float32, components, sets, elements,
                                threads);
  throw std::invalid_argument("op: expected the name of an op, got " + op);
}

void special(const std::string& name, bool is_double, int64_t size, uintptr_t input, uintptr_t output) {
  auto names = special_function_names();
  auto found = std::find(names.begin(), names.end(), name);
  if (found == names.end()) throw std::invalid_argument("name: expected one of SPECIAL_FUNCTIONS, got " + name);
  run_special_on_cpu(static_cast<int>(found - names.begin()), is_double ? Dtype::float64 : Dtype::float32, size,
                     reinterpret_cast<const void*>(input), reinterpret_cast<void*>(output));
}

// A buffer with so many axes, whose numbers are neighbours along the last one. An `item_size` of 0 stands for any.
py::buffer_info view(const char* name, const py::buffer& buffer, ssize_t axes, ssize_t item_size, bool is_written) {
  py::buffer_info info = buffer.request(is_written);
  bool is_dense = info.ndim == axes && (info.shape.back() <= 1 || info.strides.back() == info.itemsize);
  if (!is_dense || (item_size != 0 && info.itemsize != item_size))
    throw std::invalid_argument(std::string(name) + ": expected a dense array of " + std::to_string(axes) +
                                (item_size == 0 ? " axes" : " axes, " + std::to_string(item_size) + " bytes a number"));
  return info;
}

// `positions` is an array; or the first of consecutive positions, as many as `result` has room for.
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
    throw std::out_of_range("rows: expected numbers from 0 to " + std::to_string(from.shape[0] - 1) + ", got " +
                            std::to_string(row[taken]));
}

template <class Strings>
py::tuple to_tuple(const Strings& values) {
  py::list result;
  for (const auto& value : values) result.append(py::str(value));
  return py::tuple(result);
}

// For each kernel the names of its operands, in their order.
py::dict operand_names() {
  py::dict result;
  for (const auto& [kernel, signature] : signatures) {
    py::list names;
    for (const NamedOperand& operand : signature.required + signature.gradients) names.append(operand.name);
    result[kernel.c_str()] = py::tuple(names);
  }
  return result;
}

py::dict constants_by_dtype() {
  py::dict in_float32, in_float64, result;
  for (const Constant& constant : constants()) {
    in_float32[constant.name] = constant.in_float32;
    in_float64[constant.name] = constant.in_float64;
  }
  result["float32"] = in_float32;
  result["float64"] = in_float64;
  return result;
}

}  // namespace

PYBIND11_MODULE(_core, m) {
  m.doc() = "Fused kernels of the mixture-CDF transform. Use mixflow.op; this module trusts its caller.";
  m.attr("FAMILIES") = to_tuple(family_names());
  m.attr("BASES") = to_tuple(base_names());
  m.attr("SPECIAL_FUNCTIONS") = to_tuple(special_function_names());
  m.attr("OPERANDS") = operand_names();
  m.def("constants", &constants_by_dtype);
  m.attr("__version__") = MIXFLOW_VERSION;
  m.attr("BUILD") = MIXFLOW_BUILD;
  m.def("map", &map, py::arg("inverse"), py::arg("family"), py::arg("base"), py::arg("is_double"), py::arg("operands"),
        py::arg("device"), py::arg("stream"), py::arg("threads"));
  m.def("map_with_slopes", &map_with_slopes, py::arg("family"), py::arg("base"), py::arg("is_double"),
        py::arg("operands"), py::arg("device"), py::arg("stream"), py::arg("threads"));
  m.def("map_backward", &map_backward, py::arg("inverse"), py::arg("family"), py::arg("base"), py::arg("is_double"),
        py::arg("operands"), py::arg("device"), py::arg("stream"), py::arg("threads"), py::arg("allocate"));
  m.def("packed_map", &packed_map, py::arg("inverse"), py::arg("family"), py::arg("base"), py::arg("is_double"),
        py::arg("operands"), py::arg("device"), py::arg("stream"), py::arg("threads"));
  m.def("packed_map_backward", &packed_map_backward, py::arg("inverse"), py::arg("family"), py::arg("base"),
        py::arg("is_double"), py::arg("operands"), py::arg("device"), py::arg("stream"), py::arg("threads"),
        py::arg("allocate"));
  m.def("interval", &interval, py::arg("family"), py::arg("is_double"), py::arg("operands"), py::arg("device"),
        py::arg("stream"), py::arg("threads"));
  m.def("interval_backward", &interval_backward, py::arg("family"), py::arg("is_double"), py::arg("operands"),
        py::arg("device"), py::arg("stream"), py::arg("threads"), py::arg("allocate"));
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
