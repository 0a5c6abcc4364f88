"""Gradients of calls that took the short way into C++: as the reference has them, of one pass and of two."""

import pytest
import torch
from test_short_way import LOOKS
from torch.utils.checkpoint import checkpoint

from mmfast import Schedule, bridge, ops
from mmfast.ops import Block, autograd

pytestmark = pytest.mark.skipif(not LOOKS, reason="the extension cannot look for itself with this torch")


def leaf(*shape, seed):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).requires_grad_()


X, Y, ONE = leaf(3, 2, 4, seed=0), leaf(3, 2, 4, seed=1), leaf(3, 1, 4, seed=2)
COEFS, TABLE, SIGMA = leaf(3, 2, seed=3), leaf(5, 2, seed=4), leaf(3, seed=5)
ROWS, FIXED = torch.tensor([4, 0, 2]), COEFS.detach()
# What each is of, and whether its gradients are products alone.
CALLS = {
    "terms": (lambda: ops.combine([X, Y], FIXED), [X, Y], True),
    "one of the terms": (lambda: ops.combine([X.detach(), Y], FIXED), [Y], True),
    "a row for each": (lambda: ops.combine([X, Y], TABLE.detach(), rows=ROWS), [X, Y], True),
    "one row for all": (lambda: ops.combine([X, Y], TABLE.detach(), rows=3), [X, Y], True),
    "one row there is": (lambda: ops.multimodal_mean([X, Y], FIXED[:1]), [X, Y], True),
    "with noise": (lambda: ops.combine([X, Y], FIXED, SIGMA.detach(), seed=3, return_noise=True)[0], [X, Y], True),
    "coefficients": (lambda: ops.combine([X.detach(), Y.detach()], COEFS), [COEFS], False),
    "terms and coefficients": (lambda: ops.combine([X, Y], COEFS), [X, Y, COEFS], False),
    "sigma": (lambda: ops.combine([X], FIXED[:, :1], SIGMA, seed=3), [X, SIGMA], False),
    "a term that is broadcast": (lambda: ops.combine([X, ONE], FIXED), [X, ONE], False),
    "a block": (lambda: ops.combine([X, Block(ONE, 1, 2)], FIXED), [X, ONE], False),
    "laid out otherwise": (lambda: ops.combine([X, Y.mT.contiguous().mT], FIXED), [X, Y], False),
}


@pytest.mark.parametrize("name", CALLS)
def test_gradients_are_the_references(name, monkeypatch):
    call, leaves, products = CALLS[name]
    scaled, used = autograd.Scaled.apply, []
    monkeypatch.setattr(autograd.Scaled, "apply", lambda *args: used.append(1) or scaled(*args))
    grad = leaf(3, 2, 4, seed=6).detach()
    found = torch.autograd.grad(call(), leaves, grad)
    assert len(used) == products
    with ops.backend("reference"):
        wanted = torch.autograd.grad(call(), leaves, grad)
    exact = 1e-6 if name == "sigma" else 1e-13  # the kernel's noise is made in float32
    torch.testing.assert_close(found, wanted, rtol=exact, atol=exact)


def test_the_noise_that_is_given_back_has_no_gradient():
    """Also where the result has one."""
    out, eps = ops.combine([X, Y], FIXED, SIGMA.detach(), seed=3, return_noise=True)
    assert out.requires_grad and not eps.requires_grad


@pytest.mark.parametrize("name", CALLS)
def test_second_gradients_and_many_at_once(name):
    call, leaves, _ = CALLS[name]
    grad = leaf(3, 2, 4, seed=6)
    many = torch.stack([grad.detach(), -2 * grad.detach()])

    def passes():
        first = torch.autograd.grad(call(), leaves, grad, create_graph=True)
        twice = torch.autograd.grad(sum(x.square().sum() for x in first), grad)
        return *first, *twice, *torch.autograd.grad(call(), leaves, many, is_grads_batched=True)

    found = passes()
    with ops.backend("reference"):
        wanted = passes()
    torch.testing.assert_close(found, wanted, rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("t", [3, torch.tensor([3, 1])], ids=["one time", "a time for each"])
def test_a_checkpoint_may_compute_again_by_the_other_way(t):
    """The first call with a schedule goes the long way, the one in the backward pass the short one."""
    sched, z = Schedule.cosine(10, {"a": bridge(1.0)}), torch.randn(2, 3, requires_grad=True)

    def noisy(x):
        return ops.q_sample(2 * x, {"a": torch.ones(2, 3)}, t, sched, seed=1, return_noise=False)

    (found,) = torch.autograd.grad(checkpoint(noisy, z, use_reentrant=False).sum(), z)
    (wanted,) = torch.autograd.grad(noisy(z).sum(), z)
    assert torch.equal(found, wanted)


def test_a_schedule_that_is_differentiated_passes_gradients():
    """Kept tables are not looked at, but those that have a gradient are not kept like that."""
    sched = Schedule.linear(10)
    sched.alpha_bar.requires_grad_()
    z0 = torch.randn(2, 3)
    for _ in range(2):  # the second time the tables are there
        out = ops.q_sample(z0, {}, torch.tensor([3, 5]), sched, seed=1, return_noise=False)
        assert out.requires_grad
