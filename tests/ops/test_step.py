"""The step's kernel and its reference, against two combinations around a clamp written out in float64."""

import math

import hypothesis.strategies as st
import pytest
import torch
from flat import Guards, cpu, reference
from hypothesis import given

if cpu.unavailable():
    pytest.skip(cpu.unavailable(), allow_module_level=True)
from problems import (
    DTYPES,
    KEY,
    arithmetic_error,
    close,
    column,
    combination,
    everywhere,
    identical,
    many,
    noise_part,
    problems,
    real,
    rounding,
)

TABLES = {"to_x0": 0, "coefs": 1, "sigma": None}
# All of them numbers that every type holds.
BOUNDS = [(-math.inf, math.inf), (-0.5, 0.75), (-math.inf, 0.25), (0.0, math.inf)]


@st.composite
def steps(draw):
    """A Problem, the bounds, and the channels of x0: all, or some."""
    problem, start, channels = draw(problems(TABLES)), -1, 0
    if len(problem.shape) > 1 and problem.shape[1] > 0 and 0 not in problem.shape and draw(st.booleans()):
        start = draw(st.integers(0, problem.shape[1] - 1))
        channels = draw(st.integers(1, problem.shape[1] - start))
    return problem, draw(st.sampled_from(BOUNDS)), (start, channels), draw(st.booleans())


def run(backend, problem, bounds, channels, return_x0):
    tables = [problem.tables[name] for name in TABLES]
    return backend.step(problem.terms, problem.starts, *tables, problem.rows, *bounds, *channels, *problem.identity,
                        problem.shape, problem.dtype, return_x0)  # fmt: skip


def truth(problem, bounds, channels):
    """out and x0 in float64, each with the error that it may have."""
    start, count = channels
    dtype, parts = problem.dtype, len(problem.terms)
    x0, size = combination(problem, "to_x0")
    error = arithmetic_error(parts, size, dtype)
    x0 = torch.where(x0.isnan(), x0, x0.clip(*bounds))  # clamping moves nothing further apart
    inside = torch.ones(problem.shape) if start < 0 else torch.zeros(problem.shape)
    if start >= 0:
        inside[:, start : start + count] = 1
    coef = column(problem.own("coefs")[:, -1], problem.shape)
    used = (coef != 0) & (inside > 0)
    of_x0 = torch.where(used, coef * x0, 0.0)
    eps, of_eps = noise_part(problem)
    out, size = combination(problem, "coefs")
    out, size = out + of_x0 + eps, size + of_x0.abs() + eps.abs()
    bound = arithmetic_error(parts + 2, size, dtype) + torch.where(used, coef.abs() * error, 0.0) + of_eps
    if start >= 0:
        x0, error = (x.narrow(1, start, count) for x in (x0, error))
    return (out, bound + rounding(out, dtype)), (x0, error + rounding(x0, dtype))


@many
@given(steps())
def test_against_float64(step):
    """Every layout, type, table and set of channels; an element that is not written would be NaN."""
    problem, bounds, channels, return_x0 = step
    of_out, of_x0 = truth(problem, bounds, channels)
    for out, x0 in (everywhere(lambda: run(cpu, *step)), run(reference, *step)):
        assert out.dtype == x0.dtype == problem.dtype
        close(out, *of_out)
        if return_x0:
            close(x0, *of_x0)
        else:
            assert list(x0.shape) == [0]


@many
@given(steps())
def test_the_noise_handed_in(step):
    """As one more term, in the place of what would be made inside: the same result to the noise's own rounding."""
    problem, bounds, channels, _ = step
    sigma = problem.sigma
    inside, _ = run(cpu, problem, bounds, channels, False)
    if sigma is None:
        return
    eps = problem.noise().to(problem.dtype)
    problem.terms.append(eps)
    problem.starts.append(-1)
    to_x0, coefs = problem.tables["to_x0"], problem.tables["coefs"]
    problem.tables = {
        "to_x0": torch.cat((to_x0, torch.zeros_like(sigma)[:, None]), 1),
        "coefs": torch.cat((coefs[:, :-1], sigma[:, None], coefs[:, -1:]), 1),
        "sigma": None,
    }
    out, _ = run(cpu, problem, bounds, channels, False)
    of_out, _ = truth(problem, bounds, channels)
    close(out, *of_out)
    rounded = rounding(eps.double(), problem.dtype) if problem.dtype.itemsize == 2 else 0.0
    noise = column(problem.own("coefs")[:, -2], problem.shape).abs() * (eps.abs() * 2.0**-21 + rounded)
    close(inside, of_out[0], of_out[1] + noise)


@pytest.mark.parametrize("dtype", DTYPES)
def test_threads_on_many_items(dtype):
    """Enough work to be shared out, cut in the middle of channels, with x0 a block of them."""
    g = torch.Generator().manual_seed(0)
    shape = [3, 6, 61, 67]
    terms = [torch.randn(s, generator=g).to(dtype) for s in (shape, [3, 6, 1, 1], [3, 2, 61, 67], [1, 6, 61, 67])]
    to_x0, coefs = (torch.randn(3, n, generator=g).to(real(dtype)) for n in (4, 5))
    sigma = torch.rand(3, generator=g).to(real(dtype))
    args = (terms, [-1, -1, 3, -1], to_x0, coefs, sigma, None, -1.0, 1.0, 3, 2, KEY, None, 1, shape, dtype, True)
    out, x0 = everywhere(lambda: cpu.step(*args))
    for b in range(3):  # and samples do not depend on each other
        one = [t if t.size(0) == 1 else t[b : b + 1] for t in terms]
        alone = cpu.step(one, args[1], to_x0[b : b + 1], coefs[b : b + 1], sigma[b : b + 1], None, -1.0, 1.0, 3, 2,
                         KEY, torch.tensor([b]), 1, [1, *shape[1:]], dtype, True)  # fmt: skip
        assert identical(alone[0][0], out[b]) and identical(alone[1][0], x0[b])


def test_large_outputs_written_past_the_caches():
    """16 MiB and more, of which the second sample is not aligned: the bits of each sample alone."""
    n = 1_200_003
    x, tables = torch.randn(2, n), [torch.tensor([[0.5], [2.0]]), torch.randn(2, 2), torch.rand(2)]

    def call(pick, ids, count):
        one = [t[pick] for t in tables]
        return cpu.step([x[pick]], [-1], *one, None, -1.0, 1.0, -1, 0, KEY, ids, 0, [count, n], x.dtype, True)

    together = everywhere(lambda: call(slice(None), torch.tensor([4, 5]), 2), threads=(1, 2))
    for b in range(2):
        alone = call(slice(b, b + 1), torch.tensor([4 + b]), 1)
        assert all(torch.equal(one[0], both[b]) for one, both in zip(alone, together, strict=True))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("isa", cpu.isas())
def test_nothing_is_written_outside(isa, dtype, monkeypatch):
    """Outputs in the middle of buffers, at every alignment; x0 whole, and one channel of three."""
    guard, one = 100, torch.ones(2, 1, dtype=real(dtype))
    cpu.set_isa(isa)
    for n in (1, 2, 7, 16, 31, 65, 129):
        for offset, (start, channels) in zip(range(17), [(-1, 3), (1, 1), (0, 2)] * 6, strict=False):
            buffer = torch.full([2 * guard + 6 * n], 77.0, dtype=dtype)
            x = buffer[guard - offset : guard - offset + 6 * n].view(2, 3, n).fill_(3.0)
            tables = one, one.expand(2, 2), None
            with Guards(monkeypatch, offset):
                out, x0 = cpu.step([x], [-1], *tables, None, -1.0, 1.0, start, channels, None, None, 0, [2, 3, n],
                                   dtype, True)  # fmt: skip
            want = torch.full_like(out, 3.0)  # 3 of the term and, where x0 is, 1 of the clamped
            want[:, max(start, 0) : max(start, 0) + channels] += 1
            assert torch.equal(out, want) and (x0 == 1).all()
    cpu.set_isa(None)


@pytest.mark.parametrize("backend", [cpu, reference], ids=["cpu", "reference"])
@pytest.mark.parametrize("shape", [[0, 3, 4], [2, 3, 0]])
def test_nothing_to_do(backend, shape):
    """No samples, or empty ones, with x0 a block of the channels."""
    tables = torch.ones(shape[0], 1), torch.ones(shape[0], 2), torch.ones(shape[0])
    out, x0 = backend.step([torch.zeros(shape)], [-1], *tables, None, -1.0, 1.0, 1, 2, KEY, None, 0, shape,
                           torch.float32, True)  # fmt: skip
    assert list(out.shape) == shape and list(x0.shape) == [shape[0], 2, shape[2]]


def test_nan_stays_nan_through_the_clamp():
    """And nowhere else; infinities are clamped, or not where the bounds are infinite."""
    x = torch.tensor([[math.nan, math.inf, -math.inf, 0.5] * 9])
    one, two = torch.ones(1, 1), torch.tensor([[0.0, 1.0]])
    for bounds, low, high in (((-1.0, 1.0), -1.0, 1.0), ((-math.inf, math.inf), -math.inf, math.inf)):
        want = torch.tensor([[math.nan, high, low, 0.5] * 9])
        args = ([x], [-1], one, two, None, None, *bounds, -1, 0, None, None, 0, [1, 36], x.dtype, True)
        out, x0 = everywhere(lambda args=args: cpu.step(*args), threads=(1,))
        for found in (out, x0, *reference.step(*args)):
            torch.testing.assert_close(found, want, rtol=0, atol=0, equal_nan=True)
