"""Checks that parts and a schedule can form a model together; the errors name the option."""

from __future__ import annotations

from collections.abc import Mapping

from mmfast.errors import MmfastError
from mmfast.modalities import Modality
from mmfast.modalities.image import Image
from mmfast.modalities.spec import Spec
from mmfast.schedule import Schedule
from mmfast.sizes import height_width, plain


def check_parts(anchor: str, parts: Mapping[str, Modality]) -> None:
    """Raise MmfastError for a modality that cannot be combined with this anchor."""
    first = parts[anchor]
    if getattr(first.spec, "ignore", None) is not None:
        raise MmfastError(
            f"modalities.{anchor}.ignore is {first.spec.ignore}, but {anchor} is the anchor, all of whose pixels are "
            "diffused; leave it out, or choose another anchor"
        )
    grid = first.z0_shape[1:]
    latent = getattr(first, "autoencoder", None) is not None
    for name, part in parts.items():
        size = grid if part is first else getattr(part.spec, "size", grid)
        if height_width(size) != grid:
            pictures = "; with pictures and vectors, the anchor should be a picture" if grid[0] == 1 else ""
            whose = "'s latents'" if latent else "'s"
            raise MmfastError(
                f"modalities.{name}.size is {plain(size)}; it should be {anchor}{whose}, {plain(grid)}{pictures}"
            )
        source = parts.get(part.source)
        if part.derived and (not isinstance(source, Image) or source.spec.channels != part.spec.channels):
            raise MmfastError(
                f"modalities.{name}.of is {part.source!r}; it should be an image with {part.spec.channels} channels"
            )
        if latent and (part.derived or (isinstance(part, Image) and part is not first)):
            raise MmfastError(
                f"modalities.{name} is a {part.kind}, which cannot be combined with latents of {anchor}; leave out "
                f"either it or modalities.{anchor}.autoencoder"
            )
        if part is not first and getattr(part, "autoencoder", None) is not None:
            raise MmfastError(f"modalities.{name}.autoencoder is set for an image that is not the anchor; leave it out")


def check_schedule(schedule: Schedule, target: str, space: str) -> None:
    """Raise MmfastError for a schedule that this target or space cannot be trained with."""
    last = schedule.alpha_bar[-1]
    if target == "eps" and not bool(last.rsqrt().float().isfinite()):  # steps are in float32
        raise MmfastError(
            f"loss.target is 'eps', but alpha_bar_T = {float(last):.3g}: z_0 cannot be recovered; use x0 or v"
        )
    for name, W in zip(schedule.names, schedule.W[0], strict=True):
        if space == "shared" and float(W) != 0:
            raise MmfastError(
                f"modalities.{name}.weight gives W_0 = {float(W):.3g}; in shared channels W_0 should be 0: use "
                "bridge, or space=own"
            )


def check_unknown(specs: Mapping[str, Spec]) -> None:
    """Raise MmfastError if training would make unknown what z_T still shows. specs: those of what it shows, by name."""
    for name, spec in specs.items():
        if spec.unknown_probability > 0:
            raise MmfastError(
                f"modalities.{name}.unknown_probability is above 0, but its weight leaves a trace at T; use none, "
                "carried or bridge"
            )
