// The checks that main.cpp calls.
#pragma once

#include "problem.h"

namespace mmfast::tests {

void check_philox();
void check_normals();
void check_noise(Type type, int64_t elements);
void check_row_sums(Type type, int64_t rows, int64_t inner, uint64_t seed);
void check_blocks(int64_t element_size, uint64_t seed);

// These compare with sums computed in plain loops in double.
void check_combine(Problem& p, bool noisy, bool noise_wanted);
void check_step(Problem& p, bool noisy, bool x0_wanted);
void check_squared_error(Problem& p, bool noisy, bool grad_wanted);
void check_dots(Problem& p, bool noisy);

}  // namespace mmfast::tests
