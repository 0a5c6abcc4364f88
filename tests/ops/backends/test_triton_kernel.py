"""The Triton kernels, interpreted on the CPU, against the reference in float64.

Two things of the interpreter differ from a GPU. Its tl.fma rounds twice: here it is given one that rounds once. And its
cast from float32 to bfloat16 cuts instead of rounding: a bfloat16 result may be one ulp off where half a one is right.
"""

import math

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given

pytest.importorskip("triton")
from flat import Flat, reference
from flat import call_of as flat_call
from interpreted import add_up, fma, guarded, load
from problems import few
from triton.runtime.interpreter import InterpreterBuilder, ReduceOps

from mmfast.ops.call import Tables

backend, run, pairs = load("mmfast.ops.backends.triton", "mmfast.ops.backends.triton.launch", "triton_pairs")
backend = Flat(backend)
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
KEY = torch.tensor([-0x0123456789ABCDEF, 5])
BLOCKS = [128, 1024, 8192]


@pytest.fixture(autouse=True)
def interpreter(monkeypatch):
    monkeypatch.setattr(InterpreterBuilder, "create_fma", fma)
    monkeypatch.setattr(ReduceOps, "generic_reduce", add_up)
    monkeypatch.setattr(run, "LANES", 2**13)  # a program takes longer than its elements
    monkeypatch.setattr(run, "BLOCK", 2**13)


def real(dtype):
    return reference.arithmetic(dtype)


def unit(dtype):
    return torch.finfo(real(dtype)).eps


def rounding(dtype, value):
    """How far a result may be from `value` before its rounding and after: half an ulp, or one cut off."""
    info = torch.finfo(dtype)
    return info.eps / (1 if dtype == torch.bfloat16 else 2) * value.abs() + info.tiny


def ulps(a, b):
    def steps(x):
        bits = np.asarray(x, np.float32).view(np.int32).astype(np.int64)
        return np.where(bits < 0, -(bits & 0x7FFFFFFF), bits)

    return int(np.abs(steps(a) - steps(b)).max(initial=0))


def identical(a, b):
    """The same bits, any NaN being like another."""
    return a.dtype == b.dtype and torch.equal(a.isnan(), b.isnan()) and torch.equal(a.nan_to_num(7), b.nan_to_num(7))


def randn(shape, key=KEY, ids=None, stream=0, dtype=torch.float32):
    one = torch.ones(1, dtype=real(dtype))
    return backend.combine([], [], one[:, None][:, :0], one, None, key, ids, stream, shape, dtype, True)


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


def cut(x):
    """float32 to bfloat16 as the interpreter does it."""
    return (x.view(torch.int32) >> 16).to(torch.int16).view(torch.bfloat16)


# The combinations


@st.composite
def problems(draw, extra=0):
    """A call of `combine` with odd shapes, strides, broadcasts, blocks, tables and missing terms.

    extra: coefficients beyond those of the terms. Also NaN where nothing is to be read.
    """
    dtype = draw(st.sampled_from(DTYPES))
    B = draw(st.sampled_from([1, 2, 3, 1, 2, 3, 0]))
    shape = [B, *draw(st.lists(st.sampled_from([1, 2, 3, 5, 8, 17, 2, 3, 5, 17, 0]), min_size=0, max_size=3))]
    g = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    K, R = draw(st.sampled_from(range(9))), draw(st.sampled_from([1, B, 5]))
    rows = torch.randint(0, R, [B], generator=g) if R == 5 or (draw(st.booleans()) and R > 0) else None
    terms, starts = [], []
    for _ in range(K):
        size, start = [n if draw(st.integers(0, 3)) else 1 for n in shape], -1
        if len(shape) > 1 and shape[1] > 0 and draw(st.booleans()):
            start = draw(st.integers(0, shape[1] - 1))
            size[1] = draw(st.integers(1, shape[1] - start))
        step, first = draw(st.sampled_from([1, 1, 2])), draw(st.integers(0, 1))
        term = torch.randn([n * step for n in size], generator=g, dtype=torch.float64).to(dtype)
        term = term[tuple(slice(None, None, step) for _ in size)]
        how = draw(st.sampled_from(["as is", "transposed", "expanded", "misaligned"]))
        if how == "transposed" and len(shape) > 2:
            term = term.transpose(1, -1).contiguous().transpose(1, -1)
        if how == "expanded" and start < 0:
            term = term.expand(B, *term.shape[1:])
        if how == "misaligned":
            term = torch.cat([term.flatten()[:first], term.flatten()])[first and term.numel() and 1 :].view(term.shape)
        terms.append(term)
        starts.append(start)
    coefs = torch.randn(R, K + extra, generator=g).to(real(dtype))
    coefs = torch.where(torch.rand(coefs.shape, generator=g) < 0.2, 0.0, coefs)
    sigma = torch.rand(R, generator=g).to(real(dtype)) if draw(st.booleans()) else None
    ids = torch.randint(0, 2**48, [B], generator=g) if draw(st.booleans()) else None
    key = draw(st.sampled_from([KEY, (3, 2**32 - 1), (-(2**63), 0), None if sigma is None else KEY]))
    return terms, starts, coefs, sigma, rows, key, ids, draw(st.integers(0, 65535)), shape, dtype, g


def spoil(terms, coefs, rows, B):
    """NaN in the terms where no coefficient of theirs lets them be read: coefs is [R, K] or [R, K, any]."""
    read = reference.pick(coefs.flatten(2) if coefs.dim() > 2 else coefs[..., None], rows, B).ne(0).any(-1)
    result = []
    for k, term in enumerate(terms):
        term = term.clone(memory_format=torch.preserve_format)
        if term.shape[0] == B and term.numel() and term.stride(0):
            term[~read[:, k]] = math.nan
        result.append(term)
    return result


def double(*tensors):
    return [[t.double() for t in x] if isinstance(x, list) else None if x is None else x.double() for x in tensors]


def noise_of(key, ids, stream, shape):
    """The reference's noise, float64."""
    if key is None or not math.prod(shape):
        return torch.zeros(shape, dtype=torch.float64)
    return reference.noise(key, reference.identities(ids, shape, torch.device("cpu")), stream, shape).double()


def spread_of(sigma, rows, key, ids, stream, shape):
    """sigma |eps|, float64."""
    sigma = reference.per_sample(reference.pick(sigma, rows, shape[0]), len(shape))
    return sigma * noise_of(key, ids, stream, shape).abs()


def exact(terms, starts, coefs, sigma, rows, key, ids, stream, shape):
    """The combination in float64, and how far from it arithmetic of float32 may be."""
    dtype, (terms64, coefs64, sigma64) = terms[0].dtype if terms else coefs.dtype, double(terms, coefs, sigma)
    want = reference.combine(terms64, starts, coefs64, sigma64, rows, key, ids, stream, shape, torch.float64, False)[0]
    size = [[t.abs() for t in terms64], starts, coefs64.abs(), None, rows, None, None, 0, shape, torch.float64, False]
    size = reference.combine(*size)[0]
    off = 0.0
    if sigma is not None and key is not None:
        spread = (
            reference.per_sample(reference.pick(sigma64, rows, shape[0]), len(shape))
            * noise_of(key, ids, stream, shape).abs()
        )
        size, off = size + spread, 4 * 2.0**-23 * spread
    return want, (len(terms) + 2) * unit(dtype) * size + off


def test_every_kind_of_term_with_short_and_long_rows(monkeypatch):
    """Each beside a whole tensor and mostly a label, in tiles of several rows and in tiles shorter than a row."""
    shape, g, seen = [2, 3, 2, 36], torch.Generator().manual_seed(5), set()
    sizes = [
        (shape, -1),
        ([2, 2, 2, 36], 1),
        ([2, 3, 1, 1], -1),
        ([2, 2, 1, 1], 1),
        ([1, 1, 1, 1], -1),
        ([2, 1, 2, 1], 2),
    ]
    terms = [(torch.randn(size, generator=g), start) for size, start in sizes]
    terms += [(torch.randn(*size[:3], 72, generator=g)[..., :36], start) for size, start in sizes[:2]]
    coefs = torch.randn(2, 3, generator=g)
    place = run.place
    for block in (32, 2048):
        for term, start in terms:
            third = terms[2 if term.is_contiguous() else 0][0]
            call = [term, terms[0][0], third], [start, -1, -1], coefs, None, None, None, None, 0, shape
            constants = place(flat_call(*call[:2], Tables(coefs), None, None, None, 0, shape, torch.float32), block)[2]
            seen |= {(constants["ROWS"], *kind) for kind in zip(constants["KINDS"], constants["CUTS"], strict=True)}
            monkeypatch.setattr(run, "BLOCK", block)
            with guarded(backend):
                out = backend.combine(*call, torch.float32, False)[0]
            want, bound = exact(*call)
            assert ((out.double() - want).abs() <= bound).all()
    kinds = {(kind, cut) for kind in ("whole", "value", "rows") for cut in (False, True)}
    assert {(rows, *kind) for rows in ("short", "long") for kind in kinds} <= seen


@given(problems(), st.sampled_from(BLOCKS), st.booleans())
def test_combine_against_float64(problem, block, return_noise):
    terms, starts, coefs, sigma, rows, key, ids, stream, shape, dtype, _ = problem
    terms = spoil(terms, coefs, rows, shape[0])
    call = terms, starts, coefs, sigma, rows, key, ids, stream, shape
    run.BLOCK = block
    with guarded(backend):
        out, eps = backend.combine(*call, dtype, return_noise)
    assert out.dtype == eps.dtype == dtype and list(out.shape) == shape
    assert list(eps.shape) == (shape if return_noise and key is not None else [0])
    want, bound = exact(*call)
    assert ((out.double() - want).abs() <= bound + rounding(dtype, want)).all()
    if eps.numel():
        noise = noise_of(key, ids, stream, shape)
        assert ((eps.double() - noise).abs() <= 4 * 2.0**-23 * noise.abs() + rounding(dtype, noise)).all()


@given(problems(extra=1), st.sampled_from(BLOCKS), st.data())
def test_step_against_float64(problem, block, data):
    terms, starts, coefs, sigma, rows, key, ids, stream, shape, dtype, g = problem
    to_x0 = torch.randn(len(coefs), len(terms), generator=g).to(coefs.dtype)
    to_x0 = torch.where(torch.rand(to_x0.shape, generator=g) < 0.3, 0.0, to_x0)
    terms = spoil(terms, torch.stack((to_x0, coefs[:, :-1]), 2), rows, shape[0])
    start, channels = -1, shape[1] if len(shape) > 1 else 1
    if len(shape) > 1 and shape[1] > 0 and data.draw(st.booleans()):
        start = data.draw(st.integers(0, shape[1] - 1))
        channels = data.draw(st.integers(1, shape[1] - start))
    low, high = data.draw(st.sampled_from([(-1.0, 1.0), (-0.1, 0.3), (-math.inf, math.inf)]))
    given_x0 = low, high, start, channels, key, ids, stream, shape
    run.BLOCK = block
    with guarded(backend):
        out, x0 = backend.step(terms, starts, to_x0, coefs, sigma, rows, *given_x0, dtype, True)
        alone = backend.step(terms, starts, to_x0, coefs, sigma, rows, *given_x0, dtype, False)
    assert identical(out, alone[0]) and alone[1].numel() == 0
    terms64, to64, coefs64, sigma64 = double(terms, to_x0, coefs, sigma)
    want, want_x0 = reference.step(terms64, starts, to64, coefs64, sigma64, rows, *given_x0, torch.float64, True)
    wide = -math.inf, math.inf, *given_x0[2:4], None, None, 0, shape
    sizes = [t.abs() for t in terms64], starts, to64.abs(), coefs64.abs(), None, rows, *wide, torch.float64, True
    size, size_x0 = reference.step(*sizes)
    last = reference.per_sample(reference.pick(coefs64[:, -1].abs(), rows, shape[0]), len(shape))
    size = size + last * (abs(low) if math.isfinite(low) else 0.0)
    bound = (2 * len(terms) + 6) * unit(dtype) * size
    if sigma is not None and key is not None:
        spread = (
            reference.per_sample(reference.pick(sigma64, rows, shape[0]), len(shape))
            * noise_of(key, ids, stream, shape).abs()
        )
        bound = bound + (4 * 2.0**-23 + 2 * unit(dtype)) * spread
    assert out.dtype == x0.dtype == dtype and list(out.shape) == shape
    assert x0.shape == want_x0.shape
    poisoned = want.isnan()  # x0 of a term that only its own sum may read
    assert torch.equal(out.isnan(), poisoned) and torch.equal(x0.isnan(), want_x0.isnan())
    assert (poisoned | ((out.double() - want).abs() <= bound + rounding(dtype, want))).all()
    bound_x0 = (len(terms) + 2) * unit(dtype) * size_x0 + rounding(dtype, want_x0)
    assert (want_x0.isnan() | ((x0.double() - want_x0).abs() <= bound_x0)).all()


def test_step_keeps_a_term_out_of_one_sum_alone():
    bad, good = torch.full([1, 8], math.nan), torch.ones(1, 8)
    tables = torch.tensor([[0.0, 2.0]]), torch.tensor([[1.0, 3.0, 0.5]])
    call = None, None, -1.0, 1.0, -1, 8, None, None, 0, [1, 8], torch.float32, True
    out, x0 = backend.step([bad, good], [-1, -1], *tables, *call)
    assert out.isnan().all() and torch.equal(x0, torch.ones(1, 8))
    out, x0 = backend.step([bad, good], [-1, -1], tables[0].flip(1), torch.tensor([[0.0, 3.0, 0.0]]), *call)
    assert torch.equal(out, torch.full([1, 8], 3.0)) and x0.isnan().all(), "a NaN is not clamped away"


@few
@given(problems(), st.booleans())
def test_squared_error_against_float64(problem, return_grad):
    terms, starts, coefs, sigma, rows, key, ids, stream, shape, dtype, g = problem
    first = torch.randn(shape, generator=g).to(dtype)
    coefs = torch.cat((torch.rand(len(coefs), 1, generator=g).to(coefs.dtype) + 0.5, coefs), 1)
    terms, starts = spoil([first, *terms], coefs, rows, shape[0]), [-1, *starts]
    weight, scale = torch.randn(len(coefs), generator=g).to(coefs.dtype), 0.37
    call = key, ids, stream, shape
    with guarded(backend):
        loss, grad = backend.squared_error(terms, starts, coefs, sigma, weight, rows, *call, dtype, scale, return_grad)
    r, off = exact(terms, starts, coefs, sigma, rows, *call)
    of = scale * reference.pick(weight, rows, shape[0]).double()
    want = of * reference.sum_samples(r.square())
    bound = of.abs() * reference.sum_samples(2 * r.abs() * off + off.square()) + 4 * unit(dtype) * want.abs()
    assert loss.dtype == coefs.dtype and loss.shape == want.shape and ((loss.double() - want).abs() <= bound).all()
    assert list(grad.shape) == (shape if return_grad else [0]) and grad.dtype == dtype
    if return_grad:
        slope = reference.per_sample(2 * of * reference.pick(coefs, rows, shape[0])[:, 0].double(), len(shape))
        bound = slope.abs() * off + 4 * unit(dtype) * (slope * r).abs() + rounding(dtype, slope * r)
        assert ((grad.double() - slope * r).abs() <= bound).all()


@few
@given(problems(), st.data())
def test_backward_against_float64(problem, data):
    terms, starts, _, sigma, _, key, ids, stream, shape, dtype, g = problem
    B, K = shape[0], len(terms)
    coefs = torch.randn(B, K, generator=g).to(real(dtype))
    coefs = torch.where(torch.rand(coefs.shape, generator=g) < 0.2, 0.0, coefs)
    sigma = None if sigma is None else torch.rand(B, generator=g).to(real(dtype))
    needs = data.draw(st.lists(st.booleans(), min_size=K + 2, max_size=K + 2))
    grad = torch.randn(shape, generator=g).to(dtype)
    with guarded(backend):
        got = backend.combine_backward(grad, terms, starts, coefs, sigma, key, ids, stream, needs)
    grad64, terms64, coefs64, sigma64 = double(grad, terms, coefs, sigma)
    call = sigma64, key, ids, stream, needs
    want = reference.combine_backward(grad64, terms64, starts, coefs64, *call)
    size = [t.abs() for t in terms64]
    size = reference.combine_backward(grad64.abs(), size, starts, coefs64.abs(), None, None, None, 0, needs)
    bounds = [2 * unit(dtype) * x for x in size]
    if len(bounds) < len(want):
        each = reference.sum_samples(grad64.abs() * noise_of(key, ids, stream, shape).abs())
        bounds.append((2 * unit(dtype) + 4 * 2.0**-23) * each)
    assert len(got) == len(want)
    kinds = [terms[k].dtype for k in range(K) if needs[k]] + [coefs.dtype] * 2
    for mine, exactly, bound, kind in zip(got, want, bounds, kinds, strict=False):
        assert mine.shape == exactly.shape and mine.dtype == kind
        # Products and sums in float64, the noise within 4 ulp, the coefficient and the result rounded once.
        assert ((mine.double() - exactly).abs() <= bound + 2 * rounding(kind, exactly)).all()


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
