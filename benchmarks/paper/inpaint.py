"""Hidden pixels from an unconditional model: the inpainting baselines of the masked-image task.

Both follow a path of times from noise to data. They differ in the path, in its start and in when the visible pixels are
inserted. RePaint (Lugmayr et al., 2022, algorithm 1) starts from noise, inserts them after every step at the noise
level of the rest, and goes back up from time to time so that the two parts come to agree. SDEdit (Meng et al., 2022)
starts half way, from the image with its hidden pixels filled crudely.

The number of network evaluations is `evaluations(path)`, of `repaint_path` or `sdedit_path`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from mmfast import ops, process
from mmfast.errors import MmfastError, unknown
from mmfast.model import Model
from mmfast.options import PRECISIONS
from mmfast.samplers import timesteps

# Far from the package's own streams (mmfast.streams), so that this noise is neither training's nor the sampler's.
STREAM = 0x8000


def repaint_path(T: int, steps: int = 50, jump_length: int = 5, resamplings: int = 5) -> list[int]:
    """The times that RePaint visits, from T to 0: a step t -> s denoises if s < t and adds noise if s > t.

    On the grid of `steps` + 1 times it jumps back up by `jump_length` grid steps, `resamplings` - 1 times each, from
    the grid's level 1, 1 + jump_length, 1 + 2 jump_length, ... as far as there is room above; never from data itself.
    With jump_length = 1 this is the paper's algorithm 1, with every step made `resamplings` times.
    """
    grid = timesteps(T, steps)[::-1]  # by level: 0 is data
    for name, value in (("jump_length", jump_length), ("resamplings", resamplings)):
        if not isinstance(value, int) or value < 1:
            raise MmfastError(f"{name} is {value!r}; it should be a whole number, at least 1")
    if resamplings > 1 and jump_length >= steps:
        raise MmfastError(f"jump_length is {jump_length}; with {steps} steps it should be less, to have room to jump")
    left = dict.fromkeys(range(1, steps - jump_length + 1, jump_length), resamplings - 1)
    path, level = [T], steps
    while level:
        level -= 1
        path.append(grid[level])
        if left.get(level):
            left[level] -= 1
            level += jump_length
            path.append(grid[level])
    return path


def sdedit_path(T: int, steps: int = 50, strength: float = 0.5) -> list[int]:
    """The times that SDEdit visits: `steps` even steps from strength T to 0."""
    if not isinstance(strength, (int, float)) or not 0 < strength <= 1:
        raise MmfastError(f"strength is {strength!r}; it should be a fraction of T, above 0 and at most 1")
    start = max(1, round(strength * T))
    if not isinstance(steps, int) or not 1 <= steps <= start:
        raise MmfastError(f"steps is {steps!r}; it should lie in 1 .. {start}, which is strength {strength} of T = {T}")
    return timesteps(start, steps)


def evaluations(path: Sequence[int]) -> int:
    """The number of network evaluations of a path: one for each step down."""
    return sum(s < t for t, s in itertools.pairwise(path))


@torch.no_grad()
def repaint(
    model: Model,
    image: Tensor,
    mask: Tensor,
    steps: int = 50,
    jump_length: int = 5,
    resamplings: int = 5,
    seed: int = 0,
    sample_ids: Tensor | None = None,
    clamp: float | None = 1.0,
    batch_size: int = 256,
    precision: str = "fp32",
) -> Tensor:
    """RePaint (Lugmayr et al., 2022) with an unconditional model.

    Args:
        model: has only the anchor.
        image: float [B, C, H, W] in -1 .. 1; hidden pixels are never read and may have any value.
        mask: [B, 1, H, W], 1 or True where a pixel is visible.
        steps, jump_length, resamplings: see `repaint_path`.
        seed, sample_ids: the noise's identity (ids int64 [B], 0 .. B - 1 if None), the same in any batch.
        clamp: limit the predicted z_0 to -clamp .. clamp; None for no limit.
        precision: the network's arithmetic, "fp32" or "bf16".

    Returns [B, C, H, W] on the model's device, with the visible pixels unchanged and the hidden ones drawn.
    """
    path = repaint_path(model.schedule.T, steps, jump_length, resamplings)

    def start(known: Tensor, shown: Tensor, ids: Tensor) -> Tensor:
        return ops.randn(known.shape, seed=seed, sample_ids=ids, stream=STREAM, draw=0, device=known.device)

    return _inpaint(model, image, mask, path, start, True, seed, sample_ids, clamp, batch_size, precision)


@torch.no_grad()
def sdedit(
    model: Model,
    image: Tensor,
    mask: Tensor,
    strength: float = 0.5,
    steps: int = 50,
    fill: str = "mean",
    paste_each_step: bool = False,
    paste: bool = True,
    seed: int = 0,
    sample_ids: Tensor | None = None,
    clamp: float | None = 1.0,
    batch_size: int = 256,
    precision: str = "fp32",
) -> Tensor:
    """SDEdit (Meng et al., 2022) with an unconditional model: fill crudely, add noise to strength T, denoise, paste.

    Args:
        strength, steps: see `sdedit_path`.
        fill: "mean" of the example's visible pixels, by channel, or the "nearest" visible pixel; 0 if none is visible.
        paste_each_step: insert the visible pixels after every step, at the noise level of the rest.
        paste: put them back at the end. False leaves them as they were drawn, as the article does.
        the rest: as for `repaint`, including the result.
    """
    path = sdedit_path(model.schedule.T, steps, strength)
    if fill not in FILLS:
        raise unknown("fill", fill, FILLS)

    def start(known: Tensor, shown: Tensor, ids: Tensor) -> Tensor:
        filled = torch.where(shown, known, FILLS[fill](known, shown))
        return _noised(model, filled, path[0], seed, ids, draw=0)

    options = (paste_each_step, seed, sample_ids, clamp, batch_size, precision)
    return _inpaint(model, image, mask, path, start, *options, paste=paste)


def mean_of_visible(known: Tensor, shown: Tensor) -> Tensor:
    """The mean of the visible pixels by example and channel: [B, C, H, W] (0 where hidden) -> [B, C, 1, 1]."""
    return known.sum((2, 3), keepdim=True) / shown.sum((2, 3), keepdim=True).clamp(min=1)


def nearest_visible(known: Tensor, shown: Tensor) -> Tensor:
    """The value of the nearest visible pixel at every pixel, [B, C, H, W]; ties go to the first in row order."""
    B, C, H, W = known.shape
    pixels = torch.arange(H * W, device=known.device)
    at = torch.stack((pixels // W, pixels % W), 1)
    # Integers, with the pixel's number as the tie-breaker.
    rank = (at[:, None] - at[None]).square().sum(2) * (H * W) + pixels
    # One example at a time, because each takes (H W)^2 numbers.
    nearest = [rank.masked_fill(~row, torch.iinfo(rank.dtype).max).argmin(1) for row in shown.reshape(B, H * W)]
    index = torch.stack(nearest)[:, None].expand(B, C, -1)
    return known.flatten(2).gather(2, index).reshape(B, C, H, W)


FILLS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"mean": mean_of_visible, "nearest": nearest_visible}


def _inpaint(
    model: Model,
    image: Tensor,
    mask: Tensor,
    path: list[int],
    start: Callable[[Tensor, Tensor, Tensor], Tensor],
    paste_each_step: bool,
    seed: int,
    sample_ids: Tensor | None,
    clamp: float | None,
    batch_size: int,
    precision: str,
    paste: bool = True,
) -> Tensor:
    """Run either method in batches: follow the path from `start`(known, shown, ids), then put visible pixels back."""
    _check(model, image, mask, sample_ids, clamp, batch_size)
    if precision not in PRECISIONS:
        raise unknown("precision", precision, PRECISIONS)
    device = model.schedule.alpha_bar.device
    ids = torch.arange(len(image)) if sample_ids is None else sample_ids
    training = model.training
    model.eval()
    results = []
    try:
        for rows in torch.arange(len(image)).split(batch_size):
            shown = mask[rows.to(mask.device)].to(device).bool()
            # The only use of the image: nothing after this sees its hidden pixels.
            known = image[rows.to(image.device)].to(device).float().masked_fill(~shown, 0)
            batch = ids[rows.to(ids.device)].to(device)
            z = start(known, shown, batch)
            visible = (known, shown) if paste_each_step else None
            found = _follow(model, z, path, visible, seed, batch, clamp, precision == "bf16")
            results.append(torch.where(shown, known, found) if paste else found)
    finally:
        model.train(training)
    return torch.cat(results)


def _follow(
    model: Model,
    z: Tensor,
    path: list[int],
    visible: tuple[Tensor, Tensor] | None,
    seed: int,
    ids: Tensor,
    clamp: float | None,
    bf16: bool,
) -> Tensor:
    """Follow the path from z: denoise on the way down, add noise on the way up, insert the visible pixels if given."""
    schedule = model.schedule
    draws = itertools.count(1)  # a number for every use of noise; the start has 0
    for t, s in itertools.pairwise(path):
        if s > t:
            z = _up(model, z, t, s, seed, ids, next(draws))
            continue
        with torch.autocast(z.device.type, torch.bfloat16, enabled=bf16):
            prediction = model(z, torch.full_like(ids, t), {}).anchor.float()
        z, _ = ops.step(
            z, prediction, {}, t, schedule, s, target=model.target, clamp=clamp,
            seed=seed, sample_ids=ids, stream=STREAM, draw=next(draws),
        )  # fmt: skip
        if visible is not None:
            known, shown = visible
            z = torch.where(shown, _noised(model, known, s, seed, ids, next(draws)), z)
    return z


def _noised(model: Model, z0: Tensor, t: int, seed: int, ids: Tensor, draw: int) -> Tensor:
    """A sample of q(z_t | z_0)."""
    return ops.q_sample(
        z0, {}, t, model.schedule, return_noise=False, seed=seed, sample_ids=ids, stream=STREAM, draw=draw
    )


def _up(model: Model, z: Tensor, s: int, t: int, seed: int, ids: Tensor, draw: int) -> Tensor:
    """A sample of q(z_t | z_s) = N(sqrt(a) z_s, (1 - a) I), s < t, a = abar_t/abar_s: many forward steps in one."""
    a = process.jump(model.schedule, t, s).a
    of_z, sigma = (x.to(z.dtype) for x in (a.sqrt()[:, None], (1 - a).sqrt()))
    result = ops.combine([z], of_z, sigma, seed=seed, sample_ids=ids, stream=STREAM, draw=draw)
    assert isinstance(result, Tensor)
    return result


def _check(
    model: Model, image: Tensor, mask: Tensor, sample_ids: Tensor | None, clamp: float | None, batch_size: int
) -> None:
    if model.names:
        raise MmfastError(f"model also has {', '.join(model.names)}; it should be unconditional, with the anchor alone")
    if not isinstance(image, Tensor) or image.dim() != 4 or image.shape[1:] != model.shape or not len(image):
        kind = list(image.shape) if isinstance(image, Tensor) else type(image).__name__
        raise MmfastError(f"image is {kind}; it should be a tensor [B, {', '.join(map(str, model.shape))}], B >= 1")
    if not image.is_floating_point():
        raise MmfastError(f"image is {image.dtype}; it should be of floats in -1 .. 1")
    shape = [len(image), 1, *image.shape[2:]]
    if not isinstance(mask, Tensor) or list(mask.shape) != shape:
        kind = list(mask.shape) if isinstance(mask, Tensor) else type(mask).__name__
        raise MmfastError(f"mask is {kind}; it should be a tensor {shape}, 1 where a pixel is visible")
    if not bool(((mask == 0) | (mask == 1)).all()):
        raise MmfastError("mask holds values other than 0 and 1; it should be 1 where a pixel is visible, else 0")
    visible = image.masked_fill(~mask.bool().to(image.device), 0)
    if not bool(torch.isfinite(visible).all()):
        raise MmfastError("image is NaN or infinite at a visible pixel; it should be in -1 .. 1")
    if sample_ids is not None and (
        not isinstance(sample_ids, Tensor) or sample_ids.shape != (len(image),) or sample_ids.dtype != torch.int64
    ):
        raise MmfastError(f"sample_ids should be an int64 tensor [{len(image)}], with a number for each example")
    if clamp is not None and not clamp > 0:
        raise MmfastError(f"clamp is {clamp}; it should be above 0, or None")
    if not isinstance(batch_size, int) or batch_size < 1:
        raise MmfastError(f"batch_size is {batch_size!r}; it should be at least 1")
