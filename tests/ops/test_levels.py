"""`levels` as a user gives them to combine and step_by_table: a scale of the noise for each block of channels."""

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from mmfast import MmfastError, ops
from mmfast.ops import Block, Tables

SHAPE, LEVELS, ENDS = (3, 6, 4, 5), [0, 1, 4], [1, 4, 6]
ID = {"seed": 5, "sample_ids": torch.tensor([9, 2, 1 << 44]), "stream": 2, "draw": 3}


def randn(*shape, dtype=torch.float64, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


X, COEFS, SIGMA = randn(*SHAPE), randn(3, 1, seed=1), randn(3, 3, seed=2)


def scaled(sigma, eps):
    """sigma[b, l] eps[b] in the channels of level l."""
    return torch.cat(
        [sigma[:, i, None, None, None] * eps[:, a:b] for i, (a, b) in enumerate(zip(LEVELS, ENDS, strict=True))], 1
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("rows", [None, 1, torch.tensor([2, 0, 2])], ids=["own", "int", "tensor"])
def test_combine(each_backend, dtype, rows):
    """eps is that of the whole sample, whatever the levels; with the rows of a table, and a table of one row."""
    x, coefs, sigma = X.to(dtype), COEFS.to(dtype), SIGMA.to(dtype)
    own = slice(None) if rows is None else [1, 1, 1] if isinstance(rows, int) else rows
    with ops.backend(each_backend):
        eps = ops.randn(SHAPE, **ID, dtype=dtype)
        out, same = ops.combine([x], coefs, sigma, rows=rows, levels=LEVELS, return_noise=True, **ID)
        one = ops.combine([x], coefs[:1], sigma[:1], levels=tuple(LEVELS), **ID)
        mixed = ops.combine([x], coefs, sigma[:1], levels=LEVELS, **ID)
    assert torch.equal(same, eps)
    unit = dict(rtol=4 * torch.finfo(dtype).eps, atol=8 * torch.finfo(dtype).eps)
    column = coefs[:, 0, None, None, None]
    torch.testing.assert_close(out, column[own] * x + scaled(sigma[own], eps), **unit)
    torch.testing.assert_close(one, column[:1] * x + scaled(sigma[:1].expand(3, -1), eps), **unit)
    torch.testing.assert_close(mixed, column * x + scaled(sigma[:1].expand(3, -1), eps), **unit)


def test_a_sample_of_one_dimension(each_backend):
    """It has one channel, and so one level."""
    with ops.backend(each_backend):
        one = ops.combine([X[:, 0, 0, 0]], COEFS, SIGMA[:, :1], levels=[0], seed=1)
        assert torch.equal(one, ops.combine([X[:, 0, 0, 0]], COEFS, SIGMA[:, 0], seed=1))


@pytest.mark.parametrize("row", [1, torch.tensor([0, 1, 1]), None])
def test_step_by_table(each_backend, row):
    """The levels change the noise alone."""
    coefs, to_x0, sigma = randn(3, 3, seed=3), randn(3, 2, seed=4), SIGMA
    terms = [X, Block(randn(3, 2, 4, 5, seed=5), 1, 6)]
    own = slice(None) if row is None else [1, 1, 1] if isinstance(row, int) else row
    with ops.backend(each_backend):
        call = dict(row=row, clamp=0.7, channels=(1, 2))
        out, x0 = ops.step_by_table(terms, Tables(coefs, sigma, to_x0), levels=LEVELS, **call, **ID)
        plain, same = ops.step_by_table(terms, Tables(coefs, None, to_x0), **call)
        eps = ops.randn(SHAPE, **ID, dtype=torch.float64)
    assert torch.equal(x0, same)
    torch.testing.assert_close(out, plain + scaled(sigma[own], eps), rtol=1e-12, atol=1e-12)


def test_gradients(traced_backend):
    """First and second, in the terms, the coefficients and every level's sigma."""
    leaves = [
        randn(2, 3, 2).requires_grad_(),
        randn(2, 1, 1, seed=1).requires_grad_(),
        randn(2, 2, seed=2).requires_grad_(),
        randn(2, 2, seed=3).requires_grad_(),
    ]

    def run(x, block, coefs, sigma):
        return ops.combine([x, Block(block, 1, 3)], coefs, sigma, levels=[0, 2], seed=1)

    def by_rows(x, block, coefs, sigma):
        return ops.combine([x, Block(block, 1, 3)], coefs, sigma, rows=torch.tensor([1, 1]), levels=[0, 2], seed=1)

    with ops.backend(traced_backend):
        for function in (run, by_rows):
            assert gradcheck(function, leaves, fast_mode=True) and gradgradcheck(function, leaves, fast_mode=True)
        together = torch.autograd.grad(run(*leaves).square().sum(), leaves)
        alone = [x.detach() for x in leaves[:3]]
        (of_sigma,) = torch.autograd.grad(run(*alone, leaves[3]).square().sum(), leaves[3:])
    torch.testing.assert_close(of_sigma, together[3])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_opcheck(traced_backend, dtype):
    """torch's own checks of the three ops with levels, and of the backward pass: schema, fake, autograd, AOT."""
    terms = [X.to(dtype).requires_grad_(), randn(3, 2, 4, 5).to(dtype)]
    coefs, sigma, to_x0 = (x.float() for x in (randn(3, 2), SIGMA, randn(3, 2)))
    who = torch.tensor((5, 2)), torch.arange(3) + 7, 6
    call = None, *who, list(SHAPE), dtype
    named, ops_of = {"levels": LEVELS}, torch.ops.mmfast
    plain = [x.detach() for x in terms]
    with ops.backend(traced_backend):
        args = terms, [-1, 3], coefs.requires_grad_(), sigma.requires_grad_(), None, None, *call
        torch.library.opcheck(ops_of.combine.default, (*args, True), named)
        args = plain, [-1, 3], randn(3, 3).float(), sigma.detach(), to_x0, None, *call
        torch.library.opcheck(ops_of.step.default, (*args, -1.0, 1.0, 1, 2, True), named)
        args = plain, [-1, 3], coefs.detach(), sigma.detach(), None, sigma[:, 0].detach(), *call
        torch.library.opcheck(ops_of.squared_error.default, (*args, 0.1, False), named)
        grad = X.to(dtype)
        args = grad, plain, [-1, 3], coefs.detach(), *who, [True, True, True, True]
        torch.library.opcheck(ops_of.combine_backward.default, args, named)


def test_compiled_and_transformed(traced_backend):
    """Under torch.compile, and under torch.func, where the formula is in torch's ops."""

    def run(x, sigma):
        return ops.combine([x], COEFS, sigma, levels=LEVELS, seed=1)

    with ops.backend(traced_backend):
        want = run(X, SIGMA)
        compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
        assert torch.allclose(compiled(X, SIGMA), want, atol=1e-12)
        leaf = SIGMA.clone().requires_grad_()
        (found,) = torch.autograd.grad(compiled(X, leaf).square().sum(), leaf)
        torch.testing.assert_close(found, torch.func.grad(lambda s: run(X, s).square().sum())(SIGMA))
        many = torch.func.vmap(run)(torch.stack((X, 2 * X)), torch.stack((SIGMA, SIGMA)))
        assert torch.allclose(many[0], want, atol=1e-12)


@pytest.mark.parametrize(
    "levels", ["01", 3, [], [1, 2, 3], [0, 2, 2], [0, 3, 1], [0, 1.0, 2], [False, 1, 2], [0, 1, 6], range(33)]
)
@pytest.mark.parametrize("op", ["combine", "step_by_table"])
def test_levels_that_are_none(op, levels):
    tables = Tables(randn(3, 2), SIGMA, COEFS)
    call = {
        "combine": lambda: ops.combine([X], COEFS, SIGMA, levels=levels),
        "step_by_table": lambda: ops.step_by_table([X], tables, levels=levels),
    }
    with pytest.raises(MmfastError, match="levels is "):
        call[op]()


def test_sigma_has_a_column_a_level():
    for sigma, levels, named in (
        (SIGMA[:, :2], LEVELS, "sigma"),
        (SIGMA[:, 0], LEVELS, "sigma"),
        (SIGMA, None, "sigma"),
        (None, LEVELS, "levels"),
    ):
        with pytest.raises(MmfastError, match=named):
            ops.combine([X], COEFS, sigma, levels=levels)
        with pytest.raises(MmfastError, match=named):
            ops.step_by_table([X], Tables(randn(3, 2), sigma, COEFS), levels=levels)
