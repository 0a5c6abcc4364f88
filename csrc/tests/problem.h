// A random call of the kernels: terms with all kinds of layouts, tables and identities, laid out by choose_layout.
#pragma once

#include "../cpu/driver.h"
#include "../cpu/layout.h"
#include "elements.h"

namespace mmfast::tests {

// A term as a tensor. Its sizes and strides alone determine which element of a sample is where.
struct Operand {
    std::vector<int64_t> size, stride;
    int64_t start = -1;
    Buffer memory;

    // The element's index in memory, or -1 if the term does not cover it.
    int64_t find(const std::vector<int64_t>& at) const;
    int64_t span() const;  // the elements of memory
};

struct Wish {  // the requirements on a problem; all else is random
    Type type;
    std::vector<int64_t> shape;
    int terms;
    bool plain = false;      // contiguous terms of the full shape
    int64_t broadcast = -1;  // a bit for each dimension that term 0 is broadcast along; -1: random
    bool poison = true;      // NaN where a term must not be read
    int64_t margin = 0;      // around the outputs
};

class Problem {
public:
    Problem(const Wish& wish, uint64_t seed);
    Problem(const Problem&) = delete;

    Type type;
    std::vector<int64_t> shape;
    std::vector<Operand> terms;
    Plan plan{};  // its outputs unset
    Buffer grad;
    int64_t x0_channels = 0;
    int64_t margin = 0;
    std::string name;

    int64_t batch() const { return shape[0]; }
    int64_t elements() const { return plan.elements(); }  // of a sample
    double value(int k, const std::vector<int64_t>& at) const {  // NaN if term k does not cover it
        const int64_t i = terms[k].find(at);
        return i < 0 ? std::nan("") : read(type, terms[k].memory.at(), i);
    }
    // The sigma of an element of a sample, which is that of the last level that starts at or before it.
    double sigma(int64_t b, int64_t e) const {
        int level = 0;
        for (int l = 0; l < plan.levels; ++l) level = plan.level[l] <= e ? l : level;
        return read(type, plan.sigma, plan.row(b), level);
    }
    Buffer output(int64_t count) const { return Buffer(count * size_of(type), offset_, margin); }
    // Calls f(sample, element of the sample, indices), in order.
    template <class F>
    void for_elements(F f) const {
        std::vector<int64_t> at(shape.size(), 0);
        for (int64_t i = 0; i < batch() * elements(); ++i) {
            f(i / elements(), i % elements(), at);
            for (size_t d = shape.size(); d-- > 0 && ++at[d] == shape[d];) at[d] = 0;
        }
    }

private:
    Random random_;
    Buffer coefs_, to_x0_, sigma_, weight_, index_, ids_;
    std::vector<Term> laid_out_;
    std::vector<int64_t> levels_;
    int64_t offset_ = 0;

    Operand make_term(const Wish& wish, int k);
    void make_tables(const Wish& wish);
    void poison_what_is_not_read();
    void lay_out();
};

}  // namespace mmfast::tests
