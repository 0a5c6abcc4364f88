// Chooses the instruction set and shares the work among threads.
#pragma once

#include <string>
#include <vector>

#include "plan.h"

namespace mmfast {

std::vector<std::string> isas();        // those that this build and this CPU support, best first
void set_isa(const std::string& name);  // empty for the best; throws std::invalid_argument
std::string isa();                      // the one in use
bool has_openmp();

void combine(Plan plan, Type type, int threads);
void step(Plan plan, Type type, int threads);
void squared_error(Plan plan, Type type, int threads, double* sums);  // sums[b] = |r[b]|^2
// sums[b, k] = sum of grad * term k; sums[b, terms] = sum of grad * noise (zero without noise).
void dots(Plan plan, Type type, int threads, double* sums);
void scale(Plan plan, Type type, int threads);
void row_sums(const void* x, int64_t rows, int64_t inner, Type type, int threads, double* sums);
// The normals of n pairs of words (n a multiple of 16), for the tests: noise covers few pairs.
void box_muller(const uint32_t* a, const uint32_t* b, float* first, float* second, int64_t n);

}  // namespace mmfast
