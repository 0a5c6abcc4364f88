"""ops.step without modalities is a step of diffusers' DDIM and DDPM schedulers, whatever is predicted, to 1e-5."""

import pytest
import torch
from test_sampling_diffusers import BOTH, SHAPE, close, diffusers, exact, scheduling_ddpm, tensors

from mmfast import ops

TARGETS = pytest.mark.parametrize(
    ("target", "kind"), [("eps", "epsilon"), ("x0", "sample"), ("v", "v_prediction")], ids=["eps", "x0", "v"]
)
# Their index i is our t = i + 1. Not the last ones: in z_0 from eps a rounding of float32 is multiplied by
# 1/sqrt(abar_t), 25 at 800 in the linear schedule and 100 at 960.
INDICES = [0, 20, 240, 500, 800]


def predictions(target, t, sched):
    """z_t, and a prediction that is near the truth, as a network's is."""
    z0, eps, off = tensors(3)
    z, _ = ops.q_sample(z0, {}, t, sched, noise=eps)
    abar = float(sched.alpha_bar[t])
    truth = {"eps": eps, "x0": z0, "v": abar**0.5 * eps - (1 - abar) ** 0.5 * z0}[target]
    return z, truth + 0.1 * off


@BOTH
@TARGETS
@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize("eta", [0.0, 0.5])
def test_ddim(make, theirs, target, kind, clip, eta):
    """Both results, in jumps of one and of 20 steps."""
    sched = make(1000)
    for steps in (1000, 50):
        scheduler = diffusers.DDIMScheduler(beta_schedule=theirs, clip_sample=clip, prediction_type=kind)
        exact(scheduler).set_timesteps(steps)
        for i in INDICES:
            t, s = i + 1, max(i + 1 - 1000 // steps, 0)
            z, prediction = predictions(target, t, sched)
            out, z0 = ops.step(z, prediction, {}, t, sched, s, target=target, eta=eta, clamp=1.0 if clip else None,
                               seed=4)  # fmt: skip
            noise = ops.randn(SHAPE, seed=4)
            expected = scheduler.step(
                prediction, i, z, eta=eta, variance_noise=noise if eta else None, use_clipped_model_output=True
            )
            close(out, expected.prev_sample)
            close(z0, expected.pred_original_sample)


@BOTH
@TARGETS
@pytest.mark.parametrize("clip", [True, False])
def test_ddpm(make, theirs, target, kind, clip, monkeypatch):
    """The mean, and with the noise that ours draws the sample, in jumps of one and of 20 steps."""
    sched, identity = make(1000), {"seed": 7, "sample_ids": torch.arange(4) + 10, "stream": 4, "draw": 1}
    for steps in (1000, 50):
        scheduler = diffusers.DDPMScheduler(
            beta_schedule=theirs, variance_type="fixed_small", clip_sample=clip, prediction_type=kind
        )
        exact(scheduler).set_timesteps(steps)
        for i in INDICES:
            t, s = i + 1, max(i + 1 - 1000 // steps, 0)
            z, prediction = predictions(target, t, sched)
            out, z0 = ops.step(z, prediction, {}, t, sched, s, target=target, clamp=1.0 if clip else None, **identity)
            noise = ops.randn(SHAPE, **identity)
            monkeypatch.setattr(scheduling_ddpm, "randn_tensor", lambda *_, noise=noise, **__: noise)
            expected = scheduler.step(prediction, i, z)
            close(out, expected.prev_sample)
            close(z0, expected.pred_original_sample)
