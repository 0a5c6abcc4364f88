"""The noise: Philox's published answers, the identity's layout, the same bits everywhere, and normality."""

import itertools

import numpy as np
import pytest
import torch
import truth
from flat import reference
from hypothesis import example, given
from hypothesis import strategies as st
from scipy import stats

import mmfast
from mmfast import ops
from mmfast.ops import backends

# Every statistic below is from fixed seeds, so each passes always or never. A true normal fails one test with
# this probability; there are some forty of them.
P = 1e-5
Z = float(stats.norm.isf(P / 2))  # the same as a number of deviations, 4.4

PI = (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344), (0xA4093822, 0x299F31D0)
KNOWN = [
    ((0,) * 4, (0,) * 2, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (*PI, (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1)),
]


def ulps(a, b):
    """The distance of two float32 arrays in units in the last place."""

    def ordered(x):
        bits = np.asarray(x, dtype=np.float32).view(np.int32).astype(np.int64)
        return np.where(bits < 0, -(bits & 0x7FFFFFFF), bits)

    return np.abs(ordered(a) - ordered(b))


@pytest.mark.parametrize(("counter", "key", "answer"), KNOWN)
def test_philox_gives_the_published_answers(counter, key, answer):
    """Random123's kat_vectors for philox4x32-10."""
    found = reference.philox4x32(torch.tensor(counter), torch.tensor(key))
    assert found.tolist() == list(answer)
    assert truth.philox4x32(counter, key) == answer


def test_philox_broadcasts_and_takes_a_number_of_rounds():
    """A batch of counters under one key; and Random123's answer for seven rounds on zeros."""
    counters = torch.tensor([case[0] for case in KNOWN])
    found = reference.philox4x32(counters, torch.tensor(PI[1]))
    assert found.tolist() == [list(truth.philox4x32(case[0], PI[1])) for case in KNOWN]
    seven = reference.philox4x32(torch.zeros(4, dtype=torch.int64), torch.zeros(2, dtype=torch.int64), rounds=7)
    assert seven.tolist() == [0x5F6FB709, 0x0D893F64, 0x4F121F81, 0x4F730A48]


SEEDS = st.integers(-(1 << 63), (1 << 64) - 1)
IDS = st.integers(0, (1 << 48) - 1)


@example(seed=(1 << 64) - 1, stream=65535, sample_id=(1 << 48) - 1, draw=(1 << 32) - 1, count=9)
@example(seed=1 << 32, stream=1, sample_id=1 << 47, draw=1 << 31, count=5)
@given(SEEDS, st.integers(0, 65535), IDS, st.integers(0, (1 << 32) - 1), st.integers(1, 23))
def test_identity_layout(seed, stream, sample_id, draw, count):
    """key = seed; counter = (block, draw, id low, id bits 32-47 | stream << 16): by hand, in Python's integers.

    The words are equal, and a normal is within 4 ulp of the exact one (1 for the reference, which computes in
    float64 and rounds once).
    """
    ids, signed = torch.tensor([sample_id]), seed - (1 << 64) if seed >= 1 << 63 else seed
    words = reference.random_words(torch.tensor((signed, draw)), ids, stream, -(-count // 4))
    assert words.flatten().tolist()[:count] == truth.words(seed, stream, sample_id, draw, count)
    expected = truth.normals(seed, stream, sample_id, draw, count)
    for name, most in (("reference", 1), ("cpu", 4)):
        if backends.load(name)[1] is None:
            with ops.backend(name):
                found = ops.randn((1, count), seed=seed, sample_ids=ids, stream=stream, draw=draw)[0]
            assert ulps(found.numpy(), expected).max() <= most, name


def test_each_part_of_the_identity_matters(each_backend):
    """Changing the seed's halves, the stream, the id's parts or the draw changes nearly every value."""
    base = {"seed": 1, "stream": 0, "sample_ids": torch.tensor([5]), "draw": 0}
    others = [
        {"seed": 2}, {"seed": 1 + (1 << 32)}, {"stream": 1}, {"stream": 65535}, {"draw": 1}, {"draw": (1 << 32) - 1},
        {"sample_ids": torch.tensor([6])}, {"sample_ids": torch.tensor([5 + (1 << 32)])},
        {"sample_ids": torch.tensor([5 + (1 << 47)])},
    ]  # fmt: skip
    with ops.backend(each_backend):
        found = [ops.randn((1, 64), **{**base, **other}) for other in [{}, *others]]
    for a, b in itertools.combinations(found, 2):
        assert (a == b).float().mean() < 0.05


def test_same_bits_whatever_the_batch_order_and_threads(each_backend, threads):
    """A sample's noise is its own: alone, in any batch and order, with 1, 2 and 4 threads."""
    ids = torch.tensor([7, 0, 1 << 40, 3, 12345678901])
    with ops.backend(each_backend):
        whole = ops.randn((5, 3, 33, 41), seed=11, sample_ids=ids, draw=2, stream=9)
        for i in range(5):
            assert torch.equal(
                ops.randn((1, 3, 33, 41), seed=11, sample_ids=ids[i : i + 1], draw=2, stream=9)[0], whole[i]
            )
        order = torch.tensor([4, 2, 0, 1, 3])
        assert torch.equal(ops.randn((5, 3, 33, 41), seed=11, sample_ids=ids[order], draw=2, stream=9), whole[order])
        # Element e does not depend on how many follow it, or on the shape.
        assert torch.equal(ops.randn((5, 1001), seed=11, sample_ids=ids, draw=2, stream=9), whole.flatten(1)[:, :1001])
        for count in (2, 4):
            threads(count)
            assert torch.equal(ops.randn((5, 3, 33, 41), seed=11, sample_ids=ids, draw=2, stream=9), whole)


def test_same_bits_on_every_instruction_set():
    """All that this CPU can run, at lengths around their vectors' widths."""
    from flat import cpu

    if cpu.unavailable():
        pytest.skip(cpu.unavailable())
    shapes = [(3, n) for n in (1, 2, 3, 4, 5, 15, 16, 17, 31, 63, 64, 65, 127, 128, 129, 1000, 100_003)]
    found = {}
    try:
        with ops.backend("cpu"):
            for isa in cpu.isas():
                cpu.set_isa(isa)
                found[isa] = [ops.randn(shape, seed=3, draw=1) for shape in shapes]
    finally:
        cpu.set_isa(None)
    first = found[cpu.isas()[0]]
    for isa, results in found.items():
        assert all(torch.equal(a, b) for a, b in zip(first, results, strict=True)), isa


def test_backends_agree_within_4_ulp():
    """The design's promise, on two million values."""
    if backends.load("cpu")[1] is not None:
        pytest.skip(backends.load("cpu")[1])
    with ops.backend("reference"):
        a = ops.randn((4, 500_000), seed=99)
    with ops.backend("cpu"):
        b = ops.randn((4, 500_000), seed=99)
    assert ulps(a.numpy(), b.numpy()).max() <= 4


@pytest.fixture(scope="module")
def values():
    """Ten million values: 10 samples of a million, float64."""
    return ops.randn((10, 1_000_000), seed=20240717, stream=3, draw=5).double().numpy()


def test_moments(values):
    """Mean, variance, skewness and kurtosis within Z deviations of a normal's (variances 1, 2, 6, 24 over n)."""
    x, n = values.ravel(), values.size
    assert abs(x.mean()) < Z * np.sqrt(1 / n)
    assert abs((x**2).mean() - 1) < Z * np.sqrt(2 / n)
    assert abs((x**3 - 3 * x).mean()) < Z * np.sqrt(6 / n)
    assert abs((x**4 - 6 * x**2 + 3).mean()) < Z * np.sqrt(24 / n)


@pytest.mark.parametrize("position", range(4))
def test_kolmogorov_smirnov(values, position):
    """A million values from each place in the block of four (cosine and sine, first and second pair)."""
    assert stats.kstest(values[:4, position::4].ravel(), "norm").pvalue > P


def test_cells_and_tails(values):
    """Chi-square over 200 equally likely cells and over the tails out to 5 deviations, on ten million values."""
    x = values.ravel()
    edges = np.concatenate(([-np.inf], stats.norm.ppf(np.arange(1, 200) / 200), [np.inf]))
    counts, _ = np.histogram(x, edges)
    assert stats.chisquare(counts).pvalue > P
    edges = np.concatenate(([-np.inf], -np.arange(5.0, 2.4, -0.25), np.arange(2.5, 5.1, 0.25), [np.inf]))
    expected = np.diff(stats.norm.cdf(edges)) * x.size
    assert expected.min() > 2  # beyond 5 deviations: 2.9 of ten million on each side
    assert stats.chisquare(np.histogram(x, edges)[0], expected).pvalue > P


def test_words_are_uniform():
    """The mean of each of the 32 bits, and the agreement of neighbouring bits, over a million words."""
    words = reference.random_words(torch.tensor((4, 0)), torch.arange(250), 0, 1000).flatten().numpy()
    bits = (words[:, None] >> np.arange(32)) & 1
    deviations = (bits.mean(0) - 0.5) * 2 * np.sqrt(len(words))
    assert np.abs(deviations).max() < Z + 1  # the largest of 32: a union bound costs less than one deviation
    pairs = ((bits[:, 1:] == bits[:, :-1]).mean(0) - 0.5) * 2 * np.sqrt(len(words))
    assert np.abs(pairs).max() < Z + 1


def correlation(x, y):
    """The correlation as a number of deviations from none."""
    return float((x * y).mean() / np.sqrt((x**2).mean() * (y**2).mean()) * np.sqrt(len(x)))


def uncorrelated(x, y):
    """Neither the values, nor their squares, nor the signs against the squares, are correlated."""
    x2, y2 = x**2 - 1, y**2 - 1
    return max(abs(correlation(a, b)) for a, b in ((x, y), (x2, y2), (x, y2), (x2, y))) < Z


@pytest.mark.parametrize("lag", [1, 2, 3, 4, 5, 8, 16, 64, 1024])
def test_neighbouring_elements_are_independent(values, lag):
    """Elements at short distances, within a pair, a block of four, a vector and a row."""
    x = values[:4]
    assert uncorrelated(x[:, :-lag].ravel(), x[:, lag:].ravel())


def test_pairs_are_independent(values):
    """Box-Muller's own trap: the two halves of a pair, apart from any other neighbours."""
    assert uncorrelated(values[:, 0::2].ravel(), values[:, 1::2].ravel())


@pytest.mark.parametrize("other", ["samples", "ids 2^32 apart", "draws", "streams", "seeds", "seeds 2^32 apart"])
def test_identities_are_independent(values, other):
    """The same elements of neighbouring samples, draws, streams and seeds."""
    changed = {
        "samples": {"sample_ids": torch.arange(1, 3)},
        "ids 2^32 apart": {"sample_ids": torch.arange(2) + (1 << 32)},
        "draws": {"draw": 6},
        "streams": {"stream": 4},
        "seeds": {"seed": 20240718},
        "seeds 2^32 apart": {"seed": 20240717 + (1 << 32)},
    }[other]
    identity = {"seed": 20240717, "stream": 3, "draw": 5, **changed}
    y = ops.randn((2, 1_000_000), **identity).double().numpy()
    assert uncorrelated(values[:2].ravel(), y.ravel())


def test_transform_reaches_beyond_six_and_a_half():
    """The smallest uniform (word 0): sqrt(-2 ln 2^-33) = 6.76; the largest gives a finite, near-zero value."""
    found = reference.box_muller(torch.tensor([0, 0, 0xFFFFFFFF, 0]))
    assert found[0] > 6.5
    assert float(found[0]) == pytest.approx(np.sqrt(66 * np.log(2)), rel=1e-6)
    assert torch.isfinite(found).all()
    assert abs(found[2]) < 1e-3


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_types_are_the_rounded_float32_noise(each_backend, dtype):
    """One float32 value rounded or widened, so that mixed precision sees the same noise."""
    with ops.backend(each_backend):
        single = ops.randn((3, 10_007), seed=5)
        assert torch.equal(ops.randn((3, 10_007), seed=5, dtype=dtype), single.to(dtype))


def test_no_seed_follows_torchs_generator():
    """torch.manual_seed repeats it, two calls differ, and the 64-bit seed leaves the generator moved on."""
    torch.manual_seed(0)
    a, b = ops.randn((2, 100)), ops.randn((2, 100))
    torch.manual_seed(0)
    assert torch.equal(ops.randn((2, 100)), a)
    assert torch.equal(ops.randn((2, 100)), b)
    assert (a == b).float().mean() < 0.05


def test_no_seed_takes_64_bits_of_it(monkeypatch):
    """All 64 bits of the seed vary: so few calls never share one."""
    keys, backend = [], backends.choose("cpu")
    real = backend.combine
    monkeypatch.setattr(backend, "combine", lambda call, *rest: (keys.append(call.noise.key), real(call, *rest))[1])
    with ops.backend("cpu"):  # forced, a backend sees every call
        for _ in range(200):
            ops.randn((1, 1))
    seeds = [int(key[0]) % (1 << 64) for key in keys]
    assert len(set(seeds)) == 200
    assert all(20 < sum(seed >> bit & 1 for seed in seeds) < 180 for bit in range(64))


@pytest.mark.parametrize("seed", [0, 1, -1, (1 << 63) - 1, -(1 << 63), (1 << 63) + 5, (1 << 64) - 1])
def test_seeds_of_64_bits(each_backend, seed):
    """Any seed of 64 bits, as an int or as the int64 of the same bits, and a draw as a tensor too."""
    signed = seed - (1 << 64) if seed >= 1 << 63 else seed
    with ops.backend(each_backend):
        found = ops.randn((1, 9), seed=seed, draw=7)
        for tensor in (torch.tensor(signed), torch.tensor([signed])):
            assert torch.equal(ops.randn((1, 9), seed=tensor, draw=7), found)
            assert torch.equal(ops.randn((1, 9), seed=tensor, draw=torch.tensor(7)), found)
        assert torch.equal(ops.randn((1, 9), seed=seed, draw=torch.tensor(7)), found)
    assert ulps(found[0].numpy(), truth.normals(seed, 0, 0, 7, 9)).max() <= 4


def test_ids_default_to_the_place_in_the_batch():
    """With a seed and no sample_ids, the ids are 0 .. B - 1."""
    assert torch.equal(ops.randn((6, 5), seed=1), ops.randn((6, 5), seed=1, sample_ids=torch.arange(6)))


def test_ops_draw_the_noise_that_randn_returns(each_backend):
    """combine, q_sample and posterior_sample take eps from the same identity."""
    sched, ids = mmfast.Schedule.cosine(50), torch.tensor([4, 9])
    identity = {"seed": 8, "sample_ids": ids, "stream": 2, "draw": 3}
    with ops.backend(each_backend):
        eps = ops.randn((2, 3, 5), **identity)
        zero = torch.zeros(2, 3, 5)
        assert torch.equal(ops.combine([zero], torch.ones(2, 1), torch.ones(2), **identity), eps)
        assert torch.equal(ops.combine([zero], torch.ones(2, 1), return_noise=True, **identity)[1], eps)
        z, returned = ops.q_sample(zero, {}, 20, sched, **identity)
        assert torch.equal(returned, eps)
        torch.testing.assert_close(z, eps * (1 - sched.alpha_bar[20]).sqrt().float(), rtol=2e-7, atol=0)
        sigma = truth.deviation(sched.alpha_bar.numpy(), 20, 19)
        z = ops.posterior_sample(zero, zero, {}, 20, sched, **identity)
        torch.testing.assert_close(z, eps * sigma, rtol=2e-7, atol=0)
