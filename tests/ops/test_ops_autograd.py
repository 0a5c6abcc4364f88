"""Gradients of the ops in every floating tensor argument, first and second, against finite differences and truth."""

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

import mmfast
from mmfast import Schedule, ops
from mmfast.ops import Block

TYPES = {torch.float64: 2.0**-53, torch.float32: 2.0**-24, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}
DTYPES = pytest.mark.parametrize("dtype", list(TYPES), ids=lambda d: str(d)[6:])


def randn(*shape, dtype=torch.float64, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def leaf(*shape, seed=0):
    return randn(*shape, seed=seed).requires_grad_()


SCHED = Schedule.cosine(30, {"a": mmfast.bridge(2.0), "b": mmfast.carried(0.7), "c": mmfast.bridge()})
T = torch.tensor([3, 28])
# Of the space [2, 3, 2, 2]: a full tensor, a label's, one shared by the samples, and two blocks.
SHAPES = {
    "full": (2, 3, 2, 2),
    "label": (2, 3, 1, 1),
    "shared": (1, 1, 2, 2),
    "block": (2, 2, 2, 2),
    "small": (1, 1, 1, 2),
}


def term(kind, x):
    return Block(x, {"block": 1, "small": 2}[kind], 3) if kind in ("block", "small") else x


def combine(kinds, noisy):
    """A call of combine as a function of every floating argument, and those arguments."""
    leaves = [leaf(*SHAPES[kind], seed=i) for i, kind in enumerate(kinds)]
    scales = [leaf(2, len(kinds), seed=9), *([leaf(2, seed=10)] if noisy else [])]

    def function(*args):
        terms = [term(kind, x) for kind, x in zip(kinds, args, strict=False)]
        return ops.combine(terms, *args[len(kinds) :], seed=1, sample_ids=torch.tensor([4, 8]))

    return function, [*leaves, *scales]


def q_sample(with_noise):
    def function(z0, a, b, *noise):
        noise = {"noise": noise[0]} if with_noise else {"seed": 1}
        present = torch.tensor([[True, True], [False, True]])
        return ops.q_sample(z0, {"a": a, "b": Block(b, 1, 3)}, T, SCHED, present=present, **noise)[0]

    args = [leaf(*SHAPES["full"]), leaf(*SHAPES["label"], seed=1), leaf(*SHAPES["block"], seed=2)]
    return function, [*args, *([leaf(*SHAPES["full"], seed=3)] if with_noise else [])]


def posterior(op, **options):
    def function(z_t, eps, a, b):
        return op(z_t, eps, {"b": Block(b, 1, 3), "a": a}, T, SCHED, **options)

    shapes = [SHAPES["full"], SHAPES["full"], SHAPES["label"], SHAPES["block"]]
    return function, [leaf(*shape, seed=i) for i, shape in enumerate(shapes)]


def multimodal_mean():
    def function(a, b, c, weights):
        return ops.multimodal_mean([a, b, Block(c, 2, 3)], weights)

    shapes = [SHAPES["full"], SHAPES["shared"], SHAPES["small"], (2, 3)]
    return function, [leaf(*shape, seed=i) for i, shape in enumerate(shapes)]


def one_dimensional(*shape):
    def function(x, y, coefs, sigma):
        return ops.combine([x, y], coefs, sigma, seed=1)

    batch = shape[0] if shape else 1
    return function, [leaf(*shape), leaf(*shape, seed=1), leaf(batch, 2, seed=2), leaf(batch, seed=3)]


def one_row():
    def function(x, coefs, sigma):
        return ops.combine([x], coefs, sigma, seed=1)

    return function, [leaf(*SHAPES["full"]), leaf(1, 1, seed=1), leaf(1, seed=2)]


CALLS = {
    "combine": lambda: combine(["full"], False),
    "combine, noise": lambda: combine(["full", "full"], True),
    "combine, broadcast": lambda: combine(["label", "shared", "full"], True),
    "combine, blocks": lambda: combine(["block", "full", "small"], True),
    "combine, one row of scales": one_row,
    "combine, [B]": lambda: one_dimensional(3),
    "combine, a number": lambda: one_dimensional(),
    "multimodal_mean": multimodal_mean,
    "q_sample": lambda: q_sample(False),
    "q_sample, noise handed in": lambda: q_sample(True),
    "posterior_mean": lambda: posterior(ops.posterior_mean),
    "posterior_mean, a jump": lambda: posterior(ops.posterior_mean, s=torch.tensor([0, 11])),
    "posterior_sample": lambda: posterior(ops.posterior_sample, seed=1),
    "posterior_sample, clamped": lambda: posterior(ops.posterior_sample, seed=1, s=1, clamp=(-0.7, 0.9)),
}


@pytest.mark.parametrize("name", CALLS)
def test_gradients(each_backend, name):
    """Against finite differences in float64, in all floating tensors at once."""
    function, args = CALLS[name]()
    with ops.backend(each_backend):
        assert gradcheck(function, args)


@pytest.mark.parametrize("name", CALLS)
def test_second_gradients(traced_backend, name):
    """A gradient can itself be differentiated (gradient penalties)."""
    function, args = CALLS[name]()
    with ops.backend(traced_backend):
        assert gradgradcheck(function, args)


@pytest.mark.parametrize("name", CALLS)
def test_only_what_is_asked_for(each_backend, name):
    """Each argument's gradient alone equals its gradient among all."""
    function, args = CALLS[name]()
    with ops.backend(each_backend):
        out = function(*args)
        grad = randn(*out.shape, seed=20)
        together = torch.autograd.grad(out, args, grad)
        for i, expected in enumerate(together):
            alone = [x.detach().requires_grad_(i == j) for j, x in enumerate(args)]
            (found,) = torch.autograd.grad(function(*alone), [alone[i]], grad)
            assert torch.equal(found, expected)


@DTYPES
def test_gradients_of_every_type(each_backend, dtype):
    """Each in its argument's type, within rounding of float64's: the sums are taken in the type of the arithmetic.

    A term's gradient is a sum of n products that were exact in their inputs: n + 2 roundings of the arithmetic
    of the sum of their sizes, and one to the term's type.
    """
    shapes = [(4, 6, 5, 7), (4, 6, 1, 1), (1, 1, 5, 7), (4, 2, 5, 7), (1, 2, 1, 7)]
    inputs = [randn(*shape, dtype=dtype, seed=i) for i, shape in enumerate(shapes)]
    compute = torch.float64 if dtype == torch.float64 else torch.float32
    scales, grad = (
        [randn(4, 5, dtype=compute, seed=8), randn(4, dtype=compute, seed=9)],
        randn(*shapes[0], dtype=dtype, seed=7),
    )
    identity = {"seed": 5, "sample_ids": torch.arange(4) * 3}

    def run(terms, scales, grad):
        leaves = [x.detach().requires_grad_() for x in (*terms, *scales)]
        blocks = [*leaves[:3], Block(leaves[3], 4, 6), Block(leaves[4], 0, 6)]
        return torch.autograd.grad(ops.combine(blocks, *leaves[5:], **identity), leaves, grad)

    def truth(terms, scales, grad):
        """Dense float64, plain torch."""
        with ops.backend("reference"):
            eps = ops.randn(shapes[0], **identity).double()
        leaves = [x.detach().double().requires_grad_() for x in (*terms, *scales)]
        full = [x.expand(shapes[0]) for x in leaves[:3]]
        full.append(torch.nn.functional.pad(leaves[3], (0, 0, 0, 0, 4, 0)))
        full.append(torch.nn.functional.pad(leaves[4].expand(4, 2, 5, 7), (0, 0, 0, 0, 0, 4)))
        out = (
            sum(leaves[5][:, k, None, None, None] * x for k, x in enumerate(full))
            + leaves[6][:, None, None, None] * eps
        )
        return torch.autograd.grad(out, leaves, grad.double())

    with ops.backend(each_backend):
        found = run(inputs, scales, grad)
    exact = truth(inputs, scales, grad)
    sizes = truth([x.abs() for x in inputs], [x.abs() for x in scales], grad.abs())
    for k, (a, b, size, x) in enumerate(zip(found, exact, sizes, [*inputs, *scales], strict=True)):
        assert a.dtype == x.dtype
        n = grad.numel() // x.numel() if k < 5 else grad[0].numel()
        if k == 6:  # the noise has both signs, and an error of 4 ulp
            size, n = 4 * grad.double().abs().flatten(1).sum(1), n + 4
        bound = (
            (n + 3) * TYPES[compute] * size * 1.01
            + TYPES[a.dtype] * b.abs() * 1.01
            + 2.0**-25 * (dtype == torch.float16)
        )
        if k == 6 and dtype == torch.float64:
            bound = bound + 4 * 2.0**-24 * size  # the noise itself is float32
        assert ((a.double() - b).abs() <= bound).all(), k


def test_noise_gradient_is_the_noise_made_again(each_backend):
    """d/d sigma = <grad, eps>, for each sample's own identity, after other calls in between."""
    sigma, grad = torch.ones(3, requires_grad=True), randn(3, 4, 5, dtype=torch.float32)
    ids = torch.tensor([9, 2, 1 << 44])
    with ops.backend(each_backend):
        out = ops.combine([torch.zeros(3, 4, 5)], torch.ones(3, 1), sigma, seed=6, sample_ids=ids, draw=3, stream=2)
        ops.randn((3, 4, 5))
        out.backward(grad)
        eps = ops.randn((3, 4, 5), seed=6, sample_ids=ids, draw=3, stream=2)
    torch.testing.assert_close(sigma.grad, (grad * eps).flatten(1).sum(1), rtol=1e-5, atol=1e-5)


def test_no_graph_where_none_is_needed():
    """Without requires_grad, or under no_grad, nothing is recorded; the noise passes none back."""
    x = torch.ones(2, 3)
    assert not ops.combine([x], torch.ones(2, 1)).requires_grad
    with torch.no_grad():
        assert not ops.combine([x.requires_grad_()], torch.ones(2, 1)).requires_grad
    z, eps = ops.q_sample(x, {}, 3, SCHED, seed=1)
    assert z.requires_grad
    assert not eps.requires_grad


def test_many_gradients_of_one_graph(each_backend):
    """retain_graph: the saved tensors serve twice; accumulating over two uses of a tensor adds up."""
    x, coefs = leaf(2, 3), leaf(2, 2, seed=1)
    with ops.backend(each_backend):
        out = ops.combine([x, x], coefs)
        first = torch.autograd.grad(out.sum(), (x, coefs), retain_graph=True)
        second = torch.autograd.grad(out.sum(), (x, coefs))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    torch.testing.assert_close(first[0], coefs.sum(1, keepdim=True).expand(2, 3))


def test_forward_mode_and_torch_func_agree_with_the_formula():
    """Both go through the reference: the derivative along v of sum_k c_k x_k is sum_k c_k v_k."""
    x, v, coefs = (torch.randn(3, 4, dtype=torch.float64) for _ in range(3))
    coefs = coefs[:, :1]
    with torch.autograd.forward_ad.dual_level():
        out = ops.combine([torch.autograd.forward_ad.make_dual(x, v)], coefs)
        assert torch.allclose(torch.autograd.forward_ad.unpack_dual(out).tangent, coefs * v)
    grad = torch.func.grad(lambda x: (ops.combine([x], coefs) ** 2).sum())(x)
    assert torch.allclose(grad, 2 * coefs**2 * x)
    many = torch.func.vmap(lambda x: ops.combine([x], coefs))(torch.stack((x, v)))
    assert torch.allclose(many, coefs * torch.stack((x, v)))
