// The noise alone, into the first cache: what the arithmetic takes. Compiled and run by limit.py.
#include <algorithm>
#include <chrono>
#include <cstdio>

#include "lanes/avx512.h"
#include "cpu/noise.h"

using mmfast::Avx512;
using mmfast::NoiseStream;

alignas(64) static float normals[4096];

// limit.py counts the instructions of this loop: 128 normals a turn.
extern "C" __attribute__((noinline)) void make(const NoiseStream& stream, uint32_t first, int tiles) {
    for (int i = 0; i < tiles; ++i)
        mmfast::tile(Avx512{}, stream, first + 32 * static_cast<uint32_t>(i), normals + 128 * i);
}

template <class F>
static double least_seconds(F f) {
    double least = 1e9;
    for (int i = 0; i < 4000; ++i) {
        const auto start = std::chrono::steady_clock::now();
        f(i);
        least = std::min(least, std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
    }
    return least;
}

int main() {
    // A multiplication takes three cycles, and the next one waits for it.
    uint64_t x = 3;
    const double chain = least_seconds([&](int) {
        for (int i = 0; i < 1000; ++i) asm volatile("imul %0, %0\n\timul %0, %0\n\timul %0, %0\n\timul %0, %0" : "+r"(x));
    });
    const NoiseStream stream(1, 2, 3, 4);
    const double noise = least_seconds([&](int i) { make(stream, 4096u * static_cast<uint32_t>(i), 32); });
    std::printf("%.6f %.6f\n", chain / 12000 * 1e9, noise / 4096 * 1e9);  // ns a cycle, ns an element
}
