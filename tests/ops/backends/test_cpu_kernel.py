"""The C++ kernels for the CPU, against numpy and float64 torch written out here on their own."""

import math
from fractions import Fraction

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from flat import Guards, cpu
from hypothesis import given

if cpu.unavailable():
    pytest.skip(cpu.unavailable(), allow_module_level=True)
import _mmfast_cpu as _cpu
from problems import broadcasting_term, cover, many
from test_cpu_noise import DTYPES, KEY, combine, randn


def identical(a, b):
    """The same bits, any NaN being like another."""
    return a.dtype == b.dtype and torch.equal(a.isnan(), b.isnan()) and torch.equal(a.nan_to_num(7), b.nan_to_num(7))


# The combination


@st.composite
def problems(draw):
    """A call of `combine` with odd shapes, strides, broadcasts, blocks and missing terms."""
    dtype = draw(st.sampled_from(DTYPES))
    real = torch.float64 if dtype == torch.float64 else torch.float32
    shape = [draw(st.integers(0, 4)) if draw(st.integers(0, 9)) == 0 else draw(st.integers(1, 4))]
    shape += draw(st.lists(st.sampled_from([0, 1, 2, 3, 5, 8, 17, 33, 70]), min_size=0, max_size=3))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    terms, starts = [], []
    for _ in range(draw(st.integers(0, 4))):
        term, start = draw(broadcasting_term(shape, dtype, generator, False))
        terms.append(term)
        starts.append(start)
    coefs = torch.randn(shape[0], len(terms), generator=generator).to(real)
    coefs = torch.where(torch.rand(coefs.shape, generator=generator) < 0.2, 0.0, coefs)
    for k, term in enumerate(terms):  # what is not to be read
        if term.shape[0] == shape[0] and term.stride(0) and term.numel():
            term[coefs[:, k] == 0] = math.nan
    sigma = draw(st.sampled_from([None, 0.0, 0.7]))
    if sigma is not None:
        sigma = torch.full([shape[0]], sigma, dtype=real)
        sigma[::2] *= 2
    return_noise = draw(st.booleans())
    ids = torch.randint(0, 2**48, [shape[0]], generator=generator)
    key = (KEY, ids) if sigma is not None or return_noise else (None, None)
    return terms, starts, coefs, sigma, *key, draw(st.integers(0, 65535)), shape, dtype, return_noise


def exact(terms, starts, coefs, sigma, eps, shape):
    """The combination in float64, and the sum of the absolute values of its parts."""
    total, size = torch.zeros(shape, dtype=torch.float64), torch.zeros(shape, dtype=torch.float64)
    column = [-1] + [1] * (len(shape) - 1)
    parts = [(coefs[:, k], cover(t, s, shape)) for k, (t, s) in enumerate(zip(terms, starts, strict=True))]
    if sigma is not None:
        parts.append((sigma, eps.double()))
    for coef, x in parts:
        coef = coef.double().view(column)
        part = torch.where(coef == 0, 0.0, coef * x)
        total, size = total + part, size + part.abs()
    return total, size


@many
@given(problems())
def test_combine_against_float64(problem):
    terms, starts, coefs, sigma, key, ids, stream, shape, dtype, return_noise = problem
    results = []
    for name in cpu.isas():
        cpu.set_isa(name)
        results.append(combine(*problem))
    cpu.set_isa(None)
    out, eps = results[0]
    for other in results[1:]:
        assert identical(other[0], out) and identical(other[1], eps)
    noise = torch.zeros(shape)
    if key is not None and shape[0]:
        noise = randn(shape, ids, stream)[1]
    assert list(eps.shape) == (shape if return_noise else [0])
    assert out.dtype == eps.dtype == dtype and list(out.shape) == shape and out.is_contiguous()
    if return_noise:
        assert torch.equal(eps, noise.to(dtype))
    want, size = exact(terms, starts, coefs, sigma, noise, shape)
    unit = torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32).eps
    # One rounding an addition, each of a partial sum no larger than `size`; and the last one to dtype.
    bound = (len(terms) + 2) * unit * size + torch.finfo(dtype).eps / 2 * want.abs() + torch.finfo(dtype).tiny
    assert ((out.double() - want).abs() <= bound).all()


@many
@given(problems(), st.data())
def test_backward_against_autograd(problem, data):
    terms, starts, coefs, sigma, key, ids, stream, shape, dtype, _ = problem
    terms = [t.nan_to_num(0.5) for t in terms]
    needs = data.draw(st.lists(st.booleans(), min_size=len(terms) + 2, max_size=len(terms) + 2))
    needs[-1] = needs[-1] and sigma is not None
    grad = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    results = []
    for name in cpu.isas():
        cpu.set_isa(name)
        results.append(cpu.combine_backward(grad, terms, starts, coefs, sigma, key, ids, stream, needs))
    cpu.set_isa(None)
    for other in results[1:]:
        assert all(identical(a, b) for a, b in zip(results[0], other, strict=True))
    got = iter(results[0])
    noise = randn(shape, ids, stream)[1].double() if key is not None and shape[0] else torch.zeros(shape).double()
    g, column = grad.double(), [-1] + [1] * (len(shape) - 1)

    def check(result, like, products, sum_to):
        """The result against the sum of the products, with an error of one rounding and some of a sum's."""
        assert result.shape == like.shape and result.dtype == like.dtype
        want, size = products.sum_to_size(sum_to), products.abs().sum_to_size(sum_to)
        unit = torch.finfo(coefs.dtype).eps
        error = (result.double().reshape(sum_to) - want).abs()
        info = torch.finfo(like.dtype)
        assert (error <= info.eps * want.abs() + 2 * unit * size + info.tiny).all()

    for k, (term, start) in enumerate(zip(terms, starts, strict=True)):
        if needs[k]:
            part = g if start < 0 else g[:, start : start + term.size(1)]
            check(next(got), term, coefs[:, k].double().view(column) * part, list(term.shape))
    if needs[-2]:
        result = next(got)
        assert result.shape == coefs.shape and result.dtype == coefs.dtype
        for k, (term, start) in enumerate(zip(terms, starts, strict=True)):
            check(result[:, k], coefs[:, k], g * cover(term, start, shape), [shape[0]] + [1] * (len(shape) - 1))
    if needs[-1]:
        check(next(got), sigma, g * noise, [shape[0]] + [1] * (len(shape) - 1))
    assert next(got, None) is None


def big_call(dtype=torch.float32, batch=3):
    shape, g = [batch, 6, 61, 67], torch.Generator().manual_seed(0)
    real = torch.float64 if dtype == torch.float64 else torch.float32
    sizes = [shape, [batch, 6, 1, 1], [batch, 2, 61, 67], [1, 6, 61, 67]]
    terms = [torch.randn(s, generator=g).to(dtype) for s in sizes]
    coefs, sigma = torch.randn(batch, 4, generator=g, dtype=real), torch.rand(batch, generator=g, dtype=real)
    return terms, [-1, -1, 3, -1], coefs, sigma, KEY, torch.arange(batch), 1, shape, dtype, True


@pytest.mark.parametrize("dtype", DTYPES)
def test_threads_change_nothing(threads, dtype):
    call = big_call(dtype)
    grad = torch.randn(call[7], generator=torch.Generator().manual_seed(3)).to(dtype)
    results = []
    for n in (1, 2, 3, 7):
        threads(n)
        results.append([*combine(*call), *cpu.combine_backward(grad, *call[:7], [True] * 6)])
    for other in results[1:]:
        assert all(identical(a, b) for a, b in zip(results[0], other, strict=True))


def test_samples_do_not_depend_on_each_other():
    terms, starts, coefs, sigma, key, ids, stream, shape, dtype, _ = big_call()
    out, eps = combine(*big_call())
    for b in range(shape[0]):
        one = [t if t.size(0) == 1 else t[b : b + 1] for t in terms]
        alone = combine(one, starts, coefs[b : b + 1], sigma[b : b + 1], key, ids[b : b + 1], stream,
                            [1, *shape[1:]], dtype, True)  # fmt: skip
        assert torch.equal(alone[0][0], out[b]) and torch.equal(alone[1][0], eps[b])


def test_large_outputs_written_past_the_caches(isa):
    n = 1_600_003 if isa != "baseline" else 300_003
    x, ids = torch.randn(2, n), torch.tensor([1, 2])
    args = torch.tensor([[0.5], [2.0]]), torch.tensor([0.25, 1.5]), KEY
    out, eps = combine([x], [-1], *args, ids, 0, [2, n], torch.float32, True)
    for b in range(2):
        one = combine([x[b : b + 1]], [-1], args[0][b : b + 1], args[1][b : b + 1], KEY, ids[b : b + 1], 0,
                          [1, n], torch.float32, True)  # fmt: skip
        assert torch.equal(one[0][0], out[b]) and torch.equal(one[1][0], eps[b])


@pytest.mark.parametrize("dtype", DTYPES)
def test_nothing_is_written_outside(isa, dtype, monkeypatch):
    """Outputs and a term in the middle of buffers, at every alignment and many lengths."""
    guard = 100
    real = torch.float64 if dtype == torch.float64 else torch.float32
    coefs, sigma, ids = torch.ones(2, 1, dtype=real), torch.ones(2, dtype=real), torch.arange(2)
    for n in [*range(1, 20), 31, 63, 64, 65, 100, 127, 129, 200]:
        for offset in range(0, 17, 1 + n // 20):
            buffer = torch.full([guard * 2 + 2 * n], math.nan, dtype=dtype)
            x = buffer[guard - offset : guard - offset + 2 * n].view(2, n).fill_(0.5)
            with Guards(monkeypatch, offset):
                out, eps = cpu.combine([x], [-1], coefs, sigma, None, KEY, ids, 0, [2, n], dtype, True)
            assert not out.isnan().any()
            assert torch.equal(eps, randn([2, n], [0, 1], dtype=dtype)[1])


SPECIAL = torch.tensor([0.0, 1.0, math.inf, math.nan, 65504.0, 65519.9, 65520.0, 1e38, 3.4e38, 2.0**-14, 2.0**-24,
                        2.0**-25, 1.5 * 2.0**-25, 2.0**-126, 2.0**-149, 1e-40, 1 + 2.0**-11, 1 + 3 * 2.0**-11,
                        1 + 2.0**-8, 1 + 3 * 2.0**-8, 1 + 2.0**-8 + 2.0**-20])  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_conversions(isa, dtype):
    """Every half value read; and written: ties, overflow, subnormals, NaN, as torch rounds."""
    every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)[None]
    one = torch.ones(1, 1)
    out = combine([every], [-1], one, None, None, None, 0, [1, 2**16], dtype, False)[0]
    assert identical(out, every)
    values = torch.cat([SPECIAL, -SPECIAL, torch.randn(1000) * 2.0 ** torch.randint(-30, 18, [1000])])
    ones = torch.ones(len(values), 1, dtype=dtype)  # the values come in through the coefficients
    out = combine([ones], [-1], values[:, None], None, None, None, 0, [len(values), 1], dtype, False)[0]
    assert identical(out[:, 0], torch.where(values == 0, 0.0, values).to(dtype))


def test_fused_arithmetic_rounds_once(isa):
    """Sums on and beside ties of float32, and subnormal ones: where a product in double rounds twice."""
    rng, n = np.random.default_rng(0), 4096
    # (1 + i 2^-12) (1 + j 2^-12) has at most 25 bits: often a tie, which the addend is too small to break
    # in double.
    i, j, sign = rng.integers(0, 2**12, n), rng.integers(0, 2**12, n), np.where(rng.random(n) < 0.5, -1.0, 1.0)
    normal = 1 + i * 2.0**-12, 1 + j * 2.0**-12, sign * 2.0 ** rng.integers(-130, -20, n)
    # 2^-150 (1 - x^2) is a little below half the spacing of the subnormals, whatever is added.
    x = rng.integers(1, 64, n) * 2.0**-23
    subnormal = (1 + x) * 2.0**-75, sign * (1 - x) * 2.0**-75, rng.integers(0, 2**23, n) * 2.0**-149
    a, b, addend = (np.concatenate(pair).astype(np.float32) for pair in zip(normal, subnormal, strict=True))
    terms = [torch.from_numpy(x)[:, None] for x in (np.ones_like(a), b)]
    coefs = torch.from_numpy(np.stack([addend, a], 1))
    out = combine(terms, [-1, -1], coefs, None, None, None, 0, [2 * n, 1], torch.float32, False)[0]
    for got, x, y, z in zip(out[:, 0].tolist(), a.tolist(), b.tolist(), addend.tolist(), strict=True):
        value = Fraction(x) * Fraction(y) + Fraction(z)
        assert Fraction(got) == nearest_float32(value)


def nearest_float32(value):
    """The float32 nearest to a fraction, ties to even."""
    if value == 0:
        return value
    exponent = max(math.floor(math.log2(abs(value))), -126)
    spacing = Fraction(2) ** (exponent - 23)
    return round(value / spacing) * spacing  # Python rounds ties to even


def test_missing_term_is_not_read_and_zero_sigma_adds_nothing(isa):
    x, bad = torch.randn(2, 3, 40), torch.full([2, 3, 40], math.nan)
    coefs, ids = torch.tensor([[2.0, 0.0], [0.0, 0.0]]), torch.arange(2)
    out, eps = combine([x, bad], [-1, -1], coefs, torch.zeros(2), KEY, ids, 0, [2, 3, 40], torch.float32, True)
    assert torch.equal(out[0], 2 * x[0]) and torch.equal(out[1], torch.zeros(3, 40)) and not out[1].signbit().any()
    assert torch.equal(eps, randn([2, 3, 40], ids)[1])


def test_isa_can_be_forced_and_unknown_ones_are_refused(isa):
    assert _cpu.isa() == isa and "thread" in cpu.describe()
    with pytest.raises(ValueError, match="mmx"):
        cpu.set_isa("mmx")


@pytest.mark.parametrize("dtype", DTYPES)
def test_tensors_seen_by_their_attributes(dtype):
    """torch before 2.10 has no exchange API: the same bits, and the same refusals, without it."""
    call = big_call(dtype)
    with_api = combine(*call)
    assert not _cpu.use_exchange_api(None)
    try:
        assert all(identical(a, b) for a, b in zip(combine(*call), with_api, strict=True))
        with pytest.raises(ValueError, match="int32"):
            combine([x.int() for x in call[0]], *call[1:])
    finally:
        _cpu.use_exchange_api(getattr(torch.Tensor, "__dlpack_c_exchange_api__", None))
