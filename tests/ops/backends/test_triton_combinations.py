"""The Triton kernels of the combinations, interpreted on the CPU, against the reference in float64."""

import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given

pytest.importorskip("triton")
from flat import call_of as flat_call
from flat import reference
from interpreted import guarded
from problems import few
from triton_interpreted import BLOCKS, DTYPES, KEY, backend, identical, interpreter, real, rounding, run, unit  # noqa: F401

from mmfast.ops.call import Tables

pytestmark = pytest.mark.usefixtures("interpreter")


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
        spread = spread_of(sigma64, rows, key, ids, stream, shape)
        size, off = size + spread, 4 * 2.0**-23 * spread
    return want, (len(terms) + 2) * unit(dtype) * size + off


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
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
        spread = spread_of(sigma64, rows, key, ids, stream, shape)
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
