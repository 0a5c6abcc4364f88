"""Without modalities mmfast is DDPM: adding noise and stepping agree with diffusers, to 1e-5.

diffusers counts from 0 where we count from 1: its index i is our t = i + 1. It keeps its tables in float32, in which
1 - a_t = 1e-4 has three digits; so its steps are taken with the same tables in float64 (test_schedule.py compares
the tables themselves). With a modality the shift view says that y = z - m steps as their z does.
"""

import numpy as np
import optional
import pytest
import torch
import truth

import mmfast
from mmfast import Schedule, ops
from mmfast.samplers import ddim, ddpm

diffusers = optional.diffusers()
from diffusers.schedulers import scheduling_ddpm  # noqa: E402

BOTH = pytest.mark.parametrize(
    ("make", "theirs"), [(Schedule.linear, "linear"), (Schedule.cosine, "squaredcos_cap_v2")], ids=["linear", "cosine"]
)
INDICES = [0, 1, 2, 19, 20, 250, 500, 980, 997, 999]
SHAPE = (4, 3, 8, 8)


def tensors(count, seed=0):
    return torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(seed))


def exact(scheduler):
    """The scheduler with its tables in float64, made from its own name for them."""
    table = {"linear": truth.linear, "squaredcos_cap_v2": truth.cosine}[scheduler.config.beta_schedule](1000)
    np.testing.assert_allclose(scheduler.alphas_cumprod, table[1:], rtol=1e-3)
    scheduler.alphas_cumprod = torch.tensor(table[1:])
    scheduler.alphas = scheduler.alphas_cumprod / torch.tensor(table[:-1])
    scheduler.betas, scheduler.one = 1 - scheduler.alphas, torch.ones((), dtype=torch.float64)
    return scheduler


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@BOTH
def test_add_noise(make, theirs):
    """q_sample, with noise handed in and with noise of an identity, a t for each sample."""
    scheduler, sched = diffusers.DDPMScheduler(beta_schedule=theirs), make(1000)
    z0, eps = tensors(2)
    for i in (torch.tensor([0, 1, 500, 999]), torch.tensor([20, 997, 250, 3])):
        close(ops.q_sample(z0, {}, i + 1, sched, noise=eps)[0], scheduler.add_noise(z0, eps, i))
        z, drawn = ops.q_sample(z0, {}, i + 1, sched, seed=3)
        close(z, scheduler.add_noise(z0, drawn, i))


@BOTH
@pytest.mark.parametrize("steps", [1000, 50])
@pytest.mark.parametrize("clip", [True, False])
def test_ddpm_step(make, theirs, steps, clip, monkeypatch):
    """posterior_sample against step(), given the noise that ours draws; jumps of 20 steps too."""
    scheduler = diffusers.DDPMScheduler(beta_schedule=theirs, variance_type="fixed_small", clip_sample=clip)
    exact(scheduler).set_timesteps(steps)
    sched, size = make(1000), 1000 // steps
    z, eps = tensors(2)
    for i in sorted({i // size * size for i in INDICES}):
        if theirs != "linear" and i == 999 and not clip:
            continue  # z_0 is z / 5e-5 there, and their x_0 form loses all but three digits of it
        t, s = i + 1, max(i + 1 - size, 0)
        identity = {"seed": 7, "sample_ids": torch.arange(4) + 10, "stream": 4, "draw": s}
        noise = ops.randn(SHAPE, **identity)
        monkeypatch.setattr(scheduling_ddpm, "randn_tensor", lambda *a, noise=noise, **k: noise)
        found = ops.posterior_sample(z, eps, {}, t, sched, s, 1.0 if clip else None, **identity)
        close(found, scheduler.step(eps, i, z).prev_sample)


@BOTH
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("steps", [1000, 50])
def test_ddim_step(make, theirs, eta, steps):
    """The `ddim` Step against DDIMScheduler.step: y_s = of_z0 z0hat + of_y y_t + sigma noise, clamped z0hat."""
    scheduler = exact(diffusers.DDIMScheduler(beta_schedule=theirs, clip_sample=True))
    scheduler.set_timesteps(steps)
    sched, size = make(1000), 1000 // steps
    y, eps, noise = tensors(3)
    abar = sched.alpha_bar.tolist()
    for i in sorted({i // size * size for i in INDICES}):
        t, s = i + 1, max(i + 1 - size, 0)
        step = ddim(abar.__getitem__, t, s, (), eta)
        z0 = ((y - (1 - abar[t]) ** 0.5 * eps) / abar[t] ** 0.5).clamp(-1, 1)
        found = step.of_z0 * z0 + step.of_y * y + step.sigma * noise
        close(
            found, scheduler.step(eps, i, y, eta=eta, variance_noise=noise, use_clipped_model_output=True).prev_sample
        )


@BOTH
def test_ddim_with_eta_one_is_ddpm(make, theirs):
    """Known of DDIM: eta = 1 is the ancestral step."""
    abar = make(1000).alpha_bar.tolist().__getitem__
    for t, s in ((1, 0), (2, 1), (500, 480), (1000, 999)):
        a, b = ddim(abar, t, s, (), 1.0), ddpm(abar, t, s, (), 0.0)
        assert (a.of_z0, a.of_y, a.sigma) == pytest.approx((b.of_z0, b.of_y, b.sigma), rel=1e-6, abs=1e-9)


@BOTH
@pytest.mark.parametrize("clip", [1.0, None])
def test_a_step_with_modalities_is_their_step_shifted(make, theirs, clip, monkeypatch):
    """Subtract m_t, step as diffusers does, add m_s."""
    sched = make(1000, {"a": mmfast.bridge(2.0), "b": mmfast.carried(0.5)})
    scheduler = diffusers.DDPMScheduler(beta_schedule=theirs, variance_type="fixed_small", clip_sample=clip is not None)
    exact(scheduler)
    z, eps, a, b = tensors(4)
    noise = ops.randn(SHAPE, seed=2)
    monkeypatch.setattr(scheduling_ddpm, "randn_tensor", lambda *_, **__: noise)
    W = sched.W.tolist()
    for i in (1, 19, 500, 980):
        t, s = i + 1, i
        m_t, m_s = (W[u][0] * a + W[u][1] * b for u in (t, s))
        expected = scheduler.step(eps, i, z - m_t).prev_sample + m_s
        close(ops.posterior_sample(z, eps, {"a": a, "b": b}, t, sched, s, clip, seed=2), expected)


def test_a_whole_loop_with_their_own_tables(monkeypatch):
    """Fifty steps from the same noise with the same network, nothing of theirs replaced but the noise."""
    scheduler, sched = diffusers.DDPMScheduler(variance_type="fixed_small"), Schedule.linear(1000)
    scheduler.set_timesteps(50)
    ours = theirs = tensors(1)[0]
    for i in scheduler.timesteps.tolist():
        noise = ops.randn(SHAPE, seed=1, draw=i)
        monkeypatch.setattr(scheduling_ddpm, "randn_tensor", lambda *_, noise=noise, **__: noise)
        t, s = i + 1, max(i - 19, 0)
        ours = ops.posterior_sample(ours, torch.tanh(ours), {}, t, sched, s, 1.0, seed=1, draw=i)
        theirs = scheduler.step(torch.tanh(theirs), i, theirs).prev_sample
    # Their tables' rounding: 1 - a is 2e-3 at least in jumps of 20, so has errors of 2^-23 / 2e-3 = 6e-5 a step.
    torch.testing.assert_close(ours, theirs, rtol=0, atol=50 * 6e-5)
