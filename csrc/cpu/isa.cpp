// The kernels of one instruction set. CMake compiles this file once for each, with its compiler flags and
// MMFAST_LANES (the lane type), MMFAST_HEADER (the file that defines it) and MMFAST_TABLE (the table's name).
#include MMFAST_HEADER
#include "kernel.h"

namespace mmfast {

const Kernels MMFAST_TABLE = kernels<MMFAST_LANES>(MMFAST_NAME);

}  // namespace mmfast
