#include "problem.h"

#include <algorithm>

namespace mmfast::tests {

int64_t Operand::find(const std::vector<int64_t>& at) const {
    int64_t i = 0;
    for (size_t d = 0; d < at.size(); ++d) {
        int64_t j = at[d];
        if (d == 1 && start >= 0) {
            j -= start;
            if (j < 0 || j >= size[1]) return -1;
        }
        if (size[d] != 1) i += j * stride[d];
    }
    return i;
}

int64_t Operand::span() const {
    int64_t last = 0;
    for (size_t d = 0; d < size.size(); ++d) {
        if (size[d] == 0) return 0;
        last += (size[d] - 1) * stride[d];
    }
    return last + 1;
}

Problem::Problem(const Wish& wish, uint64_t seed)
    : type(wish.type), shape(wish.shape), margin(wish.margin), name(name_of(type)), random_(seed) {
    for (const int64_t n : shape) name += " " + std::to_string(n);
    name += ", " + std::to_string(wish.terms) + " terms, seed " + std::to_string(seed);
    plan.batch = shape[0];
    plan.terms = wish.terms;
    if (!wish.plain) offset_ = random_.below(3) * random_.below(9) * size_of(type);
    for (int k = 0; k < wish.terms; ++k) terms.push_back(make_term(wish, k));
    lay_out();
    make_tables(wish);
    if (wish.poison) poison_what_is_not_read();
    grad = Buffer(batch() * elements() * size_of(type), offset_);
    for (int64_t i = 0; i < batch() * elements(); ++i) write_random(type, grad.at(), i, random_);

    plan.seed = static_cast<int64_t>(random_.bits()), plan.draw = random_.below(int64_t{1} << 32);
    plan.stream = static_cast<uint32_t>(random_.below(1 << 16));
    plan.low = random_.uniform(-1.0, 0.0), plan.high = random_.uniform(0.0, 1.0);
    plan.scale = random_.uniform(0.1, 2.0);
    plan.x0_end = elements(), x0_channels = shape.size() > 1 ? shape[1] : 1;
    if (shape.size() > 1 && shape[1] > 0 && random_.one_in(2)) {
        const int64_t first = random_.below(shape[1]), channel = elements() / shape[1];
        x0_channels = 1 + random_.below(shape[1] - first);
        plan.x0_begin = first * channel, plan.x0_end = (first + x0_channels) * channel;
    }
}

// Memory with a random order of the dimensions, sometimes with gaps; broadcast by sizes of 1 and by strides of 0.
Operand Problem::make_term(const Wish& wish, int k) {
    const size_t rank = shape.size();
    Operand term;
    term.size = shape, term.stride.resize(rank);
    const bool special = wish.broadcast >= 0 && k == 0;
    if (!wish.plain && !special && rank > 1 && shape[1] > 0 && k > 0 && random_.one_in(3)) {
        term.start = random_.below(shape[1]);
        term.size[1] = 1 + random_.below(shape[1] - term.start);
    }
    std::vector<bool> repeated(rank);
    for (size_t d = 0; d < rank; ++d) {
        const bool block = d == 1 && term.start >= 0;
        if (special) repeated[d] = wish.broadcast >> d & 1;
        else repeated[d] = !wish.plain && !block && k > 0 && random_.one_in(4);
        if (repeated[d] && random_.one_in(2)) term.size[d] = 1;
    }
    std::vector<size_t> order;  // innermost first
    for (size_t d = rank; d-- > 0;) order.push_back(d);
    if (!wish.plain && random_.one_in(4))
        for (size_t d = rank; d-- > 1;) std::swap(order[d], order[random_.below(static_cast<int64_t>(d) + 1)]);
    int64_t stride = 1;
    for (const size_t d : order) {
        if (!wish.plain && random_.one_in(12)) stride += 1 + random_.below(3);  // a gap
        term.stride[d] = repeated[d] ? 0 : stride;
        if (repeated[d] && term.size[d] == 1) term.stride[d] = random_.below(3);  // which has no meaning
        if (!repeated[d]) stride *= std::max<int64_t>(1, term.size[d]);
    }
    const int64_t count = term.span();
    const int64_t offset = wish.plain ? 0 : random_.below(17) * size_of(type);
    term.memory = Buffer(count * size_of(type), offset);
    for (int64_t i = 0; i < count; ++i) write_random(type, term.memory.at(), i, random_);
    return term;
}

void Problem::make_tables(const Wish& wish) {
    int64_t rows = batch();
    const int64_t kind = random_.below(4);
    if (kind == 0) rows = 1;
    if (kind == 1) {
        rows = 1 + random_.below(5);
        index_ = Buffer(batch() * 8);
        for (int64_t b = 0; b < batch(); ++b) index_.at<int64_t>()[b] = random_.below(rows);
        plan.index = index_.at<int64_t>();
    }
    const int64_t zeros = wish.margin ? 1000 : 4;  // a large problem should do all of its work
    plan.coefs = make_table(type, rows, wish.terms + 1, coefs_, random_, zeros);
    plan.to_x0 = make_table(type, rows, wish.terms, to_x0_, random_, zeros);
    if (random_.one_in(2)) {  // levels of the noise, each of whole channels
        const int64_t channels = shape.size() > 1 ? shape[1] : 1;
        for (int64_t c = 0; c < std::max<int64_t>(1, channels) && levels_.size() < kMaxLevels; c += 1 + random_.below(4))
            levels_.push_back(c * (channels ? elements() / channels : 0));
        plan.levels = static_cast<int>(levels_.size()), plan.level = levels_.data();
    }
    plan.sigma = make_table(type, rows, std::max(1, plan.levels), sigma_, random_, zeros);
    plan.weight = make_table(type, rows, 1, weight_, random_, zeros);
    if (kind == 2) {
        ids_ = Buffer(batch() * 8);
        for (int64_t b = 0; b < batch(); ++b) ids_.at<int64_t>()[b] = random_.below(int64_t{1} << 48);
        plan.ids = ids_.at<int64_t>();
    }
}

// Set a term's elements to NaN in samples whose coefficients for the term are all zero.
void Problem::poison_what_is_not_read() {
    for_elements([&](int64_t b, int64_t, const std::vector<int64_t>& at) {
        for (int k = 0; k < plan.terms; ++k) {
            Operand& term = terms[k];
            const bool own = term.size[0] == batch() && (term.stride[0] != 0 || batch() == 1);
            const int64_t row = plan.row(b);
            const bool unread = read(type, plan.coefs, row, k) == 0.0 && read(type, plan.to_x0, row, k) == 0.0;
            const int64_t i = own && unread ? term.find(at) : -1;
            if (i >= 0) write_nan(type, term.memory.at(), i);
        }
    });
}

// Like the binding and cpu.py, make a term without a regular layout contiguous, of the full shape or its channels.
void Problem::lay_out() {
    const int rank = static_cast<int>(shape.size());
    laid_out_.resize(terms.size());
    plan.term = laid_out_.data();
    if (std::count(shape.begin() + 1, shape.end(), 0) > 0) {  // nothing to lay out; the binding stops here
        plan.rows = 1, plan.inner = 0;
        return;
    }
    for (int round = 0;; ++round) {
        std::vector<Tensor> tensors;
        for (const Operand& t : terms) tensors.push_back({t.memory.at(), t.size.data(), t.stride.data(), t.start});
        const auto misfits = choose_layout(shape.data(), rank, tensors.data(), plan.terms, plan, laid_out_.data());
        if (misfits.empty()) break;
        expect(round == 0, [&] { return name + ": contiguous terms do not fit"; });
        for (const int k : misfits) {
            Operand whole;
            whole.size = shape, whole.stride.resize(shape.size()), whole.start = terms[k].start;
            if (whole.start >= 0) whole.size[1] = terms[k].size[1];
            int64_t stride = 1;
            for (int d = rank; d-- > 0; stride *= whole.size[d]) whole.stride[d] = stride;
            whole.memory = Buffer(whole.span() * size_of(type));
            for_elements([&](int64_t, int64_t, const std::vector<int64_t>& at) {
                const int64_t from = terms[k].find(at), to = whole.find(at), bytes = size_of(type);
                if (from >= 0)
                    std::memcpy(whole.memory.at<char>() + to * bytes, terms[k].memory.at<char>() + from * bytes, bytes);
            });
            terms[k] = std::move(whole);
        }
    }
    int64_t elements = 1;
    for (int d = 1; d < rank; ++d) elements *= shape[d];
    expect(plan.elements() == elements, [&] { return name + ": the layout loses elements"; });
}

}  // namespace mmfast::tests
