"""ops.step against the formulas of DDIM and of the shift view, written out in float64 for one sample at a time."""

import math

import pytest
import torch
import truth

import mmfast
from mmfast import Schedule, ops
from mmfast.ops import Block
from mmfast.ops.tables import _bounds

T = 40
SCHED = Schedule.cosine(T, {"a": mmfast.bridge(2.0), "b": mmfast.carried(0.7)})
ABAR = truth.cosine(T)
W = list(zip(truth.weight("bridge", 2.0, ABAR), truth.weight("carried", 0.7, ABAR), strict=True))
ID = {"seed": 9, "sample_ids": torch.tensor([3, 2**40, 5]), "stream": 2, "draw": 6}
SHAPE = (3, 4, 5, 6)
TIMES = torch.tensor([1, 17, 33])
TARGETS = pytest.mark.parametrize("target", ["eps", "x0", "v"])


def randn(*shape, dtype=torch.float64, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def z0_of(target, y, prediction, abar):
    """z_0 of y = sqrt(abar) z_0 + sqrt(1 - abar) eps and a prediction of eps, z_0, or sqrt(abar) eps - sqrt(1 - abar)
    z_0."""
    signal, noise = math.sqrt(abar), math.sqrt(1 - abar)
    if target == "eps":
        return (y - noise * prediction) / signal
    return prediction if target == "x0" else signal * y - noise * prediction


def one(b, t, s, z, prediction, E, target, eta, bounds, noise, channels=slice(None)):
    """Sample b of DDIM: z_0, the noise that y_t then holds, and both put together again at s."""
    y = z[b] - sum(w * e[b] for w, e in zip(W[t], E, strict=True))
    z0 = torch.zeros_like(y)
    z0[channels] = z0_of(target, y, prediction[b], ABAR[t])[channels].clip(*bounds)
    eps = (y - math.sqrt(ABAR[t]) * z0) / math.sqrt(1 - ABAR[t])
    sigma = eta * truth.deviation(ABAR, t, s)
    out = math.sqrt(ABAR[s]) * z0 + math.sqrt(max(1 - ABAR[s] - sigma**2, 0.0)) * eps + sigma * noise[b]
    return out + sum(w * e[b] for w, e in zip(W[s], E, strict=True)), z0[channels]


def expected(t, s, *args, **options):
    pairs = [one(b, t[b], s[b], *args, **options) for b in range(3)]
    return [torch.stack(x) for x in zip(*pairs, strict=True)]


def close(found, want):
    # 1/sqrt(abar_t) is below 20 at the times that are used.
    for a, b in zip(found, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)


@TARGETS
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("clamp", [None, 0.8, (-0.5, math.inf)])
def test_every_target(each_backend, target, eta, clamp):
    """With t an int or a tensor, and s left out, an int or a tensor."""
    z, prediction, a, b = (randn(*SHAPE, seed=i) for i in range(4))
    bounds = (-math.inf, math.inf) if clamp is None else (-0.8, 0.8) if clamp == 0.8 else clamp
    with ops.backend(each_backend):
        noise = ops.randn(SHAPE, **ID, dtype=torch.float64)
        for t, s in [(TIMES, None), (TIMES, TIMES // 3), (20, None), (20, 4), (20, torch.tensor([0, 3, 19])),
                     (TIMES.int(), None), (TIMES, 0), (torch.tensor(20), None)]:  # fmt: skip
            found = ops.step(z, prediction, [a, b], t, SCHED, s, target=target, eta=eta, clamp=clamp, **ID)
            ts = torch.as_tensor(t).expand(3).tolist()
            ss = [x - 1 for x in ts] if s is None else torch.as_tensor(s).expand(3).tolist()
            close(found, expected(ts, ss, z, prediction, [a, b], target, eta, bounds, noise))


@TARGETS
@pytest.mark.parametrize("eta", [0, 1])
def test_blocks_guidance_and_who_is_there(each_backend, target, eta):
    """Predictions of some channels, two of them, encodings broadcast or of a block, some missing and then not read."""
    z, a, b = randn(*SHAPE), randn(3, 4, 1, 1, seed=1), randn(3, 1, 5, 6, seed=2)
    told, untold = randn(3, 2, 5, 6, seed=3), randn(3, 2, 5, 6, seed=4)
    present = torch.tensor([[1, 1], [0, 1], [1, 0]])
    a[1], b[2] = math.nan, math.nan

    def whole(x, start):
        full = torch.zeros(SHAPE, dtype=torch.float64)
        full[:, start : start + x.shape[1]] = x
        return full

    E = [a.clone().expand(SHAPE), whole(b, 3)]
    E = [torch.where(present[:, i, None, None, None] > 0, e, 0.0) for i, e in enumerate(E)]
    guided = whole(untold + 2.5 * (told - untold), 1)
    with ops.backend(each_backend):
        noise = ops.randn(SHAPE, **ID, dtype=torch.float64)
        found = ops.step(z, Block(told, 1, 4), {"b": Block(b, 3, 4), "a": a}, TIMES, SCHED, target=target, eta=eta,
                         clamp=1.5, unconditional=Block(untold, 1, 4), guidance_scale=2.5,
                         present=present.flip(1), **ID)  # fmt: skip
    ts = TIMES.tolist()
    close(found, expected(ts, [t - 1 for t in ts], z, guided, E, target, eta, (-1.5, 1.5), noise,
                          channels=slice(1, 3)))  # fmt: skip


def test_a_subset_of_the_modalities(each_backend):
    """A modality that is left out is one whose encoding is zero."""
    z, prediction, b, zero = randn(*SHAPE), randn(*SHAPE, seed=1), randn(*SHAPE, seed=2), torch.zeros(SHAPE)
    with ops.backend(each_backend):
        close(ops.step(z, prediction, {"b": b}, TIMES, SCHED, **ID), ops.step(z, prediction, [zero, b], TIMES, SCHED,
              **ID))  # fmt: skip


def test_guidance_of_one_and_of_none(each_backend):
    """A scale of 1 is the prediction alone, and then the unconditional one is not read; 0 is the unconditional one."""
    z, told, bad = randn(*SHAPE), randn(*SHAPE, seed=1), torch.full(SHAPE, math.nan, dtype=torch.float64)
    with ops.backend(each_backend):
        want = ops.step(z, told, {}, 9, SCHED, clamp=1.0, **ID)
        close(ops.step(z, told, {}, 9, SCHED, clamp=1.0, unconditional=bad, **ID), want)
        close(ops.step(z, bad, {}, 9, SCHED, clamp=1.0, unconditional=told, guidance_scale=0.0, **ID), want)


def test_with_eta_one_it_is_the_posterior(each_backend):
    """The ancestral step, and for s = 0, where no noise is left, its mean; by both forms of it."""
    z, eps, a, b = (randn(*SHAPE, seed=i) for i in range(4))
    with ops.backend(each_backend):
        for t, s in ((TIMES, None), (20, 4), (torch.tensor([20, 30, 7]), torch.tensor([0, 12, 6]))):
            out, z0 = ops.step(z, eps, [a, b], t, SCHED, s, **ID)
            for clamp in (None, math.inf):
                close([out], [ops.posterior_sample(z, eps, [a, b], t, SCHED, s, clamp, **ID)])
            t0 = ops.posterior_mean(z, eps, [a, b], t, SCHED, 0 if isinstance(t, int) else torch.zeros_like(t))
            close(
                [z0 + 0.7 * b], [t0]
            )  # the mean of z_s for s = 0 is z_0 and m_0 = W_0 E, W_0 = 0.7 for what is carried
        out, _ = ops.step(z, eps, {}, 20, SCHED, 0)
        close([out], [ops.posterior_mean(z, eps, {}, 20, SCHED, 0)])


@pytest.mark.parametrize("t", [1, 2, T])
def test_the_posterior_at_a_number_is_that_of_as_many_times(each_backend, t):
    """From the first time of all to the last, to the one before or to a given one."""
    z, eps, a, b = (randn(*SHAPE, seed=i) for i in range(4))
    with ops.backend(each_backend):
        for s in (None, 0, t - 1):
            many = None if s is None else torch.full((3,), s)
            for op in (ops.posterior_mean, lambda *args: ops.posterior_sample(*args, **ID)):
                close([op(z, eps, [a, b], t, SCHED, s)], [op(z, eps, [a, b], torch.full((3,), t), SCHED, many)])


def test_without_noise_no_identity_is_used(each_backend):
    """eta = 0: deterministic, and torch's generator is left alone."""
    z, eps = randn(*SHAPE), randn(*SHAPE, seed=1)
    with ops.backend(each_backend):
        torch.manual_seed(0)
        first = ops.step(z, eps, {}, TIMES, SCHED, eta=0.0)
        after = torch.rand(())
        torch.manual_seed(0)
        assert torch.equal(after, torch.rand(()))
        assert torch.equal(first[0], ops.step(z, eps, {}, TIMES, SCHED, eta=0.0, seed=3)[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@TARGETS
def test_types(each_backend, dtype, target):
    """Against float64 of the same rounded inputs: at most twice the error of the formula in that type's arithmetic.

    That formula is the reference backend's, of whose largest error a rounding to the type is a part.
    """
    inputs = [randn(*SHAPE, dtype=dtype, seed=i) for i in range(4)]

    def run(z, prediction, a, b):
        return ops.step(z, prediction, [a, b], TIMES, SCHED, target=target, clamp=2.0, **ID)

    with ops.backend("reference"):
        want, plain = run(*(x.double() for x in inputs)), run(*inputs)
    with ops.backend(each_backend):
        found = run(*inputs)
    for a, b, c in zip(found, want, plain, strict=True):
        assert a.dtype == dtype
        assert (a.double() - b).abs().max() <= 2 * (c.double() - b).abs().max()


def test_types_promote_and_single_numbers_work(each_backend):
    z, prediction = randn(*SHAPE, dtype=torch.float32), randn(*SHAPE, dtype=torch.bfloat16, seed=1)
    with ops.backend(each_backend):
        found = ops.step(z, prediction, {}, 9, SCHED, **ID)
        close(found, ops.step(z, prediction.float(), {}, 9, SCHED, **ID))
        number = ops.step(z[0, 0, 0, 0], z[1, 0, 0, 0], {}, 9, SCHED, seed=1)
        vector = ops.step(z[0, 0, 0, :1], z[1, 0, 0, :1], {}, 9, SCHED, seed=1)
        assert number[0].shape == number[1].shape == ()
        assert number[0] == vector[0][0] and number[1] == vector[1][0]


@pytest.mark.parametrize("shape", [(0, 4, 5, 6), (3, 4, 0, 6)])
def test_nothing_to_do(each_backend, shape):
    """No samples or empty ones, with a prediction of the whole space or of a block."""
    z, part = torch.zeros(shape), torch.zeros(shape)[:, :2]
    t = torch.ones(shape[0], dtype=torch.int64)
    with ops.backend(each_backend):
        for time in (t, 5):
            assert [x.shape for x in ops.step(z, z, {}, time, SCHED)] == [shape, shape]
            assert [x.shape for x in ops.step(z, Block(part, 1, 4), {}, time, SCHED)] == [shape, part.shape]


@TARGETS
@pytest.mark.parametrize("clamp", [None, 0.9])
def test_gradients(traced_backend, target, clamp):
    """First and second, in every tensor, of both results, against finite differences."""
    shapes = [(2, 3, 2), (2, 2, 2), (2, 2, 2), (2, 3, 1), (2, 1, 2)]
    leaves = [randn(*shape, seed=i + 5).requires_grad_() for i, shape in enumerate(shapes)]

    def function(z, told, untold, a, b):
        return ops.step(z, Block(told, 1, 3), [a, Block(b, 2, 3)], TIMES[1:], SCHED, target=target, clamp=clamp,
                        unconditional=Block(untold, 1, 3), guidance_scale=1.5, seed=1)  # fmt: skip

    with ops.backend(traced_backend):
        plain = function(*(x.detach() for x in leaves))
        close(function(*leaves), plain)
        assert torch.autograd.gradcheck(function, leaves, fast_mode=True)
        if clamp is None:
            assert torch.autograd.gradgradcheck(function, leaves, fast_mode=True)


def test_a_clamp_beyond_float32_clamps_nothing():
    largest = torch.finfo(torch.float32).max
    assert _bounds(largest)[:2] == (-largest, largest)
    assert _bounds(2 * largest)[:2] == _bounds(None)[:2] == (-math.inf, math.inf)
    assert _bounds((-largest, 2 * largest))[:2] == (-largest, math.inf)
