"""The squared error's kernel and its reference, against the weighted norm and its gradient written out in float64."""

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

TABLES = {"coefs": 0, "sigma": None, "weight": None}


def run(backend, problem, scale, return_grad):
    tables = [problem.tables[name] for name in TABLES]
    return backend.squared_error(problem.terms, problem.starts, *tables, problem.rows, *problem.identity,
                                 problem.shape, problem.dtype, scale, return_grad)  # fmt: skip


def truth(problem, scale):
    """loss and gradient in float64, each with the error that it may have."""
    dtype, shape = problem.dtype, problem.shape
    unit = 2.0 ** (-53 if dtype == torch.float64 else -24)
    r, size = combination(problem, "coefs")
    eps, of_eps = noise_part(problem)
    r, size = r + eps, size + eps.abs()
    error = arithmetic_error(len(problem.terms) + 1, size, dtype) + of_eps
    weight = scale * problem.own("weight")
    squares = r.square().reshape(shape[0], math.prod(shape[1:])).sum(1)
    of_squares = (2 * r.abs() * error + error.square()).reshape(shape[0], math.prod(shape[1:])).sum(1)
    # weight, its product with scale, the sum brought to the tables' type and the last product: a rounding each; and
    # in float64 one a square and one an addition.
    roundings = 4 + (2 * math.prod(shape[1:]) if dtype == torch.float64 else 1)
    loss = weight * squares
    of_loss = weight.abs() * of_squares + roundings * unit * loss.abs() + torch.finfo(real(dtype)).tiny
    first = column(2 * weight * problem.own("coefs")[:, 0], shape)
    grad = first * r
    of_grad = first.abs() * error + 5 * unit * grad.abs() + rounding(grad, dtype) + torch.finfo(real(dtype)).tiny
    return (loss, of_loss), (grad, of_grad)


@many
@given(problems(TABLES, whole_first=True), st.sampled_from([1.0, 0.01, 3.0]), st.booleans())
def test_against_float64(problem, scale, return_grad):
    """Every layout, type and table; an element that is not written would be NaN."""
    of_loss, of_grad = truth(problem, scale)
    for loss, grad in (everywhere(lambda: run(cpu, problem, scale, return_grad)), run(reference, problem, scale, True)):
        assert loss.dtype == real(problem.dtype) and grad.dtype == problem.dtype
        close(loss, *of_loss)
        if grad.numel() or return_grad:
            close(grad, *of_grad)


@many
@given(problems(TABLES, whole_first=True))
def test_the_gradient_is_autograds(problem):
    """Of the reference's loss, in float64, by autograd: the definition's own two halves agree."""
    problem.dtype = torch.float64
    problem.terms = [x.double().nan_to_num(0.5) for x in problem.terms]
    problem.tables = {name: None if x is None else x.double() for name, x in problem.tables.items()}
    problem.terms[0].requires_grad_()
    loss, grad = run(reference, problem, 0.7, True)
    (expected,) = torch.autograd.grad(loss.sum(), problem.terms[0])
    torch.testing.assert_close(grad, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", DTYPES)
def test_threads_on_many_items(dtype):
    """Samples of several items each, shared out: the same sums; and each sample's is what it is alone."""
    g = torch.Generator().manual_seed(0)
    shape = [3, 6, 61, 67]
    terms = [torch.randn(s, generator=g).to(dtype) for s in (shape, [3, 6, 1, 1], [3, 2, 61, 67], [1, 6, 61, 67])]
    coefs = torch.randn(3, 4, generator=g).to(real(dtype))
    sigma, weight = torch.rand(2, 3, generator=g).to(real(dtype))
    args = (terms, [-1, -1, 3, -1], coefs, sigma, weight, None, KEY, None, 1, shape, dtype, 0.1, True)
    loss, grad = everywhere(lambda: cpu.squared_error(*args))
    assert identical(loss, everywhere(lambda: cpu.squared_error(*args[:-1], False))[0])
    for b in range(3):
        one = [t if t.size(0) == 1 else t[b : b + 1] for t in terms]
        alone = cpu.squared_error(one, args[1], coefs[b : b + 1], sigma[b : b + 1], weight[b : b + 1], None, KEY,
                                  torch.tensor([b]), 1, [1, *shape[1:]], dtype, 0.1, True)  # fmt: skip
        assert identical(alone[0][0], loss[b]) and identical(alone[1][0], grad[b])


def test_a_large_gradient_written_past_the_caches():
    """16 MiB and more, of which the second sample is not aligned: the bits of each sample alone."""
    n = 2_300_003
    x, coefs, weight = torch.randn(2, n), torch.tensor([[0.5], [2.0]]), torch.tensor([1.0, 0.25])
    loss, grad = everywhere(
        lambda: cpu.squared_error([x], [-1], coefs, None, weight, None, None, None, 0, [2, n], x.dtype, 1.0, True),
        threads=(1, 2),
    )
    for b in range(2):
        one = (x[b : b + 1],), [-1], coefs[b : b + 1], None, weight[b : b + 1]
        alone = cpu.squared_error(*one, None, None, None, 0, [1, n], x.dtype, 1.0, True)
        assert torch.equal(alone[0][0], loss[b]) and torch.equal(alone[1][0], grad[b])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("isa", cpu.isas())
def test_nothing_is_written_outside(isa, dtype, monkeypatch):
    """The gradient and the sums in the middle of buffers, at every alignment."""
    guard, one = 100, torch.ones(2, 1, dtype=real(dtype))
    cpu.set_isa(isa)
    for n in (1, 2, 7, 16, 31, 65, 129):
        for offset in range(17):
            buffer = torch.full([2 * guard + 2 * n], 77.0, dtype=dtype)
            x = buffer[guard - offset : guard - offset + 2 * n].view(2, n).fill_(3.0)
            args = ([x], [-1], one, None, one[:, 0], None, None, None, 0, [2, n], dtype, 0.5)
            with Guards(monkeypatch, offset):
                loss, grad = cpu.squared_error(*args, True)
                assert (grad == 3).all() and loss.tolist() == [4.5 * n, 4.5 * n]
            with Guards(monkeypatch, offset) as guards:  # no gradient asked for: none written
                assert torch.equal(cpu.squared_error(*args, False)[0], loss)
                assert [count for *_, count in guards.kept] == [2, 0]
    cpu.set_isa(None)


@pytest.mark.parametrize("backend", [cpu, reference], ids=["cpu", "reference"])
@pytest.mark.parametrize("shape", [[0, 3, 4], [2, 3, 0]])
def test_nothing_to_sum(backend, shape):
    """No samples, or empty ones: a loss of zero each."""
    args = torch.ones(shape[0], 1), torch.ones(shape[0]), torch.ones(shape[0])
    loss, grad = backend.squared_error([torch.zeros(shape)], [-1], *args, None, KEY, None, 0, shape, torch.float32,
                                       1.0, True)  # fmt: skip
    assert loss.tolist() == [0.0] * shape[0] and list(grad.shape) == shape
