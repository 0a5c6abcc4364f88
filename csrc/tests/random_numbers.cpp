// Checks the generator against its published answers, and normals against std:: functions in double.
#include "../lanes/scalar.h"
#include "../cpu/blocks.h"
#include "checks.h"
#include "machines.h"
#include "noise.h"

namespace mmfast::tests {

// Random123's kat_vectors for philox4x32-10: counter, key, answer.
void check_philox() {
    constexpr uint32_t ones = 0xFFFFFFFFu;
    const struct { Words counter; uint32_t key[2]; Words answer; } known[] = {
        {{0, 0, 0, 0}, {0, 0}, {0x6627E8D5u, 0xE169C58Du, 0xBC57AC4Cu, 0x9B00DBD8u}},
        {{ones, ones, ones, ones}, {ones, ones}, {0x408F276Du, 0x41C83B0Eu, 0xA20BC7C6u, 0x6D5451FDu}},
        {{0x243F6A88u, 0x85A308D3u, 0x13198A2Eu, 0x03707344u}, {0xA4093822u, 0x299F31D0u},
         {0xD16CFE09u, 0x94FDCCEBu, 0x5001E420u, 0x24126EA1u}},
    };
    for (const auto& [c, key, answer] : known) {
        expect(philox_by_definition(c, key[0], key[1]) == answer, "Philox by its definition gives a wrong answer");
        const auto seed = static_cast<int64_t>(uint64_t{key[1]} << 32 | key[0]);
        const auto id = static_cast<int64_t>(uint64_t{c[3] & 0xFFFFu} << 32 | c[2]);
        Words word;
        philox<Scalar>(NoiseStream(seed, c[1], id, c[3] >> 16), c[0], word.data());
        expect(word == answer, "philox<Scalar> gives a wrong answer");
    }
    for (const int64_t blocks : {0, 1, 2, 3, 4, 5, 63, 64, 65, 1001})  // by the words themselves
        for (const int64_t batch : {0, 1, 3, 40}) {
            const int64_t seed = -77, draw = 5 + blocks;
            const auto got = on_every_machine("random_words", [&](int threads) {
                std::vector<Buffer> outputs;
                outputs.emplace_back(batch * blocks * 8);
                random_words({seed, draw, nullptr, 9}, batch, blocks, outputs[0].at<int64_t>(), threads);
                return outputs;
            });
            for (int64_t i = 0; i < batch * blocks; ++i) {
                const int64_t b = i / blocks, j = i % blocks;
                const int64_t word = words_of(seed, draw, b, 9, static_cast<uint32_t>(j / 4))[j % 4];
                expect(got[0].at<int64_t>()[i] == word, "random_words gives a wrong word");
            }
        }
}

void check_normals() {
    std::vector<uint32_t> special;
    for (uint32_t i = 0; i < 32; ++i)
        for (const uint32_t d : {0u, 1u, ~0u}) special.push_back((1u << i) + d);
    for (uint32_t i = 0; i < 16; ++i)
        for (const uint32_t d : {0u, 1u, 2u, ~0u, ~1u}) special.push_back((i << 28) + d);
    std::vector<uint32_t> a, b;
    for (const uint32_t x : special)
        for (const uint32_t y : special) a.push_back(x), b.push_back(y);
    Random random(1);
    for (int i = 0; i < 1 << 17; ++i) {
        const uint64_t bits = random.bits();
        a.push_back(static_cast<uint32_t>(bits)), b.push_back(static_cast<uint32_t>(bits >> 32));
    }
    const int64_t n = static_cast<int64_t>(a.size()) / 16 * 16;
    const auto got = on_every_machine("box_muller", [&](int) {
        std::vector<Buffer> outputs;
        Buffer words_a(n * 4), words_b(n * 4);
        std::memcpy(words_a.at(), a.data(), n * 4), std::memcpy(words_b.at(), b.data(), n * 4);
        outputs.emplace_back(n * 4), outputs.emplace_back(n * 4);
        box_muller(words_a.at<uint32_t>(), words_b.at<uint32_t>(), outputs[0].at<float>(), outputs[1].at<float>(),
                   n);
        return outputs;
    });
    for (int64_t i = 0; i < n; ++i) {
        float first, second;
        box_muller_by_definition(a[i], b[i], first, second);
        const int64_t off = std::max(ulps(got[0].at<float>()[i], first), ulps(got[1].at<float>()[i], second));
        expect(off <= 4, [&] { return "the normals of two words are off by " + std::to_string(off) + " ulp"; });
    }
}

// The noise of every type is that of float32, rounded.
void check_noise(Type type, int64_t elements) {
    const int64_t ids[] = {0, (int64_t{1} << 48) - 1, 1234567891011};
    const double one64 = 1.0;
    const float one = 1.0f;
    Plan plan{};
    plan.batch = 3, plan.rows = 1, plan.inner = elements, plan.ids = ids;
    plan.seed = INT64_MIN + 3, plan.draw = 0xFFFFFFFF, plan.stream = 65535, plan.noisy = true;
    plan.sigma = {type == Type::f64 ? static_cast<const void*>(&one64) : &one, 0, 0};
    const auto got = on_every_machine("noise", [&](int threads) {
        std::vector<Buffer> outputs;
        for (int i = 0; i < 2; ++i) outputs.emplace_back(3 * elements * size_of(type), i * size_of(type));
        plan.out = outputs[0].at(), plan.noise = outputs[1].at();
        combine(plan, type, threads);
        return outputs;
    });
    expect(got[0].same(got[1]), "the stored noise differs from the added noise");
    for (int64_t b = 0; b < 3; ++b) {
        const auto want = noise_by_definition(plan.seed, plan.draw, ids[b], plan.stream, elements);
        for (int64_t e = 0; e < elements; ++e) {
            const double x = read(type, got[0].at(), b * elements + e), w = want[e];
            const double rounding = type == Type::f64 ? 0.0 : epsilon(type) / 2;
            const double bound = (4 * FLT_EPSILON + rounding) * std::fabs(w);
            expect(std::fabs(x - w) <= bound + tiny(type) * epsilon(type), "the noise differs from its definition");
        }
    }
}

}  // namespace mmfast::tests
