#include "driver.h"

#include <algorithm>
#include <atomic>
#include <stdexcept>

namespace mmfast {
namespace {

bool cpu_has_avx2() {
#if defined(MMFAST_WITH_X86)
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
#else
    return false;
#endif
}
bool cpu_has_avx512() {
#if defined(MMFAST_WITH_X86)
    return cpu_has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
#else
    return false;
#endif
}

std::vector<const Kernels*> find_available() {  // best first
    std::vector<const Kernels*> found;
#if defined(MMFAST_WITH_X86)
    if (cpu_has_avx512()) found.push_back(&kAvx512);
    if (cpu_has_avx2()) found.push_back(&kAvx2);
#endif
#if defined(MMFAST_WITH_NEON)
    found.push_back(&kNeon);
#endif
    found.push_back(&kBaseline);
    return found;
}
const std::vector<const Kernels*>& available() {
    static const std::vector<const Kernels*> found = find_available();
    return found;
}

std::atomic<const Kernels*> chosen{nullptr};
const Kernels& kernels() {
    const Kernels* k = chosen.load(std::memory_order_relaxed);
    return k ? *k : *available().front();
}

// f(begin, end) over [0, n), in one contiguous share per thread. Below `work` elements a share is not
// worth waking a thread for.
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

int64_t element_size(Type type) { return type == Type::f64 ? 8 : type == Type::f32 ? 4 : 2; }

// Outputs of this many bytes are written past the caches: they would push out everything else, and a line
// written whole need not be read first.
constexpr int64_t kStreamFrom = int64_t{16} << 20;

}  // namespace

std::vector<std::string> isas() {
    std::vector<std::string> names;
    for (const Kernels* k : available()) names.push_back(k->name);
    return names;
}

void set_isa(const std::string& name) {
    if (name.empty()) return chosen.store(nullptr);
    for (const Kernels* k : available())
        if (name == k->name) return chosen.store(k);
    throw std::invalid_argument("instruction set '" + name + "' is not one this CPU and this build can run");
}

std::string isa() { return kernels().name; }

bool has_openmp() {
#if defined(_OPENMP)
    return true;
#else
    return false;
#endif
}

void combine(Plan plan, Type type, int threads) {
    const int64_t bytes = plan.batch * plan.elements() * (plan.noise ? 2 : 1) * element_size(type);
    plan.streaming = bytes >= kStreamFrom;
    const auto kernel = kernels().combine[static_cast<int>(type)];
    share(plan.items(), plan.batch * plan.elements(), threads, [&](int64_t begin, int64_t end) {
        std::vector<Source> sources(plan.terms);
        kernel(plan, sources.data(), begin, end);
    });
}

void dots(Plan plan, Type type, int threads, double* sums) {
    const auto kernel = kernels().dots[static_cast<int>(type)];
    const int64_t columns = plan.terms + 1, items = plan.items_per_sample();
    std::vector<double> parts(plan.items() * columns);
    plan.dots = parts.data();
    share(plan.items(), plan.batch * plan.elements(), threads, [&](int64_t begin, int64_t end) {
        Source source;
        kernel(plan, &source, begin, end);
    });
    for (int64_t b = 0; b < plan.batch; ++b)
        for (int64_t k = 0; k < columns; ++k) {
            double sum = 0.0;
            for (int64_t i = 0; i < items; ++i) sum += parts[(b * items + i) * columns + k];
            sums[b * columns + k] = sum;
        }
}

void row_sums(const void* x, int64_t rows, int64_t inner, Type type, int threads, double* sums) {
    const auto kernel = kernels().row_sums[static_cast<int>(type)];
    share(rows, rows * inner, threads, [&](int64_t begin, int64_t end) { kernel(x, inner, sums, begin, end); });
}

void box_muller(const uint32_t* a, const uint32_t* b, float* first, float* second, int64_t n) {
    kernels().box_muller(a, b, first, second, n);
}

}  // namespace mmfast
