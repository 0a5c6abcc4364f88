"""The timed cases: every op and direction, each with the implementations that a user could choose from.

All providers of a case compute the same thing and look the coefficients up by t. float32, two modalities that cover
the whole image.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

import mmfast
from mmfast import ops

Providers = Mapping[str, Callable[[], object]]
EAGER, COMPILE, FALLBACK, DIFFUSERS, COPY = (
    "eager torch",
    "torch.compile",
    "torch.compile, fallback_random",
    "diffusers",
    "memory copy",
)
STEP = 500


@dataclass(frozen=True)
class Case:
    """`tensors` is how many tensors of the image's size are read and written at least; `build` makes the providers."""

    op: str
    case: str
    tensors: float
    build: Callable[[Setting], Providers]


class Setting:
    """The tensors of one size on one device, and the schedule."""

    def __init__(self, size: tuple[int, ...], device: str) -> None:
        generator = torch.Generator().manual_seed(0)
        weights = {"a": mmfast.bridge(2.0), "b": mmfast.bridge(1.0)}
        self.size = size
        self.sched = mmfast.Schedule.cosine(1000, weights).to(device)
        self.plain = mmfast.Schedule.linear(1000).to(device)
        self.z0, self.a, self.b, self.eps, self.grad = (
            torch.randn(size, generator=generator).to(device) for _ in range(5)
        )
        self.t = torch.randint(1, 1001, (size[0],), generator=generator).to(device)
        self.times = torch.randint(1, 1001, (size[0], 3), generator=generator).to(device)

    def table(self, *columns: Tensor) -> Tensor:
        """float32 [T + 1, columns]."""
        return torch.stack([c.float() for c in columns], 1)


def _row(table: Tensor, t: Tensor) -> tuple[Tensor, ...]:
    return table[t][:, :, None, None, None].unbind(1)


def _compiled(function: Callable[..., object], noisy: bool) -> dict[str, Callable[..., object]]:
    """The compiled function; a noisy one in both of Inductor's random modes."""
    options = {COMPILE: None, FALLBACK: {"fallback_random": True}} if noisy else {COMPILE: None}
    return {
        name: torch.compile(function, fullgraph=True, dynamic=False, options=option) for name, option in options.items()
    }


def _all(ours: Callable[[], object], theirs: Callable[..., object], args: tuple[object, ...], noisy: bool) -> Providers:
    functions = {EAGER: theirs, **_compiled(theirs, noisy)}
    return {"mmfast": ours, **{name: (lambda f=f: f(*args)) for name, f in functions.items()}}  # type: ignore[misc]


def _backward(function: Callable[..., Tensor], leaves: list[Tensor], grad: Tensor | None) -> Callable[[], object]:
    return lambda: torch.autograd.grad(function(*leaves), leaves, grad)


def _all_backward(
    ours: Callable[..., Tensor], theirs: Callable[..., Tensor], leaves: list[Tensor], grad: Tensor | None, noisy: bool
) -> Providers:
    leaves = [x.clone().requires_grad_() for x in leaves]
    functions = {"mmfast": ours, EAGER: theirs, **_compiled(theirs, noisy)}
    return {name: _backward(f, leaves, grad) for name, f in functions.items()}  # type: ignore[arg-type]


def _marginal(s: Setting) -> Tensor:
    x = s.sched.alpha_bar
    return s.table(x.sqrt(), *s.sched.W.unbind(1), (1 - x).sqrt())


def q_sample(s: Setting) -> Providers:
    table, t = _marginal(s), s.t

    def formula(z0: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        eps = torch.randn_like(z0)
        of_z0, w_a, w_b, sigma = _row(table, t)
        return of_z0 * z0 + w_a * a + w_b * b + sigma * eps, eps

    return _all(lambda: ops.q_sample(s.z0, {"a": s.a, "b": s.b}, t, s.sched), formula, (s.z0, s.a, s.b), noisy=True)


def q_sample_backward(s: Setting) -> Providers:
    """Gradients for the two encodings, as learned encoders need them."""
    table, t, z0 = _marginal(s), s.t, s.z0

    def formula(a: Tensor, b: Tensor) -> Tensor:
        of_z0, w_a, w_b, sigma = _row(table, t)
        return of_z0 * z0 + w_a * a + w_b * b + sigma * torch.randn_like(z0)

    def ours(a: Tensor, b: Tensor) -> Tensor:
        return ops.q_sample(z0, {"a": a, "b": b}, t, s.sched, return_noise=False)

    return _all_backward(ours, formula, [s.a, s.b], s.grad, noisy=True)


def q_sample_recorded(s: Setting) -> Providers:
    """The forward pass with gradients recorded, to show the overhead of recording."""
    table, t, z0 = _marginal(s), s.t, s.z0
    a, b = (x.clone().requires_grad_() for x in (s.a, s.b))

    def formula(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        eps = torch.randn_like(z0)
        of_z0, w_a, w_b, sigma = _row(table, t)
        return of_z0 * z0 + w_a * a + w_b * b + sigma * eps, eps

    return _all(lambda: ops.q_sample(z0, {"a": a, "b": b}, t, s.sched), formula, (a, b), noisy=True)


def add_noise(s: Setting) -> Providers:
    """Only the image, with the noise passed in, as diffusers' schedulers do."""
    x, t = s.plain.alpha_bar, s.t
    table = s.table(x.sqrt(), (1 - x).sqrt())

    def formula(z0: Tensor, eps: Tensor) -> Tensor:
        of_z0, sigma = _row(table, t)
        return of_z0 * z0 + sigma * eps

    providers = dict(_all(lambda: ops.q_sample(s.z0, {}, t, s.plain, noise=s.eps), formula, (s.z0, s.eps), False))
    scheduler = _diffusers()
    if scheduler is not None:
        providers[DIFFUSERS] = lambda: scheduler.add_noise(s.z0, s.eps, t - 1)
    return providers


def q_sample_given(s: Setting) -> Providers:
    table, t = _marginal(s), s.t

    def formula(z0: Tensor, a: Tensor, b: Tensor, eps: Tensor) -> Tensor:
        of_z0, w_a, w_b, sigma = _row(table, t)
        return of_z0 * z0 + w_a * a + w_b * b + sigma * eps

    ours = lambda: ops.q_sample(s.z0, {"a": s.a, "b": s.b}, t, s.sched, noise=s.eps)  # noqa: E731
    return _all(ours, formula, (s.z0, s.a, s.b, s.eps), noisy=False)


def q_sample_by_block(s: Setting) -> Providers:
    """A channel and a time for the image and for each modality: three blocks of the same size."""
    table, t, blocks = _marginal(s), s.times, [x[:, :1].contiguous() for x in (s.z0, s.a, s.b)]
    coefs, sigmas = table[:, :3].contiguous(), table[:, 3].contiguous()

    def formula(z0: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        of_z0, w_a, w_b = coefs.gather(0, t)[:, :, None, None, None].unbind(1)
        mean = torch.cat((of_z0 * z0, w_a * a, w_b * b), 1)
        eps = torch.randn_like(mean)
        return mean + sigmas[t][:, :, None, None] * eps, eps

    z0, a, b = (ops.Block(x, k, 3) for k, x in enumerate(blocks))
    return _all(lambda: ops.q_sample(z0, {"a": a, "b": b}, t, s.sched), formula, tuple(blocks), noisy=True)


def _mean(s: Setting) -> tuple[Callable[..., Tensor], Callable[..., Tensor]]:
    table, t = s.table(*s.sched.W.unbind(1)), s.t

    def formula(a: Tensor, b: Tensor) -> Tensor:
        w_a, w_b = _row(table, t)
        return w_a * a + w_b * b

    return lambda a, b: ops.multimodal_mean([a, b], table[t]), formula


def multimodal_mean(s: Setting) -> Providers:
    ours, formula = _mean(s)
    return _all(lambda: ours(s.a, s.b), formula, (s.a, s.b), noisy=False)


def multimodal_mean_backward(s: Setting) -> Providers:
    ours, formula = _mean(s)
    return _all_backward(ours, formula, [s.a, s.b], s.grad, noisy=False)


def _posterior(s: Setting) -> tuple[Callable[..., Tensor], Callable[..., Tensor]]:
    x, W, t = s.sched.alpha_bar, s.sched.W, s.t
    before = torch.cat((x[:1], x[:-1]))
    a = x / before
    w = W / a.sqrt()[:, None] - torch.cat((W[:1], W[:-1]))
    table = s.table(1 / a.sqrt(), -(1 - a) / (a * (1 - x)).sqrt(), *(-w).unbind(1))

    def formula(z: Tensor, eps: Tensor, a: Tensor, b: Tensor) -> Tensor:
        of_z, of_eps, w_a, w_b = _row(table, t)
        return of_z * z + of_eps * eps + w_a * a + w_b * b

    return lambda z, eps, a, b: ops.posterior_mean(z, eps, {"a": a, "b": b}, t, s.sched), formula


def posterior_mean(s: Setting) -> Providers:
    ours, formula = _posterior(s)
    return _all(lambda: ours(s.z0, s.eps, s.a, s.b), formula, (s.z0, s.eps, s.a, s.b), noisy=False)


def posterior_mean_backward(s: Setting) -> Providers:
    ours, formula = _posterior(s)
    return _all_backward(ours, formula, [s.z0, s.eps, s.a, s.b], s.grad, noisy=False)


def step(s: Setting) -> Providers:
    """DDPM's ancestral step with the predicted z_0 clamped: z_s and z0hat from z_t and eps."""
    x = s.plain.alpha_bar.tolist()
    abar_t, abar_s, a = x[STEP], x[STEP - 1], x[STEP] / x[STEP - 1]
    of_z0, of_z = abar_s**0.5 * (1 - a) / (1 - abar_t), a**0.5 * (1 - abar_s) / (1 - abar_t)
    sigma = ((1 - a) * (1 - abar_s) / (1 - abar_t)) ** 0.5

    def formula(z: Tensor, eps: Tensor) -> tuple[Tensor, Tensor]:
        z0 = ((z - (1 - abar_t) ** 0.5 * eps) / abar_t**0.5).clamp(-1, 1)
        return of_z0 * z0 + of_z * z + sigma * torch.randn_like(z), z0

    ours = lambda: ops.step(s.z0, s.eps, {}, STEP, s.plain, clamp=1.0)  # noqa: E731
    providers = dict(_all(ours, formula, (s.z0, s.eps), noisy=True))
    scheduler = _diffusers()
    if scheduler is not None:
        from mmfast.diffusers import DDPMScheduler

        fused = DDPMScheduler()
        fused.set_timesteps(1000)
        providers[DIFFUSERS] = lambda: scheduler.step(s.eps, STEP - 1, s.z0)
        providers["mmfast.diffusers"] = lambda: fused.step(s.eps, STEP - 1, s.z0)
    return providers


def _loss(s: Setting) -> Tensor:
    x = s.sched.alpha_bar
    snr = x / (1 - x)
    return s.table((5 / snr).clamp(max=1))


def loss(s: Setting) -> Providers:
    """The loss and the gradient for the prediction, with min-SNR weights and target eps, which is passed in."""
    table, t, eps = _loss(s), s.t, s.eps

    def formula(prediction: Tensor) -> Tensor:
        return (table[t][:, 0] * (prediction - eps).square().flatten(1).mean(1)).mean()

    def ours(prediction: Tensor) -> Tensor:
        return ops.diffusion_loss(prediction, s.z0, t, s.sched, noise=eps, min_snr_gamma=5.0)

    return _all_backward(ours, formula, [s.a], None, noisy=False)


def loss_again(s: Setting) -> Providers:
    """The same, but ours regenerates the noise from its seed, and the others get it passed in."""
    table, t, eps = _loss(s), s.t, s.eps

    def formula(prediction: Tensor) -> Tensor:
        return (table[t][:, 0] * (prediction - eps).square().flatten(1).mean(1)).mean()

    def ours(prediction: Tensor) -> Tensor:
        return ops.diffusion_loss(prediction, s.z0, t, s.sched, seed=1, min_snr_gamma=5.0)

    return _all_backward(ours, formula, [s.a], None, noisy=False)


def block_mask(s: Setting) -> Providers:
    """Exactly half of the 4 x 4 blocks hidden."""
    B, _, H, W = s.size
    down, across = H // 4, W // 4

    def formula(x: Tensor) -> tuple[Tensor, Tensor]:
        ranks = torch.rand(B, down * across, device=x.device).argsort(1).argsort(1)
        visible = (ranks >= down * across // 2).reshape(B, 1, down, 1, across, 1)
        mask = visible.expand(B, 1, down, 4, across, 4).reshape(B, 1, H, W).to(x.dtype)
        return x * mask, mask

    return _all(lambda: ops.block_mask(s.z0, 0.5, 4), formula, (s.z0,), noisy=True)


def _diffusers():  # type: ignore[no-untyped-def]
    try:
        from diffusers import DDPMScheduler
    except ImportError:
        return None
    scheduler = DDPMScheduler()
    scheduler.set_timesteps(1000)
    return scheduler


def memory_copy(size: tuple[int, ...], tensors: float, device: str) -> Callable[[], object]:
    """A copy that moves as many bytes as reading and writing this many tensors in total."""
    elements = max(1, int(torch.Size(size).numel() * tensors / 2))
    source, target = torch.ones(elements, device=device), torch.empty(elements, device=device)
    return lambda: target.copy_(source)


FORWARD, BACKWARD = "forward", "forward and backward"
CASES = (
    Case("q_sample", "noise made inside, " + FORWARD, 5, q_sample),
    Case("q_sample", "noise made inside, recorded, " + FORWARD, 5, q_sample_recorded),
    Case("q_sample", "noise made inside, " + BACKWARD, 7, q_sample_backward),
    Case("q_sample", "noise handed in, " + FORWARD, 5, q_sample_given),
    Case("q_sample", "a time for each block, noise made inside, " + FORWARD, 3, q_sample_by_block),
    Case("q_sample", "image alone, noise handed in, " + FORWARD, 3, add_noise),
    Case("multimodal_mean", FORWARD, 3, multimodal_mean),
    Case("multimodal_mean", BACKWARD, 6, multimodal_mean_backward),
    Case("posterior_mean", FORWARD, 5, posterior_mean),
    Case("posterior_mean", BACKWARD, 10, posterior_mean_backward),
    Case("step", FORWARD, 4, step),
    Case("loss", "noise handed in, " + BACKWARD, 3, loss),
    Case("loss", "noise made again, " + BACKWARD, 2, loss_again),
    Case("block_mask", FORWARD, 7 / 3, block_mask),
)


def selected(pattern: str) -> Iterator[Case]:
    """The cases whose name contains the pattern."""
    return (case for case in CASES if pattern in f"{case.op} {case.case}")
