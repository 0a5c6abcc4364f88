// _mmfast_cuda, compiled for the host: the same sources, run by cuda_shim.h.
#include "../../../csrc/cuda/bindings.cpp"

#include "../../../csrc/cuda/elementwise.cu"
#include "../../../csrc/cuda/masks.cu"
#include "../../../csrc/cuda/sums.cu"

extern "C" __attribute__((visibility("default"))) void run_threads_backwards(int yes) { mmfast_shim::backwards = yes; }
extern "C" __attribute__((visibility("default"))) void run_nothing(int yes) { mmfast_shim::idle = yes; }
