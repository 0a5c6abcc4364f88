#include "driver.h"

#include <atomic>
#include <stdexcept>

#include "threads.h"

#if defined(MMFAST_WITH_X86)
#include <cpuid.h>
#endif

namespace mmfast {
namespace {

#if defined(MMFAST_WITH_X86)
bool cpu_has_f16c() {  // tests the bit, because clang 14 rejects the name in __builtin_cpu_supports
    unsigned a, b, c, d;
    return __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C);
}
#endif
bool cpu_has_avx2() {
#if defined(MMFAST_WITH_X86)
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && cpu_has_f16c();
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

int64_t element_size(Type type) { return type == Type::f64 ? 8 : type == Type::f32 ? 4 : 2; }

// Outputs of at least this many bytes are written past the caches. They would evict everything else, and a
// line that is written completely need not be read first.
constexpr int64_t kStreamFrom = int64_t{2} << 20;

void run(Kernels::Items* const (&table)[Kernels::kTypes], Plan& plan, Type type, int threads, int outputs) {
    plan.streaming = plan.batch * plan.elements() * outputs * element_size(type) >= kStreamFrom;
    const auto kernel = table[static_cast<int>(type)];
    share(plan.items(), plan.batch * plan.elements(), threads, [&](int64_t begin, int64_t end) {
        constexpr int kFew = 8;
        Source few[kFew];
        std::vector<Source> many(plan.terms > kFew ? plan.terms : 0);
        kernel(plan, plan.terms > kFew ? many.data() : few, begin, end);
    });
}

// The sums over each sample's items, in their order: [batch, columns].
void add_items(const Plan& plan, int columns, double* sums) {
    const int64_t items = plan.items_per_sample();
    for (int64_t b = 0; b < plan.batch; ++b)
        for (int k = 0; k < columns; ++k) {
            double sum = 0.0;
            for (int64_t i = 0; i < items; ++i) sum += plan.sums[(b * items + i) * columns + k];
            sums[b * columns + k] = sum;
        }
}

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
    throw std::invalid_argument("instruction set '" + name + "' is not supported by this CPU and this build");
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
    run(kernels().combine, plan, type, threads, plan.noise ? 2 : 1);
}

void step(Plan plan, Type type, int threads) { run(kernels().step, plan, type, threads, plan.x0 ? 2 : 1); }

void squared_error(Plan plan, Type type, int threads, double* sums) {
    std::vector<double> parts(plan.items());
    plan.sums = parts.data();
    run(kernels().squared_error, plan, type, threads, plan.out ? 1 : 0);
    add_items(plan, 1, sums);
}

void dots(Plan plan, Type type, int threads, double* sums) {
    std::vector<double> parts(plan.items() * (plan.terms + 1));
    plan.sums = parts.data();
    run(kernels().dots, plan, type, threads, 0);
    add_items(plan, plan.terms + 1, sums);
}

void scale(Plan plan, Type type, int threads) { run(kernels().scale, plan, type, threads, plan.terms); }

void row_sums(const void* x, int64_t rows, int64_t inner, Type type, int threads, double* sums) {
    const auto kernel = kernels().row_sums[static_cast<int>(type)];
    share(rows, rows * inner, threads, [&](int64_t begin, int64_t end) { kernel(x, inner, sums, begin, end); });
}

void box_muller(const uint32_t* a, const uint32_t* b, float* first, float* second, int64_t n) {
    kernels().box_muller(a, b, first, second, n);
}

}  // namespace mmfast
