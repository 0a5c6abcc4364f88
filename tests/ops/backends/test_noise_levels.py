"""Levels of the noise, a scale for each block of channels, on every backend: against float64 written out here.

The CPU's kernels on every instruction set; CUDA's on the host, as in test_cuda_kernel.py; Triton's interpreted, as in
test_triton_kernel.py.
"""

import itertools
import math
from unittest import mock

import pytest
import torch
from flat import Flat, cpu, cuda, reference
from hypothesis import given, settings

if cpu.unavailable():
    pytest.skip(cpu.unavailable(), allow_module_level=True)
from problems import (
    KEY,
    Problem,
    arithmetic_error,
    close,
    column,
    combination,
    everywhere,
    few,
    identical,
    noise_part,
    problems,
    real,
    rounding,
)

pytest_plugins = ["cuda_on_host"]


class Runs:
    """A backend and how to run it. An interpreted one's last rounding to bfloat16 may be off by twice as much."""

    def __init__(self, backend, run=lambda call: call(), interpreted=False):
        self.backend, self.run, self.interpreted = backend, run, interpreted

    def rounding(self, want, dtype):
        return rounding(want, dtype) * (2.0 if self.interpreted and dtype == torch.bfloat16 else 1)


def _interpreted():
    """Triton's kernels, with a fma that rounds once and guards around the results."""
    pytest.importorskip("triton")
    from interpreted import guarded, load, mended

    module, launch = load("mmfast.ops.backends.triton", "mmfast.ops.backends.triton.launch")
    backend = Flat(module)

    def run(call):
        with (
            mended(),
            # A program takes longer than its elements; lanes of 2 bytes are twice as many, and within an item.
            mock.patch.multiple(launch, BLOCK=8192, LANES=4096),
            guarded(backend),
        ):
            return call()

    return Runs(backend, run, interpreted=True)


def drawn(strategy):
    """A test of a backend and a problem, of which it draws few, and a third of those where it is interpreted."""

    def decorate(test):
        def run(on):
            often = few.max_examples // (3 if on.interpreted else 1)
            settings(max_examples=often)(given(strategy)(lambda problem: test(on, problem)))()

        run.of = test
        return run

    return decorate


BACKENDS = ["cpu", "reference", "cuda", "triton"]


@pytest.fixture(params=BACKENDS, scope="module")
def on(request):
    if request.param == "cpu":
        return Runs(cpu, lambda call: everywhere(call, threads=(1, 3)))
    if request.param == "cuda":
        request.getfixturevalue("host")
        return Runs(cuda)
    return _interpreted() if request.param == "triton" else Runs(reference)


def flat(problem, *names):
    return [problem.terms, problem.starts, *(problem.tables[name] for name in names)]


def rest(problem):
    return problem.rows, *problem.identity, problem.shape, problem.dtype


@drawn(problems({"coefs": 0, "sigma": None}, levels=True))
def test_combine(on, problem):
    """Each channel's noise has the scale of its level, and eps itself knows none."""
    call = *flat(problem, "coefs", "sigma"), *rest(problem)
    out, eps = on.run(lambda: on.backend.combine(*call, True, levels=problem.levels))
    alone = on.run(lambda: on.backend.combine(*call, False, levels=problem.levels))
    want, size = combination(problem, "coefs")
    noise, off = noise_part(problem)
    bound = arithmetic_error(len(problem.terms) + 1, size + noise.abs(), problem.dtype) + off
    close(out, want + noise, bound + on.rounding(want + noise, problem.dtype))
    assert identical(out, alone[0])
    known = problem.noise()
    close(eps, known, 4 * 2.0**-23 * known.abs() + on.rounding(known, problem.dtype))


@drawn(problems({"coefs": 1, "to_x0": 0, "sigma": None}, levels=True))
def test_step(on, problem):
    """The noise comes on top of what the step is without; x0 has none."""
    (terms, starts, *tables), rows, bounds = flat(problem, "to_x0", "coefs"), problem.rows, (-0.5, math.inf, -1, 0)
    call = terms, starts, *tables, problem.sigma, rows, *bounds, *problem.identity, problem.shape, problem.dtype
    out, x0 = on.run(lambda: on.backend.step(*call, True, levels=problem.levels))
    wide = [x.double() for x in terms], starts, *(x.double() for x in tables), None, rows, *bounds
    want, want_x0 = reference.step(*wide, None, None, 0, problem.shape, torch.float64, True)
    noise, off = noise_part(problem)
    _, of_x0 = combination(problem, "to_x0")
    last = column(problem.own("coefs")[:, -1].abs(), problem.shape)
    problem.tables["coefs"] = problem.tables["coefs"][:, :-1]
    size = combination(problem, "coefs")[1] + last * (of_x0 + 0.5) + noise.abs()
    bound = 2 * arithmetic_error(len(terms) + 3, size, problem.dtype) + off
    close(out, want + noise, bound + on.rounding(want + noise, problem.dtype))
    close(x0, want_x0, arithmetic_error(len(terms) + 1, of_x0, problem.dtype) + on.rounding(want_x0, problem.dtype))


@drawn(problems({"coefs": 0, "sigma": None, "weight": None}, whole_first=True, levels=True))
def test_squared_error(on, problem):
    call = *flat(problem, "coefs", "sigma", "weight"), *rest(problem)
    loss, grad = on.run(lambda: on.backend.squared_error(*call, 0.7, True, levels=problem.levels))
    r, size = combination(problem, "coefs")
    noise, off = noise_part(problem)
    r, size = r + noise, size + noise.abs()
    error = arithmetic_error(len(problem.terms) + 1, size, problem.dtype) + off
    batch, elements = problem.shape[0], math.prod(problem.shape[1:])
    weight = 0.7 * problem.own("weight")
    want = weight * r.square().reshape(batch, elements).sum(1)
    unit, tiny = torch.finfo(real(problem.dtype)).eps, torch.finfo(real(problem.dtype)).tiny
    spread = (2 * r.abs() * error + error.square()).reshape(batch, elements).sum(1)
    close(loss, want, weight.abs() * spread + (4 + 2 * elements) * unit * want.abs() + tiny)
    first = column(2 * weight * problem.own("coefs")[:, 0], problem.shape)
    bound = first.abs() * error + 5 * unit * (first * r).abs() + on.rounding(first * r, problem.dtype) + tiny
    close(grad, first * r, bound)


@drawn(problems({"coefs": 0, "sigma": None}, levels=True))
def test_the_gradient_of_sigma(on, problem):
    """<grad, eps> over the channels of each level."""
    shape, levels = problem.shape, problem.levels
    grad = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(problem.dtype)
    batch = shape[0]
    coefs, sigma = (problem.own(name).to(real(problem.dtype)) for name in ("coefs", "sigma"))
    needs = [False] * (len(problem.terms) + 1) + [True]
    (found,) = on.run(
        lambda: on.backend.combine_backward(
            grad, problem.terms, problem.starts, coefs, sigma, *problem.identity, needs, levels=levels
        )
    )
    product = grad.double() * problem.noise()
    product = product if len(shape) > 1 else product[:, None]
    ends = [*levels[1:], product.shape[1]]
    parts = [product[:, a:b].reshape(batch, -1 if batch else 0) for a, b in zip(levels, ends, strict=True)]
    want = torch.stack([x.sum(1) for x in parts], 1)
    bound = torch.stack([x.abs().sum(1) for x in parts], 1) * (4 * 2.0**-23 + 2.0**-23)
    assert found.dtype == coefs.dtype and found.shape == sigma.shape
    close(found, want, bound + torch.finfo(real(problem.dtype)).tiny)


DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
LEVELS = [(0, 3), (0,), (0, 1, 2, 3, 4, 5, 6, 7), (0, 5)]


# The bounds do not depend on the type; what is interpreted takes a second, so of that there are two.
USUAL = {(levels, dtype) for levels in LEVELS for dtype in DTYPES if levels == LEVELS[0] or dtype == DTYPES[0]}
INTERPRETED = {(LEVELS[0], DTYPES[2]), (LEVELS[2], DTYPES[0])}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("on", "levels", "dtype"),
    [
        pytest.param(on, *case, marks=[pytest.mark.slow] * (case not in (INTERPRETED if on == "triton" else USUAL)))
        for on in BACKENDS
        for case in itertools.product(LEVELS, DTYPES)
    ],
    indirect=["on"],
)
def test_equal_levels_have_the_bits_of_one(on, dtype, levels):
    """The arithmetic of an element is the same, whether its level ends beside it, in a vector or in an item of work."""
    g = torch.Generator().manual_seed(2)
    shape = [2, 8, 37, 33]
    terms = [torch.randn(shape, generator=g).to(dtype), torch.randn(2, 3, 37, 33, generator=g).to(dtype)]
    coefs, sigma = torch.randn(2, 2, generator=g).to(real(dtype)), torch.rand(2, generator=g).to(real(dtype))
    more = torch.cat((coefs, coefs[:, :1]), 1)
    many = sigma[:, None].expand(-1, len(levels)).contiguous()
    rows, who = None, (KEY, None, 3, shape, dtype)

    def all_of(sigma, levels):
        error = terms, [-1, 2], coefs, sigma, coefs[:, 0].contiguous(), rows
        return [
            *on.backend.combine(terms, [-1, 2], coefs, sigma, rows, *who, True, levels=levels),
            *on.backend.step(
                terms, [-1, 2], coefs, more, sigma, rows, -1.0, 1.0, 1, 4, *who, True, levels=levels
            ),
            on.backend.squared_error(*error, *who, 0.3, True, levels=levels)[1],
        ]  # fmt: skip

    for a, b in zip(on.run(lambda: all_of(sigma, ())), on.run(lambda: all_of(many, levels)), strict=True):
        assert identical(a, b)


WITHIN = [[2, 16], [2, 8, 3], [2, 24, 1, 1]]
OFTEN = [(shape, dtype) for shape in WITHIN for dtype in (torch.float32, torch.bfloat16)]
FEW_INTERPRETED = [(WITHIN[0], torch.bfloat16), (WITHIN[1], torch.float32), (WITHIN[2], torch.float32)]


@pytest.mark.parametrize(
    ("on", "shape", "dtype"),
    [
        pytest.param(on, *case, marks=[pytest.mark.slow] * (case not in (FEW_INTERPRETED if on == "triton" else OFTEN)))
        for on in BACKENDS
        for case in itertools.product(WITHIN, DTYPES)
    ],
    indirect=["on"],
)
def test_a_level_ends_within_a_vector(on, dtype, shape):
    """Where all else lets a kernel move whole vectors: contiguous terms of a length that is a multiple of theirs."""
    for test, more in ((test_combine, 0), (test_step, 1), (test_squared_error, 0)):
        g = torch.Generator().manual_seed(4)
        columns = {"coefs": [2, 2 + more], "to_x0": [2, 2], "sigma": [2, 3], "weight": [2]}
        tables = {name: torch.randn(size, generator=g).to(real(dtype)) for name, size in columns.items()}
        terms = [torch.randn(shape, generator=g).to(dtype) for _ in range(2)]
        test.of(on, Problem(shape, dtype, terms, [-1, -1], tables, None, None, 1, (0, 1, 5)))
