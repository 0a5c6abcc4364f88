"""The reverse process that a trained model defines: its predictions from z_t, their errors, and its variances."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mmfast import loss, ops, process
from mmfast.data import Batch
from mmfast.errors import MmfastError
from mmfast.model import Model
from mmfast.modes import evaluating
from mmfast.process import TARGETS
from mmfast.ranks import ALONE, Ranks
from mmfast.schedule import Schedule
from mmfast.streams import ERROR

# A lower bound on errors, because their logarithm is taken.
LEAST_ERROR = 1e-12


@dataclass(frozen=True)
class Truth:
    """Some examples on the model's device.

    data: every modality, the anchor as z_0; encodings: E(x) of the modalities with a trace in z_t; numbers: [B].
    """

    data: dict[str, Tensor]
    encodings: dict[str, Tensor]
    numbers: Tensor


def rows(batch: Batch, batch_size: int, ranks: Ranks = ALONE) -> list[Tensor]:
    """The indices of a batch's examples, at most `batch_size` at a time. Raises MmfastError for an empty batch."""
    if not len(batch):
        raise MmfastError("batch holds 0 examples; it should hold at least one")
    if batch_size < 1:
        raise MmfastError(f"batch_size is {batch_size}; it should be at least 1")
    return list(torch.arange(len(batch)).split(ranks.at_most(batch_size, len(batch))))


def truth(model: Model, batch: Batch, numbers: Tensor) -> Truth:
    """These examples of the batch as a Truth. Raises MmfastError if one of them lacks a modality."""
    for name in model.parts:
        there = batch.present.get(name)
        if name not in batch.data or (there is not None and not bool(there[numbers].all())):
            raise MmfastError(f"batch has examples without {name}; it should hold every modality of the model")
    device = model.schedule.alpha_bar.device
    data = {name: x[numbers].to(device) for name, x in batch.data.items()}
    encodings = model.encode(data)
    data[model.anchor_name] = model.anchor.to_z0(data[model.anchor_name])
    return Truth(data, {name: encodings[name] for name in model.traced}, numbers.to(device))


@dataclass(frozen=True)
class Denoised:
    """The model's predictions from z_t with nothing given.

    z0: of the anchor; encodings: E(xhat) of the modalities with a trace in z_t; heads: the outputs of the heads.
    """

    z_t: Tensor
    z0: Tensor
    encodings: dict[str, Tensor]
    heads: dict[str, Tensor]


def denoise(model: Model, truth: Truth, t: Tensor, *, seed: int, stream: int, draw: int) -> Denoised:
    """Draw z_t from q(z_t | z_0, X) at t, int64 [B], and predict from it.

    z_0 follows from the network's prediction and y_t = z_t - m_t, where m_t uses the heads' encodings.
    """
    schedule, z0 = model.schedule, model.anchor_in_space(truth.data[model.anchor_name])
    terms, numbers = model.terms(truth.encodings), truth.numbers
    z_t, _ = ops.q_sample(z0, terms, t, schedule, seed=seed, sample_ids=numbers, stream=stream, draw=draw)
    with evaluating(model):
        prediction = model(z_t, t, {})
    E = {name: model.part(name).encode_prediction(prediction.heads[name]) for name in model.traced}
    E = {name: model.part(name).counted(x, truth.data[name]) for name, x in E.items()}
    of_y, of_prediction = TARGETS[model.target].x0(process.rows(schedule.alpha_bar, t))
    of_z0 = [model.anchor_block(z_t), prediction.anchor.float()]
    coefs = torch.stack((of_y, of_prediction), 1)
    if model.space == "shared":
        of_z0 += E.values()
        coefs = torch.cat((coefs, -of_y[:, None] * process.rows(schedule.W, t)[:, schedule.index(tuple(E))]), 1)
    found = ops.combine(of_z0, coefs)
    assert isinstance(found, Tensor)
    return Denoised(z_t, found, E, prediction.heads)


def blocks(model: Model, z0: Tensor, encodings: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, dict[str, Tensor]]]:
    """z_0 and the encodings in each block of the space, by the block's modality. Each block is diffused separately.

    In own channels z_0 is zero in every block except the anchor's. Shared channels are one block, the anchor's.
    """
    if model.space == "shared":
        return {model.anchor_name: (z0, dict(encodings))}
    found: dict[str, tuple[Tensor, dict[str, Tensor]]] = {model.anchor_name: (z0, {})}
    for name, x in encodings.items():
        found[name] = (z0.new_zeros(len(z0), x.shape[1], *z0.shape[2:]), {name: x})
    return found


def divergences(
    model: Model, truth: Truth, said: Denoised, t: Tensor, variance: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The term of L1 at t, int64 [B], by block: float64 [B] each. variance: by block, float64 [T + 1]."""
    true = blocks(model, truth.data[model.anchor_name], truth.encodings)
    found = {}
    for name, (z0_hat, E_hat) in blocks(model, said.z0, said.encodings).items():
        z0, E = true[name]
        found[name] = loss.L1(model.schedule, t, z0, z0_hat, E, E_hat, variance[name][t])
    return found


@dataclass(frozen=True)
class Reverse:
    """The steps p(z_{t-1} | z_t), Gaussians with one variance per block of the space, and the decoder p(z_0 | z_1).

    variance: by block (`blocks`), float64 [T + 1], valid at t = 2 .. T; the anchor's also at t = 1, for the decoder.
    from_z: bool [T + 1], true where z_t / sqrt(abar_t) replaces the network's prediction of the anchor's z_0.
    """

    variance: dict[str, Tensor]
    from_z: Tensor

    def of(self, model: Model, said: Denoised, t: Tensor) -> Denoised:
        """The model's predictions at t, int64 [B], with the anchor's z_0 replaced where `from_z` is true."""
        scale = process.rows(model.schedule.alpha_bar, t).rsqrt().to(said.z0.dtype)[:, None, None, None]
        z0 = torch.where(self.from_z[t][:, None, None, None], scale * model.anchor_block(said.z_t), said.z0)
        return dataclasses.replace(said, z0=z0)


def posterior(model: Model) -> Reverse:
    """The process with the variance of q(z_{t-1} | z_t, z_0, X); the decoder has that of the first step, 1 - a_1.

    Raises MmfastError for a schedule of one step.
    """
    if model.schedule.T < 2:
        raise MmfastError("T is 1; for a bound it should be at least 2, for one step from z_T and one to the data")
    x = model.schedule.alpha_bar
    variance = torch.cat((x[:1], 1 - x[1:2], _steps(model.schedule)[1][1:]))
    return Reverse(dict.fromkeys(_sizes(model), variance), torch.zeros_like(x, dtype=torch.bool))


@torch.no_grad()
def fit(
    model: Model, batch: Batch, times: int = 32, seed: int = 0, batch_size: int = 256, ranks: Ranks = ALONE
) -> dict[str, Reverse]:
    """Fit the variances of reverse processes to data: "fitted", and in own channels also "nearer".

    Among isotropic variances shared by all examples, u + E|d|^2 / D minimises L1's term at t, where u is the
    posterior's variance and d the error of the predicted mean, c0 (z0hat - z_0) in the anchor's block (`loss.L1`). This
    is the variance of Bao et al. ("Imperfect Mean", 2022); with the exact score it is that of Analytic-DPM (Bao et al.,
    2022). The decoder's variance is E|z0hat - z_0|^2 / D at t = 1, the same formula with u = 0 and c0 = 1. At each t,
    "nearer" uses whichever z_0 has the smaller error: the network's, or z_t / sqrt(abar_t), whose mean squared error is
    1 / SNR(t).

    The errors E|d|^2 / (D c0^2) are measured at 1, 2 and `times` timesteps evenly spaced in log SNR (0: at every t).
    Between them, ln of the error is interpolated linearly in log SNR. The variances are part of the model, so the bound
    needs examples that they were not fitted to: pass other examples here, such as training data. If the network does
    better on these, the variances are too small and the bound is looser. batch: on any device. Raises MmfastError for a
    batch without examples.
    """
    schedule, anchor, sizes = model.schedule, model.anchor_name, _sizes(model)
    plain, (of_z0, u) = posterior(model), _steps(schedule)
    grid = sorted({2, *times_by_snr(schedule, times)} - {1})

    def measure(numbers: Tensor) -> dict[str, Tensor]:
        these = truth(model, batch, numbers)
        sums = {name: torch.zeros(len(grid), dtype=torch.float64) for name in sizes}
        for k, at in enumerate(grid):
            t = torch.full_like(these.numbers, at)
            said = denoise(model, these, t, seed=seed, stream=ERROR, draw=at)
            for name, nats in divergences(model, these, said, t, plain.variance).items():
                sums[name][k] = nats.sum().cpu()
        return sums

    measured = ranks.map(measure, rows(batch, batch_size, ranks))
    sums = {name: _total([part[name] for part in measured]) for name in sizes}
    # With the variance u, L1 = E|d|^2 / 2u.
    scale = 2 * (u / of_z0.square())[torch.tensor(grid, device=u.device) - 1].cpu() / len(batch)
    errors = {name: _at_every_t(schedule, grid, x * scale / sizes[name]) for name, x in sums.items()}
    errors[anchor][0] = x0_error(model, batch, [1], seed, batch_size, ranks)[0].clamp(min=LEAST_ERROR)
    nothing = plain.from_z
    found = {"fitted": Reverse({name: _widened(u, of_z0, x) for name, x in errors.items()}, nothing)}
    if model.space == "own":
        of_z = 1 / schedule.alpha_bar[1:] - 1  # 1 / SNR; infinite at abar_T = 0
        least = {**errors, anchor: torch.minimum(of_z, errors[anchor])}
        from_z = torch.cat((nothing[:1], of_z < errors[anchor]))
        found["nearer"] = Reverse({name: _widened(u, of_z0, x) for name, x in least.items()}, from_z)
    return found


@torch.no_grad()
def x0_error(
    model: Model, batch: Batch, times: Sequence[int], seed: int = 0, batch_size: int = 256, ranks: Ranks = ALONE
) -> Tensor:
    """E|z0hat - z_0|^2 / D of the anchor at each timestep in 1 .. T, with nothing given: float64 [len(times)].

    The result is in squared units of z_0, on the CPU. z_t is drawn from q(z_t | z_0, X). For comparison, in own
    channels z_t / sqrt(abar_t) has the error 1 / SNR(t). batch: on any device. Raises MmfastError for times outside
    1 .. T and for a batch without examples.
    """
    for t in times:
        process.check_time("times", t, 1, model.schedule.T)

    def measure(numbers: Tensor) -> Tensor:
        these, found = truth(model, batch, numbers), torch.zeros(len(times), dtype=torch.float64)
        z0 = these.data[model.anchor_name]
        for k, at in enumerate(times):
            said = denoise(model, these, torch.full_like(these.numbers, at), seed=seed, stream=ERROR, draw=at)
            found[k] = (said.z0 - z0).double().square().sum().cpu() / z0[0].numel()
        return found

    return _total(ranks.map(measure, rows(batch, batch_size, ranks))) / len(batch)


def times_by_snr(schedule: Schedule, count: int) -> list[int]:
    """Timesteps from 1 to T, evenly spaced in log SNR: at most `count`, but always 1 and T; all of them for 0.

    Raises MmfastError if count is negative.
    """
    if count < 0:
        raise MmfastError(f"count is {count}; it should be at least 0")
    if not count:
        return list(range(1, schedule.T + 1))
    x = -log_snr(schedule).cpu()
    at = torch.searchsorted(x, torch.linspace(float(x[0]), float(x[-1]), count, dtype=x.dtype)).clamp(max=len(x) - 1)
    return sorted({1, schedule.T, *(1 + at).tolist()})


def log_snr(schedule: Schedule) -> Tensor:
    """ln SNR(t) at t = 1 .. T, float64, with abar clamped to 1e-9 .. 1 - 1e-9 because abar_T may be 0."""
    return torch.logit(schedule.alpha_bar[1:], eps=1e-9)


def _total(parts: Sequence[Tensor]) -> Tensor:
    """The sum, from left to right."""
    return sum(parts[1:], parts[0])


def _at_every_t(schedule: Schedule, grid: list[int], errors: Tensor) -> Tensor:
    """Interpolate errors at the timesteps of the grid to t = 1 .. T, on the schedule's device."""
    x = -log_snr(schedule).cpu().numpy()
    found = np.interp(x, x[np.array(grid) - 1], errors.clamp(min=LEAST_ERROR).log().numpy())
    return torch.from_numpy(np.exp(found)).to(schedule.alpha_bar.device)


def _steps(schedule: Schedule) -> tuple[Tensor, Tensor]:
    """c0 and the posterior's variance at t = 1 .. T."""
    j = process.jump(schedule, torch.arange(1, schedule.T + 1, device=schedule.alpha_bar.device))
    return process.posterior_mean_x0(j)[0], process.posterior_variance(j)


def _widened(u: Tensor, of_z0: Tensor, errors: Tensor) -> Tensor:
    """u + c0^2 error, from t = 1 .. T to [T + 1]."""
    return torch.cat((u.new_ones(1), u + of_z0.square() * errors))


def _sizes(model: Model) -> dict[str, int]:
    """The number of elements in each block of the space."""
    (C, H, W), shared = model.shape, model.space == "shared"
    own = {} if shared else {name: model.part(name).channels * H * W for name in model.traced}
    return {model.anchor_name: C * H * W, **own}
