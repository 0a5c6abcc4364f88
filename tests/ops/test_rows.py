"""Tables of coefficients with a row for each sample, one for all, or the rows that an index names."""

import hypothesis.strategies as st
import pytest
import torch
from flat import cpu, reference
from hypothesis import given

from mmfast import ops

if cpu.unavailable():
    pytest.skip(cpu.unavailable(), allow_module_level=True)
from problems import (
    KEY,
    NOISE_ULPS,
    arithmetic_error,
    close,
    combination,
    everywhere,
    identical,
    many,
    noise_part,
    problems,
    rounding,
)


def run(backend, problem, return_noise):
    return backend.combine(problem.terms, problem.starts, problem.tables["coefs"], problem.sigma, problem.rows,
                           *problem.identity, problem.shape, problem.dtype, return_noise)  # fmt: skip


@many
@given(problems({"coefs": 0, "sigma": None}), st.booleans())
def test_combine_against_float64(problem, return_noise):
    """Whatever the rows; those of the table that are no sample's hold NaN."""
    want, size = combination(problem, "coefs")
    eps, of_eps = noise_part(problem)
    bound = arithmetic_error(len(problem.terms) + 1, size + eps.abs(), problem.dtype) + of_eps
    for out, noise in (everywhere(lambda: run(cpu, problem, return_noise)), run(reference, problem, return_noise)):
        assert out.dtype == noise.dtype == problem.dtype
        close(out, want + eps, bound + rounding(want + eps, problem.dtype))
        if return_noise:
            exact = problem.noise()
            close(noise, exact, NOISE_ULPS * 2.0**-23 * exact.abs() + rounding(exact, problem.dtype))
        else:
            assert list(noise.shape) == [0]


X = torch.randn(4, 2, 3, generator=torch.Generator().manual_seed(0))
COEFS = torch.randn(5, 2, generator=torch.Generator().manual_seed(1))
ROWS = torch.tensor([4, 0, 4, 2])


def every_op(backend, coefs, rows):
    """combine, step and squared_error of two terms: coefs [R, 2], and the other tables made of it."""
    terms = ([X, X], [-1, -1])
    end = (rows, KEY, None, 0)
    sigma = coefs[:, 0].abs()
    bounds = (-1.0, 1.0, -1, 0)
    return [
        *backend.combine(*terms, coefs, sigma, *end, [4, 2, 3], X.dtype, True),
        *backend.step(*terms, coefs, torch.cat((coefs, coefs[:, :1]), 1), sigma, rows, *bounds, *end[1:], [4, 2, 3],
                      X.dtype, True),
        *backend.squared_error(*terms, coefs, sigma, coefs[:, 1], *end, [4, 2, 3], X.dtype, 0.5, True),
    ]  # fmt: skip


@pytest.mark.parametrize("backend", [cpu, reference], ids=["cpu", "reference"])
def test_rows_are_looked_up(backend):
    """To the bit: an index is the table that it picks, an int one row, and one row serves every sample."""
    for found, expected in zip(every_op(backend, COEFS, ROWS), every_op(backend, COEFS[ROWS], None), strict=True):
        assert identical(found, expected)
    for ways in zip(
        every_op(backend, COEFS, 3),
        every_op(backend, COEFS[3:4], None),
        every_op(backend, COEFS[3].expand(4, 2), None),  # a stride of zero
        every_op(backend, COEFS, torch.full([4], 3)),
        strict=True,
    ):
        assert all(identical(ways[0], other) for other in ways[1:])


@pytest.mark.parametrize("rows", [torch.tensor([0, 5, 1, 1]), torch.tensor([0, -1, 1, 1]), 5])
def test_a_row_outside_the_table(rows):
    """Is refused before anything is read."""
    with pytest.raises(ValueError, match="row"):
        every_op(cpu, COEFS, rows)


def test_a_row_that_means_nothing():
    """NaN marks the row of t = 0 of a formula that has none: refused where a sample has it, harmless elsewhere."""
    table = torch.cat((torch.full([1, 2], torch.nan), COEFS))
    for rows in (torch.tensor([3, 0, 1, 1]), 0):
        with pytest.raises(ValueError, match="row"):
            every_op(cpu, table, rows)
    for found, expected in zip(every_op(cpu, table, ROWS + 1), every_op(cpu, COEFS, ROWS), strict=True):
        assert identical(found, expected)


@pytest.mark.parametrize("rows", [torch.ones(3, dtype=torch.int64), torch.ones(4, dtype=torch.int32), torch.ones(4)])
def test_rows_of_another_kind(rows):
    with pytest.raises(ValueError, match=r"rows|torch\.int32"):  # of which an old torch tells no more than the type
        every_op(cpu, COEFS, rows)


@pytest.mark.parametrize("rows", [None, 1, torch.tensor([1, 0, 1, 1])], ids=["one row", "int", "repeats"])
def test_gradients_of_a_table(each_backend, rows):
    """A row's gradient is the sum over the samples that have it; a row that none has gets zero."""
    count = 1 if rows is None else 3
    table, sigma = torch.randn(count, 2, dtype=torch.float64), torch.rand(count, dtype=torch.float64)
    leaves = [table.requires_grad_(), sigma.requires_grad_(), X.double().requires_grad_()]

    def function(table, sigma, x):
        return ops.combine([x, x.sin()], table, sigma, rows=rows, seed=KEY[0], draw=KEY[1])

    with ops.backend(each_backend):
        assert torch.autograd.gradcheck(function, leaves)
        (of_table,) = torch.autograd.grad(function(*leaves).sum(), leaves[:1])
    own = [0] * 4 if rows is None else [rows] * 4 if isinstance(rows, int) else rows.tolist()
    expected = torch.zeros_like(of_table)
    for b, row in enumerate(own):
        expected[row] += torch.stack((X[b].double().sum(), X[b].double().sin().sum()))
    torch.testing.assert_close(of_table, expected)
