"""Calls of the ops with odd shapes, strides, broadcasts, blocks and missing terms, and the error that each may have."""

import math

import hypothesis.strategies as st
import torch
from flat import reference

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
KEY = torch.tensor([-0x0123456789ABCDEF, 5])
SINGLE = torch.finfo(torch.float32).eps


def real(dtype):
    return torch.float64 if dtype == torch.float64 else torch.float32


def identical(a, b):
    """The same bits, any NaN being like another."""
    return a.dtype == b.dtype and torch.equal(a.isnan(), b.isnan()) and torch.equal(a.nan_to_num(7), b.nan_to_num(7))


def ulps(a, b):
    def steps(x):
        bits = x.contiguous().view(torch.int32).long()
        return torch.where(bits < 0, -(bits & 0x7FFFFFFF), bits)

    return int((steps(a) - steps(b)).abs().max()) if a.numel() else 0


@st.composite
def problems(draw, least_terms=0):
    """The common arguments of combine, step and squared_error, as a dict; with a generator for the rest."""
    dtype = draw(st.sampled_from(DTYPES))
    shape = [draw(st.sampled_from([0, 1, 1, 2, 3, 4]))]
    shape += draw(st.lists(st.sampled_from([0, 1, 2, 3, 4, 8, 8, 16, 17, 33, 70]), min_size=0, max_size=3))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    terms, starts = [], []
    for k in range(draw(st.integers(least_terms, 8))):
        size, start = [n if draw(st.integers(0, 3)) or (least_terms and k == 0) else 1 for n in shape], -1
        if len(shape) > 1 and shape[1] > 0 and k >= least_terms and draw(st.booleans()):
            start = draw(st.integers(0, shape[1] - 1))
            size[1] = draw(st.integers(1, shape[1] - start))
        step = draw(st.sampled_from([1, 1, 2]))
        term = torch.randn([n * step for n in size], generator=generator, dtype=torch.float64).to(dtype)
        term = term[tuple(slice(None, None, step) for _ in size)]
        how = draw(st.sampled_from(["as is", "transposed", "expanded", "misaligned"]))
        if how == "transposed" and len(shape) > 2:
            term = term.transpose(1, -1).contiguous().transpose(1, -1)
        if how == "expanded" and start < 0:
            term = term.expand(shape[0], *term.shape[1:])
        if how == "misaligned":
            term = torch.cat([term.new_zeros(1), term.flatten()])[1:].view(term.shape)
        terms.append(term)
        starts.append(start)
    rows, count = None, draw(st.sampled_from([1, shape[0]]))
    if draw(st.booleans()):
        count = 3
        rows = torch.randint(0, count, [shape[0]], generator=generator)
    coefs = torch.randn(count, len(terms), generator=generator).to(real(dtype))
    coefs = torch.where(torch.rand(coefs.shape, generator=generator) < 0.2, 0.0, coefs)
    each = coefs[rows] if rows is not None else coefs.expand(shape[0], -1)
    for k, term in enumerate(terms):  # what is not to be read
        if term.shape[0] == shape[0] and term.stride(0) and term.numel():
            term[each[:, k] == 0] = math.nan
    sigma = draw(st.sampled_from([None, 0.0, 0.7]))
    if sigma is not None:
        sigma = torch.full([count], sigma, dtype=real(dtype))
        sigma[::2] *= 2
    levels = ()
    if sigma is not None and len(shape) > 1 and shape[1] > 0 and draw(st.booleans()):
        levels = (0, *sorted(draw(st.sets(st.integers(1, shape[1] - 1), max_size=5)) if shape[1] > 1 else ()))
        sigma = sigma[:, None] * torch.randint(0, 3, [count, len(levels)], generator=generator).to(sigma.dtype)
    key = draw(st.sampled_from([KEY, tuple(KEY.tolist())])) if sigma is not None or draw(st.booleans()) else None
    ids = draw(st.sampled_from([None, torch.randint(0, 2**48, [shape[0]], generator=generator)]))
    return dict(
        terms=terms, starts=starts, coefs=coefs, sigma=sigma, rows=rows, key=key, sample_ids=ids,
        stream=draw(st.integers(0, 65535)), shape=shape, dtype=dtype, levels=levels,
    ), generator  # fmt: skip


def exactly(problem, **more):
    """The arguments in float64, for reference.py."""
    wide = {k: v.double() if isinstance(v, torch.Tensor) and v.is_floating_point() else v for k, v in problem.items()}
    wide["terms"] = [t.double() for t in problem["terms"]]
    return {**wide, "dtype": torch.float64, **more}


def absolute(problem, coefs="coefs", sigma=True):
    """The sum of the absolute values of a combination's parts, and that of the noise's part alone."""
    p = exactly(problem)
    terms = [t.abs() for t in p["terms"]]
    without = dict(p, terms=terms, coefs=p[coefs].abs(), sigma=None, key=None, return_noise=False)
    for name in ("to_x0", "weight", "scale", "low", "high", "x0_start", "x0_channels"):
        without.pop(name, None)
    size, noise = reference.combine(**without)[0], torch.zeros(p["shape"], dtype=torch.float64)
    if sigma and p["sigma"] is not None:
        eps = reference.noise(
            p["key"], reference.identities(p["sample_ids"], p["shape"], "cpu"), p["stream"], p["shape"]
        )
        sigma, levels = reference.pick(p["sigma"].abs(), p["rows"], p["shape"][0]), problem["levels"]
        sigma = reference.per_channel(sigma, levels, p["shape"]) if levels else reference.per_sample(sigma, eps.dim())
        noise = eps.double().abs() * sigma
    return size + noise, noise


def rounding(problem, size, noise, additions):
    """The bound of a sum of products: a rounding an addition, each of at most `size`, and 4 ulp of the noise."""
    return additions * torch.finfo(real(problem["dtype"])).eps * size + 4 * SINGLE * noise


def check(got, want, bound, dtype):
    """got is want to within the bound and the last rounding, to dtype."""
    info = torch.finfo(dtype)
    assert got.dtype == dtype and got.shape == want.shape and got.is_contiguous()
    error, allowed = (got.double() - want).abs(), bound + info.eps / 2 * (want.abs() + bound) + info.tiny
    over = want.abs() + bound >= info.max  # may have become infinite
    assert ((error <= allowed) | over).all()
