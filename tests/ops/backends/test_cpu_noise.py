"""The noise of the C++ kernels for the CPU, against numpy: Philox and Box-Muller, written out here on their own."""

import math

import numpy as np
import pytest
import torch
from flat import cpu

if cpu.unavailable():
    pytest.skip(cpu.unavailable(), allow_module_level=True)
import _mmfast_cpu as _cpu

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
KEY = torch.tensor([-0x0123456789ABCDEF, 5])


def combine(terms, starts, coefs, sigma, *rest):
    """The kernel with a row of the tables for each sample."""
    return cpu.combine(terms, starts, coefs, sigma, None, *rest)


def randn(shape, ids, stream=0, key=KEY, dtype=torch.float32):
    """The noise alone: no terms, sigma one."""
    real = torch.float64 if dtype == torch.float64 else torch.float32
    ids = torch.as_tensor(ids)
    return combine([], [], torch.empty(len(ids), 0, dtype=real), torch.ones(len(ids), dtype=real), key, ids,
                       stream, shape, dtype, True)  # fmt: skip


def philox(counter, key):
    c, k = [np.asarray(x, np.uint64) for x in counter], [np.uint64(x) for x in key]
    low, half = np.uint64(0xFFFFFFFF), np.uint64(32)
    for _ in range(10):
        p, q = c[0] * np.uint64(0xD2511F53), c[2] * np.uint64(0xCD9E8D57)
        c = [q >> half ^ c[1] ^ k[0], q & low, p >> half ^ c[3] ^ k[1], p & low]
        k = [k[0] + np.uint64(0x9E3779B9) & low, k[1] + np.uint64(0xBB67AE85) & low]
    return c


def normals_of_words(a, b):
    """float64 Box-Muller of uint32 words; the angle is reduced in integers, so its zeros are exact."""
    u = (a.astype(np.float32).astype(np.float64) * 2.0**-32 + 2.0**-33).astype(np.float32).astype(np.float64)
    turn = b.astype(np.int64) + 2**29
    quadrant, rest = turn >> 30 & 3, (turn & (2**30 - 1)) - 2**29
    s, c = np.sin(rest * (np.pi / 2**31)), np.cos(rest * (np.pi / 2**31))
    cosine = np.choose(quadrant, [c, -s, -c, s])
    sine = np.choose(quadrant, [s, c, -s, -c])
    r = np.sqrt(-2 * np.log(u))
    return (r * cosine).astype(np.float32), (r * sine).astype(np.float32)


def expected_noise(key, sample_id, stream, first, count):
    """Elements [first, first + count) of a sample's noise; both multiples of 4."""
    seed, draw = (int(x) for x in key)
    j = np.arange(first // 4, (first + count) // 4)
    top = (sample_id >> 32 & 0xFFFF) | stream << 16
    words = philox([j, draw & 0xFFFFFFFF, sample_id & 0xFFFFFFFF, top], [seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF])
    x0, x1, x2, x3 = (np.broadcast_to(w, j.shape).astype(np.uint32) for w in words)
    return np.stack([*normals_of_words(x0, x1), *normals_of_words(x2, x3)], 1).ravel()


def ulps(a, b):
    def steps(x):
        bits = np.asarray(x, np.float32).view(np.int32).astype(np.int64)
        return np.where(bits < 0, -(bits & 0x7FFFFFFF), bits)

    return int(np.abs(steps(a) - steps(b)).max(initial=0))


def test_philox_known_answers():
    ones, pi = 0xFFFFFFFF, [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344]
    for counter, key, answer in [
        ([0] * 4, [0] * 2, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
        ([ones] * 4, [ones] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
        (pi, [0xA4093822, 0x299F31D0], [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1]),
    ]:
        assert [int(w) for w in philox(counter, key)] == answer


def interesting_words():
    rng = np.random.default_rng(0)
    edges = np.array([0, 1, 2, 3, 63, 64, 127, 128, 129, 255, 256, 257, 2**24 - 1, 2**24, 2**24 + 1, 2**32 - 1])
    around = np.concatenate([np.arange(16) * 2**28 + d for d in range(-3, 4)] + [2**32 - edges, edges])
    powers = np.concatenate([2 ** np.arange(32) + d for d in (-1, 0, 1)])
    special = np.concatenate([around, powers]).astype(np.int64) % 2**32
    a, b = (x.ravel() for x in np.meshgrid(special, special))
    random = rng.integers(0, 2**32, (2, 2**21))
    a, b = np.concatenate([a, random[0]]), np.concatenate([b, random[1]])
    return a[: len(a) // 16 * 16].astype(np.uint32), b[: len(a) // 16 * 16].astype(np.uint32)


def test_box_muller_within_4_ulp_and_alike_on_every_isa():
    a, b = interesting_words()
    want = normals_of_words(a, b)
    results = []
    for name in cpu.isas():
        cpu.set_isa(name)
        got = np.empty((2, len(a)), np.float32)
        _cpu.box_muller(a.ctypes.data, b.ctypes.data, got[0].ctypes.data, got[1].ctypes.data, len(a))
        results.append(got)
    cpu.set_isa(None)
    assert np.isfinite(results[0]).all()
    assert max(ulps(results[0][0], want[0]), ulps(results[0][1], want[1])) <= 4
    for other in results[1:]:
        assert np.array_equal(results[0].view(np.uint32), other.view(np.uint32))


@pytest.mark.parametrize("stream", [0, 3, 65535])
def test_noise_is_what_the_counter_says(isa, stream):
    ids = [0, 1, 2**32 - 1, 2**40 + 17, 2**48 - 1]
    for key in (KEY, torch.tensor([2**63 - 1, 2**32 - 1]), torch.tensor([0, 0])):
        out, eps = randn([len(ids), 1000], ids, stream, key)
        assert torch.equal(out, eps)
        for row, i in zip(eps.numpy(), ids, strict=True):
            assert ulps(row, expected_noise(key, i, stream, 0, 1000)) <= 4


def test_millions_of_normals(isa):
    n = 2**17 if isa == "baseline" else 2**21
    eps = randn([1, n], [9])[1].numpy()[0]
    assert ulps(eps, expected_noise(KEY, 9, 0, 0, n)) <= 4
    assert abs(eps.mean()) < 5 / math.sqrt(n) and abs(eps.std() - 1) < 5 / math.sqrt(2 * n)


def test_noise_of_other_dtypes_is_the_float32_noise_rounded(isa):
    eps = randn([2, 777], [4, 5])[1]
    for dtype in DTYPES:
        out, other = randn([2, 777], [4, 5], dtype=dtype)
        assert torch.equal(other, eps.to(dtype)) and torch.equal(out, other)


def test_noise_does_not_depend_on_the_batch_or_the_shape():
    ids = torch.tensor([7, 2**45, 3, 11])
    eps = randn([4, 3, 5, 7], ids)[1]
    order = torch.tensor([2, 0, 3, 1])
    assert torch.equal(randn([4, 3, 5, 7], ids[order])[1], eps[order])
    for b in range(4):
        assert torch.equal(randn([1, 105], ids[b : b + 1])[1].view(3, 5, 7), eps[b])
    assert torch.equal(randn([4, 50], ids)[1], eps.flatten(1)[:, :50])
