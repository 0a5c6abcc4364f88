"""ops.diffusion_loss against the formula and autograd's gradient of it, in float64 and plain torch."""

import math
import weakref

import pytest
import torch
import truth

from mmfast import MmfastError, Schedule, ops
from mmfast.ops import Block

T = 40
SCHED = Schedule.cosine(T)
ABAR = torch.tensor(truth.cosine(T))
SHAPE = (4, 3, 5, 6)
TIMES = torch.tensor([1, 17, 40, 17])
ID = {"seed": 9, "sample_ids": torch.tensor([3, 2**40, 5, 11]), "stream": 2, "draw": 6}
TARGETS = pytest.mark.parametrize("target", ["eps", "x0", "v"])


def randn(*shape, dtype=torch.float64, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def formula(prediction, z0, eps, t, target="eps", min_snr_gamma=None, sample_weight=None, reduction="mean"):
    """w_t mean |prediction - target|^2 of each sample; min-SNR: w = min(snr, gamma) over what makes the loss z_0's."""
    abar = ABAR[torch.as_tensor(t).expand(len(z0))].reshape(-1, 1, 1, 1)
    v = abar.sqrt() * eps - (1 - abar).sqrt() * z0
    wanted = {"eps": eps, "x0": z0, "v": v}[target]
    loss = (prediction - wanted).square().mean((1, 2, 3))
    if min_snr_gamma is not None:
        snr = (abar / (1 - abar)).reshape(-1)
        loss = loss * snr.clamp(max=min_snr_gamma) / {"eps": snr, "x0": 1.0, "v": snr + 1}[target]
    if sample_weight is not None:
        loss = loss * sample_weight
    return loss.mean() if reduction == "mean" else loss


def gradient(loss, leaf):
    """Of a weighted sum, so that samples have gradients from above of their own: 0, 1, -2.5, 1000."""
    above = torch.tensor([0.0, 1.0, -2.5, 1000.0], dtype=loss.dtype)
    return torch.autograd.grad((loss * (above if loss.dim() else 3.5)).sum(), leaf)[0]


@TARGETS
@pytest.mark.parametrize("min_snr_gamma", [None, 5.0, 0.3])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_value_and_gradient(each_backend, target, min_snr_gamma, weighted, reduction):
    """With the noise given, and by its identity; in one pass, and taken apart; t an int or a tensor."""
    p, z0 = randn(*SHAPE).requires_grad_(), randn(*SHAPE, seed=1)
    weight = torch.tensor([1.0, 0.0, 0.5, 2.0]) if weighted else None
    options = {"target": target, "min_snr_gamma": min_snr_gamma, "sample_weight": weight, "reduction": reduction}
    with ops.backend(each_backend):
        eps = ops.randn(SHAPE, **ID, dtype=torch.float64)
        for t in (TIMES, TIMES.int(), 17, torch.tensor(17)):
            expected = formula(p, z0, eps, t, **options)
            of_p = gradient(expected, p)
            for noise in (ID, {"noise": eps}):
                for fused in (True, False):
                    loss = ops.diffusion_loss(p, z0, t, SCHED, **noise, **options, fused=fused)
                    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
                    torch.testing.assert_close(gradient(loss, p), of_p, rtol=1e-12, atol=1e-15)


@TARGETS
def test_at_zero(each_backend, target):
    """t = 0, where the SNR is infinite: the limit of the weight."""
    p, z0, eps = (randn(*SHAPE, seed=i) for i in range(3))
    of_signal = {"eps": eps, "x0": z0, "v": eps}[target]
    weight = {"eps": 0.0, "x0": 5.0, "v": 0.0}[target]
    with ops.backend(each_backend):
        loss = ops.diffusion_loss(p, z0, 0, SCHED, noise=eps, target=target)
        torch.testing.assert_close(loss, (p - of_signal).square().mean())
        loss = ops.diffusion_loss(p, z0, 0, SCHED, noise=eps, target=target, min_snr_gamma=5.0)
        torch.testing.assert_close(loss, weight * (p - of_signal).square().mean())


@TARGETS
def test_gradients(traced_backend, target):
    """Against finite differences: the prediction's in one pass; and all of them, taken apart, first and second."""
    p, z0, eps = (randn(2, 2, 3, 1, seed=i).requires_grad_() for i in range(3))
    weight = torch.tensor([0.5, 2.0], dtype=torch.float64, requires_grad=True)
    t, options = TIMES[:2], {"target": target, "reduction": "none", "min_snr_gamma": 5.0}

    def one_pass(p):
        return ops.diffusion_loss(p, z0.detach(), t, SCHED, seed=1, **options)

    def apart(p, z0, weight):
        return ops.diffusion_loss(p, z0, t, SCHED, seed=1, sample_weight=weight, **options)

    def given(p, z0, eps, weight):
        return ops.diffusion_loss(p, z0, t, SCHED, noise=eps, sample_weight=weight, **options)

    def twice(p):
        return ops.diffusion_loss(p, z0.detach(), t, SCHED, seed=1, **options, fused=False)

    with ops.backend(traced_backend):
        assert torch.autograd.gradcheck(one_pass, p, fast_mode=True)
        for function, leaves in ((apart, (p, z0, weight)), (given, (p, z0, eps, weight)), (twice, (p,))):
            assert torch.autograd.gradcheck(function, leaves, fast_mode=True)
            assert torch.autograd.gradgradcheck(function, leaves, fast_mode=True)


def test_no_second_derivative_in_one_pass(each_backend):
    """It says so, and how to have one."""
    p = randn(*SHAPE).requires_grad_()
    with ops.backend(each_backend):
        loss = ops.diffusion_loss(p, p.detach(), 3, SCHED, seed=1)
        with pytest.raises(MmfastError, match="fused=False"):
            torch.autograd.grad(loss, p, create_graph=True)


def test_noise_by_identity_is_q_samples(each_backend):
    """The true noise is predicted without error, also where z_0 is the first channels of a larger space."""
    z0 = randn(*SHAPE, dtype=torch.float32)
    with ops.backend(each_backend):
        _, eps = ops.q_sample(Block(z0, 0, 5), {}, TIMES, SCHED, **ID)
        loss = ops.diffusion_loss(eps[:, :3].contiguous(), z0, TIMES, SCHED, **ID, reduction="none")
    assert loss.tolist() == [0.0] * 4


def test_many_gradients_of_one_graph(each_backend):
    """retain_graph: accumulating adds up, and changing one gradient in place never changes the next in silence."""
    p, z0 = randn(*SHAPE).requires_grad_(), randn(*SHAPE, seed=1)
    with ops.backend(each_backend):
        loss = ops.diffusion_loss(p, z0, 3, SCHED, seed=1)
        (expected,) = torch.autograd.grad(ops.diffusion_loss(p, z0, 3, SCHED, seed=1), p)
        for count in (1, 2, 3):
            loss.backward(retain_graph=True)
            torch.testing.assert_close(p.grad, count * expected)
        (first,) = torch.autograd.grad(loss, p, retain_graph=True)
        first.mul_(2)  # as clipping does
        try:
            (second,) = torch.autograd.grad(loss, p)
        except (RuntimeError, MmfastError):  # what torch does where something that it saved was changed
            return
        torch.testing.assert_close(second, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_the_gradient_goes_with_the_backward_pass(each_backend, dtype):
    """A loss that is kept for a log keeps no gradient alive; float16 has its own."""
    p, z0 = randn(*SHAPE, dtype=dtype).requires_grad_(), randn(*SHAPE, seed=1, dtype=dtype)
    saved = []

    class Kept:
        def __init__(self, x):
            self.x = x
            saved.append(weakref.ref(self))

    with ops.backend(each_backend), torch.autograd.graph.saved_tensors_hooks(Kept, lambda kept: kept.x):
        loss = ops.diffusion_loss(p, z0, 3, SCHED, seed=1)
        loss.backward(retain_graph=True)
        assert saved and all(x() is not None for x in saved)
        loss.backward()
    assert all(x() is None for x in saved)
    with pytest.raises(RuntimeError, match="second time"):
        loss.backward()


def test_only_the_gradient_is_kept(each_backend):
    """What went in can go before backward(); taken apart, the same holds of the noise."""
    p, z0 = randn(*SHAPE).requires_grad_(), randn(*SHAPE, seed=1)
    with ops.backend(each_backend):
        kept = [z0 + 1, randn(*SHAPE, seed=2), p * 2]
        gone = [weakref.ref(x) for x in kept]
        loss = ops.diffusion_loss(kept[2], kept[0], TIMES, SCHED, noise=kept[1])
        del kept
        assert [x() for x in gone] == [None] * 3
        loss.backward()
    expected = formula(2 * p, z0 + 1, randn(*SHAPE, seed=2), TIMES)
    torch.testing.assert_close(p.grad, torch.autograd.grad(expected, p)[0])


def test_nothing_is_kept_without_a_gradient(each_backend):
    p = randn(*SHAPE).requires_grad_()
    with ops.backend(each_backend), torch.no_grad():
        assert not ops.diffusion_loss(p, p, 3, SCHED, seed=1).requires_grad
    with ops.backend(each_backend):
        assert not ops.diffusion_loss(p.detach(), p.detach(), 3, SCHED, seed=1).requires_grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@TARGETS
def test_types(each_backend, dtype, target):
    """Value and gradient against float64 of the same rounded inputs: at most twice the error of plain torch's
    float32 formula, whose gradient autograd rounds to the type."""
    p, z0, eps = (randn(*SHAPE, dtype=dtype, seed=i) for i in range(3))

    def plain(to):
        leaf = p.clone().requires_grad_()
        loss = formula(leaf.to(to), z0.to(to), eps.to(to), TIMES, target, 5.0, reduction="none").to(to)
        return loss.detach(), gradient(loss, leaf)

    leaf64 = p.double().requires_grad_()
    exact = formula(leaf64, z0.double(), eps.double(), TIMES, target, 5.0, reduction="none")
    want = exact.detach(), gradient(exact, leaf64)
    with ops.backend(each_backend):
        leaf = p.clone().requires_grad_()
        loss = ops.diffusion_loss(leaf, z0, TIMES, SCHED, noise=eps, target=target, min_snr_gamma=5.0, reduction="none")
        found = loss.detach(), gradient(loss, leaf)
    assert found[0].dtype == torch.float32 and found[1].dtype == dtype
    for a, b, c in zip(found, want, plain(torch.float32), strict=True):
        unit = torch.finfo(a.dtype).eps
        # By sample: their sizes differ by the gradient from above.
        error, theirs, size = ((x.double()).flatten(1 if x.dim() > 1 else 0).abs() for x in (a - b, c - b, b))
        if error.dim() > 1:
            error, theirs, size = (x.amax(1) for x in (error, theirs, size))
        assert (error <= 2 * theirs + unit * size).all()


def test_a_scaled_loss_in_half_precision(each_backend):
    """Loss scaling is there to keep small gradients out of float16's subnormals: 2 r / n must not be rounded before
    the gradient from above, 2^16 here as a GradScaler starts, is on it. A rounding of each of two factors is left."""
    p, z0 = randn(64, 3, 64, 64, dtype=torch.float16).requires_grad_(), torch.zeros(64, 3, 64, 64)
    with ops.backend(each_backend):
        loss = ops.diffusion_loss(p, z0.half(), 3, SCHED, seed=1, target="x0")
        (loss * 2.0**16).backward()
    exact = 2.0**17 * p.detach().double() / p.numel()
    assert ((p.grad.double() - exact).abs() <= 2 * 2.0**-11 * exact.abs() + 2.0**-24).all()


def test_mixed_types_and_layouts(each_backend):
    """A half prediction of float32 data: the loss and its arithmetic are float32's; any strides give the same."""
    p, z0 = randn(*SHAPE, dtype=torch.bfloat16).requires_grad_(), randn(*SHAPE, dtype=torch.float32, seed=1)
    with ops.backend(each_backend):
        loss = ops.diffusion_loss(p, z0, TIMES, SCHED, **ID)
        wide = p.detach().float().requires_grad_()
        expected = ops.diffusion_loss(wide, z0, TIMES, SCHED, **ID)
        assert torch.equal(loss, expected)
        (found,), (of_wide,) = torch.autograd.grad(loss, p), torch.autograd.grad(expected, wide)
        assert found.dtype == p.dtype and torch.equal(found, of_wide.to(p.dtype))
        for change in (
            lambda x: x.contiguous(memory_format=torch.channels_last),
            lambda x: x.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0),
            lambda x: x.repeat_interleave(2, 3)[..., ::2],
        ):
            other = change(wide.detach()).requires_grad_()
            loss = ops.diffusion_loss(other, change(z0), TIMES, SCHED, **ID)
            torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)
            assert torch.equal(torch.autograd.grad(loss, other)[0], of_wide)


@pytest.mark.parametrize("shape", [(0, 3), (2, 0), (2,)])
def test_odd_shapes(each_backend, shape):
    """No samples, empty ones, single numbers."""
    p = torch.ones(shape, requires_grad=True)
    with ops.backend(each_backend):
        loss = ops.diffusion_loss(p, torch.zeros(shape), 3, SCHED, seed=1, target="x0", reduction="none")
        assert loss.tolist() == [float(math.prod(shape[1:]) > 0)] * shape[0]
        mean = ops.diffusion_loss(p, torch.zeros(shape), 3, SCHED, seed=1, target="x0")
        mean.backward()
    assert mean.shape == () and torch.equal(p.grad, torch.ones(shape))


def test_nan_stays_in_its_sample(each_backend):
    p = randn(*SHAPE)
    p[2, 1, 0, 0] = math.nan
    with ops.backend(each_backend):
        loss = ops.diffusion_loss(p.requires_grad_(), torch.zeros_like(p), TIMES, SCHED, seed=1, reduction="none")
        loss.sum().backward()
    assert loss.isnan().tolist() == [False, False, True, False]
    assert int(p.grad.isnan().sum()) == 1


def test_torch_func(each_backend):
    """Its gradient, and a map over predictions."""
    p, z0 = randn(3, *SHAPE), randn(*SHAPE, seed=1)

    def function(x):
        return ops.diffusion_loss(x, z0, TIMES, SCHED, seed=1)

    with ops.backend(each_backend):
        leaf = p[0].clone().requires_grad_()
        torch.testing.assert_close(torch.func.grad(function)(p[0]), torch.autograd.grad(function(leaf), leaf)[0])
        each = torch.stack([function(x) for x in p])
        torch.testing.assert_close(torch.func.vmap(function)(p), each)
