"""The CUDA kernels, run on the host under tests/support/cuda_shim, against reference.py in float64.

The shim compiles the very sources of csrc/cuda with a C++ compiler and runs them thread by thread. So this shows
what they compute, that every access is inside and aligned, and that barriers are reached by all; threads also run in
the other order, which a missing barrier would not survive. It does not show what only a GPU has: the instructions for
half precision (half.h stands in), the memory system, real concurrency, streams and graphs:
test_gpu.py and the last of test_cuda_launch.py are for those.
"""

import math

import hypothesis.strategies as st
import pytest
import torch
from cuda_problems import DTYPES, KEY, SINGLE, absolute, check, exactly, identical, problems, real, rounding, ulps
from flat import cuda, reference
from hypothesis import given
from problems import many

from mmfast.ops import Block, Tables

pytest_plugins = ["cuda_on_host"]
pytestmark = pytest.mark.usefixtures("host")


@many
@given(problems(), st.booleans())
def test_combine(made, return_noise):
    p, _ = made
    out, eps = cuda.combine(**p, return_noise=return_noise)
    want, want_eps = reference.combine(**exactly(p), return_noise=return_noise)
    check(out, want, rounding(p, *absolute(p), len(p["terms"]) + 1), p["dtype"])
    check(eps, want_eps, 4 * SINGLE * want_eps.abs(), p["dtype"])


@many
@given(problems(), st.booleans(), st.data())
def test_step(made, return_x0, data):
    p, g = made
    p["to_x0"] = torch.randn(p["coefs"].shape, generator=g).to(p["coefs"].dtype)
    p["to_x0"] = torch.where(torch.rand(p["to_x0"].shape, generator=g) < 0.2, 0.0, p["to_x0"])
    p["terms"] = [t.nan_to_num(0.5) for t in p["terms"]]  # what one sum leaves out the other may read
    last = torch.randn(len(p["coefs"]), 1, generator=g) * torch.randint(0, 2, (1,), generator=g)
    p["coefs"] = torch.cat([p["coefs"], last.to(p["coefs"].dtype)], 1)
    shape = p["shape"]
    p.update(low=-1.0, high=data.draw(st.sampled_from([0.7, math.inf])), x0_start=-1, x0_channels=0)
    if len(shape) > 1 and shape[1] > 0 and data.draw(st.booleans()):
        p["x0_start"] = data.draw(st.integers(0, shape[1] - 1))
        p["x0_channels"] = data.draw(st.integers(1, shape[1] - p["x0_start"]))
    out, x0 = cuda.step(**p, return_x0=return_x0)
    want, want_x0 = reference.step(**exactly(p), return_x0=True)
    # Of x0: its own error, then of the sum.
    n = len(p["terms"])
    terms_only = dict(p, coefs=p["coefs"][:, :-1])
    x0_bound = rounding(p, *absolute(dict(terms_only, to_x0=p["to_x0"]), "to_x0", sigma=False), n + 1)
    covered = torch.zeros(shape, dtype=torch.float64)
    part = slice(None) if p["x0_start"] < 0 else slice(p["x0_start"], p["x0_start"] + p["x0_channels"])
    if len(shape) > 1:
        covered[:, part] = want_x0.abs()
    else:
        covered[:] = want_x0.abs()
    weight = reference.per_sample(reference.pick(p["coefs"][:, -1].double().abs(), p["rows"], shape[0]), len(shape))
    size, noise = absolute(terms_only)
    bound = rounding(p, size + weight * covered, noise, n + 2) + weight * x0_bound
    check(out, want, bound, p["dtype"])
    if return_x0:
        check(x0, want_x0, x0_bound[:, part] if len(shape) > 1 else x0_bound, p["dtype"])
    else:
        assert x0.numel() == 0


@many
@given(problems(least_terms=1), st.booleans())
def test_squared_error(made, return_grad):
    p, g = made
    p["weight"], p["scale"] = torch.rand(len(p["coefs"]), generator=g).to(p["coefs"].dtype), 0.3
    loss, grad = cuda.squared_error(**p, return_grad=return_grad)
    want, want_grad = reference.squared_error(**exactly(p), return_grad=True)
    error = rounding(p, *absolute(p), len(p["terms"]) + 1)
    r = reference.combine(**exactly({k: v for k, v in p.items() if k not in ("weight", "scale")}), return_noise=False)[
        0
    ]
    weight = p["scale"] * reference.pick(p["weight"], p["rows"], p["shape"][0]).double()
    unit = torch.finfo(loss.dtype).eps
    bound = weight * reference.sum_samples(2 * r.abs() * error + error**2) + 4 * unit * want
    check(loss, want, bound, loss.dtype)
    if not return_grad:
        assert grad.numel() == 0
        return
    first = 2 * weight * reference.pick(p["coefs"], p["rows"], p["shape"][0])[:, 0].double().abs()
    factor = reference.per_sample(first, len(p["shape"]))
    check(grad, want_grad, factor * error + 4 * unit * want_grad.abs(), p["dtype"])


@many
@given(problems(), st.data())
def test_combine_backward(made, data):
    p, g = made
    shape, dtype, terms, starts = p["shape"], p["dtype"], [t.nan_to_num(0.5) for t in p["terms"]], p["starts"]
    coefs = reference.pick(p["coefs"], p["rows"], shape[0])
    sigma = None if p["sigma"] is None else reference.pick(p["sigma"], p["rows"], shape[0])
    needs = data.draw(st.lists(st.booleans(), min_size=len(terms) + 2, max_size=len(terms) + 2))
    grad = torch.randn(shape, generator=g).to(dtype)
    if len(shape) > 1 and data.draw(st.booleans()):
        grad = grad.transpose(0, 1).contiguous().transpose(0, 1)
    call = p["key"], p["sample_ids"], p["stream"], needs
    got = cuda.combine_backward(grad, terms, starts, coefs, sigma, *call)
    wide = [t.double() for t in terms]
    want = reference.combine_backward(
        grad.double(), wide, starts, coefs.double(), None if sigma is None else sigma.double(), *call
    )
    size = reference.combine_backward(
        grad.double().abs(), [t.abs() for t in wide], starts, coefs.double().abs(), None, None, None, 0, needs
    )
    unit = torch.finfo(coefs.dtype).eps
    assert len(got) == len(want)
    for i, (a, b) in enumerate(zip(got, want, strict=True)):
        bound = 2 * unit * size[i] if i < len(size) else _noise_bound(grad, p, unit)
        check(a, b, bound, a.dtype)
        assert a.dtype == (dtype if i < sum(needs[:-2]) else coefs.dtype)


def _noise_bound(grad, p, unit):
    eps = reference.noise(p["key"], reference.identities(p["sample_ids"], p["shape"], "cpu"), p["stream"], p["shape"])
    return (4 * SINGLE + 2 * unit) * reference.sum_samples(grad.double().abs() * eps.double().abs())


# The noise


def test_integers_are_the_generators(host):
    # Random123's known answer for a counter and a key of zeros; the others are checked through reference.py.
    ranks = cuda.block_ranks((0, 0), None, 0, 1, 4, torch.device("cpu"))
    words = [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
    assert ranks.tolist() == [[(w << 31) + j for j, w in enumerate(words)]]
    ids = torch.tensor([0, 1, 2**32 - 1, 2**40 + 17, 2**48 - 1])
    for key in (KEY, torch.tensor([2**63 - 1, 2**32 - 1]), (-(2**63), 7)):
        for blocks in (1, 4, 7, 1000, 1001):
            for stream in (0, 65535):
                args = key, ids, stream, len(ids), blocks, torch.device("cpu")
                assert torch.equal(cuda.block_ranks(*args), reference.block_ranks(*args))
    assert cuda.block_ranks(KEY, None, 0, 0, 4, torch.device("cpu")).shape == (0, 4)


def test_normals_of_words(host):
    generator = torch.Generator().manual_seed(0)
    edges = torch.tensor(
        [0, 1, 127, 128, 129, 2**24 - 1, 2**24 + 1, 2**29, 2**30 - 1, 2**30, 2**31, 3 * 2**30, 2**32 - 1]
    )
    a, b = torch.meshgrid(edges, edges, indexing="ij")
    a, b = (torch.cat([x.flatten(), torch.randint(0, 2**32, [20000], generator=generator)]) for x in (a, b))
    words = [torch.where(x >= 2**31, x - 2**32, x).to(torch.int32) for x in (a, b)]
    got = torch.empty(2, len(a))
    host[0].box_muller(*[w.data_ptr() for w in words], got[0].data_ptr(), got[1].data_ptr(), len(a))
    want = reference.box_muller(torch.stack([a, b], 1))
    zero = want.abs() < 1e-14  # at quarter turns, where the reference's angle is not exact; and of a radius of 0
    assert zero.sum() == 13 * 4 + 22 and (got.T[zero] == 0).all()
    assert ulps(got.T[~zero], want[~zero]) <= 4 and got.isfinite().all()
    from flat import cpu

    if cpu.unavailable() is None:
        same, n = torch.empty(2, len(a)), len(a) // 16 * 16
        cpu._cpu.box_muller(*[w.data_ptr() for w in words], same[0].data_ptr(), same[1].data_ptr(), n)
        assert torch.equal(got[:, :n], same[:, :n])


@pytest.mark.parametrize("dtype", DTYPES)
def test_noise_is_a_function_of_the_identity(dtype):
    ids = torch.tensor([7, 2**45, 3, 11])

    def randn(shape, ids):
        one = torch.ones(1, dtype=real(dtype))
        out, eps = cuda.combine([], [], one.new_empty(1, 0), one, None, KEY, ids, 3, shape, dtype, True)
        assert torch.equal(out, eps)
        return eps

    eps = randn([4, 3, 5, 7], ids)
    want = reference.noise(KEY, ids, 3, [4, 3, 5, 7])
    if dtype == torch.float32:
        assert ulps(eps, want) <= 4
    order = torch.tensor([2, 0, 3, 1])
    assert torch.equal(randn([4, 3, 5, 7], ids[order]), eps[order])
    assert torch.equal(randn([4, 104], ids), eps.flatten(1)[:, :104])  # whole vectors where the other had none
    assert torch.equal(randn([4, 3, 5, 7], None), randn([4, 3, 5, 7], torch.arange(4)))


# Masks


@many
@given(st.data())
def test_block_mask(data):
    dtype = data.draw(st.sampled_from(DTYPES))
    size = st.sampled_from([0, 1, 2, 3, 5, 8, 16, 31])
    shape = [data.draw(st.integers(0, 3)), data.draw(st.integers(0, 5)), data.draw(size), data.draw(size)]
    block = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 9))
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    x = torch.where(torch.rand(shape) < 0.1, math.nan, x)
    if data.draw(st.booleans()):
        x = torch.cat([x.new_zeros(1), x.flatten()])[1:].view(shape)  # misaligned
    if data.draw(st.booleans()):
        x = x.transpose(1, 3).contiguous().transpose(1, 3)
    threshold = torch.randint(-1, 2**63 - 1, [shape[0]], generator=torch.Generator().manual_seed(2))
    ids, threshold = data.draw(st.sampled_from([None, threshold])), data.draw(st.sampled_from([threshold, 2**62]))
    args = threshold, data.draw(st.sampled_from([KEY, (5, 1)])), ids, 4, block
    got, want = cuda.block_mask(x, *args), reference.block_mask(x, *args)
    assert all(identical(a, b) and a.shape == b.shape and a.is_contiguous() for a, b in zip(got, want, strict=True))


@many
@given(
    st.integers(0, 2**31), st.sampled_from(DTYPES), st.lists(st.integers(1, 3), min_size=1, max_size=4), st.booleans()
)
def test_rows_of_each_term(host, seed, dtype, widths, small):
    """A row for each term, and its level of the noise: the bits of a combination whose rows were picked."""
    g, (module, *_) = torch.Generator().manual_seed(seed), host
    batch, shape = 3, (2, 4) if small else (5, 7)
    starts, real_type = [sum(widths[:k]) for k in range(len(widths))], real(dtype)
    terms = [
        Block(torch.randn(batch, n, *shape, generator=g).to(dtype), first, sum(widths))
        for n, first in zip(widths, starts, strict=True)
    ]
    coefs = torch.randn(9, len(widths), generator=g).to(real_type)
    coefs[torch.rand(coefs.shape, generator=g) < 0.2] = 0
    sigma = torch.rand(9, generator=g).to(real_type)
    rows = torch.randint(0, 9, (batch, len(widths)), generator=g)
    noise = ((3, 0), None, 1, tuple(starts))
    for return_noise in (False, True):
        out, eps = module.look_combine(terms, Tables(coefs, sigma), rows, noise, return_noise, False)
        picked = Tables(coefs.gather(0, rows), sigma[rows])
        want, want_eps = module.look_combine(terms, picked, None, noise, return_noise, False)
        assert torch.equal(out, want) and (torch.equal(eps, want_eps) if return_noise else eps is None)
    for wrong in (rows[:, :-1], rows[:2], rows.int(), rows.t().contiguous().t() if len(widths) > 1 else rows.float()):
        assert type(module.look_combine(terms, Tables(coefs, sigma), wrong, noise, False, False)) is int
    assert type(module.look_combine(terms, Tables(coefs, sigma), rows, (*noise[:3], ()), False, False)) is int
    call = terms, Tables(coefs, sigma, weight=sigma), rows, noise
    assert type(module.look_squared_error(*call, 1.0, False)) is int
