"""Autoencoders, whose latents of an image are diffused instead of its pixels.

An autoencoder is any object with `encode` and `decode`: one of diffusers' (AutoencoderKL and similar), loaded from a
folder, or the result of your own function. It is frozen, not part of the model's weights and not saved with a run.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mmfast.errors import MmfastError, optional_package
from mmfast.files import read_text
from mmfast.options import one_line, option
from mmfast.trust import imported, names_code, source_digest


@dataclass
class AutoencoderSpec:
    """Which autoencoder, and its scaling: factor x (latents - shift), which should have a variance of about one."""

    network: str = option(
        "",
        "autoencoder whose latents are diffused: the folder of one of diffusers', or module:function; empty: none",
        path=lambda text, full: not names_code(text),
    )
    factor: float | None = option(
        None, "factor that scales the latents; null: the network's scaling_factor, or 1", above=0
    )
    shift: float | None = option(None, "subtracted from the latents first; null: the network's shift_factor, or 0")
    keep: bool = option(
        True, "encode the training images once and keep their latents in the data set's cache, unless they are mirrored"
    )


class Autoencoder:
    """Pixels float [B, C, H, W] in -1 .. 1 <-> scaled latents float32 [B, *shape], without gradients.

    key: the name used in errors; pixels: the shape of an image. Raises MmfastError for a network that cannot be loaded,
    whose latents do not have the image's aspect ratio, or whose decoded images do not have its shape.
    """

    def __init__(self, key: str, spec: AutoencoderSpec, pixels: tuple[int, int, int]) -> None:
        name = f"{key}.network"
        with torch.random.fork_rng(devices=[]):  # the model's initial weights stay the same
            self.network = _imported(name, spec.network) if names_code(spec.network) else _stored(name, spec.network)
            for method in ("encode", "decode"):
                if not callable(getattr(self.network, method, None)):
                    raise MmfastError(
                        f"{name} is {spec.network!r}, a {type(self.network).__name__} without {method}; it should have "
                        "encode and decode"
                    )
            if isinstance(self.network, nn.Module):
                self.network.eval().requires_grad_(False)
            settings = getattr(self.network, "config", None)
            own = {
                "factor": getattr(settings, "scaling_factor", None),
                "shift": getattr(settings, "shift_factor", None),
            }
            self.keep, self.named = spec.keep, spec.network
            self.factor = float(spec.factor or own["factor"] or 1.0)
            self.shift = float(spec.shift if spec.shift is not None else own["shift"] or 0.0)
            latents = self._try(name, "encode", torch.zeros(1, *pixels))
            _, height, width = pixels
            if latents.dim() != 4 or len(latents) != 1 or latents.shape[2] * width != latents.shape[3] * height:
                wanted = "side, side]" if height == width else "rows, columns], rows to columns as height to width"
                raise MmfastError(
                    f"{name} makes latents {list(latents.shape)} from an image [1, {', '.join(map(str, pixels))}]; "
                    f"they should be [1, channels, {wanted}"
                )
            self.shape: tuple[int, int, int] = (latents.shape[1], latents.shape[2], latents.shape[3])
            found = self._try(name, "decode", latents)
            if tuple(found.shape[1:]) != pixels:
                raise MmfastError(
                    f"{name} makes an image {list(found.shape[1:])} from latents {list(self.shape)}; it should be "
                    f"{list(pixels)}, as modality {key.split('.')[1]} is"
                )

    def digest(self) -> str | None:
        """A hash of the network's class, weights and, if it is the user's, code. None if it is not a torch module."""
        if not isinstance(self.network, nn.Module):
            return None
        found = hashlib.sha256(f"{type(self.network).__module__}.{type(self.network).__qualname__}".encode())
        module = self.named.partition(":")[0] if names_code(self.named) else ""
        found.update(source_digest(module).encode() if module else b"")
        for name, x in sorted(self.network.state_dict().items()):
            content = x.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
            found.update(f"{name} {x.dtype} {list(x.shape)}".encode() + content)
        return found.hexdigest()

    def __deepcopy__(self, memo: dict[int, Any]) -> Autoencoder:
        return self  # it is frozen, so copies of a model can share it

    def _try(self, name: str, method: str, x: Tensor) -> Tensor:
        try:
            return self.encode(x) if method == "encode" else self.decode(x)
        except (RuntimeError, TypeError, ValueError, AttributeError) as error:
            raise MmfastError(f"{name}: its {method} fails for {list(x.shape)}: {one_line(error)}") from None

    @torch.no_grad()
    def encode(self, x: Tensor) -> Tensor:
        """Images -> scaled latents; the mode if the network returns a distribution."""
        found = self._on(x).encode(x.float())
        found = found if isinstance(found, Tensor) else _first(found, "latents", "latent_dist")
        found = found if isinstance(found, Tensor) else found.mode()
        return (found.float() - self.shift) * self.factor

    @torch.no_grad()
    def decode(self, z: Tensor) -> Tensor:
        """Scaled latents -> images within -1 .. 1."""
        found = self._on(z).decode(z.float() / self.factor + self.shift)
        found = found if isinstance(found, Tensor) else _first(found, "sample")
        return found.float().clamp(-1, 1)

    def _on(self, x: Tensor) -> Any:
        return self.network.to(x.device) if isinstance(self.network, nn.Module) else self.network


def _first(found: Any, *names: str) -> Any:
    """The first of these attributes that a diffusers output has."""
    for name in names:
        if (x := getattr(found, name, None)) is not None:
            return x
    raise TypeError(f"it returns a {type(found).__name__}; it should return a tensor")


def _imported(key: str, name: str) -> Any:
    make = imported(key, name)
    try:
        return make()
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        reason = one_line(error) if str(error) else type(error).__name__
        raise MmfastError(
            f"{key} is {name!r}, which fails: {reason}; it should be module:function, the function without arguments"
        ) from None


def _stored(key: str, folder: str) -> Any:
    """Load a diffusers autoencoder from a folder that save_pretrained wrote, with weights in safetensors only."""
    try:
        text = read_text(Path(folder) / "config.json", 2**20)
        name = json.loads(text)["_class_name"]
    except (OSError, ValueError, KeyError, TypeError):
        raise MmfastError(
            f"{key} is {folder!r}, where no config.json names a class; it should be the folder of an autoencoder that "
            "diffusers' save_pretrained wrote, or module:function"
        ) from None
    with optional_package("diffusers", "diffusers", key):
        import diffusers
    kind = getattr(diffusers, name, None) if isinstance(name, str) else None
    if not (isinstance(kind, type) and issubclass(kind, diffusers.ModelMixin) and hasattr(kind, "decode")):
        raise MmfastError(f"{key}: {folder}/config.json names {name!r}, which is not an autoencoder of diffusers")
    try:
        return kind.from_pretrained(folder, use_safetensors=True, local_files_only=True)  # type: ignore[attr-defined]
    except (OSError, ValueError, RuntimeError) as error:
        raise MmfastError(f"{key}: {folder} cannot be loaded: {one_line(error)}") from None
