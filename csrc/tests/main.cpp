// Tests the kernels under the address and undefined-behaviour sanitizers: all functions of the driver, on many shapes
// and every instruction set, against plain loops in double. Exits with 1 and the reason at the first failure.
#include <chrono>

#include "checks.h"

using namespace mmfast;
using namespace mmfast::tests;

namespace {

void check_all(const Wish& wish, uint64_t seed) {
    Random random(seed);
    Wish all = wish;
    Problem p(wish, seed);
    check_combine(p, random.one_in(2), random.one_in(2));
    check_step(p, random.one_in(2), random.one_in(2));
    if (!p.terms.empty() && p.terms[0].size == p.shape) check_squared_error(p, random.one_in(2), !random.one_in(3));
    all.poison = false;  // a dot reads every term
    Problem q(all, seed);
    check_dots(q, random.one_in(2));
}

void small_problems() {
    const int64_t sizes[] = {1, 1, 2, 3, 4, 5, 8, 15, 16, 17, 31, 33, 63, 64, 65, 70, 100, 129};
    const int terms[] = {0, 1, 2, 2, 3, 3, 4, 5, 6, 7, 8, 12};
    Random random(7);
    for (uint64_t seed = 1; seed <= 600; ++seed) {
        std::vector<int64_t> shape{1 + random.below(4)};
        int64_t elements = shape[0];
        for (int64_t rank = random.below(4); rank > 0; --rank) {
            const int64_t n = random.one_in(40) ? 0 : random.one_of(sizes);
            if (elements * n <= 6000) shape.push_back(n), elements *= n;
        }
        if (random.one_in(40)) shape[0] = 0;
        check_all({kTypes[seed % 4], shape, random.one_of(terms), random.one_in(8)}, seed);
    }
    for (uint64_t n = 1; n <= 70; ++n)  // every tail
        for (const Type type : kTypes) check_all({type, {2, static_cast<int64_t>(n)}, 2, true}, n);
}

void every_broadcast() {
    for (const Type type : kTypes)
        for (int64_t dims = 0; dims < 16; ++dims)
            for (uint64_t seed = 1; seed <= 2; ++seed) check_all({type, {2, 3, 4, 7}, 2, false, dims}, seed);
}

void problems_for_many_threads() {
    check_all({Type::f32, {3, 5, 83, 67}, 3}, 1);
    check_all({Type::f64, {1, 82001}, 2}, 2);
    check_all({Type::bf16, {2, 41003, 1}, 9}, 3);
    check_all({Type::f16, {11, 3, 2500}, 1}, 4);
}

// Outputs of 16 MiB and more, aligned and misaligned.
void large_problems() {
    constexpr int64_t margin = 256;
    Problem a({Type::f32, {2, 1050001}, 1, true, -1, true, margin}, 1);
    check_combine(a, true, true);
    Problem b({Type::bf16, {2, 2, 1100000}, 2, false, -1, true, margin}, 2);
    check_step(b, false, true);
    Problem c({Type::f64, {1, 3, 700001}, 1, true, -1, true, margin}, 3);
    check_squared_error(c, false, true);
}

void time(const char* what, void (*check)()) {
    const auto start = std::chrono::steady_clock::now();
    check();
    const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
    std::printf("%-28s %6.1f s\n", what, took.count());
    std::fflush(stdout);
}

}  // namespace

int main() {
    for (const std::string& isa : isas()) std::printf("%s ", isa.c_str());
    std::printf("%s\n", has_openmp() ? "with OpenMP" : "without OpenMP");
    time("Philox and ranks", check_philox);
    time("normals", check_normals);
    time("noise", [] {
        for (const Type type : kTypes)
            for (const int64_t n : {1, 3, 64, 65, 1000, 30011}) check_noise(type, n);
    });
    time("sums of rows", [] {
        for (const Type type : kTypes)
            for (const int64_t inner : {0, 1, 2, 15, 16, 17, 63, 64, 65, 200, 9000})
                for (const int64_t rows : {0, 1, 10})
                    check_row_sums(type, rows, inner, static_cast<uint64_t>(rows + inner));
    });
    time("blocks", [] {
        for (const int64_t size : {2, 4, 8})
            for (uint64_t seed = 0; seed < 80; ++seed) check_blocks(size, seed);
    });
    time("small problems", small_problems);
    time("every broadcast", every_broadcast);
    time("problems for many threads", problems_for_many_threads);
    time("large problems", large_problems);
    std::puts("passed");
}
