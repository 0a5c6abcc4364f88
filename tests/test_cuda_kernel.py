"""The CUDA kernels, run on the host under tests/cuda_shim, against reference.py in float64.

The shim compiles the very sources of csrc/cuda with a C++ compiler and runs them thread by thread. So this shows
what they compute, that every access is inside and aligned, and that barriers are reached by all; threads also run in
the other order, which a missing barrier would not survive. It does not show what only a GPU has: the instructions for
half precision (half.h stands in), the memory system, real concurrency, streams and graphs. No GPU has run this.
"""

import contextlib
import math

import cuda_on_host
import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from mmfast.ops import cuda, reference

if cuda_on_host.compiler() is None:
    pytest.skip("there is no g++ to compile the CUDA kernels for the host", allow_module_level=True)
pytest.importorskip("pybind11", reason="the CUDA kernels for the host need pybind11's headers")

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
KEY = torch.tensor([-0x0123456789ABCDEF, 5])
SINGLE = torch.finfo(torch.float32).eps
fast = settings(max_examples=60)


@pytest.fixture(scope="module", autouse=True)
def host():
    """cuda.py with the host's extension in place of the device's; fresh memory holds NaN."""
    module, backwards = cuda_on_host.load()
    before = cuda._cuda, cuda._on
    cuda._cuda, cuda._on = module, lambda device: contextlib.nullcontext((0, 0))
    torch.use_deterministic_algorithms(True)  # fills uninitialised memory
    assert torch.ones(1).new_empty(3).isnan().all()
    yield module, backwards
    torch.use_deterministic_algorithms(False)
    cuda._cuda, cuda._on = before


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
    key = draw(st.sampled_from([KEY, tuple(KEY.tolist())])) if sigma is not None or draw(st.booleans()) else None
    ids = draw(st.sampled_from([None, torch.randint(0, 2**48, [shape[0]], generator=generator)]))
    return dict(
        terms=terms, starts=starts, coefs=coefs, sigma=sigma, rows=rows, key=key, sample_ids=ids,
        stream=draw(st.integers(0, 65535)), shape=shape, dtype=dtype,
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
        noise = eps.double().abs() * reference.per_sample(
            reference.pick(p["sigma"].abs(), p["rows"], p["shape"][0]), len(p["shape"])
        )
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


@fast
@given(problems(), st.booleans())
def test_combine(made, return_noise):
    p, _ = made
    out, eps = cuda.combine(**p, return_noise=return_noise)
    want, want_eps = reference.combine(**exactly(p), return_noise=return_noise)
    check(out, want, rounding(p, *absolute(p), len(p["terms"]) + 1), p["dtype"])
    check(eps, want_eps, 4 * SINGLE * want_eps.abs(), p["dtype"])


@fast
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


@fast
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


@fast
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
    host[0].box_muller((0, 0), *[w.data_ptr() for w in words], got[0].data_ptr(), got[1].data_ptr(), len(a))
    want = reference.box_muller(torch.stack([a, b], 1))
    zero = want.abs() < 1e-14  # at quarter turns, where the reference's angle is not exact; and of a radius of 0
    assert zero.sum() == 13 * 4 + 22 and (got.T[zero] == 0).all()
    assert ulps(got.T[~zero], want[~zero]) <= 4 and got.isfinite().all()
    from mmfast.ops import cpu

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


@fast
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
    args = threshold, data.draw(st.sampled_from([KEY, (5, 1)])), data.draw(st.sampled_from([None, threshold])), 4, block
    got, want = cuda.block_mask(x, *args), reference.block_mask(x, *args)
    assert all(identical(a, b) and a.shape == b.shape and a.is_contiguous() for a, b in zip(got, want, strict=True))


# What must not matter


def big_call(dtype, batch=3, width=68):
    """More than one item a sample, and more than one block; with whole vectors or without (an odd width)."""
    shape, g = [batch, 6, 61, width], torch.Generator().manual_seed(0)
    sizes = [shape, [batch, 6, 1, 1], [batch, 2, 61, width], [1, 6, 61, width], shape, [batch, 1, 1, 1]]
    terms = [torch.randn(s, generator=g).to(dtype) for s in sizes]
    coefs, sigma = torch.randn(batch, 6, generator=g).to(real(dtype)), torch.rand(batch, generator=g).to(real(dtype))
    return terms, [-1, -1, 3, -1, -1, -1], coefs, sigma, None, KEY, None, 1, shape, dtype


def everything(dtype, width):
    terms, starts, coefs, sigma, rows, key, ids, stream, shape, _ = call = big_call(dtype, width=width)
    grad = terms[0] * 2
    more = torch.cat([coefs, coefs[:, :1]], 1)
    return [
        *cuda.combine(*call, True),
        *cuda.step(
            terms, starts, coefs, more, sigma, rows, -1.0, 1.0, 2, 3, key, ids, stream, shape, dtype, True
        ),
        *cuda.squared_error(*call[:4], sigma, *call[4:], 0.1, True),
        *cuda.combine_backward(grad, terms, starts, coefs, sigma, key, ids, stream, [True] * 8),
        cuda.block_ranks(key, ids, stream, 3, 999, torch.device("cpu")),
        *cuda.block_mask(terms[0], torch.full([3], 2**62), key, ids, stream, (4, 5)),
    ]  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [64, 67])
def test_blocks_grids_and_the_order_of_threads_change_nothing(host, dtype, width):
    module, backwards = host
    want = everything(dtype, width)
    try:
        for threads, blocks, reverse in [(256, 1, 0), (64, 5, 1), (32, 1000, 0)]:
            module.set_limits(threads, blocks)
            backwards(reverse)
            for a, b in zip(everything(dtype, width), want, strict=True):
                assert identical(a, b)
    finally:
        module.set_limits(256, 2**31 - 1)
        backwards(0)


def test_small_samples_share_blocks_in_any_way(host):
    module, backwards = host
    g = torch.Generator().manual_seed(0)
    for elements in (1, 5, 24, 100):
        terms = [torch.randn(70, elements, generator=g) for _ in range(5)]
        args = terms, [-1] * 5, torch.randn(1, 5, generator=g), torch.ones(1), torch.ones(1), None, KEY, None, 0
        args += ([70, elements], torch.float32, 1.0, True)
        want = cuda.squared_error(*args)
        for threads, blocks, reverse in [(32, 3, 0), (64, 1, 1), (128, 2, 0)]:
            module.set_limits(threads, blocks)
            backwards(reverse)
            assert all(identical(a, b) for a, b in zip(cuda.squared_error(*args), want, strict=True))
        module.set_limits(256, 2**31 - 1)
        backwards(0)


def test_samples_do_not_depend_on_each_other():
    terms, starts, coefs, sigma, rows, key, _, stream, shape, dtype = call = big_call(torch.float32)
    both = [*cuda.combine(*call, True), *cuda.squared_error(*call[:4], sigma, *call[4:], 0.1, True)]
    for b in range(shape[0]):
        one = [t if t.size(0) == 1 else t[b : b + 1] for t in terms]
        at = slice(b, b + 1)
        args = one, starts, coefs[at], sigma[at], rows, key, torch.tensor([b]), stream, [1, *shape[1:]], dtype
        alone = [*cuda.combine(*args, True), *cuda.squared_error(*args[:4], sigma[at], *args[4:], 0.1, True)]
        assert all(torch.equal(a[0], c[b]) for a, c in zip(alone, both, strict=True))


def test_many_terms():
    g = torch.Generator().manual_seed(0)
    for count in (9, 32, 33):  # 33 goes through the reference
        terms, coefs = [torch.randn(2, 24, generator=g) for _ in range(count)], torch.randn(2, count, generator=g)
        p = dict(terms=terms, starts=[-1] * count, coefs=coefs, sigma=None, rows=None, key=None, sample_ids=None,
                 stream=0, shape=[2, 24], dtype=torch.float32)  # fmt: skip
        want = reference.combine(**exactly(p), return_noise=False)[0]
        check(cuda.combine(**p, return_noise=False)[0], want, rounding(p, *absolute(p), count + 1), torch.float32)


# Memory


@pytest.mark.parametrize("dtype", DTYPES)
def test_nothing_is_read_or_written_outside(host, dtype):
    """Raw pointers into the middle of buffers, at every alignment and many lengths."""
    module, guard, kind = host[0], 40, DTYPES.index(dtype)
    coefs, ones = torch.ones(1, 2, dtype=real(dtype)), torch.ones(1, dtype=real(dtype))
    identity, rows = (0, 3, 1, 0, 0, True), (0, 1)
    for n in [*range(1, 10), 15, 16, 17, 24, 31, 33, 64]:
        for offset in range(0, 9, 1 + n // 20):
            inside = slice(guard - offset, guard - offset + 2 * n)
            x, out, other = torch.full([3, guard * 2 + 2 * n], 77.0, dtype=dtype)
            x.fill_(math.nan)
            x[inside] = 0.5
            at = [t[inside].data_ptr() for t in (x, out, other)]
            head = (0, 0), kind, [2, n], (at[:1], [(2, n)], [(n, 1)], [-1]), identity, rows
            parts, loss = torch.zeros(2, dtype=torch.float64), torch.zeros(2, dtype=real(dtype))
            tables = coefs.data_ptr(), ones.data_ptr()
            calls = [
                (module.combine, *tables, at[1], at[2]),
                (module.step, tables[0], tables[0], tables[1], -1.0, 1.0, -1, 0, at[1], at[2]),
                (module.squared_error, *tables, tables[1], 1.0, parts.data_ptr(), loss.data_ptr(), at[1]),
            ]
            for call, *rest in calls:
                out[inside] = math.nan
                assert call(*head, *rest) == []
                assert not out.isnan().any() and not loss.isnan().any()
                for t in (out, other):
                    assert (t[: inside.start] == 77).all() and (t[inside.stop :] == 77).all()
        x, out, mask = torch.full([3, guard * 2 + 6 * n], 77.0, dtype=dtype)
        at, threshold = [t[guard - 3 :].data_ptr() for t in (x, out, mask)], torch.full([2], 2**62)
        module.block_mask((0, 0), kind, identity, [2, 3, 1, n], 1, 2, cuda._ONES[dtype], at[0], threshold.data_ptr(),
                          *at[1:])  # fmt: skip
        for t, size in ((out, 6 * n), (mask, 2 * n)):
            assert (t[: guard - 3] == 77).all() and (t[guard - 3 + size :] == 77).all()


def test_errors_are_raised(host):
    with pytest.raises(ValueError, match="32 terms"):
        host[0].combine((0, 0), 0, [1], ([0] * 33, [(1,)] * 33, [(1,)] * 33, [-1] * 33), (0, 0, 0, 0, 0, False),
                        (0, 1), 0, 0, 0, 0)  # fmt: skip


def test_unavailable_says_why(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert cuda.unavailable() == "torch sees no CUDA device"
    monkeypatch.setattr(cuda, "_cuda", None)
    assert "not built" in cuda.unavailable()
