"""Everything generated at once: a carried modality is diffused as the image is, so diffusers draws both as one.

In own channels block i of z_t is W_t E + sqrt(1 - abar_t) eps, and with W_t = s sqrt(abar_t) that is the image's block
with s E in the place of z_0. So a scheduler of diffusers that is told z_0 = [z0hat, s_1 Ehat_1, s_2 Ehat_2, ...] steps
all of z_t, and it has to take the very way that `sample` takes: every z_t is compared. The network is a known function
of z_t and t. As in test_sampling_diffusers.py diffusers' index i is our t = i + 1, and its tables are float64.
"""

import importlib
import math
from itertools import pairwise

import optional
import pytest
import torch
from test_sampling import Features
from test_sampling_diffusers import close, exact

import mmfast
from mmfast import Schedule, modalities, ops
from mmfast.modalities.base import SpaceShape
from mmfast.model import Model, Prediction
from mmfast.sample import sample
from mmfast.streams import SAMPLE

diffusers = optional.diffusers()
from diffusers.schedulers import scheduling_ddpm  # noqa: E402

sample_module = importlib.import_module("mmfast.sample")
T, COUNT, SIZE, SEED = 1000, 3, 4, 11
IDS = torch.tensor([5, 900, 17])
# Of each modality the options, the scale of its weight, and where its block begins and ends in z.
KINDS = {
    "mask": ({"classes": 3, "size": SIZE}, 0.7, (1, 3)),
    "label": ({"classes": 4}, 0.3, (3, 6)),
    "other": ({"channels": 3, "size": SIZE, "rms": 0.5}, 1.5, (6, 9)),
}
SCHEDULES = {"linear": (Schedule.linear, "linear"), "cosine": (Schedule.cosine, "squaredcos_cap_v2")}


class Known(Model):
    """Predicts smooth functions of the whole of z_t and of t, and keeps every z_t that it is asked about."""

    def __init__(self, target, make):
        kinds = {"image": ("image", {"channels": 1, "size": SIZE})}
        kinds |= {name: ("image" if name == "other" else name, spec) for name, (spec, _, _) in KINDS.items()}
        parts = {}
        for name, (kind, spec) in kinds.items():
            part = modalities.kind(kind)
            parts[name] = part(name, part.Spec(**spec), SpaceShape(SIZE, SIZE))
        schedule = make(T, {name: mmfast.carried(scale) for name, (_, scale, _) in KINDS.items()})
        super().__init__("image", parts, schedule, lambda channels, size: Features(), "own", target)
        self.asked = []

    def says(self, z, t):
        """z_0 of the image, and the heads' outputs: float64."""
        z, u = z.double(), t / T
        image = 1.4 * torch.sin(z[:, :1] + 0.3 * z[:, 1:2] - 0.2 * z[:, 6:7] + u)
        mask = torch.stack([torch.sin(z[:, 0] + k * z[:, 2]) + k * u for k in range(3)], 1)
        label = torch.stack([torch.cos(z[:, 3] - k * z[:, 0] + u).mean((1, 2)) for k in range(4)], 1)
        other = 0.6 * torch.tanh(z[:, 6:9] - z[:, :1] + z[:, 4:5] * u)
        return image, {"mask": 2 * mask, "label": 2 * label, "other": other}

    def forward(self, z, times, told):
        assert len({*times.flatten().tolist()}) == 1  # nothing is given: one time for all
        t = int(times[0, 0])
        self.asked.append(z.clone())
        z0, heads = self.says(z, t)
        abar, y = float(self.schedule.alpha_bar[t]), z[:, :1].double()
        eps = (y - math.sqrt(abar) * z0) / math.sqrt(1 - abar)
        answer = {"x0": z0, "eps": eps, "v": math.sqrt(abar) * eps - math.sqrt(1 - abar) * z0}[self.target]
        return Prediction(answer.float(), {name: x.float() for name, x in heads.items()})

    def stacked(self, z, t, clamp):
        """[z0hat, s E of the heads] as one image: the encodings worked out here."""
        z0, heads = self.says(z, t)
        blocks = [z0 if clamp is None else z0.clamp(-clamp, clamp)]
        for name, (spec, scale, _) in KINDS.items():
            head = heads[name]
            if name == "other":
                E = head / spec["rms"]
            else:
                codes = self.part(name).codes.double().reshape(spec["classes"], -1)
                E = torch.movedim(head.softmax(1), 1, -1) @ codes
                E = torch.movedim(E, -1, 1)
            blocks.append(scale * (E if E.dim() == 4 else E[:, :, None, None].expand(-1, -1, SIZE, SIZE)))
        return torch.cat(blocks, 1).float()


def noise(draw):
    return ops.randn((COUNT, 9, SIZE, SIZE), seed=SEED, sample_ids=IDS, stream=SAMPLE, draw=draw)


def compare(model, grid, step, clamp, monkeypatch, **how):
    """Every z_s of `sample` on this grid against `step(x0, t, s, z_t)`, and what is drawn in the end against z_0."""
    assert {name: block[0] for name, (_, _, block) in KINDS.items()} == model.starts and model.channels == 9
    monkeypatch.setattr(sample_module, "timesteps", lambda T, steps, spacing: grid)
    drawn = sample(model, COUNT, clamp=clamp, seed=SEED, sample_ids=IDS, steps=len(grid) - 1, **how)
    z = noise(grid[0])
    for (t, s), ours in zip(pairwise(grid), model.asked, strict=True):
        close(ours, z)
        z = step(model.stacked(ours, t, clamp), t, s, ours)
    # Steps of DDIM's kind end in z_0 itself.
    close(drawn["image"], z[:, :1])
    close(drawn["other"], z[:, 6:9] / 1.5 * 0.5)
    _, heads = model.says(model.asked[-1], grid[-2])
    for name in ("mask", "label"):
        assert torch.equal(drawn[name], heads[name].argmax(1))


GRIDS = {
    "20 steps": [round(T * i / 20) for i in range(20, -1, -1)],
    "6 steps": [1000, 833, 667, 500, 333, 167, 0],
    "uneven": [1000, 990, 900, 700, 650, 640, 300, 120, 110, 30, 4, 1, 0],
    "late": [600, 400, 350, 50, 0],
    "one step": [1000, 0],
}


def multistep(theirs, grid, kind="dpmsolver++"):
    """DPMSolverMultistepScheduler on this grid, with its sigmas in float64: it rounds those of float64 tables."""
    scheduler = diffusers.DPMSolverMultistepScheduler(
        T,
        beta_schedule=theirs,
        algorithm_type=kind,
        solver_order=2,
        solver_type="midpoint",
        prediction_type="sample",
        final_sigmas_type="zero",
    )
    exact(scheduler).set_timesteps(timesteps=[t - 1 for t in grid[:-1]])
    abar = torch.stack([*(scheduler.alphas_cumprod[t - 1] for t in grid[:-1]), torch.ones((), dtype=torch.float64)])
    sigmas = ((1 - abar) / abar).sqrt()
    torch.testing.assert_close(scheduler.sigmas.double(), sigmas, rtol=1e-6, atol=0)
    scheduler.sigmas = sigmas
    return scheduler


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("name", GRIDS)
@pytest.mark.parametrize("clamp", [None, 1.0], ids=["free", "clamped"])
def test_dpmpp_2m_is_theirs(name, schedule, clamp, monkeypatch):
    """The encodings are extrapolated as z0hat is, by half of the ratio of the steps of the log-SNR."""
    make, theirs = SCHEDULES[schedule]
    scheduler = multistep(theirs, GRIDS[name])
    compare(
        Known("x0", make),
        GRIDS[name],
        lambda x0, t, s, z: scheduler.step(x0, t - 1, z).prev_sample,
        clamp,
        monkeypatch,
        sampler="dpmpp_2m",
    )


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("name", GRIDS)
def test_dpmpp_2m_with_eta_one_is_their_sde_solver(name, schedule, monkeypatch):
    """The noise is ours."""
    make, theirs = SCHEDULES[schedule]
    scheduler = multistep(theirs, GRIDS[name], "sde-dpmsolver++")

    def step(x0, t, s, z):
        return scheduler.step(x0, t - 1, z, variance_noise=noise(s)).prev_sample

    compare(Known("x0", make), GRIDS[name], step, 1.0, monkeypatch, sampler="dpmpp_2m", eta=1.0)


@pytest.mark.parametrize("target", ["eps", "v"])
@pytest.mark.parametrize("sampler", ["dpmpp_2m", "ddim"])
def test_the_target_does_not_matter(target, sampler, monkeypatch):
    """From t = 900 of the linear schedule: further on float32 loses the digits of z_0 that an eps carries."""
    grid = [900, 700, 650, 300, 100, 20, 0]
    scheduler = multistep("linear", grid)
    if sampler == "ddim":
        scheduler.register_to_config(solver_order=1)
    compare(
        Known(target, Schedule.linear),
        grid,
        lambda x0, t, s, z: scheduler.step(x0, t - 1, z).prev_sample,
        1.0,
        monkeypatch,
        sampler=sampler,
    )


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("eta", [0.0, 0.6, 1.0])
def test_ddim_is_theirs(schedule, eta, monkeypatch):
    """On the even grid, the only one that it has; the noise is ours."""
    make, theirs = SCHEDULES[schedule]
    scheduler = exact(diffusers.DDIMScheduler(T, beta_schedule=theirs, prediction_type="sample", clip_sample=False))
    scheduler.set_timesteps(20)

    def step(x0, t, s, z):
        return scheduler.step(x0, t - 1, z, eta=eta, variance_noise=noise(s)).prev_sample

    compare(Known("x0", make), GRIDS["20 steps"], step, 1.0, monkeypatch, sampler="ddim", eta=eta)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("name", ["20 steps", "uneven", "late"])
def test_ddpm_is_theirs(name, schedule, monkeypatch):
    make, theirs = SCHEDULES[schedule]
    scheduler = diffusers.DDPMScheduler(
        T, beta_schedule=theirs, prediction_type="sample", clip_sample=False, variance_type="fixed_small"
    )
    exact(scheduler).set_timesteps(timesteps=[t - 1 for t in GRIDS[name][:-1]])

    def step(x0, t, s, z):
        monkeypatch.setattr(scheduling_ddpm, "randn_tensor", lambda *_, **__: noise(s))
        return scheduler.step(x0, t - 1, z).prev_sample

    compare(Known("x0", make), GRIDS[name], step, 1.0, monkeypatch, sampler="ddpm")
