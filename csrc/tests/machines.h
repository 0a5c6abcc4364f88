// Runs the same work on every instruction set and number of threads; the outputs must be bit-identical.
#pragma once

#include <vector>

#include "../cpu/driver.h"
#include "check.h"

namespace mmfast::tests {

// run(threads) returns new outputs. Returns those of the first run.
template <class F>
std::vector<Buffer> on_every_machine(const std::string& name, F run) {
    std::vector<Buffer> first;
    for (const std::string& isa : isas()) {
        set_isa(isa);
        for (const int threads : {1, 2, 5}) {
            std::vector<Buffer> outputs = run(threads);
            const auto where = [&] { return name + " on " + isa + " with " + std::to_string(threads) + " threads"; };
            for (size_t i = 0; i < outputs.size(); ++i) {
                expect(outputs[i].guards_hold(),
                       [&] { return where() + ": written outside output " + std::to_string(i); });
                expect(first.empty() || outputs[i].same(first[i]),
                       [&] { return where() + ": different bits in output " + std::to_string(i); });
            }
            if (first.empty()) first = std::move(outputs);
        }
    }
    set_isa("");
    return first;
}

}  // namespace mmfast::tests
