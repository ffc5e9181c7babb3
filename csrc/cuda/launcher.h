// Launches of kernels, and the errors that CUDA reports.
#pragma once

#include <algorithm>
#include <stdexcept>
#include <string>

#include "../problem.h"
#include "device.h"

namespace mixflow {
namespace MIXFLOW_ARCH {
namespace {

void check(cudaError_t status, const std::string& what) {
  if (status != cudaSuccess)
    throw std::runtime_error("mixflow: CUDA " + what + " failed: " + cudaGetErrorString(status));
}

// Makes `device` the current one for as long as this object lives.
struct CurrentDevice {
  int before = 0, device;

  explicit CurrentDevice(int device) : device(device) {
    check(cudaGetDevice(&before), "cudaGetDevice");
    if (before != device) check(cudaSetDevice(device), "cudaSetDevice");
  }
  ~CurrentDevice() {
    if (before != device) cudaSetDevice(before);
  }
  CurrentDevice(const CurrentDevice&) = delete;
  CurrentDevice& operator=(const CurrentDevice&) = delete;
};

// Launches the kernels of one call of an op.
struct Launcher {
  const char* op;
  cudaStream_t stream;

  // Launches `blocks` blocks, but not more than a grid can have: the kernels repeat their work until all is done.
  template <class... Parameters, class... Arguments>
  void operator()(void (*kernel)(Parameters...), int64_t blocks, int threads, size_t shared_bytes,
                  const Arguments&... arguments) const {
    if (blocks == 0) return;
    void* pointers[] = {const_cast<void*>(static_cast<const void*>(&arguments))...};
    cudaError_t status = cudaSuccess;
    if (shared_bytes > kSharedBytes)
      status =
          cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes));
    if (status == cudaSuccess)
      status = cudaLaunchKernel(kernel, dim3(static_cast<unsigned>(std::min(blocks, kMaxGrid))), dim3(threads),
                                pointers, shared_bytes, stream);
    if (status != cudaSuccess) cudaGetLastError();  // clears the error, which is reported here
    check(status, std::string("launch of ") + op);
  }
};

}  // namespace
}  // namespace MIXFLOW_ARCH
}  // namespace mixflow
