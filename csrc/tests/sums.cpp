// Checks combine, step, squared_error and dots against a plain loop in double over the terms' sizes and strides.
//
// Error bounds: a chain of n fused multiply-adds is off by at most n roundings of partial sums, none of which exceeds
// the sum of the absolute values. The result is rounded once more to its type, by at most half a spacing.
#include "checks.h"
#include "machines.h"
#include "noise.h"

namespace mmfast::tests {
namespace {

// A sum, and the sum of the absolute values of its parts.
struct Sum {
    double value = 0.0, size = 0.0;
    int parts = 0;
    void add(double coef, double x) {
        if (coef == 0.0) return;
        value += coef * x, size += std::fabs(coef * x), ++parts;
    }
    double error(Type type) const { return parts * arithmetic_epsilon(type) / 2 * size + tiny(type) * DBL_EPSILON; }
};

Sum sum_of_terms(const Problem& p, const Table& table, int64_t b, const std::vector<int64_t>& at) {
    Sum sum;
    for (int k = 0; k < p.plan.terms; ++k) {
        const double coef = read(p.type, table, p.plan.row(b), k);
        if (coef != 0.0 && p.terms[k].find(at) >= 0) sum.add(coef, p.value(k, at));
    }
    return sum;
}

double rounding(Type type, double value) { return epsilon(type) / 2 * std::fabs(value) + tiny(type) * epsilon(type); }

void expect_near(const Problem& p, double got, double want, double error, const char* what, int64_t b, int64_t e) {
    expect(std::fabs(got - want) <= error, [&] {
        return p.name + ": " + what + " of sample " + std::to_string(b) + ", element " + std::to_string(e) + " is " +
               std::to_string(got) + ", not " + std::to_string(want) + ", within " + std::to_string(error);
    });
}

// The kernel's float32 noise for the whole problem, which is itself checked against the definition.
std::vector<float> noise_of(const Problem& p) {
    const int64_t n = p.elements();
    Plan plan = p.plan;
    const float one = 1.0f;
    Buffer out(p.batch() * n * 4), eps(p.batch() * n * 4);
    plan.terms = 0, plan.noisy = true, plan.index = nullptr, plan.levels = 0;
    plan.sigma = {&one, 0, 0};
    plan.out = out.at(), plan.noise = eps.at();
    plan.x0_begin = plan.x0_end = 0;
    combine(plan, Type::f32, 1);
    expect(out.same(eps), [&] { return p.name + ": the stored noise differs from the added noise"; });
    for (int64_t b = 0; b < p.batch(); ++b) {
        const auto want = noise_by_definition(plan.seed, plan.draw, plan.id(b), plan.stream, n);
        for (int64_t e = 0; e < n; ++e)
            expect(ulps(eps.at<float>()[b * n + e], want[e]) <= 4, [&] { return p.name + ": the noise is wrong"; });
    }
    return std::vector<float>(eps.at<float>(), eps.at<float>() + p.batch() * n);
}

}  // namespace

void check_combine(Problem& p, bool noisy, bool noise_wanted) {
    const int64_t count = p.batch() * p.elements();
    const auto got = on_every_machine("combine " + p.name, [&](int threads) {
        std::vector<Buffer> outputs;
        Plan plan = p.plan;
        plan.noisy = noisy || noise_wanted;
        if (!noisy) plan.sigma = {}, plan.levels = 0;
        outputs.push_back(p.output(count));
        plan.out = outputs[0].at();
        if (noise_wanted) outputs.push_back(p.output(count)), plan.noise = outputs[1].at();
        combine(plan, p.type, threads);
        return outputs;
    });
    const auto eps = noisy || noise_wanted ? noise_of(p) : std::vector<float>(count);
    p.for_elements([&](int64_t b, int64_t e, const std::vector<int64_t>& at) {
        const int64_t i = b * p.elements() + e;
        Sum sum = sum_of_terms(p, p.plan.coefs, b, at);
        if (noisy) sum.add(p.sigma(b, e), eps[i]);
        const double out = read(p.type, got[0].at(), i);
        expect_near(p, out, sum.value, sum.error(p.type) + rounding(p.type, sum.value), "combine", b, e);
        expect(sum.parts || !std::signbit(out), [&] { return p.name + ": an empty sum is -0"; });
        if (noise_wanted)
            expect_near(p, read(p.type, got[1].at(), i), eps[i], rounding(p.type, eps[i]), "noise", b, e);
    });
}

void check_step(Problem& p, bool noisy, bool x0_wanted) {
    const int64_t count = p.batch() * p.elements(), covered = p.plan.x0_end - p.plan.x0_begin;
    const auto got = on_every_machine("step " + p.name, [&](int threads) {
        std::vector<Buffer> outputs;
        Plan plan = p.plan;
        plan.noisy = noisy;
        if (!noisy) plan.sigma = {}, plan.levels = 0;
        outputs.push_back(p.output(count));
        plan.out = outputs[0].at();
        if (x0_wanted) outputs.push_back(p.output(p.batch() * covered)), plan.x0 = outputs[1].at();
        step(plan, p.type, threads);
        return outputs;
    });
    const auto eps = noisy ? noise_of(p) : std::vector<float>(count);
    const double low = p.type == Type::f64 ? p.plan.low : static_cast<float>(p.plan.low);
    const double high = p.type == Type::f64 ? p.plan.high : static_cast<float>(p.plan.high);
    p.for_elements([&](int64_t b, int64_t e, const std::vector<int64_t>& at) {
        const int64_t i = b * p.elements() + e;
        Sum sum = sum_of_terms(p, p.plan.coefs, b, at);
        double from_x0 = 0.0;
        if (e >= p.plan.x0_begin && e < p.plan.x0_end) {
            const Sum mean = sum_of_terms(p, p.plan.to_x0, b, at);
            const double x0 = std::fmin(std::fmax(mean.value, low), high);
            const double coef = read(p.type, p.plan.coefs, p.plan.row(b), p.plan.terms);
            sum.add(coef, x0);
            from_x0 = std::fabs(coef) * mean.error(p.type);  // a clamp widens no error
            if (x0_wanted)
                expect_near(p, read(p.type, got[1].at(), b * covered + e - p.plan.x0_begin), x0,
                            mean.error(p.type) + rounding(p.type, x0), "x0", b, e);
        }
        if (noisy) sum.add(p.sigma(b, e), eps[i]);
        const double error = (1 + epsilon(p.type)) * (sum.error(p.type) + from_x0) + rounding(p.type, sum.value);
        const double out = read(p.type, got[0].at(), i);
        expect_near(p, out, sum.value, error, "step", b, e);
        expect(sum.parts || !std::signbit(out), [&] { return p.name + ": an empty sum of a step is -0"; });
    });
}

// The relative error of |r|^2 is twice that of r, plus one rounding in double per addition.
void check_squared_error(Problem& p, bool noisy, bool grad_wanted) {
    const int64_t count = p.batch() * p.elements();
    const auto got = on_every_machine("squared_error " + p.name, [&](int threads) {
        std::vector<Buffer> outputs;
        Plan plan = p.plan;
        plan.noisy = noisy;
        if (!noisy) plan.sigma = {}, plan.levels = 0;
        outputs.emplace_back(p.batch() * 8);
        if (grad_wanted) outputs.push_back(p.output(count)), plan.out = outputs[1].at();
        squared_error(plan, p.type, threads, outputs[0].at<double>());
        return outputs;
    });
    const auto eps = noisy ? noise_of(p) : std::vector<float>(count);
    const double unit = arithmetic_epsilon(p.type);
    std::vector<double> sums(p.batch()), errors(p.batch());
    p.for_elements([&](int64_t b, int64_t e, const std::vector<int64_t>& at) {
        const int64_t i = b * p.elements() + e, row = p.plan.row(b);
        Sum sum = sum_of_terms(p, p.plan.coefs, b, at);
        if (noisy) sum.add(p.sigma(b, e), eps[i]);
        const double r = sum.value, error = sum.error(p.type);
        sums[b] += r * r, errors[b] += (2 * std::fabs(r) + error) * error;
        if (!grad_wanted) return;
        const double factor = 2 * p.plan.scale * read(p.type, p.plan.weight, row) * read(p.type, p.plan.coefs, row);
        // The scale, the two products in the factor and the product with r are rounded.
        const double arithmetic = std::fabs(factor) * (error + 2 * unit * (std::fabs(r) + error));
        const double bound = arithmetic + rounding(p.type, factor * r);
        expect_near(p, read(p.type, got[1].at(), i), factor * r, (1 + epsilon(p.type)) * bound, "gradient", b, e);
    });
    for (int64_t b = 0; b < p.batch(); ++b) {
        const double added = static_cast<double>(p.elements() + 2) * DBL_EPSILON * sums[b];
        expect_near(p, got[0].at<double>()[b], sums[b], errors[b] + added, "squared norm", b, -1);
    }
}

void check_dots(Problem& p, bool noisy) {
    const int64_t columns = p.plan.terms + 1, n = p.elements();
    const auto got = on_every_machine("dots " + p.name, [&](int threads) {
        std::vector<Buffer> outputs;
        Plan plan = p.plan;
        plan.noisy = noisy;
        plan.grad = p.grad.at();
        plan.x0_begin = plan.x0_end = 0;
        outputs.emplace_back(p.batch() * columns * 8);
        dots(plan, p.type, threads, outputs[0].at<double>());
        return outputs;
    });
    const auto eps = noisy ? noise_of(p) : std::vector<float>(p.batch() * n);
    std::vector<Sum> sums(p.batch() * columns);
    p.for_elements([&](int64_t b, int64_t e, const std::vector<int64_t>& at) {
        const double g = read(p.type, p.grad.at(), b * n + e);
        for (int k = 0; k < p.plan.terms; ++k)
            if (p.terms[k].find(at) >= 0) sums[b * columns + k].add(g, p.value(k, at));
        sums[b * columns + p.plan.terms].add(g, eps[b * n + e]);
    });
    for (size_t i = 0; i < sums.size(); ++i)  // both sums round
        expect_near(p, got[0].at<double>()[i], sums[i].value, (n + 2) * DBL_EPSILON * sums[i].size, "a dot",
                    static_cast<int64_t>(i) / columns, static_cast<int64_t>(i) % columns);
}

}  // namespace mmfast::tests
