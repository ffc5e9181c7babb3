// The CUDA kernels on the CPU, for a module whose devices are emulated (MIXFLOW_CUDA=EMULATED).
#include "cuda/kernels.cu"
