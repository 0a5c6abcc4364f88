"""The Triton kernels, interpreted on the CPU: their noise and masks against the reference, and what must not matter."""

import math

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given

pytest.importorskip("triton")
from flat import reference
from interpreted import guarded
from problems import few
from triton_interpreted import BLOCKS, DTYPES, KEY, backend, cut, identical, interpreter, pairs, randn, real, run  # noqa: F401

pytestmark = pytest.mark.usefixtures("interpreter")


def ulps(a, b):
    def steps(x):
        bits = np.asarray(x, np.float32).view(np.int32).astype(np.int64)
        return np.where(bits < 0, -(bits & 0x7FFFFFFF), bits)

    return int(np.abs(steps(a) - steps(b)).max(initial=0))


# The noise


IDS = torch.tensor([0, 1, 2**32 - 1, 2**40 + 17, 2**48 - 1])


@pytest.mark.parametrize(
    ("key", "ids"),
    [(KEY, IDS), ((KEY[0].item(), 5), None), ((2**63 - 1, 2**32 - 1), IDS), (torch.tensor([0, 0]), None)],
)
def test_words_bit_for_bit(key, ids):
    for stream, blocks in [(0, 1), (3, 30), (65535, 1030)]:
        with guarded(backend):
            ranks = backend.block_ranks(key, ids, stream, 5, blocks, torch.device("cpu"))
        assert torch.equal(ranks, reference.block_ranks(key, ids, stream, 5, blocks, torch.device("cpu")))


def test_box_muller_within_4_ulp():
    generator = np.random.default_rng(0)
    powers = np.concatenate([2 ** np.arange(32) + d for d in (-1, 0, 1)] + [np.arange(16) * 2**28 + d for d in (-1, 1)])
    special = np.concatenate([powers, 2**32 - 1 - powers]) % 2**32
    words = np.stack([x.ravel() for x in np.meshgrid(special, special)], 1)
    words = np.concatenate([words, generator.integers(0, 2**32, (2**18 - len(words), 2))])
    a, b = torch.from_numpy(words).T.contiguous()
    first, second = torch.empty(2, len(a))
    pairs.pairs[(4,)](a, b, first, second, BLOCK=2**16)
    want = reference.box_muller(torch.stack((a, b), 1))
    # The reference's angle is rounded before its cosine: near a zero only its absolute error is small.
    turn = (b + 2**29) >> 30 & 3
    rest = ((b + 2**29) & (2**30 - 1)).double() * (math.pi / 2**31) - math.pi / 4
    rest = torch.where(((b + 2**29) & (2**30 - 1)) == 2**29, 0.0, rest)
    cosine, sine = torch.cos(rest), torch.sin(rest)
    u = (a.float().double() * 2.0**-32 + 2.0**-33).float().double()
    r = torch.sqrt(-2 * torch.log(u))
    exact = [r * torch.stack([cosine, -sine, -cosine, sine]).gather(0, turn[None])[0],
             r * torch.stack([sine, cosine, -sine, -cosine]).gather(0, turn[None])[0]]  # fmt: skip
    assert (torch.stack(exact, 1) - want).abs().max() < 1e-6
    assert ulps(first, exact[0].float()) <= 4 and ulps(second, exact[1].float()) <= 4


@pytest.mark.parametrize("dtype", DTYPES)
def test_noise_within_4_ulp_of_the_reference(dtype):
    ids, shape = torch.tensor([3, 2**45]), [2, 3, 41, 43]
    out, eps = randn(shape, KEY, ids, 7, dtype)
    assert torch.equal(out, eps) and eps.dtype == dtype
    single = randn(shape, KEY, ids, 7)[1]
    assert ulps(single, reference.noise(KEY, ids, 7, shape)) <= 4
    assert torch.equal(eps, cut(single) if dtype == torch.bfloat16 else single.to(dtype))


# What must not matter


def call_of(shape, dtype=torch.float32):
    """Terms of every kind."""
    g = torch.Generator().manual_seed(0)
    B, C, H, W = shape
    sizes = [shape, [B, C, 1, 1], [B, C - 1, H, W], [1, C, H, W], [B, 1, 1, 1], [B, 1, H, 1], [B, C, H, 2 * W]]
    terms = [torch.randn(size, generator=g).to(dtype) for size in sizes]
    terms[-1] = terms[-1][..., :W]
    coefs = torch.randn(B, len(terms) + 1, generator=g).to(real(dtype))
    return terms, [-1, -1, 1, -1, -1, -1, -1], coefs, torch.rand(B, generator=g).to(real(dtype)), None


def every_op(shape, dtype, select=slice(None)):
    """The results that no tile may change, of some samples."""
    terms, starts, coefs, sigma, _ = call_of(shape, dtype)
    ids = torch.arange(shape[0])[select] * 2**33
    terms = [t if len(t) == 1 else t[select] for t in terms]
    coefs, sigma, shape = coefs[select], sigma[select], [len(ids), *shape[1:]]
    rest = KEY, ids, 2, shape, dtype
    results = [*backend.combine(terms, starts, coefs[:, :-1], sigma, None, *rest, True)]
    results += backend.step(terms, starts, coefs[:, 1:], coefs, sigma, None, -1.0, 1.0, 1, 1, *rest, True)
    error = terms, starts, coefs[:, :-1], sigma, coefs[:, 1].contiguous(), None
    results += backend.squared_error(*error, *rest, 0.5, True)
    results.append(backend.block_ranks(KEY, ids, 0, len(ids), 77, torch.device("cpu")))
    threshold = torch.full([len(ids)], 2**62)
    return [*results, *backend.block_mask(terms[0], threshold, KEY, ids, 3, (2, 3))]


@pytest.mark.slow
def test_the_size_of_tiles_changes_no_bit():
    shape, results = [2, 3, 2, 13], []
    for run.BLOCK in (16, 64, 2048):  # two rows a tile or more, rows longer than a tile, a whole sample
        results.append(every_op(shape, torch.float32))
    for other in results[1:]:
        assert all(identical(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.slow
def test_samples_do_not_depend_on_each_other():
    """Of two tiles each and a part of one."""
    run.BLOCK = run.LANES = 2**10
    whole = every_op([3, 3, 29, 27], torch.float32)
    for b in (0, 2):
        alone = every_op([3, 3, 29, 27], torch.float32, slice(b, b + 1))
        assert all(identical(one[0], all_of_them[b]) for one, all_of_them in zip(alone, whole, strict=True))


def test_low_precision_is_float32_rounded():
    for dtype, rounded in ((torch.bfloat16, cut), (torch.float16, torch.Tensor.half)):
        terms, starts, coefs, sigma, _ = call_of([2, 3, 7, 19], dtype)
        call = starts, coefs[:, :-1], sigma, None, KEY, None, 2, [2, 3, 7, 19]
        low = backend.combine(terms, *call, dtype, True)
        high = backend.combine([t.float() for t in terms], *call, torch.float32, True)
        assert all(torch.equal(a, rounded(b)) for a, b in zip(low, high, strict=True))


@pytest.mark.slow
def test_sums_of_many_items_with_the_lanes_of_a_gpu():
    """ITEM and LANES as they are: 3 items and a tail a sample, and row sums of more items than one pass adds."""
    run.LANES, run.BLOCK = 1024, 2**15
    g = torch.Generator().manual_seed(1)
    x, y = torch.randn(2, 3, 90, 95, generator=g)
    one = torch.ones(1, 2)
    none = None, None, None, 0, [3, 90, 95], torch.float32
    loss, _ = backend.squared_error([x, y], [-1, -1], one, None, torch.ones(1), *none, 1.0, False)
    want = (x.double() + y.double()).square().sum((1, 2))
    assert ((loss - want).abs() <= 2.0**-22 * want).all()
    long = torch.randn(1, 2**23 + 5, generator=g)
    run.LANES = 2**13
    assert abs(backend.row_sums(long).item() - long.double().sum().item()) < 1e-9 * long.abs().double().sum()


def test_more_terms_than_run_fused():
    x = [torch.full([2, 3], float(k)) for k in range(backend.max_terms + 1)]
    none = None, None, None, None, 0, [2, 3], torch.float32
    out = backend.combine(x, [-1] * len(x), torch.ones(2, len(x)), *none, False)[0]
    assert torch.equal(out, torch.full([2, 3], float(sum(range(len(x))))))


@few
@given(st.data())
def test_block_mask_against_the_reference(data):
    dtype = data.draw(st.sampled_from(DTYPES))
    shape = [data.draw(st.sampled_from(sizes)) for sizes in ([0, 1, 3], [0, 1, 3, 9], [1, 5, 16], [1, 7, 33])]
    block = [data.draw(st.integers(1, 6)) for _ in range(2)]
    g = torch.Generator().manual_seed(3)
    x = torch.randn(shape, generator=g).to(dtype).transpose(2, 3).contiguous().transpose(2, 3)
    threshold = torch.randint(0, 2**62, [shape[0]], generator=g) * 2
    run.BLOCK = data.draw(st.sampled_from(BLOCKS))
    with guarded(backend):
        out, mask = backend.block_mask(x, threshold, KEY, None, 9, block)
    want, want_mask = reference.block_mask(x, threshold, KEY, None, 9, block)
    assert torch.equal(out, want) and torch.equal(mask, want_mask) and out.dtype == mask.dtype == dtype
    out, mask = backend.block_mask(torch.full_like(x, math.nan), threshold, KEY, None, 9, block)
    assert torch.equal(out.isnan(), mask.expand_as(out) == 1), "what is hidden is 0, whatever x holds"


def test_the_backend_says_what_it_is():
    assert backend.unavailable() is None and "interpreted" in backend.describe()
    from mmfast.ops.backends import triton as compiled  # as this process has it, not interpreted

    if not torch.cuda.is_available() and not compiled.run.interpreted:
        assert "GPU" in compiled.unavailable() and "\n" not in compiled.unavailable()
