// Splits work among threads, one contiguous share for each.
#pragma once

#include <algorithm>
#include <cstdint>

namespace mmfast {

// Calls f(begin, end) over [0, n). A share of fewer than kWorthAThread elements is not worth waking a thread for.
template <class F>
void share(int64_t n, int64_t elements, int threads, F f) {
    constexpr int64_t kWorthAThread = 16384;
    const int64_t parts = std::max<int64_t>(1, std::min({n, elements / kWorthAThread, int64_t{threads}}));
    if (parts == 1) return f(0, n);
#if defined(_OPENMP)
#pragma omp parallel for num_threads(static_cast<int>(parts)) schedule(static, 1)
#endif
    for (int64_t p = 0; p < parts; ++p) {
        const auto first = [&](int64_t q) { return n / parts * q + std::min(q, n % parts); };
        f(first(p), first(p + 1));
    }
}

}  // namespace mmfast
