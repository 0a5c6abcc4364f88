// The table of an instruction set's kernels, for a lane type L. isa.cpp instantiates it once for each.
#pragma once

#include "combine.h"
#include "noise.h"
#include "reduce.h"

namespace mmfast {

template <class L>
constexpr Kernels kernels(const char* name) {
    return {name,
            {combine<L, float>, combine<L, double>, combine<L, bf16>, combine<L, f16>},
            {step<L, float>, step<L, double>, step<L, bf16>, step<L, f16>},
            {squared_error<L, float>, squared_error<L, double>, squared_error<L, bf16>, squared_error<L, f16>},
            {dots<L, float>, dots<L, double>, dots<L, bf16>, dots<L, f16>},
            {scale<L, float>, scale<L, double>, scale<L, bf16>, scale<L, f16>},
            {row_sums<L, float>, row_sums<L, double>, row_sums<L, bf16>, row_sums<L, f16>},
            box_muller<L>};
}

}  // namespace mmfast
